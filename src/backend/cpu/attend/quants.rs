//! Attention over keys and values that are stored as int8 quants, with integer dot products.
//!
//! Queries are quantised to 16 bits with a scale for every block of columns. So are, for every block of the values' columns, the
//! weights of a KV tile's positions times the scales of their blocks. Either is within a 65 534th of the largest, far below
//! the rounding of int8 quants. A dot product adds up two products at a time in 32 bits: 32767 · 127 · [`KV_TILE`] stays below
//! 2³¹.

use super::{
    super::{
        kv_quants::{BLOCK, KvQuants},
        prefetch,
        simd::{F32x16, N},
    },
    tile::{KV_TILE, KvTile, MAX_QUERY_ROWS, QueryTile, Reader},
};

/// The largest signed integer of 16 bits.
const MAX_I16: f32 = 32767.0;

/// Reads the keys and values of a cache of int8 quants.
#[derive(Clone, Copy)]
pub struct QuantReader<'a> {
    /// The keys.
    pub keys: &'a KvQuants,
    /// The values.
    pub values: &'a KvQuants,
}

/// The 32-bit words of a block of a query. A word is a pair of columns. Where keys are stored a row a position, a pair of the
/// cache is two positions, so a word has one column: first of all columns as the first of a pair, then of all as the second.
fn query_words(tile: &QueryTile<'_>) -> usize {
    if tile.cache.decl.v_in_k { 2 * BLOCK } else { BLOCK / 2 }
}

/// The blocks of columns of a query.
fn blocks(tile: &QueryTile<'_>) -> usize {
    tile.cache.decl.k_dim.div_ceil(BLOCK)
}

/// The lists of quantised weights that are held at a time: of all query rows for one block of columns, or of fewer for two.
const LISTS: usize = MAX_QUERY_ROWS;

/// The scratch memory of a tile, in f32 values: quantised queries and their scales, and quantised weights.
pub fn scratch_len(tile: &QueryTile<'_>) -> usize {
    tile.rows * blocks(tile) * (query_words(tile) + 1) + LISTS * KV_TILE / 2
}

impl QuantReader<'_> {
    /// The quantised queries in `prepared`, and their scales.
    fn queries<'o>(tile: &QueryTile<'_>, prepared: &'o [f32]) -> (&'o [i32], &'o [f32]) {
        let n = tile.rows * blocks(tile);
        let (queries, rest) = prepared.split_at(n * query_words(tile));
        (bytemuck::cast_slice(queries), &rest[..n])
    }
}

