//! What most families call by the same names, read once; and the layers that are made of it.

use super::{
    decoder::{AttentionSpec, Bias, Decoder, Ffn, Glu, LayerSpec, Mixer, Moe, Multipliers, NormSpec, Position, Span},
    params::Params,
    rope_params,
};
use crate::{
    error::{Error, Result},
    ir::{Activation, GroupScore, Groups, NormKind, Renormalise, RopePairs, Router, Score},
};

/// Sizes that most families have.
#[derive(Clone, Debug)]
pub(super) struct Common {
    /// Transformer layers, without those that predict further tokens.
    pub layers: usize,
    /// Hidden size, in columns.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Width of a dense feed-forward network; 0 where the file does not say.
    pub ffn: usize,
    /// Vocabulary, in tokens; 0 where only the embedding table says it.
    pub vocab: usize,
    /// Context that the model was trained for, in tokens.
    pub context: usize,
    /// What the norms share.
    pub norm: NormSpec,
    /// Activation of the feed-forward networks.
    pub act: Activation,
    /// Whether a missing output matrix means that the embedding serves for it.
    pub tied: bool,
}

/// No model has more layers; what is made for each of them stays small until the tensors are looked for.
const MOST_LAYERS: usize = 4096;

/// No layer has more experts.
const MOST_EXPERTS: usize = 4096;

impl Common {
    /// Reads them.
    ///
    /// # Errors
    /// [`Error::Model`] for missing or impossible values, [`Error::Unsupported`] for a switch that is not known here.
    pub fn read(p: &Params<'_>) -> Result<Common> {
        let hidden = p.usize("embedding_length", "hidden_size")?;
        let heads = p.usize("attention.head_count", "num_attention_heads")?;
        let head_dim = p.opt_usize("attention.key_length", "head_dim")?.unwrap_or(hidden / heads);
        if p.opt_usize("attention.value_length", "")?.is_some_and(|v| v != head_dim) {
            return Err(Error::Unsupported(format!("values of another length than keys in {}", p.arch)));
        }
        Common::with_head_dim(p, head_dim)
    }

    /// The same with another head dimension than the usual keys say.
    ///
    /// # Errors
    /// As [`Common::read`].
    pub fn with_head_dim(p: &Params<'_>, head_dim: usize) -> Result<Common> {
        let heads = p.usize("attention.head_count", "num_attention_heads")?;
        let eps = p.f32("attention.layer_norm_rms_epsilon", "rms_norm_eps")?;
        Ok(Common {
            layers: layer_count(p, "num_hidden_layers")?,
            hidden: p.usize("embedding_length", "hidden_size")?,
            heads,
            kv_heads: kv_heads(p, heads)?,
            head_dim,
            ffn: p.opt_usize("feed_forward_length", "intermediate_size")?.unwrap_or(0),
            vocab: vocab(p)?,
            context: p.context()?,
            norm: NormSpec { kind: NormKind::Rms, eps, offset: 0.0 },
            act: activation(p)?,
            tied: p.tied()?,
        })
    }

    /// Which columns rotate together where Hugging Face's files rotate by halves.
    pub fn pairs(p: &Params<'_>) -> RopePairs {
        if p.is_gguf() { p.form().pairs() } else { RopePairs::Halves }
    }

    /// Attention over the whole context with a rotation and nothing else.
    ///
    /// # Errors
    /// As [`rope_params::rope`].
    pub fn attention(&self, p: &Params<'_>, pairs: RopePairs) -> Result<AttentionSpec> {
        Ok(self.attention_with(Position::Rope(rope_params::rope(p, self.head_dim, pairs)?)))
    }

