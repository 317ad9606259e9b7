//! Gemma 4's text model with experts (Google 2026): layers with a sliding window and layers that see the whole context, which
//! have other heads, another rotation, and no matrix of values (these are the keys before norm and rotation); norms of
//! queries, keys and values in each head, and no factor on their products; norms before and behind attention and feed-forward
//! networks; in each layer a dense network and, beside it, experts whose router has a norm of its own and whose weights have
//! a factor of each expert; a factor on each layer's result; bounded logits. The dense sibling (31B) is the same without
//! experts. Source: Hugging Face `modeling_gemma4`, `_compute_proportional_rope_parameters`; llama.cpp's `gemma4`.
//!
//! Deliberately absent: embeddings of each layer and keys shared between layers (the small models E2B and E4B, which have no
//! experts); they are refused by name.

use crate::{
    error::{Error, Result},
    file::{Array, Value},
    ir::{Activation, RopePairs, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, by_sum, experts, router},
        decoder::{
            AttentionSpec, Decoder, Ffn, LayerNorms, LayerSpec, Mixer, Moe, Multipliers, NormOver, Position, QkNorm,
            Span,
        },
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, keys},
        names::Names,
        params::Params,
        rope::{RopeSpec, Scaling},
        rope_params::checked_divisors,
    },
};
use serde_json::Value as Json;
use std::{collections::BTreeMap, sync::Arc};

static FORM: GgufForm = GgufForm {
    arch: "gemma4",
    keys: &[
        &[keys::BLOCK_COUNT, keys::CONTEXT_LENGTH, keys::EMBEDDING_LENGTH, keys::FEED_FORWARD_LENGTH, keys::HEAD_COUNT],
        OWN_SIZES,
        &[keys::EXPERT_COUNT, keys::EXPERT_USED_COUNT, keys::EXPERT_FEED_FORWARD_LENGTH],
        &[PATTERN, HEADS, keys::RMS_EPS, BASE, BASE_SWA, keys::FINAL_LOGIT_SOFTCAPPING],
    ],
    absent: &[
        ("rope.freq_base", Absent::Number(10_000.0)),
        ("rope.freq_base_swa", Absent::Number(10_000.0)),
        ("attention.sliding_window", Absent::Refused),
        ("attention.shared_kv_layers", Absent::Count(0)),
        ("final_logit_softcapping", Absent::Number(30.0)),
    ],
    graph: Graph {
        act: Activation::GeluTanh,
        multipliers: |d| Multipliers { embedding: (d.hidden as f32).sqrt(), residual: 1.0, logits: 1.0 },
        attention_scale: Some(1.0),
        ..Graph::NONE
    },
    ..GgufForm::NONE
};

/// Gemma 4, text only.
pub static GEMMA4: Architecture = Architecture {
    title: "Gemma 4",
    gguf: &FORM,
    hf: "gemma4_text",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(4)),
            ("head_dim", Absent::Count(256)),
            ("sliding_window", Absent::Count(512)),
            // The last of every six layers sees everything.
            ("layer_types", Absent::Nothing),
            // Of layers that see everything, in configs without `per_layer_config`.
            ("global_head_dim", Absent::Count(512)),
            ("num_global_key_value_heads", Absent::Nothing),
            ("per_layer_config", Absent::Nothing),
            ("attention_k_eq_v", Absent::Flag(false)),
            ("num_kv_shared_layers", Absent::Count(0)),
            ("hidden_activation", Absent::Text("gelu_pytorch_tanh")),
            ("final_logit_softcapping", Absent::Nothing),
            ("use_bidirectional_attention", Absent::Nothing),
            ("enable_moe_block", Absent::Flag(false)),
            ("num_experts", Absent::Nothing),
            ("top_k_experts", Absent::Nothing),
            ("moe_intermediate_size", Absent::Nothing),
            ("tie_word_embeddings", Absent::Flag(true)),
        ],
        also: &[],
    },
    names: Names::with(&[
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
        ("post_ffw_norm_1", "post_feedforward_layernorm_1"),
        ("post_ffw_norm_2", "post_feedforward_layernorm_2"),
        ("pre_ffw_norm_2", "pre_feedforward_layernorm_2"),
        ("layer_output_scale.weight", "layer_scalar"),
        ("ffn_gate_inp", "router.proj"),
        ("ffn_gate_inp.scale", "router.scale"),
        ("ffn_down_exps.scale", "router.per_expert_scale"),
        ("ffn_gate_up_exps.weight", "experts.gate_up_proj"),
        ("ffn_down_exps.weight", "experts.down_proj"),
        ("ffn_gate_exps", "experts.{}.gate_proj"),
        ("ffn_up_exps", "experts.{}.up_proj"),
        ("ffn_down_exps", "experts.{}.down_proj"),
    ]),
    decoder,
    routing: Some(Routing {
        divided_by: "sum",
        scale: "a factor of each expert",
        source: "`modeling_gemma4`",
        ..Routing::SOFTMAX
    }),
};

