//! IQ1_M: 256 weights in 56 bytes, in 16 sub-blocks of 16. `x = (d / 8 * (2 s + 1)) * (8 v + c)`, s in 0..8, c 1 or -1; eight weights at
//! a time are a point of IQ1_S's grid of -1, 0 and 1.
//!
//! Bytes: 32 with the lower eight bits of the points' numbers; a nibble for eight weights: the upper three bits, and whether `c` is -1;
//! four u16, each with `s` of four sub-blocks in three bits, and above them four of `d`'s bits (f16), the lowest first.
//! GPU planes: points' lower bits (4 bytes a group); upper bits and `c` (2 bytes a group); `s` and `d` (8 bytes a block); all as in the
//! file. The grid comes first.

use super::{
    Layout,
    bits::{f16_to_f32, u16_at},
    format::{BlockFormat, NEEDS_IMPORTANCE, PackedScales, Random, ScaleChoices, Scales},
    grids,
    iq1_s::GRID,
    unpack::{Unpack, Words},
};

/// The format that this page describes.
pub struct IQ1M;

impl BlockFormat for IQ1M {
    const LAYOUT: Layout = Layout { name: "IQ1_M", ggml_id: 29, block: 256, bytes: 56 };
    const SUB_BLOCK: usize = 16;
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
        let word = |i: usize| u16_at(b, 48 + 2 * i);
        let d = (0..4).fold(0, |d, i| d | (word(i) >> 12) << (4 * i));
        let s = |j: usize| word(j / 4) >> (3 * (j % 4)) & 7;
        Scales::signed::<16>(u, 0.125 * f16_to_f32(d), std::array::from_fn(|j| (2 * s(j) + 1) as i8))
    }

    const PLANES: [usize; 4] = [32, 16, 8, 0];
    const GPU_TABLE: &'static [u32] = &grids::words::<2048, 1024>(&grids::IQ1);
    const WGSL: &'static str = include_str!("../../shaders/quant/iq1_m.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/iq1_m.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, rest, s, _]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[..32]);
        rest.copy_from_slice(&b[32..48]);
        s.copy_from_slice(&b[48..]);
    }

    const RANDOM: Random = Random { scale_at: 48, rms: 7.2, centre: 0.0 };

    #[inline(always)]
    fn set_scales(b: &mut [u8], halves: &ScaleChoices) {
        let d = u16::from_le_bytes(halves[usize::from(b[48] & 15)].0);
        for i in 0..4 {
            b[49 + 2 * i] = b[49 + 2 * i] & 15 | ((d >> (4 * i) & 15) as u8) << 4;
        }
    }

    const NO_QUANTISER: Option<&'static str> = Some(NEEDS_IMPORTANCE);

    fn quantize(_: &[f32], _: &[f32], _: &mut [u8]) {}
}

impl Words for IQ1M {
    #[inline(always)]
    fn words(b: &[u8], g: usize) -> [u64; 4] {
        let nibble = |l: usize| b[32 + 2 * g + l / 2] >> (4 * (l % 2)) & 15;
        let point = |l: usize| GRID[usize::from(b[4 * g + l]) | usize::from(nibble(l) & 7) << 8];
        let more = |l: usize| if nibble(l) < 8 { 0x0202_0202_0202_0202 } else { 0 };
        std::array::from_fn(|l| point(l) | more(l))
    }
}
