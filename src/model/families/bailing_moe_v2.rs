//! Ling 2.0 and Ring 2.0 (inclusionAI 2025): queries, keys and values from one matrix, a norm on every head, rotation of half of
//! each head; sigmoid scores with a selection bias, groups by their two best, a factor on the weights, a shared expert, the first
//! layer dense. Source: the published `modeling_bailing_moe_v2.py` (transformers has no class of it); keys and names of
//! llama.cpp's `bailingmoe2`.

use crate::{
    error::{Error, Result},
    file::Value,
    ir::{GroupScore, Groups, Renormalise, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, experts, router},
        decoder::{Decoder, Moe, NormOver, QkNorm, Shared},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, Renormalises, Rows, SharedForm, keys},
        names::Names,
        params::Params,
    },
};

static FORM: GgufForm = GgufForm {
    arch: "bailingmoe2",
    keys: &[
        keys::SIZES,
        &[
            keys::LEADING_DENSE_BLOCK_COUNT,
            keys::EXPERT_COUNT,
            keys::EXPERT_USED_COUNT,
            keys::EXPERT_FEED_FORWARD_LENGTH,
            keys::EXPERT_SHARED_FEED_FORWARD_LENGTH,
            SHARED_COUNT,
            keys::EXPERT_GROUP_COUNT,
            keys::EXPERT_GROUP_USED_COUNT,
            keys::EXPERT_WEIGHTS_NORM,
            keys::EXPERT_WEIGHTS_SCALE,
            keys::EXPERT_GATING_FUNC,
        ],
        keys::ROTATION,
    ],
    absent: &[
        ("rope.freq_base", Absent::Number(10_000.0)),
        ("leading_dense_block_count", Absent::Count(0)),
        ("expert_shared_count", Absent::Refused),
        ("expert_weights_norm", Absent::Flag(false)),
        ("expert_weights_scale", Absent::Number(1.0)),
        ("expert_gating_func", Absent::Refused),
    ],
    graph: Graph {
        score: None,
        renormalises: Renormalises::ByKey,
        selection_bias: None,
        shared: SharedForm::Always,
        ..Graph::NONE
    },
    rows: Rows { joined_qkv: true, ..Rows::NONE },
    ..GgufForm::NONE
};

/// llama.cpp multiplies the shared experts' width by this; the width is that of all together.
const SHARED_COUNT: keys::Key =
    keys::Key { name: keys::EXPERT_SHARED_COUNT.name, value: |d, _| Ok(d.moe().map(|_| Value::U32(1))) };

/// Ling 2.0 and Ring 2.0.
pub static BAILING_MOE_V2: Architecture = Architecture {
    title: "Ling 2.0, Ring 2.0",
    gguf: &FORM,
    hf: "bailing_moe_v2",
    config: Config {
        keys: &[
            ("head_dim", Absent::Count(128)),
            ("num_experts", Absent::Count(256)),
            ("num_experts_per_tok", Absent::Count(8)),
            ("num_shared_experts", Absent::Count(1)),
            ("moe_intermediate_size", Absent::Count(512)),
            ("first_k_dense_replace", Absent::Count(1)),
            ("n_group", Absent::Count(8)),
            ("topk_group", Absent::Count(4)),
            ("moe_router_enable_expert_bias", Absent::Flag(true)),
            ("routed_scaling_factor", Absent::Number(1.0)),
            ("use_qk_norm", Absent::Flag(true)),
            ("rope_theta", Absent::Number(600_000.0)),
            // The code takes whole heads then; the published configs all have it.
            ("partial_rotary_factor", Absent::Refused),
            ("score_function", Absent::Text("sigmoid")),
        ],
        also: &[],
    },
    names: Names::with(&[
        ("token_embd", "model.word_embeddings"),
        ("token_embd", "model.embed_tokens"),
        ("attn_qkv", "attention.query_key_value"),
        ("attn_output", "attention.dense"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "attention.query_layernorm"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "attention.key_layernorm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("exp_probs_b.bias", "mlp.gate.expert_bias"),
        ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
        ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
        ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
    ]),
    decoder,
    routing: Some(Routing {
        score: "sigmoid",
        selection_bias: "yes",
        groups: "sum of top two",
        divided_by: "sum + 1e-20",
        scale: "`routed_scaling_factor`",
        source: "inclusionAI 2025, `modeling_bailing_moe_v2.py`",
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let mut a = c.attention(p, Common::pairs(p))?;
    let normed = p.opt_bool("", "use_qk_norm")? != Some(false);
    a.qk_norm = normed.then_some(QkNorm { over: NormOver::PerHead, after_rope: false });
    let (moe, spans) = (moe(p, &c)?, c.spans(p, |_| true)?);
    let dense = p.opt_usize("leading_dense_block_count", "first_k_dense_replace")?.unwrap_or(0);
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, i < dense, &moe));
    Ok(c.decoder(layers))
}

fn moe(p: &Params<'_>, c: &Common) -> Result<Moe> {
    if let Some(other) = p.opt_str("", "score_function")?.filter(|s| s != "sigmoid") {
        return Err(Error::Unsupported(format!("score_function `{other}` in {}", p.arch)));
    }
    let [experts, used] = experts(p, ["num_experts", "num_experts_per_tok"])?;
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    let count = p.opt_usize("expert_group_count", "n_group")?.unwrap_or(1).max(1);
    let limit = p.opt_usize("expert_group_used_count", "topk_group")?.unwrap_or(count);
    let groups = (count > 1).then_some(Groups { count, used: limit, score: GroupScore::TopTwo });
    // The code divides where there is more than one to choose.
    let sums = if p.is_gguf() { p.bool("expert_weights_norm", "")? } else { used > 1 };
    let renormalise = if sums { Renormalise::SumPlus(1e-20) } else { Renormalise::No };
    let scale = p.f32("expert_weights_scale", "routed_scaling_factor")?;
    // llama.cpp takes 0 for 1.
    let scale = if p.is_gguf() && scale == 0.0 { 1.0 } else { scale };
    let family = Router { groups, renormalise, scale, ..Router::new(experts, used, Score::Sigmoid) };
    let mut moe = Moe::new(router(p, family)?, c.glu(width));
    moe.selection_bias = match p.is_gguf() {
        true => p.any_tensor(|n| n.contains(".exp_probs_b")),
        false => p.bool("", "moe_router_enable_expert_bias")?,
    };
    let n = p.usize("expert_shared_count", "num_shared_experts")?;
    let each = p.opt_usize("expert_shared_feed_forward_length", "")?.unwrap_or(width);
    let shared = n.checked_mul(each).ok_or_else(|| Error::Model(format!("{n} shared experts")))?;
    moe.shared = Shared::one(shared, moe.experts);
    Ok(moe)
}
