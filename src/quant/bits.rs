//! Bit tricks that the formats share: f16 to f32, and a group's 32 small integers from and to packed words.
//!
//! A *group* is 32 consecutive weights of a row. The packed forms are those of the GPU layout (see [`super::gpu`]): in
//! each, shifting a word and masking it gives the quants of four consecutive weights in the four bytes of a word, which
//! is what integer dot products take. The functions here work on such words too, four weights at a time.

/// The f32 of an IEEE half, exact for every input (NaN stays NaN). Branch-free, so that loops over it vectorise.
#[inline]
pub fn f16_to_f32(h: u16) -> f32 {
    let (sign, em) = ((u32::from(h) & 0x8000) << 16, u32::from(h) & 0x7fff);
    // Normal: move the exponent's bias from 15 to 127. Infinity and NaN: all exponent bits set.
    let rebias = if em >= 0x7c00 { 224 << 23 } else { 112 << 23 };
    let normal = (em << 13) + rebias;
    // Below 2^-14 the value is em * 2^-24, exact in f32.
    let small = (em as f32 * f32::from_bits(103 << 23)).to_bits();
    f32::from_bits(sign | if em < 0x400 { small } else { normal })
}

/// The little-endian u16 at byte `at` of `b`.
#[inline]
pub fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

/// The little-endian u32 at byte `at` of `b`.
#[inline]
pub fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

/// The bytes of a word, each below 64, less 32.
#[inline(always)]
pub fn less_32(v: u64) -> [i8; 8] {
    // 96 more and the highest bit inverted is 32 less, and nothing carries.
    bytemuck::cast(((v + 0x6060_6060_6060_6060) ^ 0x8080_8080_8080_8080).to_le_bytes())
}

/// Writes the half nearest to `v` at byte `at` of `b`.
#[inline]
pub fn put_f16(b: &mut [u8], at: usize, v: f32) {
    b[at..at + 2].copy_from_slice(&half::f16::from_f32(v).to_le_bytes());
}

/// `v` rounded to the nearest half.
#[inline]
pub fn round_f16(v: f32) -> f32 {
    f16_to_f32(half::f16::from_f32(v).to_bits())
}

/// Writes `words`, little-endian, at byte `at` of `b`.
#[inline]
pub fn put_words(b: &mut [u8], at: usize, words: &[u32]) {
    for (o, w) in b[at..at + 4 * words.len()].chunks_exact_mut(4).zip(words) {
        o.copy_from_slice(&w.to_le_bytes());
    }
}

/// The 32 quants of a group, a byte each: word `a` holds those of weights `4a .. 4a + 4`, the first in its lowest byte.
pub type Group = [u32; 8];

/// The quants as bytes.
#[inline(always)]
pub fn bytes(q: Group) -> [u8; 32] {
    let mut b = [0; 32];
    put_words(&mut b, 0, &q);
    b
}

/// A group from bytes.
#[inline(always)]
pub fn group(q: &[u8; 32]) -> Group {
    group_at(q, 0)
}

/// A group from the bytes at `at` of `b`.
#[inline(always)]
pub fn group_at(b: &[u8], at: usize) -> Group {
    let b = &b[at..at + 32];
    std::array::from_fn(|a| u32_at(b, 4 * a))
}

/// Four bits a weight: byte `j` holds weight `j` below and weight `j + 16` above, as ggml's 32-weight blocks do.
///
/// Bits above the fourth are dropped.
#[inline(always)]
pub fn nibbles(q: Group) -> [u32; 4] {
    std::array::from_fn(|a| (q[a] & 0x0f0f_0f0f) | ((q[a + 4] & 0x0f0f_0f0f) << 4))
}

/// The inverse of [`nibbles`], from the 16 bytes at `at` of `b`.
#[inline(always)]
pub fn from_nibbles(b: &[u8], at: usize) -> Group {
    let b = &b[at..at + 16];
    std::array::from_fn(|a| (u32_at(b, 4 * (a % 4)) >> (4 * (a / 4))) & 0x0f0f_0f0f)
}

/// Two bits a weight: weight `16h + 4a + b` lies in word `h` at bit `8b + 2a`.
#[inline(always)]
pub fn pairs(q: Group) -> [u32; 2] {
    let w = q.map(|w| w & 0x0303_0303);
    std::array::from_fn(|h| w[4 * h] | (w[4 * h + 1] << 2) | (w[4 * h + 2] << 4) | (w[4 * h + 3] << 6))
}

/// One bit a weight: weight `4a + b` lies at bit `8b + a`.
#[inline(always)]
pub fn bits(q: Group) -> u32 {
    q.iter().enumerate().fold(0, |m, (a, w)| m | ((w & 0x0101_0101) << a))
}

/// The 32 signs, a bit each, of four times seven signs, of which each eighth is such that their number is even; in the lower 28 bits of
/// a word. As in ggml's `ksigns_iq2xs`.
#[inline(always)]
pub fn even_signs(sevens: u32) -> u32 {
    let byte = |l: u32| (sevens & (0x7f << (7 * l))) << l;
    let seven = byte(0) | byte(1) | byte(2) | byte(3);
    // Bit 0 of every byte becomes the parity of that byte; what comes from its neighbour stays above it.
    let parity = seven ^ (seven >> 4);
    let parity = parity ^ (parity >> 2);
    let parity = (parity ^ (parity >> 1)) & 0x0101_0101;
    seven | (parity << 7)
}

/// A group of single bits from a word that has weight `i` at bit `i`, as ggml's Q5_0 and Q5_1 blocks have.
#[inline(always)]
pub fn from_bits(h: u32) -> Group {
    // The product copies a nibble's bit b to bit 8b (and elsewhere; no two copies meet, so nothing carries).
    std::array::from_fn(|a| (((h >> (4 * a)) & 15) * 0x0020_4081) & 0x0101_0101)
}
