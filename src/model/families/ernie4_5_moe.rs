//! ERNIE-4.5 MoE: interleaved rotation, softmax scores with a selection bias, weights divided by at least `moe_norm_min`,
//! shared experts, dense layers before and between. Source: Hugging Face `modeling_ernie4_5_moe`; keys and names of
//! llama.cpp's `ernie4_5-moe`.

use crate::{
    error::{Error, Result},
    ir::{Renormalise, RopePairs, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, experts, router},
        decoder::{Decoder, Moe, Shared},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, SharedForm, keys},
        names::Names,
        params::Params,
    },
};

static FORM: GgufForm = GgufForm {
    arch: "ernie4_5-moe",
    keys: &[
        keys::SIZES,
        &[
            keys::EXPERT_COUNT,
            keys::EXPERT_USED_COUNT,
            keys::EXPERT_FEED_FORWARD_LENGTH,
            keys::EXPERT_GATING_FUNC,
            keys::EXPERT_SHARED_COUNT,
            keys::EXPERT_SHARED_FEED_FORWARD_LENGTH,
            keys::LEADING_DENSE_BLOCK_COUNT,
            STEP,
        ],
        keys::ROTATION,
    ],
    absent: &[("rope.freq_base", Absent::Number(10_000.0)), ("leading_dense_block_count", Absent::Count(0))],
    graph: Graph { selection_bias: None, shared: SharedForm::Maybe, ..Graph::NONE },
    ..GgufForm::NONE
};

/// Every how many layers one has experts, behind the dense ones that come first.
const STEP: keys::Key = keys::Key {
    name: "interleave_moe_layer_step",
    value: |d, _| {
        let (layers, dense, first) = (d.layers.len(), d.dense_layers(), keys::leading_dense(d));
        let is_dense = |i: usize, step: usize| i < first || (i + 1) % step != 0;
        let step = (1..=layers.max(1)).find(|step| (0..layers).all(|i| dense.contains(&i) == is_dense(i, *step)));
        if step.is_none() {
            tracing::warn!(
                "layers {dense:?} have no experts: the file says so by their tensors, and llama.cpp does not load it"
            );
        }
        keys::count("interleave_moe_layer_step", step.unwrap_or(1))
    },
};

/// ERNIE-4.5 MoE.
pub static ERNIE4_5_MOE: Architecture = Architecture {
    title: "ERNIE-4.5 MoE",
    gguf: &FORM,
    hf: "ernie4_5_moe",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(4)),
            ("head_dim", Absent::Nothing),
            ("moe_num_experts", Absent::Count(64)),
            ("moe_k", Absent::Count(6)),
            ("moe_intermediate_size", Absent::Count(1536)),
            ("moe_num_shared_experts", Absent::Count(2)),
            ("moe_layer_start_index", Absent::Count(1)),
            // Absent or -1: the last layer.
            ("moe_layer_end_index", Absent::Nothing),
            ("moe_layer_interval", Absent::Count(1)),
            ("moe_norm_min", Absent::Number(1e-12)),
            ("tie_word_embeddings", Absent::Flag(true)),
            ("rms_norm_eps", Absent::Number(1e-5)),
            ("rope_theta", Absent::Number(500_000.0)),
        ],
        also: &[("num_experts", "moe_num_experts"), ("num_experts_per_tok", "moe_k")],
    },
    names: Names::with(&[
        ("exp_probs_b.bias", "mlp.moe_statics.e_score_correction_bias"),
        ("exp_probs_b.bias", "mlp.gate.moe_statics.e_score_correction_bias"),
        ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
        ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
    ]),
    decoder,
    routing: Some(Routing {
        selection_bias: "yes",
        divided_by: "max(sum, `moe_norm_min`)",
        source: "`modeling_ernie4_5_moe`",
        ..Routing::SOFTMAX
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let a = c.attention(p, RopePairs::Interleaved)?;
    let [experts, used] = experts(p, ["moe_num_experts", "moe_k"])?;
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    // llama.cpp's bound is another, which matters for no sum of softmax scores.
    let least = p.opt_f32("", "moe_norm_min")?.unwrap_or(1e-12);
    let family = Router { renormalise: Renormalise::SumAtLeast(least), ..Router::new(experts, used, Score::Softmax) };
    let mut moe = Moe::new(router(p, family)?, c.glu(width));
    moe.selection_bias = !p.is_gguf() || p.any_tensor(|n| n.contains(".exp_probs_b"));
    let shared = match p.opt_usize("expert_shared_feed_forward_length", "")? {
        Some(n) => n,
        None => {
            let n = p.opt_usize("expert_shared_count", "moe_num_shared_experts")?.unwrap_or(0);
            n.checked_mul(width).ok_or_else(|| Error::Model(format!("{n} shared experts")))?
        }
    };
    moe.shared = Shared::one(shared, moe.experts);
    let start = p.opt_usize("leading_dense_block_count", "moe_layer_start_index")?.unwrap_or(0);
    // The config counts from 0 and includes the last; -1 is the last layer, as in the released ones' text part.
    let end = p.config("moe_layer_end_index").and_then(|v| v.as_i64()).and_then(|n| usize::try_from(n).ok());
    let end = end.unwrap_or(c.layers - 1);
    let interval = p.opt_usize("interleave_moe_layer_step", "moe_layer_interval")?.unwrap_or(1).max(1);
    let dense = |i: usize| (i + 1) % interval != 0 || i < start || i > end;
    let spans = c.spans(p, |_| true)?;
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, dense(i), &moe));
    Ok(c.decoder(layers))
}
