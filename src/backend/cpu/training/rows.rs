//! Ops row by row: norms, cross entropy, what the slots of a token are scaled with and summed by; blocks of rows on all threads.
//!
//! Precision: f32; sums of exponentials in pieces of 4096, which are added in f64.

use super::{super::buffer::Out, gemm::Machine};
use crate::{
    backend::cpu::{
        simd::{F32x16, N},
        simd_level::{SimdKernel, dispatch},
    },
    error::{Error, Result},
    ir::{Grad, Math, Norm, NormKind, Op},
    ops::{
        Array, Weights,
        train::{Operands, Scope, Value},
    },
};
use std::ops::Range;

/// Numbers of an item, about.
const PIECE: usize = 1 << 14;
/// Exponentials that are summed in f32.
const EXPONENTIALS: usize = 4096;

/// `Σ a b`.
///
/// # Safety
/// Both have one length; the processor has the features of `L`.
#[inline(always)]
unsafe fn dot<L: F32x16>(a: &[f32], b: &[f32]) -> f32 {
    let whole = a.len() / N * N;
    // SAFETY: whole vectors within both slices.
    unsafe {
        let mut sum = L::splat(0.0);
        for i in (0..whole).step_by(N) {
            sum = L::load(a.as_ptr().add(i)).fma(L::load(b.as_ptr().add(i)), sum);
        }
        let rest: f32 = a[whole..].iter().zip(&b[whole..]).map(|(a, b)| a * b).sum();
        sum.sum() + rest
    }
}

/// What is summed of a row's numbers. (A closure would not be compiled with the instructions of a level.)
trait Summand: Copy {
    /// Of sixteen numbers.
    ///
    /// # Safety
    /// The processor has the features of `L`.
    unsafe fn of<L: F32x16>(self, x: L) -> L;

    /// Of one number.
    fn one(self, x: f32) -> f32;
}

/// The numbers themselves.
#[derive(Clone, Copy)]
struct Itself;
impl Summand for Itself {
    #[inline(always)]
    unsafe fn of<L: F32x16>(self, x: L) -> L {
        x
    }

    fn one(self, x: f32) -> f32 {
        x
    }
}

/// Squares of the distance to a number.
#[derive(Clone, Copy)]
struct SquareFrom(f32);
impl Summand for SquareFrom {
    #[inline(always)]
    unsafe fn of<L: F32x16>(self, x: L) -> L {
        // SAFETY: by the contract.
        unsafe {
            let d = x.sub(L::splat(self.0));
            d.mul(d)
        }
    }

    fn one(self, x: f32) -> f32 {
        (x - self.0) * (x - self.0)
    }
}

/// `e^(x − shift)`.
#[derive(Clone, Copy)]
struct Exponential(f32);
impl Summand for Exponential {
    #[inline(always)]
    unsafe fn of<L: F32x16>(self, x: L) -> L {
        // SAFETY: by the contract.
        unsafe { x.sub(L::splat(self.0)).exp() }
    }

    fn one(self, x: f32) -> f32 {
        (x - self.0).exp()
    }
}

/// `Σ f(x)`.
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn sum_of<L: F32x16>(x: &[f32], f: impl Summand) -> f32 {
    let whole = x.len() / N * N;
    // SAFETY: whole vectors within the slice.
    unsafe {
        let mut sum = L::splat(0.0);
        for i in (0..whole).step_by(N) {
            sum = sum.add(f.of(L::load(x.as_ptr().add(i))));
        }
        sum.sum() + x[whole..].iter().map(|x| f.one(*x)).sum::<f32>()
    }
}

/// The mean that a norm takes away, and what it multiplies with.
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
pub unsafe fn statistics<L: F32x16>(x: &[f32], n: &Norm) -> (f32, f32) {
    let count = x.len() as f32;
    // SAFETY: by the contract.
    unsafe {
        let centre = match n.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum_of::<L>(x, Itself) / count,
        };
        let squares = sum_of::<L>(x, SquareFrom(centre));
        (centre, 1.0 / (squares / count + n.eps).sqrt())
    }
}

