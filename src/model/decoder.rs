//! The decoder that all architectures here are: its sizes and switches. The graph that follows from them is in
//! [`super::blocks`].

use super::{ExpertLayout, Params, mla::Latent, recurrent::Mixer};
use crate::{
    error::{Error, Result},
    ir::{Activation, NormKind, Renormalise, RopePairs, Router, Score, Temperature},
};

/// Normalisation of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself, one weight of `head_dim` for all.
    PerHead,
    /// The whole projection.
    WholeRow,
    /// Each head by itself, without weights; only in layers that rotate.
    Unweighted,
}

/// Whether projections have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// Always.
    Yes,
    /// Where the file has them.
    IfPresent,
}

/// A shared expert: a dense unit beside the routed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Its width.
    pub width: usize,
    /// Whether a sigmoid gate scales it.
    pub gated: bool,
}

/// The Mixture-of-Experts part of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// The selection; the weight of its selection bias is found while the graph is built.
    pub router: Router,
    /// Whether there is a selection bias.
    pub selection_bias: bool,
    /// Width of an expert, I.
    pub width: usize,
    /// A shared expert.
    pub shared: Option<Shared>,
    /// Layers that are dense all the same.
    pub dense_layers: Vec<usize>,
}

/// Factors that some families put between the parts of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    /// On the embedding.
    pub embedding: f32,
    /// On the attention's dot products; `1/sqrt(head_dim)` where not given.
    pub attention: Option<f32>,
    /// On what attention and feed-forward network add to the residual.
    pub residual: f32,
    /// On the logits.
    pub logits: f32,
}

impl Default for Multipliers {
    fn default() -> Self {
        Multipliers { embedding: 1.0, attention: None, residual: 1.0, logits: 1.0 }
    }
}

/// Sizes and switches of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoder {
    /// Transformer layers.
    pub layers: usize,
    /// Hidden size, H.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Head dimension, D.
    pub head_dim: usize,
    /// Width of a dense feed-forward network.
    pub ffn: usize,
    /// Vocabulary, V; 0 where only the embedding table says it.
    pub vocab: usize,
    /// Context length that the model was trained for.
    pub context: usize,
    /// Kind of every norm.
    pub norm: NormKind,
    /// Epsilon of every norm.
    pub eps: f32,
    /// Which columns rotate together.
    pub pairs: RopePairs,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
    /// Biases of the attention's projections.
    pub qkv_bias: Bias,
    /// Activation of the feed-forward networks.
    pub act: Activation,
    /// Whether queries and keys are normalised after the rotation instead of before.
    pub qk_norm_last: bool,
    /// Sliding window of each layer; empty: none anywhere.
    pub windows: Vec<Option<usize>>,
    /// Whether windows do not slide: positions are in chunks of that many, and a query sees those of its own.
    pub chunked: bool,
    /// Layers without rotation.
    pub unrotated: Vec<usize>,
    /// How queries of layers without rotation grow with their position.
    pub temperature: Option<Temperature>,
    /// Whether the routers' weights are for what goes into the experts instead of what comes out.
    pub weigh_inputs: bool,
    /// Experts; `None` for a dense model.
    pub moe: Option<Moe>,
    /// What mixes tokens in each layer; empty: attention everywhere.
    pub mixers: Vec<Mixer>,
    /// Whether the attention's output is scaled by a sigmoid gate, whose rows lie behind each head's in the query matrix.
    pub gated_attention: bool,
    /// Added to the stored weights of norms: 1 where a checkpoint stores differences from 1.
    pub norm_offset: f32,
    /// The name of the norm before the feed-forward network.
    pub ffn_norm: &'static str,
    /// The name of the last norm.
    pub output_norm: &'static str,
    /// Whether a missing output matrix means that the embedding serves for it.
    pub tied: bool,
    /// Factors between the parts.
    pub multipliers: Multipliers,
    /// Whether each head of the attention has a sink.
    pub sinks: bool,
    /// How a Hugging Face file stores the experts.
    pub expert_layout: ExpertLayout,
    /// Latent attention, where the model has it instead of the usual one.
    pub latent: Option<Latent>,
    /// Whether feed-forward units have a gate: `down(act(gate x) · up x)`, else `down(act(gate x))`.
    pub gated: bool,
    /// How many shared experts there are in a layer, summed.
    pub shared_experts: usize,
    /// Width and activation of a hidden layer in the routers.
    pub router_hidden: Option<(usize, Activation)>,
    /// What layers without a window have otherwise than the others.
    pub full: Option<FullLayers>,
    /// Whether each head of the values is normalised, without weights.
    pub v_norm: bool,
    /// Whether there are norms behind attention and feed-forward networks too, the latter as Gemma 4 has them
    /// (`gemma4`).
    pub norms_behind: bool,
    /// Bound of the logits, c: `c · tanh(logits / c)`.
    pub softcap: Option<f32>,
}

