//! TQ1_0: 256 weights in 54 bytes. `x = d * (q - 1)`, q in 0..3: five weights a byte.
//!
//! Bytes: 48 of five quants each, 4 of four, `d` f16. A byte is the fraction whose digits to base three are its quants, times 256 and
//! rounded up: quant `n` is the first digit of `3^n` times it. Quant `n` of byte `j` is weight `32 n + j` for `j` below 32, weight
//! `160 + 16 n + j - 32` below 48, and weight `240 + 4 n + j - 48` beyond.
//! GPU planes: bytes of five (48 a block, as in the file); bytes of four (4 a block, as in the file); `d` (2 bytes a block).

use super::{
    Layout,
    bits::{put_f16, u32_at},
    fit::reciprocal,
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    unpack::{Unpack, Words},
};

/// The format that this page describes.
pub struct TQ1_0;

impl BlockFormat for TQ1_0 {
    const LAYOUT: Layout = Layout { name: "TQ1_0", ggml_id: 34, block: 256, bytes: 54 };
    const SUB_BLOCK: usize = 32;
    const OFFSET: u8 = 1;
    const LARGEST: u8 = 2;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = None;

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.words::<Self>(of)
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::one(u.half(b, 52))
    }

    const PLANES: [usize; 4] = [48, 4, 2, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/tq1_0.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/tq1_0.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, four, d, _]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[..48]);
        four.copy_from_slice(&b[48..52]);
        d.copy_from_slice(&b[52..]);
    }

    const RANDOM: Random = Random { scale_at: 52, rms: 0.817, centre: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], _: &[f32], b: &mut [u8]) {
        let d = largest(x);
        let inverse = reciprocal(d);
        let mut digits = [0u32; 52];
        for (i, x) in x.iter().enumerate() {
            let (byte, n) = place(i);
            digits[byte] += u32::from(ternary(x * inverse)) * [81, 27, 9, 3, 1][n];
        }
        for (b, v) in b.iter_mut().zip(digits) {
            *b = (v * 256).div_ceil(243) as u8;
        }
        put_f16(b, 52, d);
    }
}

impl Words for TQ1_0 {
    #[inline(always)]
    fn words(b: &[u8], g: usize) -> [u64; 4] {
        let mut words = [0; 4];
        for (l, word) in words.iter_mut().enumerate() {
            *word = eight(b, 32 * g + 8 * l);
        }
        words
    }
}

/// The byte and the number in it of weight `i`.
#[inline(always)]
fn place(i: usize) -> (usize, usize) {
    match i {
        0..160 => (i % 32, i / 32),
        160..240 => (32 + i % 16, (i - 160) / 16),
        _ => (48 + i % 4, (i - 240) / 4),
    }
}

/// The quants of eight weights from weight `i` on, a multiple of 8.
#[inline(always)]
fn eight(b: &[u8], i: usize) -> u64 {
    let (byte, n) = place(i);
    if i < 240 {
        digits(u64::from_le_bytes(*whole(&b[byte..byte + 8])), n)
    } else {
        let four = u64::from(u32_at(b, byte));
        digits(four, n) | digits(four, n + 1) << 32
    }
}

/// Digit `n` of each of eight bytes.
#[inline(always)]
fn digits(bytes: u64, n: usize) -> u64 {
    const LOW: u64 = 0x00ff_00ff_00ff_00ff;
    // Bytes in lanes of 16 bits, which hold 255 times 81.
    let power = [1, 3, 9, 27, 81][n];
    let first = |v: u64| (((((v & LOW) * power) & LOW) * 3) >> 8) & LOW;
    first(bytes) | first(bytes >> 8) << 8
}

/// The largest magnitude.
#[inline(always)]
pub(super) fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |m, v| m.max(v.abs()))
}

/// The quant of a weight in units of the scale, -1 to 1; halves away from zero.
#[inline(always)]
pub(super) fn ternary(v: f32) -> u8 {
    ((v + 0.5f32.copysign(v)) as i8 + 1) as u8
}
