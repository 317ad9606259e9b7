//! GLM-4.5 and 4.6: grouped-query attention with a norm on every head (where the config has it), rotation of half of each head,
//! DeepSeek-V3's router and shared expert, first layers dense. Source: Hugging Face `modeling_glm4_moe`; keys and names of
//! llama.cpp's `glm4moe`, whose count of layers includes those that predict further tokens.

use super::{Architecture, Decoder, Names, Params, QkNorm, deepseek_moe, llama};
use crate::{
    error::Result,
    ir::{GroupScore, Score},
};

/// GLM-4.5 MoE.
pub static GLM4_MOE: Architecture = Architecture {
    title: "GLM-4.5 MoE",
    gguf: Some("glm4moe"),
    hf: Some("glm4_moe"),
    decoder,
    names: Names { layers: llama::LAYERS, stems: STEMS },
};

/// As [`deepseek_moe::STEMS`], with the second norm by the name that llama.cpp has for it here.
const STEMS: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
    ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
    ("ffn_up_exps", "mlp.experts.{}.up_proj"),
    ("ffn_down_exps", "mlp.experts.{}.down_proj"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    let normed = match p.opt_bool("", "use_qk_norm")? {
        Some(yes) => yes,
        None => p.is_gguf() && p.any_tensor(|n| n.ends_with(".attn_q_norm.weight")),
    };
    d.qk_norm = if normed { QkNorm::PerHead } else { QkNorm::None };
    d.ffn_norm = "post_attention_norm";
    d.moe = Some(deepseek_moe::moe(p, Score::Sigmoid, Some(GroupScore::TopTwo), true)?);
    d.without_predictors(p)?;
    Ok(d)
}
