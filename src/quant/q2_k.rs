//! Q2_K: 256 weights in 84 bytes, in 16 sub-blocks of 16. `x = (d * s) * q - (dmin * m)`, q in 0..4, s and m in 0..16.
//!
//! Bytes: 16 of `s` (low nibble) and `m` (high nibble), one a sub-block; 64 of quants; `d` f16; `dmin` f16. The quants
//! of group `k = 4h + j` are bits `2j` and `2j + 1` of bytes `32h .. 32h + 32`.
//! GPU planes: quants (8 bytes a group, see [`super::bits::pairs`]); `s` and `m` (16 bytes a block, as in the file);
//! `d` and `dmin` (4 bytes a block).

use super::{
    affine,
    bits::{Group, bytes, f16_at, group_at, pairs, put_f16, put_words},
};

/// The quants of group `k`.
#[inline(always)]
fn group(b: &[u8; 84], k: usize) -> Group {
    group_at(b, 16 + 32 * (k / 4)).map(|q| (q >> (2 * (k % 4))) & 0x0303_0303)
}

/// f32 from a block.
pub fn dequantize(b: &[u8; 84], y: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(b, 80), f16_at(b, 82));
    for (k, y) in y.chunks_exact_mut(32).enumerate() {
        let q = bytes(group(b, k));
        for (i, y) in y.iter_mut().enumerate() {
            let s = b[2 * k + i / 16];
            *y = (d * f32::from(s & 15)) * f32::from(q[i]) - dmin * f32::from(s >> 4);
        }
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 84], q: &mut [u8; 64], s: &mut [u8; 16], d: &mut [u8; 4], _: &mut [u8; 0]) {
    for k in 0..8 {
        put_words(q, 8 * k, &pairs(group(b, k)));
    }
    s.copy_from_slice(&b[..16]);
    d.copy_from_slice(&b[80..]);
}

/// Writes the 64 bytes of lower two bits, as Q3_K has them too.
#[inline(always)]
pub(super) fn put_low_bits(q: &[u8; 256], b: &mut [u8]) {
    for (h, b) in b.chunks_exact_mut(32).enumerate() {
        for (i, b) in b.iter_mut().enumerate() {
            *b = (0..4).fold(0, |v, j| v | ((q[128 * h + 32 * j + i] & 3) << (2 * j)));
        }
    }
}

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 256], w: &[f32; 256], b: &mut [u8; 84]) {
    let f = affine::blocks_of_affine::<16, 16>(x, w, 3.0, 15.0, 1.0, 8);
    for (b, (s, m)) in b.iter_mut().zip(f.s.iter().zip(f.m)) {
        *b = s | (m << 4);
    }
    put_low_bits(&f.q, &mut b[16..80]);
    put_f16(b, 80, f.d);
    put_f16(b, 82, f.dmin);
}
