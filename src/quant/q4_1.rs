//! Q4_1: 32 weights in 20 bytes. `x = d * q + m`, q in 0..16.
//!
//! Bytes: `d` f16; `m` f16; 16 bytes of quants as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `d` and `m` (4 bytes).

use super::{
    Layout, affine,
    bits::{group, nibbles, put_f16, put_words, round_f16},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    unpack::Unpack,
};

/// The format that this page describes.
pub struct Q4_1;

impl BlockFormat for Q4_1 {
    const LAYOUT: Layout = Layout { name: "Q4_1", ggml_id: 3, block: 32, bytes: 20 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 0;
    const LARGEST: u8 = 15;
    const MINIMA: bool = true;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((4, 0), PackedScales::HalfMin));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.nibbles(of, |_| 4)
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::one_and_addend(u.half(b, 0), u.half(b, 2))
    }

    const PLANES: [usize; 4] = [16, 4, 0, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/q4_1.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/q4_1.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, dm, ..]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[4..]);
        dm.copy_from_slice(&b[..4]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 4.61, centre: -7.5 };

    #[inline(always)]
    fn centre(b: &mut [u8], min: [u8; 2]) {
        b[2..4].copy_from_slice(&min);
    }

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 32], &[f32; 32]) = (whole(x), whole(w));
        let (d, m) = affine::scale_and_min(x, w, 15.0, false, 2.0, 6);
        let (d, m) = (round_f16(d), round_f16(-m));
        put_f16(b, 0, d);
        put_f16(b, 2, m);
        put_words(b, 4, &nibbles(group(&affine::quants(x, d, -m, 15.0))));
    }
}
