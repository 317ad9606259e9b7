//! The decoder that all architectures here are: sizes and switches, and the graph that follows from them.

use super::{Options, Params, loader::Loader, rope};
use crate::{
    error::{Error, Result},
    file::Tensor,
    ir::{
        Activation, Attention, CacheDecl, Graph, Linear, Norm, Op, Renormalise, Rope, RopePairs, Router, Score, ValueId,
    },
};

/// Normalisation of queries and keys before rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself, one weight of `head_dim` for all.
    PerHead,
    /// The whole projection.
    WholeRow,
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
    /// Sliding window of each layer; empty: none anywhere.
    pub windows: Vec<Option<usize>>,
    /// Experts; `None` for a dense model.
    pub moe: Option<Moe>,
    /// Whether a missing output matrix means that the embedding serves for it.
    pub tied: bool,
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
        let layers = p.usize("block_count", "num_hidden_layers")?;
        Ok(Decoder {
            layers,
            hidden,
            heads,
            kv_heads: p.opt_usize("attention.head_count_kv", "num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            ffn: p.opt_usize("feed_forward_length", "intermediate_size")?.unwrap_or(0),
            vocab: p.opt_usize("vocab_size", "vocab_size")?.unwrap_or(0),
            context: p.usize("context_length", "max_position_embeddings")?,
            eps: p.f32("attention.layer_norm_rms_epsilon", "rms_norm_eps")?,
            pairs: RopePairs::Halves,
            qk_norm: QkNorm::None,
            qkv_bias: Bias::IfPresent,
            act: activation(p)?,
            windows: windows(p, layers)?,
            moe: None,
            // A GGUF without an output matrix is tied; a Hugging Face config says so.
            tied: p.is_gguf() || p.opt_bool("", "tie_word_embeddings")?.unwrap_or(false),
        })
    }

    /// Refuses sizes that contradict each other.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Model(what));
        if self.kv_heads == 0 || self.heads % self.kv_heads != 0 {
            return bad(format!("{} query heads on {} heads of keys", self.heads, self.kv_heads));
        }
        if !self.eps.is_finite() || self.eps < 0.0 {
            return bad(format!("an epsilon of {} in the norms", self.eps));
        }
        if self.head_dim == 0 || self.layers > 4096 {
            return bad(format!("{} layers with heads of {}", self.layers, self.head_dim));
        }
        if let Some(m) = &self.moe
            && (m.router.used == 0 || m.router.used > m.router.experts || m.width == 0)
        {
            return bad(format!("top {} of {} experts of width {}", m.router.used, m.router.experts, m.width));
        }
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

    fn is_moe(&self, layer: usize) -> Option<&Moe> {
        self.moe.as_ref().filter(|m| !m.dense_layers.contains(&layer))
    }

    fn window(&self, layer: usize) -> Option<usize> {
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

/// Builds the graph, declaring every weight on the way.
pub(super) fn graph(d: &Decoder, p: &Params<'_>, mut l: Loader<'_>, options: &Options) -> Result<(Graph, Vec<Tensor>)> {
    let factors = l.numbers("rope_freqs.weight")?;
    let rope = rope::rope(p, d.head_dim, d.pairs, factors.as_deref(), options.bf16_rope)?;
    let table = l.table("token_embd.weight", d.vocab, d.hidden)?;
    let vocab = l.b.graph().weight(table).shape[0];
    let ids = l.b.one(Op::Tokens, &[])?;
    let mut x = l.b.one(Op::Embed { table, scale: 1.0 }, &[ids])?; // [T, H]
    let mut traces = vec![];
    for i in 0..d.layers {
        l.b.set_layer(Some(i as u32));
        x = attention(d, &rope, &mut l, i, x)?;
        let normed = norm(d, &mut l, &format!("blk.{i}.ffn_norm.weight"), d.hidden, x)?;
        x = match d.is_moe(i) {
            Some(m) => {
                let (x, ids, weights) = experts(d, m, &mut l, i, x, normed)?;
                traces.push((i, ids, weights));
                x
            }
            None => {
                let y = ffn(d, &mut l, &format!("blk.{i}.ffn_"), ".weight", d.ffn, normed)?;
                l.b.one(Op::Add, &[x, y])?
            }
        };
    }
    l.b.set_layer(None);
    let x = l.b.one(Op::TakeOutputs, &[x])?; // [O, H]
    let x = norm(d, &mut l, "output_norm.weight", d.hidden, x)?;
    let head = if d.tied && !l.has("output.weight") { table } else { l.matrix("output.weight", vocab, d.hidden)? };
    let logits = l.b.one(Op::Linear(Linear { weight: head, bias: None }), &[x])?; // [O, V]
    l.b.output("logits", logits);
    if options.trace_router {
        for (i, ids, weights) in traces {
            l.b.output(format!("router_ids_{i}"), ids);
            l.b.output(format!("router_weights_{i}"), weights);
        }
    }
    l.finish()
}

fn norm(d: &Decoder, l: &mut Loader<'_>, name: &str, n: usize, x: ValueId) -> Result<ValueId> {
    let weight = l.vector(name, n)?;
    l.b.one(Op::RmsNorm(Norm::rms(weight, d.eps)), &[x])
}

fn linear(l: &mut Loader<'_>, name: &str, out: usize, inp: usize, x: ValueId) -> Result<ValueId> {
    let weight = l.matrix(name, out, inp)?;
    l.b.one(Op::Linear(Linear { weight, bias: None }), &[x])
}

/// A projection of the attention, with its bias.
fn projection(d: &Decoder, l: &mut Loader<'_>, stem: &str, shape: [usize; 2], x: ValueId) -> Result<ValueId> {
    let weight = l.matrix(&format!("{stem}.weight"), shape[0], shape[1])?;
    let name = format!("{stem}.bias");
    // The output projection has none, unless the file says otherwise.
    let wanted = d.qkv_bias == Bias::Yes && !stem.ends_with("attn_output");
    let bias = if wanted || l.has(&name) { Some(l.vector(&name, shape[0])?) } else { None };
    l.b.one(Op::Linear(Linear { weight, bias }), &[x])
}

/// x + W_o · attention(norm(x)).
fn attention(d: &Decoder, rope: &Rope, l: &mut Loader<'_>, i: usize, x: ValueId) -> Result<ValueId> {
    let at = |s: &str| format!("blk.{i}.{s}");
    let (q_cols, kv_cols) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let normed = norm(d, l, &at("attn_norm.weight"), d.hidden, x)?; // [T, H]
    let q = projection(d, l, &at("attn_q"), [q_cols, d.hidden], normed)?; // [T, heads·D]
    let k = projection(d, l, &at("attn_k"), [kv_cols, d.hidden], normed)?; // [T, kv_heads·D]
    let v = projection(d, l, &at("attn_v"), [kv_cols, d.hidden], normed)?; // [T, kv_heads·D]
    let (q, k) = match d.qk_norm {
        QkNorm::None => (q, k),
        QkNorm::PerHead => (
            norm(d, l, &at("attn_q_norm.weight"), d.head_dim, q)?,
            norm(d, l, &at("attn_k_norm.weight"), d.head_dim, k)?,
        ),
        QkNorm::WholeRow => {
            (norm(d, l, &at("attn_q_norm.weight"), q_cols, q)?, norm(d, l, &at("attn_k_norm.weight"), kv_cols, k)?)
        }
    };
    let q = l.b.one(Op::Rope(rope.clone()), &[q])?;
    let k = l.b.one(Op::Rope(rope.clone()), &[k])?;
    let cache = l.b.cache(CacheDecl { kv_heads: d.kv_heads, k_dim: d.head_dim, v_dim: d.head_dim });
    let stored = l.b.one(Op::KvStore { cache }, &[k, v])?;
    let scale = 1.0 / (d.head_dim as f32).sqrt();
    let spec = Attention { cache, heads: d.heads, scale, window: d.window(i), sinks: None };
    let y = l.b.one(Op::Attend(spec), &[q, stored])?; // [T, heads·D]
    let y = projection(d, l, &at("attn_output"), [d.hidden, q_cols], y)?; // [T, H]
    l.b.one(Op::Add, &[x, y])
}

/// down(act(gate(x)) · up(x)) with the matrices `<prefix>gate<suffix>` and so on.
fn ffn(d: &Decoder, l: &mut Loader<'_>, prefix: &str, suffix: &str, width: usize, x: ValueId) -> Result<ValueId> {
    let name = |role: &str| format!("{prefix}{role}{suffix}");
    let g = linear(l, &name("gate"), width, d.hidden, x)?; // [T, I]
    let u = linear(l, &name("up"), width, d.hidden, x)?; // [T, I]
    let h = l.b.one(Op::Glu(d.act), &[g, u])?; // [T, I]
    linear(l, &name("down"), d.hidden, width, h) // [T, H]
}

/// x + routed experts (+ shared expert) of `normed`; also the chosen ids and weights.
fn experts(
    d: &Decoder,
    m: &Moe,
    l: &mut Loader<'_>,
    i: usize,
    x: ValueId,
    normed: ValueId,
) -> Result<(ValueId, ValueId, ValueId)> {
    let blk = format!("blk.{i}.");
    let (e, width) = (m.router.experts, m.width);
    let weight = l.matrix_f32(&format!("{blk}ffn_gate_inp.weight"), e, d.hidden)?;
    let bias = format!("{blk}ffn_gate_inp.bias");
    let bias = if l.has(&bias) { Some(l.vector(&bias, e)?) } else { None };
    let logits = l.b.one(Op::Linear(Linear { weight, bias }), &[normed])?; // [T, E]
    let mut router = m.router;
    if m.selection_bias {
        router.selection_bias = Some(l.vector(&format!("{blk}exp_probs_b.bias"), e)?);
    }
    let routed = l.b.add(Op::Router(router), &[logits])?;
    let (ids, weights) = (routed[0], routed[1]); // [T, k]
    let gate = l.experts(&blk, "ffn_gate", [e, width, d.hidden])?;
    let up = l.experts(&blk, "ffn_up", [e, width, d.hidden])?;
    let down = l.experts(&blk, "ffn_down", [e, d.hidden, width])?;
    let g = l.b.one(Op::ExpertLinear { weight: gate }, &[normed, ids])?; // [T, k·I]
    let u = l.b.one(Op::ExpertLinear { weight: up }, &[normed, ids])?; // [T, k·I]
    let h = l.b.one(Op::Glu(d.act), &[g, u])?; // [T, k·I]
    let y = l.b.one(Op::ExpertLinear { weight: down }, &[h, ids])?; // [T, k·H]
    let y = l.b.one(Op::ExpertCombine, &[y, weights])?; // [T, H]
    let mut x = l.b.one(Op::Add, &[x, y])?;
    if let Some(s) = m.shared {
        let mut y = ffn(d, l, &format!("{blk}ffn_"), "_shexp.weight", s.width, normed)?;
        if s.gated {
            let weight = l.matrix_f32(&format!("{blk}ffn_gate_inp_shexp.weight"), 1, d.hidden)?;
            let gate = l.b.one(Op::Linear(Linear { weight, bias: None }), &[normed])?; // [T, 1]
            y = l.b.one(Op::SigmoidGate, &[y, gate])?;
        }
        x = l.b.one(Op::Add, &[x, y])?;
    }
    Ok((x, ids, weights))
}
