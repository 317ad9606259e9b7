//! Ops number by number: whole vectors on all threads.
//!
//! Activations whose derivative compares (`relu`, clamped units) and those that need `erf` are left to the reference code. Precision: f32;
//! exponentials to 1e-7.

use super::{super::buffer::Out, gemm::Machine};
use crate::{
    backend::cpu::{
        simd::{F32x16, N},
        simd_level::{SimdKernel, dispatch},
    },
    error::Result,
    ir::{Activation, Arithmetic, Grad, Math, Op},
    ops::{
        Array,
        train::{Operands, Value},
    },
};

/// Numbers of an item.
const PIECE: usize = 1 << 14;

/// A function of `I` numbers with `O` results, for sixteen at a time.
trait Lanes<const I: usize, const O: usize>: Copy + Sync {
    /// # Safety
    /// The processor has the features of `L`.
    unsafe fn of<L: F32x16>(&self, x: [L; I]) -> [L; O];
}

struct Job<'a, F, const I: usize, const O: usize> {
    f: F,
    x: [&'a [f32]; I],
    y: [&'a mut [f32]; O],
}

impl<F: Lanes<I, O>, const I: usize, const O: usize> SimdKernel for Job<'_, F, I, O> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let (f, x, mut y) = (self.f, self.x, self.y);
        let len = y[0].len();
        let whole = len / N * N;
        debug_assert!(x.iter().all(|x| x.len() == len) && y.iter().all(|y| y.len() == len));
        // SAFETY: whole vectors within slices of one length; the processor has the features.
        unsafe {
            for i in (0..whole).step_by(N) {
                let made = f.of::<L>(std::array::from_fn(|o| L::load(x[o].as_ptr().add(i))));
                for (y, made) in y.iter_mut().zip(made) {
                    made.store(y.as_mut_ptr().add(i));
                }
            }
            if whole == len {
                return;
            }
            let rest: [[f32; N]; I] = x.map(|x| {
                let mut own = [0f32; N];
                own[..len - whole].copy_from_slice(&x[whole..]);
                own
            });
            let made = f.of::<L>(std::array::from_fn(|o| L::load(rest[o].as_ptr())));
            for (y, made) in y.into_iter().zip(made) {
                let mut own = [0f32; N];
                made.store(own.as_mut_ptr());
                y[whole..].copy_from_slice(&own[..len - whole]);
            }
        }
    }
}

/// `f` of arrays of one shape.
fn each<const I: usize, const O: usize>(
    machine: Machine<'_>,
    f: impl Lanes<I, O>,
    x: [&Array<f32>; I],
) -> Result<Vec<Value<f32>>> {
    let (rows, cols, len) = (x[0].rows, x[0].cols, x[0].data.len());
    let mut y: [Array<f32>; O] = std::array::from_fn(|_| machine.spare.array(rows, cols));
    let outs = y.each_mut().map(|a| Out::new(&mut a.data));
    machine.pool.run(len.div_ceil(PIECE), &|_, p| {
        let range = p * PIECE..len.min((p + 1) * PIECE);
        // SAFETY: each piece is of one item.
        let y = outs.each_ref().map(|o| unsafe { o.slice(range.start, range.len()) });
        let job = Job { f, x: x.map(|a| &a.data[range.clone()]), y };
        // SAFETY: the processor has the level by the contract of `Machine`.
        unsafe { dispatch(machine.simd_level, job) };
    })?;
    Ok(y.into_iter().map(Value::Numbers).collect())
}

#[derive(Clone, Copy)]
struct Affine(f32, f32);
impl Lanes<1, 1> for Affine {
    #[inline(always)]
    unsafe fn of<L: F32x16>(&self, [x]: [L; 1]) -> [L; 1] {
        // SAFETY: the processor has the features.
        unsafe { [x.fma(L::splat(self.0), L::splat(self.1))] }
    }
}

#[derive(Clone, Copy)]
struct Plus;
impl Lanes<2, 1> for Plus {
    #[inline(always)]
    unsafe fn of<L: F32x16>(&self, [a, b]: [L; 2]) -> [L; 1] {
        // SAFETY: the processor has the features.
        unsafe { [a.add(b)] }
    }
}

#[derive(Clone, Copy)]
struct Minus;
impl Lanes<2, 1> for Minus {
    #[inline(always)]
    unsafe fn of<L: F32x16>(&self, [a, b]: [L; 2]) -> [L; 1] {
        // SAFETY: the processor has the features.
        unsafe { [a.sub(b)] }
    }
}

#[derive(Clone, Copy)]
struct Times;
impl Lanes<2, 1> for Times {
    #[inline(always)]
    unsafe fn of<L: F32x16>(&self, [a, b]: [L; 2]) -> [L; 1] {
        // SAFETY: the processor has the features.
        unsafe { [a.mul(b)] }
    }
}

/// An activation with its derivative.
trait Curve: Copy + Sync {
    /// The value and the slope at x.
    ///
    /// # Safety
    /// The processor has the features of `L`.
    unsafe fn at<L: F32x16>(x: L) -> [L; 2];
}

/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn sigmoid<L: F32x16>(x: L) -> L {
    // SAFETY: by the contract.
    unsafe {
        let one = L::splat(1.0);
        one.div(one.add(L::splat(0.0).sub(x).exp()))
    }
}

#[derive(Clone, Copy)]
struct Silu;
impl Curve for Silu {
    #[inline(always)]
    unsafe fn at<L: F32x16>(x: L) -> [L; 2] {
        // SAFETY: the processor has the features.
        unsafe {
            let (s, one) = (sigmoid(x), L::splat(1.0));
            [x.mul(s), s.mul(x.fma(one.sub(s), one))]
        }
    }
}

