//! Llama 4's text model (Meta 2025): top-1 of sigmoid scores whose weight goes on the experts' input, a shared expert, experts
//! in all or in every other layer; attention in chunks of positions, and every fourth layer without rotation over the whole
//! context, its queries growing with their position; norms of queries and keys without weights, after the rotation, in the
//! smaller model. Source: Hugging Face `modeling_llama4`; llama.cpp's `llama4`, which knows the released models' sizes of
//! chunks, temperature and pattern and has no keys for them.

use crate::{
    error::{Error, Result},
    ir::{RopePairs, Router, Score, Temperature},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, experts, router},
        decoder::{AttentionSpec, Decoder, LayerSpec, Mixer, Moe, NormOver, Position, QkNorm, Shared, Span},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, Renormalises, SharedForm, keys, refused},
        names::{ExpertLayout, LAYERS, Names},
        params::Params,
    },
};

static FORM: GgufForm = GgufForm {
    arch: "llama4",
    keys: &[
        keys::SIZES,
        &[
            keys::EXPERT_COUNT,
            keys::EXPERT_USED_COUNT,
            keys::EXPERT_FEED_FORWARD_LENGTH,
            STEP,
            keys::EXPERT_GATING_FUNC,
        ],
        keys::ROTATION,
    ],
    absent: &[("rope.freq_base", Absent::Number(10_000.0)), ("interleave_moe_layer_step", Absent::Refused)],
    graph: Graph {
        divisors: true,
        score: Some(Score::Sigmoid),
        renormalises: Renormalises::Never,
        shared: SharedForm::Always,
        ..Graph::NONE
    },
    check: constants,
    ..GgufForm::NONE
};

/// Llama 4, text only.
pub static LLAMA4: Architecture = Architecture {
    title: "Llama 4",
    gguf: &FORM,
    hf: "llama4_text",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(8)),
            ("head_dim", Absent::Count(128)),
            ("intermediate_size_mlp", Absent::Count(16_384)),
            ("num_local_experts", Absent::Count(16)),
            ("num_experts_per_tok", Absent::Count(1)),
            // Those of the step.
            ("moe_layers", Absent::Nothing),
            ("interleave_moe_layer_step", Absent::Count(1)),
            ("use_qk_norm", Absent::Flag(true)),
            // Those of the interval.
            ("no_rope_layers", Absent::Nothing),
            ("no_rope_layer_interval", Absent::Count(UNROTATED_EVERY)),
            // Layers that rotate are in chunks.
            ("layer_types", Absent::Nothing),
            ("attention_chunk_size", Absent::Count(ATTENTION_CHUNK)),
            // A switch in some configs, a number in others.
            ("attn_temperature_tuning", Absent::Flag(true)),
            ("floor_scale", Absent::Count(TEMPERATURE.every)),
            ("attn_scale", Absent::Number(0.1)),
            ("rms_norm_eps", Absent::Number(1e-5)),
            ("rope_theta", Absent::Number(500_000.0)),
        ],
        also: &[],
    },
    names: Names {
        layers: LAYERS,
        stems: &[
            ("ffn_gate", "feed_forward.gate_proj"),
            ("ffn_up", "feed_forward.up_proj"),
            ("ffn_down", "feed_forward.down_proj"),
            ("ffn_gate_inp", "feed_forward.router"),
            ("ffn_gate_up_exps.weight", "feed_forward.experts.gate_up_proj"),
            ("ffn_down_exps.weight", "feed_forward.experts.down_proj"),
            ("ffn_gate_exps", "feed_forward.experts.{}.gate_proj"),
            ("ffn_up_exps", "feed_forward.experts.{}.up_proj"),
            ("ffn_down_exps", "feed_forward.experts.{}.down_proj"),
            ("ffn_gate_shexp", "feed_forward.shared_expert.gate_proj"),
            ("ffn_up_shexp", "feed_forward.shared_expert.up_proj"),
            ("ffn_down_shexp", "feed_forward.shared_expert.down_proj"),
        ],
        experts: ExpertLayout::Columns,
    },
    decoder,
    routing: Some(Routing {
        score: "sigmoid (the weight goes on the experts' input)",
        divided_by: "no",
        source: "`modeling_llama4`",
        ..Routing::SOFTMAX
    }),
};

/// What llama.cpp takes where a GGUF has no key, and Hugging Face where a config has none: positions of a chunk, and of a
/// step of the temperature; its scale; every how many layers one does not rotate.
const ATTENTION_CHUNK: usize = 8192;
const TEMPERATURE: Temperature = Temperature { every: 8192, scale: 0.1 };
const UNROTATED_EVERY: usize = 4;

/// With as many experts, llama.cpp takes a model for the larger one, which has no norms of queries and keys.
const EXPERTS_WITHOUT_NORMS: usize = 128;

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut c = Common::read(p)?;
    let [experts, used] = experts(p, ["num_local_experts", "num_experts_per_tok"])?;
    let width = p.usize("expert_feed_forward_length", "intermediate_size")?;
    c.ffn = p.usize("feed_forward_length", "intermediate_size_mlp")?;
    let normed = if p.is_gguf() { experts != EXPERTS_WITHOUT_NORMS } else { p.bool("", "use_qk_norm")? };
    let mut a = c.attention(p, RopePairs::Interleaved)?;
    a.qk_norm = normed.then_some(QkNorm { over: NormOver::Unweighted, after_rope: true });
    let router = router(p, Router::new(experts, used, Score::Sigmoid))?;
    let mut moe = Moe { scale_expert_inputs: true, ..Moe::new(router, c.glu(width)) };
    moe.shared = Shared::one(width, moe.experts);
    let (place, dense) = (places(p)?, dense_layers(p)?);
    let layer = |i: usize| {
        let (span, unrotated) = place(i);
        let mut a = AttentionSpec { span, ..a.clone() };
        if let Some(temperature) = unrotated {
            // Only layers that rotate have norms of queries and keys.
            (a.position, a.qk_norm) = (Position::Unrotated(temperature), None);
        }
        LayerSpec { mixer: Mixer::Attention(a), ffn: c.ffn(p, i, dense(i), &moe), norms: Default::default() }
    };
    let layers = (0..c.layers).map(layer).collect();
    Ok(c.decoder(layers))
}

