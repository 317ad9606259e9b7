//! Gemma 4's text model with experts (Google 2026): layers with a sliding window and layers that see the whole context, which
//! have other heads, another rotation, and no matrix of values (these are the keys before norm and rotation); norms of
//! queries, keys and values in each head, and no factor on their products; norms before and behind attention and feed-forward
//! networks; in each layer a dense network and, beside it, experts whose router has a norm of its own and whose weights have
//! a factor of each expert; a factor on each layer's result; bounded logits. The dense sibling (31B) is the same without
//! experts. Source: Hugging Face `modeling_gemma4`, `_compute_proportional_rope_parameters`; llama.cpp's `gemma4`.
//!
//! Deliberately absent: embeddings of each layer and keys shared between layers (the small models E2B and E4B, which have no
//! experts); they are refused by name.

use super::{
    Architecture, Decoder, FullLayers, Names, Params, QkNorm, blocks,
    decoder::{Moe, by_sum, router},
    llama,
    loader::Loader,
    rope,
};
use crate::{
    error::{Error, Result},
    ir::{Activation, Norm, Op, Rope, RopePairs, Router, Score, ValueId},
};

/// Gemma 4, text only.
pub static GEMMA4: Architecture = Architecture {
    title: "Gemma 4",
    gguf: Some("gemma4"),
    hf: Some("gemma4_text"),
    decoder,
    names: Names {
        layers: llama::LAYERS,
        stems: &[
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
        ],
    },
};

/// Hugging Face's pattern where a config has none: the last of every six layers sees everything, and so does the last of all.
const FULL_EVERY: usize = 6;

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    refuse(p)?;
    let head_dim = p.usize("attention.key_length_swa", "head_dim")?;
    let mut d = Decoder::with_head_dim(p, head_dim)?;
    d.windows = windows(p, d.layers)?;
    d.full = Some(full(p, &mut d)?);
    d.qk_norm = QkNorm::PerHead;
    (d.v_norm, d.norms_behind) = (true, true);
    d.act = Activation::GeluTanh;
    if let Some(act) = p.opt_str("", "hidden_activation")?.filter(|a| a != "gelu_pytorch_tanh") {
        return Err(Error::Unsupported(format!("activation `{act}` in {}", p.arch)));
    }
    d.multipliers.embedding = (d.hidden as f32).sqrt();
    d.multipliers.attention = Some(1.0);
    d.tied = p.is_gguf() || p.opt_bool("", "tie_word_embeddings")?.unwrap_or(true);
    d.softcap = p.opt_f32("final_logit_softcapping", "final_logit_softcapping")?.filter(|c| *c != 0.0);
    let has_experts = match p.is_gguf() {
        true => p.opt_usize("expert_count", "")?.is_some_and(|n| n > 0),
        false => p.opt_bool("", "enable_moe_block")?.unwrap_or(false),
    };
    if has_experts {
        let experts = p.usize("expert_count", "num_experts")?;
        let used = p.usize("expert_used_count", "top_k_experts")?;
        let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
        let family = Router { renormalise: by_sum(true), ..Router::new(experts, used, Score::Softmax) };
        let router = router(p, family)?;
        d.moe = Some(Moe { router, selection_bias: false, width, shared: None, dense_layers: vec![] });
    }
    Ok(d)
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

/// The window of each layer; `None` in those that see everything.
fn windows(p: &Params<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = p.usize("attention.sliding_window", "sliding_window")?;
    let short = |n: usize| Error::Model(format!("kinds of {n} of {layers} layers"));
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
    if slides.len() != layers {
        return Err(short(slides.len()));
    }
    if let (false, Some(last)) = (p.is_gguf(), slides.last_mut()) {
        *last = false;
    }
    Ok(slides.into_iter().map(|s| s.then_some(window)).collect())
}

