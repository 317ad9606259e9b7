//! IQ3_XXS: 256 weights in 98 bytes, in 8 groups of 32. `x = (d / 4 * (2 s + 1)) * v`, s in 0..16; four weights at a time are a point of
//! a grid (magnitudes 4, 12, 20, 28, 36, 44, 52 and 62) with signs.
//!
//! Bytes: `d` f16; 64 with the numbers of points; a word a group with the signs of eight weights in seven bits each (the eighth sign
//! makes their number even) and above them `s`.
//! GPU planes: points (8 bytes a group, as in the file); signs and `s` (4 bytes a group, as in the file); `d` (2 bytes a block). The
//! grid comes first.

use super::{
    Layout,
    bits::{even_signs, u32_at},
    format::{BlockFormat, NEEDS_IMPORTANCE, PackedScales, Random, Scales},
    grids,
    unpack::{SignedWords, Unpack},
};

/// The grid's points: four magnitudes each.
static GRID: [u32; 256] = grids::fours(&grids::IQ3_XXS, [4, 12, 20, 28, 36, 44, 52, 62]);

/// The format that this page describes.
pub struct IQ3XXS;

impl BlockFormat for IQ3XXS {
    const LAYOUT: Layout = Layout { name: "IQ3_XXS", ggml_id: 18, block: 256, bytes: 98 };
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
        Scales::signed::<8>(u, 0.25 * u.half(b, 0), std::array::from_fn(|g| (2 * (b[69 + 4 * g] >> 4) + 1) as i8))
    }

    const PLANES: [usize; 4] = [64, 32, 2, 0];
    const GPU_TABLE: &'static [u32] = &grids::words::<256, 128>(&grids::IQ3_XXS);
    const WGSL: &'static str = include_str!("../../shaders/quant/iq3_xxs.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/iq3_xxs.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, s, d, _]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[2..66]);
        s.copy_from_slice(&b[66..]);
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 142.4, centre: 0.0 };

    const NO_QUANTISER: Option<&'static str> = Some(NEEDS_IMPORTANCE);

    fn quantize(_: &[f32], _: &[f32], _: &mut [u8]) {}
}

impl SignedWords for IQ3XXS {
    #[inline(always)]
    fn signed(b: &[u8], g: usize) -> ([u64; 4], u32) {
        let point = |i: usize| u64::from(GRID[usize::from(b[2 + 8 * g + i])]);
        let points = std::array::from_fn(|l| point(2 * l) | point(2 * l + 1) << 32);
        (points, even_signs(u32_at(b, 66 + 4 * g)))
    }
}
