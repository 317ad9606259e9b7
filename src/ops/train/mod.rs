//! Training's ops together: their shape rules by the pages, and the evaluation of a node by reference code.

mod eval;
mod feed;

pub use eval::{Operands, STARTS, Scope, Value, eval};
pub use feed::Feed;

use super::{
    arity, capacity, cross_entropy, elementwise, experts_shape, f32_of, infer, math, matrix_shape, rope, self_attend,
    slots, u32_of, weight_shape,
};
use crate::ir::{Grad, Graph, Math, Op, Rows, Type, WeightId};

/// Shape rule of an op of losses, routers or attention.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_math(m: &Math, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    match m {
        Math::Numbers { rows, cols, .. } => arity::<0>(inputs).map(|_| vec![Type::F32(Rows::Fixed(*rows), *cols)]),
        Math::Ids { cols, .. } => arity::<0>(inputs).map(|_| vec![Type::U32(Rows::Tokens, *cols)]),
        Math::Constant { cols, .. } => arity::<0>(inputs).map(|_| vec![Type::F32(Rows::Fixed(1), *cols)]),
        Math::Noise { cols, .. } => arity::<0>(inputs).map(|_| vec![Type::F32(Rows::Tokens, *cols)]),
        Math::Rotate(r) => rope::infer_rotate(r, inputs),
        Math::SelfAttend(a) => self_attend::infer(a, inputs, g),
        Math::CrossEntropy => cross_entropy::infer(inputs),
        Math::Affine { .. } | Math::Unary(_) => elementwise::infer_scale(inputs),
        Math::Dropout { p, .. } if !(0.0..1.0).contains(p) => Err(format!("a dropout of {p}")),
        Math::Dropout { .. } => elementwise::infer_scale(inputs),
        Math::Binary(_) => math::infer_binary(inputs),
        Math::Reduce { axis, .. } => math::infer_reduce(*axis, inputs),
        Math::Expand { .. } => math::infer_expand(inputs),
        Math::Softmax { groups } => math::infer_softmax(*groups, inputs),
        Math::LogSumExp => f32_of(&arity::<1>(inputs)?[0]).map(|(rows, _)| vec![Type::F32(rows, 1)]),
        Math::TopK { used, groups } => slots::infer_top_k(*used, *groups, inputs),
        Math::GatherSlots => slots::infer_gather(inputs),
        Math::ScatterSlots { experts } => slots::infer_scatter(*experts, inputs),
        Math::MultiHot { experts } => u32_of(&arity::<1>(inputs)?[0]).map(|(rows, _)| vec![Type::F32(rows, *experts)]),
        Math::IdColumns { first, count } => {
            let (rows, cols) = u32_of(&arity::<1>(inputs)?[0])?;
            within(*first, *count, cols).map(|()| vec![Type::U32(rows, *count)])
        }
        Math::Columns { first, count } => {
            let (rows, cols) = f32_of(&arity::<1>(inputs)?[0])?;
            within(*first, *count, cols).map(|()| vec![Type::F32(rows, *count)])
        }
        Math::PadColumns { before, after } => {
            f32_of(&arity::<1>(inputs)?[0]).map(|(rows, cols)| vec![Type::F32(rows, before + cols + after)])
        }
        Math::RepeatSlots { slots } => f32_of(&arity::<1>(inputs)?[0]).map(|(r, c)| vec![Type::F32(r, slots * c)]),
        Math::SumSlots { slots } => match f32_of(&arity::<1>(inputs)?[0])? {
            (rows, cols) if *slots > 0 && cols % slots == 0 => Ok(vec![Type::F32(rows, cols / slots)]),
            (_, cols) => Err(format!("{cols} columns in {slots} slots")),
        },
        Math::ScaleSlots { shared } => slots::infer_scale(*shared, inputs),
        Math::SlotDots { slots } => slots::infer_dots(*slots, inputs),
        Math::ExpertSum { weight, transposed } => {
            let [x, ids] = arity(inputs)?;
            let ((rows, cols), (_, k), [_, out, inp]) = (f32_of(&x)?, u32_of(&ids)?, experts_shape(g, *weight)?);
            let [from, to] = if *transposed { [out, inp] } else { [inp, out] };
            let fits = cols == from || cols == k * from;
            if fits { Ok(vec![Type::F32(rows, to)]) } else { Err(format!("{cols} columns in {k} slots for {from}")) }
        }
        Math::Capacity(c) => capacity::infer(c, inputs),
    }
}

fn within(first: usize, count: usize, cols: usize) -> Result<(), String> {
    if count > 0 && first + count <= cols { Ok(()) } else { Err(format!("columns {first} and {count} more of {cols}")) }
}

fn grads_of(g: &Graph, w: WeightId, len: usize) -> Result<Vec<Type>, String> {
    let d = g.weights.get(w.0 as usize).ok_or("an undeclared weight")?;
    let have: usize = d.shape.iter().product();
    if have == len { Ok(vec![Type::Grad(w)]) } else { Err(format!("a gradient of {len} numbers for {}", d.name)) }
}

