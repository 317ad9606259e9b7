//! GPT-OSS (OpenAI 2025): experts in MXFP4 with biases and a clamped SwiGLU, a router with bias whose weights are a softmax
//! over the chosen logits, biases on all projections, attention sinks, a sliding window on every other layer, YaRN.
//! Source: Hugging Face `modeling_gpt_oss`; in GGUF llama.cpp's `gpt-oss` (converted from MXFP4: `ffn_*_exps` are MXFP4).
//!
//! Rounding: OpenAI's and Hugging Face's YaRN do not round the ends of the blend between frequencies (`truncate: false`),
//! llama.cpp does for every model. This engine follows the definition, from either container.

use crate::{
    error::{Error, Result},
    ir::{Activation, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, experts, router},
        decoder::{Bias, Decoder, LayerNorms, LayerSpec, Moe},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, keys},
        names::{ExpertLayout, LAYERS, Names},
        params::Params,
    },
};

const ALPHA: f32 = 1.702;
const LIMIT: f32 = 7.0;

static FORM: GgufForm = GgufForm {
    arch: "gpt-oss",
    keys: &[
        &[
            keys::BLOCK_COUNT,
            keys::CONTEXT_LENGTH,
            keys::EMBEDDING_LENGTH,
            keys::FEED_FORWARD_LENGTH,
            keys::HEAD_COUNT,
            keys::HEAD_COUNT_KV,
            keys::KEY_LENGTH,
            keys::VALUE_LENGTH,
            keys::ROPE_DIMENSION_COUNT,
            ALTERNATING_WINDOW,
            keys::RMS_EPS,
            keys::EXPERT_COUNT,
            keys::EXPERT_USED_COUNT,
            keys::EXPERT_FEED_FORWARD_LENGTH,
        ],
        keys::ROTATION,
    ],
    absent: &[("rope.freq_base", Absent::Number(10_000.0)), ("attention.sliding_window", Absent::Refused)],
    yarn_truncates: false,
    graph: Graph { act: Activation::ClampedSwiglu { alpha: ALPHA, limit: LIMIT }, ..Graph::NONE },
    ..GgufForm::NONE
};

/// llama.cpp's pattern of this architecture: every other layer slides, the first does.
const ALTERNATING_WINDOW: keys::Key = keys::Key {
    name: keys::SLIDING_WINDOW.name,
    value: |d, form| match keys::windows(d).as_slice() {
        all @ [Some(first), _, ..] if all.iter().enumerate().all(|(i, w)| *w == (i % 2 == 0).then_some(*first)) => {
            keys::count("sliding_window", *first)
        }
        _ => (keys::SLIDING_WINDOW.value)(d, form),
    },
};

/// GPT-OSS.
pub static GPT_OSS: Architecture = Architecture {
    title: "GPT-OSS",
    gguf: &FORM,
    hf: "gpt_oss",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(8)),
            ("head_dim", Absent::Count(64)),
            ("num_local_experts", Absent::Count(128)),
            ("num_experts_per_tok", Absent::Count(4)),
            ("sliding_window", Absent::Count(128)),
            ("layer_types", Absent::Nothing),
            ("swiglu_alpha", Absent::Number(1.702)),
            ("swiglu_limit", Absent::Number(7.0)),
            ("rms_norm_eps", Absent::Number(1e-5)),
            ("rope_theta", Absent::Number(150_000.0)),
        ],
        also: &[("num_experts", "num_local_experts")],
    },
    names: Names {
        layers: LAYERS,
        stems: &[
            ("attn_sinks.weight", "self_attn.sinks"),
            ("ffn_gate_inp", "mlp.router"),
            ("ffn_gate_up_exps.weight", "mlp.experts.gate_up_proj"),
            ("ffn_gate_up_exps.bias", "mlp.experts.gate_up_proj_bias"),
            ("ffn_down_exps.weight", "mlp.experts.down_proj"),
            ("ffn_down_exps.bias", "mlp.experts.down_proj_bias"),
            ("ffn_down_exps", "mlp.experts.{}.down_proj"),
        ],
        experts: ExpertLayout::InterleavedColumns,
    },
    decoder,
    routing: Some(Routing {
        score: "softmax of the selected (router bias)",
        source: "`modeling_gpt_oss`",
        ..Routing::SOFTMAX
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    if !p.is_gguf() && p.config("rope_parameters").is_none() && p.config("rope_scaling").is_none() {
        // The released models have YaRN, and the class would take theirs.
        return Err(Error::Model("the hyperparameter rope_parameters is missing".into()));
    }
    let mut c = Common::read(p)?;
    let alpha = p.opt_f32("", "swiglu_alpha")?.unwrap_or(ALPHA);
    let limit = p.opt_f32("", "swiglu_limit")?.unwrap_or(LIMIT);
    c.act = Activation::ClampedSwiglu { alpha, limit };
    let mut a = c.attention(p, Common::pairs(p))?;
    (a.bias, a.sinks) = (Bias::Yes, true);
    let [experts, used] = experts(p, ["num_local_experts", "num_experts_per_tok"])?;
    let width = p.usize("expert_feed_forward_length", "intermediate_size")?;
    let router = router(p, Router::new(experts, used, Score::SoftmaxOfSelected))?;
    let moe = Moe::new(router, c.glu(width));
    // Without a list the first layer slides, the second does not, and so on.
    let spans = c.spans(p, |i| i % 2 == 0)?;
    let norms = LayerNorms { ffn: "post_attention_norm", post: false };
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, false, &moe));
    Ok(c.decoder(layers.into_iter().map(|l| LayerSpec { norms, ..l }).collect()))
}
