//! MiniMax-M2: norms over the whole projections of queries and keys, rotation of a part of each head, sigmoid scores with a
//! selection bias, weights that sum to 1; no shared expert. Source: Hugging Face `modeling_minimax_m2`; keys and names of
//! llama.cpp's `minimax-m2`.

use crate::{
    error::Result,
    ir::{Renormalise, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, experts, router},
        decoder::{Decoder, Moe, NormOver, QkNorm},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, keys, refused},
        names::Names,
        params::Params,
    },
};

/// Mixtral's names, those of the modules in memory, and the selection bias.
const STEMS: &[(&str, &str)] = &[
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_inp", "mlp.gate"),
    ("exp_probs_b.bias", "block_sparse_moe.e_score_correction_bias"),
    ("exp_probs_b.bias", "mlp.e_score_correction_bias"),
    ("exp_probs_b.bias", "mlp.gate.e_score_correction_bias"),
    ("ffn_gate_exps", "block_sparse_moe.experts.{}.w1"),
    ("ffn_gate_exps", "mlp.experts.{}.w1"),
    ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
    ("ffn_up_exps", "block_sparse_moe.experts.{}.w3"),
    ("ffn_up_exps", "mlp.experts.{}.w3"),
    ("ffn_up_exps", "mlp.experts.{}.up_proj"),
    ("ffn_down_exps", "block_sparse_moe.experts.{}.w2"),
    ("ffn_down_exps", "mlp.experts.{}.w2"),
    ("ffn_down_exps", "mlp.experts.{}.down_proj"),
];

static FORM: GgufForm = GgufForm {
    arch: "minimax-m2",
    keys: &[
        keys::SIZES,
        &[keys::EXPERT_COUNT, keys::EXPERT_USED_COUNT, keys::EXPERT_FEED_FORWARD_LENGTH, keys::EXPERT_GATING_FUNC],
        keys::ROTATION,
    ],
    graph: Graph { score: None, selection_bias: Some(true), ..Graph::NONE },
    check: |d| match d.dense_layers().is_empty() {
        true => Ok(()),
        false => Err(refused("minimax-m2", "layers without experts")),
    },
    ..GgufForm::NONE
};

/// MiniMax-M2.
pub static MINIMAX_M2: Architecture = Architecture {
    title: "MiniMax-M2",
    gguf: &FORM,
    hf: "minimax_m2",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(8)),
            ("head_dim", Absent::Count(128)),
            ("num_local_experts", Absent::Count(256)),
            ("num_experts_per_tok", Absent::Count(8)),
            ("rotary_dim", Absent::Nothing),
            ("rope_theta", Absent::Number(5e6)),
        ],
        also: &[("num_experts", "num_local_experts")],
    },
    names: Names::with(STEMS),
    decoder,
    routing: Some(Routing {
        score: "sigmoid",
        selection_bias: "yes",
        divided_by: "sum",
        source: "`modeling_minimax_m2`",
        ..Routing::SOFTMAX
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let mut a = c.attention(p, Common::pairs(p))?;
    a.qk_norm = Some(QkNorm { over: NormOver::WholeRow, after_rope: false });
    let [experts, used] = experts(p, ["num_local_experts", "num_experts_per_tok"])?;
    let width = p.opt_usize("expert_feed_forward_length", "intermediate_size")?.unwrap_or(c.ffn);
    let family = Router { renormalise: Renormalise::Sum, ..Router::new(experts, used, Score::Sigmoid) };
    let moe = Moe { selection_bias: true, ..Moe::new(router(p, family)?, c.glu(width)) };
    let spans = c.spans(p, |_| true)?;
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, false, &moe));
    Ok(c.decoder(layers))
}
