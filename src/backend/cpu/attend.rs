//! Attention over the KV cache ([`super::cache`]), whose keys and values are read as they are stored.
//!
//! Attention goes through the positions in chunks with a running maximum and sum (Milakov and Gimelshein 2018; Dao et al.
//! 2022), for up to four query rows at a time that share a key head. With one token and a long context the positions are also
//! split into fixed pieces for more threads, whose partial results are put together in order.

use super::{
    buffer::Out,
    cache::{Cache, Memory},
    lanes::{Half, Lanes, N, Single, Store},
    products::Env,
    tier::Floats,
    weight::room,
};
use crate::{error::Result, ir::Attention};
use std::marker::PhantomData;

/// Positions of a chunk.
const CHUNK: usize = 128;
/// Positions of a piece of a split.
const PIECE: usize = 512;
/// Query rows of an item, about.
const ROWS: usize = 32;
/// Vectors of values that are summed in registers, at most.
const WIDE: usize = 4;

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
        let state = room(&mut scratch.other, job.rows * stride + 4 * CHUNK);
        match (&cache.k, &cache.v) {
            (Memory::F16(k), Memory::F16(v)) => {
                env.floats(Run(&job, k.as_ptr().cast(), v.as_ptr().cast(), &mut *state, PhantomData::<Half>));
            }
            (Memory::F32(k), Memory::F32(v)) => {
                env.floats(Run(&job, k.as_ptr().cast(), v.as_ptr().cast(), &mut *state, PhantomData::<Single>));
            }
            _ => {}
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

impl Tile<'_> {
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

/// A tile, its keys and values, and its state: for each row `v_stride` sums, maximum, sum of weights; then room for scores.
struct Run<'a, S>(&'a Tile<'a>, *const u8, *const u8, &'a mut [f32], PhantomData<S>);

impl<S: Store> Floats for Run<'_, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Run(tile, keys, values, state, _) = self;
        let stride = tile.cache.v_stride + N;
        let (state, scores) = state.split_at_mut(tile.rows * stride);
        for (i, row) in state.chunks_exact_mut(stride).enumerate() {
            let sink = tile.sinks.map(|s| s[tile.kv * tile.group + i % tile.group]);
            row.fill(0.0);
            row[tile.cache.v_stride] = sink.unwrap_or(f32::NEG_INFINITY);
            row[tile.cache.v_stride + 1] = if sink.is_some() { 1.0 } else { 0.0 };
        }
        let (start, end) = (tile.seen(0).start, tile.seen(tile.rows - 1).end);
        let mut chunk = start / N * N;
        while chunk < end {
            let to = (chunk + CHUNK).min(end);
            let mut i = 0;
            while i < tile.rows {
                // SAFETY: positions below `end` are written; rows below `tile.rows` have state.
                unsafe {
                    i += match tile.rows - i {
                        4.. => rows::<S, L, 4, 2>(tile, keys, values, &mut state[i * stride..], scores, i, chunk, to),
                        2.. => {
                            rows::<S, L, 2, WIDE>(tile, keys, values, &mut state[i * stride..], scores, i, chunk, to)
                        }
                        _ => rows::<S, L, 1, WIDE>(tile, keys, values, &mut state[i * stride..], scores, i, chunk, to),
                    };
                }
            }
            chunk = to;
            // Chunks start on whole blocks; `to` is one or the end.
        }
    }
}

