//! Phi-3.5-MoE (Abdin et al. 2024; Liu et al. 2024, *GRIN*): sparsemixer routing, layer norms with bias, biases on all
//! projections and on the output, LongRoPE. Source: Hugging Face `modeling_phimoe`. llama.cpp's `phimoe` routes by a plain
//! softmax over the chosen logits instead: its logits differ from the model's, those of this engine do not.

use super::{
    Architecture, Decoder, Names, Params,
    decoder::{Moe, router},
    llama,
};
use crate::{
    error::{Error, Result},
    ir::{NormKind, Router, Score},
};

/// Phi-3.5-MoE.
pub static PHI_MOE: Architecture = Architecture {
    title: "Phi-3.5-MoE",
    gguf: Some("phimoe"),
    hf: Some("phimoe"),
    decoder,
    names: Names { layers: llama::LAYERS, stems: llama::MIXTRAL_STEMS },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    d.norm = NormKind::Layer;
    let jitter = p.opt_f32("", "router_jitter_noise")?.unwrap_or(0.01);
    let experts = p.usize("expert_count", "num_local_experts")?;
    let used = p.usize("expert_used_count", "num_experts_per_tok")?;
    if used != 2 {
        return Err(Error::Unsupported(format!("top {used} in Phi-3.5-MoE: its routing is of two experts")));
    }
    let width = p.opt_usize("expert_feed_forward_length", "")?.unwrap_or(d.ffn);
    let score = Score::SparseMixer { threshold: 2.0 * jitter };
    let router = router(p, Router::new(experts, used, score))?;
    d.moe = Some(Moe { router, selection_bias: false, width, shared: None, dense_layers: vec![] });
    Ok(d)
}
