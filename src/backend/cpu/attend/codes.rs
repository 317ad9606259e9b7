//! Attention over keys and values that are stored as 8-bit codes: whole-number products.
//!
//! Queries become numbers of 16 bits with a scale for every block of columns, and so do, for every block of values' columns,
//! the weights of a chunk's positions times the scales of their blocks: each is within a 65 534th of the largest, far below what
//! 8-bit codes lose. Two products at a time are added up in 32 bits: 32767 · 127 · [`CHUNK`] stays below 2³¹.

use super::{
    super::{
        codes::{BLOCK, Codes},
        lanes::{Lanes, N},
    },
    CHUNK, Chunk, Reader, Tile,
};

/// The largest number of 16 bits.
const MOST: f32 = 32767.0;

/// Keys and values as codes.
#[derive(Clone, Copy)]
pub struct Coded<'a> {
    pub keys: &'a Codes,
    pub values: &'a Codes,
}

/// Words that a block of a query takes: pairs of columns. Against rows, columns one by one: as the first of a pair, then as the
/// second.
fn query_words(tile: &Tile<'_>) -> usize {
    if tile.cache.decl.v_in_k { 2 * BLOCK } else { BLOCK / 2 }
}

fn blocks(tile: &Tile<'_>) -> usize {
    tile.cache.decl.k_dim.div_ceil(BLOCK)
}

/// Numbers that a tile needs: queries and their scales, and the weights of four rows.
pub fn room(tile: &Tile<'_>) -> usize {
    tile.rows * blocks(tile) * (query_words(tile) + 1) + 4 * CHUNK / 2
}

impl<'a> Coded<'a> {
    /// The parts of `own`: queries, their scales.
    fn queries<'o>(tile: &Tile<'_>, own: &'o [f32]) -> (&'o [i32], &'o [f32]) {
        let n = tile.rows * blocks(tile);
        let (queries, rest) = own.split_at(n * query_words(tile));
        (bytemuck::cast_slice(queries), &rest[..n])
    }

    /// What holds values.
    fn rows(self) -> &'a Codes {
        self.values
    }
}