impl Reader for QuantReader<'_> {
    #[inline(always)]
    unsafe fn begin<L: F32x16>(self, tile: &QueryTile<'_>, prepared: &mut [f32]) {
        let (blocks, words) = (blocks(tile), query_words(tile));
        let (queries, rest) = prepared.split_at_mut(tile.rows * blocks * words);
        let queries: &mut [i32] = bytemuck::cast_slice_mut(queries);
        for i in 0..tile.rows {
            for (b, x) in tile.query(i).chunks(BLOCK).enumerate() {
                let mut block = [0f32; BLOCK];
                block[..x.len()].copy_from_slice(x);
                let mut quants16 = [0i16; BLOCK];
                // SAFETY: both have the elements of two vectors; the processor has the features by the contract.
                rest[i * blocks + b] = unsafe { quantise16::<L>(&block, &mut quants16) };
                let to = &mut queries[(i * blocks + b) * words..][..words];
                let pair = |a: i16, b: i16| i32::from(a) & 0xffff | i32::from(b) << 16;
                if tile.cache.decl.v_in_k {
                    let (first, second) = to.split_at_mut(BLOCK);
                    first.iter_mut().zip(quants16).for_each(|(to, c)| *to = pair(c, 0));
                    second.iter_mut().zip(quants16).for_each(|(to, c)| *to = pair(0, c));
                } else {
                    to.iter_mut().zip(quants16.chunks_exact(2)).for_each(|(to, c)| *to = pair(c[0], c[1]));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn score<L: F32x16, const R: usize>(
        self,
        tile: &QueryTile<'_>,
        prepared: &[f32],
        scores: &mut [f32],
        i: usize,
        kv_tile: KvTile,
    ) {
        // SAFETY: by the contract.
        unsafe {
            if kv_tile.prefetch_next {
                self.values.prefetch_scales(tile.kv, kv_tile.from, KV_TILE, tile.level);
            }
            if tile.cache.decl.v_in_k {
                score_rows::<L, R>(self.values, tile, prepared, scores, i, kv_tile);
            } else {
                score_columns::<L, R>(self, tile, prepared, scores, i, kv_tile);
            }
        }
    }

    #[inline(always)]
    unsafe fn sum<L: F32x16, const R: usize>(
        self,
        tile: &QueryTile<'_>,
        prepared: &mut [f32],
        weights: &[f32],
        factors: &[f32; R],
        state: &mut [f32],
        kv_tile: KvTile,
    ) {
        let at = prepared.len() - LISTS * KV_TILE / 2;
        let lists: &mut [i16] = bytemuck::cast_slice_mut(&mut prepared[at..]);
        let width = tile.cache.decl.v_dim.next_multiple_of(N);
        if kv_tile.prefetch_next && !tile.cache.decl.v_in_k {
            let (head, position) = tile.after(kv_tile.to);
            self.keys.prefetch_scales(head, position, KV_TILE, tile.level);
        }
        let mut c = 0;
        while c < width {
            let prefetch_next = kv_tile.prefetch_next && c == 0 && !tile.cache.decl.v_in_k;
            let part = Part { c, weights, factors, kv_tile: KvTile { prefetch_next, ..kv_tile } };
            // SAFETY: by the contract; values have columns up to `width`.
            unsafe {
                c += N * match (width - c) / N {
                    4.. if R < 4 => sum_values::<L, R, 4>(self, tile, part, lists, state),
                    2.. => sum_values::<L, R, 2>(self, tile, part, lists, state),
                    _ => sum_values::<L, R, 1>(self, tile, part, lists, state),
                };
            }
        }
    }
}

/// What [`sum_values`] computes: columns from `c` on, the start of a block, over a KV tile.
#[derive(Clone, Copy)]
struct Part<'a, const R: usize> {
    c: usize,
    weights: &'a [f32],
    factors: &'a [f32; R],
    kv_tile: KvTile,
}

/// Quantises a block of a query to 16 bits; gives the scale.
#[inline(always)]
unsafe fn quantise16<L: F32x16>(x: &[f32; BLOCK], to: &mut [i16; BLOCK]) -> f32 {
    // SAFETY: two vectors; the features are there by the contract of `Reader`.
    unsafe {
        let [a, b] = [0, N].map(|i| L::load(x[i..].as_ptr()));
        let top = a.magnitude().max(b.magnitude()).largest();
        let inverse = L::splat(if top > 0.0 { MAX_I16 / top } else { 0.0 });
        a.mul(inverse).round().store_i16(to.as_mut_ptr());
        b.mul(inverse).round().store_i16(to[N..].as_mut_ptr());
        // Infinities and not-a-number become quants of 0 and stay visible in the scale.
        top * (1.0 / MAX_I16) + 0.0 * a.add(b).sum()
    }
}

/// Quantises the weights of `n` positions, times the scales of their blocks, to 16 bits; gives the scale. Writes whole vectors.
#[inline(always)]
unsafe fn weigh_block<L: F32x16>(weights: &[f32], scales: &[u16], n: usize, to: &mut [i16]) -> f32 {
    let whole = n.next_multiple_of(N);
    assert!(weights.len() >= whole && scales.len() >= whole && to.len() >= whole);
    // Behind the last position are the scales of a text that the sequence went back from.
    let mut last = [0; N];
    last[..n % N].copy_from_slice(&scales[n / N * N..n]);
    // SAFETY: whole vectors; the features are there by the contract of `Reader`.
    unsafe {
        let scaled = |p: usize| {
            let scales = if p + N <= n { scales.as_ptr().add(p) } else { last.as_ptr() };
            L::load(weights.as_ptr().add(p)).mul(L::load_bf16(scales))
        };
        let (mut top, mut all) = (L::splat(0.0), L::splat(0.0));
        for p in (0..whole).step_by(N) {
            let x = scaled(p);
            (top, all) = (top.max(x), all.add(x));
        }
        let top = top.largest();
        let inverse = L::splat(if top > 0.0 { MAX_I16 / top } else { 0.0 });
        for p in (0..whole).step_by(N) {
            scaled(p).mul(inverse).round().store_i16(to.as_mut_ptr().add(p));
        }
        // As in `quantise16`.
        top * (1.0 / MAX_I16) + 0.0 * all.sum()
    }
}

/// The blocks of 16 positions that are scored at a time.
const B: usize = 2;

/// Scores of `R` query rows from keys that are stored in pairs of columns.
#[inline(always)]
unsafe fn score_columns<L: F32x16, const R: usize>(
    of: QuantReader<'_>,
    tile: &QueryTile<'_>,
    prepared: &[f32],
    scores: &mut [f32],
    i: usize,
    KvTile { from, to, prefetch_next }: KvTile,
) {
    let (queries, query_scales) = QuantReader::queries(tile, prepared);
    let (d, column_blocks, words) = (tile.cache.decl.k_dim, blocks(tile), BLOCK / 2);
    let queries: [&[i32]; R] = std::array::from_fn(|r| &queries[(i + r) * column_blocks * words..]);
    let count = (to - from).div_ceil(N);
    // Cache lines of values to prefetch with each pair: all of them at once would exceed the lines that can be in flight.
    let share = (B * N * of.values.row_bytes()).div_ceil(64 * d.div_ceil(2));
    // SAFETY: by the contract of `Reader`; beyond the KV tile's end its last block is repeated, and dropped.
    unsafe {
        for b in (0..count).step_by(B) {
            let at: [usize; B] = std::array::from_fn(|s| from + (b + s).min(count - 1) * N);
            let values = of.values.row(tile.kv, at[0]);
            let keys = at.map(|p| of.keys.row(tile.kv, p));
            let mut sums = [[L::splat(0.0); B]; R];
            for block in 0..column_blocks {
                let mut dots = [[L::ints(0); B]; R];
                for pair in block * words..((block + 1) * words).min(d.div_ceil(2)) {
                    if prefetch_next {
                        prefetch::lines(values.wrapping_add(64 * pair * share).cast(), share, tile.level);
                    }
                    let x = keys.map(|k| L::widen_i8(k.add(2 * N * pair)));
                    for r in 0..R {
                        let y = L::ints(*queries[r].get_unchecked(pair));
                        for s in 0..B {
                            dots[r][s] = L::dot2(x[s], y, dots[r][s]);
                        }
                    }
                }
                for s in 0..B {
                    let scale = L::load_bf16(of.keys.scales(tile.kv, block, at[s]).as_ptr());
                    for r in 0..R {
                        let of_query = L::splat(query_scales[(i + r) * column_blocks + block] * tile.a.scale);
                        sums[r][s] = L::from_ints(dots[r][s]).mul(of_query).fma(scale, sums[r][s]);
                    }
                }
            }
            for r in 0..R {
                for s in 0..B.min(count - b) {
                    sums[r][s].store(scores[r * KV_TILE + (b + s) * N..][..N].as_mut_ptr());
                }
            }
        }
    }
}

/// Scores of `R` query rows from keys that are stored in pairs of positions: where values are part of keys.
#[inline(always)]
unsafe fn score_rows<L: F32x16, const R: usize>(
    of: &KvQuants,
    tile: &QueryTile<'_>,
    prepared: &[f32],
    scores: &mut [f32],
    i: usize,
    KvTile { from, to, .. }: KvTile,
) {
    let (queries, query_scales) = QuantReader::queries(tile, prepared);
    let (column_blocks, words) = (blocks(tile), 2 * BLOCK);
    let width = tile.cache.v_stride;
    // SAFETY: by the contract of `Reader`; rows have whole vectors of columns, and pairs of positions are whole.
    unsafe {
        for p in (from..to).step_by(2) {
            let row = of.row(tile.kv, p);
            let mut sums = [[L::splat(0.0); 2]; R];
            for block in 0..column_blocks {
                let mut dots = [[L::ints(0); 2]; R];
                for c in (0..BLOCK.min(width - block * BLOCK)).step_by(N) {
                    let x = L::widen_i8(row.add(2 * (block * BLOCK + c)));
                    for r in 0..R {
                        let q = &queries[((i + r) * column_blocks + block) * words..][..words];
                        for s in 0..2 {
                            dots[r][s] = L::dot2(x, L::load_ints(q[s * BLOCK + c..][..N].as_ptr()), dots[r][s]);
                        }
                    }
                }
                let scale = of.scales(tile.kv, block, p);
                for r in 0..R {
                    let of_query = query_scales[(i + r) * column_blocks + block] * tile.a.scale;
                    for s in 0..2 {
                        let both = L::splat(of_query * f32::from_bits(u32::from(scale[s]) << 16));
                        sums[r][s] = L::from_ints(dots[r][s]).fma(both, sums[r][s]);
                    }
                }
            }
            for r in 0..R {
                for s in 0..2 {
                    scores[r * KV_TILE + p - from + s] = sums[r][s].sum();
                }
            }
        }
        // The last vector of scores is read as a whole later.
        for r in 0..R {
            scores[r * KV_TILE + to - from..r * KV_TILE + (to - from).next_multiple_of(N)].fill(0.0);
        }
    }
}

/// [`Reader::sum`] for `W` vectors of columns, of one block or of two; gives `W`.
#[inline(always)]
unsafe fn sum_values<L: F32x16, const R: usize, const W: usize>(
    of: QuantReader<'_>,
    tile: &QueryTile<'_>,
    Part { c, weights, factors, kv_tile: KvTile { from, to, prefetch_next } }: Part<'_, R>,
    lists: &mut [i16],
    state: &mut [f32],
) -> usize {
    let (stride, n) = (tile.cache.v_stride + N, to - from);
    let (head, position) = tile.after(to);
    let next = of.keys.row(head, position);
    let mut scales = [[0f32; 2]; R];
    // SAFETY: by the contract of `Reader`.
    unsafe {
        for r in 0..R {
            for b in 0..W.div_ceil(2) {
                let of_positions = of.values.scales(tile.kv, c / BLOCK + b, from);
                let list = &mut lists[(r + b * R) * KV_TILE..][..KV_TILE];
                scales[r][b] = weigh_block::<L>(&weights[r * KV_TILE..], of_positions, n, list);
            }
        }
    }
    let lists: &[i32] = bytemuck::cast_slice(lists);
    assert!(state.len() >= (R - 1) * stride + c + W * N && lists.len() >= W.div_ceil(2) * R * KV_TILE / 2);
    // SAFETY: in range, as asserted; the values of these positions are there by the contract of `Reader`.
    unsafe {
        let mut dots = [[L::ints(0); W]; R];
        let share = (2 * of.keys.row_bytes()).div_ceil(64);
        let (first, step) = (of.values.row(tile.kv, from).add(2 * c), 2 * of.values.row_bytes());
        for pair in 0..n.div_ceil(2) {
            if prefetch_next {
                prefetch::lines(next.wrapping_add(64 * pair * share).cast(), share, tile.level);
            }
            let row = first.add(pair * step);
            for w in 0..W {
                let x = L::widen_i8(row.add(2 * w * N));
                for r in 0..R {
                    let y = L::ints(*lists.get_unchecked((r + w / 2 * R) * KV_TILE / 2 + pair));
                    dots[r][w] = L::dot2(x, y, dots[r][w]);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                let at = state.as_mut_ptr().add(r * stride + c + w * N);
                let before = L::load(at).mul(L::splat(factors[r]));
                L::from_ints(dots[r][w]).fma(L::splat(scales[r][w / 2]), before).store(at);
            }
        }
    }
    W
}
