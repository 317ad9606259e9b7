//! From op to rule: which nodes compute the gradients of a node's operands from those of its results. The formulas are on the
//! ops' pages.

use super::back::Back;
use crate::{
    error::{Error, Result},
    ir::{Arithmetic, Axis, Function, Grad, Linear, Math, Node, Norm, Op, Rotation, Rows, Score, Type, ValueId},
};

impl From<Math> for Op {
    fn from(m: Math) -> Op {
        Op::Math(m)
    }
}

impl From<Grad> for Op {
    fn from(g: Grad) -> Op {
        Op::Grad(g)
    }
}

fn refused(op: &Op, why: &str) -> Error {
    Error::Unsupported(format!("{} has no gradient here: {why}", op.name()))
}

/// Appends the backward nodes of `node`; d are the gradients of its results.
pub(super) fn rule(b: &mut Back<'_>, node: &Node, d: &[Option<ValueId>]) -> Result<()> {
    let (x, op) = (&node.inputs[..], &node.op);
    // The gradient of the first result, which all but routers and capacities have when they are walked.
    let dy = d.first().copied().flatten();
    let first = || dy.ok_or_else(|| refused(op, "only its second result has a gradient"));
    match op {
        Op::Tokens | Op::Input { .. } | Op::HeadIds { .. } => Ok(()),
        Op::Embed { table, scale } => {
            let g = Grad::Embed { into: *table, scale: *scale };
            b.accumulate(*table, g, &[x[0], first()?])
        }
        Op::RmsNorm(n) => norm(b, n, x[0], first()?),
        Op::Linear(l) => linear(b, l, x[0], first()?),
        Op::JoinHeads { heads } => {
            let split = Grad::SplitHeads { heads: *heads, first: b.cols(x[0]) / heads };
            let parts = b.add(split, &[first()?])?;
            b.give(x[0], parts[0])?;
            b.give(x[1], parts[1])
        }
        Op::Add => {
            b.give(x[0], first()?)?;
            b.give(x[1], first()?)
        }
        Op::Scale(f) => {
            let dx = b.one(Op::Scale(*f), &[first()?])?;
            b.give(x[0], dx)
        }
        Op::Glu(act) => {
            let parts = b.add(Grad::Glu(*act), &[x[0], x[1], first()?])?;
            b.give(x[0], parts[0])?;
            b.give(x[1], parts[1])
        }
        Op::Act(act) => {
            let dx = b.one(Grad::Act(*act), &[x[0], first()?])?;
            b.give(x[0], dx)
        }
        Op::SigmoidGate => {
            let parts = b.add(Grad::SigmoidGate, &[x[0], x[1], first()?])?;
            b.give(x[0], parts[0])?;
            b.give(x[1], parts[1])
        }
        Op::Router(r) => {
            if matches!(r.score, Score::SparseMixer { .. }) {
                return Err(refused(op, "a sparsemixer is trained with an estimator that is not built"));
            }
            if r.expert_scale.is_some_and(|w| b.trains(w)) {
                return Err(refused(op, "factors of experts cannot be trained; freeze them"));
            }
            let Some(dw) = d[1] else { return Ok(()) };
            let dx = b.one(Grad::Router(*r), &[x[0], node.outputs[0], dw])?;
            b.give(x[0], dx)
        }
        Op::ScaleExpertInputs => scale_slots(b, x, true, first()?),
        Op::ExpertLinear(l) => expert_linear(b, l, x, first()?),
        Op::ExpertCombine => {
            let (dy, k) = (first()?, b.cols(x[1]));
            if b.needs(x[0]) {
                let dx = b.one(Math::ScaleSlots { shared: true }, &[dy, x[1]])?;
                b.give(x[0], dx)?;
            }
            let dw = b.one(Math::SlotDots { slots: k }, &[x[0], dy])?;
            b.give(x[1], dw)
        }
        Op::Math(m) => math(b, m, node, d),
        Op::Grad(_) => Err(refused(op, "gradients of gradients are not built")),
        Op::Rope(_) | Op::KvStore { .. } | Op::Attend(_) | Op::TakeOutputs => {
            Err(refused(op, "a graph is rewritten for training first"))
        }
        Op::ShortConv(_) | Op::DeltaNet(_) => Err(refused(op, "recurrent layers cannot be trained yet")),
        Op::NormLinears { .. }
        | Op::RopeStore { .. }
        | Op::LinearAdd { .. }
        | Op::LinearGlu { .. }
        | Op::NormRouter { .. }
        | Op::LinearAct { .. }
        | Op::ExpertGlu { .. }
        | Op::ExpertAct { .. }
        | Op::ExpertDownAdd { .. }
        | Op::LocalIds { .. }
        | Op::HostExperts { .. } => Err(refused(op, "a graph is differentiated before it is fused")),
    }
}

