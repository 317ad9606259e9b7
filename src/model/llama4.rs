//! Llama 4's text model (Meta 2025): top-1 of sigmoid scores whose weight goes on the experts' input, a shared expert, experts
//! in all or in every other layer; attention in chunks of positions, and every fourth layer without rotation over the whole
//! context, its queries growing with their position; norms of queries and keys without weights, after the rotation, in the
//! smaller model. Source: Hugging Face `modeling_llama4`; llama.cpp's `llama4`, which knows the released models' sizes of
//! chunks, temperature and pattern and has no keys for them.

use super::{
    Architecture, Decoder, ExpertLayout, Names, Params, QkNorm, Shared,
    decoder::{Moe, router},
    llama,
};
use crate::{
    error::Result,
    ir::{RopePairs, Router, Score, Temperature},
};

/// Llama 4, text only.
pub static LLAMA4: Architecture = Architecture {
    title: "Llama 4",
    gguf: Some("llama4"),
    hf: Some("llama4_text"),
    decoder,
    names: Names {
        layers: llama::LAYERS,
        stems: &[
            ("ffn_gate", "feed_forward.gate_proj"),
            ("ffn_up", "feed_forward.up_proj"),
            ("ffn_down", "feed_forward.down_proj"),
            ("ffn_gate_inp", "feed_forward.router"),
            ("ffn_gate_up_exps.weight", "feed_forward.experts.gate_up_proj"),
            ("ffn_down_exps.weight", "feed_forward.experts.down_proj"),
            ("ffn_gate_shexp", "feed_forward.shared_expert.gate_proj"),
            ("ffn_up_shexp", "feed_forward.shared_expert.up_proj"),
            ("ffn_down_shexp", "feed_forward.shared_expert.down_proj"),
        ],
    },
};

/// What llama.cpp takes where a GGUF has no key, and Hugging Face where a config has none: positions of a chunk, and of a
/// step of the temperature; its scale; every how many layers one does not rotate.
pub(super) const CHUNK: usize = 8192;
pub(super) const TEMPERATURE: Temperature = Temperature { every: 8192, scale: 0.1 };
pub(super) const UNROTATED_EVERY: usize = 4;

/// With as many experts, llama.cpp takes a model for the larger one, which has no norms of queries and keys.
pub(super) const EXPERTS_WITHOUT_NORMS: usize = 128;

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    let experts = p.usize("expert_count", "num_local_experts")?;
    let used = p.usize("expert_used_count", "num_experts_per_tok")?;
    let width = p.usize("expert_feed_forward_length", "intermediate_size")?;
    d.ffn = p.usize("feed_forward_length", "intermediate_size_mlp")?;
    d.pairs = RopePairs::Interleaved;
    d.expert_layout = ExpertLayout::Columns;
    d.weigh_inputs = true;
    let normed =
        if p.is_gguf() { experts != EXPERTS_WITHOUT_NORMS } else { p.opt_bool("", "use_qk_norm")?.unwrap_or(true) };
    (d.qk_norm, d.qk_norm_last) = (if normed { QkNorm::Unweighted } else { QkNorm::None }, true);
    positions(p, &mut d)?;
    let router = router(p, Router::new(experts, used, Score::Sigmoid))?;
    let dense_layers = dense_layers(p, d.layers)?;
    let shared = Some(Shared { width, gated: false });
    d.moe = Some(Moe { router, selection_bias: false, width, shared, dense_layers });
    Ok(d)
}

/// Which layers rotate and are in chunks, and the temperature of those that do not.
fn positions(p: &Params<'_>, d: &mut Decoder) -> Result<()> {
    // llama.cpp's way to say that every layer rotates and sees everything.
    if p.opt_usize("attention.sliding_window", "")? == Some(0) {
        return Ok(());
    }
    let every = p.opt_usize("", "no_rope_layer_interval")?.unwrap_or(UNROTATED_EVERY).max(1);
    // The list has 1 for layers that rotate.
    let list = p.config("no_rope_layers").and_then(|v| v.as_array()).filter(|l| !l.is_empty());
    let rotates = |i: usize| match list {
        Some(l) => l.get(i).and_then(|v| v.as_u64()) != Some(0),
        None => !(i + 1).is_multiple_of(every),
    };
    let kinds = p.config("layer_types").and_then(|v| v.as_array());
    let chunked = |i: usize| match kinds {
        Some(l) => l.get(i).and_then(|v| v.as_str()) == Some("chunked_attention"),
        None => rotates(i),
    };
    d.unrotated = (0..d.layers).filter(|i| !rotates(*i)).collect();
    let off = p.config("attention_chunk_size").is_some_and(|v| v.is_null());
    let chunk = p.opt_usize("", "attention_chunk_size")?.unwrap_or(CHUNK).max(1);
    d.chunked = true;
    d.windows = (0..d.layers).map(|i| (!off && chunked(i)).then_some(chunk)).collect();
    // A switch in some configs, a number in others.
    let tuned = p.config("attn_temperature_tuning").is_none_or(|v| v.as_bool() != Some(false) && v.as_u64() != Some(0));
    d.temperature = tuned.then_some(Temperature {
        every: p.opt_usize("", "floor_scale")?.unwrap_or(TEMPERATURE.every),
        scale: p.opt_f32("", "attn_scale")?.unwrap_or(TEMPERATURE.scale),
    });
    Ok(())
}

fn dense_layers(p: &Params<'_>, layers: usize) -> Result<Vec<usize>> {
    if let Some(list) = p.config("moe_layers").and_then(|v| v.as_array()) {
        return Ok((0..layers).filter(|i| !list.iter().any(|v| v.as_u64() == Some(*i as u64))).collect());
    }
    let step = p.opt_usize("interleave_moe_layer_step", "interleave_moe_layer_step")?.unwrap_or(1).max(1);
    Ok((0..layers).filter(|i| !(i + 1).is_multiple_of(step)).collect())
}