/// The largest number.
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn largest<L: F32x16>(x: &[f32]) -> f32 {
    let whole = x.len() / N * N;
    // SAFETY: whole vectors within the slice.
    unsafe {
        let mut most = L::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(N) {
            // What is not a number stays: it is the second operand.
            most = most.max(L::load(x.as_ptr().add(i)));
        }
        x[whole..].iter().fold(most.largest(), |m, x| if *x > m || x.is_nan() { *x } else { m })
    }
}

/// `Σ e^(x − shift)`.
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn exponentials<L: F32x16>(x: &[f32], shift: f32) -> f64 {
    let mut sum = 0.0;
    for part in x.chunks(EXPONENTIALS) {
        // SAFETY: by the contract.
        let own = unsafe { sum_of::<L>(part, Exponential(shift)) };
        sum += f64::from(own);
    }
    sum
}

/// What is computed for some rows.
#[derive(Clone, Copy)]
enum Kind<'a> {
    Norm {
        n: &'a Norm,
        weight: &'a [f32],
        bias: Option<&'a [f32]>,
    },
    NormGrad {
        n: &'a Norm,
        weight: &'a [f32],
    },
    CrossEntropy {
        targets: &'a [u32],
    },
    CrossEntropyGrad {
        targets: &'a [u32],
    },
    /// y[r, j, :] = w[r, j] · x[r, j, :], or of x[r, :].
    ScaleSlots,
    SumSlots {
        slots: usize,
    },
    SlotDots {
        slots: usize,
    },
    Combine,
    SigmoidGate,
}

/// Some rows of an op: of each operand and result those rows.
struct Job<'a> {
    kind: Kind<'a>,
    x: [&'a [f32]; 3],
    /// Columns of operands.
    cols: [usize; 3],
    y: [&'a mut [f32]; 2],
    first: usize,
    rows: usize,
}

impl Job<'_> {
    fn row(&self, i: usize, r: usize) -> &[f32] {
        &self.x[i][r * self.cols[i]..(r + 1) * self.cols[i]]
    }
}

impl SimdKernel for Job<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(mut self) {
        let [y, z] = std::mem::take(&mut self.y);
        let cols = y.len() / self.rows.max(1);
        for r in 0..self.rows {
            let to = &mut y[r * cols..(r + 1) * cols];
            // SAFETY: the processor has the features.
            unsafe {
                match self.kind {
                    Kind::Norm { n, weight, bias } => norm::<L>(self.row(0, r), n, weight, bias, to),
                    Kind::NormGrad { n, weight } => norm_grad::<L>(self.row(0, r), self.row(1, r), n, weight, to),
                    Kind::CrossEntropy { targets } => {
                        let target = targets[self.first + r] as usize;
                        [to[0], z[r]] = cross_entropy::<L>(self.row(0, r), target);
                    }
                    Kind::CrossEntropyGrad { targets } => {
                        let (target, by) = (targets[self.first + r] as usize, self.row(2, r)[0]);
                        cross_entropy_grad::<L>(self.row(0, r), target, self.row(1, r)[0], by, to);
                    }
                    Kind::ScaleSlots => {
                        let (x, w) = (self.row(0, r), self.row(1, r));
                        let n = cols / w.len();
                        for (j, (to, w)) in to.chunks_exact_mut(n).zip(w).enumerate() {
                            let x = if x.len() == n { x } else { &x[j * n..(j + 1) * n] };
                            to.iter_mut().zip(x).for_each(|(to, x)| *to = w * x);
                        }
                    }
                    Kind::SumSlots { slots } => {
                        let mut parts = self.row(0, r).chunks_exact(self.cols[0] / slots);
                        to.copy_from_slice(parts.next().unwrap_or_default());
                        parts.for_each(|x| to.iter_mut().zip(x).for_each(|(to, x)| *to += x));
                    }
                    Kind::SlotDots { slots } => {
                        let (a, b) = (self.row(0, r), self.row(1, r));
                        let n = a.len() / slots;
                        for (j, (to, a)) in to.iter_mut().zip(a.chunks_exact(n)).enumerate() {
                            *to = dot::<L>(a, if b.len() == n { b } else { &b[j * n..(j + 1) * n] });
                        }
                    }
                    Kind::Combine => {
                        to.fill(0.0);
                        for (x, w) in self.row(0, r).chunks_exact(cols).zip(self.row(1, r)) {
                            to.iter_mut().zip(x).for_each(|(to, x)| *to += w * x);
                        }
                    }
                    Kind::SigmoidGate => {
                        let s = 1.0 / (1.0 + (-self.row(1, r)[0]).exp());
                        to.iter_mut().zip(self.row(0, r)).for_each(|(to, x)| *to = s * x);
                    }
                }
            }
        }
    }
}

