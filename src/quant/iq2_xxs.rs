//! IQ2_XXS: 256 weights in 66 bytes, in 8 groups of 32. `x = (d / 8 * (2 s + 1)) * v`, s in 0..16; eight weights at a time are a point
//! of a grid (magnitudes 8, 25 and 43) with signs.
//!
//! Bytes: `d` f16; 8 a group: four numbers of points (a byte each), then a word with the signs of eight weights in seven bits each
//! (the eighth sign makes their number even) and above them `s`.
//! GPU planes: points, signs and `s` (8 bytes a group, as in the file); `d` (2 bytes a block). The grid comes first.

use super::{
    Layout,
    bits::{even_signs, u32_at},
    format::{BlockFormat, NEEDS_IMPORTANCE, PackedScales, Random, Scales},
    grids,
    unpack::{SignedWords, Unpack},
};

/// The grid's points: eight magnitudes each.
static GRID: [u64; 256] = grids::eights(&grids::IQ2_XXS, grids::MAGNITUDES);

/// The format that this page describes.
pub struct IQ2XXS;

impl BlockFormat for IQ2XXS {
    const LAYOUT: Layout = Layout { name: "IQ2_XXS", ggml_id: 16, block: 256, bytes: 66 };
    const SUB_BLOCK: usize = 32;
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
        Scales::signed::<8>(u, 0.125 * u.half(b, 0), std::array::from_fn(|g| (2 * (b[9 + 8 * g] >> 4) + 1) as i8))
    }

    const PLANES: [usize; 4] = [64, 2, 0, 0];
    const GPU_TABLE: &'static [u32] = &grids::words::<256, 128>(&grids::IQ2_XXS);
    const WGSL: &'static str = include_str!("../../shaders/quant/iq2_xxs.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/iq2_xxs.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, d, ..]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[2..]);
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 53.4, centre: 0.0 };

    const NO_QUANTISER: Option<&'static str> = Some(NEEDS_IMPORTANCE);

    fn quantize(_: &[f32], _: &[f32], _: &mut [u8]) {}
}

impl SignedWords for IQ2XXS {
    #[inline(always)]
    fn signed(b: &[u8], g: usize) -> ([u64; 4], u32) {
        let points = std::array::from_fn(|l| GRID[usize::from(b[2 + 8 * g + l])]);
        (points, even_signs(u32_at(b, 6 + 8 * g)))
    }
}
