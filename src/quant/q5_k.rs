//! Q5_K: 256 weights in 176 bytes, in 8 groups of 32. `x = (d * s) * q - (dmin * m)`, q in 0..32, s and m in 0..64.
//!
//! Bytes: `d` f16; `dmin` f16; 12 of `s` and `m` as in Q4_K; 32 of fifth bits (bit `k` of byte `i`: weight `i` of group
//! `k`); 128 of lower bits as in Q4_K.
//! GPU planes: lower bits (16 bytes a group, nibbles as in Q4_0); fifth bits (4 bytes a group, see
//! [`super::bits::bits`]); `d`, `dmin` and scales (16 bytes a block, as in Q4_K).

use super::{
    affine,
    bits::{Group, bits, group_at, nibbles, put_words},
    q4_k,
};

/// The quants of group `k`.
#[inline(always)]
pub(crate) fn group(b: &[u8; 176], k: usize) -> Group {
    let (low, high) = (q4_k::group(b, 48, k), group_at(b, 16));
    std::array::from_fn(|a| low[a] | (((high[a] >> k) & 0x0101_0101) << 4))
}

/// f32 from a block.
pub fn dequantize(b: &[u8; 176], y: &mut [f32; 256]) {
    q4_k::scale_groups(b, y, |k| group(b, k));
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 176], q: &mut [u8; 128], h: &mut [u8; 32], s: &mut [u8; 16], _: &mut [u8; 0]) {
    for k in 0..8 {
        let g = group(b, k);
        put_words(q, 16 * k, &nibbles(g));
        put_words(h, 4 * k, &[bits(g.map(|q| q >> 4))]);
    }
    q4_k::pack_scales(b, s);
}

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 256], w: &[f32; 256], b: &mut [u8; 176]) {
    let f = affine::blocks_of_affine::<8, 32>(x, w, 31.0, 63.0, 2.0, 6);
    q4_k::put_scales(&f, b);
    for (i, b) in b[16..48].iter_mut().enumerate() {
        *b = (0..8).fold(0, |h, k| h | ((f.q[32 * k + i] >> 4) << k));
    }
    q4_k::put_low_bits(&f.q, &mut b[48..]);
}
