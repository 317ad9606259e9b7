//! MXFP4: 32 weights in 17 bytes. `x = 2^(e - 128) * VALUES[q]`, q in 0..16.
//!
//! Open Compute Project, "OCP Microscaling Formats (MX) Specification v1.0": an 8-bit exponent (E8M0) a block, and E2M1
//! elements. As in ggml the table holds twice the element's value and the scale is half of 2^(e - 127), so that the
//! table is of integers; `e = 255` (NaN in the specification) is 2^127.
//!
//! Bytes: `e`; 16 bytes of quants as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `e` (1 byte).

use super::{
    Layout,
    bits::{group, nibbles, put_words},
    fit::{LANES, totals},
    format::{BlockFormat, PackedScales, Random, ScaleChoices, Scales, whole},
    unpack::Unpack,
};

/// The format that this page describes.
pub struct MXFP4;

impl BlockFormat for MXFP4 {
    const LAYOUT: Layout = Layout { name: "MXFP4", ggml_id: 39, block: 32, bytes: 17 };
    const SUB_BLOCK: usize = 32;
    const TABLE: Option<&'static [u8; 16]> = Some(&TABLE);
    const OFFSET: u8 = 12;
    const LARGEST: u8 = 24;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((4, 0), PackedScales::Power));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.nibbles(of, |_| 1)
    }

    #[inline(always)]
    fn scales<U: Unpack>(_: U, b: &[u8]) -> Scales {
        Scales::one(scale(b[0]))
    }

    const PLANES: [usize; 4] = [16, 1, 0, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/mxfp4.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/mxfp4.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, e, ..]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[1..]);
        e[0] = b[0];
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 1.0, centre: 0.0 };

    #[inline(always)]
    fn set_scales(b: &mut [u8], _: &ScaleChoices) {
        // 2^(e - 127) is 2^-8 or 2^-7.
        b[0] = 119 + (b[0] & 1);
    }

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 32], &[f32; 32]) = (whole(x), whole(w));
        let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        // floor(log2) of a normal number; two less puts it between 4 and 8 (of the elements, 8 and 16 of the table).
        let e = ((largest.to_bits() >> 23) as i32 - 2).clamp(3, 252) as u8;
        let (mut best, mut least) = (e, f32::INFINITY);
        for e in [e, e + 1, e - 1] {
            let error = error(x, w, e);
            if error < least {
                (best, least) = (e, error);
            }
        }
        let inverse = 1.0 / scale(best);
        let q = x.map(|x| {
            let v = x.abs() * inverse;
            let i = STEPS.iter().filter(|s| v > s.0).count() as u8;
            if x < 0.0 && i > 0 { i | 8 } else { i }
        });
        b[0] = if largest == 0.0 { 0 } else { best };
        put_words(b, 1, &nibbles(group(&q)));
    }
}

/// Twice the E2M1 values.
const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The table plus 12: numbers without sign.
pub(super) const TABLE: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (VALUES[i] + 12) as u8;
        i += 1;
    }
    table
};

/// `2^(e - 128)`; denormal for e < 2.
#[inline]
pub(crate) fn scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Between each magnitude and the next: the value halfway, and the difference.
const STEPS: [(f32, f32); 7] = [(0.5, 1.0), (1.5, 1.0), (2.5, 1.0), (3.5, 1.0), (5.0, 2.0), (7.0, 2.0), (10.0, 4.0)];

/// The squared error of `x` at exponent `e`, 2..=253.
#[inline(always)]
fn error(x: &[f32; 32], w: &[f32; 32], e: u8) -> f32 {
    let (d, inverse) = (scale(e), 1.0 / scale(e));
    let mut sum = [0f32; LANES];
    for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
        for l in 0..LANES {
            let v = x[l].abs() * inverse;
            let level = STEPS.iter().fold(0.0, |y, &(middle, step)| y + if v > middle { step } else { 0.0 });
            let e = x[l].abs() - level * d;
            sum[l] += w[l] * e * e;
        }
    }
    totals(&[sum])[0]
}
