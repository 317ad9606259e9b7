//! Attention over the KV cache ([`super::cache`]). Keys and values are read in the form in which they are stored.
//!
//! A thread takes a tile of query rows that share a key head, and goes through the positions in KV tiles of 128 with a running
//! maximum and sum (Milakov and Gimelshein 2018; Dao et al. 2022), for up to eight query rows at a time. With one token and a
//! long context the positions are split as well, into ranges of 512 for more threads, whose partial results are combined in
//! order.
//!
//! [`floats`] reads caches in f16 and f32, [`quants`] caches of int8 quants.

mod quants;
mod floats;

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

/// The positions of a KV tile.
const KV_TILE: usize = 128;
/// The positions of a split, where one query row is computed by several threads.
const SPLIT_POSITIONS: usize = 512;
/// The query rows of a tile, about.
const TILE_ROWS: usize = 32;
/// The most query rows that go through a KV tile together: each key and value is loaded once for them.
const MAX_QUERY_ROWS: usize = 8;

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
            let state = ensure_len(
                &mut scratch.other,
                tile.rows * stride + MAX_QUERY_ROWS * KV_TILE + quants::scratch_len(&tile),
            );
            tile.run(env, state);
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

/// The query rows of one item of work: `rows` pairs of a token and a query head, all of one key head, token by token.
struct QueryTile<'a> {
    a: &'a Attention,
    cache: &'a Cache,
    q: &'a [f32],
    kv: usize,
    group: usize,
    /// The first token's row of `q`; below, its position in its sequence.
    row: usize,
    position: usize,
    rows: usize,
    /// The positions of this item's split.
    span: std::ops::Range<usize>,
    sinks: Option<&'a [f32]>,
    /// The cache into which keys and values are prefetched.
    level: Level,
}

impl<'a> QueryTile<'a> {
    /// Computes the tile; see [`Run`] for `state`.
    fn run(&self, env: Env<'_>, state: &mut [f32]) {
        match &self.cache.held {
            Held::F16([k, v]) => env.simd(Run(self, FloatReader::<F16>::new(k, v), state)),
            Held::F32([k, v]) => env.simd(Run(self, FloatReader::<F32>::new(k, v), state)),
            Held::KvQuants([k, v]) => env.simd(Run(self, QuantReader { keys: k, values: v }, state)),
        }
    }

    /// The token (row of `q`) and the query head of query row `i`.
    fn place(&self, i: usize) -> (usize, usize) {
        (self.row + i / self.group, self.kv * self.group + i % self.group)
    }

    /// The query vector of query row `i`.
    fn query(&self, i: usize) -> &'a [f32] {
        let d = self.cache.decl.k_dim;
        let (token, head) = self.place(i);
        &self.q[(token * self.a.heads + head) * d..][..d]
    }

    /// The positions of this split that query row `i` sees.
    fn seen(&self, i: usize) -> std::ops::Range<usize> {
        let end = self.position + i / self.group + 1;
        let start = self.a.first_seen(end - 1);
        start.max(self.span.start)..end.min(self.span.end)
    }

    /// The key head and position of the keys that are read after those before position `to`: behind the last position come the
    /// keys of the next head.
    fn after(&self, to: usize) -> (usize, usize) {
        let end = self.position + self.rows / self.group;
        if to < end { (self.kv, to) } else { (self.kv + 1, self.a.first_seen(self.position) / N * N) }
    }
}

/// The positions `from .. to`, at most [`KV_TILE`] of them, where `from` is a multiple of 16. The first query rows that go through
/// a tile also prefetch (`prefetch_next`): its values while they compute scores, and the keys of the next tile while they sum values.
#[derive(Clone, Copy)]
struct KvTile {
    from: usize,
    to: usize,
    prefetch_next: bool,
}

/// Reads keys and values in one storage form.
///
/// All functions are unsafe for one reason: the processor must have the features of `L`, and the cache the positions of the KV
/// tile.
#[allow(clippy::missing_safety_doc)]
trait Reader: Copy {
    /// Prepares the queries of a tile in `prepared`, of [`quants::scratch_len`] values.
    unsafe fn begin<L: F32x16>(self, tile: &QueryTile<'_>, prepared: &mut [f32]);

    /// Computes the scores of query rows `i .. i + R`: that of the r-th row and position p goes to
    /// `scores[r * KV_TILE + p - from]`. Whole vectors of scores are written.
    unsafe fn score<L: F32x16, const R: usize>(
        self,
        tile: &QueryTile<'_>,
        prepared: &[f32],
        scores: &mut [f32],
        i: usize,
        kv_tile: KvTile,
    );

    /// `state = factor · state + Σ weight · value` for `R` query rows, whose weights are where their scores were.
    unsafe fn sum<L: F32x16, const R: usize>(
        self,
        tile: &QueryTile<'_>,
        prepared: &mut [f32],
        weights: &[f32],
        factors: &[f32; R],
        state: &mut [f32],
        kv_tile: KvTile,
    );
}

/// The kernel of a tile: the tile, the reader of its keys and values, and its state. The state has for each query row `v_stride`
/// weighted sums of values, the maximum of the scores and the sum of the weights; behind all rows it has room for the scores of
/// a KV tile and for what the reader prepares.
struct Run<'a, S>(&'a QueryTile<'a>, S, &'a mut [f32]);

