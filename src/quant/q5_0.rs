//! Q5_0: 32 weights in 22 bytes. `x = d * (q - 16)`, q in 0..32.
//!
//! Bytes: `d` f16; the fifth bits, weight `i` at bit `i` of a u32; 16 bytes of lower bits as in Q4_0.
//! GPU planes: lower bits (16 bytes a group, as in the file); fifth bits (4 bytes, see [`super::bits::bits`]); `d`
//! (2 bytes).

use super::{
    Layout,
    bits::{bits, from_bits, group, nibbles, put_f16, put_words, round_f16, u32_at},
    fit::{self, Signed},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    unpack::Unpack,
};

/// The format that this page describes.
pub struct Q5_0;

impl BlockFormat for Q5_0 {
    const LAYOUT: Layout = Layout { name: "Q5_0", ggml_id: 6, block: 32, bytes: 22 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 16;
    const LARGEST: u8 = 31;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((4, 1), PackedScales::Half));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.fifth_bits(of, u.nibbles(of, |_| 6), |b, _| u32_at(b, 2))
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::one(u.half(b, 0))
    }

    const PLANES: [usize; 4] = [16, 4, 2, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/q5_0.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/q5_0.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, h, d, _]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[6..]);
        put_words(h, 0, &[bits(from_bits(u32_at(b, 2)))]);
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 9.25, centre: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 32], &[f32; 32]) = (whole(x), whole(w));
        let d = round_f16(fit::scale::<Signed<16>, 32>(x, w, 0.08, 8));
        let q = fit::indices::<Signed<16>, 32>(x, d);
        put_f16(b, 0, d);
        put_words(b, 2, &[high_bits(&q)]);
        put_words(b, 6, &nibbles(group(&q)));
    }
}

/// The fifth bits of 5-bit quants, weight `i` at bit `i`.
#[inline(always)]
pub(super) fn high_bits(q: &[u8; 32]) -> u32 {
    q.iter().enumerate().fold(0, |h, (i, q)| h | (u32::from(q >> 4) << i))
}
