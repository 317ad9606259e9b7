//! Attention over the KV cache ([`super::cache`]). Keys and values are read in the form in which they are stored.
//!
//! A thread takes a tile of query rows that share a key head, and goes through the positions in KV tiles of 128 with a running
//! maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022), for up to eight query rows at a time. With one token and a
//! long context the positions are split as well, into ranges of 512 for more threads, whose partial results are combined in
//! order.
//!
//! [`floats`] reads caches in f16 and f32, [`quants`] caches of int8 quants.

mod floats;
mod quants;
mod tile;

use super::{
    buffer::Out,
    cache::{Cache, Held},
    parallel::Env,
    prefetch::{self, Level},
    sequence::{Segment, Sequence},
    simd::{F16, F32, F32x16, N},
    simd_level::SimdKernel,
    weight::ensure_len,
};
use crate::{error::Result, ir::Attention};
use floats::FloatReader;
use quants::QuantReader;
use tile::{KV_TILE, MAX_QUERY_ROWS, QueryTile, Run};

/// The positions of a split, where one query row is computed by several threads.
const SPLIT_POSITIONS: usize = 512;
/// The query rows of a tile, about.
const TILE_ROWS: usize = 32;

/// Attention of the query rows of some segments.
pub struct Job<'a> {
    /// The op's parameters.
    pub a: &'a Attention,
    /// The sequences of the runner, by number.
    pub sequences: &'a [Sequence],
    /// The rows of the step, by sequence.
    pub segments: &'a [Segment],
}

/// Memory that [`Job::run`] uses again from step to step.
#[derive(Default)]
pub struct Scratch {
    partial: Vec<f32>,
    works: Vec<SegmentWork>,
}

impl Scratch {
    /// The memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        (4 * self.partial.capacity() + self.works.capacity() * size_of::<SegmentWork>()) as u64
    }
}

/// How a segment is divided into items of work: an item is a key head, a tile of query rows and a split of the positions.
#[derive(Clone, Copy)]
struct SegmentWork {
    segment: Segment,
    /// The tokens of a tile.
    per_tile: usize,
    tiles: usize,
    splits: usize,
    /// The number of items of all segments before this one.
    items: usize,
    /// The number of partial results of all segments before this one.
    partials: usize,
}

