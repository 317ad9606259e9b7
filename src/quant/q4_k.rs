//! Q4_K: 256 weights in 144 bytes, in 8 groups of 32. `x = (d * s) * q - (dmin * m)`, q in 0..16, s and m in 0..64.
//!
//! Bytes: `d` f16; `dmin` f16; 12 of `s` and `m`; 128 of quants. `s` and `m` of group `k < 4` are the lower six bits of
//! bytes `k` and `4 + k`; those of group `4 + k` have their lower four bits in the nibbles of byte `8 + k` and their
//! upper two in the upper two bits of bytes `k` and `4 + k`. Group `k`'s quants are nibble `k % 2` of bytes
//! `32 * (k / 2) ..`.
//! GPU planes: quants (16 bytes a group, nibbles as in Q4_0); `d`, `dmin` and scales (16 bytes a block, see
//! [`pack_scales`]).

use super::{
    affine,
    bits::{Group, bytes, f16_at, group_at, nibbles, put_f16, put_words},
};

/// The 12 bytes of scales as `(s, m)`.
#[inline(always)]
pub(crate) fn scales(b: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut s, mut m) = ([0; 8], [0; 8]);
    for k in 0..4 {
        s[k] = b[k] & 63;
        m[k] = b[4 + k] & 63;
        s[4 + k] = (b[8 + k] & 15) | ((b[k] >> 6) << 4);
        m[4 + k] = (b[8 + k] >> 4) | ((b[4 + k] >> 6) << 4);
    }
    (s, m)
}

/// The lower four bits of group `k`, of the 128 bytes at `at` of `b`.
#[inline(always)]
pub(crate) fn group(b: &[u8], at: usize, k: usize) -> Group {
    group_at(b, at + 32 * (k / 2)).map(|q| (q >> (4 * (k % 2))) & 0x0f0f_0f0f)
}

/// `y = (d * s) * q - (dmin * m)` for eight groups; Q5_K is the same with wider quants.
#[inline(always)]
pub(super) fn scale_groups(head: &[u8], y: &mut [f32; 256], group: impl Fn(usize) -> Group) {
    let (d, dmin) = (f16_at(head, 0), f16_at(head, 2));
    let (s, m) = scales(&head[4..16]);
    for (k, y) in y.chunks_exact_mut(32).enumerate() {
        let (d, m) = (d * f32::from(s[k]), dmin * f32::from(m[k]));
        for (y, q) in y.iter_mut().zip(bytes(group(k))) {
            *y = d * f32::from(q) - m;
        }
    }
}

/// f32 from a block.
pub fn dequantize(b: &[u8; 144], y: &mut [f32; 256]) {
    scale_groups(b, y, |k| group(b, 16, k));
}

/// The GPU's 16 bytes of scales from a block's first 16: `d` and `dmin`, then three words that have four bits a group:
/// the lower bits of `s`, those of `m`, and the upper two bits of both (`s` below). A group's scales are then a shift
/// by `4 * (g % 8)` away, without a case for the upper groups.
#[inline(always)]
pub(super) fn pack_scales(head: &[u8], out: &mut [u8]) {
    let (s, m) = scales(&head[4..16]);
    let mut w = [0u32; 3];
    for k in 0..8 {
        let (s, m) = (u32::from(s[k]), u32::from(m[k]));
        w[0] |= (s & 15) << (4 * k);
        w[1] |= (m & 15) << (4 * k);
        w[2] |= ((s >> 4) | ((m >> 4) << 2)) << (4 * k);
    }
    out[..4].copy_from_slice(&head[..4]);
    put_words(out, 4, &w);
}

/// Splits a block into GPU planes.
pub fn pack(b: &[u8; 144], q: &mut [u8; 128], s: &mut [u8; 16], _: &mut [u8; 0], _: &mut [u8; 0]) {
    for k in 0..8 {
        put_words(q, 16 * k, &nibbles(group(b, 16, k)));
    }
    pack_scales(b, s);
}

/// Writes a block's first 16 bytes; the inverse of [`scales`].
#[inline(always)]
pub(super) fn put_scales(f: &affine::Scaled<8>, b: &mut [u8]) {
    put_f16(b, 0, f.d);
    put_f16(b, 2, f.dmin);
    for k in 0..4 {
        b[4 + k] = f.s[k] | ((f.s[4 + k] >> 4) << 6);
        b[8 + k] = f.m[k] | ((f.m[4 + k] >> 4) << 6);
        b[12 + k] = (f.s[4 + k] & 15) | (f.m[4 + k] << 4);
    }
}

/// Writes the 128 bytes of lower four bits.
#[inline(always)]
pub(super) fn put_low_bits(q: &[u8; 256], b: &mut [u8]) {
    for (q, b) in q.chunks_exact(64).zip(b.chunks_exact_mut(32)) {
        for (i, b) in b.iter_mut().enumerate() {
            *b = (q[i] & 15) | (q[32 + i] << 4);
        }
    }
}

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 256], w: &[f32; 256], b: &mut [u8; 144]) {
    let f = affine::blocks_of_affine::<8, 32>(x, w, 15.0, 63.0, 2.0, 6);
    put_scales(&f, b);
    put_low_bits(&f.q, &mut b[16..]);
}
