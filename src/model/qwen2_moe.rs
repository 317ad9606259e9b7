//! Qwen2-MoE (and Qwen1.5-MoE): biases on queries, keys and values; a shared expert behind a sigmoid gate; some layers may
//! be dense. Source: Hugging Face `modeling_qwen2_moe`; llama.cpp's `qwen2moe` never renormalises.

use super::{
    Architecture, Decoder, Names, Params, Shared,
    decoder::{Bias, Moe, by_sum, router},
    llama,
};
use crate::{
    error::Result,
    ir::{Router, Score},
};

/// Qwen2-MoE.
pub static QWEN2_MOE: Architecture = Architecture {
    title: "Qwen2-MoE",
    gguf: Some("qwen2moe"),
    hf: Some("qwen2_moe"),
    decoder,
    names: Names { layers: llama::LAYERS, stems: &[] },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    d.qkv_bias = if p.opt_bool("", "qkv_bias")? == Some(false) { Bias::IfPresent } else { Bias::Yes };
    let experts = p.usize("expert_count", "num_experts")?;
    let used = p.usize("expert_used_count", "num_experts_per_tok")?;
    let width = match p.opt_usize("expert_feed_forward_length", "moe_intermediate_size")? {
        Some(n) => n,
        // As llama.cpp reads files that lack the key.
        None => d.ffn / used,
    };
    let renormalise = p.opt_bool("expert_weights_norm", "norm_topk_prob")?.unwrap_or(false);
    // Files of the first converters have no key for the shared expert's width: it is the dense one's.
    let shared = p.opt_usize("expert_shared_feed_forward_length", "shared_expert_intermediate_size")?;
    let shared = Some(Shared { width: shared.unwrap_or(d.ffn), gated: true }).filter(|s| s.width > 0);
    let router = router(p, Router { renormalise: by_sum(renormalise), ..Router::new(experts, used, Score::Softmax) })?;
    d.moe = Some(Moe { router, selection_bias: false, width, shared, dense_layers: dense_layers(p, d.layers)? });
    Ok(d)
}

/// Layers without experts: those that are named, and all but every `decoder_sparse_step`-th.
pub(super) fn dense_layers(p: &Params<'_>, layers: usize) -> Result<Vec<usize>> {
    let named = p.config_list("mlp_only_layers");
    let step = p.opt_usize("", "decoder_sparse_step")?.unwrap_or(1).max(1);
    Ok((0..layers).filter(|i| named.contains(i) || (i + 1) % step != 0).collect())
}