/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn norm<L: F32x16>(x: &[f32], n: &Norm, weight: &[f32], bias: Option<&[f32]>, to: &mut [f32]) {
    for (x, to) in x.chunks_exact(weight.len()).zip(to.chunks_exact_mut(weight.len())) {
        // SAFETY: by the contract.
        let (centre, scale) = unsafe { statistics::<L>(x, n) };
        to.iter_mut().zip(x).zip(weight).for_each(|((to, x), w)| *to = (x - centre) * scale * w);
        if let Some(bias) = bias {
            to.iter_mut().zip(bias).for_each(|(to, b)| *to += b);
        }
    }
}

/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn norm_grad<L: F32x16>(x: &[f32], d: &[f32], n: &Norm, weight: &[f32], to: &mut [f32]) {
    let len = weight.len();
    for ((x, d), to) in x.chunks_exact(len).zip(d.chunks_exact(len)).zip(to.chunks_exact_mut(len)) {
        // SAFETY: by the contract; slices of one length.
        let (centre, scale, along, mean) = unsafe {
            let (centre, scale) = statistics::<L>(x, n);
            to.iter_mut().zip(d).zip(weight).for_each(|((to, d), w)| *to = d * w);
            // Σ g (x − centre) is Σ g x − centre Σ g; the second is 0 where nothing is taken away.
            let (own, plain) = match n.kind {
                NormKind::Rms => (dot::<L>(to, x), 0.0),
                NormKind::Layer => {
                    let plain = sum_of::<L>(to, Itself);
                    let own: f64 = to.iter().zip(x).map(|(g, x)| f64::from(*g) * f64::from(x - centre)).sum();
                    (own as f32, plain)
                }
            };
            (centre, scale, own * scale / len as f32, plain / len as f32)
        };
        to.iter_mut().zip(x).for_each(|(to, x)| *to = scale * (*to - mean - (x - centre) * scale * along));
    }
}

/// The loss of a row, and the logarithm of the sum of its exponentials.
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn cross_entropy<L: F32x16>(x: &[f32], target: usize) -> [f32; 2] {
    // SAFETY: by the contract.
    let (most, others) = unsafe {
        let most = largest::<L>(x);
        // Without the target's own: beside a likely target the others keep their digits.
        (most, exponentials::<L>(&x[..target], most) + exponentials::<L>(&x[target + 1..], most))
    };
    let below = f64::from(x[target] - most);
    let loss = if below == 0.0 { others.ln_1p() } else { (others + below.exp()).ln() - below };
    [loss as f32, (f64::from(most) + (others + below.exp()).ln()) as f32]
}

/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn cross_entropy_grad<L: F32x16>(x: &[f32], target: usize, lse: f32, by: f32, to: &mut [f32]) {
    let whole = x.len() / N * N;
    // SAFETY: whole vectors within slices of one length; the features by the contract.
    unsafe {
        let (s, b) = (L::splat(lse), L::splat(by));
        for i in (0..whole).step_by(N) {
            L::load(x.as_ptr().add(i)).sub(s).exp().mul(b).store(to.as_mut_ptr().add(i));
        }
    }
    to[whole..].iter_mut().zip(&x[whole..]).for_each(|(to, x)| *to = (x - lse).exp() * by);
    to[target] = (f64::from(x[target] - lse).exp_m1() * f64::from(by)) as f32;
}

