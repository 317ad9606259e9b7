//! The experts of DeepSeek-V2 and V3, which several families took over: scores by softmax or sigmoid, a selection bias, groups,
//! shared experts, the first layers dense. Hugging Face's and llama.cpp's keys.

use crate::{
    error::{Error, Result},
    ir::{GroupScore, Groups, Renormalise, Router, Score},
    model::{
        common::{Common, experts, router},
        decoder::{Moe, Shared},
        facts::Absent,
        gguf::{GgufForm, Graph, Renormalises, SharedForm, keys},
        params::Params,
    },
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

/// llama.cpp's keys of such experts, in the order that they are written.
pub(super) const KEYS: &[keys::Key] = &[
    keys::EXPERT_COUNT,
    keys::EXPERT_USED_COUNT,
    keys::EXPERT_FEED_FORWARD_LENGTH,
    keys::EXPERT_GATING_FUNC,
    keys::EXPERT_SHARED_COUNT,
    keys::LEADING_DENSE_BLOCK_COUNT,
    keys::EXPERT_GROUP_COUNT,
    keys::EXPERT_GROUP_USED_COUNT,
    keys::EXPERT_WEIGHTS_NORM,
    keys::EXPERT_WEIGHTS_SCALE,
];

/// The form of families with such experts and grouped-query attention.
pub(super) const FORM: GgufForm = GgufForm {
    keys: &[keys::SIZES, KEYS, keys::ROTATION],
    absent: &[
        ("rope.freq_base", Absent::Number(10_000.0)),
        ("expert_weights_norm", Absent::Flag(false)),
        ("expert_weights_scale", Absent::Number(1.0)),
        ("leading_dense_block_count", Absent::Count(0)),
        ("expert_shared_count", Absent::Refused),
    ],
    graph: Graph {
        score: None,
        renormalises: Renormalises::ByKey,
        selection_bias: Some(true),
        shared: SharedForm::Always,
        ..Graph::NONE
    },
    check: |d| {
        let first = keys::leading_dense(d);
        let dense = d.dense_layers();
        if dense.len() > first {
            tracing::warn!(
                "layers {dense:?} have no experts: the file says so by their tensors, and llama.cpp does not load it"
            );
        }
        Ok(())
    },
    ..GgufForm::NONE
};

/// Experts of DeepSeek's shape, and how many layers before them are dense. `group` is how groups are scored, where the choice
/// is limited to some.
///
/// # Errors
/// [`Error::Model`] for missing or impossible values, [`Error::Unsupported`] for what is not known here.
pub(super) fn moe(
    p: &Params<'_>,
    c: &Common,
    score: Score,
    group: Option<GroupScore>,
    selection_bias: bool,
) -> Result<(Moe, usize)> {
    let [experts, used] = experts(p, ["n_routed_experts", "num_experts_per_tok"])?;
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    said(p, "scoring_func", if score == Score::Softmax { "softmax" } else { "sigmoid" })?;
    if let Some(n) = p.opt_usize("", "moe_layer_freq")?.filter(|n| *n != 1) {
        return Err(Error::Unsupported(format!("experts in every {n}th layer (moe_layer_freq) of {}", p.arch)));
    }
    let count = p.opt_usize("expert_group_count", "n_group")?.unwrap_or(1);
    let limit = p.opt_usize("expert_group_used_count", "topk_group")?.unwrap_or(count);
    let groups = group.filter(|_| count > 1).map(|score| Groups { count, used: limit, score });
    let renormalise = match p.opt_bool("expert_weights_norm", "norm_topk_prob")? {
        Some(true) => Renormalise::SumPlus(1e-20),
        Some(false) | None => Renormalise::No,
    };
    let scale = p.f32("expert_weights_scale", "routed_scaling_factor")?;
    // llama.cpp takes 0 for 1.
    let scale = if p.is_gguf() && scale == 0.0 { 1.0 } else { scale };
    let mut family = Router { groups, renormalise, scale, ..Router::new(experts, used, score) };
    // `router` refuses groups in families that have none; without a limit they change nothing here.
    if groups.is_none() && count > 1 {
        family.groups = Some(Groups { count, used: count, score: GroupScore::Max });
    }
    let router = Router { groups, ..router(p, family)? };
    let shared = p.opt_usize("expert_shared_count", "n_shared_experts")?.unwrap_or(0);
    let shared = shared.checked_mul(width).ok_or_else(|| Error::Model(format!("{shared} shared experts")))?;
    let mut moe = Moe { selection_bias, ..Moe::new(router, c.glu(width)) };
    moe.shared = Shared::one(shared, moe.experts);
    let dense = p.opt_usize("leading_dense_block_count", "first_k_dense_replace")?.unwrap_or(0);
    Ok((moe, dense))
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
