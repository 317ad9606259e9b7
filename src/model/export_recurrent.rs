//! The tensors and keys of recurrent layers as llama.cpp has them: projections joined as its graphs split them, taps of
//! convolutions behind each other, and for Qwen3.5 the value heads in its order.
//!
//! Source: llama.cpp's `conversion/qwen.py` and `conversion/lfm2.py`.

use super::{
    Decoder,
    decoder::Moe,
    recurrent::{Delta, Mixer},
};
use crate::{
    error::{Error, Result},
    file::{Array, Bytes, Metadata, Tensor, Value},
    ir::{Renormalise, Score},
};

/// Sets the keys of recurrent layers; `rotated` columns of a head of attention rotate.
///
/// # Errors
/// [`Error::Model`] for counts beyond 32 bits.
pub(super) fn keys(meta: &mut Metadata, arch: &str, d: &Decoder, rotated: usize) -> Result<()> {
    let count = |n: usize| u32::try_from(n).map_err(|_| Error::Model(format!("a size of {n}")));
    let set = |meta: &mut Metadata, key: &str, n: usize| -> Result<()> {
        meta.set(format!("{arch}.{key}"), Value::U32(count(n)?));
        Ok(())
    };
    let delta = d.mixers.iter().find_map(|m| if let Mixer::Delta(s) = m { Some(s) } else { None });
    if let Some(s) = delta {
        if s.k_dim != s.v_dim {
            let what = format!("linear attention with keys of {} and values of {} columns", s.k_dim, s.v_dim);
            return Err(Error::Unsupported(format!("{what}: a GGUF of the architecture `{arch}` cannot say that")));
        }
        set(meta, "ssm.conv_kernel", s.taps)?;
        set(meta, "ssm.state_size", s.k_dim)?;
        set(meta, "ssm.group_count", s.k_heads)?;
        set(meta, "ssm.time_step_rank", s.v_heads)?;
        set(meta, "ssm.inner_size", s.v_heads * s.v_dim)?;
        let every = d.mixers.iter().position(|m| *m == Mixer::Attention).map_or(d.layers + 1, |i| i + 1);
        let regular = |(i, m): (usize, &Mixer)| (*m == Mixer::Attention) == ((i + 1) % every == 0);
        if !d.mixers.iter().enumerate().all(regular) {
            let what = "attention in other layers than every n-th";
            return Err(Error::Unsupported(format!("{what}: a GGUF of the architecture `{arch}` cannot say that")));
        }
        set(meta, "full_attention_interval", every)?;
        if arch == "qwen35moe" {
            // The pairs of columns belong to time, height and width in turn; llama.cpp does not rotate those beyond the
            // sections. Positions of text are the same in all three.
            let half = count(rotated / 2)?;
            let turn = |i: u32| half.saturating_sub(i).div_ceil(3);
            let sections = Value::Array(Array::from_u32(&[turn(0), turn(1), turn(2), 0]));
            meta.set(format!("{arch}.rope.dimension_sections"), sections);
        }
    }
    let taps = d.mixers.iter().find_map(|m| if let Mixer::Conv { taps } = m { Some(*taps) } else { None });
    if let Some(taps) = taps {
        set(meta, "shortconv.l_cache", taps)?;
        // Layers without attention have no heads of keys.
        let heads = |m: &Mixer| if *m == Mixer::Attention { d.kv_heads as u32 } else { 0 };
        let heads: Vec<u32> = d.mixers.iter().map(heads).collect();
        meta.set(format!("{arch}.attention.head_count_kv"), Value::Array(Array::from_u32(&heads)));
    }
    Ok(())
}

