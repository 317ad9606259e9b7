//! Q4_0: 32 weights in 18 bytes. `x = d * (q - 8)`, q in 0..16.
//!
//! Bytes: `d` f16; 16 bytes of quants, byte `j` holding weight `j` below and `j + 16` above.
//! GPU planes: quants (16 bytes a group, as in the file); `d` (2 bytes).

use super::{
    Layout,
    bits::{group, nibbles, put_f16, put_words, round_f16},
    fit::{self, Signed},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    unpack::Unpack,
};

/// The format that this page describes.
pub struct Q4_0;

impl BlockFormat for Q4_0 {
    const LAYOUT: Layout = Layout { name: "Q4_0", ggml_id: 2, block: 32, bytes: 18 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 8;
    const LARGEST: u8 = 15;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((4, 0), PackedScales::Half));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.nibbles(of, |_| 2)
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::one(u.half(b, 0))
    }

    const PLANES: [usize; 4] = [16, 2, 0, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/q4_0.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/q4_0.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, d, ..]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[2..]);
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 4.64, centre: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 32], &[f32; 32]) = (whole(x), whole(w));
        let d = round_f16(fit::scale::<Signed<8>, 32>(x, w, 0.15, 8));
        put_f16(b, 0, d);
        put_words(b, 2, &nibbles(group(&fit::indices::<Signed<8>, 32>(x, d))));
    }
}
