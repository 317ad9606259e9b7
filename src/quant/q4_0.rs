//! Q4_0: 32 weights in 18 bytes. `x = d * (q - 8)`, q in 0..16.
//!
//! Bytes: `d` f16; 16 bytes of quants, byte `j` holding weight `j` below and `j + 16` above.
//! GPU planes: quants (16 bytes a group, as in the file); `d` (2 bytes).

use super::{
    bits::{bytes, f16_at, from_nibbles, group, nibbles, put_f16, put_words, round_f16},
    fit::{self, Signed},
};

/// f32 from a block.
pub fn dequantize(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for (y, q) in y.iter_mut().zip(bytes(from_nibbles(b, 2))) {
        *y = f32::from(q as i8 - 8) * d;
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 18], q: &mut [u8; 16], d: &mut [u8; 2], _: &mut [u8; 0], _: &mut [u8; 0]) {
    q.copy_from_slice(&b[2..]);
    d.copy_from_slice(&b[..2]);
}

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 32], w: &[f32; 32], b: &mut [u8; 18]) {
    let d = round_f16(fit::scale::<Signed<8>, 32>(x, w, 0.15, 8));
    put_f16(b, 0, d);
    put_words(b, 2, &nibbles(group(&fit::indices::<Signed<8>, 32>(x, d))));
}
