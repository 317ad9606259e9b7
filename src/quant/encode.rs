//! f32 to blocks: checks, importances, threads, and the dispatch to the formats.

use super::{DType, Float, float, format::BlockFormat};
use crate::{
    error::{Error, Result},
    threads,
};

/// Appends the blocks of `x` to `out`. Every weight counts the same: the scales minimise the squared error.
///
/// # Errors
/// [`Error::Invalid`] where `x` is no whole number of blocks; [`Error::Model`] where a weight is NaN, infinite or beyond
/// what the format can hold (65504 in the formats with f16 scales), with its index in `x`; [`Error::Unsupported`] where the
/// format has no quantiser. `out` is unchanged then.
pub fn quantize(dtype: DType, x: &[f32], out: &mut Vec<u8>) -> Result<()> {
    quantize_weighted(dtype, x, None, out)
}

/// [`quantize`] with importances: one for each column of a row (llama.cpp's importance matrix: the mean square of the
/// activation that the column meets), used for all rows in `x`.
///
/// # Errors
/// As [`quantize`]; [`Error::Invalid`] where the importances are not finite and positive or zero, or rows of that length
/// are no whole number of blocks or do not fill `x`.
pub fn quantize_weighted(dtype: DType, x: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) -> Result<()> {
    check(dtype, x)?;
    let importance = importance.map(|i| normalised(dtype, x.len(), i)).transpose()?;
    let imp = importance.as_deref();
    match dtype.codec() {
        Ok(codec) => match codec.quantize {
            Ok(quantize) => quantize(x, imp, out),
            Err(why) => return Err(Error::Unsupported(format!("weights cannot be made {dtype}: {why}"))),
        },
        Err(Float::F32) => float::quantize_f32(x, out),
        Err(Float::F16) => float::quantize_f16(x, out)?,
        Err(Float::BF16) => float::quantize_bf16(x, out)?,
    }
    Ok(())
}

/// [`quantize`] of `rows` rows of `cols` weights on `threads` threads (at least one), in order.
///
/// # Errors
/// As [`quantize`]; [`Error::Invalid`] where `x` has another size.
pub fn quantize_rows(dtype: DType, rows: usize, cols: usize, x: &[f32], threads: usize) -> Result<Vec<u8>> {
    let row_bytes = dtype.row_bytes(cols).filter(|_| rows.checked_mul(cols) == Some(x.len())).ok_or_else(|| {
        Error::Invalid(format!("{} weights are not {rows} rows of {cols} in whole blocks of {dtype}", x.len()))
    })?;
    let each = rows.div_ceil(threads.max(1)).max(1);
    let mut out = Vec::with_capacity(rows * row_bytes);
    if each >= rows {
        quantize(dtype, x, &mut out)?;
        return Ok(out);
    }
    // Every part has a result of its own, so that the first rows' error is told whichever thread is faster.
    let mut parts: Vec<Result<Vec<u8>>> = (0..rows.div_ceil(each)).map(|_| Ok(vec![])).collect();
    let work = x.chunks(each * cols.max(1)).zip(&mut parts).enumerate();
    threads::for_each(
        threads,
        work,
        || (),
        |(), (i, (x, part))| {
            let mut bytes = vec![];
            *part = quantize(dtype, x, &mut bytes).map(|()| bytes).map_err(|e| shifted(e, i * each));
            Ok(())
        },
    )?;
    for part in parts {
        out.extend(part?);
    }
    Ok(out)
}

/// An error about weights of a part, told with the part's first row.
fn shifted(e: Error, row: usize) -> Error {
    match e {
        Error::Model(what) if row > 0 => Error::Model(format!("counted from row {row}: {what}")),
        e => e,
    }
}

/// The largest half: scales and minima are halves.
const LARGEST: f32 = 65504.0;

/// Whole blocks, and numbers that the format can hold. F16 and BF16 check their own range.
fn check(dtype: DType, x: &[f32]) -> Result<()> {
    let block = dtype.layout().block;
    if !x.len().is_multiple_of(block) {
        return Err(Error::Invalid(format!("{} weights are no whole number of {dtype} blocks of {block}", x.len())));
    }
    let limit = if dtype.is_float() || dtype == DType::MXFP4 { f32::MAX } else { LARGEST };
    match x.iter().position(|v| v.is_nan() || v.abs() > limit) {
        Some(i) if x[i].is_finite() => Err(Error::Model(format!(
            "weight {i} is {}, beyond what {dtype} is for (±{limit}); use BF16 or F32 for this tensor",
            x[i]
        ))),
        Some(i) => Err(Error::Model(format!("weight {i} is {}: the checkpoint is damaged", x[i]))),
        None => Ok(()),
    }
}

/// Importances with mean one, none of them zero: a column without importance still has a value to keep.
fn normalised(dtype: DType, weights: usize, importance: &[f32]) -> Result<Vec<f32>> {
    let cols = importance.len();
    if cols == 0 || !weights.is_multiple_of(cols) || !cols.is_multiple_of(dtype.layout().block) {
        return Err(Error::Invalid(format!("{cols} importances do not fit {weights} weights of {dtype}")));
    }
    if let Some(v) = importance.iter().find(|v| !(0.0..f32::INFINITY).contains(*v)) {
        return Err(Error::Invalid(format!("an importance is {v}")));
    }
    let mean = importance.iter().map(|&v| f64::from(v)).sum::<f64>() / cols as f64;
    if mean == 0.0 {
        return Ok(vec![1.0; cols]);
    }
    Ok(importance.iter().map(|&v| ((f64::from(v) / mean) as f32).max(1e-4)).collect())
}

/// Appends the blocks of `x`, whole blocks of weights whose importances repeat.
pub(super) fn blocks<F: BlockFormat>(x: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    let ones = [1.0; 256];
    let importance = importance.unwrap_or(&ones[..F::BLOCK]);
    let start = out.len();
    out.resize(start + x.len() / F::BLOCK * F::BYTES, 0);
    let out = &mut out[start..];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { blocks_avx2::<F>(x, importance, out) };
    }
    blocks_any::<F>(x, importance, out);
}

/// The loop of [`blocks`]. Its results do not depend on the instruction set, because sums run in a fixed number of lanes and
/// nothing is contracted.
#[inline(always)]
fn blocks_any<F: BlockFormat>(x: &[f32], importance: &[f32], out: &mut [u8]) {
    let importances = importance.chunks_exact(F::BLOCK).cycle();
    for ((x, out), w) in x.chunks_exact(F::BLOCK).zip(out.chunks_exact_mut(F::BYTES)).zip(importances) {
        F::quantize(x, w, out);
    }
}

/// [`blocks_any`] in vectors of eight.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn blocks_avx2<F: BlockFormat>(x: &[f32], importance: &[f32], out: &mut [u8]) {
    blocks_any::<F>(x, importance, out);
}