/// Which operands and results an op has, as a kind; `None` for others.
fn kind<'a>(x: &Operands<'a, f32>, vectors: &'a [Vec<f32>]) -> Option<(Kind<'a>, usize)> {
    Some(match &x.node.op {
        Op::RmsNorm(n) => (Kind::Norm { n, weight: &vectors[0], bias: vectors.get(1).map(|b| &b[..]) }, 1),
        Op::Grad(Grad::Norm(n)) => (Kind::NormGrad { n, weight: &vectors[0] }, 2),
        Op::Math(Math::CrossEntropy) => (Kind::CrossEntropy { targets: x.ids(1) }, 1),
        Op::Grad(Grad::CrossEntropy) => (Kind::CrossEntropyGrad { targets: x.ids(1) }, 3),
        Op::Math(Math::ScaleSlots { .. }) => (Kind::ScaleSlots, 2),
        Op::Math(Math::SumSlots { slots }) => (Kind::SumSlots { slots: *slots }, 1),
        Op::Math(Math::SlotDots { slots }) => (Kind::SlotDots { slots: *slots }, 2),
        Op::ExpertCombine => (Kind::Combine, 2),
        Op::SigmoidGate => (Kind::SigmoidGate, 2),
        _ => return None,
    })
}

/// Vectors of weights that an op reads.
fn vectors(op: &Op, w: Weights<'_, f32>) -> Vec<Vec<f32>> {
    match op {
        Op::RmsNorm(n) => n.weights().map(|v| w.vector(v)).collect(),
        Op::Grad(Grad::Norm(n)) => vec![w.vector(n.weight)],
        _ => vec![],
    }
}

/// Operands of numbers in the order of a job, without the targets among them.
fn operands<'a>(x: &Operands<'a, f32>, count: usize) -> Vec<&'a Array<f32>> {
    match &x.node.op {
        Op::Grad(Grad::CrossEntropy) => [0, 2, 3].map(|i| x.nums(i)).to_vec(),
        _ => (0..count).map(|i| x.nums(i)).collect(),
    }
}

/// Evaluates an op of rows; `None` for others.
///
/// # Errors
/// [`Error::Invalid`] for a target out of range; [`Error::Device`] where a thread panicked.
pub fn eval(machine: Machine<'_>, x: &Operands<'_, f32>, s: &Scope<'_, f32>) -> Result<Option<Vec<Value<f32>>>> {
    let vectors = vectors(&x.node.op, s.weights);
    let Some((kind, count)) = kind(x, &vectors) else { return Ok(None) };
    let operands = operands(x, count);
    if let Kind::CrossEntropy { targets } | Kind::CrossEntropyGrad { targets } = kind {
        let bound = operands[0].cols;
        if let Some(id) = targets.iter().find(|id| **id as usize >= bound) {
            return Err(Error::Invalid(format!("target {id} is not below {bound}")));
        }
    }
    let rows = operands[0].rows;
    let mut made: Vec<Array<f32>> =
        x.node.outputs.iter().map(|v| machine.spare.array(rows, s.graph.cols(*v))).collect();
    let widest = operands.iter().map(|a| a.cols).chain(made.iter().map(|a| a.cols)).max().unwrap_or(1);
    let block = (PIECE / widest.max(1)).max(1);
    let sizes: Vec<usize> = made.iter().map(|a| a.cols).collect();
    let outs: Vec<_> = made.iter_mut().map(|a| Out::new(&mut a.data)).collect();
    machine.pool.run(rows.div_ceil(block), &|_, item| {
        let own: Range<usize> = item * block..rows.min((item + 1) * block);
        let part = |i: usize| operands.get(i).map_or(&[][..], |a| &a.data[own.start * a.cols..own.end * a.cols]);
        let cols = [0, 1, 2].map(|i| operands.get(i).map_or(0, |a| a.cols));
        let y = [0, 1].map(|i| match (outs.get(i), sizes.get(i)) {
            // SAFETY: each block has its rows of every result to itself.
            (Some(out), Some(n)) => unsafe { out.slice(own.start * n, own.len() * n) },
            _ => &mut [],
        });
        let job = Job { kind, x: [part(0), part(1), part(2)], cols, y, first: own.start, rows: own.len() };
        // SAFETY: the processor has the level by the contract of `Machine`.
        unsafe { dispatch(machine.simd_level, job) };
    })?;
    drop(outs);
    Ok(Some(made.into_iter().map(Value::Numbers).collect()))
}
