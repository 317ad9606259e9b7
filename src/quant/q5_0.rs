//! Q5_0: 32 weights in 22 bytes. `x = d * (q - 16)`, q in 0..32.
//!
//! Bytes: `d` f16; the fifth bits, weight `i` at bit `i` of a u32; 16 bytes of lower bits as in Q4_0.
//! GPU planes: lower bits (16 bytes a group, as in the file); fifth bits (4 bytes, see [`super::bits::bits`]); `d`
//! (2 bytes).

use super::{
    bits::{
        Group, bits, bytes, f16_at, from_bits, from_nibbles, group, nibbles, put_f16, put_words, round_f16, u32_at,
    },
    fit::{self, Signed},
};

/// The 5-bit quants whose fifth bits are the word at `high` of `b`, and whose lower bits are the 16 bytes after it.
#[inline(always)]
pub(super) fn quants(b: &[u8], high: usize) -> Group {
    let (low, high) = (from_nibbles(b, high + 4), from_bits(u32_at(b, high)));
    std::array::from_fn(|a| low[a] | (high[a] << 4))
}

/// f32 from a block.
pub fn dequantize(b: &[u8; 22], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for (y, q) in y.iter_mut().zip(bytes(quants(b, 2))) {
        *y = f32::from(q as i8 - 16) * d;
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 22], q: &mut [u8; 16], h: &mut [u8; 4], d: &mut [u8; 2], _: &mut [u8; 0]) {
    q.copy_from_slice(&b[6..]);
    put_words(h, 0, &[bits(from_bits(u32_at(b, 2)))]);
    d.copy_from_slice(&b[..2]);
}

/// The fifth bits of 5-bit quants, weight `i` at bit `i`.
#[inline(always)]
pub(super) fn high_bits(q: &[u8; 32]) -> u32 {
    q.iter().enumerate().fold(0, |h, (i, q)| h | (u32::from(q >> 4) << i))
}

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 32], w: &[f32; 32], b: &mut [u8; 22]) {
    let d = round_f16(fit::scale::<Signed<16>, 32>(x, w, 0.08, 8));
    let q = fit::indices::<Signed<16>, 32>(x, d);
    put_f16(b, 0, d);
    put_words(b, 2, &[high_bits(&q)]);
    put_words(b, 6, &nibbles(group(&q)));
}
