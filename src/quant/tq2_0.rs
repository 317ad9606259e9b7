//! TQ2_0: 256 weights in 66 bytes. `x = d * (q - 1)`, q in 0..3 (a file may hold 3).
//!
//! Bytes: 64 of quants as in Q2_K; `d` f16.
//! GPU planes: quants (8 bytes a group, see [`super::bits::pairs`]); `d` (2 bytes a block).

use super::{
    Layout,
    bits::{pairs, put_f16, put_words},
    fit::reciprocal,
    format::{BlockFormat, PackedScales, Random, Scales},
    tq1_0::{largest, ternary},
    unpack::{Portable, Unpack},
};

/// The format that this page describes.
pub struct TQ2_0;

impl BlockFormat for TQ2_0 {
    const LAYOUT: Layout = Layout { name: "TQ2_0", ggml_id: 35, block: 256, bytes: 66 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 1;
    const LARGEST: u8 = 3;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((2, 0), PackedScales::Byte));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.field(of, u.load(of, |g| 32 * (g / 4)), |g| 2 * (g % 4), 3)
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::one(u.half(b, 64))
    }

    const PLANES: [usize; 4] = [64, 2, 0, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/tq2_0.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/tq2_0.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, d, ..]: [&mut [u8]; 4]) {
        for g in 0..8 {
            put_words(q, 8 * g, &pairs(Self::quants(Portable, (b, g))));
        }
        d.copy_from_slice(&b[64..]);
    }

    const RANDOM: Random = Random { scale_at: 64, rms: 1.22, centre: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], _: &[f32], b: &mut [u8]) {
        let d = largest(x);
        let inverse = reciprocal(d);
        for (i, b) in b[..64].iter_mut().enumerate() {
            let weight = |n: usize| 128 * (i / 32) + 32 * n + i % 32;
            *b = (0..4).fold(0, |v, n| v | ternary(x[weight(n)] * inverse) << (2 * n));
        }
        put_f16(b, 64, d);
    }
}
