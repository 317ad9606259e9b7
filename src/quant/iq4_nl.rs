//! IQ4_NL: 32 weights in 18 bytes. `x = d * VALUES[q]`, q in 0..16: a table that is finer near zero.
//!
//! Bytes: `d` f16; 16 bytes of quants as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `d` (2 bytes).

use super::bits::{f16_at, from_nibbles};

/// The table, from `kvalues_iq4nl` in `ggml-common.h`.
pub const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// f32 from a block.
pub fn dequantize(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for (y, q) in y.iter_mut().zip(from_nibbles(&b[2..])) {
        *y = d * f32::from(VALUES[usize::from(q)]);
    }
}

/// Splits a block into GPU planes: the same as Q4_0's.
pub use super::q4_0::pack;
