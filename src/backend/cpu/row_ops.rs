//! The ops that look at one row at a time: norms, rotation, activations, sums of two rows.

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

/// The sum of a slice of whole vectors of four: for measuring bandwidth.
pub struct Sum<'a>(pub &'a [f32]);

impl SimdKernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) -> f32 {
        // SAFETY: chunks have 64 numbers; the features are there by the contract.
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

/// `y = w · x / sqrt(mean(x²) + eps)` over each group of `w.len()` numbers of `x`; `x` and `y` are of one length.
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
            // SAFETY: vectors lie within the first `whole` numbers of each slice; the features are there.
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

/// [`RmsNorm`] in place.
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

/// `y = w · (x − mean) / sqrt(var + eps) + b` as [`RmsNorm`] takes its groups; also the root-mean-square norm with a bias.
pub struct LayerNorm<'a> {
    /// Input.
    pub x: &'a [f32],
    /// Output.
    pub y: &'a mut [f32],
    /// Weight.
    pub w: &'a [f32],
    /// As long as the weight, where there is one.
    pub b: Option<&'a [f32]>,
    /// Whether the mean is taken off.
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

/// The sum of `f` of all numbers, in 16 partial sums that the compiler keeps in vectors.
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

/// `gate = act(gate) · up` (or the clamped form), number by number.
pub struct Glu<'a> {
    /// Gate, and result.
    pub gate: &'a mut [f32],
    /// Up, of the same length.
    pub up: &'a [f32],
    /// On the gate.
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
    /// `None` for activations that are computed number by number with the code of their op page.
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
            // SAFETY: the first `whole` numbers of both slices are whole vectors; the features are there by the contract.
            unsafe { glu_vectors::<L>(act, &mut self.gate[..whole], &self.up[..whole]) }
        }
        for (g, u) in self.gate[whole..n].iter_mut().zip(&self.up[whole..n]) {
            *g = gated(self.act, f64::from(*g), f64::from(*u)) as f32;
        }
    }
}

/// `gate = act(gate) · up` for slices of one length, whole vectors.
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
unsafe fn glu_vectors<L: F32x16>(act: VectorAct, gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.chunks_exact_mut(N).zip(up.chunks_exact(N)) {
        // SAFETY: both slices have a vector's numbers; the features are there by the contract.
        unsafe {
            let (zero, unit) = (L::splat(0.0), L::splat(1.0));
            let (g, u) = (L::load(gate.as_ptr()), L::load(up.as_ptr()));
            let swish = |g: L, alpha: f32| g.div(unit.add(zero.sub(g.mul(L::splat(alpha))).exp()));
            let y = match act {
                VectorAct::Identity => g.mul(u),
                VectorAct::Sigmoid => unit.div(unit.add(zero.sub(g).exp())).mul(u),
                VectorAct::Swish { alpha, limit: None } => swish(g, alpha).mul(u),
                VectorAct::Swish { alpha, limit: Some(limit) } => {
                    // The smaller of a and b is −max(−a, −b).
                    let least = L::splat(-limit);
                    let g = zero.sub(zero.sub(g).max(least));
                    let u = zero.sub(zero.sub(u).max(least)).max(least).add(unit);
                    swish(g, alpha).mul(u)
                }
            };
            y.store(gate.as_mut_ptr());
        }
    }
}

/// `x = act(x)`, number by number.
pub struct Act<'a> {
    /// Argument, and result.
    pub x: &'a mut [f32],
    /// Which.
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

/// `y = a + factor · b`, number by number; slices of one length.
pub struct AddScaled<'a> {
    /// Result.
    pub y: &'a mut [f32],
    /// First operand.
    pub a: &'a [f32],
    /// Second operand.
    pub b: &'a [f32],
    /// On the second.
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

/// Cosines and sines of a rope at the positions of a step.
pub struct RopeTable {
    rope: Rope,
    /// The rope as it is in this context.
    here: Rope,
    /// For each row `dims / 2` cosines, then as many sines.
    table: Vec<f32>,
    /// Whether the table is of the step that runs.
    made: bool,
}

impl RopeTable {
    /// A table for up to `chunk` rows of a context of `ctx` positions.
    pub fn new(rope: &Rope, chunk: usize, ctx: usize) -> Self {
        let table = Vec::with_capacity(chunk.saturating_mul(rope.dims));
        RopeTable { rope: rope.clone(), here: rope.for_context(ctx), table, made: false }
    }

    /// Whether it is of this rope.
    pub fn is_of(&self, rope: &Rope) -> bool {
        self.rope == *rope
    }

    /// Forgets the positions that it was made for.
    pub fn forget(&mut self) {
        self.made = false;
    }

    /// Makes it for rows at these positions, unless it is.
    pub fn make(&mut self, positions: impl Iterator<Item = usize>) {
        if std::mem::replace(&mut self.made, true) {
            return;
        }
        self.table.clear();
        let pairs = self.rope.dims / 2;
        for position in positions {
            let at = self.table.len();
            self.table.resize(at + 2 * pairs, 0.0);
            let (cos, sin) = self.table[at..].split_at_mut(pairs);
            for (i, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
                (*cos, *sin) = cos_sin(&self.here, position, i);
            }
        }
    }

    /// The rotation of all heads of row `t`.
    pub fn rotation<'a>(&'a self, row: &'a mut [f32], t: usize) -> Rotate<'a> {
        let (cos, sin) = self.table[t * self.rope.dims..][..self.rope.dims].split_at(self.rope.dims / 2);
        Rotate { row, head_dim: self.rope.head_dim, pairs: self.rope.pairs, cos, sin }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        4 * self.table.capacity() as u64
    }
}

/// Rotates every head of a row in place.
pub struct Rotate<'a> {
    row: &'a mut [f32],
    head_dim: usize,
    pairs: RopePairs,
    /// Of each pair of columns.
    cos: &'a [f32],
    sin: &'a [f32],
}

impl SimdKernel for Rotate<'_> {
    type Output = ();

    // Plain loops, which the compiler makes vectors of.
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