/// Hugging Face's pattern where a config has none: the last of every six layers sees everything, and so does the last of all.
const FULL_EVERY: usize = 6;

/// The part of the pairs that turn in layers that see everything, where a config says nothing of the rotation.
const TURNING: f32 = 0.25;

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    refuse(p)?;
    let head_dim = p.usize("attention.key_length_swa", "head_dim")?;
    let mut c = Common::with_head_dim(p, head_dim)?;
    c.act = Activation::GeluTanh;
    if let Some(act) = p.opt_str("", "hidden_activation")?.filter(|a| a != "gelu_pytorch_tanh") {
        return Err(Error::Unsupported(format!("activation `{act}` in {}", p.arch)));
    }
    let moe = moe(p, &c)?;
    let ffn = |i: usize| match (&moe, c.dense()) {
        (Some(m), Ffn::Dense(g)) if matches!(c.ffn(p, i, false, m), Ffn::Moe(_)) => Ffn::DenseBesideMoe(g, m.clone()),
        (_, dense) => dense,
    };
    let near = Attention { head_dim, kv_heads: c.kv_heads, k_eq_v: false };
    let otherwise = Otherwise::read(p)?;
    let layer = |(i, span): (usize, Span)| -> Result<LayerSpec> {
        let a = if span == Span::Context { global(p, &c, &otherwise, i)? } else { sliding(&otherwise, near, i) };
        let norms = LayerNorms { ffn: "ffn_norm", post: true };
        Ok(LayerSpec { mixer: Mixer::Attention(a.spec(p, &c, &otherwise, span)?), ffn: ffn(i), norms })
    };
    let layers = spans(p, c.layers)?.into_iter().enumerate().map(layer).collect::<Result<_>>()?;
    Ok(Decoder {
        multipliers: Multipliers { embedding: (c.hidden as f32).sqrt(), ..Default::default() },
        softcap: p.opt_f32("final_logit_softcapping", "final_logit_softcapping")?.filter(|c| *c != 0.0),
        ..c.decoder(layers)
    })
}

fn moe(p: &Params<'_>, c: &Common) -> Result<Option<Moe>> {
    let has_experts = match p.is_gguf() {
        true => p.opt_usize("expert_count", "")?.is_some_and(|n| n > 0),
        false => p.bool("", "enable_moe_block")?,
    };
    if !has_experts {
        return Ok(None);
    }
    let [experts, used] = experts(p, ["num_experts", "top_k_experts"])?;
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    let router = router(p, Router { renormalise: by_sum(true), ..Router::new(experts, used, Score::Softmax) })?;
    Ok(Some(Moe { router_norm: Some((c.hidden as f32).sqrt().recip()), ..Moe::new(router, c.glu(width)) }))
}

/// What the small models have, and what no text model has.
fn refuse(p: &Params<'_>) -> Result<()> {
    let unsupported = |what: &str| Err(Error::Unsupported(format!("{what} in {} (Gemma 4 E2B, E4B)", p.arch)));
    let per_layer = |n: &str| n.contains("embed_tokens_per_layer") || n.starts_with("per_layer_token_embd");
    if p.any_tensor(per_layer) {
        return unsupported("embeddings of each layer");
    }
    if p.opt_usize("attention.shared_kv_layers", "num_kv_shared_layers")?.is_some_and(|n| n > 0) {
        return unsupported("keys and values that layers share");
    }
    match p.opt_str("", "use_bidirectional_attention")?.as_deref() {
        Some("all") => Err(Error::Unsupported(format!("attention to later tokens in {}", p.arch))),
        _ => Ok(()),
    }
}

/// What each layer sees.
fn spans(p: &Params<'_>, layers: usize) -> Result<Vec<Span>> {
    let window = match p.opt_length("attention.sliding_window", "sliding_window")? {
        Some(n) if n > 0 => n,
        n => return Err(Error::Model(format!("sliding_window is {n:?}"))),
    };
    let mut slides: Vec<bool> = if p.is_gguf() {
        let key = "attention.sliding_window_pattern";
        match p.list(key) {
            Some(list) => list.iter().map(|n| *n != 0).collect(),
            // llama.cpp also takes a period.
            None => {
                let every = p.usize(key, "")?;
                (0..layers).map(|i| !(i + 1).is_multiple_of(every)).collect()
            }
        }
    } else {
        match p.config("layer_types").and_then(|v| v.as_array()) {
            Some(types) => types.iter().map(|t| t.as_str() == Some("sliding_attention")).collect(),
            None => (0..layers).map(|i| !(i + 1).is_multiple_of(FULL_EVERY)).collect(),
        }
    };
    // A GGUF's list may go on with layers that predict further tokens.
    if slides.len() < layers || (!p.is_gguf() && slides.len() > layers) {
        return Err(Error::Model(format!("kinds of {} of {layers} layers", slides.len())));
    }
    slides.truncate(layers);
    if let (false, Some(last)) = (p.is_gguf(), slides.last_mut()) {
        *last = false;
    }
    Ok(slides.into_iter().map(|s| if s { Span::Window(window) } else { Span::Context }).collect())
}