/// Shape rule of an op of gradients.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_grad(op: &Grad, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let same = |a: Type, b: Type| if a == b { Ok(()) } else { Err(format!("{a} beside {b}")) };
    match op {
        Grad::Embed { into, .. } => {
            let [ids, dy] = arity(inputs)?;
            u32_of(&ids)?;
            weight_shape(g, *into, &[matrix_shape(g, *into)?[0], f32_of(&dy)?.1]).map(|()| vec![Type::Grad(*into)])
        }
        Grad::Norm(n) => {
            let [x, dy] = arity(inputs)?;
            same(x, dy)?;
            infer(&Op::RmsNorm(*n), &[x], g)
        }
        Grad::NormWeight(n) => {
            let [x, dy] = arity(inputs)?;
            same(x, dy)?;
            infer(&Op::RmsNorm(*n), &[x], g).map(|_| vec![Type::Grad(n.weight)])
        }
        Grad::LinearInput { weight } => {
            let (rows, cols) = f32_of(&arity::<1>(inputs)?[0])?;
            let [out, inp] = matrix_shape(g, *weight)?;
            if cols == out { Ok(vec![Type::F32(rows, inp)]) } else { Err(format!("{cols} columns for {out} rows")) }
        }
        Grad::Outer { into } => {
            let [x, dy] = arity(inputs)?;
            weight_shape(g, *into, &[f32_of(&dy)?.1, f32_of(&x)?.1]).map(|()| vec![Type::Grad(*into)])
        }
        Grad::SumRows { into } => {
            let (_, cols) = f32_of(&arity::<1>(inputs)?[0])?;
            let len = g.weights.get(into.0 as usize).map_or(0, |d| d.shape.iter().product());
            if len > 0 && cols % len == 0 { grads_of(g, *into, len) } else { Err(format!("{cols} columns for {len}")) }
        }
        Grad::ExpertInput { weight } => {
            let [dy, ids] = arity(inputs)?;
            let ((rows, cols), (_, k), [_, out, inp]) = (f32_of(&dy)?, u32_of(&ids)?, experts_shape(g, *weight)?);
            let fits = cols == out || cols == k * out;
            if fits { Ok(vec![Type::F32(rows, k * inp)]) } else { Err(format!("{cols} columns, {k} slots")) }
        }
        Grad::ExpertOuter { into } => {
            let [x, dy, ids] = arity(inputs)?;
            let ((_, cx), (_, cy), (_, k)) = (f32_of(&x)?, f32_of(&dy)?, u32_of(&ids)?);
            let [_, out, inp] = experts_shape(g, *into)?;
            let fits = (cy == out || cy == k * out) && (cx == inp || cx == k * inp);
            if fits { Ok(vec![Type::Grad(*into)]) } else { Err(format!("{x} and {dy} for experts of [{out}, {inp}]")) }
        }
        Grad::ExpertSumRows { into } => {
            let [dy, ids] = arity(inputs)?;
            let ((_, cols), (_, k), [_, out]) = (f32_of(&dy)?, u32_of(&ids)?, matrix_shape(g, *into)?);
            if cols == k * out { Ok(vec![Type::Grad(*into)]) } else { Err(format!("{dy} for biases of {out}")) }
        }
        Grad::SelfAttend(a) => {
            let [q, k, v, starts, o, lse, d] = arity(inputs)?;
            let made = self_attend::infer(a, &[q, k, v, starts], g)?;
            same(made[0], o).and(same(made[1], lse)).and(same(o, d)).map(|()| vec![q, k, v])
        }
        Grad::Sinks { into } => {
            let [o, lse, d] = arity(inputs)?;
            same(o, d)?;
            weight_shape(g, *into, &[f32_of(&lse)?.1]).map(|()| vec![Type::Grad(*into)])
        }
        Grad::SplitHeads { heads, first } => {
            let (rows, cols) = f32_of(&arity::<1>(inputs)?[0])?;
            if *heads == 0 || cols % heads != 0 || *first >= cols / heads {
                return Err(format!("{heads} heads in {cols} columns, {first} of each"));
            }
            Ok(vec![Type::F32(rows, heads * first), Type::F32(rows, cols - heads * first)])
        }
        Grad::Glu(_) => {
            let [gate, up, dy] = arity(inputs)?;
            same(gate, up).and(same(up, dy)).and(f32_of(&gate).map(|_| vec![gate, up]))
        }
        Grad::Act(_) | Grad::Unary(_) | Grad::Softmax { .. } => {
            let [x, dy] = arity(inputs)?;
            same(x, dy).and(f32_of(&x).map(|_| vec![x]))
        }
        Grad::SigmoidGate => {
            let [x, gate, dy] = arity(inputs)?;
            same(x, dy)?;
            elementwise::infer_sigmoid_gate(&[x, gate]).map(|_| vec![x, gate])
        }
        Grad::Router(r) => {
            let [logits, ids, dw] = arity(inputs)?;
            let made = infer(&Op::Router(*r), &[logits], g)?;
            same(made[0], ids).and(same(made[1], dw)).map(|()| vec![logits])
        }
        Grad::CrossEntropy => {
            let [logits, targets, lse, dnll] = arity(inputs)?;
            let made = cross_entropy::infer(&[logits, targets])?;
            same(made[0], dnll).and(same(made[1], lse)).map(|()| vec![logits])
        }
    }
}
