//! Attention over the KV cache ([`super::cache`]), whose keys and values are read as they are stored.
//!
//! Attention goes through the positions in chunks with a running maximum and sum (Milakov and Gimelshein 2018; Dao et al.
//! 2022), for up to eight query rows at a time that share a key head. With one token and a long context the positions are also
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
    sequence::{Segment, Sequence},
    stream::{self, Level},
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
/// Query rows that go through a chunk together, at most: each key and value is loaded once for them.
const ABREAST: usize = 8;

/// Attention of the query rows of some segments.
pub struct Job<'a> {
    /// What is computed.
    pub a: &'a Attention,
    /// By number.
    pub sequences: &'a [Sequence],
    /// The rows.
    pub segments: &'a [Segment],
}

/// Memory of [`Job::run`].
#[derive(Default)]
pub struct Scratch {
    partial: Vec<f32>,
    cuts: Vec<Cut>,
}

impl Scratch {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        (4 * self.partial.capacity() + self.cuts.capacity() * size_of::<Cut>()) as u64
    }
}

/// How a segment is cut into items: key heads, tiles of query rows, pieces of the positions.
#[derive(Clone, Copy)]
struct Cut {
    segment: Segment,
    /// Rows of a tile.
    per_tile: usize,
    tiles: usize,
    pieces: usize,
    /// Items of the segments before.
    items: usize,
    /// Partial results of the segments before.
    partials: usize,
}

impl Job<'_> {
    fn cache(&self, s: &Segment) -> &Cache {
        &self.sequences[s.sequence].caches[self.a.cache.0 as usize]
    }

    /// Cuts the segments into `cuts`; gives how many items and partial results they make.
    fn cut(&self, kv_heads: usize, cuts: &mut Vec<Cut>) -> (usize, usize) {
        let (mut items, mut partials) = (0, 0);
        cuts.clear();
        for s in self.segments {
            let per_tile = (ROWS / (self.a.heads / kv_heads)).clamp(1, s.rows);
            let tiles = s.rows.div_ceil(per_tile);
            let pieces = if s.rows == 1 { s.end().div_ceil(PIECE) } else { 1 };
            cuts.push(Cut { segment: *s, per_tile, tiles, pieces, items, partials });
            items += kv_heads * tiles * pieces;
            partials += if pieces > 1 { self.a.heads * pieces } else { 0 };
        }
        (items, partials)
    }

    /// Queries `q`, `[T, heads · Dk]`, against their sequences up to their own positions, into `out`, `[T, heads · Dv]`.
    ///
    /// # Errors
    /// As [`super::pool::Pool::run`].
    pub fn run(&self, env: Env<'_>, q: &[f32], scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        let Some(first) = self.segments.first() else { return Ok(()) };
        let (heads, decl) = (self.a.heads, &self.cache(first).decl);
        // A partial result is a row of sums, the maximum, and the sum of weights.
        let v_stride = self.cache(first).v_stride;
        let stride = v_stride + N;
        let Scratch { partial, cuts } = scratch;
        let (items, partials) = self.cut(decl.kv_heads, cuts);
        let partial = room(partial, partials * stride);
        let (cuts, parts, outs) = (&*cuts, Out::new(&mut *partial), Out::new(out));
        let level = stream::level();
        env.pool.run(items, &|worker, item| {
            let cut = &cuts[cuts.partition_point(|c| c.items <= item) - 1];
            let (tile, piece) = self.tile(env, cut, q, item - cut.items, level);
            let mut scratch = env.scratch.of(worker);
            let state = room(&mut scratch.other, tile.rows * stride + ABREAST * CHUNK + codes::room(&tile));
            tile.run(env, state);
            for (i, row) in state[..tile.rows * stride].chunks_exact(stride).enumerate() {
                let (token, head) = tile.place(i);
                // SAFETY: every (token, head, piece) belongs to one item.
                unsafe {
                    if cut.pieces > 1 {
                        let at = (cut.partials + head * cut.pieces + piece) * stride;
                        parts.slice(at, stride).copy_from_slice(row);
                    } else {
                        let to = outs.slice((token * heads + head) * decl.v_dim, decl.v_dim);
                        to.iter_mut().zip(row).for_each(|(o, x)| *o = x / row[v_stride + 1]);
                    }
                }
            }
        })?;
        env.pool.run(if partials > 0 { cuts.len() } else { 0 }, &|_, i| {
            let cut = &cuts[i];
            for head in (0..heads).filter(|_| cut.pieces > 1) {
                let parts = &partial[(cut.partials + head * cut.pieces) * stride..][..cut.pieces * stride];
                // SAFETY: every segment's rows belong to one item.
                let out = unsafe { outs.slice((cut.segment.first * heads + head) * decl.v_dim, decl.v_dim) };
                env.floats(Combine { parts, stride, v_stride, out });
            }
        })
    }

    /// Item `i` of a segment, and the number of its piece.
    fn tile<'t>(&'t self, env: Env<'t>, cut: &Cut, q: &'t [f32], i: usize, level: Level) -> (Tile<'t>, usize) {
        let cache = self.cache(&cut.segment);
        // Late tiles see the most positions: they go first.
        let (kv, rest) = (i / (cut.tiles * cut.pieces), i % (cut.tiles * cut.pieces));
        let (tile, piece) = (cut.tiles - 1 - rest / cut.pieces, rest % cut.pieces);
        let first = tile * cut.per_tile;
        let tokens = cut.per_tile.min(cut.segment.rows - first);
        let group = self.a.heads / cache.decl.kv_heads;
        let sinks = self.a.sinks.filter(|_| piece == 0).map(|s| env.vectors[s.0 as usize].as_slice());
        let tile = Tile {
            a: self.a,
            cache,
            q,
            kv,
            group,
            row: cut.segment.first + first,
            position: cut.segment.past + first,
            rows: tokens * group,
            span: if cut.pieces > 1 { piece * PIECE..(piece + 1) * PIECE } else { 0..usize::MAX },
            sinks,
            level,
        };
        (tile, piece)
    }
}