/// The shape of layers that see everything; heads of keys in the others go into `d`.
fn full(p: &Params<'_>, d: &mut Decoder) -> Result<FullLayers> {
    let first = d.windows.iter().position(|w| w.is_none());
    if p.is_gguf() {
        let head_dim = p.usize("attention.key_length", "")?;
        let mut kv_heads = d.kv_heads;
        if let Some(list) = p.list("attention.head_count_kv") {
            let of = |sliding: bool| {
                let mut counts = (list.iter().zip(&d.windows)).filter(|(_, w)| w.is_some() == sliding).map(|(n, _)| *n);
                let one = counts.next().unwrap_or(0);
                if counts.all(|n| n == one) { Ok(one) } else { Err(Error::Model(format!("heads of keys {list:?}"))) }
            };
            let (sliding, whole) = (of(true)?, of(false)?);
            d.kv_heads = if sliding > 0 { sliding } else { whole };
            kv_heads = if whole > 0 { whole } else { sliding };
        }
        let name = first.map(|i| format!("blk.{i}.attn_v.weight"));
        let keys_are_values = name.is_some_and(|name| !p.any_tensor(|n| n == name));
        return Ok(FullLayers { head_dim, kv_heads, keys_are_values });
    }
    let keys_are_values = p.opt_bool("", "attention_k_eq_v")?.unwrap_or(false);
    // Newer configs have what a layer has otherwise under its number.
    let of_layer = |key: &str| p.opt_usize("", &format!("per_layer_config.{}.{key}", first.unwrap_or(0)));
    let head_dim = match p.opt_usize("", "global_head_dim")? {
        Some(n) => n,
        None => of_layer("head_dim")?.unwrap_or(512),
    };
    let own = match p.opt_usize("", "num_global_key_value_heads")? {
        Some(n) => Some(n),
        None => of_layer("num_key_value_heads")?,
    };
    let kv_heads = own.filter(|_| keys_are_values).unwrap_or(d.kv_heads);
    Ok(FullLayers { head_dim, kv_heads, keys_are_values })
}

/// The bases of the frequencies of layers with a window and of the others.
///
/// # Errors
/// [`Error::Model`] where one is not positive, [`Error::Unsupported`] for a scaling that is not known here.
pub(super) fn bases(p: &Params<'_>) -> Result<[f32; 2]> {
    let of = |gguf: &str, kind: &str, known: &str, default: f32| {
        let scaling = p.opt_str("", &format!("rope_parameters.{kind}.rope_type"))?;
        if let Some(s) = scaling.filter(|s| s != known) {
            return Err(Error::Unsupported(format!("RoPE scaling `{s}` of {kind} in {}", p.arch)));
        }
        if p.opt_f32("", &format!("rope_parameters.{kind}.factor"))?.is_some_and(|f| f != 1.0) {
            return Err(Error::Unsupported(format!("a factor on the positions of {kind} in {}", p.arch)));
        }
        let base = p.opt_f32(gguf, &format!("rope_parameters.{kind}.rope_theta"))?.unwrap_or(default);
        if base > 0.0 { Ok(base) } else { Err(Error::Model(format!("a rotary base of {base}"))) }
    };
    Ok([
        of("rope.freq_base_swa", "sliding_attention", "default", 10_000.0)?,
        of("rope.freq_base", "full_attention", "proportional", 1_000_000.0)?,
    ])
}

