//! Kernels of ops that treat each row by itself: norms, rotary embeddings, activations, sums of two rows.

use super::{
    simd::{F32x16, N},
    simd_level::SimdKernel,
};
use crate::{
    ir::{Activation, Rope, RopePairs},
    ops::{
        elementwise::{activate, gated},
        rope::cos_sin,
    },
};

/// The sum of a slice whose length is a multiple of 64, to measure memory bandwidth with.
pub struct Sum<'a>(pub &'a [f32]);

impl SimdKernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) -> f32 {
        // SAFETY: chunks have 64 elements; the processor has the features by the contract.
        unsafe {
            let mut s = [L::splat(0.0); 4];
            for c in self.0.chunks_exact(4 * N) {
                for (i, s) in s.iter_mut().enumerate() {
                    *s = s.add(L::load(c.as_ptr().add(N * i)));
                }
            }
            s[0].add(s[1]).add(s[2].add(s[3])).sum()
        }
    }
}

/// `y = w · x / sqrt(mean(x²) + eps)` over each group of `w.len()` values of `x`. `x` and `y` have one length.
pub struct RmsNorm<'a> {
    /// Input.
    pub x: &'a [f32],
    /// Output.
    pub y: &'a mut [f32],
    /// Weight.
    pub w: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

impl SimdKernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let n = self.w.len();
        for (x, y) in self.x.chunks_exact(n).zip(self.y.chunks_exact_mut(n)) {
            let whole = n / N * N;
            // SAFETY: vectors lie within the first `whole` elements of each slice; the processor has the features.
            unsafe {
                let mut s = [L::splat(0.0); 2];
                for i in (0..whole).step_by(N) {
                    let v = L::load(x.as_ptr().add(i));
                    s[(i / N) & 1] = v.fma(v, s[(i / N) & 1]);
                }
                let rest: f32 = x[whole..].iter().map(|v| v * v).sum();
                let mean = (s[0].add(s[1]).sum() + rest) / n as f32;
                let r = 1.0 / (mean + self.eps).sqrt();
                for i in (0..whole).step_by(N) {
                    let v = L::load(x.as_ptr().add(i)).mul(L::splat(r));
                    v.mul(L::load(self.w.as_ptr().add(i))).store(y.as_mut_ptr().add(i));
                }
                for i in whole..n {
                    y[i] = x[i] * r * self.w[i];
                }
            }
        }
    }
}

/// The same as [`RmsNorm`], in place.
pub struct NormInPlace<'a> {
    /// Input and output.
    pub x: &'a mut [f32],
    /// Weight.
    pub w: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

impl SimdKernel for NormInPlace<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        for x in self.x.chunks_exact_mut(self.w.len()) {
            let r = 1.0 / (vector_sum(x, |v| v * v) / x.len() as f32 + self.eps).sqrt();
            x.iter_mut().zip(self.w).for_each(|(x, w)| *x = *x * r * w);
        }
    }
}

/// `y = w · (x − mean) / sqrt(var + eps) + b` over each group of `w.len()` values of `x`. Without centring it is the
/// root-mean-square norm with a bias.
pub struct LayerNorm<'a> {
    /// Input.
    pub x: &'a [f32],
    /// Output.
    pub y: &'a mut [f32],
    /// Weight.
    pub w: &'a [f32],
    /// The bias, as long as the weight.
    pub b: Option<&'a [f32]>,
    /// Whether the mean is subtracted.
    pub centred: bool,
    /// Added to the variance.
    pub eps: f32,
}

impl SimdKernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let n = self.w.len();
        for (x, y) in self.x.chunks_exact(n).zip(self.y.chunks_exact_mut(n)) {
            let mean = if self.centred { vector_sum(x, |v| v) / n as f32 } else { 0.0 };
            let variance = vector_sum(x, |v| (v - mean) * (v - mean)) / n as f32;
            let r = 1.0 / (variance + self.eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(self.w) {
                *y = (x - mean) * r * w;
            }
            if let Some(b) = self.b {
                y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
            }
        }
    }
}

