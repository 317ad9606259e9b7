//! The attention kernel: one tile of query rows that goes through the positions of its sequence, one KV tile after the other.

use super::super::{
    cache::Cache,
    prefetch::Level,
    simd::{F32x16, N},
    simd_level::SimdKernel,
};
use crate::ir::Attention;

/// The positions of a KV tile.
pub(super) const KV_TILE: usize = 128;
/// The most query rows that go through a KV tile together: each key and value is loaded once for them.
pub(super) const MAX_QUERY_ROWS: usize = 8;

/// The query rows of one item of work: `rows` pairs of a token and a query head, all of one key head, token by token.
pub(super) struct QueryTile<'a> {
    pub(super) a: &'a Attention,
    pub(super) cache: &'a Cache,
    pub(super) q: &'a [f32],
    pub(super) kv: usize,
    pub(super) group: usize,
    /// The first token's row of `q`; below, its position in its sequence.
    pub(super) row: usize,
    pub(super) position: usize,
    pub(super) rows: usize,
    /// The positions of this item's split.
    pub(super) span: std::ops::Range<usize>,
    pub(super) sinks: Option<&'a [f32]>,
    /// The cache into which keys and values are prefetched.
    pub(super) level: Level,
}

impl<'a> QueryTile<'a> {
    /// The token (row of `q`) and the query head of query row `i`.
    pub(super) fn place(&self, i: usize) -> (usize, usize) {
        (self.row + i / self.group, self.kv * self.group + i % self.group)
    }

    /// The query vector of query row `i`.
    pub(super) fn query(&self, i: usize) -> &'a [f32] {
        let d = self.cache.decl.k_dim;
        let (token, head) = self.place(i);
        &self.q[(token * self.a.heads + head) * d..][..d]
    }

    /// The positions of this split that query row `i` sees.
    pub(super) fn seen(&self, i: usize) -> std::ops::Range<usize> {
        let end = self.position + i / self.group + 1;
        let start = self.a.first_seen(end - 1);
        start.max(self.span.start)..end.min(self.span.end)
    }

    /// The key head and position of the keys that are read after those before position `to`: behind the last position come the
    /// keys of the next head.
    pub(super) fn after(&self, to: usize) -> (usize, usize) {
        let end = self.position + self.rows / self.group;
        if to < end { (self.kv, to) } else { (self.kv + 1, self.a.first_seen(self.position) / N * N) }
    }
}

/// The positions `from .. to`, at most [`KV_TILE`] of them, where `from` is a multiple of 16. The first query rows that go through
/// a tile also prefetch (`prefetch_next`): its values while they compute scores, and the keys of the next tile while they sum values.
#[derive(Clone, Copy)]
pub(super) struct KvTile {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) prefetch_next: bool,
}

/// Reads keys and values in one storage form.
///
/// All functions are unsafe for one reason: the processor must have the features of `L`, and the cache the positions of the KV
/// tile.
#[allow(clippy::missing_safety_doc)]
pub(super) trait Reader: Copy {
    /// Prepares the queries of a tile in `prepared`, which has as many values as the reader wants.
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
pub(super) struct Run<'a, S>(pub(super) &'a QueryTile<'a>, pub(super) S, pub(super) &'a mut [f32]);

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