/// The keys of LFM2's experts.
///
/// # Errors
/// [`Error::Unsupported`] for what its graph in llama.cpp does otherwise.
pub(super) fn lfm2_experts(meta: &mut Metadata, m: &Moe) -> Result<()> {
    let refused =
        |what: &str| Error::Unsupported(format!("{what}: a GGUF of the architecture `lfm2moe` cannot say that"));
    if m.router.score != Score::Sigmoid || m.router.renormalise == Renormalise::No || !m.selection_bias {
        return Err(refused("a router without sigmoid scores, selection bias or renormalisation"));
    }
    if m.router.scale != 1.0 {
        return Err(refused(&format!(
            "router weights times {} (llama.cpp's graph leaves the factor out)",
            m.router.scale
        )));
    }
    let dense = m.dense_layers.len();
    if m.dense_layers != (0..dense).collect::<Vec<_>>() {
        return Err(refused("dense layers behind layers with experts"));
    }
    let counts = [
        ("expert_count", m.router.experts),
        ("expert_used_count", m.router.used),
        ("expert_feed_forward_length", m.width),
        ("leading_dense_block_count", dense),
        // llama.cpp's number of the sigmoid.
        ("expert_gating_func", 2),
    ];
    for (key, n) in counts {
        let n = u32::try_from(n).map_err(|_| Error::Model(format!("{key} is {n}")))?;
        meta.set(format!("lfm2moe.{key}"), Value::U32(n));
    }
    Ok(())
}

/// The tensors under llama.cpp's names and in its form.
///
/// # Errors
/// [`Error::Model`] where parts do not fit each other.
pub(super) fn tensors(arch: &str, d: &Decoder, list: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
    let delta = d.mixers.iter().find_map(|m| if let Mixer::Delta(s) = m { Some(*s) } else { None });
    let mut list = list;
    if let Some(s) = delta.filter(|s| arch == "qwen35moe" && s.k_heads != s.v_heads) {
        list = list.into_iter().map(|(name, t)| Ok((name.clone(), tiled(&name, t, &s)?))).collect::<Result<_>>()?;
    }
    let mut out: Vec<(String, Tensor)> = vec![];
    for (name, t) in list {
        // The part before it in the list, where this one is joined to it.
        let (before, group) = match delta {
            _ if name.ends_with(".attn_q_gate.weight") => (".attn_q.weight", d.head_dim),
            Some(s) if arch == "qwen3next" && name.ends_with(".ssm_alpha.weight") => {
                (".ssm_beta.weight", s.v_heads / s.k_heads)
            }
            _ if name.ends_with(".shortconv.in_c.weight") => (".shortconv.in_b.weight", d.hidden),
            _ if name.ends_with(".shortconv.in_x.weight") => (".shortconv.in_proj.weight", usize::MAX),
            _ => ("", 0),
        };
        match out.last_mut() {
            Some((last, tensor)) if !before.is_empty() && last.ends_with(before) => {
                *tensor = joined(tensor, &t, [group; 2])?;
                *last = last.replace(".ssm_beta.", ".ssm_ba.").replace(".shortconv.in_b.", ".shortconv.in_proj.");
            }
            _ if !before.is_empty() => return Err(Error::Model(format!("{name} does not follow {before}"))),
            _ if name.ends_with(".ssm_conv1d.weight") || name.ends_with(".shortconv.conv.weight") => {
                let taps = d.mixers.iter().find_map(|m| match m {
                    Mixer::Delta(s) => Some(s.taps),
                    Mixer::Conv { taps } => Some(*taps),
                    Mixer::Attention => None,
                });
                out.push((name, channels_first(&t, taps.unwrap_or(1))?));
            }
            _ => out.push((name, t)),
        }
    }
    Ok(out)
}

fn bad() -> Error {
    Error::Model("parts of a projection do not fit each other".into())
}

/// So many rows of `a`, so many of `b`, and so on; with more than `a` has, b behind a.
///
/// # Errors
/// [`Error::Model`] where the two do not fit each other.
pub(super) fn joined(a: &Tensor, b: &Tensor, groups: [usize; 2]) -> Result<Tensor> {
    if a.cols() != b.cols() || a.dtype() != b.dtype() {
        return Err(bad());
    }
    let (mut rows, mut at) = (vec![], [0, 0]);
    while at[0] < a.rows() || at[1] < b.rows() {
        for ((t, at), group) in [a, b].iter().zip(&mut at).zip(groups) {
            let end = at.saturating_add(group.max(1)).min(t.rows());
            rows.extend((*at..end).map(|r| row(t, r)));
            *at = end;
        }
    }
    let rows = rows.into_iter().collect::<Option<Vec<Bytes>>>().ok_or_else(bad)?;
    Tensor::new(a.dtype(), vec![a.rows() + b.rows(), a.cols()], rows)
}

