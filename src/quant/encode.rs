//! f32 to blocks: checks, importances, threads, and the dispatch to the formats.

use super::{DType, float, iq4_nl, iq4_xs, mxfp4, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0};
use crate::{
    error::{Error, Result},
    threads,
};

/// Appends the blocks of `x` to `out`. Every weight counts the same: the scales minimise the squared error.
///
/// # Errors
/// [`Error::Invalid`] where `x` is no whole number of blocks; [`Error::Model`] where a weight is NaN, infinite or beyond
/// what the format can hold (65504 in the formats with f16 scales), with its index in `x`. `out` is unchanged then.
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
    match dtype {
        DType::F32 => float::quantize_f32(x, out),
        DType::F16 => float::quantize_f16(x, out)?,
        DType::BF16 => float::quantize_bf16(x, out)?,
        DType::Q4_0 => each::<Q4_0, 18, 32>(x, imp, out),
        DType::Q4_1 => each::<Q4_1, 20, 32>(x, imp, out),
        DType::Q5_0 => each::<Q5_0, 22, 32>(x, imp, out),
        DType::Q5_1 => each::<Q5_1, 24, 32>(x, imp, out),
        DType::Q8_0 => each::<Q8_0, 34, 32>(x, imp, out),
        DType::Q2K => each::<Q2K, 84, 256>(x, imp, out),
        DType::Q3K => each::<Q3K, 110, 256>(x, imp, out),
        DType::Q4K => each::<Q4K, 144, 256>(x, imp, out),
        DType::Q5K => each::<Q5K, 176, 256>(x, imp, out),
        DType::Q6K => each::<Q6K, 210, 256>(x, imp, out),
        DType::IQ4NL => each::<IQ4NL, 18, 32>(x, imp, out),
        DType::IQ4XS => each::<IQ4XS, 136, 256>(x, imp, out),
        DType::MXFP4 => each::<MXFP4, 17, 32>(x, imp, out),
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

/// A format's function for one block. A trait and not a closure, because the function must be inlined into loops that are
/// compiled for several instruction sets, and calls of closures are not.
trait Encode<const N: usize, const B: usize> {
    /// Block `b` from weights `x` with importances `w`.
    fn encode(x: &[f32; B], w: &[f32; B], b: &mut [u8; N]);
}

macro_rules! formats {
    ($($name:ident: $module:ident, $bytes:literal, $block:literal;)*) => {$(
        struct $name;
        impl Encode<$bytes, $block> for $name {
            #[inline(always)]
            fn encode(x: &[f32; $block], w: &[f32; $block], b: &mut [u8; $bytes]) {
                $module::quantize(x, w, b);
            }
        }
    )*};
}

formats! {
    Q4_0: q4_0, 18, 32;
    Q4_1: q4_1, 20, 32;
    Q5_0: q5_0, 22, 32;
    Q5_1: q5_1, 24, 32;
    Q8_0: q8_0, 34, 32;
    Q2K: q2_k, 84, 256;
    Q3K: q3_k, 110, 256;
    Q4K: q4_k, 144, 256;
    Q5K: q5_k, 176, 256;
    Q6K: q6_k, 210, 256;
    IQ4NL: iq4_nl, 18, 32;
    IQ4XS: iq4_xs, 136, 256;
    MXFP4: mxfp4, 17, 32;
}

/// Appends the block of every `B` weights.
fn each<F: Encode<N, B>, const N: usize, const B: usize>(x: &[f32], importance: Option<&[f32]>, out: &mut Vec<u8>) {
    let ones = [[1.0; B]];
    let importance = importance.map_or(&ones[..], |i| i.as_chunks::<B>().0);
    let start = out.len();
    out.resize(start + x.len() / B * N, 0);
    let (x, out) = (x.as_chunks::<B>().0, out[start..].as_chunks_mut::<N>().0);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { each_avx2::<F, N, B>(x, importance, out) };
    }
    each_any::<F, N, B>(x, importance, out);
}

/// The loop of [`each`]. Its results do not depend on the instruction set, because sums run in a fixed number of lanes
/// and nothing is contracted.
#[inline(always)]
fn each_any<F: Encode<N, B>, const N: usize, const B: usize>(
    x: &[[f32; B]],
    importance: &[[f32; B]],
    out: &mut [[u8; N]],
) {
    for ((x, out), w) in x.iter().zip(out).zip(importance.iter().cycle()) {
        F::encode(x, w, out);
    }
}

/// [`each_any`] in vectors of eight.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn each_avx2<F: Encode<N, B>, const N: usize, const B: usize>(
    x: &[[f32; B]],
    importance: &[[f32; B]],
    out: &mut [[u8; N]],
) {
    each_any::<F, N, B>(x, importance, out);
}
