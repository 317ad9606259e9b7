//! Q4_K: 256 weights in 144 bytes, in 8 groups of 32. `x = (d * s) * q - (dmin * m)`, q in 0..16, s and m in 0..64.
//!
//! Bytes: `d` f16; `dmin` f16; 12 of `s` and `m`; 128 of quants. `s` and `m` of group `k < 4` are the lower six bits of
//! bytes `k` and `4 + k`; those of group `4 + k` have their lower four bits in the nibbles of byte `8 + k` and their
//! upper two in the upper two bits of bytes `k` and `4 + k`. Group `k`'s quants are nibble `k % 2` of bytes
//! `32 * (k / 2) ..`.
//! GPU planes: quants (16 bytes a group, nibbles as in Q4_0); `d`, `dmin` and scales (16 bytes a block, see
//! [`pack_scales`]).

use super::{
    Layout, affine,
    bits::{nibbles, put_f16, put_words, u32_at},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    unpack::{Portable, Unpack},
};

/// The format that this page describes.
pub struct Q4K;

impl BlockFormat for Q4K {
    const LAYOUT: Layout = Layout { name: "Q4_K", ggml_id: 12, block: 256, bytes: 144 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 0;
    const LARGEST: u8 = 15;
    const MINIMA: bool = true;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((4, 0), PackedScales::ByteMin));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.field(of, u.load(of, |g| 16 + 32 * (g / 2)), |g| 4 * (g % 2), 15)
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        let (s, m) = scales(&b[4..16]);
        Scales::with_minima(u, u.half(b, 0), u.half(b, 2), s, m)
    }

    const PLANES: [usize; 4] = [128, 16, 0, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/q4_k.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/q4_k.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, s, ..]: [&mut [u8]; 4]) {
        for g in 0..8 {
            put_words(q, 16 * g, &nibbles(Self::quants(Portable, (b, g))));
        }
        pack_scales(b, s);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 36.5 * 4.61, centre: 7.5 };

    #[inline(always)]
    fn centre(b: &mut [u8], min: [u8; 2]) {
        centre(b, min);
    }

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 256], &[f32; 256]) = (whole(x), whole(w));
        let f = affine::blocks_of_affine::<8, 32>(x, w, 15.0, 63.0, 2.0, 6);
        put_scales(&f, b);
        put_low_bits(&f.q, &mut b[16..]);
    }
}

/// The 12 bytes of scales as `(s, m)`.
#[inline(always)]
pub(super) fn scales(b: &[u8]) -> ([u8; 8], [u8; 8]) {
    // Four bytes at a time.
    let (first, second, nibbles) = (u32_at(b, 0), u32_at(b, 4), u32_at(b, 8));
    let lower = |six: u32| u64::from(six & 0x3f3f_3f3f);
    let upper = |four: u32, two: u32| u64::from((four & 0x0f0f_0f0f) | (two >> 2 & 0x3030_3030)) << 32;
    let s = lower(first) | upper(nibbles, first);
    let m = lower(second) | upper(nibbles >> 4, second);
    (s.to_le_bytes(), m.to_le_bytes())
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

/// Makes scales and minima of a block of random bytes equal: twelve bytes of 6-bit numbers, packed so that equal halves do that.
#[inline(always)]
pub(super) fn centre(b: &mut [u8], min: [u8; 2]) {
    b[2..4].copy_from_slice(&min);
    b.copy_within(4..8, 8);
    b[12..16].iter_mut().for_each(|s| *s = (*s & 15) * 17);
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