/// Puts the partial results of one head together.
struct Combine<'a> {
    parts: &'a [f32],
    stride: usize,
    v_stride: usize,
    out: &'a mut [f32],
}

impl Floats for Combine<'_> {
    type Output = ();

    // Plain loops, which the compiler makes vectors of.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let parts = || self.parts.chunks_exact(self.stride);
        let max = parts().map(|p| p[self.v_stride]).fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        self.out.fill(0.0);
        // Pieces outside of a window have seen nothing: their maximum is −∞.
        for p in parts().filter(|p| p[self.v_stride] != f32::NEG_INFINITY) {
            let factor = (p[self.v_stride] - max).exp();
            sum += factor * p[self.v_stride + 1];
            self.out.iter_mut().zip(p).for_each(|(o, x)| *o += factor * x);
        }
        self.out.iter_mut().for_each(|o| *o /= sum);
    }
}

/// The query rows of one item: `rows` (token, head) pairs of one key head, token by token.
struct Tile<'a> {
    a: &'a Attention,
    cache: &'a Cache,
    q: &'a [f32],
    kv: usize,
    group: usize,
    /// The first token's row of `q`, and its position.
    row: usize,
    position: usize,
    rows: usize,
    /// Positions that this item looks at.
    span: std::ops::Range<usize>,
    sinks: Option<&'a [f32]>,
    /// Where keys and values are asked into ahead of their use.
    level: Level,
}

impl<'a> Tile<'a> {
    /// Goes through the positions.
    fn run(&self, env: Env<'_>, state: &mut [f32]) {
        match &self.cache.held {
            Held::F16([k, v]) => env.floats(Run(self, Numbers::<Half>::new(k, v), state)),
            Held::F32([k, v]) => env.floats(Run(self, Numbers::<Single>::new(k, v), state)),
            Held::Codes([k, v]) => env.floats(Run(self, Coded { keys: k, values: v }, state)),
        }
    }

    /// Row of `q` and head of query row `i`.
    fn place(&self, i: usize) -> (usize, usize) {
        (self.row + i / self.group, self.kv * self.group + i % self.group)
    }

    /// The query of row `i`.
    fn query(&self, i: usize) -> &'a [f32] {
        let d = self.cache.decl.k_dim;
        let (token, head) = self.place(i);
        &self.q[(token * self.a.heads + head) * d..][..d]
    }

    /// The positions that query row `i` sees.
    fn seen(&self, i: usize) -> std::ops::Range<usize> {
        let end = self.position + i / self.group + 1;
        let start = self.a.first_seen(end - 1);
        start.max(self.span.start)..end.min(self.span.end)
    }

    /// Key head and position of the keys that are needed after those up to position `to`: behind the last come the next head's.
    fn after(&self, to: usize) -> (usize, usize) {
        let end = self.position + self.rows / self.group;
        if to < end { (self.kv, to) } else { (self.kv + 1, self.a.first_seen(self.position) / N * N) }
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
        let (scores, own) = rest.split_at_mut(ABREAST * CHUNK);
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
                        8.. if L::ROOMY => rows::<S, L, ABREAST>(reader, tile, own, state, scores, i, chunk),
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
