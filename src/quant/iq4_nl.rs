//! IQ4_NL: 32 weights in 18 bytes. `x = d * VALUES[q]`, q in 0..16: a table that is finer near zero.
//!
//! Bytes: `d` f16; 16 bytes of quants as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `d` (2 bytes).

use super::{
    Layout,
    bits::{group, nibbles, put_f16, put_words, round_f16},
    fit::{self, LANES, Levels},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    unpack::Unpack,
};

/// The format that this page describes.
pub struct IQ4NL;

impl BlockFormat for IQ4NL {
    const LAYOUT: Layout = Layout { name: "IQ4_NL", ggml_id: 20, block: 32, bytes: 18 };
    const SUB_BLOCK: usize = 32;
    const TABLE: Option<&'static [u8; 16]> = Some(&TABLE);
    const OFFSET: u8 = 128;
    const LARGEST: u8 = 255;
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
    const WGSL: &'static str = include_str!("../../shaders/quant/iq4_nl.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/iq4_nl.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, d, ..]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[2..]);
        d.copy_from_slice(&b[..2]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 69.3, centre: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 32], &[f32; 32]) = (whole(x), whole(w));
        let d = round_f16(fit::scale::<Table, 32>(x, w, 0.15, 8));
        put_f16(b, 0, d);
        put_words(b, 2, &nibbles(group(&fit::indices::<Table, 32>(x, d))));
    }
}

/// The table, from `kvalues_iq4nl` in `ggml-common.h`.
const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The table plus 128: numbers without sign.
pub(super) const TABLE: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (VALUES[i] as i16 + 128) as u8;
        i += 1;
    }
    table
};

/// The table as levels of a fit.
#[derive(Clone, Copy)]
pub struct Table;

/// Between each entry and the next: the value halfway, and the difference.
const STEPS: [(f32, f32); 15] = {
    let mut steps = [(0.0, 0.0); 15];
    let mut i = 0;
    while i < 15 {
        let (a, b) = (VALUES[i] as f32, VALUES[i + 1] as f32);
        steps[i] = ((a + b) / 2.0, b - a);
        i += 1;
    }
    steps
};

impl Levels for Table {
    const ENDS: [f32; 2] = [VALUES[0] as f32, VALUES[15] as f32];

    #[inline(always)]
    fn level(v: f32) -> f32 {
        Self::levels([v; LANES])[0]
    }

    #[inline(always)]
    fn levels(v: [f32; LANES]) -> [f32; LANES] {
        // No search: each threshold passed adds a step, in all lanes at once.
        let mut level = [Self::ENDS[0]; LANES];
        for (middle, step) in STEPS {
            for l in 0..LANES {
                level[l] += if v[l] > middle { step } else { 0.0 };
            }
        }
        level
    }

    #[inline(always)]
    fn index(level: f32) -> u8 {
        VALUES.iter().skip(1).filter(|&&v| level >= f32::from(v)).count() as u8
    }
}