    /// The same with this rotation.
    pub fn attention_with(&self, position: Position) -> AttentionSpec {
        AttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            span: Span::Context,
            position,
            qk_norm: None,
            v_norm: false,
            k_eq_v: false,
            gated: false,
            sinks: false,
            bias: Bias::IfPresent,
        }
    }

    /// What each layer's attention sees: a sliding window where the family has one and nothing switches it off, in the layers
    /// that `layer_types` names, or else in those that `slides` says.
    ///
    /// # Errors
    /// [`Error::Model`] for a list of another length.
    pub fn spans(&self, p: &Params<'_>, slides: impl Fn(usize) -> bool) -> Result<Vec<Span>> {
        let window = p.opt_length("attention.sliding_window", "sliding_window")?.filter(|w| *w > 0);
        let off = p.opt_bool("", "use_sliding_window")? == Some(false);
        let Some(window) = window.filter(|_| !off) else { return Ok(vec![Span::Context; self.layers]) };
        let slides: Vec<bool> = match p.config("layer_types").and_then(|v| v.as_array()) {
            Some(types) => types.iter().map(|t| t.as_str() == Some("sliding_attention")).collect(),
            None => (0..self.layers).map(slides).collect(),
        };
        if slides.len() < self.layers {
            return Err(Error::Model(format!("layer_types has {} of {} layers", slides.len(), self.layers)));
        }
        Ok(slides.into_iter().take(self.layers).map(|s| if s { Span::Window(window) } else { Span::Context }).collect())
    }

    /// A feed-forward unit of this width.
    pub fn glu(&self, width: usize) -> Glu {
        Glu { width, act: self.act, gated: true }
    }

    /// A dense network, as wide as the family's key says.
    pub fn dense(&self) -> Ffn {
        Ffn::Dense(self.glu(self.ffn))
    }

    /// The feed-forward part of layer i: dense where the family says so. GGUF has no key for dense layers between layers with
    /// experts: there, layers without a router but with the matrices of a dense network are dense, too.
    pub fn ffn(&self, p: &Params<'_>, i: usize, dense: bool, m: &Moe) -> Ffn {
        let has = |stem: &str| p.has_tensor(&format!("blk.{i}.{stem}.weight"));
        let by_tensors = p.is_gguf() && !has("ffn_gate_inp") && has("ffn_gate");
        if dense || by_tensors { self.dense() } else { Ffn::Moe(m.clone()) }
    }

    /// Layers of attention with `spans` and a feed-forward part each.
    pub fn layers(&self, a: &AttentionSpec, spans: &[Span], ffn: impl Fn(usize) -> Ffn) -> Vec<LayerSpec> {
        let mixer = |span: &Span| Mixer::Attention(AttentionSpec { span: *span, ..a.clone() });
        let layer = |(i, span)| LayerSpec { mixer: mixer(span), ffn: ffn(i), norms: Default::default() };
        spans.iter().enumerate().map(layer).collect()
    }

    /// A decoder of these layers.
    pub fn decoder(self, layers: Vec<LayerSpec>) -> Decoder {
        Decoder {
            hidden: self.hidden,
            vocab: self.vocab,
            context: self.context,
            ffn: self.ffn,
            norm: self.norm,
            output_norm: "output_norm",
            tied: self.tied,
            multipliers: Multipliers::default(),
            softcap: None,
            layers,
        }
    }
}

/// How many layers there are; `hf` is the config's key. A GGUF counts those that predict further tokens, which come last and are
/// left out.
///
/// # Errors
/// [`Error::Model`] for an impossible number.
pub(super) fn layer_count(p: &Params<'_>, hf: &str) -> Result<usize> {
    let all = p.usize("block_count", hf)?;
    // Every layer has a tensor of its own at least.
    if all > MOST_LAYERS || all > p.tensors() {
        let key = if p.is_gguf() { "block_count" } else { hf };
        let why = if all > MOST_LAYERS {
            "no model has so many layers".into()
        } else {
            format!("the file has {} tensors", p.tensors())
        };
        return Err(Error::Model(format!("{key} is {all}: {why}")));
    }
    let predictors = p.opt_usize("nextn_predict_layers", "")?.unwrap_or(0);
    let others = all.checked_sub(predictors).filter(|l| *l > 0);
    others.ok_or_else(|| Error::Model(format!("{predictors} of {all} layers predict further")))
}

/// Tokens. In a GGUF the embedding table says it, whatever the key of that name does (llama.cpp goes by the list of tokens).
fn vocab(p: &Params<'_>) -> Result<usize> {
    match p.rows_of("token_embd.weight") {
        Some(rows) if p.is_gguf() => Ok(rows),
        _ if p.is_gguf() => Ok(0),
        _ => Ok(p.opt_usize("", "vocab_size")?.unwrap_or(0)),
    }
}