fn norm(b: &mut Back<'_>, n: &Norm, x: ValueId, dy: ValueId) -> Result<()> {
    if b.trains(n.weight) {
        b.accumulate(n.weight, Grad::NormWeight(*n), &[x, dy])?;
    }
    if let Some(bias) = n.bias.filter(|w| b.trains(*w)) {
        b.accumulate(bias, Grad::SumRows { into: bias }, &[dy])?;
    }
    if b.needs(x) {
        let dx = b.one(Grad::Norm(*n), &[x, dy])?;
        b.give(x, dx)?;
    }
    Ok(())
}

fn linear(b: &mut Back<'_>, l: &Linear, x: ValueId, dy: ValueId) -> Result<()> {
    if b.trains(l.weight) {
        b.accumulate(l.weight, Grad::Outer { into: l.weight }, &[x, dy])?;
    }
    if let Some(bias) = l.bias.filter(|w| b.trains(*w)) {
        b.accumulate(bias, Grad::SumRows { into: bias }, &[dy])?;
    }
    if b.needs(x) {
        let dx = b.one(Grad::LinearInput { weight: l.weight }, &[dy])?;
        b.give(x, dx)?;
    }
    Ok(())
}

fn expert_linear(b: &mut Back<'_>, l: &Linear, x: &[ValueId], dy: ValueId) -> Result<()> {
    let (x, ids) = (x[0], x[1]);
    if let Some(bias) = l.bias.filter(|w| b.trains(*w)) {
        b.accumulate(bias, Grad::ExpertSumRows { into: bias }, &[dy, ids])?;
    }
    // The slots of a sum have one gradient, which is read where it is.
    let dy = b.repeated(dy, b.cols(ids)).unwrap_or(dy);
    if b.trains(l.weight) {
        b.accumulate(l.weight, Grad::ExpertOuter { into: l.weight }, &[x, dy, ids])?;
    }
    if b.needs(x) {
        let mut dx = b.one(Grad::ExpertInput { weight: l.weight }, &[dy, ids])?;
        if b.cols(x) != b.cols(dx) {
            dx = b.one(Math::SumSlots { slots: b.cols(ids) }, &[dx])?;
        }
        b.give(x, dx)?;
    }
    Ok(())
}

/// The gradients of slots that are scaled: of `x[0]`, one row for all slots where it is `shared`, by the weights `x[1]`.
fn scale_slots(b: &mut Back<'_>, x: &[ValueId], shared: bool, dy: ValueId) -> Result<()> {
    if b.needs(x[0]) {
        let op = if shared { Op::ExpertCombine } else { Op::Math(Math::ScaleSlots { shared }) };
        let dx = b.one(op, &[dy, x[1]])?;
        b.give(x[0], dx)?;
    }
    if b.needs(x[1]) {
        let dw = b.one(Math::SlotDots { slots: b.cols(x[1]) }, &[dy, x[0]])?;
        b.give(x[1], dw)?;
    }
    Ok(())
}