/// By layer: what its attention sees, and in layers without rotation how queries grow with their position, where they do.
fn places(p: &Params<'_>) -> Result<impl Fn(usize) -> (Span, Option<Option<Temperature>>)> {
    // llama.cpp's way to say that every layer rotates and sees everything.
    let plain = p.opt_length("attention.sliding_window", "")? == Some(0);
    if let Some(n) = p.opt_usize("attention.sliding_window_pattern", "")?.filter(|n| !plain && *n != UNROTATED_EVERY) {
        return Err(Error::Unsupported(format!(
            "one of {n} layers without chunks (sliding_window_pattern) in {}",
            p.arch
        )));
    }
    let every = p.opt_usize("", "no_rope_layer_interval")?.unwrap_or(UNROTATED_EVERY).max(1);
    // The list has 1 for layers that rotate.
    let list = p.config("no_rope_layers").and_then(|v| v.as_array()).filter(|l| !l.is_empty());
    let kinds = p.config("layer_types").and_then(|v| v.as_array());
    // Null switches chunks off.
    let chunk =
        if p.is_gguf() { Some(ATTENTION_CHUNK) } else { p.opt_length("", "attention_chunk_size")?.filter(|n| *n > 0) };
    let tuned = p.config("attn_temperature_tuning").is_none_or(|v| v.as_bool() != Some(false) && v.as_u64() != Some(0));
    let temperature = tuned.then_some(Temperature {
        every: match p.opt_length("", "floor_scale")? {
            Some(0) => return Err(Error::Model("floor_scale is 0".into())),
            n => n.unwrap_or(TEMPERATURE.every),
        },
        scale: p.opt_f32("", "attn_scale")?.unwrap_or(TEMPERATURE.scale),
    });
    Ok(move |i: usize| {
        if plain {
            return (Span::Context, None);
        }
        let rotates = match list {
            Some(l) => l.get(i).and_then(|v| v.as_u64()) != Some(0),
            None => !(i + 1).is_multiple_of(every),
        };
        let chunked = match kinds {
            Some(l) => l.get(i).and_then(|v| v.as_str()) == Some("chunked_attention"),
            None => rotates,
        };
        let span = chunk.filter(|_| chunked).map_or(Span::Context, Span::AttentionChunk);
        (span, (!rotates).then_some(temperature))
    })
}

/// Layers without experts.
fn dense_layers(p: &Params<'_>) -> Result<impl Fn(usize) -> bool> {
    let list = p.config_set("moe_layers");
    let step = p.opt_usize("interleave_moe_layer_step", "interleave_moe_layer_step")?.unwrap_or(1).max(1);
    Ok(move |i: usize| match &list {
        Some(l) => !l.contains(&i),
        None => !(i + 1).is_multiple_of(step),
    })
}

/// llama.cpp has constants where Hugging Face has keys, so a model with other numbers is refused.
fn constants(d: &Decoder) -> Result<()> {
    let refused = |what: String| Err(refused("llama4", what));
    for (i, layer) in d.layers.iter().enumerate() {
        let Some(a) = layer.attention() else { continue };
        let usually = (i + 1).is_multiple_of(UNROTATED_EVERY);
        let unrotated = matches!(a.position, Position::Unrotated(_));
        if unrotated != usually {
            return refused(format!("layers [{i}] {} rotation", if unrotated { "without" } else { "with" }));
        }
        // Chunks that no text fills are none.
        let chunk = |n: usize| Some(n).filter(|n| *n < d.context);
        let has = if let Span::AttentionChunk(n) = a.span { chunk(n) } else { None };
        if has != chunk(ATTENTION_CHUNK).filter(|_| !unrotated) {
            return refused(format!("attention over {:?} in layer {i}", a.span));
        }
        if let Position::Unrotated(t) = a.position
            && t != Some(TEMPERATURE)
        {
            return refused(format!("a temperature of {t:?}"));
        }
        let experts = d.moe().map_or(0, |m| m.router.experts);
        if !unrotated && a.qk_norm.is_some() != (experts != EXPERTS_WITHOUT_NORMS) {
            return refused(format!("norms of queries and keys ({:?}) with {experts} experts", a.qk_norm));
        }
    }
    Ok(())
}

/// Every how many layers one has experts.
const STEP: keys::Key = keys::Key {
    name: "interleave_moe_layer_step",
    value: |d, form| {
        let (layers, dense) = (d.layers.len(), d.dense_layers());
        let step = (1..=layers).find(|s| (0..layers).all(|i| dense.contains(&i) != (i + 1).is_multiple_of(*s)));
        let step = step.ok_or_else(|| form.refused(format!("dense layers {dense:?}")))?;
        keys::count("interleave_moe_layer_step", step)
    },
};
