//! Q5_K: 256 weights in 176 bytes, in 8 groups of 32. `x = (d * s) * q - (dmin * m)`, q in 0..32, s and m in 0..64.
//!
//! Bytes: `d` f16; `dmin` f16; 12 of `s` and `m` as in Q4_K; 32 of fifth bits (bit `k` of byte `i`: weight `i` of group
//! `k`); 128 of lower bits as in Q4_K.
//! GPU planes: lower bits (16 bytes a group, nibbles as in Q4_0); fifth bits (4 bytes a group, see
//! [`super::bits::bits`]); `d`, `dmin` and scales (16 bytes a block, as in Q4_K).

use super::{
    Layout, affine,
    bits::{bits, nibbles, put_words},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    q4_k,
    unpack::{Portable, Unpack},
};

/// The format that this page describes.
pub struct Q5K;

impl BlockFormat for Q5K {
    const LAYOUT: Layout = Layout { name: "Q5_K", ggml_id: 13, block: 256, bytes: 176 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 0;
    const LARGEST: u8 = 31;
    const MINIMA: bool = true;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((4, 1), PackedScales::ByteMin));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        let low = u.field(of, u.load(of, |g| 48 + 32 * (g / 2)), |g| 4 * (g % 2), 15);
        u.join::<4>(low, u.field(of, u.load(of, |_| 16), |g| g, 1))
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        let (s, m) = q4_k::scales(&b[4..16]);
        Scales::with_minima(u, u.half(b, 0), u.half(b, 2), s, m)
    }

    const PLANES: [usize; 4] = [128, 32, 16, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/q5_k.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/q5_k.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, h, s, _]: [&mut [u8]; 4]) {
        for g in 0..8 {
            let quants = Self::quants(Portable, (b, g));
            put_words(q, 16 * g, &nibbles(quants));
            put_words(h, 4 * g, &[bits(quants.map(|q| q >> 4))]);
        }
        q4_k::pack_scales(b, s);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 36.5 * 9.23, centre: 15.5 };

    #[inline(always)]
    fn centre(b: &mut [u8], min: [u8; 2]) {
        q4_k::centre(b, min);
    }

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 256], &[f32; 256]) = (whole(x), whole(w));
        let f = affine::blocks_of_affine::<8, 32>(x, w, 31.0, 63.0, 2.0, 6);
        q4_k::put_scales(&f, b);
        for (i, b) in b[16..48].iter_mut().enumerate() {
            *b = (0..8).fold(0, |h, k| h | ((f.q[32 * k + i] >> 4) << k));
        }
        q4_k::put_low_bits(&f.q, &mut b[48..]);
    }
}
