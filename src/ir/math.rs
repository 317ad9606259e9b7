//! Ops of losses, routers and attention in training. Inference graphs have none of them. Each has a rule of differentiation
//! (`graph/rules`), and what they mean is on their pages in [`crate::ops`].

use super::WeightId;
use std::sync::Arc;

/// A function of one number (`ops/math.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// `e^x`.
    Exp,
    /// The natural logarithm.
    Log,
    /// `x²`.
    Square,
    /// `√x`.
    Sqrt,
    /// `1/x`.
    Reciprocal,
    /// `ln(1 + e^x)`.
    Softplus,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// The distribution function of the standard normal distribution.
    NormalCdf,
    /// 1 where x > 0, else 0. Its gradient is 0.
    Step,
}

/// An operation on two numbers (`ops/math.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// `a + b`.
    Add,
    /// `a − b`.
    Sub,
    /// `a · b`.
    Mul,
    /// `a / b`.
    Div,
    /// The larger one; the gradient goes to a where both are equal.
    Max,
}

/// What is reduced to one (`ops/math.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// All rows become one row.
    Rows,
    /// All columns become one column.
    Cols,
}

/// Causal attention of grouped query heads on keys and values of the same rows (`ops/self_attend.rs`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SelfAttention {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Columns of a query and of a key.
    pub k_dim: usize,
    /// Columns of a value.
    pub v_dim: usize,
    /// Factor on the dot products.
    pub scale: f64,
    /// A query sees this many positions, its own included.
    pub window: Option<usize>,
    /// A query sees the positions of its own chunk of this many.
    pub attention_chunk: Option<usize>,
    /// `[heads]`: a logit a head that takes part in the softmax's denominator only.
    pub sinks: Option<WeightId>,
}

impl SelfAttention {
    /// The first position of its sequence that a query at `position` sees.
    pub fn first_seen(&self, position: usize) -> usize {
        match (self.window, self.attention_chunk) {
            (Some(n), _) => (position + 1).saturating_sub(n),
            (None, Some(n)) => position - position.checked_rem(n).unwrap_or(0),
            (None, None) => 0,
        }
    }
}

/// Rotation by the position within a sequence (`ops/rope.rs`).
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// Columns of a head.
    pub head_dim: usize,
    /// How many of the first columns of each head rotate.
    pub dims: usize,
    /// Which columns are a pair.
    pub pairs: super::RopePairs,
    /// Angle a position of each of the `dims / 2` pairs.
    pub freq: Arc<[f64]>,
    /// Factor on the rotated vector.
    pub scale: f64,
    /// A further factor that grows with the position.
    pub temperature: Option<super::Temperature>,
    /// Rotates back: the gradient of a rotation.
    pub inverse: bool,
}

/// Which tokens an expert that is full keeps (`ops/capacity.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keep {
    /// Those that come first: all first choices, then all second ones, each in the order of the tokens.
    Position,
    /// Those with the largest second operand.
    Largest,
}

/// How many tokens an expert takes: `max(ceil(tokens / E · k · factor), least)` (`ops/capacity.rs`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Experts, E.
    pub experts: usize,
    /// The capacity factor.
    pub factor: f64,
    /// The least capacity.
    pub least: usize,
    /// Which tokens stay.
    pub keep: Keep,
}

/// A distribution of random numbers (`ops/random.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Distribution {
    /// Mean 0, standard deviation 1.
    Normal,
    /// Between 0 and 1.
    Uniform,
    /// `−ln(−ln(u))`.
    Gumbel,
}

