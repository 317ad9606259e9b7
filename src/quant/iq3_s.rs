//! IQ3_S: 256 weights in 110 bytes, in 8 groups of 32. `x = (d * (2 s + 1)) * v`, s in 0..16; four weights at a time are a point of a
//! grid (odd magnitudes, 1 to 15) with signs.
//!
//! Bytes: `d` f16; 64 with the lower eight bits of the points' numbers; 8 with the ninth bits, a byte a group; 32 of signs, a bit a
//! weight; 4 of `s`, group `g` in nibble `g % 2` of byte `g / 2`.
//! GPU planes: points' lower bits (8 bytes a group, as in the file); signs (4 bytes a group, as in the file); ninth bits and `s` (2 bytes
//! a group; 4 % more than the file's); `d` (2 bytes a block). The grid comes first.

use super::{
    Layout,
    bits::{put_f16, round_f16, u32_at},
    fit::{clamp, nearest, reciprocal},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    grids,
    unpack::{SignedWords, Unpack},
};
use std::sync::OnceLock;

/// The grid's points: four magnitudes each.
static GRID: [u32; 512] = grids::fours(&grids::IQ3_S, [1, 3, 5, 7, 9, 11, 13, 15]);

/// The format that this page describes.
pub struct IQ3S;

impl BlockFormat for IQ3S {
    const LAYOUT: Layout = Layout { name: "IQ3_S", ggml_id: 21, block: 256, bytes: 110 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 128;
    const LARGEST: u8 = 255;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = None;

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.signed::<Self>(of)
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::signed::<8>(u, u.half(b, 0), std::array::from_fn(|g| (2 * scale(b, g) + 1) as i8))
    }

    const PLANES: [usize; 4] = [64, 32, 16, 2];
    const GPU_TABLE: &'static [u32] = &grids::words::<512, 256>(&grids::IQ3_S);
    const WGSL: &'static str = include_str!("../../shaders/quant/iq3_s.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/iq3_s.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, signs, s, d]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[2..66]);
        signs.copy_from_slice(&b[74..106]);
        for g in 0..8 {
            (s[2 * g], s[2 * g + 1]) = (b[66 + g], scale(b, g));
        }
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 140.2, centre: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 256], &[f32; 256]) = (whole(x), whole(w));
        let (xs, ws) = (x.as_chunks::<32>().0, w.as_chunks::<32>().0);
        let free: [f32; 8] = std::array::from_fn(|g| free_scale(&xs[g], &ws[g]));
        let d = round_f16(free.iter().fold(0f32, |m, f| m.max(*f)) / 31.0);
        b.fill(0);
        put_f16(b, 0, d);
        for g in 0..8 {
            let s = nearest(clamp((free[g] * reciprocal(d) - 1.0) * 0.5, 0.0, 15.0));
            b[106 + g / 2] |= (s as u8) << (4 * (g % 2));
            let scale = d * (2.0 * s + 1.0);
            for (i, (x, w)) in xs[g].as_chunks::<4>().0.iter().zip(ws[g].as_chunks::<4>().0).enumerate() {
                let point = best_point(&x.map(f32::abs), w, scale);
                b[2 + 8 * g + i] = point as u8;
                b[66 + g] |= ((point >> 8) as u8) << i;
                let signs = (0..4).fold(0, |s, c| s | u8::from(x[c] < 0.0) << c);
                b[74 + 4 * g + i / 2] |= signs << (4 * (i % 2));
            }
        }
    }
}

impl SignedWords for IQ3S {
    #[inline(always)]
    fn signed(b: &[u8], g: usize) -> ([u64; 4], u32) {
        let ninth = usize::from(b[66 + g]);
        let point = |i: usize| u64::from(GRID[usize::from(b[2 + 8 * g + i]) | ((ninth >> i) & 1) << 8]);
        let points = std::array::from_fn(|l| point(2 * l) | point(2 * l + 1) << 32);
        (points, u32_at(b, 74 + 4 * g))
    }
}

/// The points' coordinates, one list for each.
static VALUES: [[f32; 512]; 4] = {
    let mut values = [[0.0; 512]; 4];
    let mut i = 0;
    while i < 4 * 512 {
        values[i % 4][i / 4] = (GRID[i / 4] >> (8 * (i % 4)) & 255) as f32;
        i += 1;
    }
    values
};

/// The point with the least weighted squared error at a scale, from magnitudes.
#[inline(always)]
fn best_point(x: &[f32; 4], w: &[f32; 4], scale: f32) -> usize {
    let mut errors = [0f32; 512];
    for c in 0..4 {
        for (e, v) in errors.iter_mut().zip(&VALUES[c]) {
            let off = x[c] - scale * v;
            *e += w[c] * off * off;
        }
    }
    let least = errors.iter().fold(f32::INFINITY, |m, e| if *e < m { *e } else { m });
    errors.iter().position(|e| *e == least).unwrap_or(0)
}

/// The numbers of the points nearest to every combination of four levels, in steps of levels; found when they are first needed.
fn nearest_points() -> &'static [u16] {
    static POINTS: OnceLock<Vec<u16>> = OnceLock::new();
    POINTS.get_or_init(|| {
        let level = |v: usize, c: usize| (v >> (3 * c) & 7) as i32;
        let distance = |a: usize, p: u16| (0..4).map(|c| (level(a, c) - level(usize::from(p), c)).pow(2)).sum::<i32>();
        (0..4096).map(|a| (0..512u16).min_by_key(|i| distance(a, grids::IQ3_S[usize::from(*i)])).unwrap_or(0)).collect()
    })
}

/// The scale of 32 weights that suits them best: from several starts, the nearest points, then least squares.
#[inline(always)]
fn free_scale(x: &[f32; 32], w: &[f32; 32]) -> f32 {
    let points = nearest_points();
    let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let (mut best, mut least) = (0.0, f32::INFINITY);
    // The largest weight at the end of the levels or near it; or at their beginning, where the grid has a point of equal ones.
    let tops = (-8..=8).map(|k| 15.0 + 0.5 * k as f32).chain([1.0]);
    for top in tops {
        let inverse = reciprocal(largest) * top;
        let (mut xv, mut vv) = (0f32, 0f32);
        for (x, w) in x.as_chunks::<4>().0.iter().zip(w.as_chunks::<4>().0) {
            let level = |c: usize| nearest(clamp((x[c].abs() * inverse - 1.0) * 0.5, 0.0, 7.0)) as usize;
            let point = GRID[usize::from(points[(0..4).fold(0, |a, c| a | level(c) << (3 * c))])];
            for c in 0..4 {
                let v = (point >> (8 * c) & 255) as f32;
                xv += w[c] * x[c].abs() * v;
                vv += w[c] * v * v;
            }
        }
        // Without what does not depend on the points: the weights' own squares.
        let error = -xv * xv / vv;
        if error < least {
            (best, least) = (xv / vv, error);
        }
    }
    best
}

/// The scale of group `g`, 0..16.
#[inline(always)]
fn scale(b: &[u8], g: usize) -> u8 {
    (b[106 + g / 2] >> (4 * (g % 2))) & 15
}
