//! MXFP4: 32 weights in 17 bytes. `x = 2^(e - 128) * VALUES[q]`, q in 0..16.
//!
//! Open Compute Project, "OCP Microscaling Formats (MX) Specification v1.0": an 8-bit exponent (E8M0) a block, and E2M1
//! elements. As in ggml the table holds twice the element's value and the scale is half of 2^(e - 127), so that the
//! table is of integers; `e = 255` (NaN in the specification) is 2^127.
//!
//! Bytes: `e`; 16 bytes of quants as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `e` (1 byte).

use super::bits::from_nibbles;

/// Twice the E2M1 values.
pub const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `2^(e - 128)`; denormal for e < 2.
#[inline]
pub(crate) fn scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// f32 from a block.
pub fn dequantize(b: &[u8; 17], y: &mut [f32; 32]) {
    let d = scale(b[0]);
    for (y, q) in y.iter_mut().zip(from_nibbles(&b[1..])) {
        *y = f32::from(VALUES[usize::from(q)]) * d;
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 17], q: &mut [u8; 16], e: &mut [u8; 1], _: &mut [u8; 0], _: &mut [u8; 0]) {
    q.copy_from_slice(&b[1..]);
    e[0] = b[0];
}
