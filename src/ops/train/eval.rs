//! One node of a training graph, by the pages' reference code.

use super::Feed;
use crate::{
    ir::{Grad, Graph, Math, Node, Op, WeightId},
    ops::{
        Array, Real, Weights, capacity, cross_entropy, elementwise, embed, experts, heads, linear, math, random,
        rms_norm, rope, router, self_attend, slots,
    },
};

/// A value while a micro-batch runs.
#[derive(Clone, Debug)]
pub enum Value<T> {
    /// Numbers.
    Numbers(Array<T>),
    /// Ids, row-major.
    Ids(Vec<u32>),
    /// An edge without data, or a value that is not there.
    Nothing,
}

/// What evaluating a node needs beside the values before it.
#[derive(Debug)]
pub struct Scope<'a, T> {
    /// The graph.
    pub graph: &'a Graph,
    /// Its weights.
    pub weights: Weights<'a, T>,
    /// The micro-batch.
    pub feed: &'a Feed,
    /// Sums of gradients by weight, for those that are trained.
    pub gradients: &'a mut [Option<Vec<T>>],
}

/// The operands of a node.
pub struct Operands<'a, T> {
    /// The node.
    pub node: &'a Node,
    /// All values so far, by id.
    pub values: &'a [Value<T>],
}

// `graph::check` has made sure that operands are what the op wants.
impl<'a, T: Real> Operands<'a, T> {
    /// Operand i, which is numbers.
    pub fn nums(&self, i: usize) -> &'a Array<T> {
        match &self.values[self.node.inputs[i].0 as usize] {
            Value::Numbers(a) => a,
            Value::Ids(_) | Value::Nothing => unreachable!("checked graph"),
        }
    }

    /// Operand i, which is ids.
    pub fn ids(&self, i: usize) -> &'a [u32] {
        match &self.values[self.node.inputs[i].0 as usize] {
            Value::Ids(a) => a,
            Value::Numbers(_) | Value::Nothing => unreachable!("checked graph"),
        }
    }
}

/// Evaluates a node.
///
/// # Errors
/// A sentence that names a missing input, an id out of range, or an op that no training graph has.
pub fn eval<T: Real>(node: &Node, values: &[Value<T>], s: &mut Scope<'_, T>) -> Result<Vec<Value<T>>, String> {
    let x = Operands { node, values };
    match &node.op {
        Op::Math(m) => eval_math(m, &x, s),
        Op::Grad(g) => eval_grad(g, &x, s),
        _ => eval_op(&x, s),
    }
}

fn numbers<T, const N: usize>(made: [Array<T>; N]) -> Vec<Value<T>> {
    made.into_iter().map(Value::Numbers).collect()
}

fn below(ids: &[u32], bound: usize, what: &str) -> Result<(), String> {
    match ids.iter().find(|id| **id as usize >= bound) {
        Some(id) => Err(format!("{what} {id} is not below {bound}")),
        None => Ok(()),
    }
}

/// The ops that training shares with inference.
fn eval_op<T: Real>(x: &Operands<'_, T>, s: &mut Scope<'_, T>) -> Result<Vec<Value<T>>, String> {
    let (nums, ids, w) = (|i| x.nums(i), |i| x.ids(i), s.weights);
    let made = match &x.node.op {
        Op::Tokens => {
            let n = s.feed.tokens.len();
            if n != s.feed.rows {
                return Err(format!("{n} tokens for {} rows", s.feed.rows));
            }
            return Ok(vec![Value::Ids(s.feed.tokens.clone())]);
        }
        Op::Input { name, cols } => {
            let data = s.feed.get(name, s.feed.rows * cols)?.iter().map(|v| T::of(*v)).collect();
            Array { rows: s.feed.rows, cols: *cols, data }
        }
        Op::Embed { table, scale } => {
            below(ids(0), w.tensor(*table).rows(), "token id")?;
            embed::eval(ids(0), *table, *scale, w)
        }
        Op::RmsNorm(n) => rms_norm::eval(nums(0), n, w),
        Op::Linear(l) => linear::eval(nums(0), l, w),
        Op::HeadIds { heads: n } => return Ok(vec![Value::Ids(heads::eval_ids(s.feed.rows, *n))]),
        Op::JoinHeads { heads: n } => heads::eval_join(nums(0), nums(1), *n),
        Op::Add => elementwise::add(nums(0), nums(1)),
        Op::Scale(f) => elementwise::scale(nums(0), *f),
        Op::Glu(act) => elementwise::glu(nums(0), nums(1), *act),
        Op::Act(act) => elementwise::act(nums(0), *act),
        Op::SigmoidGate => elementwise::sigmoid_gate(nums(0), nums(1)),
        Op::Router(r) => {
            let (ids, weights) = router::eval(nums(0), r, w);
            return Ok(vec![Value::Ids(ids), Value::Numbers(weights)]);
        }
        Op::ScaleExpertInputs => return Ok(numbers(experts::eval_scale_inputs(nums(0), nums(1)))),
        Op::ExpertLinear(l) => experts::eval_linear(nums(0), ids(1), l, w),
        Op::ExpertCombine => experts::eval_combine(nums(0), nums(1)),
        Op::Rope(_)
        | Op::KvStore { .. }
        | Op::Attend(_)
        | Op::ShortConv(_)
        | Op::DeltaNet(_)
        | Op::TakeOutputs
        | Op::HostExperts { .. }
        | Op::LocalIds { .. }
        | Op::NormLinears { .. }
        | Op::RopeStore { .. }
        | Op::LinearAdd { .. }
        | Op::LinearGlu { .. }
        | Op::NormRouter { .. }
        | Op::LinearAct { .. }
        | Op::ExpertGlu { .. }
        | Op::ExpertAct { .. }
        | Op::ExpertDownAdd { .. }
        | Op::Math(_)
        | Op::Grad(_) => return Err(format!("{} in a training graph", x.node.op.name())),
    };
    Ok(vec![Value::Numbers(made)])
}

