//! Q5_1: 32 weights in 24 bytes. `x = d * q + m`, q in 0..32.
//!
//! Bytes: `d` f16; `m` f16; the fifth bits, weight `i` at bit `i` of a u32; 16 bytes of lower bits as in Q4_0.
//! GPU planes: lower bits (16 bytes a group, as in the file); fifth bits (4 bytes, see [`super::bits::bits`]); `d` and
//! `m` (4 bytes).

use super::{
    affine,
    bits::{bits, bytes, f16_at, from_bits, group, nibbles, put_f16, put_words, round_f16, u32_at},
    q5_0::{high_bits, quants},
};

/// f32 from a block.
pub fn dequantize(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    for (y, q) in y.iter_mut().zip(bytes(quants(b, 4))) {
        *y = f32::from(q) * d + m;
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 24], q: &mut [u8; 16], h: &mut [u8; 4], dm: &mut [u8; 4], _: &mut [u8; 0]) {
    q.copy_from_slice(&b[8..]);
    put_words(h, 0, &[bits(from_bits(u32_at(b, 4)))]);
    dm.copy_from_slice(&b[..4]);
}

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 32], w: &[f32; 32], b: &mut [u8; 24]) {
    let (d, m) = affine::scale_and_min(x, w, 31.0, false, 2.0, 6);
    let (d, m) = (round_f16(d), round_f16(-m));
    let q = affine::quants(x, d, -m, 31.0);
    put_f16(b, 0, d);
    put_f16(b, 2, m);
    put_words(b, 4, &[high_bits(&q)]);
    put_words(b, 8, &nibbles(group(&q)));
}
