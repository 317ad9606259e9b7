//! Q8_0: 32 weights in 34 bytes. `x = d * q`, q in -128..128.
//!
//! Bytes: `d` f16; 32 signed quants.
//! GPU planes: quants (32 bytes a group, as in the file); `d` (2 bytes).

use super::bits::f16_at;

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