fn attention<'a, T: Real>(x: &Operands<'a, T>) -> Result<self_attend::Operands<'a, T>, String> {
    Ok(self_attend::Operands { q: x.nums(0), k: x.nums(1), v: x.nums(2), starts: x.ids(3) })
}

fn eval_math<T: Real>(m: &Math, x: &Operands<'_, T>, s: &mut Scope<'_, T>) -> Result<Vec<Value<T>>, String> {
    let (nums, ids, rows, draw) = (|i| x.nums(i), |i| x.ids(i), s.feed.rows, s.feed.draw());
    let made = match m {
        Math::Numbers { name, rows, cols } => {
            let data = s.feed.get(name, rows * cols)?.iter().map(|v| T::of(*v)).collect();
            Array { rows: *rows, cols: *cols, data }
        }
        Math::Ids { name, cols } => {
            let found = s.feed.get_ids(name, rows * cols)?;
            // Starts are rows, at most their own.
            if name == STARTS && found.iter().enumerate().any(|(i, start)| *start as usize > i / cols) {
                return Err("a sequence starts behind one of its rows".into());
            }
            return Ok(vec![Value::Ids(found.to_vec())]);
        }
        Math::Constant { value, cols } => Array { rows: 1, cols: *cols, data: vec![T::of(*value); *cols] },
        Math::Rotate(r) => rope::rotate(nums(0), ids(1), r),
        Math::SelfAttend(a) => return Ok(numbers(self_attend::eval(attention(x)?, a, s.weights))),
        Math::CrossEntropy => {
            below(ids(1), nums(0).cols, "target")?;
            return Ok(numbers(cross_entropy::eval(nums(0), ids(1))));
        }
        Math::Affine { factor, shift } => nums(0).map(|v| factor * v + shift),
        Math::Unary(f) => nums(0).map(|v| math::function(*f, v)),
        Math::Binary(op) => math::binary(nums(0), nums(1), *op),
        Math::Reduce { axis, mean } => math::reduce(nums(0), *axis, *mean),
        Math::Expand { mean } => math::expand(nums(0), nums(1), *mean),
        Math::Softmax { groups } => math::softmax(nums(0), *groups),
        Math::LogSumExp => math::rows_log_sum_exp(nums(0)),
        Math::TopK { used, groups } => return Ok(vec![Value::Ids(slots::top_k(nums(0), *used, *groups))]),
        Math::GatherSlots => slots::gather(nums(0), ids(1)),
        Math::ScatterSlots { experts } => slots::scatter(nums(0), ids(1), *experts),
        Math::MultiHot { experts } => slots::multi_hot(ids(0), rows, *experts),
        Math::IdColumns { first, count } => {
            let cols = ids(0).len() / rows.max(1);
            let row = |r: usize| &ids(0)[r * cols + first..r * cols + first + count];
            return Ok(vec![Value::Ids((0..rows).flat_map(row).copied().collect())]);
        }
        Math::Columns { first, count } => math::columns(nums(0), *first, *count),
        Math::PadColumns { before, after } => math::pad_columns(nums(0), *before, *after),
        Math::RepeatSlots { slots: k } => slots::repeat(nums(0), *k),
        Math::SumSlots { slots: k } => slots::sum(nums(0), *k),
        Math::ScaleSlots { shared } => slots::scale(nums(0), nums(1), *shared),
        Math::SlotDots { slots: k } => slots::dots(nums(0), nums(1), *k),
        Math::ExpertSum { weight, transposed } => experts::eval_sum(nums(0), ids(1), *weight, *transposed, s.weights),
        Math::Capacity(c) => return Ok(numbers(capacity::eval(ids(0), nums(1), c))),
        Math::Dropout { p, stream } => random::dropout(nums(0), *p, *stream, &draw),
        Math::Noise { distribution, cols, stream } => random::noise(rows, *cols, *distribution, *stream, &draw),
    };
    Ok(vec![Value::Numbers(made)])
}

