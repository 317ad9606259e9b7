//! Ops that gradients are made of, for those ops whose gradient is not made of others. Differentiation makes them
//! (`graph/differentiate.rs`); they have no rules themselves. Those that add to a weight's gradient make a
//! [`super::Type::Grad`]: an edge without data. What they mean is on the page of the op they belong to.

use super::{Activation, Function, Norm, Router, SelfAttention, WeightId};

/// An op of a backward pass. dy is the gradient of the loss by the op's result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Grad {
    /// `(ids, dy [T, H]) → gradient`: row `ids[t]` of the table takes `scale · dy[t]`, tokens in ascending order.
    Embed {
        /// `[V, H]`.
        into: WeightId,
        /// The embedding's factor.
        scale: f32,
    },
    /// `(x, dy) → dx`.
    Norm(Norm),
    /// `(x, dy) → gradient` of the norm's weight.
    NormWeight(Norm),
    /// `(dy [R, out]) → dx [R, in]`: `dy · W`.
    LinearInput {
        /// `[out, in]`.
        weight: WeightId,
    },
    /// `(x [R, in], dy [R, out]) → gradient`: `dyᵀ · x`.
    Outer {
        /// `[out, in]`.
        into: WeightId,
    },
    /// `(dy [R, g·n]) → gradient` of a vector `[n]`: the sum over rows and over the g groups of columns.
    SumRows {
        /// `[n]`.
        into: WeightId,
    },
    /// `(dy [T, out] or [T, k·out], ids [T, k]) → dx [T, k·in]`: each slot by the matrix of its expert, transposed.
    ExpertInput {
        /// `[E, out, in]`.
        weight: WeightId,
    },
    /// `(x [T, in] or [T, k·in], dy [T, out] or [T, k·out], ids [T, k]) → gradient`: of expert e the sum of `dy xᵀ` over its slots, in
    /// ascending order.
    ExpertOuter {
        /// `[E, out, in]`.
        into: WeightId,
    },
    /// `(dy [T, k·out], ids [T, k]) → gradient`: of expert e the sum of `dy` over its slots, in ascending order.
    ExpertSumRows {
        /// `[E, out]`.
        into: WeightId,
    },
    /// `(q, k, v, starts, o, lse, do) → (dq, dk, dv)`.
    SelfAttend(SelfAttention),
    /// `(o, lse, do) → gradient` of the sinks.
    Sinks {
        /// `[heads]`.
        into: WeightId,
    },
    /// `(dy [T, heads·(m + n)]) → (da [T, heads·m], db [T, heads·n])`.
    SplitHeads {
        /// How many.
        heads: usize,
        /// Columns of a head that are a's.
        first: usize,
    },
    /// `(gate, up, dy) → (dgate, dup)`.
    Glu(Activation),
    /// `(x, dy) → dx`.
    Act(Activation),
    /// `(x [R, n], g [R, 1], dy [R, n]) → (dx [R, n], dg [R, 1])`.
    SigmoidGate,
    /// `(logits [T, E], ids [T, k], dweights [T, k]) → dlogits [T, E]`.
    Router(Router),
    /// `(logits [R, V], targets [R, 1], lse [R, 1], dnll [R, 1]) → dlogits [R, V]`.
    CrossEntropy,
    /// `(x, dy) → dx`.
    Unary(Function),
    /// `(p, dy) → dx`, of p the softmax of x in groups.
    Softmax {
        /// Groups.
        groups: usize,
    },
}

impl Grad {
    /// The weight whose gradient it adds to.
    pub fn adds_to(&self) -> Option<WeightId> {
        match self {
            Grad::Embed { into, .. }
            | Grad::Outer { into }
            | Grad::SumRows { into }
            | Grad::ExpertOuter { into }
            | Grad::ExpertSumRows { into }
            | Grad::Sinks { into } => Some(*into),
            Grad::NormWeight(n) => Some(n.weight),
            Grad::Norm(_)
            | Grad::LinearInput { .. }
            | Grad::ExpertInput { .. }
            | Grad::SelfAttend(_)
            | Grad::SplitHeads { .. }
            | Grad::Glu(_)
            | Grad::Act(_)
            | Grad::SigmoidGate
            | Grad::Router(_)
            | Grad::CrossEntropy
            | Grad::Unary(_)
            | Grad::Softmax { .. } => None,
        }
    }
}
