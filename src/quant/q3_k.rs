//! Q3_K: 256 weights in 110 bytes, in 16 sub-blocks of 16. `x = (d * s) * (q - 4)`, q in 0..8, s in -32..32.
//!
//! Bytes: 32 of third bits (bit `k` of byte `i`: weight `i` of group `k`); 64 of lower bits as in Q2_K; 12 of scales;
//! `d` f16. A scale is stored plus 32 in 6 bits: the lower four of scale `j` are nibble `j / 8` of byte `j % 8`, the
//! upper two are bits `2 * (j / 4)` of byte `8 + j % 4`.
//! GPU planes: lower bits (8 bytes a group, see [`super::bits::pairs`]); third bits (4 bytes a group, see
//! [`super::bits::bits`]); `s` as signed bytes (16 bytes a block; 4 % more than the file's); `d` (2 bytes a block).

use super::{
    Layout,
    bits::{bits, less_32, pairs, put_f16, put_words, u32_at},
    fit::{self, Signed},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    q2_k::put_low_bits,
    unpack::{Portable, Unpack},
};

/// The format that this page describes.
pub struct Q3K;

impl BlockFormat for Q3K {
    const LAYOUT: Layout = Layout { name: "Q3_K", ggml_id: 11, block: 256, bytes: 110 };
    const SUB_BLOCK: usize = 16;
    const OFFSET: u8 = 4;
    const LARGEST: u8 = 7;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((2, 1), PackedScales::Byte));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        let low = u.field(of, u.load(of, |g| 32 + 32 * (g / 4)), |g| 2 * (g % 4), 3);
        u.join::<2>(low, u.field(of, u.load(of, |_| 0), |g| g, 1))
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::signed(u, u.half(b, 108), scales(b))
    }

    const PLANES: [usize; 4] = [64, 32, 16, 2];
    const WGSL: &'static str = include_str!("../../shaders/quant/q3_k.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/q3_k.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, h, s, d]: [&mut [u8]; 4]) {
        for g in 0..8 {
            let quants = Self::quants(Portable, (b, g));
            put_words(q, 8 * g, &pairs(quants));
            put_words(h, 4 * g, &[bits(quants.map(|q| q >> 2))]);
        }
        for (o, v) in s.iter_mut().zip(scales(b)) {
            *o = v as u8;
        }
        d.copy_from_slice(&b[108..]);
    }

    const RANDOM: Random = Random { scale_at: 108, rms: 18.5 * 2.35, centre: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 256], &[f32; 256]) = (whole(x), whole(w));
        let f = fit::blocks_of_scales::<Signed<32>, Signed<4>, 16, 16>(x, w, 0.25, 8);
        b.fill(0);
        for (k, q) in f.q.chunks_exact(32).enumerate() {
            for (b, q) in b[..32].iter_mut().zip(q) {
                *b |= (q >> 2) << k;
            }
        }
        put_low_bits(&f.q, &mut b[32..96]);
        for (j, s) in f.s.iter().enumerate() {
            let s = (s + 32) as u8;
            b[96 + j % 8] |= (s & 15) << (4 * (j / 8));
            b[104 + j % 4] |= (s >> 4) << (2 * (j / 4));
        }
        put_f16(b, 108, f.d);
    }
}

/// The 16 scales.
#[inline(always)]
fn scales(b: &[u8]) -> [i8; 16] {
    // Four bytes at a time.
    let (first, second, pairs) = (u32_at(b, 96), u32_at(b, 100), u32_at(b, 104));
    let four = |low: u32, high: u32| u64::from((low & 0x0f0f_0f0f) | (high & 0x0303_0303) << 4);
    let lower = four(first, pairs) | four(second, pairs >> 2) << 32;
    let upper = four(first >> 4, pairs >> 4) | four(second >> 4, pairs >> 6) << 32;
    bytemuck::cast([less_32(lower), less_32(upper)])
}