/// The input that says where sequences start.
pub const STARTS: &str = "starts";

fn eval_grad<T: Real>(g: &Grad, x: &Operands<'_, T>, s: &mut Scope<'_, T>) -> Result<Vec<Value<T>>, String> {
    let (nums, ids, w) = (|i| x.nums(i), |i| x.ids(i), s.weights);
    let shape = |into: WeightId| s.graph.weight(into).shape.clone();
    let made = match g {
        Grad::Norm(n) => rms_norm::grad(nums(0), nums(1), n, w),
        Grad::LinearInput { weight } => linear::grad_input(nums(0), *weight, w),
        Grad::ExpertInput { weight } => experts::grad_input(nums(0), ids(1), *weight, w),
        Grad::SelfAttend(a) => return Ok(numbers(self_attend::grad(attention(x)?, nums(4), nums(5), nums(6), a))),
        Grad::SplitHeads { heads: n, first } => return Ok(numbers(heads::eval_split(nums(0), *n, *first))),
        Grad::Glu(act) => return Ok(numbers(elementwise::glu_grad(nums(0), nums(1), nums(2), *act))),
        Grad::Act(act) => elementwise::act_grad(nums(0), nums(1), *act),
        Grad::SigmoidGate => return Ok(numbers(elementwise::sigmoid_gate_grad(nums(0), nums(1), nums(2)))),
        Grad::Router(r) => router::grad(nums(0), ids(1), nums(2), r, w),
        Grad::CrossEntropy => cross_entropy::grad(nums(0), ids(1), nums(2), nums(3)),
        Grad::Unary(f) => nums(0).zip(nums(1), |x, d| math::derivative(*f, x) * d),
        Grad::Softmax { groups } => math::softmax_grad(nums(0), nums(1), *groups),
        Grad::Embed { .. }
        | Grad::NormWeight(_)
        | Grad::Outer { .. }
        | Grad::SumRows { .. }
        | Grad::ExpertOuter { .. }
        | Grad::ExpertSumRows { .. }
        | Grad::Sinks { .. } => {
            let weight = g.adds_to().ok_or("a gradient of nothing")?;
            let shape = shape(weight);
            let to = s.gradients[weight.0 as usize].as_mut().ok_or("a gradient of a weight that is not trained")?;
            add_gradient(g, x, w, &shape, to);
            return Ok(vec![Value::Nothing]);
        }
    };
    Ok(vec![Value::Numbers(made)])
}

/// Adds to the gradient of a weight of `shape`.
fn add_gradient<T: Real>(g: &Grad, x: &Operands<'_, T>, w: Weights<'_, T>, shape: &[usize], to: &mut [T]) {
    let (nums, ids) = (|i| x.nums(i), |i| x.ids(i));
    match (g, shape) {
        (Grad::Embed { scale, .. }, _) => embed::grad(ids(0), nums(1), *scale, to),
        (Grad::NormWeight(n), _) => rms_norm::grad_weight(nums(0), nums(1), n, to),
        (Grad::Outer { .. }, _) => linear::grad_weight(nums(0), nums(1), to),
        (Grad::SumRows { .. }, _) => linear::grad_bias(nums(0), to),
        (Grad::ExpertOuter { .. }, [e, out, inp]) => {
            experts::grad_weight(nums(0), nums(1), ids(2), [*e, *out, *inp], to);
        }
        (Grad::ExpertSumRows { .. }, [e, out]) => experts::grad_bias(nums(0), ids(1), [*e, *out], to),
        (Grad::Sinks { into }, _) => {
            crate::ops::add_to(to, &self_attend::grad_sinks(&w.vector(*into), nums(0), nums(1), nums(2)));
        }
        (g, shape) => unreachable!("checked graph: {} of {shape:?}", g.name()),
    }
}
