//! A model's weights as a GGUF has them: projections joined as llama.cpp's graphs split them, rows in its order, taps of
//! convolutions behind each other, and the frequencies that no key can say as divisors.
//!
//! Source: llama.cpp's `conversion/*.py`.

use crate::{
    error::{Error, Result},
    file::Tensor,
    ir::{Op, RopePairs},
    model::{
        build::Definition,
        decoder::{AttentionSpec, Decoder, DeltaSpec, LayerSpec, Mixer, NormOver, QkNorm},
        gguf::GgufForm,
        rope::{RopeSpec, Scaling, plain},
        tensors::{channels_first, columns_from, interleaved, joined, numbers, rows_from},
    },
};

/// The tensors of a file, with their names.
///
/// # Errors
/// [`Error::Model`] where parts do not fit each other.
pub(super) fn tensors(form: &GgufForm, d: &Definition) -> Result<Vec<(String, Tensor)>> {
    let mut out: Vec<(String, Tensor)> = vec![];
    for (decl, t) in d.program.graph.weights.iter().zip(d.program.weights.iter()) {
        let layer = layer_of(&d.decoder, &decl.name);
        if layer.is_some_and(|l| stands_for_none(l, &decl.name)) {
            continue;
        }
        let t = match layer {
            Some(l) => stored(form, l, &decl.name, t)?,
            None => t.clone(),
        };
        let place = layer.map_or(Place::Own, |l| place(form, &d.decoder, l, &decl.name));
        match (place, out.last_mut()) {
            (Place::Own, _) => out.push((decl.name.clone(), t)),
            (Place::Behind { part, groups, whole }, Some((last, first))) if last.ends_with(part) => {
                *first = joined(first, &t, groups)?;
                *last = last.replace(part, whole);
            }
            (Place::Behind { part, .. }, _) => {
                return Err(Error::Model(format!("{} does not follow {part}", decl.name)));
            }
        }
    }
    // The factors of layers are numbers of the graph.
    for node in &d.program.graph.nodes {
        if let (Some(i), Op::Scale(f)) = (node.layer, &node.op)
            && d.decoder.layers.get(i as usize).is_some_and(|l| l.norms.post)
        {
            out.push((format!("blk.{i}.layer_output_scale.weight"), Tensor::from_f32(vec![1], vec![*f])?));
        }
    }
    out.extend(divisors(&d.decoder)?);
    Ok(out)
}

/// The layer that a weight belongs to.
fn layer_of<'d>(d: &'d Decoder, name: &str) -> Option<&'d LayerSpec> {
    d.layers.get(name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok()?)
}

/// Whether a weight stands for a norm without weights, which has none in the file.
fn stands_for_none(layer: &LayerSpec, name: &str) -> bool {
    let Some(a) = layer.attention() else { return false };
    let unweighted = matches!(a.qk_norm, Some(QkNorm { over: NormOver::Unweighted, .. }));
    let qk = name.contains(".attn_q_norm.") || name.contains(".attn_k_norm.");
    (unweighted && qk) || (a.v_norm && name.contains(".attn_v_norm."))
}

/// One weight in the order that the file has it.
fn stored(form: &GgufForm, layer: &LayerSpec, name: &str, t: &Tensor) -> Result<Tensor> {
    let is = |stem: &str| name.contains(&format!(".{stem}."));
    if let Some(rope) = layer.rope()
        && form.rows.interleaved_qk
        && (is("attn_q") || is("attn_k"))
        && rope.pairs == RopePairs::Halves
    {
        return interleaved(t, rope.head_dim);
    }
    // llama.cpp keeps the gate of a shared expert as a vector.
    if is("ffn_gate_inp_shexp") {
        return t.reshaped(vec![t.cols()]);
    }
    if let Some(factor) = layer.moe().and_then(|m| m.router_norm)
        && name.ends_with(".ffn_gate_inp.scale")
    {
        let weights: Vec<f32> = numbers(t)?.iter().map(|w| w / factor).collect();
        return Tensor::from_f32(vec![weights.len()], weights);
    }
    match &layer.mixer {
        Mixer::Delta(s) => {
            let t = if form.rows.tiled_values && s.k_heads != s.v_heads { tiled(name, t, s)? } else { t.clone() };
            if is("ssm_conv1d") { channels_first(&t, s.taps) } else { Ok(t) }
        }
        Mixer::Conv(c) if is("shortconv.conv") => channels_first(t, c.taps),
        Mixer::Conv(_) | Mixer::Attention(_) | Mixer::Latent(_) => Ok(t.clone()),
    }
}

/// Where a weight is in the file.
enum Place {
    /// In a tensor of its own.
    Own,
    /// In the tensor of the weight before, whose name ends with `part`: so many rows of that, so many of this, and so on. The
    /// tensor's name has `whole` in the place of `part` then.
    Behind { part: &'static str, groups: [usize; 2], whole: &'static str },
}