impl Job<'_> {
    fn cache(&self, s: &Segment) -> &Cache {
        &self.sequences[s.sequence].caches[self.a.cache.0 as usize]
    }

    /// Divides the segments into items, described by `works`; gives the numbers of items and of partial results.
    fn divide(&self, kv_heads: usize, works: &mut Vec<SegmentWork>) -> (usize, usize) {
        let (mut items, mut partials) = (0, 0);
        works.clear();
        for s in self.segments {
            let per_tile = (TILE_ROWS / (self.a.heads / kv_heads)).clamp(1, s.rows);
            let tiles = s.rows.div_ceil(per_tile);
            let splits = if s.rows == 1 { s.end().div_ceil(SPLIT_POSITIONS) } else { 1 };
            works.push(SegmentWork { segment: *s, per_tile, tiles, splits, items, partials });
            items += kv_heads * tiles * splits;
            partials += if splits > 1 { self.a.heads * splits } else { 0 };
        }
        (items, partials)
    }

    /// Attention of the queries `q`, `[T, heads · Dk]`, over the positions of their sequences up to their own, into `out`,
    /// `[T, heads · Dv]`.
    ///
    /// # Errors
    /// As [`super::pool::Pool::run`].
    pub fn run(&self, env: Env<'_>, q: &[f32], scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        let Some(first) = self.segments.first() else { return Ok(()) };
        let (heads, decl) = (self.a.heads, &self.cache(first).decl);
        // A partial result has the weighted sums of values, the maximum of the scores, and the sum of the weights.
        let v_stride = self.cache(first).v_stride;
        let stride = v_stride + N;
        let Scratch { partial, works } = scratch;
        let (items, partials) = self.divide(decl.kv_heads, works);
        let partial = ensure_len(partial, partials * stride);
        let (works, parts, outs) = (&*works, Out::new(&mut *partial), Out::new(out));
        let level = prefetch::level();
        env.pool.run(items, &|worker, item| {
            let work = &works[works.partition_point(|c| c.items <= item) - 1];
            let (tile, split) = self.tile(env, work, q, item - work.items, level);
            let mut scratch = env.scratch.of(worker);
            let state = ensure_len(&mut scratch.other, state_len(&tile));
            run_tile(&tile, env, state);
            for (i, row) in state[..tile.rows * stride].chunks_exact(stride).enumerate() {
                let (token, head) = tile.place(i);
                // SAFETY: every (token, head, split) belongs to one item of work.
                unsafe {
                    if work.splits > 1 {
                        let at = (work.partials + head * work.splits + split) * stride;
                        parts.slice(at, stride).copy_from_slice(row);
                    } else {
                        let to = outs.slice((token * heads + head) * decl.v_dim, decl.v_dim);
                        to.iter_mut().zip(row).for_each(|(o, x)| *o = x / row[v_stride + 1]);
                    }
                }
            }
        })?;
        env.pool.run(if partials > 0 { works.len() } else { 0 }, &|_, i| {
            let work = &works[i];
            for head in (0..heads).filter(|_| work.splits > 1) {
                let parts = &partial[(work.partials + head * work.splits) * stride..][..work.splits * stride];
                // SAFETY: every segment's rows belong to one item.
                let out = unsafe { outs.slice((work.segment.first * heads + head) * decl.v_dim, decl.v_dim) };
                env.simd(Combine { parts, stride, v_stride, out });
            }
        })
    }

    /// The tile of item `i` of a segment, and the number of its split.
    fn tile<'t>(
        &'t self,
        env: Env<'t>,
        work: &SegmentWork,
        q: &'t [f32],
        i: usize,
        level: Level,
    ) -> (QueryTile<'t>, usize) {
        let cache = self.cache(&work.segment);
        // The last tiles see the most positions, so they are started first.
        let (kv, rest) = (i / (work.tiles * work.splits), i % (work.tiles * work.splits));
        let (tile, split) = (work.tiles - 1 - rest / work.splits, rest % work.splits);
        let first = tile * work.per_tile;
        let tokens = work.per_tile.min(work.segment.rows - first);
        let group = self.a.heads / cache.decl.kv_heads;
        let sinks = self.a.sinks.filter(|_| split == 0).map(|s| env.vectors[s.0 as usize].as_slice());
        let tile = QueryTile {
            a: self.a,
            cache,
            q,
            kv,
            group,
            row: work.segment.first + first,
            position: work.segment.past + first,
            rows: tokens * group,
            span: if work.splits > 1 { split * SPLIT_POSITIONS..(split + 1) * SPLIT_POSITIONS } else { 0..usize::MAX },
            sinks,
            level,
        };
        (tile, split)
    }
}

/// The length of the state of a tile ([`Run`]), in f32 values.
fn state_len(tile: &QueryTile<'_>) -> usize {
    tile.rows * (tile.cache.v_stride + N) + MAX_QUERY_ROWS * KV_TILE + quants::scratch_len(tile)
}

/// Computes a tile with the reader of its cache; see [`Run`] for `state`.
fn run_tile(tile: &QueryTile<'_>, env: Env<'_>, state: &mut [f32]) {
    match &tile.cache.held {
        Held::F16([k, v]) => env.simd(Run(tile, FloatReader::<F16>::new(k, v), state)),
        Held::F32([k, v]) => env.simd(Run(tile, FloatReader::<F32>::new(k, v), state)),
        Held::Q8_0([keys, values]) => env.simd(Run(tile, QuantReader { keys, values }, state)),
    }
}

/// Combines the partial results of one head.
struct Combine<'a> {
    parts: &'a [f32],
    stride: usize,
    v_stride: usize,
    out: &'a mut [f32],
}

impl SimdKernel for Combine<'_> {
    type Output = ();

    // Plain loops, which the compiler vectorises.
    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let parts = || self.parts.chunks_exact(self.stride);
        let max = parts().map(|p| p[self.v_stride]).fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        self.out.fill(0.0);
        // Splits outside of the window have seen no position: their maximum is −∞.
        for p in parts().filter(|p| p[self.v_stride] != f32::NEG_INFINITY) {
            let factor = (p[self.v_stride] - max).exp();
            sum += factor * p[self.v_stride + 1];
            self.out.iter_mut().zip(p).for_each(|(o, x)| *o += factor * x);
        }
        self.out.iter_mut().for_each(|o| *o /= sum);
    }
}
