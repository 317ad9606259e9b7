//! Attention on the rows' own keys and values, and its gradient, as products of tiles on several threads.
//!
//! Keys and values are packed once for all rows, as the right operands of `gemm`'s inner loop. A forward item is a head of a block of
//! rows: scores of all keys that any of its rows sees, softmax in place, product with the values. A backward item is a sequence and a head of
//! keys, so that no two items add to the same key; it makes the scores again, block by block. Precision: f32; sums in a fixed order.

use super::{
    super::buffer::Out,
    attend_tiles::{BLOCK, Block, cols_packed, exponentials, head, in_order, packed_block, rows_packed, rows_times},
    gemm::{MR, Machine, NR},
};
use crate::{
    backend::cpu::{
        simd::F32x16,
        simd_level::{SimdKernel, dispatch},
    },
    error::Result,
    ir::SelfAttention,
    ops::{Array, self_attend::Operands},
};
use std::ops::Range;

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
    let (mut o, mut lse) = (machine.spare.array(rows, a.heads * a.v_dim), machine.spare.array(rows, a.heads));
    let keys = rows_packed(machine, x.k, a.kv_heads, a.k_dim)?;
    let values = cols_packed(machine, x.v, a.kv_heads, a.v_dim)?;
    let (out, sums) = (Out::new(&mut o.data), Out::new(&mut lse.data));
    machine.pool.run(rows.div_ceil(BLOCK) * a.heads, &|_, item| {
        let (block, h) = (item / a.heads, item % a.heads);
        let kv = h / (a.heads / a.kv_heads);
        let block = Block::new(a, x.starts, block * BLOCK..rows.min((block + 1) * BLOCK));
        let sink = sinks.map(|s| s[h]);
        let job = Forward { x, a, sink, h, block, keys: &keys[kv], values: &values[kv], out: &out, sums: &sums };
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
    block: Block,
    keys: &'a [f32],
    values: &'a [f32],
    out: &'a Out<'a, f32>,
    sums: &'a Out<'a, f32>,
}

impl SimdKernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let (a, h, block, scale) = (self.a, self.h, &self.block, self.a.scale as f32);
        let (rows, width, all) = (block.rows.len(), block.width, self.x.q.rows.next_multiple_of(NR));
        let mut scores = vec![0f32; block.padded() * width];
        let query = |r: usize| head(self.x.q, block.rows.start + r, h, a.k_dim).as_ptr();
        let keys = &self.keys[block.begin * a.k_dim..];
        // SAFETY: queries have k_dim numbers; the processor has the features.
        unsafe { rows_times::<L>(&query, 1, rows, keys, [block.panels(), a.k_dim, 0, a.k_dim], &mut scores, width) };
        let mut totals = vec![0f32; rows];
        for (r, t) in block.rows.clone().enumerate() {
            let seen = block.seen(a, self.x.starts, t);
            let row = &mut scores[r * width..(r + 1) * width];
            let most = row[seen.clone()].iter().fold(f32::NEG_INFINITY, |m, s| m.max(s * scale));
            let most = self.sink.map_or(most, |s| s.max(most));
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            // SAFETY: the processor has the features.
            let sum = unsafe { exponentials::<L>(&mut row[seen], scale, most) };
            totals[r] = sum + self.sink.map_or(0.0, |s| (s - most).exp());
            // SAFETY: each item has rows of its head to itself.
            unsafe { self.sums.slice(t * a.heads + h, 1)[0] = most + totals[r].ln() };
        }
        let stride = a.v_dim.next_multiple_of(NR);
        let mut made = vec![0f32; block.padded() * stride];
        let shares = |r: usize| scores[r * width..].as_ptr();
        // SAFETY: rows of scores have `width` numbers; the processor has the features.
        unsafe {
            let sizes = [stride / NR, all, block.begin, width];
            rows_times::<L>(&shares, 1, rows, self.values, sizes, &mut made, stride);
        }
        for (r, t) in block.rows.clone().enumerate() {
            // SAFETY: each item has rows of its head to itself.
            let o = unsafe { self.out.slice((t * a.heads + h) * a.v_dim, a.v_dim) };
            let by = 1.0 / totals[r];
            o.iter_mut().zip(&made[r * stride..]).for_each(|(o, x)| *o = x * by);
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
    let as_large = |like: &Array<f32>| machine.spare.array(like.rows, like.cols);
    let (mut dq, mut dk, mut dv) = (as_large(x.q), as_large(x.k), as_large(x.v));
    let keys = rows_packed(machine, x.k, a.kv_heads, a.k_dim)?;
    let by_key = cols_packed(machine, x.k, a.kv_heads, a.k_dim)?;
    let values = rows_packed(machine, x.v, a.kv_heads, a.v_dim)?;
    let outs = [Out::new(&mut dq.data), Out::new(&mut dk.data), Out::new(&mut dv.data)];
    machine.pool.run(sequences.len() * a.kv_heads, &|_, item| {
        let (rows, kv) = (sequences[item / a.kv_heads].clone(), item % a.kv_heads);
        let packed = [&keys[kv][..], &by_key[kv], &values[kv]];
        let job = Backward { x, o, lse, d, a, kv, rows, packed, outs: &outs };
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
    /// Keys by rows and by columns, and values by rows.
    packed: [&'a [f32]; 3],
    outs: &'a [Out<'a, f32>; 3],
}

/// The gradients of the keys and values of a sequence, in whole panels and groups from `begin` on.
struct Sums {
    begin: usize,
    k: Vec<f32>,
    v: Vec<f32>,
    strides: [usize; 2],
}

impl SimdKernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let (a, kv) = (self.a, self.kv);
        let (begin, group) = (self.rows.start / NR * NR, a.heads / a.kv_heads);
        let keys = (self.rows.end - begin).next_multiple_of(NR) + MR;
        let strides = [a.k_dim, a.v_dim].map(|n| n.next_multiple_of(NR));
        let mut sums = Sums { begin, k: vec![0f32; keys * strides[0]], v: vec![0f32; keys * strides[1]], strides };
        for first in self.rows.clone().step_by(BLOCK) {
            let block = Block::new(a, self.x.starts, first..self.rows.end.min(first + BLOCK));
            for h in kv * group..(kv + 1) * group {
                // SAFETY: the processor has the features.
                unsafe { self.block::<L>(&block, h, &mut sums) };
            }
        }
        for (which, from, n, stride) in [(1, &sums.k, a.k_dim, strides[0]), (2, &sums.v, a.v_dim, strides[1])] {
            for t in self.rows.clone() {
                // SAFETY: each item has the rows of its sequence and its head of keys to itself.
                let to = unsafe { self.outs[which].slice((t * a.kv_heads + kv) * n, n) };
                to.copy_from_slice(&from[(t - begin) * stride..][..n]);
            }
        }
    }
}

impl Backward<'_> {
    /// One head of a block of rows: its dq, and what it adds to the gradients of keys and values.
    ///
    /// # Safety
    /// The processor has the features of `L`.
    #[inline(always)]
    unsafe fn block<L: F32x16>(&self, block: &Block, h: usize, sums: &mut Sums) {
        let (a, rows, width, scale) = (self.a, block.rows.len(), block.width, self.a.scale as f32);
        let (kd, vd, all) = (a.k_dim, a.v_dim, self.x.q.rows.next_multiple_of(NR));
        let start = block.rows.start;
        let query = |r: usize| head(self.x.q, start + r, h, kd);
        let upstream = |r: usize| head(self.d, start + r, h, vd);
        let mut shares = vec![0f32; block.padded() * width];
        let mut ds = shares.clone();
        let [keys, by_key, values] = self.packed;
        // SAFETY: rows of queries and of what comes from above have their dimensions; the processor has the features.
        unsafe {
            let (q, d) = (|r: usize| query(r).as_ptr(), |r: usize| upstream(r).as_ptr());
            let sizes = |n: usize| [block.panels(), n, 0, n];
            rows_times::<L>(&q, 1, rows, &keys[block.begin * kd..], sizes(kd), &mut shares, width);
            rows_times::<L>(&d, 1, rows, &values[block.begin * vd..], sizes(vd), &mut ds, width);
        }
        for (r, t) in block.rows.clone().enumerate() {
            let seen = block.seen(a, self.x.starts, t);
            // SAFETY: the processor has the features.
            let mean = unsafe { in_order::<L>(upstream(r), head(self.o, t, h, vd)) };
            let (p, ds) = (&mut shares[r * width..(r + 1) * width], &mut ds[r * width..(r + 1) * width]);
            for x in [&mut *p, &mut *ds] {
                x[..seen.start].fill(0.0);
                x[seen.end..].fill(0.0);
            }
            // SAFETY: the processor has the features.
            unsafe { exponentials::<L>(&mut p[seen.clone()], scale, self.lse.row(t)[h]) };
            ds[seen.clone()].iter_mut().zip(&p[seen]).for_each(|(d, p)| *d = p * (*d - mean) * scale);
        }
        let mut dq = vec![0f32; block.padded() * sums.strides[0]];
        let own = [packed_block(&query, rows, kd), packed_block(&upstream, rows, vd)];
        let at = block.begin - sums.begin;
        // SAFETY: rows of shares and of their gradients have `width` numbers, and columns a number in each row; the sums have
        // whole groups of keys and one more; the processor has the features.
        unsafe {
            let row = |r: usize| ds[r * width..].as_ptr();
            let sizes = [sums.strides[0] / NR, all, block.begin, width];
            rows_times::<L>(&row, 1, rows, by_key, sizes, &mut dq, sums.strides[0]);
            let columns = [ds.as_ptr(), shares.as_ptr()];
            for ((from, b), (to, stride)) in
                columns.iter().zip(&own).zip([&mut sums.k, &mut sums.v].into_iter().zip(sums.strides))
            {
                let column = |key: usize| from.wrapping_add(key);
                rows_times::<L>(&column, width, width, b, [stride / NR, rows, 0, rows], &mut to[at * stride..], stride);
            }
        }
        for (r, t) in block.rows.clone().enumerate() {
            // SAFETY: each item has its rows and heads to itself.
            let to = unsafe { self.outs[0].slice((t * a.heads + h) * kd, kd) };
            to.copy_from_slice(&dq[r * sums.strides[0]..][..kd]);
        }
    }
}
