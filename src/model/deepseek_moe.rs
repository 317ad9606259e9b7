//! The experts of DeepSeek-V2 and V3, which several families took over: scores by softmax or sigmoid, a selection bias, groups,
//! shared experts, the first layers dense. Hugging Face's and llama.cpp's keys.

use super::{
    Params, Shared,
    decoder::{Moe, router},
};
use crate::{
    error::{Error, Result},
    ir::{GroupScore, Groups, Renormalise, Router, Score},
};

/// Names that the DeepSeek shape of experts has in most Hugging Face checkpoints, attention included.
pub(super) const STEMS: &[(&str, &str)] = &[
    ("attn_q_a", "self_attn.q_a_proj"),
    ("attn_q_a_norm", "self_attn.q_a_layernorm"),
    ("attn_q_b", "self_attn.q_b_proj"),
    ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
    ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
    ("attn_kv_b", "self_attn.kv_b_proj"),
    ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
    ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
    ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
];

/// The experts of DeepSeek's shape: groups, shared experts, the first layers dense.
pub(super) fn moe(p: &Params<'_>, score: Score, group: Option<GroupScore>, selection_bias: bool) -> Result<Moe> {
    let experts = p.usize("expert_count", "n_routed_experts")?;
    let used = p.usize("expert_used_count", "num_experts_per_tok")?;
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    said(p, "scoring_func", if score == Score::Softmax { "softmax" } else { "sigmoid" })?;
    if let Some(n) = p.opt_usize("", "moe_layer_freq")?.filter(|n| *n != 1) {
        return Err(Error::Unsupported(format!("experts in every {n}th layer (moe_layer_freq) of {}", p.arch)));
    }
    let count = p.opt_usize("expert_group_count", "n_group")?.unwrap_or(1);
    let limit = p.opt_usize("expert_group_used_count", "topk_group")?.unwrap_or(count);
    let groups = group.filter(|_| count > 1).map(|score| Groups { count, used: limit, score });
    let renormalise = if p.opt_bool("expert_weights_norm", "norm_topk_prob")?.unwrap_or(false) {
        Renormalise::SumPlus(1e-20)
    } else {
        Renormalise::No
    };
    let scale = p.opt_f32("", "routed_scaling_factor")?.unwrap_or(1.0);
    let mut family = Router { groups, renormalise, scale, ..Router::new(experts, used, score) };
    // `router` refuses groups in families that have none; without a limit they change nothing here.
    if groups.is_none() && count > 1 {
        family.groups = Some(Groups { count, used: count, score: GroupScore::Max });
    }
    let mut router = router(p, family)?;
    router.groups = groups;
    let shared = p.opt_usize("expert_shared_count", "n_shared_experts")?.unwrap_or(0);
    let shared = Some(Shared { width: shared * width, gated: false }).filter(|s| s.width > 0);
    let dense = p.opt_usize("leading_dense_block_count", "first_k_dense_replace")?.unwrap_or(0);
    Ok(Moe { router, selection_bias, width, shared, dense_layers: (0..dense).collect() })
}

/// Refuses a config whose word on something differs from what its architecture does.
fn said(p: &Params<'_>, key: &str, known: &str) -> Result<()> {
    match p.opt_str("", key)? {
        Some(other) if other != known => {
            Err(Error::Unsupported(format!("{key} `{other}` in {}; known is `{known}`", p.arch)))
        }
        _ => Ok(()),
    }
}
