//! OLMoE (Muennighoff et al. 2024): norms over the whole projections of queries and keys, weights of the chosen experts
//! not renormalised.

use super::{
    Architecture, Decoder, Names, Params, QkNorm,
    decoder::{Moe, by_sum, router},
    llama,
};
use crate::{
    error::{Error, Result},
    ir::{Router, Score},
};

/// OLMoE.
pub static OLMOE: Architecture = Architecture {
    title: "OLMoE",
    gguf: Some("olmoe"),
    hf: Some("olmoe"),
    decoder,
    names: Names { layers: llama::LAYERS, stems: &[] },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    d.qk_norm = QkNorm::WholeRow;
    if p.opt_f32("attention.clamp_kqv", "clip_qkv")?.is_some_and(|c| c > 0.0) {
        return Err(Error::Unsupported("clipping of queries, keys and values (clip_qkv) in OLMoE".into()));
    }
    let experts = p.usize("expert_count", "num_experts")?;
    let used = p.usize("expert_used_count", "num_experts_per_tok")?;
    let renormalise = p.opt_bool("expert_weights_norm", "norm_topk_prob")?.unwrap_or(false);
    let width = p.opt_usize("expert_feed_forward_length", "")?.unwrap_or(d.ffn);
    let router = router(p, Router { renormalise: by_sum(renormalise), ..Router::new(experts, used, Score::Softmax) })?;
    d.moe = Some(Moe { router, selection_bias: false, width, shared: None, dense_layers: vec![] });
    Ok(d)
}
