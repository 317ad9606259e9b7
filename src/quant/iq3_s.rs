//! IQ3_S: 256 weights in 110 bytes, in 8 groups of 32. `x = (d * (2 s + 1)) * v`, s in 0..16; four weights at a time are a point of a
//! grid (odd magnitudes, 1 to 15) with signs.
//!
//! Bytes: `d` f16; 64 with the lower eight bits of the points' numbers; 8 with the ninth bits, a byte a group; 32 of signs, a bit a
//! weight; 4 of `s`, group `g` in nibble `g % 2` of byte `g / 2`.
//! GPU planes: points' lower bits (8 bytes a group, as in the file); signs (4 bytes a group, as in the file); ninth bits and `s` (2 bytes
//! a group; 4 % more than the file's); `d` (2 bytes a block). The grid comes first.

use super::{
    Layout,
    bits::u32_at,
    format::{BlockFormat, PackedScales, Random, Scales},
    grids,
    unpack::Unpack,
};

/// The grid's points: four magnitudes each.
static GRID: [u32; 512] = grids::fours(&grids::IQ3_S, [1, 3, 5, 7, 9, 11, 13, 15]);

/// The format that this page describes.
pub struct IQ3S;

impl BlockFormat for IQ3S {
    const LAYOUT: Layout = Layout { name: "IQ3_S", ggml_id: 21, block: 256, bytes: 110 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 128;
    const LARGEST: u8 = 255;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = None;

    #[inline(always)]
    fn quants<U: Unpack>(u: U, b: &[u8], g: usize) -> U::Bytes {
        let ninth = usize::from(b[66 + g]);
        let point = |i: usize| u64::from(GRID[usize::from(b[2 + 8 * g + i]) | ((ninth >> i) & 1) << 8]);
        let points = std::array::from_fn(|l| point(2 * l) | point(2 * l + 1) << 32);
        u.signed(points, u32_at(b, 74 + 4 * g))
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::signed::<8>(u.half(b, 0), std::array::from_fn(|g| (2 * scale(b, g) + 1) as i8))
    }

    const PLANES: [usize; 4] = [64, 32, 16, 2];
    const GPU_TABLE: &'static [u32] = &grids::words::<512, 256>(&grids::IQ3_S);
    const WGSL: &'static str = include_str!("../../shaders/quant/iq3_s.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/iq3_s.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, signs, s, d]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[2..66]);
        signs.copy_from_slice(&b[74..106]);
        for g in 0..8 {
            (s[2 * g], s[2 * g + 1]) = (b[66 + g], scale(b, g));
        }
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 140.2, centre: 0.0 };

    const NO_QUANTISER: Option<&'static str> = Some("its search over the grid is not written yet");

    fn quantize(_: &[f32], _: &[f32], _: &mut [u8]) {}
}

/// The scale of group `g`, 0..16.
#[inline(always)]
fn scale(b: &[u8], g: usize) -> u8 {
    (b[106 + g / 2] >> (4 * (g % 2))) & 15
}