/// The sum of `f(x)` over all values, in 16 partial sums that the compiler keeps in vector registers.
#[inline(always)]
fn vector_sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; 16];
    let chunks = x.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().map(|v| f(*v)).sum();
    for c in chunks {
        sums.iter_mut().zip(c).for_each(|(s, v)| *s += f(*v));
    }
    sums.iter().sum::<f32>() + rest
}

/// `gate = act(gate) · up` elementwise, or the clamped form of [`Activation::ClampedSwiglu`].
pub struct Glu<'a> {
    /// The gate values, which become the result.
    pub gate: &'a mut [f32],
    /// The up values, as many.
    pub up: &'a [f32],
    /// The activation of the gate.
    pub act: Activation,
}

/// Activations that a gated unit has vector code for.
#[derive(Clone, Copy)]
enum VectorAct {
    Identity,
    Sigmoid,
    /// `g · sigmoid(alpha · g)`. With a limit, gate and up are clamped first and 1 is added to up.
    Swish {
        alpha: f32,
        limit: Option<f32>,
    },
}

impl VectorAct {
    /// `None` for activations that are computed value by value with the code of their op page.
    fn of(act: Activation) -> Option<Self> {
        match act {
            Activation::Identity => Some(VectorAct::Identity),
            Activation::Sigmoid => Some(VectorAct::Sigmoid),
            Activation::Silu => Some(VectorAct::Swish { alpha: 1.0, limit: None }),
            Activation::ClampedSwiglu { alpha, limit } => Some(VectorAct::Swish { alpha, limit: Some(limit) }),
            Activation::Gelu | Activation::GeluTanh | Activation::Relu | Activation::Tanh => None,
        }
    }
}

impl SimdKernel for Glu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let n = self.gate.len().min(self.up.len());
        let mut whole = 0;
        if let Some(act) = VectorAct::of(self.act) {
            whole = n / N * N;
            // SAFETY: the first `whole` elements of both slices are whole vectors; the processor has the features.
            unsafe { glu_vectors::<L>(act, &mut self.gate[..whole], &self.up[..whole]) }
        }
        for (g, u) in self.gate[whole..n].iter_mut().zip(&self.up[whole..n]) {
            *g = gated(self.act, f64::from(*g), f64::from(*u)) as f32;
        }
    }
}

/// `gate = act(gate) · up` for slices of one length, a multiple of [`N`].
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn glu_vectors<L: F32x16>(act: VectorAct, gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.chunks_exact_mut(N).zip(up.chunks_exact(N)) {
        // SAFETY: both slices have a vector's elements; the processor has the features by the contract.
        unsafe {
            let (zero, unit) = (L::splat(0.0), L::splat(1.0));
            let (g, u) = (L::load(gate.as_ptr()), L::load(up.as_ptr()));
            let y = match act {
                VectorAct::Identity => g.mul(u),
                VectorAct::Sigmoid => unit.div(unit.add(zero.sub(g).exp())).mul(u),
                VectorAct::Swish { alpha, limit: None } => swish::<L>(g, alpha).mul(u),
                VectorAct::Swish { alpha, limit: Some(limit) } => {
                    // The smaller of a and b is −max(−a, −b).
                    let least = L::splat(-limit);
                    let g = zero.sub(zero.sub(g).max(least));
                    let u = zero.sub(zero.sub(u).max(least)).max(least).add(unit);
                    swish::<L>(g, alpha).mul(u)
                }
            };
            y.store(gate.as_mut_ptr());
        }
    }
}

/// `g / (1 + exp(−alpha · g))`. A function of its own: a closure that is called twice is not inlined, and is then compiled without
/// the processor's features.
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn swish<L: F32x16>(g: L, alpha: f32) -> L {
    // SAFETY: the processor has the features by the contract.
    unsafe {
        let (zero, unit) = (L::splat(0.0), L::splat(1.0));
        g.div(unit.add(zero.sub(g.mul(L::splat(alpha))).exp()))
    }
}

