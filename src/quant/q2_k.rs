//! Q2_K: 256 weights in 84 bytes, in 16 sub-blocks of 16. `x = (d * s) * q - (dmin * m)`, q in 0..4, s and m in 0..16.
//!
//! Bytes: 16 of `s` (low nibble) and `m` (high nibble), one a sub-block; 64 of quants; `d` f16; `dmin` f16. The quants
//! of group `k = 4h + j` are bits `2j` and `2j + 1` of bytes `32h .. 32h + 32`.
//! GPU planes: quants (8 bytes a group, see [`super::bits::pairs`]); `s` and `m` (16 bytes a block, as in the file);
//! `d` and `dmin` (4 bytes a block).

use super::{
    Layout, affine,
    bits::{pairs, put_f16, put_words},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    unpack::{Portable, Unpack},
};

/// The format that this page describes.
pub struct Q2K;

impl BlockFormat for Q2K {
    const LAYOUT: Layout = Layout { name: "Q2_K", ggml_id: 10, block: 256, bytes: 84 };
    const SUB_BLOCK: usize = 16;
    const OFFSET: u8 = 0;
    const LARGEST: u8 = 3;
    const MINIMA: bool = true;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((2, 0), PackedScales::Nibble));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.field(of, u.load(of, |g| 16 + 32 * (g / 4)), |g| 2 * (g % 4), 3)
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        let (s, m) = (std::array::from_fn(|j| b[j] & 15), std::array::from_fn(|j| b[j] >> 4));
        Scales::with_minima::<16>(u, u.half(b, 80), u.half(b, 82), s, m)
    }

    const PLANES: [usize; 4] = [64, 16, 4, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/q2_k.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/q2_k.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, s, d, _]: [&mut [u8]; 4]) {
        for g in 0..8 {
            put_words(q, 8 * g, &pairs(Self::quants(Portable, (b, g))));
        }
        s.copy_from_slice(&b[..16]);
        d.copy_from_slice(&b[80..]);
    }

    const RANDOM: Random = Random { scale_at: 80, rms: 8.8 * 1.118, centre: 1.5 };

    #[inline(always)]
    fn centre(b: &mut [u8], min: [u8; 2]) {
        b[82..84].copy_from_slice(&min);
        // Equal scales and minima.
        b[..16].iter_mut().for_each(|s| *s = (*s & 15) * 17);
    }

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 256], &[f32; 256]) = (whole(x), whole(w));
        let f = affine::blocks_of_affine::<16, 16>(x, w, 3.0, 15.0, 1.0, 8);
        for (b, (s, m)) in b.iter_mut().zip(f.s.iter().zip(f.m)) {
            *b = s | (m << 4);
        }
        put_low_bits(&f.q, &mut b[16..80]);
        put_f16(b, 80, f.d);
        put_f16(b, 82, f.dmin);
    }
}

/// Writes the 64 bytes of lower two bits, as Q3_K has them too.
#[inline(always)]
pub(super) fn put_low_bits(q: &[u8; 256], b: &mut [u8]) {
    for (h, b) in b.chunks_exact_mut(32).enumerate() {
        for (i, b) in b.iter_mut().enumerate() {
            *b = (0..4).fold(0, |v, j| v | ((q[128 * h + 32 * j + i] & 3) << (2 * j)));
        }
    }
}
