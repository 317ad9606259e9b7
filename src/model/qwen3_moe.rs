//! Qwen3-MoE: a norm on every head of queries and keys, head size independent of the hidden size, weights of the chosen
//! experts renormalised. Source: Hugging Face `modeling_qwen3_moe`; llama.cpp's `qwen3moe` always renormalises.

use super::{
    Architecture, Decoder, Names, Params, QkNorm,
    decoder::{Moe, by_sum, router},
    llama, qwen2_moe,
};
use crate::{
    error::Result,
    ir::{Router, Score},
};

/// Qwen3-MoE.
pub static QWEN3_MOE: Architecture = Architecture {
    title: "Qwen3-MoE",
    gguf: Some("qwen3moe"),
    hf: Some("qwen3_moe"),
    decoder,
    names: Names { layers: llama::LAYERS, stems: &[] },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    d.qk_norm = QkNorm::PerHead;
    let experts = match p.opt_usize("expert_count", "num_experts")? {
        Some(n) => n,
        None => p.usize("expert_count", "num_local_experts")?,
    };
    let used = p.usize("expert_used_count", "num_experts_per_tok")?;
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    // Hugging Face's default is false, though every released config sets it; llama.cpp's graph renormalises always.
    let renormalise = p.opt_bool("expert_weights_norm", "norm_topk_prob")?.unwrap_or(p.is_gguf());
    let router = router(p, Router { renormalise: by_sum(renormalise), ..Router::new(experts, used, Score::Softmax) })?;
    d.moe = Some(Moe {
        router,
        selection_bias: false,
        width,
        shared: None,
        dense_layers: qwen2_moe::dense_layers(p, d.layers)?,
    });
    Ok(d)
}
