//! Granite MoE (IBM, Granite 3 and 4): a Mixtral with factors on embedding, attention, residual and logits; experts' gates
//! and ups in one tensor; the variant `granitemoeshared` has a shared expert. Source: Hugging Face `modeling_granitemoe`,
//! `modeling_granitemoeshared`; llama.cpp's `granitemoe`, which stores queries and keys for interleaved rotation.

use super::{
    Architecture, Decoder, Multipliers, Names, Params, Shared,
    decoder::{Moe, router},
    llama,
};
use crate::{
    error::{Error, Result},
    ir::{RopePairs, Router, Score},
};

const STEMS: &[(&str, &str)] = &[
    ("ffn_gate_inp", "block_sparse_moe.router.layer"),
    ("ffn_gate_up_exps", "block_sparse_moe.input_linear"),
    ("ffn_down_exps", "block_sparse_moe.output_linear"),
    ("ffn_gate_up_shexp", "shared_mlp.input_linear"),
    ("ffn_down_shexp", "shared_mlp.output_linear"),
];

/// Granite MoE.
pub static GRANITE_MOE: Architecture = Architecture {
    title: "Granite MoE",
    gguf: Some("granitemoe"),
    hf: Some("granitemoe"),
    decoder,
    names: Names { layers: llama::LAYERS, stems: STEMS },
};

/// The same with a shared expert.
pub static GRANITE_MOE_SHARED: Architecture = Architecture {
    title: "Granite MoE with a shared expert",
    gguf: Some("granitemoe"),
    hf: Some("granitemoeshared"),
    decoder,
    names: Names { layers: llama::LAYERS, stems: STEMS },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    if p.is_gguf() {
        d.pairs = RopePairs::Interleaved;
    }
    let logits = p.opt_f32("logit_scale", "logits_scaling")?.unwrap_or(1.0);
    d.multipliers = Multipliers {
        embedding: p.opt_f32("embedding_scale", "embedding_multiplier")?.unwrap_or(1.0),
        attention: Some(match p.opt_f32("attention.scale", "attention_multiplier")? {
            Some(a) => a,
            // Hugging Face's default is 1, llama.cpp's 1/sqrt(head_dim).
            None if p.is_gguf() => 1.0 / (d.head_dim as f32).sqrt(),
            None => 1.0,
        }),
        residual: p.opt_f32("residual_scale", "residual_multiplier")?.unwrap_or(1.0),
        logits: 1.0 / logits,
    };
    let rope = p.opt_str("", "position_embedding_type")?;
    if rope.as_deref().is_some_and(|r| r != "rope") {
        return Err(Error::Unsupported(format!("position embeddings `{}` in Granite", rope.unwrap_or_default())));
    }
    let experts = p.usize("expert_count", "num_local_experts")?;
    let used = p.usize("expert_used_count", "num_experts_per_tok")?;
    let width = p.opt_usize("expert_feed_forward_length", "")?.unwrap_or(d.ffn);
    let shared = p.opt_usize("expert_shared_feed_forward_length", "shared_intermediate_size")?.filter(|n| *n > 0);
    let shared = shared.map(|width| Shared { width, gated: false });
    let router = router(p, Router::new(experts, used, Score::SoftmaxOfSelected))?;
    d.moe = Some(Moe { router, selection_bias: false, width, shared, dense_layers: vec![] });
    Ok(d)
}
