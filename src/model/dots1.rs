//! dots.llm1: grouped-query attention with a norm on every head, DeepSeek-V3's router and shared experts, first layers dense.
//! Source: Hugging Face `modeling_dots1`; keys and names of llama.cpp's `dots1`.

use super::{Architecture, Decoder, Names, Params, QkNorm, deepseek_moe, llama};
use crate::{
    error::Result,
    ir::{GroupScore, Score},
};

/// dots.llm1.
pub static DOTS1: Architecture = Architecture {
    title: "dots.llm1",
    gguf: Some("dots1"),
    hf: Some("dots1"),
    decoder,
    names: Names { layers: llama::LAYERS, stems: deepseek_moe::STEMS },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    d.qk_norm = QkNorm::PerHead;
    d.moe = Some(deepseek_moe::moe(p, Score::Sigmoid, Some(GroupScore::TopTwo), true)?);
    Ok(d)
}