/// An op of losses, routers or attention in training. T: rows of the micro-batch; R: any number of rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Math {
    /// `() → x [rows, cols]`: numbers of a fixed size that the caller gives, by name.
    Numbers {
        /// The caller's name of it.
        name: String,
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
    /// `() → ids u32 [T, cols]` that the caller gives, by name.
    Ids {
        /// The caller's name of it.
        name: String,
        /// Columns.
        cols: usize,
    },
    /// `() → [1, cols]` of one value.
    Constant {
        /// The value.
        value: f64,
        /// Columns.
        cols: usize,
    },
    /// `(x [T, heads·D], starts [T, 1]) → [T, heads·D]`: row t is at position `t − starts[t]`.
    Rotate(Rotation),
    /// `(q [T, heads·Dk], k [T, kv_heads·Dk], v [T, kv_heads·Dv], starts [T, 1]) → (o [T, heads·Dv], lse [T, heads])`.
    SelfAttend(SelfAttention),
    /// `(logits [R, V], targets [R, 1]) → (nll [R, 1], lse [R, 1])`: the negative log-likelihood of each row's target.
    CrossEntropy,
    /// `(x) → factor · x + shift`.
    Affine {
        /// Factor.
        factor: f64,
        /// Added.
        shift: f64,
    },
    /// `(x) → f(x)`.
    Unary(Function),
    /// `(a, b) → a ∘ b`, where an operand with one row or one column is repeated.
    Binary(Arithmetic),
    /// `(x [R, c]) → [1, c] or [R, 1]`.
    Reduce {
        /// What becomes one.
        axis: Axis,
        /// Mean instead of sum.
        mean: bool,
    },
    /// `(x, like) → x repeated to the shape of like`; with `mean` divided by the number of repetitions.
    Expand {
        /// Whether it is the gradient of a mean.
        mean: bool,
    },
    /// `(x [R, g·n]) → softmax of each of g groups of neighbouring columns`.
    Softmax {
        /// Groups, g.
        groups: usize,
    },
    /// `(x [R, c]) → [R, 1]`: `ln Σ e^x`.
    LogSumExp,
    /// `(x [R, g·n]) → ids u32 [R, g·k]`: the columns of the k largest numbers of each group, largest first.
    TopK {
        /// How many of each group, k.
        used: usize,
        /// Groups, g.
        groups: usize,
    },
    /// `(x [R, E], ids [R, k]) → [R, k]`: `x[r, ids[r, j]]`.
    GatherSlots,
    /// `(w [R, k], ids [R, k]) → [R, E]`: each number in the column of its id, 0 elsewhere.
    ScatterSlots {
        /// Columns, E.
        experts: usize,
    },
    /// `(ids [R, k]) → [R, E]`: how often each id occurs in its row.
    MultiHot {
        /// Columns, E.
        experts: usize,
    },
    /// `(ids u32 [R, k]) → u32 [R, count]`: some columns of ids.
    IdColumns {
        /// The first.
        first: usize,
        /// How many.
        count: usize,
    },
    /// `(x [R, c]) → [R, count]`: some columns.
    Columns {
        /// The first.
        first: usize,
        /// How many.
        count: usize,
    },
    /// `(x [R, c]) → [R, before + c + after]`: zeros around.
    PadColumns {
        /// Columns of zeros before.
        before: usize,
        /// Columns of zeros after.
        after: usize,
    },
    /// `(x [R, n]) → [R, k·n]`: each row k times.
    RepeatSlots {
        /// k.
        slots: usize,
    },
    /// `(x [R, k·n]) → [R, n]`: the sum of the slots, in slot order.
    SumSlots {
        /// k.
        slots: usize,
    },
    /// `(x [R, n] or [R, k·n], w [R, k]) → [R, k·n]`: slot j times `w[r, j]`.
    ScaleSlots {
        /// Whether x has one row for all slots.
        shared: bool,
    },
    /// `(a [R, k·n], b [R, n] or [R, k·n]) → [R, k]`: dot products slot by slot.
    SlotDots {
        /// k.
        slots: usize,
    },
    /// `(x [T, n] or [T, k·n], ids [T, k]) → [T, m]`: the sum over the slots of what [`crate::ir::Op::ExpertLinear`] makes of x, or
    /// [`crate::ir::Grad::ExpertInput`]. Made by fusion, behind differentiation.
    ExpertSum {
        /// `[E, m, n]`, or `[E, n, m]` where it is transposed.
        weight: WeightId,
        /// Whether each expert's matrix is.
        transposed: bool,
    },
    /// `(ids [R, k], p [R, k]) → (keep [R, k], places [R, k])`: 1 where the expert has room; the place, or −1. A slot whose p is
    /// 0 takes no place.
    Capacity(Capacity),
    /// `(x) → x · mask / (1 − p)`: each number is 0 with probability p.
    Dropout {
        /// p.
        p: f64,
        /// Which of the graph's random streams.
        stream: u32,
    },
    /// `() → [T, cols]` of random numbers.
    Noise {
        /// Of which kind.
        distribution: Distribution,
        /// Columns.
        cols: usize,
        /// Which of the graph's random streams.
        stream: u32,
    },
}
