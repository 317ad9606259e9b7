//! The rows of weights, for products and tables.

use super::gemm::Source;
use crate::{ir::WeightId, ops::Weights};

/// Calls `use_it` with the rows of a weight's matrix from row `first` on: trained ones where they lie, frozen ones as f32.
pub fn with_rows<R>(w: Weights<'_, f32>, weight: WeightId, first: usize, use_it: impl FnOnce(Source<'_>) -> R) -> R {
    let t = w.tensor(weight);
    match w.owned.get(weight.0 as usize) {
        Some(Some(own)) => {
            let cols = t.cols();
            use_it(Source::Slices(&|r| &own[(first + r) * cols..(first + r + 1) * cols]))
        }
        Some(None) | None => use_it(Source::Copied(&|r, to| {
            if crate::quant::dequantize(t.dtype(), t.row(first + r), to).is_err() {
                to.fill(f32::NAN);
            }
        })),
    }
}
