//! Gemma 4 as a GGUF: sizes by the kind of layer, and the numbers that the graph has in other places than the file.

use super::{
    Decoder, FullLayers, Params,
    export::{refused, u32_of},
    gemma4, rope,
};
use crate::{
    error::Result,
    file::{Array, Metadata, Tensor, Value},
    graph::Program,
    ir::{Op, Renormalise, Score},
};

/// All hyperparameters. Divisors that let pairs stand still are llama.cpp's, 10³⁰ (`rope_freqs.weight`, of layers that see
/// everything).
///
/// # Errors
/// [`crate::Error::Unsupported`] for what llama.cpp would compute otherwise.
pub(super) fn keys(
    meta: &mut Metadata,
    arch: &str,
    p: &Params<'_>,
    d: &Decoder,
    full: &FullLayers,
) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let window = d.windows.iter().flatten().next().copied().unwrap_or(d.context);
    let mut counts = vec![
        ("block_count", d.layers),
        ("context_length", d.context),
        ("embedding_length", d.hidden),
        ("feed_forward_length", d.ffn),
        ("attention.head_count", d.heads),
        ("attention.key_length", full.head_dim),
        ("attention.value_length", full.head_dim),
        ("attention.key_length_swa", d.head_dim),
        ("attention.value_length_swa", d.head_dim),
        ("attention.sliding_window", window),
        ("attention.shared_kv_layers", 0),
        ("embedding_length_per_layer_input", 0),
        ("rope.dimension_count", full.head_dim),
        ("rope.dimension_count_swa", d.head_dim),
    ];
    if let Some(m) = &d.moe {
        let r = &m.router;
        if r.score != Score::Softmax || r.renormalise != Renormalise::Sum || r.scale != 1.0 {
            return Err(refused(arch, r.variant()));
        }
        counts.extend([
            ("expert_count", r.experts),
            ("expert_used_count", r.used),
            ("expert_feed_forward_length", m.width),
        ]);
    }
    for (key, n) in counts {
        meta.set(format!("{arch}.{key}"), u32_of(key, n)?);
    }
    let slides: Vec<bool> = d.windows.iter().map(|w| w.is_some()).collect();
    let heads: Vec<u32> = (0..d.layers).map(|i| d.head_shape(i)[1] as u32).collect();
    meta.set(format!("{arch}.attention.sliding_window_pattern"), Value::Array(Array::from_bool(&slides)));
    meta.set(format!("{arch}.attention.head_count_kv"), Value::Array(Array::from_u32(&heads)));
    let [near, far] = gemma4::bases(p)?;
    let mut number = |key: &str, x: f32| meta.set(format!("{arch}.{key}"), Value::F32(x));
    number("attention.layer_norm_rms_epsilon", d.eps);
    number("rope.freq_base", far);
    number("rope.freq_base_swa", near);
    if let Some(c) = d.softcap {
        number("final_logit_softcapping", c);
    }
    let [_, whole] = gemma4::rotations(d, full, p, None, false)?;
    let plain = rope::plain(far, full.head_dim);
    let divisor = |(plain, f): (&f32, &f32)| if *f == 0.0 { 1e30 } else { plain / f };
    Ok(vec![("rope_freqs.weight", plain.iter().zip(whole.inv_freq.iter()).map(divisor).collect())])
}

/// The tensors as the file has them: the weights of the router's norm
/// without the factor that the graph has in them, no norms without weights; and the factors of the layers.
///
/// # Errors
/// [`crate::Error::Model`] for tensors of unexpected sizes.
pub(super) fn tensors(d: &Decoder, program: &Program, tensors: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
    let mut out = Vec::with_capacity(tensors.len() + d.layers);
    for (name, t) in tensors {
        if name.contains(".attn_v_norm.") {
            continue;
        }
        let t = if name.ends_with(".ffn_gate_inp.scale") {
            let factor = gemma4::router_factor(d.hidden);
            let weights: Vec<f32> = super::loader::to_numbers(&t)?.iter().map(|w| w / factor).collect();
            Tensor::from_f32(vec![weights.len()], weights)?
        } else {
            t
        };
        out.push((name, t));
    }
    for node in &program.graph.nodes {
        if let (Some(i), Op::Scale(f)) = (node.layer, &node.op) {
            out.push((format!("blk.{i}.layer_output_scale.weight"), Tensor::from_f32(vec![1], vec![*f])?));
        }
    }
    Ok(out)
}
