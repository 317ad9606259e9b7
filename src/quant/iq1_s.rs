//! IQ1_S: 256 weights in 50 bytes, in 8 groups of 32. `x = (d / 8 * (2 s + 1)) * (8 v + c)`, s in 0..8, c 1 or -1; eight weights at a
//! time are a point of a grid of -1, 0 and 1.
//!
//! Bytes: `d` f16; 32 with the lower eight bits of the points' numbers; a u16 a group: the upper three bits of four points' numbers,
//! `s`, and whether `c` is -1.
//! GPU planes: points' lower bits (4 bytes a group, as in the file); the rest of a group (2 bytes, as in the file); `d` (2 bytes a
//! block). The grid comes first.

use super::{
    Layout,
    bits::u16_at,
    format::{BlockFormat, NEEDS_IMPORTANCE, PackedScales, Random, Scales},
    grids,
    unpack::{Unpack, Words},
};

/// The grid's points: eight values each, times 8, plus 8; as quants of the smaller `c`, which are 2 less than those of the larger.
pub(super) static GRID: [u64; 2048] = grids::eights(&grids::IQ1, [0, 8, 16]);

/// The format that this page describes.
pub struct IQ1S;

impl BlockFormat for IQ1S {
    const LAYOUT: Layout = Layout { name: "IQ1_S", ggml_id: 19, block: 256, bytes: 50 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 9;
    const LARGEST: u8 = 18;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = None;

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.words::<Self>(of)
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        let s = |g: usize| u16_at(b, 34 + 2 * g) >> 12 & 7;
        Scales::signed::<8>(u, 0.125 * u.half(b, 0), std::array::from_fn(|g| (2 * s(g) + 1) as i8))
    }

    const PLANES: [usize; 4] = [32, 16, 2, 0];
    const GPU_TABLE: &'static [u32] = &grids::words::<2048, 1024>(&grids::IQ1);
    const WGSL: &'static str = include_str!("../../shaders/quant/iq1_s.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/iq1_s.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, rest, d, _]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[2..34]);
        rest.copy_from_slice(&b[34..]);
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 7.2, centre: 0.0 };

    const NO_QUANTISER: Option<&'static str> = Some(NEEDS_IMPORTANCE);

    fn quantize(_: &[f32], _: &[f32], _: &mut [u8]) {}
}

impl Words for IQ1S {
    #[inline(always)]
    fn words(b: &[u8], g: usize) -> [u64; 4] {
        let rest = u16_at(b, 34 + 2 * g);
        let more = if rest < 0x8000 { 0x0202_0202_0202_0202 } else { 0 };
        let upper = |l: usize| usize::from(rest >> (3 * l) & 7) << 8;
        std::array::from_fn(|l| GRID[usize::from(b[2 + 4 * g + l]) | upper(l)] | more)
    }
}
