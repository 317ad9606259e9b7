//! Q6_K: 256 weights in 210 bytes, in 16 sub-blocks of 16. `x = (d * s) * (q - 32)`, q in 0..64, s in -128..128.
//!
//! Bytes: 128 of lower bits; 64 of upper bits; 16 signed scales; `d` f16. The lower four bits of group `k = 4h + j` are
//! nibble `j / 2` of bytes `64h + 32 * (j % 2) ..`; the upper two are bits `2j` of the upper bytes `32h ..`.
//! GPU planes: lower bits (16 bytes a group, nibbles as in Q4_0); upper bits (8 bytes a group, see
//! [`super::bits::pairs`]); scales (16 bytes a block, as in the file); `d` (2 bytes a block).

use super::{
    bits::{Group, bytes, f16_at, group_at, nibbles, pairs, put_f16, put_words},
    fit::{self, Signed},
};

/// The quants of group `k`, 0..64.
#[inline(always)]
pub(crate) fn group(b: &[u8; 210], k: usize) -> Group {
    let (h, j) = (k / 4, k % 4);
    let (low, high) = (group_at(b, 64 * h + 32 * (j % 2)), group_at(b, 128 + 32 * h));
    std::array::from_fn(|a| ((low[a] >> (4 * (j / 2))) & 0x0f0f_0f0f) | (((high[a] >> (2 * j)) & 0x0303_0303) << 4))
}

/// f32 from a block.
pub fn dequantize(b: &[u8; 210], y: &mut [f32; 256]) {
    let d = f16_at(b, 208);
    for (k, y) in y.chunks_exact_mut(32).enumerate() {
        let q = bytes(group(b, k));
        for (i, y) in y.iter_mut().enumerate() {
            let s = b[192 + 2 * k + i / 16] as i8;
            *y = (d * f32::from(s)) * f32::from(q[i] as i8 - 32);
        }
    }
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 210], q: &mut [u8; 128], h: &mut [u8; 64], s: &mut [u8; 16], d: &mut [u8; 2]) {
    for k in 0..8 {
        let g = group(b, k);
        put_words(q, 16 * k, &nibbles(g));
        put_words(h, 8 * k, &pairs(g.map(|q| q >> 4)));
    }
    s.copy_from_slice(&b[192..208]);
    d.copy_from_slice(&b[208..]);
}

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 256], w: &[f32; 256], b: &mut [u8; 210]) {
    let f = fit::blocks_of_scales::<Signed<128>, Signed<32>, 16, 16>(x, w, 0.05, 6);
    for h in 0..2 {
        let q = &f.q[128 * h..];
        for i in 0..64 {
            b[64 * h + i] = (q[i] & 15) | (q[64 + i] << 4);
        }
        for i in 0..32 {
            b[128 + 32 * h + i] = (0..4).fold(0, |v, j| v | ((q[32 * j + i] >> 4) << (2 * j)));
        }
    }
    for (b, s) in b[192..208].iter_mut().zip(f.s) {
        *b = s as u8;
    }
    put_f16(b, 208, f.d);
}
