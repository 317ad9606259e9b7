//! Attention on the rows' own keys and values, and its gradient, by heads on several threads.
//!
//! A forward item is a head of a block of rows; a backward item is a sequence and a head of keys, so that no two items add to the
//! same key. Precision: f32, sums over rows and columns in ascending order.

use super::{super::buffer::Out, gemm::Machine};
use crate::{
    backend::cpu::{
        simd::{F32x16, N},
        simd_level::{SimdKernel, dispatch},
    },
    error::Result,
    ir::SelfAttention,
    ops::{
        Array,
        self_attend::{Operands, seen},
    },
};
use std::ops::Range;

/// Rows of a forward item.
const BLOCK: usize = 32;

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

/// `y += f x`.
#[inline(always)]
fn add_scaled(y: &mut [f32], f: f32, x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += f * x);
}

fn head(x: &Array<f32>, r: usize, h: usize, n: usize) -> &[f32] {
    &x.row(r)[h * n..(h + 1) * n]
}

/// o and lse.
///
/// # Errors
/// [`crate::Error::Device`] where a thread panicked.
pub fn forward(
    machine: Machine<'_>,
    x: Operands<'_, f32>,
    a: &SelfAttention,
    sinks: Option<&[f32]>,
) -> Result<[Array<f32>; 2]> {
    let rows = x.q.rows;
    let (mut o, mut lse) = (Array::zeros(rows, a.heads * a.v_dim), Array::zeros(rows, a.heads));
    let (out, sums) = (Out::new(&mut o.data), Out::new(&mut lse.data));
    machine.pool.run(rows.div_ceil(BLOCK) * a.heads, &|_, item| {
        let (block, h) = (item / a.heads, item % a.heads);
        let rows = block * BLOCK..rows.min((block + 1) * BLOCK);
        let job = Forward { x, a, sink: sinks.map(|s| s[h]), h, rows, out: &out, sums: &sums };
        // SAFETY: the processor has the level; items have heads and rows of their own.
        unsafe { dispatch(machine.simd_level, job) };
    })?;
    Ok([o, lse])
}

struct Forward<'a> {
    x: Operands<'a, f32>,
    a: &'a SelfAttention,
    sink: Option<f32>,
    h: usize,
    rows: Range<usize>,
    out: &'a Out<'a, f32>,
    sums: &'a Out<'a, f32>,
}

impl SimdKernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let (a, h) = (self.a, self.h);
        let kv = h / (a.heads / a.kv_heads);
        let mut scores: Vec<f32> = vec![];
        for t in self.rows {
            let (q, all) = (head(self.x.q, t, h, a.k_dim), seen(a, self.x.starts, t));
            scores.clear();
            for j in all.clone() {
                // SAFETY: queries and keys have k_dim numbers; the processor has the features.
                scores.push(unsafe { dot::<L>(q, head(self.x.k, j, kv, a.k_dim)) } * a.scale as f32);
            }
            let max = scores.iter().copied().chain(self.sink).fold(f32::NEG_INFINITY, f32::max);
            scores.iter_mut().for_each(|s| *s = (*s - max).exp());
            let total = scores.iter().sum::<f32>() + self.sink.map_or(0.0, |s| (s - max).exp());
            // SAFETY: each item has rows of its head to itself.
            let o = unsafe { self.out.slice((t * a.heads + h) * a.v_dim, a.v_dim) };
            for (p, j) in scores.iter().zip(all) {
                add_scaled(o, p / total, head(self.x.v, j, kv, a.v_dim));
            }
            // SAFETY: as above.
            unsafe { self.sums.slice(t * a.heads + h, 1)[0] = max + total.ln() };
        }
    }
}

/// The rows of each sequence.
fn sequences(starts: &[u32]) -> Vec<Range<usize>> {
    let mut all: Vec<Range<usize>> = vec![];
    for (t, start) in starts.iter().enumerate() {
        match all.last_mut() {
            Some(last) if last.start == *start as usize => last.end = t + 1,
            _ => all.push(*start as usize..t + 1),
        }
    }
    all
}

/// The gradients by q, k and v; `None` where sequences lie within each other, which is left to the reference code.
///
/// # Errors
/// [`crate::Error::Device`] where a thread panicked.
pub fn backward(
    machine: Machine<'_>,
    x: Operands<'_, f32>,
    o: &Array<f32>,
    lse: &Array<f32>,
    d: &Array<f32>,
    a: &SelfAttention,
) -> Result<Option<[Array<f32>; 3]>> {
    let sequences = sequences(x.starts);
    let apart = sequences.windows(2).all(|w| w[0].end <= w[1].start);
    if !apart {
        return Ok(None);
    }
    let zeros = |like: &Array<f32>| Array::zeros(like.rows, like.cols);
    let (mut dq, mut dk, mut dv) = (zeros(x.q), zeros(x.k), zeros(x.v));
    let outs = [Out::new(&mut dq.data), Out::new(&mut dk.data), Out::new(&mut dv.data)];
    machine.pool.run(sequences.len() * a.kv_heads, &|_, item| {
        let (rows, kv) = (sequences[item / a.kv_heads].clone(), item % a.kv_heads);
        let job = Backward { x, o, lse, d, a, kv, rows, outs: &outs };
        // SAFETY: the processor has the level; items have sequences and heads of their own.
        unsafe { dispatch(machine.simd_level, job) };
    })?;
    Ok(Some([dq, dk, dv]))
}

struct Backward<'a> {
    x: Operands<'a, f32>,
    o: &'a Array<f32>,
    lse: &'a Array<f32>,
    d: &'a Array<f32>,
    a: &'a SelfAttention,
    kv: usize,
    rows: Range<usize>,
    outs: &'a [Out<'a, f32>; 3],
}

impl SimdKernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let (a, kv, first) = (self.a, self.kv, self.rows.start);
        let (kd, vd, group) = (a.k_dim, a.v_dim, a.heads / a.kv_heads);
        let mut dk = vec![0f32; self.rows.len() * kd];
        let mut dv = vec![0f32; self.rows.len() * vd];
        for t in self.rows.clone() {
            for h in kv * group..(kv + 1) * group {
                let (q, dout) = (head(self.x.q, t, h, kd), head(self.d, t, h, vd));
                let lse = self.lse.row(t)[h];
                // SAFETY: slices of one length each; the processor has the features; each item has its heads to itself.
                let (mean, dq) =
                    unsafe { (dot::<L>(dout, head(self.o, t, h, vd)), self.outs[0].slice((t * a.heads + h) * kd, kd)) };
                for j in seen(a, self.x.starts, t) {
                    let (k, v) = (head(self.x.k, j, kv, kd), head(self.x.v, j, kv, vd));
                    // SAFETY: as above.
                    let (score, along) = unsafe { (dot::<L>(q, k), dot::<L>(dout, v)) };
                    let p = (score * a.scale as f32 - lse).exp();
                    let ds = p * (along - mean) * a.scale as f32;
                    add_scaled(dq, ds, k);
                    add_scaled(&mut dk[(j - first) * kd..][..kd], ds, q);
                    add_scaled(&mut dv[(j - first) * vd..][..vd], p, dout);
                }
            }
        }
        for (i, (which, from, n)) in [(1, &dk, kd), (2, &dv, vd)].into_iter().enumerate() {
            debug_assert_eq!(which, i + 1);
            for (r, part) in from.chunks(n.max(1)).enumerate() {
                // SAFETY: each item has the rows of its sequence and its head of keys to itself.
                unsafe { self.outs[which].slice(((first + r) * a.kv_heads + kv) * n, n) }.copy_from_slice(part);
            }
        }
    }
}