impl<S: Reader> SimdKernel for Run<'_, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let Run(tile, reader, state) = self;
        let stride = tile.cache.v_stride + N;
        let (state, rest) = state.split_at_mut(tile.rows * stride);
        let (scores, prepared) = rest.split_at_mut(MAX_QUERY_ROWS * KV_TILE);
        for (i, row) in state.chunks_exact_mut(stride).enumerate() {
            let sink = tile.sinks.map(|s| s[tile.kv * tile.group + i % tile.group]);
            row.fill(0.0);
            row[tile.cache.v_stride] = sink.unwrap_or(f32::NEG_INFINITY);
            row[tile.cache.v_stride + 1] = if sink.is_some() { 1.0 } else { 0.0 };
        }
        let (start, end) = (tile.seen(0).start, tile.seen(tile.rows - 1).end);
        // SAFETY: the features are there by the contract; positions below `end` are written; rows below `tile.rows` have
        // state.
        unsafe {
            reader.begin::<L>(tile, prepared);
            let mut from = start / N * N;
            while from < end {
                let to = (from + KV_TILE).min(end);
                let mut i = 0;
                while i < tile.rows {
                    let kv_tile = KvTile { from, to, prefetch_next: i == 0 };
                    let state = &mut state[i * stride..];
                    i += match tile.rows - i {
                        8.. if L::MANY_REGISTERS => {
                            rows::<S, L, MAX_QUERY_ROWS>(reader, tile, prepared, state, scores, i, kv_tile)
                        }
                        4.. => rows::<S, L, 4>(reader, tile, prepared, state, scores, i, kv_tile),
                        2.. => rows::<S, L, 2>(reader, tile, prepared, state, scores, i, kv_tile),
                        _ => rows::<S, L, 1>(reader, tile, prepared, state, scores, i, kv_tile),
                    };
                }
                // KV tiles start on multiples of 16, and so does `to`, unless it is the end.
                from = to;
            }
        }
    }
}

/// Takes query rows `i .. i + R` through a KV tile; gives `R`.
///
/// # Safety
/// As [`Reader`].
#[inline(always)]
unsafe fn rows<S: Reader, L: F32x16, const R: usize>(
    reader: S,
    tile: &QueryTile<'_>,
    prepared: &mut [f32],
    state: &mut [f32],
    scores: &mut [f32],
    i: usize,
    kv_tile: KvTile,
) -> usize {
    let (v_stride, stride) = (tile.cache.v_stride, tile.cache.v_stride + N);
    // A later token sees later positions: often no row sees anything of this KV tile.
    let seen: [std::ops::Range<usize>; R] = std::array::from_fn(|r| tile.seen(i + r));
    if seen.iter().all(|s| s.end <= kv_tile.from || s.start >= kv_tile.to) {
        return R;
    }
    // SAFETY: by the contract.
    unsafe {
        reader.score::<L, R>(tile, prepared, scores, i, kv_tile);
        let mut factors = [1f32; R];
        for r in 0..R {
            let s = &mut scores[r * KV_TILE..(r + 1) * KV_TILE];
            factors[r] = weigh::<L>(s, &seen[r], kv_tile.from, kv_tile.to, &mut state[r * stride + v_stride..][..2]);
        }
        reader.sum::<L, R>(tile, prepared, scores, &factors, state, kv_tile);
    }
    R
}

/// Turns the scores of one row into weights relative to the running maximum, updates that and the sum (`state`), and gives the
/// factor by which earlier sums shrink. Positions that the row does not see get weight 0.
#[inline(always)]
unsafe fn weigh<L: F32x16>(
    scores: &mut [f32],
    seen: &std::ops::Range<usize>,
    from: usize,
    to: usize,
    state: &mut [f32],
) -> f32 {
    let n = (to - from).next_multiple_of(N);
    let a = seen.start.clamp(from, to) - from;
    let b = (seen.end.clamp(from, to) - from).max(a);
    if a == b {
        scores[..n].fill(0.0);
        return 1.0;
    }
    scores[..a].fill(f32::NEG_INFINITY);
    scores[b..n].fill(f32::NEG_INFINITY);
    // SAFETY: `scores` has `n` elements, a multiple of a vector's; the processor has the features by the contract.
    unsafe {
        let mut top = L::splat(f32::NEG_INFINITY);
        for s in scores[..n].chunks_exact(N) {
            top = top.max(L::load(s.as_ptr()));
        }
        let max = top.largest().max(state[0]);
        let factor = if state[0] == f32::NEG_INFINITY { 0.0 } else { (state[0] - max).exp() };
        for s in scores[..n].chunks_exact_mut(N) {
            L::load(s.as_ptr()).sub(L::splat(max)).exp().store(s.as_mut_ptr());
        }
        scores[..a].fill(0.0);
        scores[b..n].fill(0.0);
        let mut sum = L::splat(0.0);
        for s in scores[..n].chunks_exact(N) {
            sum = sum.add(L::load(s.as_ptr()));
        }
        state[0] = max;
        state[1] = state[1] * factor + sum.sum();
        factor
    }
}
