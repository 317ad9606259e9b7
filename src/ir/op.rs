//! The ops. Their meaning (formula, shapes, reference code, tolerance) is on their page in [`crate::ops`].

use super::{Activation, Attention, CacheId, DeltaNet, Linear, Norm, Rope, Router, ShortConv, WeightId};

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
    ScaleExpertInputs,
    /// `(ids u32 [T, k]) → u32 [T, k]`: the numbers of the experts that are here, which are `count` of all from `first` on, counted from
    /// `first`; `count` for every other, which products with experts' matrices leave out: its slots are not written.
    LocalIds {
        /// The first expert that is here.
        first: u32,
        /// How many are.
        count: u32,
    },
    /// `(x [T, in] or [T, k·in], ids [T, k]) → [T, k·out]`: slot j of token t through expert `ids[t, j]`.
    ExpertLinear(Linear),
    /// `(y [T, k·n], weights [T, k]) → [T, n]`: the weighted sum over the slots, in slot order.
    ExpertCombine,
    /// `(x [T, n]) → [O, n]`: the last O rows.
    TakeOutputs,
    /// `(x, ids, weights, ...) → [T, cols]`: routed experts that the host computes between two parts of a device's step. Stands for a
    /// region of the graph that was taken out: see `graph::split_experts`.
    HostExperts {
        /// The number of the region.
        region: u32,
        /// Columns of the result.
        cols: usize,
    },

    /// Losses, routers and attention in training.
    Math(super::Math),
    /// Gradients.
    Grad(super::Grad),

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
        qk_norm_after_rope: bool,
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
