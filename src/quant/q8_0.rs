//! Q8_0: 32 weights in 34 bytes. `x = d * q`, q in -128..128.
//!
//! Bytes: `d` f16; 32 signed quants.
//! GPU planes: quants (32 bytes a group, as in the file); `d` (2 bytes).

use super::{
    Layout,
    bits::put_f16,
    fit::reciprocal,
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    unpack::Unpack,
};

/// The format that this page describes.
pub struct Q8_0;

impl BlockFormat for Q8_0 {
    const LAYOUT: Layout = Layout { name: "Q8_0", ggml_id: 8, block: 32, bytes: 34 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 128;
    const LARGEST: u8 = 255;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((8, 0), PackedScales::Half));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.flip(u.load(of, |_| 2))
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::one(u.half(b, 0))
    }

    const PLANES: [usize; 4] = [32, 2, 0, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/q8_0.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/q8_0.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, d, ..]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[2..]);
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 73.9, centre: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], _: &[f32], b: &mut [u8]) {
        let x: &[f32; 32] = whole(x);
        let d = x.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        let inverse = reciprocal(d);
        put_f16(b, 0, d);
        for (b, x) in b[2..].iter_mut().zip(x) {
            // Halves away from zero. The magnitude is at most 127 (and a rounding), so the cast truncates in range.
            let v = x * inverse;
            *b = (v + 0.5f32.copysign(v)) as i8 as u8;
        }
    }
}
