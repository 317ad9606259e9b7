//! IQ4_NL: 32 weights in 18 bytes. `x = d * VALUES[q]`, q in 0..16: a table that is finer near zero.
//!
//! Bytes: `d` f16; 16 bytes of quants as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `d` (2 bytes).

use super::{
    bits::{bytes, f16_at, from_nibbles, group, nibbles, put_f16, put_words, round_f16},
    fit::{self, LANES, Levels},
};

/// The table, from `kvalues_iq4nl` in `ggml-common.h`.
pub const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// f32 from a block.
pub fn dequantize(b: &[u8; 18], y: &mut [f32; 32]) {
    let d = f16_at(b, 0);
    for (y, q) in y.iter_mut().zip(bytes(from_nibbles(b, 2))) {
        *y = d * f32::from(VALUES[usize::from(q)]);
    }
}

/// Splits a block into GPU planes: the same as Q4_0's.
pub use super::q4_0::pack;

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

/// A block from f32, with importances `w`.
#[inline(always)]
pub fn quantize(x: &[f32; 32], w: &[f32; 32], b: &mut [u8; 18]) {
    let d = round_f16(fit::scale::<Table, 32>(x, w, 0.15, 8));
    put_f16(b, 0, d);
    put_words(b, 2, &nibbles(group(&fit::indices::<Table, 32>(x, d))));
}
