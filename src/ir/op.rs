//! The ops. Their meaning (formula, shapes, reference code, tolerance) is on their page in [`crate::ops`].

use super::{CacheId, Router, WeightId};

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

/// A matrix with an optional bias (`ops/linear.rs`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: WeightId,
    /// `[out]`.
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
    /// `[heads]`: a logit a head that takes part in the softmax's denominator only.
    pub sinks: Option<WeightId>,
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
}

/// An op, with everything about it that is fixed when the graph is made.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `() → ids [T, 1]`: the token ids of this step.
    Tokens,
    /// `() → x [T, cols]`: numbers that the caller gives for this step, by name. For tests of ops.
    Input {
        /// The caller's name of it.
        name: String,
        /// Columns.
        cols: usize,
    },
    /// `(ids) → x [T, H]`: rows of a table `[V, H]`, times `scale`.
    Embed {
        /// `[V, H]`.
        table: WeightId,
        /// Factor on the embedding; 1 as a rule.
        scale: f32,
    },
    /// `(x [R, n·g]) → [R, n·g]`.
    RmsNorm(Norm),
    /// `(x [R, in]) → [R, out]`.
    Linear(Linear),
    /// `(x [T, heads·D]) → [T, heads·D]`, row t at position P + t.
    Rope(Rope),
    /// `(k [T, kv_heads·Dk], v [T, kv_heads·Dv]) → cache`: writes positions P..P+T.
    KvStore {
        /// Where to.
        cache: CacheId,
    },
    /// `(q [T, heads·Dk], cache) → [T, heads·Dv]`: row t sees positions ..= P + t.
    Attend(Attention),
    /// `(a, b) → a + b`.
    Add,
    /// `(x) → factor · x`.
    Scale(f32),
    /// `(gate [R, n], up [R, n]) → act(gate) · up`.
    Glu(Activation),
    /// `(x [R, n], g [R, 1]) → x · sigmoid(g)`: the gate of a shared expert.
    SigmoidGate,
    /// `(logits [T, E]) → (ids u32 [T, k], weights [T, k])`.
    Router(Router),
    /// `(x [T, in] or [T, k·in], ids [T, k]) → [T, k·out]`: slot j of token t through expert `ids[t, j]`.
    ExpertLinear {
        /// `[E, out, in]`.
        weight: WeightId,
    },
    /// `(y [T, k·n], weights [T, k]) → [T, n]`: the weighted sum over the slots, in slot order.
    ExpertCombine,
    /// `(x [T, n]) → [O, n]`: the last O rows.
    TakeOutputs,

    // What the rewrites of `graph/fuse.rs` make. Each stands for a few of the nodes above and computes the same.
    /// `(x [R, in]) → one [R, out_i] for each part`: an optional norm, then several matrices on the same input.
    NormLinears {
        /// Applied to x first.
        norm: Option<Norm>,
        /// The matrices.
        parts: Vec<Linear>,
    },
    /// `(q, k, v) → (q', cache)`: optional norms of q and k, rotation of both, k and v written to the cache.
    RopeStore {
        /// Norm of q: per head or over the whole row, as the weight's length says.
        q_norm: Option<Norm>,
        /// Norm of k.
        k_norm: Option<Norm>,
        /// The rotation of both.
        rope: Rope,
        /// Where k and v go.
        cache: CacheId,
    },
    /// `(x [R, in], residual [R, out] [, g [R, 1]]) → residual + [sigmoid(g) ·] (W x + b)`.
    LinearAdd {
        /// W and b.
        linear: Linear,
        /// Whether the third input is there.
        gated: bool,
    },
    /// `(x [R, in]) → act(G x) · (U x)`: the first half of a dense gated feed-forward network.
    LinearGlu {
        /// `[I, in]`.
        gate: WeightId,
        /// `[I, in]`.
        up: WeightId,
        /// On the gate.
        act: Activation,
    },
    /// `(x [T, H]) → (normed [T, H], ids [T, k], weights [T, k])`: norm, router matrix and selection.
    NormRouter {
        /// Applied to x; its result is an output too, for the experts.
        norm: Norm,
        /// `[E, H]`, and its bias.
        linear: Linear,
        /// The selection.
        router: Router,
    },
    /// `(x [T, H], ids [T, k]) → [T, k·I]`: `act(G_e x) · (U_e x)` of every chosen expert.
    ExpertGlu {
        /// `[E, I, H]`.
        gate: WeightId,
        /// `[E, I, H]`.
        up: WeightId,
        /// On the gate.
        act: Activation,
    },
    /// `(h [T, k·I], ids [T, k], weights [T, k], residual [T, H]) → [T, H]`: residual + the weighted sum of `W_e h_j`.
    ExpertDownAdd {
        /// `[E, H, I]`.
        weight: WeightId,
    },
}

impl Op {
    /// The op's name: the stem of its page, its shader and its test cases.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Tokens => "tokens",
            Op::Input { .. } => "input",
            Op::Embed { .. } => "embed",
            Op::RmsNorm(_) => "rms_norm",
            Op::Linear(_) => "linear",
            Op::Rope(_) => "rope",
            Op::KvStore { .. } => "kv_store",
            Op::Attend(_) => "attend",
            Op::Add => "add",
            Op::Scale(_) => "scale",
            Op::Glu(_) => "glu",
            Op::SigmoidGate => "sigmoid_gate",
            Op::Router(_) => "router",
            Op::ExpertLinear { .. } => "expert_linear",
            Op::ExpertCombine => "expert_combine",
            Op::TakeOutputs => "take_outputs",
            Op::NormLinears { .. } => "norm_linears",
            Op::RopeStore { .. } => "rope_store",
            Op::LinearAdd { .. } => "linear_add",
            Op::LinearGlu { .. } => "linear_glu",
            Op::NormRouter { .. } => "norm_router",
            Op::ExpertGlu { .. } => "expert_glu",
            Op::ExpertDownAdd { .. } => "expert_down_add",
        }
    }

    /// The weights that the op reads.
    pub fn weights(&self) -> Vec<WeightId> {
        let lin = |l: &Linear| [Some(l.weight), l.bias];
        let norm = |n: &Norm| [Some(n.weight), n.bias];
        let list: Vec<Option<WeightId>> = match self {
            Op::Embed { table, .. } => vec![Some(*table)],
            Op::RmsNorm(n) => norm(n).to_vec(),
            Op::Linear(l) | Op::LinearAdd { linear: l, .. } => lin(l).to_vec(),
            Op::Attend(a) => vec![a.sinks],
            Op::Router(r) => vec![r.selection_bias],
            Op::ExpertLinear { weight } | Op::ExpertDownAdd { weight } => vec![Some(*weight)],
            Op::NormLinears { norm: n, parts } => n.iter().flat_map(norm).chain(parts.iter().flat_map(lin)).collect(),
            Op::RopeStore { q_norm, k_norm, .. } => [q_norm, k_norm].into_iter().flatten().flat_map(norm).collect(),
            Op::LinearGlu { gate, up, .. } | Op::ExpertGlu { gate, up, .. } => vec![Some(*gate), Some(*up)],
            Op::NormRouter { norm: n, linear, router } => {
                [norm(n), lin(linear), [router.selection_bias, None]].concat()
            }
            Op::Tokens
            | Op::Input { .. }
            | Op::Rope(_)
            | Op::KvStore { .. }
            | Op::Add
            | Op::Scale(_)
            | Op::Glu(_)
            | Op::SigmoidGate
            | Op::ExpertCombine
            | Op::TakeOutputs => vec![],
        };
        list.into_iter().flatten().collect()
    }
}
