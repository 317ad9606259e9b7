//! MiniMax-M2: norms over the whole projections of queries and keys, rotation of a part of each head, sigmoid scores with a
//! selection bias, weights that sum to 1; no shared expert. Source: Hugging Face `modeling_minimax_m2`; keys and names of
//! llama.cpp's `minimax-m2`.

use super::{
    Architecture, Decoder, Names, Params, QkNorm,
    decoder::{Moe, router},
    llama,
};
use crate::{
    error::Result,
    ir::{Renormalise, Router, Score},
};

/// MiniMax-M2.
pub static MINIMAX_M2: Architecture = Architecture {
    title: "MiniMax-M2",
    gguf: Some("minimax-m2"),
    hf: Some("minimax_m2"),
    decoder,
    names: Names {
        layers: llama::LAYERS,
        stems: &[
            ("ffn_gate_inp", "block_sparse_moe.gate"),
            ("exp_probs_b.bias", "block_sparse_moe.e_score_correction_bias"),
            ("ffn_gate_exps", "block_sparse_moe.experts.{}.w1"),
            ("ffn_up_exps", "block_sparse_moe.experts.{}.w3"),
            ("ffn_down_exps", "block_sparse_moe.experts.{}.w2"),
        ],
    },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    d.qk_norm = QkNorm::WholeRow;
    let experts = p.usize("expert_count", "num_local_experts")?;
    let used = p.usize("expert_used_count", "num_experts_per_tok")?;
    let width = p.opt_usize("expert_feed_forward_length", "intermediate_size")?.unwrap_or(d.ffn);
    let family = Router { renormalise: Renormalise::Sum, ..Router::new(experts, used, Score::Sigmoid) };
    let router = router(p, family)?;
    d.moe = Some(Moe { router, selection_bias: true, width, shared: None, dense_layers: vec![] });
    d.without_predictors(p)?;
    Ok(d)
}