#[derive(Clone, Copy)]
struct Sigmoid;
impl Curve for Sigmoid {
    #[inline(always)]
    unsafe fn at<L: F32x16>(x: L) -> [L; 2] {
        // SAFETY: the processor has the features.
        unsafe {
            let s = sigmoid(x);
            [s, s.mul(L::splat(1.0).sub(s))]
        }
    }
}

#[derive(Clone, Copy)]
struct Identity;
impl Curve for Identity {
    #[inline(always)]
    unsafe fn at<L: F32x16>(x: L) -> [L; 2] {
        // SAFETY: the processor has the features.
        unsafe { [x, L::splat(1.0)] }
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;
impl Curve for GeluTanh {
    #[inline(always)]
    unsafe fn at<L: F32x16>(x: L) -> [L; 2] {
        const ROOT: f32 = 0.797_884_6;
        // SAFETY: the processor has the features.
        unsafe {
            let (one, half, square) = (L::splat(1.0), L::splat(0.5), x.mul(x));
            let inner = x.mul(square.fma(L::splat(ROOT * 0.044_715), L::splat(ROOT)));
            // tanh by exponentials: its error is of the size of 1's last place, beside which it is taken.
            let e = inner.add(inner).exp();
            let t = one.sub(L::splat(2.0).div(e.add(one)));
            let share = half.mul(one.add(t));
            let bend = square.fma(L::splat(ROOT * 3.0 * 0.044_715), L::splat(ROOT));
            let slope = half.mul(x).mul(one.sub(t.mul(t))).mul(bend).add(share);
            [x.mul(share), slope]
        }
    }
}

#[derive(Clone, Copy)]
struct Act<C>(C);
impl<C: Curve> Lanes<1, 1> for Act<C> {
    #[inline(always)]
    unsafe fn of<L: F32x16>(&self, [x]: [L; 1]) -> [L; 1] {
        // SAFETY: the processor has the features.
        unsafe { [C::at(x)[0]] }
    }
}

/// Of x and dy.
#[derive(Clone, Copy)]
struct ActGrad<C>(C);
impl<C: Curve> Lanes<2, 1> for ActGrad<C> {
    #[inline(always)]
    unsafe fn of<L: F32x16>(&self, [x, d]: [L; 2]) -> [L; 1] {
        // SAFETY: the processor has the features.
        unsafe { [C::at(x)[1].mul(d)] }
    }
}

/// Of gate and up.
#[derive(Clone, Copy)]
struct Glu<C>(C);
impl<C: Curve> Lanes<2, 1> for Glu<C> {
    #[inline(always)]
    unsafe fn of<L: F32x16>(&self, [gate, up]: [L; 2]) -> [L; 1] {
        // SAFETY: the processor has the features.
        unsafe { [C::at(gate)[0].mul(up)] }
    }
}

/// Of gate, up and dy.
#[derive(Clone, Copy)]
struct GluGrad<C>(C);
impl<C: Curve> Lanes<3, 2> for GluGrad<C> {
    #[inline(always)]
    unsafe fn of<L: F32x16>(&self, [gate, up, d]: [L; 3]) -> [L; 2] {
        // SAFETY: the processor has the features.
        unsafe {
            let [value, slope] = C::at(gate);
            [slope.mul(up).mul(d), value.mul(d)]
        }
    }
}

/// The four ops of an activation.
fn of_curve<C: Curve>(machine: Machine<'_>, c: C, x: &Operands<'_, f32>) -> Result<Option<Vec<Value<f32>>>> {
    Ok(Some(match &x.node.op {
        Op::Act(_) => each(machine, Act(c), [x.nums(0)])?,
        Op::Glu(_) => each(machine, Glu(c), [x.nums(0), x.nums(1)])?,
        Op::Grad(Grad::Act(_)) => each(machine, ActGrad(c), [x.nums(0), x.nums(1)])?,
        Op::Grad(Grad::Glu(_)) => each(machine, GluGrad(c), [x.nums(0), x.nums(1), x.nums(2)])?,
        _ => return Ok(None),
    }))
}

/// Evaluates an op of numbers by themselves; `None` for others.
///
/// # Errors
/// [`crate::Error::Device`] where a thread panicked.
pub fn eval(machine: Machine<'_>, x: &Operands<'_, f32>) -> Result<Option<Vec<Value<f32>>>> {
    Ok(Some(match &x.node.op {
        Op::Add => each(machine, Plus, [x.nums(0), x.nums(1)])?,
        Op::Scale(f) => each(machine, Affine(*f, 0.0), [x.nums(0)])?,
        Op::Math(Math::Affine { factor, shift }) => each(machine, Affine(*factor as f32, *shift as f32), [x.nums(0)])?,
        Op::Math(Math::Binary(op)) => {
            let (a, b) = (x.nums(0), x.nums(1));
            if (a.rows, a.cols) != (b.rows, b.cols) {
                return Ok(None);
            }
            match op {
                Arithmetic::Add => each(machine, Plus, [a, b])?,
                Arithmetic::Sub => each(machine, Minus, [a, b])?,
                Arithmetic::Mul => each(machine, Times, [a, b])?,
                Arithmetic::Div | Arithmetic::Max => return Ok(None),
            }
        }
        Op::Act(act) | Op::Glu(act) | Op::Grad(Grad::Act(act) | Grad::Glu(act)) => match act {
            Activation::Silu => return of_curve(machine, Silu, x),
            Activation::Sigmoid => return of_curve(machine, Sigmoid, x),
            Activation::Identity => return of_curve(machine, Identity, x),
            Activation::GeluTanh => return of_curve(machine, GeluTanh, x),
            Activation::Gelu | Activation::Relu | Activation::Tanh | Activation::ClampedSwiglu { .. } => {
                return Ok(None);
            }
        },
        _ => return Ok(None),
    }))
}
