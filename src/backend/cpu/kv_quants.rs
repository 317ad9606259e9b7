//! Keys or values as int8 quants: [`KvType::Q8_0`](crate::quant::KvType::Q8_0).
//!
//! Integer dot products take pairs of quants. For scores a pair is two columns of a key, stored for 16 positions side by side:
//! `[kv_head][position / 16][column / 2][16][2]`. For the weighted sums of values a pair is two positions of a column:
//! `[kv_head][position / 2][column][2]`, with the columns rounded up to whole vectors. Scales are bfloat16,
//! `[kv_head][block of columns][position]`.

use super::{
    buffer::{Out, Pages, parts},
    parallel::{Env, each_head},
    prefetch::{self, Level},
    simd::{F32x16, N},
    simd_level::SimdKernel,
};
use crate::{
    error::Result,
    quant::{KvType, kv::block_scale},
};
use std::ops::Range;

/// The number of columns that share a scale.
pub const BLOCK: usize = KvType::BLOCK;

/// Which two quants are stored as a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Two columns of a position.
    Columns,
    /// Two positions of a column.
    Positions,
}

/// The keys, or the values, of one layer's cache.
pub struct KvQuants {
    quants: Pages<i8>,
    scales: Pages<u16>,
    pairs: Pairs,
    heads: usize,
    cols: usize,
    /// Positions, a multiple of [`N`].
    ctx: usize,
    /// The quants of a position in a head, in bytes.
    row_bytes: usize,
}

impl KvQuants {
    /// Allocates `ctx` positions (a multiple of [`N`]) of `heads` heads of `cols` columns; `None` where the size overflows or the
    /// system cannot map that much memory.
    pub fn new(pairs: Pairs, heads: usize, cols: usize, ctx: usize) -> Option<Self> {
        let row_bytes = match pairs {
            Pairs::Columns => cols.checked_next_multiple_of(2)?,
            Pairs::Positions => cols.checked_next_multiple_of(N)?,
        };
        let rows = ctx.checked_mul(heads)?;
        let size = |n: usize| rows.checked_mul(n).filter(|n| *n < usize::MAX / 8);
        let (quants, scales) = (Pages::zeroed(size(row_bytes)?)?, Pages::zeroed(size(cols.div_ceil(BLOCK))?)?);
        Some(KvQuants { quants, scales, pairs, heads, cols, ctx, row_bytes })
    }

    /// The memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        self.quants.bytes() + self.scales.bytes()
    }

    /// As [`super::cache::Cache::each_part`]; `positions` are from one multiple of [`N`] to another.
    pub fn each_part(&mut self, positions: Range<usize>, f: &mut dyn FnMut(&mut [u8])) {
        parts(&mut self.quants, self.heads, self.row_bytes, positions.clone(), f);
        parts(&mut self.scales, self.heads * self.cols.div_ceil(BLOCK), 1, positions, f);
    }

    /// Bytes of all parts that [`KvQuants::each_part`] gives.
    pub fn part_bytes(&self, positions: usize) -> usize {
        positions * self.heads * (self.row_bytes + size_of::<u16>() * self.cols.div_ceil(BLOCK))
    }

    /// The quants of a position in a head, in bytes.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The address of the quants from a position on, which must be a multiple of 16 where pairs are columns, and even where they
    /// are positions. Beyond the last head the address may be prefetched but not read.
    pub fn row(&self, head: usize, position: usize) -> *const i8 {
        self.quants.as_ptr().wrapping_add((head * self.ctx + position) * self.row_bytes)
    }

    /// The scales (bfloat16) of a block of columns of a head, from a position on.
    pub fn scales(&self, head: usize, block: usize, position: usize) -> &[u16] {
        let first = (head * self.cols.div_ceil(BLOCK) + block) * self.ctx;
        &self.scales[first + position..first + self.ctx]
    }

    /// Prefetches the scales of `positions` positions from `position` on. Neither head nor position need exist.
    #[inline(always)]
    pub fn prefetch_scales(&self, head: usize, position: usize, positions: usize, level: Level) {
        for block in 0..self.cols.div_ceil(BLOCK) {
            let first = (head * self.cols.div_ceil(BLOCK) + block) * self.ctx;
            let at = self.scales.as_ptr().wrapping_add(first + position).cast();
            prefetch::lines(at, (positions * size_of::<u16>()).div_ceil(64), level);
        }
    }

    /// The index of the quant of a position and a column among the quants of its head.
    fn place(pairs: Pairs, row_bytes: usize, position: usize, column: usize) -> usize {
        match pairs {
            Pairs::Columns => position / N * N * row_bytes + column / 2 * 2 * N + position % N * 2 + column % 2,
            Pairs::Positions => position / 2 * 2 * row_bytes + column * 2 + position % 2,
        }
    }

    /// Writes `rows`, `[T, heads · cols]`, to consecutive positions from `first` on.
    ///
    /// # Errors
    /// As [`super::pool::Pool::run`].
    pub fn store(&mut self, env: Env<'_>, first: usize, rows: &[f32]) -> Result<()> {
        let (pairs, cols, ctx, row_bytes) = (self.pairs, self.cols, self.ctx, self.row_bytes);
        let blocks = cols.div_ceil(BLOCK);
        let (quants, scales) = (Out::new(&mut self.quants), Out::new(&mut self.scales));
        each_head(env, self.heads, cols, rows, &|head, t, row| {
            // SAFETY: every head's quants and scales belong to one item.
            let (quants, scales) = unsafe {
                (quants.slice(head * ctx * row_bytes, ctx * row_bytes), scales.slice(head * blocks * ctx, blocks * ctx))
            };
            for (b, x) in row.chunks(BLOCK).enumerate() {
                let (block, scale) = env.simd(Quantise(x));
                scales[b * ctx + first + t] = scale;
                for (c, quant) in block[..x.len()].iter().enumerate() {
                    quants[Self::place(pairs, row_bytes, first + t, b * BLOCK + c)] = *quant;
                }
            }
        })
    }
}

/// Quantises a block of up to [`BLOCK`] columns: gives the quants and their scale in bfloat16.
struct Quantise<'a>(&'a [f32]);

impl SimdKernel for Quantise<'_> {
    type Output = ([i8; BLOCK], u16);

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) -> Self::Output {
        let (mut block, mut quants) = ([0f32; BLOCK], [0i8; BLOCK]);
        block[..self.0.len()].copy_from_slice(self.0);
        // SAFETY: both have the elements of two vectors; the processor has the features by the contract.
        unsafe {
            let [a, b] = [0, N].map(|i| L::load(block[i..].as_ptr()));
            // Infinities and not-a-number become quants of 0 and stay visible in the scale.
            let bad = 0.0 * a.add(b).sum();
            let scale = block_scale(a.magnitude().max(b.magnitude()).largest()) + bad;
            let inverse = L::splat(if scale > 0.0 { 1.0 / scale } else { 0.0 });
            a.mul(inverse).round().store_i8(quants.as_mut_ptr());
            b.mul(inverse).round().store_i8(quants[N..].as_mut_ptr());
            (quants, (scale.to_bits() >> 16) as u16)
        }
    }
}
