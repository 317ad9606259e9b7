//! Qwen3-Next and Qwen3.5-MoE: three layers of gated DeltaNet to one of attention, whose output a sigmoid gate scales; norms
//! of every head of queries and keys, rotation of a quarter of their columns, norms' weights stored as differences from 1,
//! a shared expert behind a gate. The two differ in how the projections of the linear attention are stored.
//!
//! Sources: Hugging Face `modeling_qwen3_next` and `modeling_qwen3_5_moe`; llama.cpp's `qwen3next` and `qwen35moe`, whose
//! converter adds the 1 to the norms and (for Qwen3.5) reorders the value heads. Positions of text are the same in all three
//! sections of Qwen3.5's rotation, which makes it the plain one.

use super::{
    Architecture, Decoder, Names, Params, QkNorm, Shared,
    decoder::{Moe, by_sum, router},
    llama, qwen2_moe,
    recurrent::{Delta, Mixer},
};
use crate::{
    error::{Error, Result},
    ir::{Router, Score},
};

const STEMS: &[(&str, &str)] = &[
    ("ssm_in", "linear_attn.in_proj_qkvz"),
    ("ssm_ba", "linear_attn.in_proj_ba"),
    ("attn_qkv", "linear_attn.in_proj_qkv"),
    ("attn_gate", "linear_attn.in_proj_z"),
    ("ssm_beta", "linear_attn.in_proj_b"),
    ("ssm_alpha", "linear_attn.in_proj_a"),
    ("ssm_conv1d", "linear_attn.conv1d"),
    ("ssm_a", "linear_attn.A_log"),
    ("ssm_dt.bias", "linear_attn.dt_bias"),
    ("ssm_norm", "linear_attn.norm"),
    ("ssm_out", "linear_attn.out_proj"),
];

/// Qwen3-Next.
pub static QWEN3_NEXT: Architecture = Architecture {
    title: "Qwen3-Next",
    gguf: Some("qwen3next"),
    hf: Some("qwen3_next"),
    decoder,
    names: Names { layers: llama::LAYERS, stems: STEMS },
};

/// Qwen3.5-MoE, its text model.
pub static QWEN3_5_MOE: Architecture = Architecture {
    title: "Qwen3.5-MoE",
    gguf: Some("qwen35moe"),
    hf: Some("qwen3_5_moe_text"),
    decoder,
    names: Names { layers: llama::LAYERS, stems: STEMS },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    d.qk_norm = QkNorm::PerHead;
    d.gated_attention = true;
    d.ffn_norm = "post_attention_norm";
    d.norm_offset = if p.is_gguf() { 0.0 } else { 1.0 };
    let rotary = ["partial_rotary_factor", "rope_parameters.partial_rotary_factor"];
    if !p.is_gguf() && rotary.iter().all(|k| p.config(k).is_none()) {
        // Whole heads would be rotated where a quarter is meant.
        return Err(Error::Model("the hyperparameter partial_rotary_factor is missing".into()));
    }
    let k_heads = p.usize("ssm.group_count", "linear_num_key_heads")?;
    let v_heads = p.usize("ssm.time_step_rank", "linear_num_value_heads")?;
    let k_dim = p.usize("ssm.state_size", "linear_key_head_dim")?;
    let v_dim = match p.opt_usize("ssm.inner_size", "")? {
        Some(inner) => inner / v_heads,
        None => p.usize("ssm.inner_size", "linear_value_head_dim")?,
    };
    let taps = p.usize("ssm.conv_kernel", "linear_conv_kernel_dim")?;
    let delta = Delta { k_heads, v_heads, k_dim, v_dim, taps, tiled: p.is_gguf() && p.arch == "qwen35moe" };
    delta.check()?;
    // Every fourth layer is attention, unless the file says otherwise.
    let every = p.opt_usize("full_attention_interval", "full_attention_interval")?.unwrap_or(4).max(1);
    let types = p.config("layer_types").and_then(|v| v.as_array());
    let is_attention = |i: usize| match types {
        Some(t) => t.get(i).and_then(|t| t.as_str()) == Some("full_attention"),
        None => (i + 1) % every == 0,
    };
    d.mixers = (0..d.layers).map(|i| if is_attention(i) { Mixer::Attention } else { Mixer::Delta(delta) }).collect();
    let (experts, used) = match p.opt_usize("expert_count", "num_experts")? {
        Some(n) => (n, p.usize("expert_used_count", "num_experts_per_tok")?),
        None => (p.usize("expert_count", "num_local_experts")?, p.usize("expert_used_count", "num_experts_per_tok")?),
    };
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    let shared = p.usize("expert_shared_feed_forward_length", "shared_expert_intermediate_size")?;
    // Qwen3.5 always renormalises, as llama.cpp's graphs of both do.
    let renormalise = p.opt_bool("", "norm_topk_prob")?.unwrap_or(true);
    let router = router(p, Router { renormalise: by_sum(renormalise), ..Router::new(experts, used, Score::Softmax) })?;
    let dense_layers = qwen2_moe::dense_layers(p, d.layers)?;
    let shared = Some(Shared { width: shared, gated: true });
    d.moe = Some(Moe { router, selection_bias: false, width, shared, dense_layers });
    Ok(d)
}
