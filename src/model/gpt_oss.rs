//! GPT-OSS (OpenAI 2025): experts in MXFP4 with biases and a clamped SwiGLU, a router with bias whose weights are a softmax
//! over the chosen logits, biases on all projections, attention sinks, a sliding window on every other layer, YaRN.
//! Source: Hugging Face `modeling_gpt_oss`; in GGUF llama.cpp's `gpt-oss` (converted from MXFP4: `ffn_*_exps` are MXFP4).
//!
//! Rounding: OpenAI's and Hugging Face's YaRN do not round the ends of the blend between frequencies (`truncate: false`),
//! llama.cpp does for every model. This engine follows the definition, from either container.

use super::{
    Architecture, Decoder, ExpertLayout, Names, Params,
    decoder::{Bias, Moe, router},
    llama,
};
use crate::{
    error::Result,
    ir::{Activation, Router, Score},
};

/// GPT-OSS.
pub static GPT_OSS: Architecture = Architecture {
    title: "GPT-OSS",
    gguf: Some("gpt-oss"),
    hf: Some("gpt_oss"),
    decoder,
    names: Names {
        layers: llama::LAYERS,
        stems: &[
            ("attn_sinks.weight", "self_attn.sinks"),
            ("ffn_gate_inp", "mlp.router"),
            ("ffn_gate_up_exps.weight", "mlp.experts.gate_up_proj"),
            ("ffn_gate_up_exps.bias", "mlp.experts.gate_up_proj_bias"),
            ("ffn_down_exps.weight", "mlp.experts.down_proj"),
            ("ffn_down_exps.bias", "mlp.experts.down_proj_bias"),
        ],
    },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    let alpha = p.opt_f32("", "swiglu_alpha")?.unwrap_or(1.702);
    let limit = p.opt_f32("", "swiglu_limit")?.unwrap_or(7.0);
    d.act = Activation::ClampedSwiglu { alpha, limit };
    d.qkv_bias = Bias::Yes;
    d.sinks = true;
    d.ffn_norm = "post_attention_norm";
    d.expert_layout = ExpertLayout::InterleavedColumns;
    if p.is_gguf() || p.config("layer_types").is_none() {
        // The first layer slides, the second does not, and so on.
        (0..d.windows.len()).filter(|i| i % 2 == 1).for_each(|i| d.windows[i] = None);
    }
    let experts = p.usize("expert_count", "num_local_experts")?;
    let used = p.usize("expert_used_count", "num_experts_per_tok")?;
    let width = p.usize("expert_feed_forward_length", "intermediate_size")?;
    let router = router(p, Router::new(experts, used, Score::SoftmaxOfSelected))?;
    d.moe = Some(Moe { router, selection_bias: false, width, shared: None, dense_layers: vec![] });
    Ok(d)
}
