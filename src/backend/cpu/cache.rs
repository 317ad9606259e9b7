//! The memory of keys and values.
//!
//! Keys are stored in blocks of 16 positions, column by column (`[kv_head][position / 16][Dk][16]`): the scores of 16 positions
//! are a few multiply-adds with no sum across a register. Values are stored a row a position (`[kv_head][position][Dv]`, Dv
//! rounded up to whole vectors). Where values are part of keys there are only rows, which serve for both. Both in f16 or
//! f32, read as they are; or as codes ([`super::kv_quants`]).

use super::{
    buffer::{Out, Pages, parts},
    kv_quants::{KvQuants, Pairs},
    parallel::{Env, each_head},
    simd::{F32x16, N},
    simd_level::SimdKernel,
};
use crate::{error::Result, ir::CacheDecl, quant::KvType};
use std::ops::Range;

/// Keys and values as they are stored.
pub(super) enum Held {
    /// The bits of half-precision values.
    F16([Pages<u16>; 2]),
    /// Single-precision values.
    F32([Pages<f32>; 2]),
    /// Int8 quants with scales.
    Q8_0([KvQuants; 2]),
}

/// One layer's keys and values.
pub struct Cache {
    pub(super) held: Held,
    pub(super) decl: CacheDecl,
    /// Positions, rounded up to whole blocks.
    pub(super) ctx: usize,
    /// Columns of a value row, rounded up to whole vectors.
    pub(super) v_stride: usize,
}

impl Cache {
    /// Room for `ctx` positions; `None` where that overflows or the system does not give it.
    pub fn new(decl: &CacheDecl, ctx: usize, kind: KvType) -> Option<Self> {
        let ctx = ctx.checked_next_multiple_of(N)?;
        // Where values are part of keys, both are read from rows.
        let (k_cols, v_cols) = if decl.v_in_k { (0, decl.k_dim) } else { (decl.k_dim, decl.v_dim) };
        let v_stride = v_cols.next_multiple_of(N);
        let heads = decl.kv_heads;
        let size = |cols: usize| ctx.checked_mul(heads)?.checked_mul(cols).filter(|n| *n < usize::MAX / 8);
        let held = match kind {
            KvType::F16 => Held::F16([Pages::zeroed(size(k_cols)?)?, Pages::zeroed(size(v_stride)?)?]),
            KvType::F32 => Held::F32([Pages::zeroed(size(k_cols)?)?, Pages::zeroed(size(v_stride)?)?]),
            KvType::Q8_0 => Held::Q8_0([
                KvQuants::new(Pairs::Columns, heads, k_cols, ctx)?,
                KvQuants::new(Pairs::Positions, heads, v_cols, ctx)?,
            ]),
        };
        Some(Cache { held, decl: decl.clone(), ctx, v_stride })
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        match &self.held {
            Held::F16(m) => m.iter().map(Pages::bytes).sum(),
            Held::F32(m) => m.iter().map(Pages::bytes).sum(),
            Held::Q8_0(m) => m.iter().map(KvQuants::bytes).sum(),
        }
    }

    /// Calls `f` with the bytes of some positions, from a multiple of [`N`] on and rounded up to whole blocks: parts that do not
    /// depend on the length of the context, in an order that is always the same.
    pub fn each_part(&mut self, positions: Range<usize>, f: &mut dyn FnMut(&mut [u8])) {
        let end = positions.end.next_multiple_of(N).min(self.ctx);
        let positions = positions.start.min(end)..end;
        let (heads, d) = (self.decl.kv_heads, if self.decl.v_in_k { 0 } else { self.decl.k_dim });
        let cols = [d, self.v_stride];
        match &mut self.held {
            Held::F16(m) => m.iter_mut().zip(cols).for_each(|(m, cols)| parts(m, heads, cols, positions.clone(), f)),
            Held::F32(m) => m.iter_mut().zip(cols).for_each(|(m, cols)| parts(m, heads, cols, positions.clone(), f)),
            Held::Q8_0(m) => m.iter_mut().for_each(|m| m.each_part(positions.clone(), f)),
        }
    }

    /// Bytes of all parts that [`Cache::each_part`] gives.
    pub fn part_bytes(&self, positions: usize) -> usize {
        let positions = positions.next_multiple_of(N).min(self.ctx);
        let k_cols = if self.decl.v_in_k { 0 } else { self.decl.k_dim };
        let cells = positions * self.decl.kv_heads * (k_cols + self.v_stride);
        match &self.held {
            Held::F16(_) => 2 * cells,
            Held::F32(_) => 4 * cells,
            Held::Q8_0(m) => m.iter().map(|m| m.part_bytes(positions)).sum(),
        }
    }

