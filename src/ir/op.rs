//! The ops. Their meaning (formula, shapes, reference code, tolerance) is on their page in [`crate::ops`].

use super::{CacheId, Router, StateId, WeightId};

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
    pub chunk: Option<usize>,
    /// `[heads]`: a logit a head that takes part in the softmax's denominator only.
    pub sinks: Option<WeightId>,
}

impl Attention {
    /// The first position that a query at `position` sees.
    pub fn first_seen(&self, position: usize) -> usize {
        match (self.window, self.chunk) {
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
    /// `() → ids u32 [T, heads]`: 0, 1, 2… in every row. With it `ExpertLinear` is a matrix of its own for each head.
    HeadIds {
        /// How many.
        heads: usize,
    },
    /// `(a [T, heads·m], b [T, heads·n]) → [T, heads·(m + n)]`: of each head, a's columns and then b's.
    JoinHeads {
        /// How many.
        heads: usize,
    },
    /// `(k [T, kv_heads·Dk], v [T, kv_heads·Dv]) → cache`: writes positions P..P+T. Only k where values are part of keys.
    KvStore {
        /// Where to.
        cache: CacheId,
    },
    /// `(q [T, heads·Dk], cache) → [T, heads·Dv]`: row t sees positions ..= P + t.
    Attend(Attention),
    /// `(x [T, C]) → [T, C]`: each channel convolved over its last inputs; moves its state on.
    ShortConv(ShortConv),
    /// `(qkv [T, 2·Hk·Dk + Hv·Dv], a [T, Hv], b [T, Hv]) → [T, Hv·Dv]`: linear attention; moves its state on.
    DeltaNet(DeltaNet),
    /// `(a, b) → a + b`.
    Add,
    /// `(x) → factor · x`.
    Scale(f32),
    /// `(gate [R, n], up [R, n]) → act(gate) · up`.
    Glu(Activation),
    /// `(x) → act(x)`: of a feed-forward network without gate.
    Act(Activation),
    /// `(x [R, n], g [R, 1]) → x · sigmoid(g)`: the gate of a shared expert.
    SigmoidGate,
    /// `(logits [T, E]) → (ids u32 [T, k], weights [T, k])`.
    Router(Router),
    /// `(x [T, n], weights [T, k]) → (y [T, k·n], ones [T, k])`: slot j of token t is `weights[t, j] · x[t]`, and the weights
    /// that are left for the results of the experts are 1.
    WeighInputs,
    /// `(x [T, in] or [T, k·in], ids [T, k]) → [T, k·out]`: slot j of token t through expert `ids[t, j]`.
    ExpertLinear(Linear),
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
    /// `(q, k, v) → (q', cache)`: optional norms of q and k, rotation of both (in either order), k and v written to the cache.
    RopeStore {
        /// Norm of q: per head or over the whole row, as the weight's length says.
        q_norm: Option<Norm>,
        /// Norm of k.
        k_norm: Option<Norm>,
        /// The rotation of both.
        rope: Rope,
        /// Whether the norms come after the rotation instead of before.
        norm_last: bool,
        /// Where k and v go.
        cache: CacheId,
    },
    /// `(x [R, in], residual [R, out] [, g [R, 1]]) → residual + factor · [sigmoid(g) ·] (W x + b)`.
    LinearAdd {
        /// W and b.
        linear: Linear,
        /// Whether the third input is there.
        gated: bool,
        /// 1 as a rule.
        factor: f32,
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
    /// `(x [R, in]) → act(W x + b)`: the first half of a dense feed-forward network without gate.
    LinearAct {
        /// W and b.
        linear: Linear,
        /// What follows.
        act: Activation,
    },
    /// `(x [T, H], ids [T, k]) → [T, k·I]`: `act(G_e x) · (U_e x)` of every chosen expert.
    ExpertGlu {
        /// `[E, I, H]`, and its biases.
        gate: Linear,
        /// `[E, I, H]`, and its biases; both have them or neither.
        up: Linear,
        /// On the gate.
        act: Activation,
    },
    /// `(x [T, H], ids [T, k]) → [T, k·I]`: `act(W_e x)` of every chosen expert: experts without gate.
    ExpertAct {
        /// `[E, I, H]`, and its biases.
        linear: Linear,
        /// What follows.
        act: Activation,
    },
    /// `(h [T, k·I], ids [T, k], weights [T, k], residual [T, H]) → [T, H]`: residual + factor · the weighted sum of
    /// `W_e h_j + b_e`.
    ExpertDownAdd {
        /// `[E, H, I]`, and its biases.
        linear: Linear,
        /// 1 as a rule.
        factor: f32,
    },
}

/// What [`Op::describe`] tells of an op.
trait Description {
    /// Weights that the op reads, in order.
    fn weights(&mut self, _: &[WeightId]) {}
    /// The recurrent state that the op reads and overwrites.
    fn state(&mut self, _: StateId) {}
    /// What printing shows behind the op's name and its weights.
    fn note(&mut self, _: std::fmt::Arguments<'_>) {}
}

/// Listens to nothing.
struct Nothing;
impl Description for Nothing {}

/// Collects the weights.
struct Weights(Vec<WeightId>);
impl Description for Weights {
    fn weights(&mut self, list: &[WeightId]) {
        self.0.extend(list);
    }
}

/// Keeps the state.
struct State(Option<StateId>);
impl Description for State {
    fn state(&mut self, s: StateId) {
        self.0 = Some(s);
    }
}

/// Keeps the note.
struct Note(String);
impl Description for Note {
    fn note(&mut self, text: std::fmt::Arguments<'_>) {
        self.0 = text.to_string();
    }
}

fn norm(d: &mut impl Description, n: &Norm) {
    n.weights().for_each(|w| d.weights(&[w]));
}

fn linear(d: &mut impl Description, l: &Linear) {
    d.weights(&[l.weight]);
    l.bias.iter().for_each(|b| d.weights(&[*b]));
}

fn router(d: &mut impl Description, r: &Router) {
    r.selection_bias.iter().chain(&r.expert_scale).for_each(|w| d.weights(&[*w]));
    d.note(format_args!("{r}"));
}

impl Op {
    /// Everything about an op that does not depend on its operands: gives its name, and tells `d` its weights, its state and
    /// what printing shows of it. The one place where a new op says so.
    fn describe(&self, d: &mut impl Description) -> &'static str {
        match self {
            Op::Tokens => "tokens",
            Op::Input { .. } => "input",
            Op::Embed { table, .. } => {
                d.weights(&[*table]);
                "embed"
            }
            Op::RmsNorm(n) => {
                norm(d, n);
                "rms_norm"
            }
            Op::Linear(l) => {
                linear(d, l);
                "linear"
            }
            Op::Rope(_) => "rope",
            Op::HeadIds { .. } => "head_ids",
            Op::JoinHeads { .. } => "join_heads",
            Op::KvStore { .. } => "kv_store",
            Op::Attend(a) => {
                a.sinks.iter().for_each(|s| d.weights(&[*s]));
                d.note(format_args!("{} heads, window {:?}", a.heads, a.window));
                "attend"
            }
            Op::ShortConv(c) => {
                d.weights(&[c.weight]);
                c.bias.iter().for_each(|b| d.weights(&[*b]));
                d.state(c.state);
                d.note(format_args!("{} taps, state{}", c.taps, c.state.0));
                "short_conv"
            }
            Op::DeltaNet(n) => {
                d.weights(&[n.decay, n.dt_bias]);
                d.state(n.state);
                d.note(format_args!("{} heads on {}, state{}", n.v_heads, n.k_heads, n.state.0));
                "delta_net"
            }
            Op::Add => "add",
            Op::Scale(_) => "scale",
            Op::Glu(act) => {
                d.note(format_args!("{act:?}"));
                "glu"
            }
            Op::Act(act) => {
                d.note(format_args!("{act:?}"));
                "act"
            }
            Op::SigmoidGate => "sigmoid_gate",
            Op::Router(r) => {
                router(d, r);
                "router"
            }
            Op::WeighInputs => "weigh_inputs",
            Op::ExpertLinear(l) => {
                linear(d, l);
                "expert_linear"
            }
            Op::ExpertCombine => "expert_combine",
            Op::TakeOutputs => "take_outputs",
            Op::NormLinears { norm: n, parts } => {
                n.iter().for_each(|n| norm(d, n));
                parts.iter().for_each(|l| linear(d, l));
                "norm_linears"
            }
            Op::RopeStore { q_norm, k_norm, .. } => {
                q_norm.iter().chain(k_norm).for_each(|n| norm(d, n));
                "rope_store"
            }
            Op::LinearAdd { linear: l, .. } => {
                linear(d, l);
                "linear_add"
            }
            Op::LinearGlu { gate, up, act } => {
                d.weights(&[*gate, *up]);
                d.note(format_args!("{act:?}"));
                "linear_glu"
            }
            Op::LinearAct { linear: l, act } => {
                linear(d, l);
                d.note(format_args!("{act:?}"));
                "linear_act"
            }
            Op::NormRouter { norm: n, linear: l, router: r } => {
                norm(d, n);
                linear(d, l);
                router(d, r);
                "norm_router"
            }
            Op::ExpertGlu { gate, up, act } => {
                linear(d, gate);
                linear(d, up);
                d.note(format_args!("{act:?}"));
                "expert_glu"
            }
            Op::ExpertAct { linear: l, act } => {
                linear(d, l);
                d.note(format_args!("{act:?}"));
                "expert_act"
            }
            Op::ExpertDownAdd { linear: l, .. } => {
                linear(d, l);
                "expert_down_add"
            }
        }
    }

    /// The op's name: the stem of its page, its shader and its test cases.
    pub fn name(&self) -> &'static str {
        self.describe(&mut Nothing)
    }

    /// The weights that the op reads.
    pub fn weights(&self) -> Vec<WeightId> {
        let mut w = Weights(vec![]);
        self.describe(&mut w);
        w.0
    }

    /// The recurrent state that the op reads and overwrites.
    pub fn state(&self) -> Option<StateId> {
        let mut s = State(None);
        self.describe(&mut s);
        s.0
    }

    /// What the text of a graph shows behind the op's weights; empty for most ops.
    pub fn note(&self) -> String {
        let mut n = Note(String::new());
        self.describe(&mut n);
        n.0
    }

    /// Whether the op multiplies with the matrices of chosen experts.
    pub fn is_routed(&self) -> bool {
        use Op::{ExpertAct, ExpertDownAdd, ExpertGlu, ExpertLinear};
        matches!(self, ExpertLinear(_) | ExpertAct { .. } | ExpertGlu { .. } | ExpertDownAdd { .. })
    }
}
