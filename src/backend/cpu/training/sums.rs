//! Gradients of vectors and tables: sums over rows, in pieces of a fixed size or by columns, so that any number of threads gives the same
//! bits. Precision: f32 within a piece of 128 rows, f64 beyond.

use super::{super::buffer::Out, gemm::Machine, rows::statistics};
use crate::{
    backend::cpu::{
        simd::F32x16,
        simd_level::{SimdKernel, dispatch},
    },
    error::{Error, Result},
    ir::{Grad, Norm, Op},
    ops::{
        Array, experts,
        train::{Operands, Scope, Value},
    },
};
use std::ops::Range;

/// Rows of a piece.
const PIECE: usize = 128;
/// Columns of an item.
const STRIP: usize = 64;

/// Adds to the gradient of a vector or a table; `None` for other ops, and for weights that are not trained, which is the reference code's
/// to say.
///
/// # Errors
/// [`Error::Invalid`] for an id out of range; [`Error::Device`] where a thread panicked.
pub fn eval(machine: Machine<'_>, x: &Operands<'_, f32>, s: &mut Scope<'_, f32>) -> Result<Option<Vec<Value<f32>>>> {
    let Op::Grad(g) = &x.node.op else { return Ok(None) };
    let Some(into) = g.adds_to() else { return Ok(None) };
    let shape = s.graph.weight(into).shape.clone();
    let Some(to) = &mut s.gradients[into.0 as usize] else { return Ok(None) };
    match g {
        Grad::NormWeight(n) => norm_weight(machine, x.nums(0), x.nums(1), n, to)?,
        Grad::SumRows { .. } => sum_rows(machine, x.nums(0), to)?,
        Grad::ExpertSumRows { .. } => expert_sum_rows(machine, x.nums(0), x.ids(1), shape[0], to)?,
        Grad::Embed { scale, .. } => embed(machine, x.ids(0), x.nums(1), *scale, to)?,
        _ => return Ok(None),
    }
    Ok(Some(vec![Value::Nothing]))
}

/// `Σ_r dy · (x − centre) · scale`, over the groups of all rows.
fn norm_weight(machine: Machine<'_>, x: &Array<f32>, d: &Array<f32>, n: &Norm, into: &mut [f32]) -> Result<()> {
    let len = into.len();
    let groups = x.data.len() / len.max(1);
    let mut parts = vec![0f32; groups.div_ceil(PIECE) * len];
    let out = Out::new(&mut parts);
    machine.pool.run(groups.div_ceil(PIECE), &|_, p| {
        let own = p * PIECE * len..groups.min((p + 1) * PIECE) * len;
        // SAFETY: each piece has its own sums.
        let to = unsafe { out.slice(p * len, len) };
        let job = NormWeight { x: &x.data[own.clone()], d: &d.data[own], n, to };
        // SAFETY: the processor has the level by the contract of `Machine`.
        unsafe { dispatch(machine.simd_level, job) };
    })?;
    let mut sums = vec![0f64; len];
    for part in parts.chunks(len.max(1)) {
        sums.iter_mut().zip(part).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    into.iter_mut().zip(sums).for_each(|(to, sum)| *to = (f64::from(*to) + sum) as f32);
    Ok(())
}

struct NormWeight<'a> {
    x: &'a [f32],
    d: &'a [f32],
    n: &'a Norm,
    to: &'a mut [f32],
}

impl SimdKernel for NormWeight<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let len = self.to.len();
        for (x, d) in self.x.chunks_exact(len).zip(self.d.chunks_exact(len)) {
            // SAFETY: the processor has the features.
            let (centre, scale) = unsafe { statistics::<L>(x, self.n) };
            self.to.iter_mut().zip(x).zip(d).for_each(|((to, x), d)| *to += (x - centre) * scale * d);
        }
    }
}

/// Calls `one` with strips of columns of `[.., cols]`.
fn strips(machine: Machine<'_>, cols: usize, one: &(dyn Fn(Range<usize>) + Sync)) -> Result<()> {
    machine.pool.run(cols.div_ceil(STRIP), &|_, i| one(i * STRIP..cols.min((i + 1) * STRIP)))
}

/// Sums over rows; of a bias that is shorter than a row over all of its groups.
fn sum_rows(machine: Machine<'_>, d: &Array<f32>, into: &mut [f32]) -> Result<()> {
    let len = into.len();
    let to = Out::new(into);
    strips(machine, len, &|own| {
        let mut sums = [0f64; STRIP];
        for row in d.data.chunks_exact(len) {
            sums.iter_mut().zip(&row[own.clone()]).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        // SAFETY: each strip is of one item.
        let to = unsafe { to.slice(own.start, own.len()) };
        to.iter_mut().zip(sums).for_each(|(to, sum)| *to = (f64::from(*to) + sum) as f32);
    })
}

/// The same of the slots of each expert.
fn expert_sum_rows(machine: Machine<'_>, d: &Array<f32>, ids: &[u32], count: usize, into: &mut [f32]) -> Result<()> {
    let out = into.len() / count.max(1);
    let (slots, to) = (experts::by_expert(ids, count), Out::new(into));
    machine.pool.run(count, &|_, e| {
        let mut sums = vec![0f64; out];
        for slot in &slots[e] {
            let row = &d.data[slot * out..(slot + 1) * out];
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        // SAFETY: each expert is of one item.
        let to = unsafe { to.slice(e * out, out) };
        to.iter_mut().zip(sums).for_each(|(to, sum)| *to = (f64::from(*to) + sum) as f32);
    })
}

/// The rows of a table by ids: tokens of one id in ascending order.
fn embed(machine: Machine<'_>, ids: &[u32], d: &Array<f32>, scale: f32, into: &mut [f32]) -> Result<()> {
    let (cols, rows) = (d.cols, into.len() / d.cols.max(1));
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        return Err(Error::Invalid(format!("token id {id} is not below {rows}")));
    }
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|t| ids[*t]);
    let tokens: Vec<&[usize]> = order.chunk_by(|a, b| ids[*a] == ids[*b]).collect();
    let to = Out::new(into);
    machine.pool.run(tokens.len(), &|_, i| {
        let mut sums = vec![0f64; cols];
        for t in tokens[i] {
            sums.iter_mut().zip(d.row(*t)).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        // SAFETY: each id has a row of its own, and is of one item.
        let to = unsafe { to.slice(ids[tokens[i][0]] as usize * cols, cols) };
        to.iter_mut().zip(sums).for_each(|(to, sum)| *to = (f64::from(*to) + sum * f64::from(scale)) as f32);
    })
}
