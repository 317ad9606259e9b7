//! Llama and Mixtral: dense (Touvron et al. 2023) and with experts (Jiang et al. 2024).
//!
//! In GGUF both are `llama`, with experts where `llama.expert_count` says so, and the projections of queries and keys are
//! stored for interleaved rotation; Hugging Face's are stored for rotation by halves. The router's softmax over all
//! experts, renormalised over the chosen ones, equals a softmax over the chosen logits.

use super::{
    Architecture, Decoder, Names, Params,
    decoder::{Moe, router},
};
use crate::{
    error::Result,
    ir::{Renormalise, RopePairs, Router, Score},
};

/// Before a layer's number in most Hugging Face checkpoints.
pub(super) const LAYERS: &str = "model.layers.";

pub(super) const MIXTRAL_STEMS: &[(&str, &str)] = &[
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_exps", "block_sparse_moe.experts.{}.w1"),
    ("ffn_up_exps", "block_sparse_moe.experts.{}.w3"),
    ("ffn_down_exps", "block_sparse_moe.experts.{}.w2"),
];

/// Llama, dense; in GGUF also Mixtral.
pub static LLAMA: Architecture = Architecture {
    title: "Llama",
    gguf: Some("llama"),
    hf: Some("llama"),
    decoder,
    names: Names { layers: LAYERS, stems: &[] },
};

/// Mistral: Llama with a sliding window in its first version.
pub static MISTRAL: Architecture = Architecture {
    title: "Mistral",
    gguf: None,
    hf: Some("mistral"),
    decoder,
    names: Names { layers: LAYERS, stems: &[] },
};

/// Mixtral.
pub static MIXTRAL: Architecture = Architecture {
    title: "Mixtral",
    gguf: Some("llama"),
    hf: Some("mixtral"),
    decoder,
    names: Names { layers: LAYERS, stems: MIXTRAL_STEMS },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    d.pairs = if p.is_gguf() { RopePairs::Interleaved } else { RopePairs::Halves };
    if let Some(experts) = p.opt_usize("expert_count", "num_local_experts")?.filter(|n| *n > 0) {
        let used = p.usize("expert_used_count", "num_experts_per_tok")?;
        let width = p.opt_usize("expert_feed_forward_length", "")?.unwrap_or(d.ffn);
        let router = router(p, Router { renormalise: Renormalise::Sum, ..Router::new(experts, used, Score::Softmax) })?;
        d.moe = Some(Moe { router, selection_bias: false, width, shared: None, dense_layers: vec![] });
    }
    Ok(d)
}
