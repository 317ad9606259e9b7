//! Q5_1: 32 weights in 24 bytes. `x = d * q + m`, q in 0..32.
//!
//! Bytes: `d` f16; `m` f16; the fifth bits, weight `i` at bit `i` of a u32; 16 bytes of lower bits as in Q4_0.
//! GPU planes: lower bits (16 bytes a group, as in the file); fifth bits (4 bytes, see [`super::bits::bits`]); `d` and
//! `m` (4 bytes).

use super::{
    Layout, affine,
    bits::{bits, from_bits, group, nibbles, put_f16, put_words, round_f16, u32_at},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    q5_0::high_bits,
    unpack::Unpack,
};

/// The format that this page describes.
pub struct Q5_1;

impl BlockFormat for Q5_1 {
    const LAYOUT: Layout = Layout { name: "Q5_1", ggml_id: 7, block: 32, bytes: 24 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 0;
    const LARGEST: u8 = 31;
    const MINIMA: bool = true;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((4, 1), PackedScales::HalfMin));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.fifth_bits(of, u.nibbles(of, |_| 8), |b, _| u32_at(b, 4))
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::one_and_addend(u.half(b, 0), u.half(b, 2))
    }

    const PLANES: [usize; 4] = [16, 4, 4, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/q5_1.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/q5_1.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, h, dm, _]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[8..]);
        put_words(h, 0, &[bits(from_bits(u32_at(b, 4)))]);
        dm.copy_from_slice(&b[..4]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 9.23, centre: -15.5 };

    #[inline(always)]
    fn centre(b: &mut [u8], min: [u8; 2]) {
        b[2..4].copy_from_slice(&min);
    }

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 32], &[f32; 32]) = (whole(x), whole(w));
        let (d, m) = affine::scale_and_min(x, w, 31.0, false, 2.0, 6);
        let (d, m) = (round_f16(d), round_f16(-m));
        let q = affine::quants(x, d, -m, 31.0);
        put_f16(b, 0, d);
        put_f16(b, 2, m);
        put_words(b, 4, &[high_bits(&q)]);
        put_words(b, 8, &nibbles(group(&q)));
    }
}
