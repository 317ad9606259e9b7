//! IQ2_XS: 256 weights in 74 bytes, in 16 sub-blocks of 16. `x = (d / 8 * (2 s + 1)) * v`, s in 0..16; eight weights at a time are a
//! point of a grid (magnitudes 8, 25 and 43) with signs.
//!
//! Bytes: `d` f16; a u16 for eight weights: the number of the point in nine bits, above it seven signs (the eighth makes their number
//! even); 8 of `s`, sub-block `j` in nibble `j % 2` of byte `j / 2`.
//! GPU planes: points and signs (8 bytes a group, as in the file); `s` (1 byte a group, as in the file); `d` (2 bytes a block). The
//! grid comes first.

use super::{
    Layout,
    bits::{even_signs, u16_at},
    format::{BlockFormat, NEEDS_IMPORTANCE, PackedScales, Random, Scales},
    grids,
    unpack::{SignedWords, Unpack},
};

/// The grid's points: eight magnitudes each.
static GRID: [u64; 512] = grids::eights(&grids::IQ2_XS, grids::MAGNITUDES);

/// The format that this page describes.
pub struct IQ2XS;

impl BlockFormat for IQ2XS {
    const LAYOUT: Layout = Layout { name: "IQ2_XS", ggml_id: 17, block: 256, bytes: 74 };
    const SUB_BLOCK: usize = 16;
    const OFFSET: u8 = 128;
    const LARGEST: u8 = 255;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = None;

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.signed::<Self>(of)
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        let s = |j: usize| (b[66 + j / 2] >> (4 * (j % 2))) & 15;
        Scales::signed::<16>(u, 0.125 * u.half(b, 0), std::array::from_fn(|j| (2 * s(j) + 1) as i8))
    }

    const PLANES: [usize; 4] = [64, 8, 2, 0];
    const GPU_TABLE: &'static [u32] = &grids::words::<512, 256>(&grids::IQ2_XS);
    const WGSL: &'static str = include_str!("../../shaders/quant/iq2_xs.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/iq2_xs.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, s, d, _]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[2..66]);
        s.copy_from_slice(&b[66..]);
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 55.9, centre: 0.0 };

    const NO_QUANTISER: Option<&'static str> = Some(NEEDS_IMPORTANCE);

    fn quantize(_: &[f32], _: &[f32], _: &mut [u8]) {}
}

impl SignedWords for IQ2XS {
    #[inline(always)]
    fn signed(b: &[u8], g: usize) -> ([u64; 4], u32) {
        let q: [u16; 4] = std::array::from_fn(|l| u16_at(b, 2 + 8 * g + 2 * l));
        let signs = (0..4).fold(0, |s, l| s | u32::from(q[l] >> 9) << (7 * l));
        (q.map(|q| GRID[usize::from(q & 511)]), even_signs(signs))
    }
}
