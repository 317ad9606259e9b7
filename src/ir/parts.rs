//! What ops are made of: norms, matrices, rotations, attention, activations, recurrent layers.

use super::{CacheId, StateId, WeightId};

/// What a norm makes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Root mean square 1 (`ops/rms_norm.rs`).
    Rms,
    /// Mean 0 and variance 1.
    Layer,
}

/// Normalisation with its weight (`ops/rms_norm.rs`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Of which kind.
    pub kind: NormKind,
    /// `[n]`: where n is smaller than the columns, every group of n columns (a head) is normalised by itself.
    pub weight: WeightId,
    /// As long as the weight: added last.
    pub bias: Option<WeightId>,
    /// Added to the mean square (the variance).
    pub eps: f32,
}

impl Norm {
    /// A root-mean-square norm.
    pub fn rms(weight: WeightId, eps: f32) -> Norm {
        Norm { kind: NormKind::Rms, weight, bias: None, eps }
    }

    /// Weight and bias.
    pub fn weights(&self) -> impl Iterator<Item = WeightId> {
        std::iter::once(self.weight).chain(self.bias)
    }
}

/// A matrix with an optional bias (`ops/linear.rs`), or one of each for every expert (`ops/experts.rs`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// `[out, in]`; of experts `[E, out, in]`.
    pub weight: WeightId,
    /// `[out]`; of experts `[E, out]`.
    pub bias: Option<WeightId>,
}

/// Which columns of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopePairs {
    /// Columns 2i and 2i+1 (Su et al. 2021; GGUF's `llama`, PyTorch's complex form).
    Interleaved,
    /// Columns i and i + dims/2 (Hugging Face's rotate_half; GPT-NeoX).
    Halves,
}

/// Rotary position embedding (`ops/rope.rs`).
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Columns of a head.
    pub head_dim: usize,
    /// How many of the first columns of each head rotate (even, at most `head_dim`).
    pub dims: usize,
    /// Which columns are a pair.
    pub pairs: RopePairs,
    /// Angle a position of each of the `dims / 2` pairs, every scaling of the frequencies applied.
    pub inv_freq: std::sync::Arc<[f32]>,
    /// Factor on the rotated vector (YaRN's attention factor; 1 without scaling).
    pub scale: f32,
    /// What takes the place of `inv_freq` and `scale` in long contexts.
    pub long: Option<LongRope>,
    /// A further factor that grows with the position.
    pub temperature: Option<Temperature>,
}

/// Queries that grow with their position, so that the softmax over a long context stays sharp (Nakanishi 2025,
/// *Scalable-Softmax*; Llama 4's layers without rotation): the vector at position p times
/// `1 + scale · ln(1 + floor((p + 1) / every))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Positions between one step of the factor and the next; 0 counts as no step at all.
    pub every: usize,
    /// Of the logarithm.
    pub scale: f32,
}

impl Temperature {
    /// The factor at a position.
    pub fn at(&self, position: usize) -> f64 {
        let steps = (position as u64 + 1).checked_div(self.every as u64).unwrap_or(0);
        1.0 + f64::from(self.scale) * (steps as f64).ln_1p()
    }
}

/// The rotation of contexts longer than those that a model was first trained for (LongRoPE, Ding et al. 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// Contexts of more positions than this are long.
    pub beyond: usize,
    /// As [`Rope::inv_freq`].
    pub inv_freq: std::sync::Arc<[f32]>,
    /// As [`Rope::scale`].
    pub scale: f32,
}

impl Rope {
    /// The rotation of a runner whose context is `ctx`: the choice is made once, because keys in the cache are rotated
    /// already. (Hugging Face chooses by the length so far, llama.cpp by the context, as here.)
    pub fn for_context(&self, ctx: usize) -> Rope {
        match &self.long {
            Some(l) if ctx > l.beyond => {
                Rope { inv_freq: l.inv_freq.clone(), scale: l.scale, long: None, ..self.clone() }
            }
            _ => Rope { long: None, ..self.clone() },
        }
    }
}

/// Causal attention of grouped query heads (`ops/attend.rs`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// The cache that keys and values come from.
    pub cache: CacheId,
    /// Query heads; a multiple of the cache's `kv_heads`.
    pub heads: usize,
    /// Factor on the dot products, `1/sqrt(D)` as a rule.
    pub scale: f32,
    /// Sliding window: a query sees this many positions, its own included. `None`: all.
    pub window: Option<usize>,
    /// Positions are in chunks of this many, and a query sees those of its own chunk (Llama 4). Not beside a window.
    pub attention_chunk: Option<usize>,
    /// `[heads]`: a logit a head that takes part in the softmax's denominator only.
    pub sinks: Option<WeightId>,
}

impl Attention {
    /// The first position that a query at `position` sees.
    pub fn first_seen(&self, position: usize) -> usize {
        match (self.window, self.attention_chunk) {
            (Some(n), _) => (position + 1).saturating_sub(n),
            (None, Some(n)) => position - position.checked_rem(n).unwrap_or(0),
            (None, None) => 0,
        }
    }
}

/// Activation of a gated feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `0.5 x (1 + erf(x / sqrt 2))`.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// The hyperbolic tangent: bounds of logits.
    Tanh,
    /// GPT-OSS's clamped SwiGLU, a gated unit only: with g = min(gate, limit) and u = up between −limit and limit,
    /// `g · sigmoid(alpha · g) · (u + 1)`.
    ClampedSwiglu {
        /// Factor in the sigmoid.
        alpha: f32,
        /// Bound of gate and up.
        limit: f32,
    },
    /// `1 / (1 + exp(-x))`: gates of attention's output.
    Sigmoid,
    /// `x`: a bilinear unit, a product of two projections.
    Identity,
}

/// Causal convolution of each channel over its last inputs (`ops/short_conv.rs`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShortConv {
    /// `[taps · channels]`, tap by tap, oldest input first.
    pub weight: WeightId,
    /// `[channels]`.
    pub bias: Option<WeightId>,
    /// Inputs that a result depends on, its own included.
    pub taps: usize,
    /// On the sum.
    pub act: Option<Activation>,
    /// The last `taps − 1` inputs.
    pub state: StateId,
}

/// Linear attention with the gated delta rule (`ops/delta_net.rs`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeltaNet {
    /// Heads of queries and keys.
    pub k_heads: usize,
    /// Heads of values, a multiple of these.
    pub v_heads: usize,
    /// Columns of a query and of a key.
    pub k_dim: usize,
    /// Columns of a value.
    pub v_dim: usize,
    /// `[v_heads]`, negative: how fast a head forgets.
    pub decay: WeightId,
    /// `[v_heads]`: added to what the token says of it.
    pub dt_bias: WeightId,
    /// Whether value head h goes with key head `h % k_heads` (llama.cpp's order for Qwen3.5); else `h / (v_heads / k_heads)`.
    pub tiled: bool,
    /// `[v_heads, k_dim, v_dim]`.
    pub state: StateId,
}

impl DeltaNet {
    /// Columns of queries, keys and values together.
    pub fn qkv_cols(&self) -> usize {
        2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim
    }

    /// The key head that serves value head `h`.
    pub fn key_head(&self, h: usize) -> usize {
        if self.tiled { h % self.k_heads } else { h / (self.v_heads / self.k_heads) }
    }
}