impl Reader for Coded<'_> {
    #[inline(always)]
    unsafe fn begin<L: Lanes>(self, tile: &Tile<'_>, own: &mut [f32]) {
        let (blocks, words) = (blocks(tile), query_words(tile));
        let (queries, rest) = own.split_at_mut(tile.rows * blocks * words);
        let queries: &mut [i32] = bytemuck::cast_slice_mut(queries);
        for i in 0..tile.rows {
            for (b, x) in tile.query(i).chunks(BLOCK).enumerate() {
                let mut block = [0f32; BLOCK];
                block[..x.len()].copy_from_slice(x);
                let mut codes = [0i16; BLOCK];
                // SAFETY: both have two vectors' numbers; the features are there by the contract.
                rest[i * blocks + b] = unsafe { short::<L>(&block, &mut codes) };
                let to = &mut queries[(i * blocks + b) * words..][..words];
                let pair = |a: i16, b: i16| i32::from(a) & 0xffff | i32::from(b) << 16;
                if tile.cache.decl.v_in_k {
                    let (first, second) = to.split_at_mut(BLOCK);
                    first.iter_mut().zip(codes).for_each(|(to, c)| *to = pair(c, 0));
                    second.iter_mut().zip(codes).for_each(|(to, c)| *to = pair(0, c));
                } else {
                    to.iter_mut().zip(codes.chunks_exact(2)).for_each(|(to, c)| *to = pair(c[0], c[1]));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn score<L: Lanes, const R: usize>(
        self,
        tile: &Tile<'_>,
        own: &[f32],
        scores: &mut [f32],
        i: usize,
        chunk: Chunk,
    ) {
        // SAFETY: by the contract.
        unsafe {
            if tile.cache.decl.v_in_k {
                score_rows::<L, R>(self.rows(), tile, own, scores, i, chunk);
            } else {
                score_columns::<L, R>(self, tile, own, scores, i, chunk);
            }
        }
    }

    #[inline(always)]
    unsafe fn sum<L: Lanes, const R: usize, const W: usize>(
        self,
        tile: &Tile<'_>,
        own: &mut [f32],
        weights: &[f32],
        factors: &[f32; R],
        state: &mut [f32],
        chunk: Chunk,
    ) {
        let at = own.len() - 4 * CHUNK / 2;
        let short_weights: &mut [i16] = bytemuck::cast_slice_mut(&mut own[at..]);
        let width = tile.cache.decl.v_dim.next_multiple_of(N);
        for (b, c) in (0..width).step_by(BLOCK).enumerate() {
            let chunk = Chunk { ahead: chunk.ahead && b == 0 && !tile.cache.decl.v_in_k, ..chunk };
            let mut scales = [0f32; R];
            // SAFETY: by the contract; values have columns up to `width`.
            unsafe {
                for r in 0..R {
                    let to = &mut short_weights[r * CHUNK..(r + 1) * CHUNK];
                    let of_positions = self.rows().scales(tile.kv, b, chunk.from);
                    scales[r] = weigh_block::<L>(&weights[r * CHUNK..], of_positions, chunk.to - chunk.from, to);
                }
                if c + N < width {
                    sum_values::<L, R, 2>(self, tile, c, short_weights, (&scales, factors), state, chunk);
                } else {
                    sum_values::<L, R, 1>(self, tile, c, short_weights, (&scales, factors), state, chunk);
                }
            }
        }
    }
}

/// `x` as whole numbers of 16 bits, vectors of them; gives their scale.
#[inline(always)]
unsafe fn short<L: Lanes>(x: &[f32], to: &mut [i16]) -> f32 {
    assert!(x.len() % N == 0 && to.len() >= x.len());
    // SAFETY: whole vectors; the features are there by the contract of `Reader`.
    unsafe {
        let mut top = L::splat(0.0);
        for x in x.chunks_exact(N) {
            let x = L::load(x.as_ptr());
            top = top.max(x).max(L::splat(0.0).sub(x));
        }
        let top = top.largest();
        let inverse = L::splat(if top > 0.0 { MOST / top } else { 0.0 });
        for (x, to) in x.chunks_exact(N).zip(to.chunks_exact_mut(N)) {
            L::load(x.as_ptr()).mul(inverse).round().store_i16(to.as_mut_ptr());
        }
        top * (1.0 / MOST)
    }
}

/// Weights of `n` positions times their scales, as whole numbers; gives those numbers' scale.
#[inline(always)]
unsafe fn weigh_block<L: Lanes>(weights: &[f32], scales: &[u16], n: usize, to: &mut [i16]) -> f32 {
    let whole = n.next_multiple_of(N);
    let (weights, scales) = (&weights[..whole], &scales[..whole]);
    let mut scaled = [0f32; CHUNK];
    // SAFETY: whole vectors, at most a chunk; the features are there by the contract of `Reader`.
    unsafe {
        for p in (0..whole).step_by(N) {
            let scale = L::load_bf16(scales[p..p + N].as_ptr());
            L::load(weights[p..p + N].as_ptr()).mul(scale).store(scaled[p..p + N].as_mut_ptr());
        }
        // What stands behind the last position, from before a step back, has no part in the largest.
        scaled[n..whole].fill(0.0);
        short::<L>(&scaled[..whole], to)
    }
}

/// Scores of `R` rows: two blocks of 16 positions at a time.
#[inline(always)]
unsafe fn score_columns<L: Lanes, const R: usize>(
    of: Coded<'_>,
    tile: &Tile<'_>,
    own: &[f32],
    scores: &mut [f32],
    i: usize,
    Chunk { from, to, ahead }: Chunk,
) {
    let (queries, query_scales) = Coded::queries(tile, own);
    let (d, column_blocks, words) = (tile.cache.decl.k_dim, blocks(tile), BLOCK / 2);
    let count = (to - from).div_ceil(N);
    // SAFETY: by the contract of `Reader`; where the chunk ends, the second block repeats the first and is dropped.
    unsafe {
        for b in (0..count).step_by(2) {
            let second = if b + 1 < count { b + 1 } else { b };
            if ahead {
                for p in [b, second] {
                    L::prefetch_all(of.values.row(tile.kv, from + p * N), of.values.row_bytes() * N);
                }
            }
            let keys = [b, second].map(|b| of.keys.row(tile.kv, from + b * N));
            let mut sums = [[L::splat(0.0); 2]; R];
            for block in 0..column_blocks {
                let mut dots = [[L::ints(0); 2]; R];
                for pair in block * words..((block + 1) * words).min(d.div_ceil(2)) {
                    let x = keys.map(|k| L::widen_i8(k.add(2 * N * pair)));
                    for r in 0..R {
                        let at = (i + r) * column_blocks * words + pair;
                        let y = L::ints(*queries.get_unchecked(at));
                        dots[r] = [L::dot2(x[0], y, dots[r][0]), L::dot2(x[1], y, dots[r][1])];
                    }
                }
                let scale = [b, second].map(|b| L::load_bf16(of.keys.scales(tile.kv, block, from + b * N).as_ptr()));
                for r in 0..R {
                    let of_query = L::splat(query_scales[(i + r) * column_blocks + block] * tile.a.scale);
                    for s in 0..2 {
                        sums[r][s] = L::from_ints(dots[r][s]).mul(of_query).fma(scale[s], sums[r][s]);
                    }
                }
            }
            for r in 0..R {
                sums[r][0].store(scores[r * CHUNK + b * N..][..N].as_mut_ptr());
                if second > b {
                    sums[r][1].store(scores[r * CHUNK + second * N..][..N].as_mut_ptr());
                }
            }
        }
    }
}

/// Scores of `R` rows from keys that are stored as rows, two positions side by side: where values are part of keys.
#[inline(always)]
unsafe fn score_rows<L: Lanes, const R: usize>(
    of: &Codes,
    tile: &Tile<'_>,
    own: &[f32],
    scores: &mut [f32],
    i: usize,
    Chunk { from, to, .. }: Chunk,
) {
    let (queries, query_scales) = Coded::queries(tile, own);
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
                    scores[r * CHUNK + p - from + s] = sums[r][s].sum();
                }
            }
        }
        // The last vector of scores is read as a whole.
        for r in 0..R {
            scores[r * CHUNK + to - from..r * CHUNK + (to - from).next_multiple_of(N)].fill(0.0);
        }
    }
}

