//! NVFP4: 64 weights in 36 bytes, in 4 sub-blocks of 16. `x = s * VALUES[q]`, q in 0..16; the table is MXFP4's.
//!
//! NVIDIA, "Introducing NVFP4": E2M1 elements, and for 16 of them a scale with four bits of exponent and three of mantissa. As in ggml
//! the table holds twice the element's value, and the scale is halved; the scale 0x7f (NaN) is 0. Another scale for the whole matrix is
//! a tensor of its own.
//!
//! Bytes: 4 scales; 8 bytes of quants a sub-block, byte `j` holding weight `j` below and `j + 8` above.
//! GPU planes: quants (16 bytes a group, byte `j` holding weight `j` below and `j + 16` above); scales (4 bytes a block, as in the
//! file).

use super::{
    Layout,
    bits::{nibbles, put_words},
    format::{BlockFormat, PackedScales, Random, ScaleChoices, Scales},
    mxfp4::TABLE,
    unpack::{Portable, Unpack, Words},
};

/// The format that this page describes.
pub struct NVFP4;

impl BlockFormat for NVFP4 {
    const LAYOUT: Layout = Layout { name: "NVFP4", ggml_id: 40, block: 64, bytes: 36 };
    const SUB_BLOCK: usize = 16;
    const TABLE: Option<&'static [u8; 16]> = Some(&TABLE);
    const OFFSET: u8 = 12;
    const LARGEST: u8 = 24;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = None;

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.words::<Self>(of)
    }

    #[inline(always)]
    fn scales<U: Unpack>(_: U, b: &[u8]) -> Scales {
        Scales { s: std::array::from_fn(|j| if j < 4 { scale(b[j]) } else { 0.0 }), ..Scales::one(1.0) }
    }

    const PLANES: [usize; 4] = [32, 4, 0, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/nvfp4.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/nvfp4.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, s, ..]: [&mut [u8]; 4]) {
        for g in 0..2 {
            put_words(q, 16 * g, &nibbles(Self::quants(Portable, (b, g))));
        }
        s.copy_from_slice(&b[..4]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 1.0, centre: 0.0 };

    #[inline(always)]
    fn set_scales(b: &mut [u8], _: &ScaleChoices) {
        // Halved scales of 3 or 4 times 2^-10.
        b[..4].iter_mut().for_each(|s| *s = 3 + (*s & 1));
    }

    const NO_QUANTISER: Option<&'static str> =
        Some("its 8-bit scales want one of the whole matrix beside them; make an MXFP4 file here");

    fn quantize(_: &[f32], _: &[f32], _: &mut [u8]) {}
}

impl Words for NVFP4 {
    #[inline(always)]
    fn words(b: &[u8], g: usize) -> [u64; 4] {
        let low = |v: u64| v & 0x0f0f_0f0f_0f0f_0f0f;
        let half = |h: usize| u64::from_le_bytes(std::array::from_fn(|j| b[4 + 16 * g + 8 * h + j]));
        [low(half(0)), low(half(0) >> 4), low(half(1)), low(half(1) >> 4)]
    }
}

/// Half of the unsigned 8-bit float `e`.
#[inline(always)]
fn scale(e: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(e >> 3 & 15), u32::from(e & 7));
    let whole = if exponent > 0 { mantissa + 8 } else { mantissa };
    if e == 0x7f { 0.0 } else { whole as f32 * f32::from_bits((exponent.max(1) + 116) << 23) }
}
