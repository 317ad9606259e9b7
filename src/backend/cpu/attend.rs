//! Attention over the KV cache ([`super::cache`]), whose keys and values are read as they are stored.
//!
//! Attention goes through the positions in chunks with a running maximum and sum (Milakov and Gimelshein 2018; Dao et al.
//! 2022), for up to four query rows at a time that share a key head. With one token and a long context the positions are also
//! split into fixed pieces for more threads, whose partial results are put together in order.
//!
//! [`numbers`] reads what is stored as floats, [`codes`] what is stored as 8-bit codes.

mod codes;
mod numbers;

use super::{
    buffer::Out,
    cache::{Cache, Held},
    lanes::{Half, Lanes, N, Single},
    products::Env,
    tier::Floats,
    weight::room,
};
use crate::{error::Result, ir::Attention};
use codes::Coded;
use numbers::Numbers;

/// Positions of a chunk.
const CHUNK: usize = 128;
/// Positions of a piece of a split.
const PIECE: usize = 512;
/// Query rows of an item, about.
const ROWS: usize = 32;

/// Attention of `t` query rows `q` `[T, heads · Dk]`, row i at position `past + i`, into `out` `[T, heads · Dv]`. `partial` is
/// scratch for splits.
///
/// # Errors
/// As [`super::pool::Pool::run`].
pub fn attend(
    env: Env<'_>,
    a: &Attention,
    cache: &Cache,
    q: &[f32],
    t: usize,
    past: usize,
    partial: &mut Vec<f32>,
    out: &mut [f32],
) -> Result<()> {
    if t == 0 {
        return Ok(());
    }
    let d = &cache.decl;
    let group = a.heads / d.kv_heads;
    let per_tile = (ROWS / group).clamp(1, t);
    let tiles = t.div_ceil(per_tile);
    let pieces = if t == 1 { (past + 1).div_ceil(PIECE) } else { 1 };
    let sinks = a.sinks.map(|s| env.vectors[s.0 as usize].as_slice());
    // A partial result is a row of sums, the maximum, and the sum of weights.
    let stride = cache.v_stride + N;
    let partials = Out::new(room(partial, if pieces > 1 { a.heads * pieces * stride } else { 0 }));
    let shared = Out::new(out);
    env.pool.run(d.kv_heads * tiles * pieces, &|worker, item| {
        // Late tiles see the most positions: they go first.
        let (kv, rest) = (item / (tiles * pieces), item % (tiles * pieces));
        let (tile, piece) = (tiles - 1 - rest / pieces, rest % pieces);
        let first = tile * per_tile;
        let tokens = per_tile.min(t - first);
        let span = if pieces > 1 { piece * PIECE..(piece + 1) * PIECE } else { 0..usize::MAX };
        let sinks = if piece == 0 { sinks } else { None };
        let mut scratch = env.scratch.of(worker);
        let job = Tile { a, cache, q, past, kv, group, first, rows: tokens * group, span, sinks };
        let state = room(&mut scratch.other, job.rows * stride + 4 * CHUNK + codes::room(&job));
        match &cache.held {
            Held::F16([k, v]) => env.floats(Run(&job, Numbers::<Half>::new(k, v), &mut *state)),
            Held::F32([k, v]) => env.floats(Run(&job, Numbers::<Single>::new(k, v), &mut *state)),
            Held::Codes([k, v]) => env.floats(Run(&job, Coded { keys: k, values: v }, &mut *state)),
        }
        for (i, row) in state[..job.rows * stride].chunks_exact(stride).enumerate() {
            let (token, head) = (first + i / group, kv * group + i % group);
            // SAFETY: every (token, head, piece) belongs to one item.
            unsafe {
                if pieces > 1 {
                    partials.slice((head * pieces + piece) * stride, stride).copy_from_slice(row);
                } else {
                    let sum = row[cache.v_stride + 1];
                    let to = shared.slice((token * a.heads + head) * d.v_dim, d.v_dim);
                    to.iter_mut().zip(row).for_each(|(o, x)| *o = x / sum);
                }
            }
        }
    })?;
    if pieces > 1 {
        for (head, parts) in partial.chunks_exact(pieces * stride).take(a.heads).enumerate() {
            combine(parts, stride, cache.v_stride, &mut out[head * d.v_dim..(head + 1) * d.v_dim]);
        }
    }
    Ok(())
}

/// Puts the partial results of one head together.
fn combine(parts: &[f32], stride: usize, v_stride: usize, out: &mut [f32]) {
    // Pieces outside of a window have seen nothing: their maximum is −∞ and their factor 0.
    let max = parts.chunks_exact(stride).map(|p| p[v_stride]).fold(f32::NEG_INFINITY, f32::max);
    let factor = |p: &[f32]| if p[v_stride] == f32::NEG_INFINITY { 0.0 } else { (p[v_stride] - max).exp() };
    let sum: f32 = parts.chunks_exact(stride).map(|p| factor(p) * p[v_stride + 1]).sum();
    out.fill(0.0);
    for p in parts.chunks_exact(stride) {
        let f = factor(p) / sum;
        out.iter_mut().zip(p).for_each(|(o, x)| *o += f * x);
    }
}

/// The query rows of one item: `rows` (token, head) pairs of one key head, token by token.
struct Tile<'a> {
    a: &'a Attention,
    cache: &'a Cache,
    q: &'a [f32],
    past: usize,
    kv: usize,
    group: usize,
    first: usize,
    rows: usize,
    /// Positions that this item looks at.
    span: std::ops::Range<usize>,
    sinks: Option<&'a [f32]>,
}