/// Heads of keys: one number, or one a layer where some layers have no attention; those that do have as many as the others.
fn kv_heads(p: &Params<'_>, heads: usize) -> Result<usize> {
    if let Some(list) = p.list("attention.head_count_kv") {
        return Ok(list.iter().copied().filter(|n| *n > 0).reduce(|a, b| if a == b { a } else { 0 }).unwrap_or(0));
    }
    Ok(p.opt_usize("attention.head_count_kv", "num_key_value_heads")?.unwrap_or(heads))
}

/// The activation that a config names.
fn activation(p: &Params<'_>) -> Result<Activation> {
    match p.opt_str("", "hidden_act")?.as_deref() {
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some(other) => Err(Error::Unsupported(format!("activation `{other}` in {}", p.arch))),
    }
}

/// How many experts there are and how many a token takes; `[0]` and `[1]` name the keys as the family's config has them.
///
/// # Errors
/// [`Error::Model`] that names the missing key.
pub(super) fn experts(p: &Params<'_>, [all, used]: [&str; 2]) -> Result<[usize; 2]> {
    Ok([p.usize("expert_count", all)?, p.usize("expert_used_count", used)?])
}

/// Keys of this program's own, behind `<arch>.` in GGUF and as they are in `config.json`: the groups of neighbouring experts over which
/// there is a router, and how many of them a token uses. The router's matrix then has a row for each group behind those of the experts.
pub(super) const GROUP_ROUTER_COUNT: &str = "group_router_count";
pub(super) const GROUP_ROUTER_USED_COUNT: &str = "group_router_used_count";

/// A family's router with what a GGUF may say about it: a scoring function, a factor on the weights and groups override
/// the family's.
///
/// # Errors
/// [`Error::Unsupported`] for a scoring function that is not known here, or for groups in a family that has none;
/// [`Error::Model`] for impossible counts.
pub(super) fn router(p: &Params<'_>, family: Router) -> Result<Router> {
    let mut r = family;
    r.score = scoring(p)?.unwrap_or(r.score);
    if r.experts > MOST_EXPERTS {
        return Err(Error::Model(format!("{} experts", r.experts)));
    }
    if r.groups.is_none() && p.opt_usize("expert_group_count", "")?.is_some_and(|n| n > 1) {
        return Err(Error::Unsupported(format!("groups of experts in {}", p.arch)));
    }
    if let Some(scale) = p.opt_f32("expert_weights_scale", "")?.filter(|s| *s != 0.0) {
        r.scale = scale;
    }
    if let Some(count) = p.opt_usize(GROUP_ROUTER_COUNT, GROUP_ROUTER_COUNT)? {
        let used = p.opt_usize(GROUP_ROUTER_USED_COUNT, GROUP_ROUTER_USED_COUNT)?.unwrap_or(1);
        if !r.sums_to_one() || r.groups.is_some() {
            return Err(Error::Unsupported(format!("a router over groups before one of the kind `{}`", r.variant())));
        }
        let groups = Some(Groups { count, used, score: GroupScore::Own });
        r = Router { groups, ..Router::new(r.experts, r.used, Score::SoftmaxOfSelected) };
    }
    r.check().map_err(Error::Model)?;
    Ok(r)
}

/// The scoring function that a GGUF names (llama.cpp's `expert_gating_func`); `None` where it names none.
///
/// # Errors
/// [`Error::Unsupported`] for one that is not known here.
pub(super) fn scoring(p: &Params<'_>) -> Result<Option<Score>> {
    Ok(match p.opt_usize("expert_gating_func", "")? {
        None | Some(0) => None,
        Some(1) => Some(Score::Softmax),
        Some(2) => Some(Score::Sigmoid),
        Some(3) => Some(Score::SoftmaxOfSelected),
        Some(4) => Some(Score::SqrtSoftplus),
        Some(n) => return Err(Error::Unsupported(format!("router scoring function {n} in {}", p.arch))),
    })
}

/// Division by the sum of the chosen weights, or none.
pub(super) fn by_sum(yes: bool) -> Renormalise {
    if yes { Renormalise::Sum } else { Renormalise::No }
}
