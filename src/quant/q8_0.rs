//! Q8_0: 32 weights in 34 bytes. `x = d * q`, q in -128..128.
//!
//! Bytes: `d` f16; 32 signed quants.
//! GPU planes: quants (32 bytes a group, as in the file); `d` (2 bytes).

use super::{
    bits::{f16_at, put_f16},
    fit::reciprocal,
};

/// f32 from a block.
pub fn dequantize(b: &[u8; 34], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for (y, &q) in y.iter_mut().zip(&b[2..]) {
        *y = f32::from(q as i8) * d;
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 34], q: &mut [u8; 32], d: &mut [u8; 2], _: &mut [u8; 0], _: &mut [u8; 0]) {
    q.copy_from_slice(&b[2..]);
    d.copy_from_slice(&b[..2]);
}

/// A block from f32: the largest magnitude becomes 127, as in ggml, because nothing is gained by less.
#[inline(always)]
pub fn quantize(x: &[f32; 32], _: &[f32; 32], b: &mut [u8; 34]) {
    let d = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
    let inverse = reciprocal(d);
    put_f16(b, 0, d);
    for (b, x) in b[2..].iter_mut().zip(x) {
        // Halves away from zero. The magnitude is at most 127 (and a rounding), so the cast truncates in range.
        let v = x * inverse;
        *b = (v + 0.5f32.copysign(v)) as i8 as u8;
    }
}
