//! Weights that Hugging Face files store in fewer bits: what is read, and what is refused.
//!
//! FP8 with a scale for every block of rows and columns (DeepSeek-V3 and R1, Kimi-K2, MiniMax-M2, Qwen3's `-FP8`): a matrix
//! `[out, in]` of `float8_e4m3fn`, and beside it, under the name with `_scale_inv`, `[out / 128, in / 128]` factors (both
//! rounded up; `quantization_config.weight_block_size` says other sizes). Matrices of experts may lie in one tensor, `[E, out, in]`
//! with `[E, out / 128, in / 128]` factors. A weight is its number times its block's factor. They
//! become BF16, as DeepSeek's own `fp8_cast_bf16.py` makes of them, when they are first read: a file is converted matrix by
//! matrix.
//!
//! MXFP4 blocks are read by [`super::expert_weights`].

use super::tensors::numbers;
use crate::{
    error::{Error, Result},
    file::{Bytes, Checkpoint, Tensor},
    quant::{self, DType},
};
use serde_json::Value as Json;

/// Refuses what a config says of its weights' storage and is not known here.
///
/// # Errors
/// [`Error::Unsupported`].
pub(super) fn check(ckpt: &Checkpoint) -> Result<()> {
    let Some(method) = config(ckpt, "quant_method").and_then(Json::as_str) else { return Ok(()) };
    if ["fp8", "mxfp4"].contains(&method) {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "weights stored by `{method}` (quantization_config): known are fp8 in blocks, mxfp4, and unquantised ones; look for \
         the model's original weights, or for a GGUF of it"
    )))
}

fn config<'a>(ckpt: &'a Checkpoint, key: &str) -> Option<&'a Json> {
    let top = ckpt.config()?;
    let section = [Some(top), top.get("text_config")].into_iter().flatten().find_map(|c| c.get("quantization_config"));
    section?.get(key)
}

/// A matrix of FP8 blocks as BF16, and the name of its scales; `None` for a tensor of another type.
///
/// # Errors
/// [`Error::Unsupported`] without such scales, [`Error::Model`] where they do not fit.
pub(super) fn fp8(ckpt: &Checkpoint, name: &str) -> Result<Option<(Tensor, String)>> {
    let Some(info) = ckpt.info(name).filter(|t| t.type_name == "F8_E4M3") else { return Ok(None) };
    let scales = format!("{name}_scale_inv");
    let Some(table) = ckpt.info(&scales) else {
        let what = "is stored as FP8 without a table of block scales beside it";
        return Err(Error::Unsupported(format!(
            "tensor `{name}` {what} (`{scales}`): other forms of FP8 are not known here"
        )));
    };
    let shape = info.shape.as_slice();
    let (count, rows, cols) = match *shape {
        [rows, cols] => (1, rows, cols),
        [count, rows, cols] => (count, rows, cols),
        _ => return Err(Error::Model(format!("tensor `{name}` of shape {shape:?} as FP8 in blocks"))),
    };
    let raw = info.raw.clone().ok_or_else(|| Error::Model(format!("tensor `{name}` has no numbers")))?;
    let block = block(ckpt)?;
    let [down, across] = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
    let want = [&shape[..shape.len() - 2], &[down, across][..]].concat();
    if table.shape != want {
        let (shape, [h, w]) = (&table.shape, block);
        return Err(Error::Model(format!(
            "tensor `{scales}` has shape {shape:?}, expected {want:?} for blocks of {h} x {w}"
        )));
    }
    let scales_of = numbers(ckpt.require(&scales)?)?;
    if scales_of.iter().any(|s| !s.is_finite()) {
        return Err(Error::Model(format!("tensor `{scales}` holds NaN or infinity: the file is damaged")));
    }
    let wrong = || Error::Model(format!("tensor `{name}` has {} bytes", raw.len()));
    let each = rows.checked_mul(cols).filter(|n| n.checked_mul(count) == Some(raw.len())).ok_or_else(wrong)?;
    let part = |i: usize| {
        let raw = raw.slice(i * each..(i + 1) * each)?;
        let scales = scales_of.get(i * down * across..(i + 1) * down * across)?.to_vec();
        Some(Bytes::from_fn(2 * each, move || to_bf16(&raw, cols, &scales, block, across)))
    };
    let parts = (0..count).map(part).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
    Ok(Some((Tensor::new(DType::BF16, shape.to_vec(), parts)?, scales)))
}

/// Rows and columns of a block.
fn block(ckpt: &Checkpoint) -> Result<[usize; 2]> {
    let Some(size) = config(ckpt, "weight_block_size").filter(|s| !s.is_null()) else { return Ok([128; 2]) };
    let sides: Vec<usize> = size.as_array().into_iter().flatten().filter_map(|n| n.as_u64()?.try_into().ok()).collect();
    match sides[..] {
        [h, w] if h > 0 && w > 0 => Ok([h, w]),
        _ => Err(Error::Model(format!("weight_block_size is {size}"))),
    }
}

fn to_bf16(raw: &[u8], cols: usize, scales: &[f32], [height, width]: [usize; 2], across: usize) -> Vec<u8> {
    let table: Vec<f32> = (0..=255).map(quant::f8_e4m3).collect();
    let mut out = Vec::with_capacity(2 * raw.len());
    for (r, row) in raw.chunks_exact(cols).enumerate() {
        let scales = &scales[r / height * across..][..across];
        for (piece, scale) in row.chunks(width).zip(scales) {
            for b in piece {
                out.extend(half::bf16::from_f32(table[usize::from(*b)] * scale).to_le_bytes());
            }
        }
    }
    out
}
