//! Q3_K: 256 weights in 110 bytes, in 16 sub-blocks of 16. `x = (d * s) * (q - 4)`, q in 0..8, s in -32..32.
//!
//! Bytes: 32 of third bits (bit `k` of byte `i`: weight `i` of group `k`); 64 of lower bits as in Q2_K; 12 of scales;
//! `d` f16. A scale is stored plus 32 in 6 bits: the lower four of scale `j` are nibble `j / 8` of byte `j % 8`, the
//! upper two are bits `2 * (j / 4)` of byte `8 + j % 4`.
//! GPU planes: lower bits (8 bytes a group, see [`super::bits::pairs`]); third bits (4 bytes a group, see
//! [`super::bits::bits`]); `s` as signed bytes (16 bytes a block; 4 % more than the file's); `d` (2 bytes a block).

use super::{
    bits::{Group, bits, bytes, f16_at, group_at, pairs, put_f16, put_words},
    fit::{self, Signed},
    q2_k::put_low_bits,
};

/// The quants of group `k`, 0..8.
#[inline(always)]
fn group(b: &[u8; 110], k: usize) -> Group {
    let (low, high) = (group_at(b, 32 + 32 * (k / 4)), group_at(b, 0));
    std::array::from_fn(|a| ((low[a] >> (2 * (k % 4))) & 0x0303_0303) | (((high[a] >> k) & 0x0101_0101) << 2))
}

/// The 16 scales.
#[inline(always)]
fn scales(b: &[u8; 110]) -> [i8; 16] {
    let s = &b[96..108];
    std::array::from_fn(|j| {
        let (low, high) = ((s[j % 8] >> (4 * (j / 8))) & 15, (s[8 + j % 4] >> (2 * (j / 4))) & 3);
        (low | (high << 4)) as i8 - 32
    })
}

/// f32 from a block.
pub fn dequantize(b: &[u8; 110], y: &mut [f32; 256]) {
    let (d, s) = (f16_at(b, 108), scales(b));
    for (k, y) in y.chunks_exact_mut(32).enumerate() {
        let q = bytes(group(b, k));
        for (i, y) in y.iter_mut().enumerate() {
            *y = (d * f32::from(s[2 * k + i / 16])) * f32::from(q[i] as i8 - 4);
        }
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 110], q: &mut [u8; 64], h: &mut [u8; 32], s: &mut [u8; 16], d: &mut [u8; 2]) {
    for k in 0..8 {
        let g = group(b, k);
        put_words(q, 8 * k, &pairs(g));
        put_words(h, 4 * k, &[bits(g.map(|q| q >> 2))]);
    }
    for (o, v) in s.iter_mut().zip(scales(b)) {
        *o = v as u8;
    }
    d.copy_from_slice(&b[108..]);
}

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 256], w: &[f32; 256], b: &mut [u8; 110]) {
    let f = fit::blocks_of_scales::<Signed<32>, Signed<4>, 16, 16>(x, w, 0.25, 8);
    b.fill(0);
    for (k, q) in f.q.chunks_exact(32).enumerate() {
        for (b, q) in b[..32].iter_mut().zip(q) {
            *b |= (q >> 2) << k;
        }
    }
    put_low_bits(&f.q, &mut b[32..96]);
    for (j, s) in f.s.iter().enumerate() {
        let s = (s + 32) as u8;
        b[96 + j % 8] |= (s & 15) << (4 * (j / 8));
        b[104 + j % 4] |= (s >> 4) << (2 * (j / 4));
    }
    put_f16(b, 108, f.d);
}
