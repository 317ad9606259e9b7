//! ERNIE-4.5 MoE: interleaved rotation, softmax scores with a selection bias, weights divided by at least `moe_norm_min`,
//! shared experts, dense layers before and between. Source: Hugging Face `modeling_ernie4_5_moe`; keys and names of
//! llama.cpp's `ernie4_5-moe`.

use super::{
    Architecture, Decoder, Names, Params, Shared,
    decoder::{Moe, router},
    llama,
};
use crate::{
    error::Result,
    ir::{Renormalise, RopePairs, Router, Score},
};

/// ERNIE-4.5 MoE.
pub static ERNIE4_5_MOE: Architecture = Architecture {
    title: "ERNIE-4.5 MoE",
    gguf: Some("ernie4_5-moe"),
    hf: Some("ernie4_5_moe"),
    decoder,
    names: Names {
        layers: llama::LAYERS,
        stems: &[
            ("exp_probs_b.bias", "mlp.moe_statics.e_score_correction_bias"),
            ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
            ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
            ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
        ],
    },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    d.pairs = RopePairs::Interleaved;
    let experts = p.usize("expert_count", "moe_num_experts")?;
    let used = p.usize("expert_used_count", "moe_k")?;
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    let least = p.opt_f32("", "moe_norm_min")?.unwrap_or(1e-12);
    let family = Router { renormalise: Renormalise::SumAtLeast(least), ..Router::new(experts, used, Score::Softmax) };
    let router = router(p, family)?;
    let selection_bias = !p.is_gguf() || p.any_tensor(|n| n.ends_with(".exp_probs_b.bias"));
    let shared = match p.opt_usize("expert_shared_feed_forward_length", "")? {
        Some(n) => n,
        None => p.opt_usize("expert_shared_count", "moe_num_shared_experts")?.unwrap_or(0) * width,
    };
    let shared = Some(Shared { width: shared, gated: false }).filter(|s| s.width > 0);
    let start = p.opt_usize("leading_dense_block_count", "moe_layer_start_index")?.unwrap_or(0);
    // The config counts from 0 and includes the last; -1 is the last layer, as in the released ones' text part.
    let end = p.config("moe_layer_end_index").and_then(|v| v.as_i64()).and_then(|n| usize::try_from(n).ok());
    let end = end.unwrap_or(d.layers - 1);
    let interval = p.opt_usize("interleave_moe_layer_step", "moe_layer_interval")?.unwrap_or(1).max(1);
    let dense_layers = (0..d.layers).filter(|i| (i + 1) % interval != 0 || *i < start || *i > end).collect();
    d.moe = Some(Moe { router, selection_bias, width, shared, dense_layers });
    d.without_predictors(p)?;
    Ok(d)
}
