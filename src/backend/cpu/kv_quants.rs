//! Keys or values as 8-bit codes: [`KvType::Q8_0`](crate::quant::KvType::Q8_0).
//!
//! Products take pairs of codes. For scores these are two columns of a key, of 16 positions side by side:
//! `[kv_head][position / 16][column / 2][16][2]`. For sums they are two positions of a column:
//! `[kv_head][position / 2][column][2]`, columns rounded up to whole vectors. Scales are the upper halves of singles,
//! `[kv_head][block of columns][position]`.

use super::{
    buffer::{Out, Pages},
    parallel::{Env, each_head},
    prefetch::{self, Level},
    simd::{F32x16, N},
    simd_level::SimdKernel,
};
use crate::{
    error::Result,
    quant::{KvType, kv::block_scale},
};

/// Columns that share a scale.
pub const BLOCK: usize = KvType::BLOCK;

/// What makes a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Two columns.
    Columns,
    /// Two positions.
    Positions,
}

/// The keys or the values of a cache.
pub struct KvQuants {
    codes: Pages<i8>,
    scales: Pages<u16>,
    pairs: Pairs,
    heads: usize,
    cols: usize,
    /// Positions, a multiple of [`N`].
    ctx: usize,
    /// Bytes of codes that a position takes in a head.
    row_bytes: usize,
}

impl KvQuants {
    /// Room for `ctx` positions (a multiple of [`N`]) of `heads` heads of `cols` columns; `None` where that overflows or the
    /// system does not give it.
    pub fn new(pairs: Pairs, heads: usize, cols: usize, ctx: usize) -> Option<Self> {
        let row_bytes = match pairs {
            Pairs::Columns => cols.checked_next_multiple_of(2)?,
            Pairs::Positions => cols.checked_next_multiple_of(N)?,
        };
        let rows = ctx.checked_mul(heads)?;
        let size = |n: usize| rows.checked_mul(n).filter(|n| *n < usize::MAX / 8);
        let (codes, scales) = (Pages::zeroed(size(row_bytes)?)?, Pages::zeroed(size(cols.div_ceil(BLOCK))?)?);
        Some(KvQuants { codes, scales, pairs, heads, cols, ctx, row_bytes })
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.codes.bytes() + self.scales.bytes()
    }

    /// Bytes of codes that a position takes in a head.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The codes from a position on: one that starts 16 where pairs are columns, else an even one. Beyond the last head it is
    /// no address to read from.
    pub fn row(&self, head: usize, position: usize) -> *const i8 {
        self.codes.as_ptr().wrapping_add((head * self.ctx + position) * self.row_bytes)
    }

    /// The scales of a head's block from a position on.
    pub fn scales(&self, head: usize, block: usize, position: usize) -> &[u16] {
        let first = (head * self.cols.div_ceil(BLOCK) + block) * self.ctx;
        &self.scales[first + position..first + self.ctx]
    }

    /// Asks for the scales of some positions, which any numbers may be.
    #[inline(always)]
    pub fn prefetch_scales(&self, head: usize, position: usize, positions: usize, level: Level) {
        for block in 0..self.cols.div_ceil(BLOCK) {
            let first = (head * self.cols.div_ceil(BLOCK) + block) * self.ctx;
            let at = self.scales.as_ptr().wrapping_add(first + position).cast();
            prefetch::lines(at, (positions * size_of::<u16>()).div_ceil(64), level);
        }
    }

    /// Where the code of a position and a column is among its head's.
    fn place(pairs: Pairs, row_bytes: usize, position: usize, column: usize) -> usize {
        match pairs {
            Pairs::Columns => position / N * N * row_bytes + column / 2 * 2 * N + position % N * 2 + column % 2,
            Pairs::Positions => position / 2 * 2 * row_bytes + column * 2 + position % 2,
        }
    }

    /// Writes rows of `heads · cols` numbers of consecutive positions from `first` on.
    ///
    /// # Errors
    /// As [`super::pool::Pool::run`].
    pub fn store(&mut self, env: Env<'_>, first: usize, rows: &[f32]) -> Result<()> {
        let (pairs, cols, ctx, row_bytes) = (self.pairs, self.cols, self.ctx, self.row_bytes);
        let blocks = cols.div_ceil(BLOCK);
        let (codes, scales) = (Out::new(&mut self.codes), Out::new(&mut self.scales));
        each_head(env, self.heads, cols, rows, &|head, t, row| {
            // SAFETY: every head's codes and scales belong to one item.
            let (codes, scales) = unsafe {
                (codes.slice(head * ctx * row_bytes, ctx * row_bytes), scales.slice(head * blocks * ctx, blocks * ctx))
            };
            for (b, x) in row.chunks(BLOCK).enumerate() {
                let (block, scale) = env.simd(Encode(x));
                scales[b * ctx + first + t] = scale;
                for (c, code) in block[..x.len()].iter().enumerate() {
                    codes[Self::place(pairs, row_bytes, first + t, b * BLOCK + c)] = *code;
                }
            }
        })
    }
}

/// A block, to be made codes and a scale.
struct Encode<'a>(&'a [f32]);

impl SimdKernel for Encode<'_> {
    type Output = ([i8; BLOCK], u16);

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) -> Self::Output {
        let (mut block, mut codes) = ([0f32; BLOCK], [0i8; BLOCK]);
        block[..self.0.len()].copy_from_slice(self.0);
        // SAFETY: both have two vectors' numbers; the features are there by the contract.
        unsafe {
            let [a, b] = [0, N].map(|i| L::load(block[i..].as_ptr()));
            // Infinities and not-a-number become codes of 0: the scale carries them.
            let bad = 0.0 * a.add(b).sum();
            let scale = block_scale(a.magnitude().max(b.magnitude()).largest()) + bad;
            let inverse = L::splat(if scale > 0.0 { 1.0 / scale } else { 0.0 });
            a.mul(inverse).round().store_i8(codes.as_mut_ptr());
            b.mul(inverse).round().store_i8(codes[N..].as_mut_ptr());
            (codes, (scale.to_bits() >> 16) as u16)
        }
    }
}