    /// Writes key rows `[kv_heads · Dk]` of consecutive positions from `first` on.
    ///
    /// # Errors
    /// As [`super::pool::Pool::run`].
    pub fn store_keys(&mut self, env: Env<'_>, first: usize, rows: &[f32]) -> Result<()> {
        if self.decl.v_in_k {
            return self.store_rows(env, self.decl.k_dim, first, rows);
        }
        let (d, heads, ctx) = (self.decl.k_dim, self.decl.kv_heads, self.ctx);
        let at = |position: usize, h: usize| Place {
            start: (h * ctx / N + position / N) * d * N,
            len: d * N,
            first: position % N,
            step: N,
        };
        match &mut self.held {
            Held::F16([k, _]) => store(env, heads, d, first, rows, Out::new(k), at),
            Held::F32([k, _]) => store(env, heads, d, first, rows, Out::new(k), at),
            Held::Q8_0([k, _]) => k.store(env, first, rows),
        }
    }

    /// Writes value rows `[kv_heads · Dv]` of consecutive positions from `first` on.
    ///
    /// # Errors
    /// As [`super::pool::Pool::run`].
    pub fn store_values(&mut self, env: Env<'_>, first: usize, rows: &[f32]) -> Result<()> {
        self.store_rows(env, self.decl.v_dim, first, rows)
    }

    /// Writes rows of `heads · d` numbers to the rows of values.
    fn store_rows(&mut self, env: Env<'_>, d: usize, first: usize, rows: &[f32]) -> Result<()> {
        let (heads, ctx, stride) = (self.decl.kv_heads, self.ctx, self.v_stride);
        let at = |position: usize, h: usize| Place { start: (h * ctx + position) * stride, len: d, first: 0, step: 1 };
        match &mut self.held {
            Held::F16([_, v]) => store(env, heads, d, first, rows, Out::new(v), at),
            Held::F32([_, v]) => store(env, heads, d, first, rows, Out::new(v), at),
            Held::Q8_0([_, v]) => v.store(env, first, rows),
        }
    }
}

/// Where a head's row goes: column c to `first + c · step` of the `len` elements from `start` on, which are the head's own.
struct Place {
    start: usize,
    len: usize,
    first: usize,
    step: usize,
}

/// What keys and values are kept as.
trait Kept: bytemuck::Pod + Send {
    /// Stores a vector.
    ///
    /// # Safety
    /// As [`F32x16::store`].
    unsafe fn put<L: F32x16>(v: L, to: *mut Self);
}

impl Kept for u16 {
    #[inline(always)]
    unsafe fn put<L: F32x16>(v: L, to: *mut u16) {
        // SAFETY: by the contract.
        unsafe { v.store_f16(to) }
    }
}

impl Kept for f32 {
    #[inline(always)]
    unsafe fn put<L: F32x16>(v: L, to: *mut f32) {
        // SAFETY: by the contract.
        unsafe { v.store(to) }
    }
}

/// A row, and every `step`-th of the elements that it goes to.
struct Put<'a, T> {
    row: &'a [f32],
    to: &'a mut [T],
    step: usize,
}

impl<T: Kept> SimdKernel for Put<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let (mut from, mut kept) = ([0f32; N], [T::zeroed(); N]);
        for (x, to) in self.row.chunks(N).zip(self.to.chunks_mut(N * self.step)) {
            from[..x.len()].copy_from_slice(x);
            // SAFETY: both have a vector's numbers; the features are there by the contract.
            unsafe { T::put(L::load(from.as_ptr()), kept.as_mut_ptr()) };
            to.iter_mut().step_by(self.step).zip(&kept[..x.len()]).for_each(|(to, k)| *to = *k);
        }
    }
}

/// Writes rows of `heads · d` numbers of consecutive positions from `first` on to where `at` says.
fn store<T: Kept>(
    env: Env<'_>,
    heads: usize,
    d: usize,
    first: usize,
    rows: &[f32],
    to: Out<'_, T>,
    at: impl Fn(usize, usize) -> Place + Sync,
) -> Result<()> {
    each_head(env, heads, d, rows, &|h, t, row| {
        let place = at(first + t, h);
        // SAFETY: every head's elements belong to one item.
        let own = unsafe { to.slice(place.start, place.len) };
        env.simd(Put { row, to: &mut own[place.first..], step: place.step });
    })
}