fn math(b: &mut Back<'_>, m: &Math, node: &Node, d: &[Option<ValueId>]) -> Result<()> {
    let x = &node.inputs[..];
    let Some(dy) = d[0] else { return Err(refused(&node.op, "only its second result has a gradient")) };
    let dx = match m {
        Math::Numbers { .. } | Math::Ids { .. } | Math::Constant { .. } | Math::Noise { .. } => return Ok(()),
        Math::TopK { .. } | Math::MultiHot { .. } | Math::IdColumns { .. } | Math::Capacity(_) => return Ok(()),
        Math::Unary(Function::Step) => return Ok(()),
        Math::SelfAttend(_) | Math::CrossEntropy if d[1].is_some() => {
            return Err(refused(&node.op, "its logarithms of sums have none"));
        }
        Math::Rotate(r) => b.one(Math::Rotate(Rotation { inverse: !r.inverse, ..r.clone() }), &[dy, x[1]])?,
        Math::SelfAttend(a) => {
            let [o, lse] = node.outputs[..] else { return Err(refused(&node.op, "it lacks a result")) };
            if let Some(sinks) = a.sinks.filter(|w| b.trains(*w)) {
                b.accumulate(sinks, Grad::Sinks { into: sinks }, &[o, lse, dy])?;
            }
            if x[..3].iter().any(|v| b.needs(*v)) {
                let parts = b.add(Grad::SelfAttend(*a), &[x[0], x[1], x[2], x[3], o, lse, dy])?;
                return x[..3].iter().zip(parts).try_for_each(|(x, d)| b.give(*x, d));
            }
            return Ok(());
        }
        Math::CrossEntropy => b.one(Grad::CrossEntropy, &[x[0], x[1], node.outputs[1], dy])?,
        Math::Affine { factor, .. } => b.one(Math::Affine { factor: *factor, shift: 0.0 }, &[dy])?,
        Math::Unary(f) => b.one(Grad::Unary(*f), &[x[0], dy])?,
        Math::Binary(op) => return binary(b, *op, node, dy),
        Math::Reduce { mean, .. } => b.one(Math::Expand { mean: *mean }, &[dy, x[0]])?,
        Math::Expand { mean } => reduce_to(b, dy, x[0], *mean)?,
        Math::Softmax { groups } => b.one(Grad::Softmax { groups: *groups }, &[node.outputs[0], dy])?,
        Math::LogSumExp => {
            let p = b.one(Math::Softmax { groups: 1 }, &[x[0]])?;
            b.one(Math::Binary(Arithmetic::Mul), &[p, dy])?
        }
        Math::GatherSlots => b.one(Math::ScatterSlots { experts: b.cols(x[0]) }, &[dy, x[1]])?,
        Math::ScatterSlots { .. } => b.one(Math::GatherSlots, &[dy, x[1]])?,
        Math::Columns { first, count } => {
            let after = b.cols(x[0]) - first - count;
            b.one(Math::PadColumns { before: *first, after }, &[dy])?
        }
        Math::PadColumns { before, .. } => b.one(Math::Columns { first: *before, count: b.cols(x[0]) }, &[dy])?,
        Math::RepeatSlots { slots } => b.one(Math::SumSlots { slots: *slots }, &[dy])?,
        Math::SumSlots { slots } => b.one(Math::RepeatSlots { slots: *slots }, &[dy])?,
        Math::ScaleSlots { shared } => return scale_slots(b, x, *shared, dy),
        Math::SlotDots { .. } => {
            let shared = b.cols(x[0]) != b.cols(x[1]);
            if b.needs(x[0]) {
                let da = b.one(Math::ScaleSlots { shared }, &[x[1], dy])?;
                b.give(x[0], da)?;
            }
            let op = if shared { Op::ExpertCombine } else { Op::Math(Math::ScaleSlots { shared }) };
            let db = b.one(op, &[x[0], dy])?;
            return b.give(x[1], db);
        }
        Math::ExpertSum { .. } => return Err(refused(&node.op, "a graph is differentiated before it is fused")),
        Math::Dropout { p, stream } => b.one(Math::Dropout { p: *p, stream: *stream }, &[dy])?,
    };
    b.give(x[0], dx)
}

/// The gradients of `a ∘ b`, each summed over what was repeated of its operand.
fn binary(b: &mut Back<'_>, op: Arithmetic, node: &Node, dy: ValueId) -> Result<()> {
    let (x, y, out) = (node.inputs[0], node.inputs[1], node.outputs[0]);
    let of = |op| Op::Math(Math::Binary(op));
    let minus = || Op::Math(Math::Affine { factor: -1.0, shift: 0.0 });
    let [dx, db] = match op {
        Arithmetic::Add => [dy, dy],
        Arithmetic::Sub => [dy, b.one(minus(), &[dy])?],
        Arithmetic::Mul => [b.one(of(Arithmetic::Mul), &[dy, y])?, b.one(of(Arithmetic::Mul), &[dy, x])?],
        Arithmetic::Div => {
            let dx = b.one(of(Arithmetic::Div), &[dy, y])?;
            let along = b.one(of(Arithmetic::Mul), &[dx, out])?;
            [dx, b.one(minus(), &[along])?]
        }
        Arithmetic::Max => {
            let less = b.one(of(Arithmetic::Sub), &[y, x])?;
            let second = b.one(Math::Unary(Function::Step), &[less])?;
            let first = b.one(Math::Affine { factor: -1.0, shift: 1.0 }, &[second])?;
            [b.one(of(Arithmetic::Mul), &[dy, first])?, b.one(of(Arithmetic::Mul), &[dy, second])?]
        }
    };
    for (operand, d) in [(x, dx), (y, db)] {
        if b.needs(operand) {
            let d = reduce_to(b, d, operand, false)?;
            b.give(operand, d)?;
        }
    }
    Ok(())
}

/// Sums (or averages) d over the rows and columns that `like` has only one of.
fn reduce_to(b: &mut Back<'_>, d: ValueId, like: ValueId, mean: bool) -> Result<ValueId> {
    let (Type::F32(rows, cols), Type::F32(to_rows, to_cols)) = (b.ty(d), b.ty(like)) else { return Ok(d) };
    let mut d = d;
    if rows != to_rows && to_rows == Rows::Fixed(1) {
        d = b.one(Math::Reduce { axis: Axis::Rows, mean }, &[d])?;
    }
    if cols != to_cols {
        d = b.one(Math::Reduce { axis: Axis::Cols, mean }, &[d])?;
    }
    Ok(d)
}
