//! Qwen3-MoE: a norm on every head of queries and keys, head size independent of the hidden size, weights of the chosen
//! experts renormalised. Source: Hugging Face `modeling_qwen3_moe`; llama.cpp's `qwen3moe` always renormalises.

use super::qwen2_moe::{dense_layers, warn_of_dense_layers};
use crate::{
    error::Result,
    ir::{Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, by_sum, experts, router},
        decoder::{Decoder, Moe, NormOver, QkNorm},
        facts::{Absent, Config},
        gguf::{GgufForm, keys},
        names::Names,
        params::Params,
    },
};

static FORM: GgufForm = GgufForm {
    arch: "qwen3moe",
    keys: &[
        keys::SIZES,
        &[keys::EXPERT_COUNT, keys::EXPERT_USED_COUNT, keys::EXPERT_FEED_FORWARD_LENGTH],
        keys::ROTATION,
    ],
    absent: &[("rope.freq_base", Absent::Number(10_000.0)), ("expert_weights_norm", Absent::Flag(true))],
    check: warn_of_dense_layers,
    ..GgufForm::NONE
};

/// Qwen3-MoE.
pub static QWEN3_MOE: Architecture = Architecture {
    title: "Qwen3-MoE",
    gguf: &FORM,
    hf: "qwen3_moe",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(4)),
            ("head_dim", Absent::Nothing),
            ("num_local_experts", Absent::Count(128)),
            ("num_experts_per_tok", Absent::Count(8)),
            ("moe_intermediate_size", Absent::Count(768)),
            ("norm_topk_prob", Absent::Flag(false)),
            ("mlp_only_layers", Absent::Nothing),
            ("decoder_sparse_step", Absent::Count(1)),
            ("use_sliding_window", Absent::Flag(false)),
            ("sliding_window", Absent::Count(4096)),
        ],
        also: &[("num_experts", "num_local_experts")],
    },
    names: Names::with(&[]),
    decoder,
    routing: Some(Routing {
        divided_by: "sum as `norm_topk_prob` (yes)",
        source: "`modeling_qwen3_moe`",
        ..Routing::SOFTMAX
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let mut a = c.attention(p, Common::pairs(p))?;
    a.qk_norm = Some(QkNorm { over: NormOver::PerHead, after_rope: false });
    let [experts, used] = experts(p, ["num_local_experts", "num_experts_per_tok"])?;
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    let renormalise = by_sum(p.bool("expert_weights_norm", "norm_topk_prob")?);
    let router = router(p, Router { renormalise, ..Router::new(experts, used, Score::Softmax) })?;
    let (moe, dense, spans) = (Moe::new(router, c.glu(width)), dense_layers(p)?, c.spans(p, |_| true)?);
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, dense(i), &moe));
    Ok(c.decoder(layers))
}
