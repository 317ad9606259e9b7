//! Qwen2-MoE (and Qwen1.5-MoE): biases on queries, keys and values; a shared expert behind a sigmoid gate; some layers may
//! be dense. Source: Hugging Face `modeling_qwen2_moe`; llama.cpp's `qwen2moe` never renormalises.

use crate::{
    error::Result,
    ir::{Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, by_sum, experts, router},
        decoder::{Bias, Decoder, Moe, Shared},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, Renormalises, SharedForm, keys},
        names::Names,
        params::Params,
    },
};

/// Keys of experts behind those of the sizes, with a gated shared expert of a width of its own.
pub(super) const KEYS: &[keys::Key] = &[
    keys::EXPERT_COUNT,
    keys::EXPERT_USED_COUNT,
    keys::EXPERT_FEED_FORWARD_LENGTH,
    keys::EXPERT_SHARED_FEED_FORWARD_LENGTH,
];

static FORM: GgufForm = GgufForm {
    arch: "qwen2moe",
    keys: &[keys::SIZES, KEYS, keys::ROTATION],
    absent: &[("rope.freq_base", Absent::Number(10_000.0)), ("expert_weights_norm", Absent::Flag(false))],
    graph: Graph { renormalises: Renormalises::Never, shared: SharedForm::Gated, ..Graph::NONE },
    check: warn_of_dense_layers,
    ..GgufForm::NONE
};

/// Qwen2-MoE.
pub static QWEN2_MOE: Architecture = Architecture {
    title: "Qwen2-MoE",
    gguf: &FORM,
    hf: "qwen2_moe",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(16)),
            ("qkv_bias", Absent::Flag(true)),
            ("num_experts", Absent::Count(60)),
            ("num_experts_per_tok", Absent::Count(4)),
            ("moe_intermediate_size", Absent::Count(1408)),
            ("shared_expert_intermediate_size", Absent::Count(5632)),
            ("norm_topk_prob", Absent::Flag(false)),
            ("mlp_only_layers", Absent::Nothing),
            ("decoder_sparse_step", Absent::Count(1)),
            ("use_sliding_window", Absent::Flag(false)),
            ("sliding_window", Absent::Count(4096)),
            ("max_window_layers", Absent::Count(28)),
            ("layer_types", Absent::Nothing),
        ],
        also: &[],
    },
    names: Names::with(&[]),
    decoder,
    routing: Some(Routing {
        divided_by: "sum as `norm_topk_prob` (no)",
        source: "`modeling_qwen2_moe`",
        ..Routing::SOFTMAX
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let mut a = c.attention(p, Common::pairs(p))?;
    a.bias = if p.opt_bool("", "qkv_bias")? == Some(false) { Bias::IfPresent } else { Bias::Yes };
    let [experts, used] = experts(p, ["num_experts", "num_experts_per_tok"])?;
    let width = match p.opt_usize("expert_feed_forward_length", "moe_intermediate_size")? {
        Some(n) => n,
        // As llama.cpp reads files that lack the key.
        None => c.ffn / used,
    };
    let renormalise = by_sum(p.bool("expert_weights_norm", "norm_topk_prob")?);
    // Files of the first converters have no key for the shared expert's width: it is the dense one's.
    let shared = p.opt_usize("expert_shared_feed_forward_length", "shared_expert_intermediate_size")?.unwrap_or(c.ffn);
    let router = router(p, Router { renormalise, ..Router::new(experts, used, Score::Softmax) })?;
    let mut moe = Moe::new(router, c.glu(width));
    moe.shared = Shared::one(shared, moe.experts).map(|s| Shared { gated: true, ..s });
    let dense = dense_layers(p)?;
    let most = p.opt_length("", "max_window_layers")?.unwrap_or(c.layers);
    // Hugging Face's class lets every other of the first layers slide, where no list says it.
    let spans = c.spans(p, |i| p.is_gguf() || (i % 2 == 0 && i < most))?;
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, dense(i), &moe));
    Ok(c.decoder(layers))
}

/// Layers without experts: those that are named, and all but every `decoder_sparse_step`-th.
pub(super) fn dense_layers(p: &Params<'_>) -> Result<impl Fn(usize) -> bool> {
    let named = p.config_set("mlp_only_layers").unwrap_or_default();
    let step = p.opt_usize("", "decoder_sparse_step")?.unwrap_or(1).max(1);
    Ok(move |i: usize| named.contains(&i) || !(i + 1).is_multiple_of(step))
}

/// Dense layers between layers with experts are let through: llama.cpp misses their router and says so.
pub(super) fn warn_of_dense_layers(d: &Decoder) -> Result<()> {
    let dense = d.dense_layers();
    if !dense.is_empty() {
        tracing::warn!(
            "layers {dense:?} have no experts: the file says so by their tensors, and llama.cpp does not load it"
        );
    }
    Ok(())
}