/// The shape of the attention in layers that see the whole context, where others have a window and another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullLayers {
    /// Head dimension.
    pub head_dim: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Whether there is no projection of values: they are what the keys are before their norm and rotation.
    pub keys_are_values: bool,
}

impl Decoder {
    /// Reads what most architectures call by the same names.
    ///
    /// # Errors
    /// [`Error::Model`] for missing or impossible values, [`Error::Unsupported`] for a switch that is not known here.
    pub fn common(p: &Params<'_>) -> Result<Decoder> {
        let hidden = p.usize("embedding_length", "hidden_size")?;
        let heads = p.usize("attention.head_count", "num_attention_heads")?;
        let head_dim = p.opt_usize("attention.key_length", "head_dim")?.unwrap_or(hidden / heads);
        if p.opt_usize("attention.value_length", "v_head_dim")?.is_some_and(|v| v != head_dim) {
            return Err(Error::Unsupported(format!("values of another length than keys in {}", p.arch)));
        }
        Decoder::with_head_dim(p, head_dim)
    }

    /// The same with another head dimension than the usual keys say.
    ///
    /// # Errors
    /// As [`Decoder::common`].
    pub(super) fn with_head_dim(p: &Params<'_>, head_dim: usize) -> Result<Decoder> {
        let hidden = p.usize("embedding_length", "hidden_size")?;
        let heads = p.usize("attention.head_count", "num_attention_heads")?;
        let layers = p.usize("block_count", "num_hidden_layers")?;
        // One number a layer, where some layers have no attention: those that do have as many as the others.
        let kv_heads = match p.list("attention.head_count_kv") {
            Some(list) => {
                list.iter().copied().filter(|n| *n > 0).reduce(|a, b| if a == b { a } else { 0 }).unwrap_or(0)
            }
            None => p.opt_usize("attention.head_count_kv", "num_key_value_heads")?.unwrap_or(heads),
        };
        let eps = match p.opt_f32("attention.layer_norm_rms_epsilon", "rms_norm_eps")? {
            Some(eps) => eps,
            None => p.f32("attention.layer_norm_rms_epsilon", "norm_eps")?,
        };
        Ok(Decoder {
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            ffn: p.opt_usize("feed_forward_length", "intermediate_size")?.unwrap_or(0),
            vocab: p.opt_usize("vocab_size", "vocab_size")?.unwrap_or(0),
            context: p.usize("context_length", "max_position_embeddings")?,
            eps,
            norm: NormKind::Rms,
            pairs: RopePairs::Halves,
            qk_norm: QkNorm::None,
            qk_norm_last: false,
            chunked: false,
            unrotated: vec![],
            temperature: None,
            weigh_inputs: false,
            qkv_bias: Bias::IfPresent,
            act: activation(p)?,
            windows: windows(p, layers)?,
            mixers: vec![],
            gated_attention: false,
            norm_offset: 0.0,
            ffn_norm: "ffn_norm",
            output_norm: "output_norm",
            moe: None,
            // A GGUF without an output matrix is tied; a Hugging Face config says so.
            tied: p.is_gguf() || p.opt_bool("", "tie_word_embeddings")?.unwrap_or(false),
            multipliers: Multipliers::default(),
            sinks: false,
            expert_layout: ExpertLayout::Rows,
            latent: None,
            gated: true,
            shared_experts: 1,
            router_hidden: None,
            full: None,
            v_norm: false,
            norms_behind: false,
            softcap: None,
        })
    }

