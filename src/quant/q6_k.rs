//! Q6_K: 256 weights in 210 bytes, in 16 sub-blocks of 16. `x = (d * s) * (q - 32)`, q in 0..64, s in -128..128.
//!
//! Bytes: 128 of lower bits; 64 of upper bits; 16 signed scales; `d` f16. The lower four bits of group `k = 4h + j` are
//! nibble `j / 2` of bytes `64h + 32 * (j % 2) ..`; the upper two are bits `2j` of the upper bytes `32h ..`.
//! GPU planes: lower bits (16 bytes a group, nibbles as in Q4_0); upper bits (8 bytes a group, see
//! [`super::bits::pairs`]); scales (16 bytes a block, as in the file); `d` (2 bytes a block).

use super::{
    Layout,
    bits::{nibbles, pairs, put_f16, put_words},
    fit::{self, Signed},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    unpack::{Portable, Unpack},
};

/// The format that this page describes.
pub struct Q6K;

impl BlockFormat for Q6K {
    const LAYOUT: Layout = Layout { name: "Q6_K", ggml_id: 14, block: 256, bytes: 210 };
    const SUB_BLOCK: usize = 16;
    const OFFSET: u8 = 32;
    const LARGEST: u8 = 63;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((4, 2), PackedScales::Byte));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        let low = u.load(of, |g| 64 * (g / 4) + 32 * (g % 2));
        let low = u.field(of, low, |g| 4 * (g % 4 / 2), 15);
        let high = u.load(of, |g| 128 + 32 * (g / 4));
        u.join::<4>(low, u.field(of, high, |g| 2 * (g % 4), 3))
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::signed::<16>(u, u.half(b, 208), bytemuck::cast(*whole::<u8, 16>(&b[192..208])))
    }

    const PLANES: [usize; 4] = [128, 64, 16, 2];
    const WGSL: &'static str = include_str!("../../shaders/quant/q6_k.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/q6_k.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, h, s, d]: [&mut [u8]; 4]) {
        for g in 0..8 {
            let quants = Self::quants(Portable, (b, g));
            put_words(q, 16 * g, &nibbles(quants));
            put_words(h, 8 * g, &pairs(quants.map(|q| q >> 4)));
        }
        s.copy_from_slice(&b[192..208]);
        d.copy_from_slice(&b[208..]);
    }

    const RANDOM: Random = Random { scale_at: 208, rms: 73.9 * 18.5, centre: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 256], &[f32; 256]) = (whole(x), whole(w));
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
}
