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
    names: Names { layers: llama::LAYERS, stems: deepseek_moe::STEMS },
};

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
