//! Attention over keys and values that are stored in f16 or f32.

use super::{
    super::{
        buffer::Pages,
        prefetch::{self, Level},
        simd::{F32x16, FloatStorage, N},
    },
    tile::{KV_TILE, KvTile, QueryTile, Reader},
};
use std::marker::PhantomData;

/// Reads the keys and values of a cache in the float format `S`.
#[derive(Clone, Copy)]
pub struct FloatReader<S> {
    keys: *const u8,
    values: *const u8,
    kind: PhantomData<S>,
}

impl<S: FloatStorage> FloatReader<S> {
    /// A reader of these keys and values, whose elements have the size of `S`.
    pub fn new<T: bytemuck::Pod>(keys: &Pages<T>, values: &Pages<T>) -> Self {
        assert_eq!(size_of::<T>(), S::BYTES);
        FloatReader { keys: keys.as_ptr().cast(), values: values.as_ptr().cast(), kind: PhantomData }
    }

    /// The address of the values of position `from`.
    fn value(&self, tile: &QueryTile<'_>, from: usize) -> *const u8 {
        self.values.wrapping_add((tile.kv * tile.cache.ctx + from) * tile.cache.v_stride * S::BYTES)
    }
}

impl<S: FloatStorage> Reader for FloatReader<S> {
    #[inline(always)]
    unsafe fn begin<L: F32x16>(self, _: &QueryTile<'_>, _: &mut [f32]) {}

    #[inline(always)]
    unsafe fn score<L: F32x16, const R: usize>(
        self,
        tile: &QueryTile<'_>,
        _: &[f32],
        scores: &mut [f32],
        i: usize,
        KvTile { from, to, prefetch_next }: KvTile,
    ) {
        // SAFETY: by the contract.
        unsafe {
            if tile.cache.decl.v_in_k {
                score_rows::<S, L, R>(tile, self.values, scores, i, from, to);
            } else {
                score_columns::<S, L, R>(
                    tile,
                    self.keys,
                    prefetch_next.then_some(self.value(tile, from)),
                    scores,
                    i,
                    from,
                    to,
                );
            }
        }
    }

    #[inline(always)]
    unsafe fn sum<L: F32x16, const R: usize>(
        self,
        tile: &QueryTile<'_>,
        _: &mut [f32],
        weights: &[f32],
        factors: &[f32; R],
        state: &mut [f32],
        KvTile { from, to, prefetch_next }: KvTile,
    ) {
        let (cache, value) = (tile.cache, self.value(tile, from));
        let (v_stride, stride, n) = (cache.v_stride, cache.v_stride + N, to - from);
        let (head, position) = tile.after(to);
        let row = cache.decl.k_dim * S::BYTES;
        let next = self.keys.wrapping_add((head * cache.ctx + position) * row);
        let next = (prefetch_next && !cache.decl.v_in_k).then_some((next, row.div_ceil(64), tile.level));
        let width = cache.decl.v_dim.next_multiple_of(N);
        let mut c = 0;
        // SAFETY: by the contract.
        unsafe {
            while c < width {
                let next = next.filter(|_| c == 0);
                let state = &mut *state;
                // As many vectors of columns at a time as there are registers for their sums.
                c += N * match (width - c) / N {
                    4.. if R < 4 => {
                        sum_values::<S, L, R, 4>(value, next, v_stride, c, n, weights, factors, state, stride)
                    }
                    2.. if R >= 4 => {
                        sum_values::<S, L, R, 2>(value, next, v_stride, c, n, weights, factors, state, stride)
                    }
                    _ => sum_values::<S, L, R, 1>(value, next, v_stride, c, n, weights, factors, state, stride),
                };
            }
        }
    }
}

/// Scores of `R` query rows, for two blocks of 16 positions at a time. Prefetches the values of the same positions.
#[inline(always)]
unsafe fn score_columns<S: FloatStorage, L: F32x16, const R: usize>(
    tile: &QueryTile<'_>,
    keys: *const u8,
    values: Option<*const u8>,
    scores: &mut [f32],
    i: usize,
    from: usize,
    to: usize,
) {
    let (cache, d) = (tile.cache, tile.cache.decl.k_dim);
    let bytes = N * cache.v_stride * S::BYTES;
    // Cache lines of values to prefetch with each column: all of them at once would exceed the lines that can be in flight.
    let share = (2 * bytes).div_ceil(64 * d);
    // SAFETY: by the contract of `Reader`; where the cache ends, the second block repeats the first and is dropped.
    unsafe {
        let q: [*const f32; R] = std::array::from_fn(|r| tile.query(i + r).as_ptr());
        let blocks = (to - from).div_ceil(N);
        let mut b = 0;
        while b < blocks {
            let block = |b: usize| keys.add((tile.kv * cache.ctx / N + from / N + b) * d * N * S::BYTES);
            let two = b + 1 < blocks;
            let values = values.map(|v| v.wrapping_add(b * bytes));
            let (k0, k1) = (block(b), block(if two { b + 1 } else { b }));
            let mut sums = [[L::splat(0.0); 2]; R];
            for c in 0..d {
                if let Some(values) = values {
                    prefetch::lines(values.wrapping_add(64 * c * share), share, tile.level);
                }
                let (x0, x1) = (S::load::<L>(k0.add(c * N * S::BYTES)), S::load::<L>(k1.add(c * N * S::BYTES)));
                for r in 0..R {
                    let y = L::splat(*q[r].add(c));
                    sums[r][0] = x0.fma(y, sums[r][0]);
                    sums[r][1] = x1.fma(y, sums[r][1]);
                }
            }
            let scale = L::splat(tile.a.scale);
            for r in 0..R {
                sums[r][0].mul(scale).store(scores[r * KV_TILE + b * N..][..N].as_mut_ptr());
                if two {
                    sums[r][1].mul(scale).store(scores[r * KV_TILE + (b + 1) * N..][..N].as_mut_ptr());
                }
            }
            b += 2;
        }
    }
}

/// Scores of `R` query rows from keys that are stored a row a position: where values are part of keys.
#[inline(always)]
unsafe fn score_rows<S: FloatStorage, L: F32x16, const R: usize>(
    tile: &QueryTile<'_>,
    rows: *const u8,
    scores: &mut [f32],
    i: usize,
    from: usize,
    to: usize,
) {
    let (cache, d) = (tile.cache, tile.cache.decl.k_dim);
    let whole = d / N * N;
    // Rows of the cache end in zeros up to a whole vector; the last columns of the queries get zeros here.
    let mut ends = [[0f32; N]; R];
    // SAFETY: by the contract of `Reader`; columns up to `v_stride` of a position are in the cache.
    unsafe {
        let q: [*const f32; R] = std::array::from_fn(|r| {
            let q = tile.query(i + r);
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
                scores[r * KV_TILE + p - from] = sums[r][0].add(sums[r][1]).sum() * tile.a.scale;
            }
        }
        // The last vector of scores is read as a whole later.
        for r in 0..R {
            scores[r * KV_TILE + to - from..r * KV_TILE + (to - from).next_multiple_of(N)].fill(0.0);
        }
    }
}

/// `state = factor · state + Σ weight · value` for `R` query rows and `W` vectors of columns from `c` on, over `n` positions; gives
/// `W`. `next` is what is read next: its address, the cache lines to prefetch for each position, and the cache to prefetch into.
#[inline(always)]
unsafe fn sum_values<S: FloatStorage, L: F32x16, const R: usize, const W: usize>(
    values: *const u8,
    next: Option<(*const u8, usize, Level)>,
    v_stride: usize,
    c: usize,
    n: usize,
    weights: &[f32],
    factors: &[f32; R],
    state: &mut [f32],
    stride: usize,
) -> usize {
    assert!(state.len() >= (R - 1) * stride + c + W * N && weights.len() >= (R - 1) * KV_TILE + n);
    // SAFETY: in range, as asserted; the values of `n` positions are there by the contract of `Reader`.
    unsafe {
        let mut sums: [[L; W]; R] = std::array::from_fn(|r| {
            std::array::from_fn(|w| L::load(state.as_ptr().add(r * stride + c + w * N)).mul(L::splat(factors[r])))
        });
        for p in 0..n {
            let row = values.add((p * v_stride + c) * S::BYTES);
            if let Some((next, lines, level)) = next {
                prefetch::lines(next.wrapping_add(64 * p * lines), lines, level);
            }
            for w in 0..W {
                let v = S::load::<L>(row.add(w * N * S::BYTES));
                for r in 0..R {
                    sums[r][w] = v.fma(L::splat(*weights.as_ptr().add(r * KV_TILE + p)), sums[r][w]);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                sums[r][w].store(state.as_mut_ptr().add(r * stride + c + w * N));
            }
        }
    }
    W
}