/// What layers have otherwise.
#[derive(Clone, Copy)]
struct Attention {
    head_dim: usize,
    kv_heads: usize,
    k_eq_v: bool,
}

impl Attention {
    fn spec(self, p: &Params<'_>, c: &Common, otherwise: &Otherwise<'_>, span: Span) -> Result<AttentionSpec> {
        let mut rope = rope(p, span == Span::Context, self.head_dim)?;
        if let (Span::Context, Some(f)) = (span, &otherwise.divisors) {
            rope.divisors = Some(checked_divisors(f.clone(), self.head_dim)?);
        }
        let c = Common { head_dim: self.head_dim, kv_heads: self.kv_heads, ..c.clone() };
        Ok(AttentionSpec {
            scale: 1.0,
            span,
            qk_norm: Some(QkNorm { over: NormOver::PerHead, after_rope: false }),
            v_norm: true,
            k_eq_v: self.k_eq_v,
            ..c.attention_with(Position::Rope(rope))
        })
    }
}

/// What a file says of single layers.
struct Otherwise<'p> {
    /// Heads of keys, one number a layer, in a GGUF.
    kv_heads: Vec<usize>,
    /// What a layer has otherwise, under its number, which may begin with zeros; in a config that has this section.
    config: Option<BTreeMap<usize, &'p Json>>,
    /// Divisors of the frequencies of layers that see everything, in a GGUF.
    divisors: Option<Arc<[f32]>>,
}

impl<'p> Otherwise<'p> {
    fn read(p: &Params<'p>) -> Result<Self> {
        let config = p.config("per_layer_config").and_then(|v| v.as_object());
        let config = config.map(|c| c.iter().filter_map(|(k, v)| Some((k.parse().ok()?, v))).collect());
        let kv_heads = p.list("attention.head_count_kv").unwrap_or_default();
        Ok(Otherwise { kv_heads, config, divisors: p.vector("rope_freqs.weight")?.map(Arc::from) })
    }
}

/// A layer with a window: in a GGUF, heads of keys have a number of their own a layer.
fn sliding(otherwise: &Otherwise<'_>, near: Attention, i: usize) -> Attention {
    Attention { kv_heads: otherwise.kv_heads.get(i).copied().unwrap_or(near.kv_heads), ..near }
}

/// A layer that sees everything.
fn global(p: &Params<'_>, c: &Common, otherwise: &Otherwise<'_>, i: usize) -> Result<Attention> {
    if p.is_gguf() {
        let kv_heads = otherwise.kv_heads.get(i).copied().unwrap_or(c.kv_heads);
        let k_eq_v = !p.has_tensor(&format!("blk.{i}.attn_v.weight"));
        return Ok(Attention { head_dim: p.usize("attention.key_length", "")?, kv_heads, k_eq_v });
    }
    let k_eq_v = p.bool("", "attention_k_eq_v")?;
    if let Some(own) = &otherwise.config {
        let entry = own.get(&i);
        let of = |key: &str, usual: usize| match entry.and_then(|e| e.get(key)) {
            Some(v) => {
                v.as_u64().map(|n| n as usize).ok_or_else(|| Error::Model(format!("per_layer_config.{i}.{key}")))
            }
            None => Ok(usual),
        };
        let (head_dim, kv_heads) = (of("head_dim", c.head_dim)?, of("num_key_value_heads", c.kv_heads)?);
        return Ok(Attention { head_dim, kv_heads, k_eq_v });
    }
    let kv_heads = p.opt_usize("", "num_global_key_value_heads")?.filter(|_| k_eq_v).unwrap_or(c.kv_heads);
    Ok(Attention { head_dim: p.usize("", "global_head_dim")?, kv_heads, k_eq_v })
}

