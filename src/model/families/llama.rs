//! Llama and Mixtral: dense (Touvron et al. 2023) and with experts (Jiang et al. 2024).
//!
//! In GGUF both are `llama`, with experts where `llama.expert_count` says so, and the projections of queries and keys are
//! stored for interleaved rotation; Hugging Face's are stored for rotation by halves. The router's softmax over all
//! experts, renormalised over the chosen ones, equals a softmax over the chosen logits.

use crate::{
    error::Result,
    ir::{Renormalise, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, experts, router},
        decoder::{Decoder, Moe},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, Rows, keys},
        names::Names,
        params::Params,
    },
};

/// Names that Mixtral's checkpoints brought, and those of the modules in memory.
pub(super) const MIXTRAL_STEMS: &[(&str, &str)] = &[
    ("ffn_gate_inp", "block_sparse_moe.gate"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_inp", "mlp.router"),
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

pub(super) static FORM: GgufForm = GgufForm {
    arch: "llama",
    keys: &[keys::SIZES, &[keys::EXPERT_COUNT, keys::EXPERT_USED_COUNT], keys::ROTATION],
    graph: Graph { whole_heads: true, divisors: true, ..Graph::NONE },
    rows: Rows { interleaved_qk: true, ..Rows::NONE },
    ..GgufForm::NONE
};

/// Llama, dense; in GGUF also Mixtral.
pub static LLAMA: Architecture = Architecture {
    title: "Llama",
    gguf: &FORM,
    hf: "llama",
    config: Config { keys: &[("head_dim", Absent::Nothing)], also: &[] },
    names: Names::with(&[]),
    decoder,
    routing: None,
};

/// Mistral: Llama with a sliding window in its first version.
pub static MISTRAL: Architecture = Architecture {
    title: "Mistral",
    gguf: &FORM,
    hf: "mistral",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(8)),
            ("head_dim", Absent::Nothing),
            ("sliding_window", Absent::Count(4096)),
        ],
        also: &[],
    },
    names: Names::with(&[]),
    decoder,
    routing: None,
};

/// Mixtral.
pub static MIXTRAL: Architecture = Architecture {
    title: "Mixtral",
    gguf: &FORM,
    hf: "mixtral",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(8)),
            ("head_dim", Absent::Nothing),
            ("num_local_experts", Absent::Count(8)),
            ("num_experts_per_tok", Absent::Count(2)),
            ("sliding_window", Absent::Nothing),
            ("rope_theta", Absent::Number(1e6)),
            ("rms_norm_eps", Absent::Number(1e-5)),
        ],
        also: &[("num_experts", "num_local_experts")],
    },
    names: Names::with(MIXTRAL_STEMS),
    decoder,
    routing: Some(Routing {
        divided_by: "sum",
        source: "Jiang et al. 2024 (softmax of the selected: the same numbers)",
        ..Routing::SOFTMAX
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let a = c.attention(p, Common::pairs(p))?;
    let spans = c.spans(p, |_| true)?;
    if p.opt_usize("expert_count", "num_local_experts")?.is_none_or(|n| n == 0) {
        let layers = c.layers(&a, &spans, |_| c.dense());
        return Ok(c.decoder(layers));
    }
    let [experts, used] = experts(p, ["num_local_experts", "num_experts_per_tok"])?;
    let width = p.opt_usize("expert_feed_forward_length", "")?.unwrap_or(c.ffn);
    let router = router(p, Router { renormalise: Renormalise::Sum, ..Router::new(experts, used, Score::Softmax) })?;
    let moe = Moe::new(router, c.glu(width));
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, false, &moe));
    Ok(c.decoder(layers))
}