fn place(form: &GgufForm, d: &Decoder, layer: &LayerSpec, name: &str) -> Place {
    let behind = |part, groups, whole| Place::Behind { part, groups, whole };
    let all = usize::MAX;
    match &layer.mixer {
        Mixer::Attention(AttentionSpec { head_dim, .. }) if name.ends_with(".attn_q_gate.weight") => {
            behind(".attn_q.weight", [*head_dim; 2], ".attn_q.weight")
        }
        Mixer::Attention(_) if form.rows.joined_qkv && name.ends_with(".attn_k.weight") => {
            behind(".attn_q.weight", [all; 2], ".attn_qkv.weight")
        }
        Mixer::Attention(_) if form.rows.joined_qkv && name.ends_with(".attn_v.weight") => {
            behind(".attn_qkv.weight", [all; 2], ".attn_qkv.weight")
        }
        Mixer::Delta(s) if form.rows.joined_beta_alpha && name.ends_with(".ssm_alpha.weight") => {
            behind(".ssm_beta.weight", [s.v_heads / s.k_heads; 2], ".ssm_ba.weight")
        }
        Mixer::Conv(_) if name.ends_with(".shortconv.in_c.weight") => {
            behind(".shortconv.in_b.weight", [d.hidden; 2], ".shortconv.in_proj.weight")
        }
        Mixer::Conv(_) if name.ends_with(".shortconv.in_x.weight") => {
            behind(".shortconv.in_proj.weight", [all; 2], ".shortconv.in_proj.weight")
        }
        // Rows of each head that do not rotate and rows that do; the latent vector's rows and those of the shared key.
        Mixer::Latent(m) if name.ends_with(":1") => {
            let latent = name.contains(".attn_kv_a_mqa.");
            behind(":0", if latent { [m.kv_rank, m.rope] } else { [m.nope, m.rope] }, "")
        }
        Mixer::Attention(_) | Mixer::Delta(_) | Mixer::Conv(_) | Mixer::Latent(_) => Place::Own,
    }
}

/// The value heads of DeltaNet in llama.cpp's order: the first of every key head, then the second of every one, and so on.
fn tiled(name: &str, t: &Tensor, s: &DeltaSpec) -> Result<Tensor> {
    let per = s.v_heads / s.k_heads;
    let head = |i: usize| i % s.k_heads * per + i / s.k_heads;
    // Place i of the values' rows (each head `n` long) comes from here.
    let from = |i: usize, n: usize| head(i / n) * n + i % n;
    let keys = 2 * s.k_heads * s.k_dim;
    let behind = |skip: usize, r: usize, n: usize| if r < skip { r } else { skip + from(r - skip, n) };
    let ends = |e: &str| name.ends_with(e);
    if ends(".attn_qkv.weight") {
        rows_from(t, |r| behind(keys, r, s.v_dim))
    } else if ends(".attn_gate.weight") {
        rows_from(t, |r| from(r, s.v_dim))
    } else if ends(".ssm_beta.weight") || ends(".ssm_alpha.weight") {
        rows_from(t, |r| from(r, 1))
    } else if ends(".ssm_a") || ends(".ssm_dt.bias") {
        let x = numbers(t)?;
        Tensor::from_f32(t.shape().to_vec(), (0..x.len()).map(|i| x[from(i, 1)]).collect())
    } else if ends(".ssm_conv1d.weight") {
        let (x, n) = (numbers(t)?, keys + s.v_heads * s.v_dim);
        let source = |i: usize| i / n * n + behind(keys, i % n, s.v_dim);
        Tensor::from_f32(t.shape().to_vec(), (0..x.len()).map(|i| x[source(i)]).collect())
    } else if ends(".ssm_out.weight") {
        columns_from(t, |c| from(c, s.v_dim))
    } else {
        Ok(t.clone())
    }
}

/// Frequencies that no key says, as divisors: Llama 3's and those of pairs that stand still (`rope_freqs.weight`), LongRoPE's
/// two sets.
fn divisors(d: &Decoder) -> Result<Vec<(String, Tensor)>> {
    let mut out = vec![];
    let mut add = |name: &str, f: Vec<f32>| -> Result<()> {
        if out.iter().all(|(n, _)| n != name) {
            out.push((name.to_string(), Tensor::from_f32(vec![f.len()], f)?));
        }
        Ok(())
    };
    for rope in d.layers.iter().filter_map(LayerSpec::rope) {
        match &rope.scaling {
            Scaling::None | Scaling::Linear(_) | Scaling::Yarn(_) => {}
            Scaling::Llama3(_) | Scaling::Proportional(_) => add("rope_freqs.weight", quotients(rope)?)?,
            Scaling::Long(l) => {
                add("rope_factors_long.weight", l.long.to_vec())?;
                add("rope_factors_short.weight", l.short.to_vec())?;
            }
        }
    }
    Ok(out)
}

/// Plain frequencies over those of a rotation; 10³⁰ where a pair stands still, as llama.cpp's converter has it.
fn quotients(rope: &RopeSpec) -> Result<Vec<f32>> {
    let of = |(plain, f): (f32, f32)| if f == 0.0 { 1e30 } else { plain / f };
    Ok(plain(rope.base, rope.dims).into_iter().zip(rope.frequencies()?).map(of).collect())
}