impl<'a> Tile<'a> {
    /// The query of row `i`.
    fn query(&self, i: usize) -> &'a [f32] {
        let d = self.cache.decl.k_dim;
        let (token, head) = (self.first + i / self.group, self.kv * self.group + i % self.group);
        &self.q[(token * self.a.heads + head) * d..][..d]
    }

    /// The positions that query row `i` sees.
    fn seen(&self, i: usize) -> std::ops::Range<usize> {
        let end = self.past + self.first + i / self.group + 1;
        let start = self.a.first_seen(end - 1);
        start.max(self.span.start)..end.min(self.span.end)
    }

    /// Key head and position of the keys that are needed after those up to position `to`: behind the last come the next head's.
    fn after(&self, to: usize) -> (usize, usize) {
        let (first, end) = (self.past + self.first, self.past + self.first + self.rows / self.group);
        if to < end { (self.kv, to) } else { (self.kv + 1, self.a.first_seen(first) / N * N) }
    }
}

/// Positions `from .. to` that are looked at together, `from` on the start of a block of 16. Where nothing was fetched
/// before, what comes next is fetched `ahead`: values during the scores, the next keys during the sums.
#[derive(Clone, Copy)]
struct Chunk {
    from: usize,
    to: usize,
    ahead: bool,
}

/// A way to store keys and values, as attention goes through them.
///
/// All functions are unsafe for one reason: the processor must have the features of `L`, and the cache the positions of the
/// chunk.
#[allow(clippy::missing_safety_doc)]
trait Reader: Copy {
    /// Prepares the queries of a tile, in `own`, of [`codes::room`] numbers.
    unsafe fn begin<L: Lanes>(self, tile: &Tile<'_>, own: &mut [f32]);

    /// Scores of rows `i .. i + R`: the r-th's on position p to `scores[r * CHUNK + p - from]`, up to the end of a vector.
    unsafe fn score<L: Lanes, const R: usize>(
        self,
        tile: &Tile<'_>,
        own: &[f32],
        scores: &mut [f32],
        i: usize,
        chunk: Chunk,
    );

    /// `state = factor · state + Σ weight · value` for `R` rows, with weights where the scores were.
    unsafe fn sum<L: Lanes, const R: usize>(
        self,
        tile: &Tile<'_>,
        own: &mut [f32],
        weights: &[f32],
        factors: &[f32; R],
        state: &mut [f32],
        chunk: Chunk,
    );
}

/// A tile, its keys and values, and its state: for each row `v_stride` sums, maximum, sum of weights; then room for scores and
/// for what the reader prepares.
struct Run<'a, S>(&'a Tile<'a>, S, &'a mut [f32]);

impl<S: Reader> Floats for Run<'_, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Run(tile, reader, state) = self;
        let stride = tile.cache.v_stride + N;
        let (state, rest) = state.split_at_mut(tile.rows * stride);
        let (scores, own) = rest.split_at_mut(4 * CHUNK);
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
            reader.begin::<L>(tile, own);
            let mut from = start / N * N;
            while from < end {
                let to = (from + CHUNK).min(end);
                let mut i = 0;
                while i < tile.rows {
                    let chunk = Chunk { from, to, ahead: i == 0 };
                    let state = &mut state[i * stride..];
                    i += match tile.rows - i {
                        4.. => rows::<S, L, 4>(reader, tile, own, state, scores, i, chunk),
                        2.. => rows::<S, L, 2>(reader, tile, own, state, scores, i, chunk),
                        _ => rows::<S, L, 1>(reader, tile, own, state, scores, i, chunk),
                    };
                }
                // Chunks start on whole blocks; `to` is one or the end.
                from = to;
            }
        }
    }
}

/// Query rows `i .. i + R` on a chunk; gives `R`.
///
/// Safety: as [`Reader`].
#[inline(always)]
unsafe fn rows<S: Reader, L: Lanes, const R: usize>(
    reader: S,
    tile: &Tile<'_>,
    own: &mut [f32],
    state: &mut [f32],
    scores: &mut [f32],
    i: usize,
    chunk: Chunk,
) -> usize {
    let (v_stride, stride) = (tile.cache.v_stride, tile.cache.v_stride + N);
    // Rows of one tile see more and more: where the last sees nothing here, none does.
    let seen: [std::ops::Range<usize>; R] = std::array::from_fn(|r| tile.seen(i + r));
    if seen.iter().all(|s| s.end <= chunk.from || s.start >= chunk.to) {
        return R;
    }
    // SAFETY: by the contract.
    unsafe {
        reader.score::<L, R>(tile, own, scores, i, chunk);
        let mut factors = [1f32; R];
        for r in 0..R {
            let s = &mut scores[r * CHUNK..(r + 1) * CHUNK];
            factors[r] = weigh::<L>(s, &seen[r], chunk.from, chunk.to, &mut state[r * stride + v_stride..][..2]);
        }
        reader.sum::<L, R>(tile, own, scores, &factors, state, chunk);
    }
    R
}

/// Turns the scores of one row into weights relative to the running maximum, updates that and the sum (`state`), and gives the
/// factor by which earlier sums shrink. Positions that the row does not see get weight 0.
#[inline(always)]
unsafe fn weigh<L: Lanes>(
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
    // SAFETY: `scores` has `n` numbers, whole vectors.
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