/// The rotations of layers with a window and of the others: in the latter only the first pairs of a head turn, at the
/// frequencies that they would have if all did. In a GGUF, `factors` are the divisors of their frequencies, so large for the
/// other pairs that these stand still.
///
/// # Errors
/// As [`bases`], and [`Error::Model`] for impossible sizes.
pub(super) fn rotations(
    d: &Decoder,
    full: &FullLayers,
    p: &Params<'_>,
    factors: Option<&[f32]>,
    bf16: bool,
) -> Result<[Rope; 2]> {
    let [near, far] = bases(p)?;
    if d.head_dim % 2 != 0 || full.head_dim % 2 != 0 {
        return Err(Error::Model(format!("rotation of heads of {} and {}", d.head_dim, full.head_dim)));
    }
    for (key, dims) in [("rope.dimension_count_swa", d.head_dim), ("rope.dimension_count", full.head_dim)] {
        if let Some(n) = p.opt_usize(key, "")?.filter(|n| *n != dims) {
            return Err(Error::Unsupported(format!("rotation of {n} of {dims} columns of a head in {}", p.arch)));
        }
    }
    let mut frequencies = rope::plain(far, full.head_dim);
    match factors {
        Some(f) if f.len() != frequencies.len() || f.iter().any(|f| !f.is_finite() || *f <= 0.0) => {
            return Err(Error::Model(format!("rope_freqs.weight has {} factors for {}", f.len(), full.head_dim)));
        }
        Some(f) => frequencies.iter_mut().zip(f).for_each(|(x, f)| *x /= f),
        None if p.is_gguf() => {}
        None => {
            let part = p.opt_f32("", "rope_parameters.full_attention.partial_rotary_factor")?.unwrap_or(1.0);
            let turning = (f64::from(part) * full.head_dim as f64 / 2.0).floor() as usize;
            frequencies.iter_mut().skip(turning).for_each(|f| *f = 0.0);
        }
    }
    let rope = |head_dim: usize, mut inv_freq: Vec<f32>| {
        if bf16 {
            inv_freq.iter_mut().for_each(|f| *f = half::bf16::from_f32(*f).to_f32());
        }
        let (pairs, inv_freq) = (RopePairs::Halves, inv_freq.into());
        Rope { head_dim, dims: head_dim, pairs, inv_freq, scale: 1.0, long: None, temperature: None }
    };
    Ok([rope(d.head_dim, rope::plain(near, d.head_dim)), rope(full.head_dim, frequencies)])
}

/// The factor that the router's norm has beside its weights.
pub(super) fn router_factor(hidden: usize) -> f32 {
    (hidden as f32).sqrt().recip()
}

/// x + norm(dense(normed)) in layers without experts, x + norm(norm(dense(normed)) + norm(experts(norm(x)))) in others, times
/// the layer's factor; also the chosen experts' ids and weights.
pub(super) fn feed_forward(
    d: &Decoder,
    l: &mut Loader<'_>,
    i: usize,
    x: ValueId,
    normed: ValueId,
) -> Result<(ValueId, Option<[ValueId; 2]>)> {
    let at = |s: &str| format!("blk.{i}.{s}.weight");
    let mut y = blocks::ffn(d, l, &format!("blk.{i}.ffn_"), ".weight", d.ffn, normed)?; // [T, H]
    let mut chosen = None;
    if let Some(m) = d.is_moe(i) {
        let dense = blocks::norm(d, l, &at("post_ffw_norm_1"), d.hidden, y)?;
        let factor = router_factor(d.hidden);
        let weight = l.vector_of(&format!("blk.{i}.ffn_gate_inp.scale"), d.hidden, |w| w * factor)?;
        let scored = l.b.one(Op::RmsNorm(Norm::rms(weight, d.eps)), &[x])?; // [T, H]
        let stem = format!("blk.{i}.ffn_gate_inp");
        let logits = blocks::router_linear(l, &stem, [m.router.experts, d.hidden], scored)?; // [T, E]
        let input = blocks::norm(d, l, &at("pre_ffw_norm_2"), d.hidden, x)?; // [T, H]
        let (routed, ids_weights) = blocks::routed(d, m, l, i, logits, input)?; // [T, H]
        let routed = blocks::norm(d, l, &at("post_ffw_norm_2"), d.hidden, routed)?;
        y = l.b.one(Op::Add, &[dense, routed])?;
        chosen = Some(ids_weights);
    }
    let y = blocks::norm(d, l, &at("post_ffw_norm"), d.hidden, y)?;
    let x = blocks::add(d, l, x, y)?;
    // The factor on what the layer gives on, one number.
    match l.numbers(&at("layer_output_scale"))?.as_deref() {
        None | Some([1.0]) => Ok((x, chosen)),
        Some([f]) if f.is_finite() => Ok((l.b.one(Op::Scale(*f), &[x])?, chosen)),
        Some(other) => Err(Error::Model(format!("{} numbers as the factor of layer {i}", other.len()))),
    }
}