    /// Refuses sizes that contradict each other.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Model(what));
        for kv_heads in [self.kv_heads, self.full.map_or(self.kv_heads, |f| f.kv_heads)] {
            if kv_heads == 0 || self.heads % kv_heads != 0 {
                return bad(format!("{} query heads on {kv_heads} heads of keys", self.heads));
            }
        }
        if self.softcap.is_some_and(|c| !c.is_finite() || c <= 0.0) {
            return bad(format!("logits bounded by {:?}", self.softcap));
        }
        if !self.eps.is_finite() || self.eps < 0.0 {
            return bad(format!("an epsilon of {} in the norms", self.eps));
        }
        let m = self.multipliers;
        if ![m.embedding, m.residual, m.logits, m.attention.unwrap_or(1.0)].iter().all(|f| f.is_finite() && *f != 0.0) {
            return bad(format!("{m:?}"));
        }
        if self.head_dim == 0 || self.full.is_some_and(|f| f.head_dim == 0) || self.layers > 4096 {
            return bad(format!("{} layers with heads of {}", self.layers, self.head_dim));
        }
        if let Some(m) = &self.moe
            && (m.router.used == 0 || m.router.used > m.router.experts || m.width == 0)
        {
            return bad(format!("top {} of {} experts of width {}", m.router.used, m.router.experts, m.width));
        }
        Ok(())
    }

    /// Does not count the layers that predict further tokens, as a GGUF does.
    ///
    /// # Errors
    /// [`Error::Model`] where there would be no other layers.
    pub(super) fn without_predictors(&mut self, p: &Params<'_>) -> Result<()> {
        let n = p.opt_usize("nextn_predict_layers", "")?.unwrap_or(0);
        let others = self.layers.checked_sub(n).filter(|l| *l > 0);
        self.layers = others.ok_or_else(|| Error::Model(format!("{n} of {} layers predict further", self.layers)))?;
        Ok(())
    }

    /// GGUF has no key for dense layers between layers with experts: further layers are dense where the file has no router
    /// for them but the matrices of a dense network.
    pub(super) fn find_dense_layers(&mut self, has: impl Fn(&str) -> bool) {
        let Some(moe) = &mut self.moe else { return };
        let dense =
            |i: &usize| !has(&format!("blk.{i}.ffn_gate_inp.weight")) && has(&format!("blk.{i}.ffn_gate.weight"));
        let found = (0..self.layers).filter(dense);
        moe.dense_layers.extend(found);
    }

    pub(super) fn is_moe(&self, layer: usize) -> Option<&Moe> {
        self.moe.as_ref().filter(|m| !m.dense_layers.contains(&layer))
    }

    pub(super) fn mixer(&self, layer: usize) -> Mixer {
        self.mixers.get(layer).copied().unwrap_or(Mixer::Attention)
    }

    /// What a layer has otherwise because it sees the whole context.
    pub(super) fn full(&self, layer: usize) -> Option<FullLayers> {
        self.full.filter(|_| self.window(layer).is_none())
    }

    /// Head dimension, and heads of keys and values, of a layer.
    pub(super) fn head_shape(&self, layer: usize) -> [usize; 2] {
        self.full(layer).map_or([self.head_dim, self.kv_heads], |f| [f.head_dim, f.kv_heads])
    }

    pub(super) fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().flatten()
    }
}

/// A family's router with what a GGUF may say about it: a scoring function, a factor on the weights and groups override
/// the family's.
///
/// # Errors
/// [`Error::Unsupported`] for a scoring function that is not known here, or for groups in a family that has none;
/// [`Error::Model`] for impossible counts.
pub(super) fn router(p: &Params<'_>, family: Router) -> Result<Router> {
    let mut r = family;
    r.score = scoring(p)?.unwrap_or(r.score);
    if r.experts > 4096 {
        return Err(Error::Model(format!("{} experts", r.experts)));
    }
    if r.groups.is_none() && p.opt_usize("expert_group_count", "")?.is_some_and(|n| n > 1) {
        return Err(Error::Unsupported(format!("groups of experts in {}", p.arch)));
    }
    if let Some(scale) = p.opt_f32("expert_weights_scale", "")?.filter(|s| *s != 0.0) {
        r.scale = scale;
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

fn activation(p: &Params<'_>) -> Result<Activation> {
    match p.opt_str("", "hidden_act")?.as_deref() {
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some(other) => Err(Error::Unsupported(format!("activation `{other}` in {}", p.arch))),
    }
}

/// Sliding windows by layer: from `layer_types`, or on all layers where the config has a window and does not switch it off.
fn windows(p: &Params<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
    let Some(window) = p.opt_usize("attention.sliding_window", "sliding_window")?.filter(|w| *w > 0) else {
        return Ok(vec![]);
    };
    if p.opt_bool("", "use_sliding_window")? == Some(false) {
        return Ok(vec![]);
    }
    match p.config("layer_types").and_then(|v| v.as_array()) {
        Some(types) => {
            let sliding = |i: usize| types.get(i).and_then(|t| t.as_str()) == Some("sliding_attention");
            Ok((0..layers).map(|i| sliding(i).then_some(window)).collect())
        }
        None => Ok(vec![Some(window); layers]),
    }
}