fn row(t: &Tensor, r: usize) -> Option<Bytes> {
    let (n, bytes) = (t.rows_per_part(), t.row_bytes());
    t.parts().get(r / n)?.slice(r % n * bytes..(r % n + 1) * bytes)
}

fn numbers(t: &Tensor) -> Result<Vec<f32>> {
    let mut x = vec![0.0; t.rows() * t.cols()];
    for (r, row) in x.chunks_mut(t.cols().max(1)).enumerate() {
        crate::quant::dequantize(t.dtype(), t.row(r), row)?;
    }
    Ok(x)
}

/// From tap by tap to channel by channel: `[channels, taps]`.
fn channels_first(t: &Tensor, taps: usize) -> Result<Tensor> {
    let (x, channels) = (numbers(t)?, t.cols() / taps.max(1));
    let turned = (0..x.len()).map(|i| x[i % taps * channels + i / taps]).collect();
    Tensor::from_f32(vec![channels, taps], turned)
}

/// The value heads in llama.cpp's order: the first of every key head, then the second of every one, and so on.
fn tiled(name: &str, t: Tensor, s: &Delta) -> Result<Tensor> {
    let per = s.v_heads / s.k_heads;
    let head = |i: usize| i % s.k_heads * per + i / s.k_heads;
    // Place i of the values' rows (each head `n` long) comes from here.
    let from = |i: usize, n: usize| head(i / n) * n + i % n;
    let keys = 2 * s.k_heads * s.k_dim;
    let ends = |e: &str| name.ends_with(e);
    let by_rows = |skip: usize, n: usize| {
        let source = |r: usize| if r < skip { r } else { skip + from(r - skip, n) };
        let rows = (0..t.rows()).map(|r| row(&t, source(r))).collect::<Option<Vec<_>>>().ok_or_else(bad)?;
        Tensor::new(t.dtype(), t.shape().to_vec(), rows)
    };
    if ends(".attn_qkv.weight") {
        by_rows(keys, s.v_dim)
    } else if ends(".attn_gate.weight") {
        by_rows(0, s.v_dim)
    } else if ends(".ssm_beta.weight") || ends(".ssm_alpha.weight") {
        by_rows(0, 1)
    } else if ends(".ssm_a") || ends(".ssm_dt.bias") {
        let x = numbers(&t)?;
        Tensor::from_f32(t.shape().to_vec(), (0..x.len()).map(|i| x[from(i, 1)]).collect())
    } else if ends(".ssm_conv1d.weight") {
        let (x, n) = (numbers(&t)?, keys + s.v_heads * s.v_dim);
        let source = |c: usize| if c < keys { c } else { keys + from(c - keys, s.v_dim) };
        Tensor::from_f32(t.shape().to_vec(), (0..x.len()).map(|i| x[i / n * n + source(i % n)]).collect())
    } else if ends(".ssm_out.weight") {
        columns(&t, |c| from(c, s.v_dim))
    } else {
        Ok(t)
    }
}

/// Column c from column `source(c)`; of matrices without blocks.
fn columns(t: &Tensor, source: impl Fn(usize) -> usize) -> Result<Tensor> {
    if !t.dtype().is_float() {
        return Err(Error::Unsupported(format!("columns of {} in another order", t.dtype())));
    }
    let size = t.row_bytes() / t.cols().max(1);
    let rows = (0..t.rows()).map(|r| {
        let row = t.row(r);
        let moved = (0..t.cols()).flat_map(|c| row[source(c) * size..(source(c) + 1) * size].iter().copied());
        Bytes::from_vec(moved.collect())
    });
    Tensor::new(t.dtype(), t.shape().to_vec(), rows.collect())
}
