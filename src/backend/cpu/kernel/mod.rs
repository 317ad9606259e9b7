//! Dot products of weight rows with activations, by format and SIMD level.
//!
//! Weights are packed at load ([`packed`]) where the SIMD level has kernels for that. From the file's own bytes there are two shapes
//! of kernel: *rows* (one weight row after the other against 1, 2 or 4 tokens: decode, bound by the bytes of the
//! weights) and *panels* (16 rows unpacked once, against many tokens: prefill, bound by arithmetic).
//!
//! How a block becomes quants and scales is said once, on the format's page ([`crate::quant`]); the kernels of every SIMD
//! level are generic over it ([`int_dot`], [`scalar`]), and packed copies are made from it. Quantised weights meet activations of 8
//! bits (see [`super::act`]): integer products are exact, scales are applied in f32 every 16 or 32 weights. Float weights meet f32 activations. Each result is summed by one thread in a fixed order.

pub mod float;
pub mod float_panel;
mod int_dot;
// Only x86-64 has kernels for it yet.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub mod packed;
pub mod panel;
mod scalar;

use super::{
    act::ActRow,
    prefetch::{self, Level},
    simd_level::SimdLevel,
};
use crate::quant::DType;

/// How many bytes ahead of those in use weights are asked into the second cache, and how many into the first.
const FAR: usize = 8192;
const NEAR: usize = 1536;

/// Asks for the lines that are read some time after that at `p`: on an Emerald Rapids 89 tokens a second in F16 where hardware
/// alone makes 60, from mapped Q4_K 87 and asked into the first cache alone 75.
#[inline(always)]
fn ask_ahead(p: *const u8) {
    prefetch::line(p.wrapping_add(FAR), Level::L2);
    prefetch::line(p.wrapping_add(NEAR), Level::L1);
}

/// What a rows kernel works on: `rows` weight rows of `cols` weights, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct RowsJob<const T: usize> {
    /// First row.
    pub weights: *const u8,
    /// Bytes from row to row.
    pub row_bytes: usize,
    /// Number of rows.
    pub rows: usize,
    /// Weights of a row.
    pub cols: usize,
    /// The tokens' activations in 8 bits, for quantised formats.
    pub acts: [ActRow; T],
    /// The tokens' activations in f32, for float formats.
    pub floats: [*const f32; T],
    /// Row r of token t goes to `out[t * stride + r]`.
    pub out: *mut f32,
    /// See `out`.
    pub stride: usize,
}

/// A rows kernel for `T` tokens at a time.
///
/// Safety: the processor has the kernel's SIMD level, and the pointers of the job are valid for the sizes it states.
pub type RowsKernel<const T: usize> = unsafe fn(&RowsJob<T>);

/// The kernels of one format at one SIMD level.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// For one token.
    pub one: RowsKernel<1>,
    /// For two tokens.
    pub two: RowsKernel<2>,
    /// For four tokens.
    pub four: RowsKernel<4>,
    /// Unpacks 16 rows for a panel, where the SIMD level has panels.
    pub panel: Option<panel::Fill>,
}

/// The kernels of `dtype` at `simd_level`.
pub fn kernels(dtype: DType, simd_level: SimdLevel) -> Kernels {
    let of_blocks = match simd_level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512Vnni => int_dot::avx512_vnni::kernels(dtype),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::AvxVnni => int_dot::avx_vnni::kernels(dtype),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => int_dot::avx2::kernels(dtype),
        #[cfg(target_arch = "aarch64")]
        SimdLevel::NeonDotprod => int_dot::dotprod::kernels(dtype),
        SimdLevel::Scalar => scalar::kernels(dtype),
        // Those of other processors, which are never available.
        #[cfg(not(target_arch = "x86_64"))]
        SimdLevel::Avx512Vnni | SimdLevel::AvxVnni | SimdLevel::Avx2 => scalar::kernels(dtype),
        #[cfg(not(target_arch = "aarch64"))]
        SimdLevel::NeonDotprod => scalar::kernels(dtype),
    };
    of_blocks.unwrap_or_else(|float| float::kernels(float, simd_level))
}
