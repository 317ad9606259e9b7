//! Q4_1: 32 weights in 20 bytes. `x = d * q + m`, q in 0..16.
//!
//! Bytes: `d` f16; `m` f16; 16 bytes of quants as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `d` and `m` (4 bytes).

use super::{
    affine,
    bits::{bytes, f16_at, from_nibbles, group, nibbles, put_f16, put_words, round_f16},
};

/// f32 from a block.
pub fn dequantize(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    for (y, q) in y.iter_mut().zip(bytes(from_nibbles(b, 4))) {
        *y = f32::from(q) * d + m;
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 20], q: &mut [u8; 16], dm: &mut [u8; 4], _: &mut [u8; 0], _: &mut [u8; 0]) {
    q.copy_from_slice(&b[4..]);
    dm.copy_from_slice(&b[..4]);
}

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 32], w: &[f32; 32], b: &mut [u8; 20]) {
    let (d, m) = affine::scale_and_min(x, w, 15.0, false, 2.0, 6);
    let (d, m) = (round_f16(d), round_f16(-m));
    put_f16(b, 0, d);
    put_f16(b, 2, m);
    put_words(b, 4, &nibbles(group(&affine::quants(x, d, -m, 15.0))));
}
