//! The memory of keys and values.
//!
//! Keys are stored in blocks of 16 positions, column by column (`[kv_head][position / 16][Dk][16]`): the scores of 16 positions
//! are a few multiply-adds with no sum across a register. Values are stored a row a position (`[kv_head][position][Dv]`, Dv
//! rounded up to whole vectors). Where values are part of keys there are only rows, which serve for both. Both in f16 or f32, read as they are.

use super::{
    buffer::{Out, Pages},
    lanes::N,
    products::Env,
};
use crate::{backend::KvType, error::Result, ir::CacheDecl};

/// Numbers of one kind.
pub(super) enum Memory {
    /// Bits of half-precision numbers.
    F16(Pages<u16>),
    /// Single precision.
    F32(Pages<f32>),
}

impl Memory {
    fn new(kind: KvType, len: usize) -> Option<Self> {
        Some(match kind {
            KvType::F16 => Memory::F16(Pages::zeroed(len)?),
            KvType::F32 => Memory::F32(Pages::zeroed(len)?),
        })
    }

    fn bytes(&self) -> u64 {
        match self {
            Memory::F16(m) => m.bytes(),
            Memory::F32(m) => m.bytes(),
        }
    }
}

/// One layer's keys and values.
pub struct Cache {
    pub(super) k: Memory,
    pub(super) v: Memory,
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
        let size = |cols: usize| ctx.checked_mul(decl.kv_heads)?.checked_mul(cols).filter(|n| *n < usize::MAX / 8);
        let (k, v) = (Memory::new(kind, size(k_cols)?)?, Memory::new(kind, size(v_stride)?)?);
        Some(Cache { k, v, decl: decl.clone(), ctx, v_stride })
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.k.bytes() + self.v.bytes()
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
        let at = |position: usize, h: usize| (h * ctx / N + position / N) * d * N + position % N;
        match &mut self.k {
            Memory::F16(m) => store(env, heads, d, first, rows, Out::new(m), half_bits, at, N),
            Memory::F32(m) => store(env, heads, d, first, rows, Out::new(m), |x| x, at, N),
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
        let at = |position: usize, h: usize| (h * ctx + position) * stride;
        match &mut self.v {
            Memory::F16(m) => store(env, heads, d, first, rows, Out::new(m), half_bits, at, 1),
            Memory::F32(m) => store(env, heads, d, first, rows, Out::new(m), |x| x, at, 1),
        }
    }
}

fn half_bits(x: f32) -> u16 {
    half::f16::from_f32(x).to_bits()
}

/// Writes rows of `heads · d` numbers: column c of head h at a position to `at(position, h) + c · step`. Heads go to several
/// threads where there is much to write.
fn store<T: Copy + Send>(
    env: Env<'_>,
    heads: usize,
    d: usize,
    first: usize,
    rows: &[f32],
    to: Out<'_, T>,
    convert: impl Fn(f32) -> T + Sync,
    at: impl Fn(usize, usize) -> usize + Sync,
    step: usize,
) -> Result<()> {
    if heads * d == 0 {
        return Ok(());
    }
    let per = if rows.len() > 16384 { 1 } else { heads };
    env.pool.run(heads.div_ceil(per), &|_, item| {
        for h in item * per..heads.min((item + 1) * per) {
            for (t, row) in rows.chunks_exact(heads * d).enumerate() {
                let from = at(first + t, h);
                for (c, x) in row[h * d..(h + 1) * d].iter().enumerate() {
                    // SAFETY: every head's elements belong to one item.
                    unsafe { to.slice(from + c * step, 1)[0] = convert(*x) };
                }
            }
        }
    })
}
