//! Q4_1: 32 weights in 20 bytes. `x = d * q + m`, q in 0..16.
//!
//! Bytes: `d` f16; `m` f16; 16 bytes of quants as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `d` and `m` (4 bytes).

use super::bits::{f16_at, from_nibbles};

/// f32 from a block.
pub fn dequantize(b: &[u8; 20], y: &mut [f32; 32]) {
    let (d, m) = (f16_at(b, 0), f16_at(b, 2));
    for (y, q) in y.iter_mut().zip(from_nibbles(&b[4..])) {
        *y = f32::from(q) * d + m;
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 20], q: &mut [u8; 16], dm: &mut [u8; 4], _: &mut [u8; 0], _: &mut [u8; 0]) {
    q.copy_from_slice(&b[4..]);
    dm.copy_from_slice(&b[..4]);
}