/// The rotation of layers with a window or of those that see everything: in the latter only the first pairs of a head turn, at
/// the frequencies that they would have if all did. A GGUF has divisors of their frequencies, so large for the other pairs
/// that these stand still.
fn rope(p: &Params<'_>, global: bool, head_dim: usize) -> Result<RopeSpec> {
    let (kind, known, default) =
        if global { ("full_attention", "proportional", 1e6) } else { ("sliding_attention", "default", 10_000.0) };
    let path = |key: &str| format!("rope_parameters.{kind}.{key}");
    if let Some(s) = p.opt_str("", &path("rope_type"))?.filter(|s| s != known) {
        return Err(Error::Unsupported(format!("RoPE scaling `{s}` of {kind} in {}", p.arch)));
    }
    if p.opt_f32("", &path("factor"))?.is_some_and(|f| f != 1.0) {
        return Err(Error::Unsupported(format!("a factor on the positions of {kind} in {}", p.arch)));
    }
    let keys = if global {
        ("rope.freq_base", "rope.dimension_count")
    } else {
        ("rope.freq_base_swa", "rope.dimension_count_swa")
    };
    let base = p.opt_f32(keys.0, &path("rope_theta"))?.unwrap_or(default);
    if base <= 0.0 {
        return Err(Error::Model(format!("a rotary base of {base}")));
    }
    if head_dim == 0 || head_dim % 2 != 0 {
        return Err(Error::Model(format!("rotation of heads of {head_dim}")));
    }
    if let Some(n) = p.opt_usize(keys.1, "")?.filter(|n| *n != head_dim) {
        return Err(Error::Unsupported(format!("rotation of {n} of {head_dim} columns of a head in {}", p.arch)));
    }
    let mut rope = RopeSpec::plain(head_dim, head_dim, RopePairs::Halves, base);
    if global && !p.is_gguf() {
        let usual = if p.config("rope_parameters").is_some() { 1.0 } else { TURNING };
        let part = p.opt_f32("", &path("partial_rotary_factor"))?.unwrap_or(usual);
        rope.scaling = Scaling::Proportional((f64::from(part) * head_dim as f64 / 2.0).floor() as usize);
    }
    Ok(rope)
}

/// The attention of the first layer of one kind.
fn first(d: &Decoder, global: bool) -> Option<&AttentionSpec> {
    let usual = d.attention();
    d.layers.iter().filter_map(LayerSpec::attention).find(|a| (a.span == Span::Context) == global).or(usual)
}

fn rope_of(d: &Decoder, global: bool) -> Option<&RopeSpec> {
    if let Position::Rope(r) = &first(d, global)?.position { Some(r) } else { None }
}

/// A count of the layers of one kind.
macro_rules! of_kind {
    ($key:literal, $global:literal, $of:expr) => {
        keys::Key {
            name: $key,
            value: |d, _| {
                let of: fn(&AttentionSpec) -> usize = $of;
                first(d, $global).map_or(Ok(None), |a| keys::count($key, of(a)))
            },
        }
    };
}

/// Sizes of heads by the kind of layer, and what the released models with experts do not have.
const OWN_SIZES: &[keys::Key] = &[
    of_kind!("attention.key_length", true, |a| a.head_dim),
    of_kind!("attention.value_length", true, |a| a.head_dim),
    of_kind!("attention.key_length_swa", false, |a| a.head_dim),
    of_kind!("attention.value_length_swa", false, |a| a.head_dim),
    keys::Key {
        name: "attention.sliding_window",
        value: |d, _| {
            let spans = d.layers.iter().filter_map(LayerSpec::attention).map(|a| a.span);
            let window = spans.into_iter().find_map(|s| if let Span::Window(n) = s { Some(n) } else { None });
            keys::count("sliding_window", window.unwrap_or(d.context))
        },
    },
    of_kind!("attention.shared_kv_layers", true, |_| 0),
    of_kind!("embedding_length_per_layer_input", true, |_| 0),
    of_kind!("rope.dimension_count", true, |a| a.head_dim),
    of_kind!("rope.dimension_count_swa", false, |a| a.head_dim),
];

/// Which layers slide.
const PATTERN: keys::Key = keys::Key {
    name: "attention.sliding_window_pattern",
    value: |d, _| {
        let slides = |l: &LayerSpec| l.attention().is_some_and(|a| a.span != Span::Context);
        Ok(Some(Value::Array(Array::from_bool(&d.layers.iter().map(slides).collect::<Vec<bool>>()))))
    },
};

const HEADS: keys::Key = keys::Key {
    name: keys::HEAD_COUNT_KV.name,
    value: |d, _| Ok(Some(keys::per_layer(d, |l| l.attention().map_or(0, |a| a.kv_heads)))),
};

const BASE: keys::Key =
    keys::Key { name: "rope.freq_base", value: |d, _| Ok(rope_of(d, true).map(|r| Value::F32(r.base))) };

const BASE_SWA: keys::Key =
    keys::Key { name: "rope.freq_base_swa", value: |d, _| Ok(rope_of(d, false).map(|r| Value::F32(r.base))) };
