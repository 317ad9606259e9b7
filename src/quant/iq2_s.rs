//! IQ2_S: 256 weights in 82 bytes, in 16 sub-blocks of 16. `x = (d / 8 * (2 s + 1)) * v`, s in 0..16; eight weights at a time are a
//! point of a grid (magnitudes 8, 25 and 43) with signs.
//!
//! Bytes: `d` f16; 32 with the lower eight bits of the points' numbers; 32 of signs, a bit a weight; 8 with the upper two bits of the
//! points' numbers, a byte a group; 8 of `s`, sub-block `j` in nibble `j % 2` of byte `j / 2`.
//! GPU planes: points' lower bits and signs (8 bytes a group); points' upper bits and `s` (2 bytes a group); `d` (2 bytes a block).
//! The grid comes first.

use super::{
    Layout,
    bits::u32_at,
    format::{BlockFormat, NEEDS_IMPORTANCE, PackedScales, Random, Scales},
    grids,
    unpack::{SignedWords, Unpack},
};

/// The grid's points: eight magnitudes each.
static GRID: [u64; 1024] = grids::eights(&grids::IQ2_S, grids::MAGNITUDES);

/// The format that this page describes.
pub struct IQ2S;

impl BlockFormat for IQ2S {
    const LAYOUT: Layout = Layout { name: "IQ2_S", ggml_id: 22, block: 256, bytes: 82 };
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
        let s = |j: usize| (b[74 + j / 2] >> (4 * (j % 2))) & 15;
        Scales::signed::<16>(u, 0.125 * u.half(b, 0), std::array::from_fn(|j| (2 * s(j) + 1) as i8))
    }

    const PLANES: [usize; 4] = [64, 16, 2, 0];
    const GPU_TABLE: &'static [u32] = &grids::words::<1024, 512>(&grids::IQ2_S);
    const WGSL: &'static str = include_str!("../../shaders/quant/iq2_s.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/iq2_s.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, s, d, _]: [&mut [u8]; 4]) {
        for g in 0..8 {
            q[8 * g..8 * g + 4].copy_from_slice(&b[2 + 4 * g..6 + 4 * g]);
            q[8 * g + 4..8 * g + 8].copy_from_slice(&b[34 + 4 * g..38 + 4 * g]);
            (s[2 * g], s[2 * g + 1]) = (b[66 + g], b[74 + g]);
        }
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 56.4, centre: 0.0 };

    const NO_QUANTISER: Option<&'static str> = Some(NEEDS_IMPORTANCE);

    fn quantize(_: &[f32], _: &[f32], _: &mut [u8]) {}
}

impl SignedWords for IQ2S {
    #[inline(always)]
    fn signed(b: &[u8], g: usize) -> ([u64; 4], u32) {
        let upper = usize::from(b[66 + g]);
        let point = |l: usize| GRID[usize::from(b[2 + 4 * g + l]) | ((upper >> (2 * l)) & 3) << 8];
        (std::array::from_fn(point), u32_at(b, 34 + 4 * g))
    }
}
