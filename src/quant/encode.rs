//! f32 to blocks: checks, importances, threads, and the dispatch to the formats.

use super::{DType, float, iq4_nl, iq4_xs, mxfp4, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0};
use crate::error::{Error, Result};

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
        DType::Q4_0 => each(x, imp, out, q4_0::quantize),
        DType::Q4_1 => each(x, imp, out, q4_1::quantize),
        DType::Q5_0 => each(x, imp, out, q5_0::quantize),
        DType::Q5_1 => each(x, imp, out, q5_1::quantize),
        DType::Q8_0 => each(x, imp, out, q8_0::quantize),
        DType::Q2K => each(x, imp, out, q2_k::quantize),
        DType::Q3K => each(x, imp, out, q3_k::quantize),
        DType::Q4K => each(x, imp, out, q4_k::quantize),
        DType::Q5K => each(x, imp, out, q5_k::quantize),
        DType::Q6K => each(x, imp, out, q6_k::quantize),
        DType::IQ4NL => each(x, imp, out, iq4_nl::quantize),
        DType::IQ4XS => each(x, imp, out, iq4_xs::quantize),
        DType::MXFP4 => each(x, imp, out, mxfp4::quantize),
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
    let parts: Vec<Result<Vec<u8>>> = std::thread::scope(|scope| {
        let start = |(i, x)| {
            scope.spawn(move || {
                let mut out = Vec::new();
                quantize(dtype, x, &mut out).map(|()| out).map_err(|e| shifted(e, i * each))
            })
        };
        let workers: Vec<_> = x.chunks(each * cols.max(1)).enumerate().map(start).collect();
        let lost = || Err(Error::Invalid("a quantisation thread ended early".into()));
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| lost())).collect()
    });
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
    if x.len() % block != 0 {
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
    if cols == 0 || weights % cols != 0 || cols % dtype.layout().block != 0 {
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

/// `f` for every block of `B` weights and their importances.
fn each<const N: usize, const B: usize>(
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut Vec<u8>,
    f: impl Fn(&[f32; B], &[f32; B], &mut [u8; N]),
) {
    let ones = [[1.0; B]];
    let importance = importance.map_or(&ones[..], |i| i.as_chunks::<B>().0);
    let start = out.len();
    out.resize(start + x.len() / B * N, 0);
    let blocks = out[start..].as_chunks_mut::<N>().0;
    for ((x, b), w) in x.as_chunks::<B>().0.iter().zip(blocks).zip(importance.iter().cycle()) {
        f(x, w, b);
    }
}
