//! PEFT's adapters of whole parameters (`target_parameters`) of experts.
//!
//! PEFT's `ParamWrapper` takes a parameter of E matrices and has `lora_A` `[E·r, in]`, expert by expert, and `lora_B` `[out, r·E]`,
//! in which the expert is the *fastest* index:
//!
//! ΔW[e, o, i] = s · Σⱼ lora_B[o, j·E + e] · lora_A[e·r + j, i].
//!
//! What it takes for inputs and outputs has changed. Since 0.20 they are the matrices' own. Up to 0.18 inputs were the parameter's
//! second dimension, whatever the model means by it: of parameters that are stored `[E, out, in]` the two are flipped. 0.19 flipped
//! those that are stored `[E, in, out]`, too. Shapes tell which of them a file has, and for square matrices `peft_version`.
//! What is written here is the form of 0.20.
//!
//! Source: peft/tuners/lora/layer.py, `ParamWrapper.get_delta_weight`, in 0.17.1 to 0.21.2.

use crate::{
    error::{Error, Result},
    file::Tensor,
    graph::LowRank,
    model::{names::ExpertLayout, tensors::numbers},
};

/// A pair of PEFT's.
pub(super) struct Pair<'a> {
    pub a: &'a Tensor,
    pub b: &'a Tensor,
}

/// One of our weights that is a part of a parameter: its outputs among those of the parameter are `first + step · o`.
pub(super) struct Part<'a> {
    pub weight: &'a str,
    /// E, out, in.
    pub shape: [usize; 3],
    pub first: usize,
    pub step: usize,
}

/// Rows of gate (0) and up (1), `rows` each, among those of a merged parameter.
pub(super) fn half(which: usize, rows: usize, layout: ExpertLayout) -> (usize, usize) {
    match layout {
        ExpertLayout::Rows | ExpertLayout::Columns => (which * rows, 1),
        ExpertLayout::InterleavedColumns => (which, 2),
    }
}

/// Whether PEFT's inputs are the outputs of a matrix, in a file of this version: the first two of its numbers.
pub(super) fn flipped(layout: ExpertLayout, version: Option<[u32; 2]>) -> bool {
    match version {
        Some(v) if v >= [0, 20] => false,
        Some(v) if v >= [0, 19] => true,
        Some(_) | None => layout == ExpertLayout::Rows,
    }
}

/// The pair of one of our weights.
pub(super) fn ours(p: &Pair<'_>, part: &Part<'_>, flipped: bool, factor: f32) -> Result<LowRank> {
    let [e, out, inp] = part.shape;
    let bad = || Error::Model(format!("an adapter of experts with shapes {:?} and {:?}", p.a.shape(), p.b.shape()));
    let ([rows, d1], [d2, cols]) = (two(p.a).ok_or_else(bad)?, two(p.b).ok_or_else(bad)?);
    if e == 0 || rows % e != 0 || cols != rows {
        return Err(bad());
    }
    let r = rows / e;
    let (la, lb) = (numbers(p.a)?, numbers(p.b)?);
    // By expert, index of the rank, and input or output as PEFT calls them.
    let of_a = |x: usize, j: usize, i: usize| la[(x * r + j) * d1 + i];
    let of_b = |x: usize, j: usize, o: usize| lb[o * cols + j * e + x];
    let row = |o: usize| part.first + part.step * o;
    let [outs, ins] = if flipped { [d1, d2] } else { [d2, d1] };
    if inp != ins || (out > 0 && row(out - 1) >= outs) {
        return Err(bad());
    }
    let (mut a, mut b) = (Vec::with_capacity(e * r * inp), Vec::with_capacity(e * out * r));
    for x in 0..e {
        for j in 0..r {
            a.extend((0..inp).map(|i| if flipped { of_b(x, j, i) } else { of_a(x, j, i) }));
        }
        for o in 0..out {
            b.extend((0..r).map(|j| factor * if flipped { of_a(x, j, row(o)) } else { of_b(x, j, row(o)) }));
        }
    }
    Ok(LowRank {
        weight: part.weight.into(),
        a: Tensor::from_f32(vec![e, r, inp], a)?,
        b: Tensor::from_f32(vec![e, out, r], b)?,
        scale: 1.0,
    })
}

/// Two of our pairs of one rank as PEFT's pair of the merged parameter: of rank 2r, its B block-diagonal (gate's, then up's), so
/// that its factor has to be doubled where it is divided by the rank. One pair alone stays what it is.
pub(super) fn theirs(parts: &[(&LowRank, usize, usize)], outs: usize) -> Result<[Tensor; 2]> {
    let bad = || Error::Model("an adapter of experts that is none".into());
    let first = parts.first().ok_or_else(bad)?.0;
    let &[e, r, inp] = first.a.shape() else { return Err(bad()) };
    let rank = r * parts.len();
    let (mut a, mut b) = (vec![0.0f32; e * rank * inp], vec![0.0f32; e * outs * rank]);
    for (n, (pair, start, step)) in parts.iter().enumerate() {
        let (pa, pb, out) = (numbers(&pair.a)?, numbers(&pair.b)?, pair.b.shape().get(1).copied().unwrap_or(0));
        if pair.a.shape() != [e, r, inp]
            || pair.b.shape() != [e, out, r]
            || (out > 0 && start + step * (out - 1) >= outs)
        {
            return Err(bad());
        }
        for x in 0..e {
            for j in 0..r {
                let at = (x * rank + n * r + j) * inp;
                a[at..at + inp].copy_from_slice(&pa[(x * r + j) * inp..(x * r + j + 1) * inp]);
                for o in 0..out {
                    b[(x * outs + start + step * o) * rank + n * r + j] = pb[(x * out + o) * r + j];
                }
            }
        }
    }
    // `[E, rank, in]` and `[E, outs, rank]` in PEFT's two orders.
    let by_expert = |v: &dyn Fn(usize, usize, usize) -> f32, n: usize| {
        let mut t = Vec::with_capacity(e * rank * n);
        for x in 0..e {
            (0..rank).for_each(|j| t.extend((0..n).map(|i| v(x, j, i))));
        }
        Tensor::from_f32(vec![e * rank, n], t)
    };
    let expert_last = |v: &dyn Fn(usize, usize, usize) -> f32, n: usize| {
        let mut t = Vec::with_capacity(n * rank * e);
        for o in 0..n {
            (0..rank).for_each(|j| t.extend((0..e).map(|x| v(x, j, o))));
        }
        Tensor::from_f32(vec![n, rank * e], t)
    };
    let of_a = |x: usize, j: usize, i: usize| a[(x * rank + j) * inp + i];
    let of_b = |x: usize, j: usize, o: usize| b[(x * outs + o) * rank + j];
    Ok([by_expert(&of_a, inp)?, expert_last(&of_b, outs)?])
}

fn two(t: &Tensor) -> Option<[usize; 2]> {
    <[usize; 2]>::try_from(t.shape()).ok()
}
