//! Granite MoE (IBM, Granite 3 and 4): a Mixtral with factors on embedding, attention, residual and logits; experts' gates
//! and ups in one tensor; the variant `granitemoeshared` has a shared expert. Source: Hugging Face `modeling_granitemoe`,
//! `modeling_granitemoeshared`; llama.cpp's `granitemoe`, which stores queries and keys for interleaved rotation.

use crate::{
    error::{Error, Result},
    ir::{Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, experts, router},
        decoder::{Decoder, Moe, Multipliers, Shared},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, Rows, SharedForm, keys},
        names::Names,
        params::Params,
    },
};

const STEMS: &[(&str, &str)] = &[
    ("ffn_gate_inp", "block_sparse_moe.router.layer"),
    ("ffn_gate_inp", "block_sparse_moe.router"),
    ("ffn_gate_up_exps", "block_sparse_moe.input_linear"),
    ("ffn_gate_up_exps.weight", "block_sparse_moe.experts.gate_up_proj"),
    ("ffn_down_exps", "block_sparse_moe.output_linear"),
    ("ffn_down_exps", "block_sparse_moe.experts.{}.down_proj"),
    ("ffn_down_exps.weight", "block_sparse_moe.experts.down_proj"),
    ("ffn_gate_exps", "block_sparse_moe.experts.{}.gate_proj"),
    ("ffn_up_exps", "block_sparse_moe.experts.{}.up_proj"),
    ("ffn_gate_up_shexp", "shared_mlp.input_linear"),
    ("ffn_down_shexp", "shared_mlp.output_linear"),
];

static FORM: GgufForm = GgufForm {
    arch: "granitemoe",
    keys: &[
        keys::SIZES,
        &[
            keys::EMBEDDING_SCALE,
            keys::RESIDUAL_SCALE,
            keys::ATTENTION_SCALE,
            keys::LOGIT_SCALE,
            keys::EXPERT_COUNT,
            keys::EXPERT_USED_COUNT,
            keys::EXPERT_SHARED_FEED_FORWARD_LENGTH,
        ],
        keys::ROTATION,
    ],
    absent: &[
        ("rope.freq_base", Absent::Number(10_000.0)),
        ("logit_scale", Absent::Refused),
        ("embedding_scale", Absent::Number(1.0)),
        ("residual_scale", Absent::Number(1.0)),
    ],
    graph: Graph { shared: SharedForm::Maybe, ..Graph::NONE },
    rows: Rows { interleaved_qk: true, ..Rows::NONE },
    ..GgufForm::NONE
};

/// Granite MoE.
pub static GRANITE_MOE: Architecture = Architecture {
    title: "Granite MoE",
    gguf: &FORM,
    hf: "granitemoe",
    config: Config {
        keys: &[
            ("num_local_experts", Absent::Count(8)),
            ("num_experts_per_tok", Absent::Count(2)),
            ("embedding_multiplier", Absent::Number(1.0)),
            ("logits_scaling", Absent::Number(1.0)),
            ("residual_multiplier", Absent::Number(1.0)),
            ("attention_multiplier", Absent::Number(1.0)),
            ("position_embedding_type", Absent::Nothing),
        ],
        also: &[],
    },
    names: Names::with(STEMS),
    decoder,
    routing: Some(ROUTING),
};

/// The same with a shared expert.
pub static GRANITE_MOE_SHARED: Architecture = Architecture {
    title: "Granite MoE with a shared expert",
    gguf: &FORM,
    hf: "granitemoeshared",
    config: Config {
        keys: &[
            ("num_local_experts", Absent::Count(8)),
            ("num_experts_per_tok", Absent::Count(2)),
            ("shared_intermediate_size", Absent::Count(0)),
            ("embedding_multiplier", Absent::Number(1.0)),
            ("logits_scaling", Absent::Number(1.0)),
            ("residual_multiplier", Absent::Number(1.0)),
            ("attention_multiplier", Absent::Number(1.0)),
            ("position_embedding_type", Absent::Nothing),
        ],
        also: &[],
    },
    names: Names::with(STEMS),
    decoder,
    routing: Some(Routing { source: "`modeling_granitemoeshared`", ..ROUTING }),
};

const ROUTING: Routing =
    Routing { score: "softmax of the selected", source: "`modeling_granitemoe`", ..Routing::SOFTMAX };

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let mut a = c.attention(p, Common::pairs(p))?;
    // An absent key is 1 in Hugging Face's class and 1/sqrt(head_dim) in llama.cpp.
    a.scale =
        p.opt_f32("attention.scale", "attention_multiplier")?.filter(|s| *s != 0.0 || !p.is_gguf()).unwrap_or(a.scale);
    let logits = p.f32("logit_scale", "logits_scaling")?;
    let multipliers = Multipliers {
        embedding: p.f32("embedding_scale", "embedding_multiplier")?,
        residual: p.f32("residual_scale", "residual_multiplier")?,
        logits: 1.0 / logits,
    };
    if let Some(kind) = p.opt_str("", "position_embedding_type")?.filter(|r| r != "rope") {
        return Err(Error::Unsupported(format!("position embeddings `{kind}` in Granite")));
    }
    let [experts, used] = experts(p, ["num_local_experts", "num_experts_per_tok"])?;
    let width = p.opt_usize("expert_feed_forward_length", "")?.unwrap_or(c.ffn);
    let shared = p.opt_usize("expert_shared_feed_forward_length", "shared_intermediate_size")?.unwrap_or(0);
    let router = router(p, Router::new(experts, used, Score::SoftmaxOfSelected))?;
    let mut moe = Moe::new(router, c.glu(width));
    moe.shared = Shared::one(shared, moe.experts);
    let spans = c.spans(p, |_| true)?;
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, false, &moe));
    Ok(Decoder { multipliers, ..c.decoder(layers) })
}
