//! Q5_1: 32 weights in 24 bytes. `x = d * q + m`, q in 0..32.
//!
//! Bytes: `d` f16; `m` f16; the fifth bits, weight `i` at bit `i` of a u32; 16 bytes of lower bits as in Q4_0.
//! GPU planes: lower bits (16 bytes a group, as in the file); fifth bits (4 bytes, see [`super::bits::bits`]); `d` and
//! `m` (4 bytes).

use super::{
    bits::{f16_at, put_words, transpose_bits, u32_at},
    q5_0::quants,
};

/// f32 from a block.
pub fn dequantize(b: &[u8; 24], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    for (y, q) in y.iter_mut().zip(quants(u32_at(b, 4), &b[8..])) {
        *y = f32::from(q) * d + m;
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 24], q: &mut [u8; 16], h: &mut [u8; 4], dm: &mut [u8; 4], _: &mut [u8; 0]) {
    q.copy_from_slice(&b[8..]);
    put_words(h, 0, &[transpose_bits(u32_at(b, 4))]);
    dm.copy_from_slice(&b[..4]);
}