/// Query rows `i .. i + R` on positions `from .. to`, `from` on a block's start; gives `R`.
///
/// Safety: the features of `L` are there; keys and values of these positions are in the cache.
#[inline(always)]
unsafe fn rows<S: Store, L: Lanes, const R: usize, const W: usize>(
    tile: &Tile<'_>,
    keys: *const u8,
    values: *const u8,
    state: &mut [f32],
    scores: &mut [f32],
    i: usize,
    from: usize,
    to: usize,
) -> usize {
    let (cache, stride) = (tile.cache, tile.cache.v_stride + N);
    // Rows of one tile see more and more: where the last sees nothing here, none does.
    let seen: [std::ops::Range<usize>; R] = std::array::from_fn(|r| tile.seen(i + r));
    if seen.iter().all(|s| s.end <= from || s.start >= to) {
        return R;
    }
    // SAFETY: by the contract; blocks of 16 positions are whole because the cache's length is.
    unsafe {
        let value = values.add((tile.kv * cache.ctx + from) * cache.v_stride * S::BYTES);
        let (head, position) = tile.after(to);
        let next = keys.wrapping_add((head * cache.ctx + position) * cache.decl.k_dim * S::BYTES);
        // The first rows of a tile fetch what comes next: values while they compute scores, keys while they sum values.
        let ahead = i == 0 && !cache.decl.v_in_k;
        if cache.decl.v_in_k {
            score_rows::<S, L, R>(tile, values, scores, i, from, to);
        } else {
            score::<S, L, R>(tile, keys, ahead.then_some(value), scores, i, from, to);
        }
        let mut factors = [1f32; R];
        for r in 0..R {
            let s = &mut scores[r * CHUNK..(r + 1) * CHUNK];
            let row = &mut state[r * stride + cache.v_stride..][..2];
            factors[r] = weigh::<L>(s, &seen[r], from, to, row);
        }
        let next = ahead.then_some((next, cache.decl.k_dim * S::BYTES));
        let mut c = 0;
        let width = cache.decl.v_dim.next_multiple_of(N);
        while c < width {
            if c + W * N <= width {
                let next = next.filter(|_| c == 0);
                sum_values::<S, L, R, W>(value, next, cache.v_stride, c, to - from, scores, &factors, state, stride);
                c += W * N;
            } else {
                let next = next.filter(|_| c == 0);
                sum_values::<S, L, R, 1>(value, next, cache.v_stride, c, to - from, scores, &factors, state, stride);
                c += N;
            }
        }
    }
    R
}

/// Scores of `R` rows: two blocks of 16 positions at a time. Fetches the values of the same positions.
#[inline(always)]
unsafe fn score<S: Store, L: Lanes, const R: usize>(
    tile: &Tile<'_>,
    keys: *const u8,
    values: Option<*const u8>,
    scores: &mut [f32],
    i: usize,
    from: usize,
    to: usize,
) {
    let (cache, d) = (tile.cache, tile.cache.decl.k_dim);
    // SAFETY: by the contract of `rows`; where the cache ends, the second block repeats the first and is dropped.
    unsafe {
        let q: [*const f32; R] = std::array::from_fn(|r| {
            let (token, head) = (tile.first + (i + r) / tile.group, tile.kv * tile.group + (i + r) % tile.group);
            tile.q[(token * tile.a.heads + head) * d..][..d].as_ptr()
        });
        let blocks = (to - from).div_ceil(N);
        let mut b = 0;
        while b < blocks {
            let block = |b: usize| keys.add((tile.kv * cache.ctx / N + from / N + b) * d * N * S::BYTES);
            let two = b + 1 < blocks;
            if let Some(values) = values {
                let bytes = N * cache.v_stride * S::BYTES;
                for line in (b * bytes..(b + 2) * bytes).step_by(64) {
                    L::prefetch(values.wrapping_add(line));
                }
            }
            let (k0, k1) = (block(b), block(if two { b + 1 } else { b }));
            let mut sums = [[L::splat(0.0); 2]; R];
            for c in 0..d {
                let (x0, x1) = (S::load::<L>(k0.add(c * N * S::BYTES)), S::load::<L>(k1.add(c * N * S::BYTES)));
                for r in 0..R {
                    let y = L::splat(*q[r].add(c));
                    sums[r][0] = x0.fma(y, sums[r][0]);
                    sums[r][1] = x1.fma(y, sums[r][1]);
                }
            }
            let scale = L::splat(tile.a.scale);
            for r in 0..R {
                sums[r][0].mul(scale).store(scores[r * CHUNK + b * N..][..N].as_mut_ptr());
                if two {
                    sums[r][1].mul(scale).store(scores[r * CHUNK + (b + 1) * N..][..N].as_mut_ptr());
                }
            }
            b += 2;
        }
    }
}

