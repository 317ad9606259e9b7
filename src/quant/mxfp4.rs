//! MXFP4: 32 weights in 17 bytes. `x = 2^(e - 128) * VALUES[q]`, q in 0..16.
//!
//! Open Compute Project, "OCP Microscaling Formats (MX) Specification v1.0": an 8-bit exponent (E8M0) a block, and E2M1
//! elements. As in ggml the table holds twice the element's value and the scale is half of 2^(e - 127), so that the
//! table is of integers; `e = 255` (NaN in the specification) is 2^127.
//!
//! Bytes: `e`; 16 bytes of quants as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `e` (1 byte).

use super::{
    bits::{bytes, from_nibbles, group, nibbles, put_words},
    fit::{LANES, totals},
};

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
    for (y, q) in y.iter_mut().zip(bytes(from_nibbles(b, 1))) {
        *y = f32::from(VALUES[usize::from(q)]) * d;
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 17], q: &mut [u8; 16], e: &mut [u8; 1], _: &mut [u8; 0], _: &mut [u8; 0]) {
    q.copy_from_slice(&b[1..]);
    e[0] = b[0];
}

/// Between each magnitude and the next: the value halfway, and the difference.
const STEPS: [(f32, f32); 7] = [(0.5, 1.0), (1.5, 1.0), (2.5, 1.0), (3.5, 1.0), (5.0, 2.0), (7.0, 2.0), (10.0, 4.0)];

/// The squared error of `x` at exponent `e`, 2..=253.
#[inline(always)]
fn error(x: &[f32; 32], w: &[f32; 32], e: u8) -> f32 {
    let (d, inverse) = (scale(e), 1.0 / scale(e));
    let mut sum = [0f32; LANES];
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for l in 0..LANES {
            let v = x[l].abs() * inverse;
            let level = STEPS.iter().fold(0.0, |y, &(middle, step)| y + if v > middle { step } else { 0.0 });
            let e = x[l].abs() - level * d;
            sum[l] += w[l] * e * e;
        }
    }
    totals(&[sum])[0]
}

/// A block from f32, with importances `w`. The specification takes the exponent from the largest weight alone, which
/// then is between 4 and 8 where the table ends at 6; here the exponents beside it are tried too.
#[inline(always)]
pub fn quantize(x: &[f32; 32], w: &[f32; 32], b: &mut [u8; 17]) {
    let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    // floor(log2) of a normal number; two less puts it between 4 and 8 (of the elements, 8 and 16 of the table).
    let e = ((largest.to_bits() >> 23) as i32 - 2).clamp(3, 252) as u8;
    let (mut best, mut least) = (e, f32::INFINITY);
    for e in [e, e + 1, e - 1] {
        let error = error(x, w, e);
        if error < least {
            (best, least) = (e, error);
        }
    }
    let inverse = 1.0 / scale(best);
    let q = x.map(|x| {
        let v = x.abs() * inverse;
        let i = STEPS.iter().filter(|s| v > s.0).count() as u8;
        if x < 0.0 && i > 0 { i | 8 } else { i }
    });
    b[0] = if largest == 0.0 { 0 } else { best };
    put_words(b, 1, &nibbles(group(&q)));
}