/// [`Reader::sum`] for `W` vectors of columns of one block, from column `c` on.
#[inline(always)]
unsafe fn sum_values<L: Lanes, const R: usize, const W: usize>(
    of: Coded<'_>,
    tile: &Tile<'_>,
    c: usize,
    weights: &[i16],
    (scales, factors): (&[f32; R], &[f32; R]),
    state: &mut [f32],
    Chunk { from, to, ahead }: Chunk,
) {
    let stride = tile.cache.v_stride + N;
    let (head, position) = tile.after(to);
    let next = of.keys.row(head, position);
    let weights: &[i32] = bytemuck::cast_slice(&weights[..R * CHUNK]);
    assert!(state.len() >= (R - 1) * stride + c + W * N);
    // SAFETY: in range, as asserted; the values of these positions are there by the contract of `Reader`.
    unsafe {
        let mut dots = [[L::ints(0); W]; R];
        let (first, step) = (of.values.row(tile.kv, from).add(2 * c), 2 * of.values.row_bytes());
        for pair in 0..(to - from).div_ceil(2) {
            if ahead {
                let bytes = 2 * of.keys.row_bytes();
                L::prefetch_all(next.wrapping_add(pair * bytes), bytes);
            }
            let row = first.add(pair * step);
            let y: [L::Ints; R] = std::array::from_fn(|r| L::ints(*weights.get_unchecked(r * CHUNK / 2 + pair)));
            for w in 0..W {
                let x = L::widen_i8(row.add(2 * w * N));
                for r in 0..R {
                    dots[r][w] = L::dot2(x, y[r], dots[r][w]);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                let at = state.as_mut_ptr().add(r * stride + c + w * N);
                let before = L::load(at).mul(L::splat(factors[r]));
                L::from_ints(dots[r][w]).fma(L::splat(scales[r]), before).store(at);
            }
        }
    }
}