/// `x = act(x)` elementwise.
pub struct Act<'a> {
    /// The arguments, which become the result.
    pub x: &'a mut [f32],
    /// The activation.
    pub act: Activation,
}

impl SimdKernel for Act<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        match self.act {
            Activation::Relu => self.x.iter_mut().for_each(|v| *v = v.max(0.0)),
            act => self.x.iter_mut().for_each(|v| *v = activate(act, f64::from(*v)) as f32),
        }
    }
}

/// `y = a + factor · b` elementwise, for slices of one length.
pub struct AddScaled<'a> {
    /// Result.
    pub y: &'a mut [f32],
    /// First operand.
    pub a: &'a [f32],
    /// Second operand.
    pub b: &'a [f32],
    /// The factor of the second operand.
    pub factor: f32,
}

impl SimdKernel for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        for ((y, a), b) in self.y.iter_mut().zip(self.a).zip(self.b) {
            *y = a + self.factor * b;
        }
    }
}

/// The cosines and sines of a rotary embedding at the positions of a step, computed once for all its layers.
pub struct RopeTable {
    rope: Rope,
    /// The rope with the frequencies for the runner's context length.
    in_context: Rope,
    /// For each row of the step `dims / 2` cosines, then as many sines.
    table: Vec<f32>,
    /// Whether the table holds the positions of the running step.
    filled: bool,
}

impl RopeTable {
    /// A table for up to `ubatch` rows of a context of `ctx` positions.
    pub fn new(rope: &Rope, ubatch: usize, ctx: usize) -> Self {
        let table = Vec::with_capacity(ubatch.saturating_mul(rope.dims));
        RopeTable { rope: rope.clone(), in_context: rope.for_context(ctx), table, filled: false }
    }

    /// Whether the table is of this rope.
    pub fn is_of(&self, rope: &Rope) -> bool {
        self.rope == *rope
    }

    /// Forgets the positions of the last step.
    pub fn forget(&mut self) {
        self.filled = false;
    }

    /// Fills the table for rows at these positions, unless an earlier layer of the step has done so.
    pub fn make(&mut self, positions: impl Iterator<Item = usize>) {
        if std::mem::replace(&mut self.filled, true) {
            return;
        }
        self.table.clear();
        let pairs = self.rope.dims / 2;
        for position in positions {
            let at = self.table.len();
            self.table.resize(at + 2 * pairs, 0.0);
            let (cos, sin) = self.table[at..].split_at_mut(pairs);
            for (i, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
                (*cos, *sin) = cos_sin(&self.in_context, position, i);
            }
        }
    }

    /// The kernel that rotates all heads of `row`, which is row `t` of the step.
    pub fn rotation<'a>(&'a self, row: &'a mut [f32], t: usize) -> Rotate<'a> {
        let (cos, sin) = self.table[t * self.rope.dims..][..self.rope.dims].split_at(self.rope.dims / 2);
        Rotate { row, head_dim: self.rope.head_dim, pairs: self.rope.pairs, cos, sin }
    }

    /// The memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        4 * self.table.capacity() as u64
    }
}

/// Applies a rotary embedding to every head of a row, in place.
pub struct Rotate<'a> {
    row: &'a mut [f32],
    head_dim: usize,
    pairs: RopePairs,
    /// The cosine of each pair of columns, times the rope's scale; below, the sine.
    cos: &'a [f32],
    sin: &'a [f32],
}

impl SimdKernel for Rotate<'_> {
    type Output = ();

    // Plain loops, which the compiler vectorises.
    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let half = self.cos.len();
        let angles = || self.cos.iter().zip(self.sin);
        for head in self.row.chunks_exact_mut(self.head_dim) {
            match self.pairs {
                RopePairs::Halves => {
                    let (a, b) = head[..2 * half].split_at_mut(half);
                    for ((a, b), (cos, sin)) in a.iter_mut().zip(b).zip(angles()) {
                        (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                    }
                }
                RopePairs::Interleaved => {
                    for (pair, (cos, sin)) in head[..2 * half].chunks_exact_mut(2).zip(angles()) {
                        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
                    }
                }
            }
        }
    }
}
