//! IQ4_XS: 256 weights in 136 bytes, in 8 groups of 32. `x = (d * s) * VALUES[q]`, q in 0..16, s in -32..32; the table
//! is IQ4_NL's.
//!
//! Bytes: `d` f16; the upper two bits of the scales in a u16, group `k` at bit `2k`; their lower four in 4 bytes, group
//! `k` in nibble `k % 2` of byte `k / 2` (stored plus 32); 128 of quants, each group's 16 bytes as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `d` and scales (8 bytes a block, as in the file).

use super::{
    bits::{bytes, f16_at, from_nibbles, group_at, nibbles, put_f16, put_words, u16_at},
    fit::{self, Signed},
    iq4_nl::{Table, VALUES},
};

/// The scale of group `k`.
#[inline]
fn scale(b: &[u8; 136], k: usize) -> i8 {
    let (low, high) = ((b[4 + k / 2] >> (4 * (k % 2))) & 15, (u16_at(b, 2) >> (2 * k)) & 3);
    (low | ((high as u8) << 4)) as i8 - 32
}

/// f32 from a block.
pub fn dequantize(b: &[u8; 136], y: &mut [f32; 256]) {
    let d = f16_at(b, 0);
    for (k, y) in y.chunks_exact_mut(32).enumerate() {
        let d = d * f32::from(scale(b, k));
        for (y, q) in y.iter_mut().zip(bytes(from_nibbles(b, 8 + 16 * k))) {
            *y = d * f32::from(VALUES[usize::from(q)]);
        }
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 136], q: &mut [u8; 128], s: &mut [u8; 8], _: &mut [u8; 0], _: &mut [u8; 0]) {
    q.copy_from_slice(&b[8..]);
    s.copy_from_slice(&b[..8]);
}

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 256], w: &[f32; 256], b: &mut [u8; 136]) {
    let f = fit::blocks_of_scales::<Signed<32>, Table, 8, 32>(x, w, 0.15, 8);
    put_f16(b, 0, f.d);
    b[2..8].fill(0);
    for (k, s) in f.s.iter().enumerate() {
        let s = (s + 32) as u8;
        b[4 + k / 2] |= (s & 15) << (4 * (k % 2));
        b[2 + k / 4] |= (s >> 4) << (2 * (k % 4));
    }
    for k in 0..8 {
        put_words(b, 8 + 16 * k, &nibbles(group_at(&f.q, 32 * k)));
    }
}