/// Scores of `R` rows from keys that are stored as rows: where values are part of keys.
#[inline(always)]
unsafe fn score_rows<S: Store, L: Lanes, const R: usize>(
    tile: &Tile<'_>,
    rows: *const u8,
    scores: &mut [f32],
    i: usize,
    from: usize,
    to: usize,
) {
    let (cache, d) = (tile.cache, tile.cache.decl.k_dim);
    let whole = d / N * N;
    // Rows end in zeros up to whole vectors; the queries' last columns get them here.
    let mut ends = [[0f32; N]; R];
    // SAFETY: by the contract of `rows`; columns up to `v_stride` of a position are in the cache.
    unsafe {
        let q: [*const f32; R] = std::array::from_fn(|r| {
            let (token, head) = (tile.first + (i + r) / tile.group, tile.kv * tile.group + (i + r) % tile.group);
            let q = &tile.q[(token * tile.a.heads + head) * d..][..d];
            ends[r][..d - whole].copy_from_slice(&q[whole..]);
            q.as_ptr()
        });
        for p in from..to {
            let row = rows.add((tile.kv * cache.ctx + p) * cache.v_stride * S::BYTES);
            let mut sums = [[L::splat(0.0); 2]; R];
            for c in (0..whole).step_by(N) {
                let x = S::load::<L>(row.add(c * S::BYTES));
                for r in 0..R {
                    sums[r][(c / N) & 1] = x.fma(L::load(q[r].add(c)), sums[r][(c / N) & 1]);
                }
            }
            if whole < d {
                let x = S::load::<L>(row.add(whole * S::BYTES));
                for r in 0..R {
                    sums[r][0] = x.fma(L::load(ends[r].as_ptr()), sums[r][0]);
                }
            }
            for r in 0..R {
                scores[r * CHUNK + p - from] = sums[r][0].add(sums[r][1]).sum() * tile.a.scale;
            }
        }
        // The last vector of scores is read as a whole.
        for r in 0..R {
            scores[r * CHUNK + to - from..r * CHUNK + (to - from).next_multiple_of(N)].fill(0.0);
        }
    }
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

/// `state = factor · state + Σ weight · value` for `R` rows and `W` vectors of columns from `c` on, over `n` positions.
/// `next` is what is needed next, and how many bytes of it to fetch a position.
#[inline(always)]
unsafe fn sum_values<S: Store, L: Lanes, const R: usize, const W: usize>(
    values: *const u8,
    next: Option<(*const u8, usize)>,
    v_stride: usize,
    c: usize,
    n: usize,
    weights: &[f32],
    factors: &[f32; R],
    state: &mut [f32],
    stride: usize,
) {
    assert!(state.len() >= (R - 1) * stride + c + W * N && weights.len() >= (R - 1) * CHUNK + n);
    // SAFETY: in range, as asserted; the values of `n` positions are there by the contract of `rows`.
    unsafe {
        let mut sums: [[L; W]; R] = std::array::from_fn(|r| {
            std::array::from_fn(|w| L::load(state.as_ptr().add(r * stride + c + w * N)).mul(L::splat(factors[r])))
        });
        for p in 0..n {
            let row = values.add((p * v_stride + c) * S::BYTES);
            if let Some((next, bytes)) = next {
                for line in (p * bytes..(p + 1) * bytes).step_by(64) {
                    L::prefetch(next.wrapping_add(line));
                }
            }
            for w in 0..W {
                let v = S::load::<L>(row.add(w * N * S::BYTES));
                for r in 0..R {
                    sums[r][w] = v.fma(L::splat(*weights.as_ptr().add(r * CHUNK + p)), sums[r][w]);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                sums[r][w].store(state.as_mut_ptr().add(r * stride + c + w * N));
            }
        }
    }
}
