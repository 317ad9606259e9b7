//! The quantised formats in one form: `w = scale · code − minimum` with codes of 8 bits without sign, and scales and minima
//! per 16 weights. Plain Rust; the SIMD levels have their own unpacking and are tested against this.
//!
//! Bit layouts are ggml's (`ggml-common.h`), described on the pages of [`crate::quant`]. A format's constant offset (8 of
//! Q4_0, 32 of Q6_K, 128 of formats with signed codes) is part of the minimum here.

use half::f16;

/// A format as blocks of codes.
pub trait Format {
    /// Weights in a block.
    const BLOCK: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Unpacks one block: `BLOCK` codes, `BLOCK / 16` scales and minima.
    fn unpack(block: &[u8], codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]);
}

/// The half-precision number at byte `at`.
#[inline(always)]
pub fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// The scale of an MXFP4 block: half of `2^(e − 127)`, because the codebook holds doubled values (OCP Microscaling v1.0).
#[inline(always)]
pub fn e8m0_half(e: u8) -> f32 {
    // 2^(e - 128) is subnormal for e below 2.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Codebook of IQ4_NL and IQ4_XS (`kvalues_iq4nl`), plus 128.
pub const IQ4: [u8; 16] = {
    let signed: [i16; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
    let mut out = [0u8; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = (signed[i] + 128) as u8;
        i += 1;
    }
    out
};

/// Codebook of MXFP4 (twice the E2M1 values), plus 12.
pub const FP4: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// The eight 6-bit scales and minima of a Q4_K or Q5_K block.
#[inline(always)]
pub fn k_scales(s: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = s[j] & 63;
        mins[j] = s[j + 4] & 63;
        scales[j + 4] = (s[j + 8] & 15) | (s[j] >> 6 << 4);
        mins[j + 4] = (s[j + 8] >> 4) | (s[j + 4] >> 6 << 4);
    }
    (scales, mins)
}

/// The sixteen scales of a Q3_K block, 6 bits each, minus 32.
#[inline(always)]
pub fn q3_scales(s: &[u8]) -> [i8; 16] {
    std::array::from_fn(|j| {
        let low = if j < 8 { s[j] & 15 } else { s[j - 8] >> 4 };
        let high = s[8 + j % 4] >> (2 * (j / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The eight scales of an IQ4_XS block, 6 bits each, minus 32; `b` is the whole block.
#[inline(always)]
pub fn iq4_xs_scales(b: &[u8]) -> [i8; 8] {
    let high = u16::from_le_bytes([b[2], b[3]]);
    std::array::from_fn(|j| {
        let low = b[4 + j / 2] >> (4 * (j % 2)) & 15;
        (low | ((high >> (2 * j) & 3) as u8) << 4) as i8 - 32
    })
}

/// Nibbles of 16 bytes as 32 codes: low nibbles first.
#[inline(always)]
pub fn nibbles(q: &[u8], codes: &mut [u8]) {
    let (low, high) = codes[..32].split_at_mut(16);
    for ((q, l), h) in q[..16].iter().zip(low).zip(high) {
        (*l, *h) = (q & 15, q >> 4);
    }
}

/// Sets bit 4 of 32 codes from the bits of a word.
#[inline(always)]
fn fifth_bits(q: &[u8], codes: &mut [u8]) {
    for (i, c) in codes.iter_mut().enumerate().take(32) {
        *c |= (q[i / 8] >> (i % 8) & 1) << 4;
    }
}

macro_rules! format {
    ($name:ident, $block:literal, $bytes:literal, |$b:ident, $codes:ident, $scales:ident, $mins:ident| $body:block) => {
        #[doc = concat!("`", stringify!($name), "`.")]
        pub struct $name;
        impl Format for $name {
            const BLOCK: usize = $block;
            const BYTES: usize = $bytes;
            #[inline(always)]
            fn unpack($b: &[u8], $codes: &mut [u8], $scales: &mut [f32], $mins: &mut [f32]) $body
        }
    };
}

format!(Q4_0, 32, 18, |b, codes, scales, mins| {
    let d = half_at(b, 0);
    nibbles(&b[2..18], codes);
    scales.fill(d);
    mins.fill(8.0 * d);
});

format!(Q4_1, 32, 20, |b, codes, scales, mins| {
    nibbles(&b[4..20], codes);
    scales.fill(half_at(b, 0));
    mins.fill(-half_at(b, 2));
});

format!(Q5_0, 32, 22, |b, codes, scales, mins| {
    let d = half_at(b, 0);
    nibbles(&b[6..22], codes);
    fifth_bits(&b[2..6], codes);
    scales.fill(d);
    mins.fill(16.0 * d);
});

format!(Q5_1, 32, 24, |b, codes, scales, mins| {
    nibbles(&b[8..24], codes);
    fifth_bits(&b[4..8], codes);
    scales.fill(half_at(b, 0));
    mins.fill(-half_at(b, 2));
});

format!(Q8_0, 32, 34, |b, codes, scales, mins| {
    let d = half_at(b, 0);
    for (c, q) in codes.iter_mut().zip(&b[2..34]) {
        *c = q ^ 0x80;
    }
    scales.fill(d);
    mins.fill(128.0 * d);
});

format!(Iq4Nl, 32, 18, |b, codes, scales, mins| {
    let d = half_at(b, 0);
    nibbles(&b[2..18], codes);
    codes.iter_mut().take(32).for_each(|c| *c = IQ4[usize::from(*c)]);
    scales.fill(d);
    mins.fill(128.0 * d);
});

format!(Mxfp4, 32, 17, |b, codes, scales, mins| {
    let d = e8m0_half(b[0]);
    nibbles(&b[1..17], codes);
    codes.iter_mut().take(32).for_each(|c| *c = FP4[usize::from(*c)]);
    scales.fill(d);
    mins.fill(12.0 * d);
});

format!(Q2K, 256, 84, |b, codes, scales, mins| {
    let (d, dmin) = (half_at(b, 80), half_at(b, 82));
    for (i, c) in codes.iter_mut().enumerate().take(256) {
        *c = b[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    }
    for j in 0..16 {
        scales[j] = d * f32::from(b[j] & 15);
        mins[j] = dmin * f32::from(b[j] >> 4);
    }
});

format!(Q3K, 256, 110, |b, codes, scales, mins| {
    let d = half_at(b, 108);
    for (i, c) in codes.iter_mut().enumerate().take(256) {
        let low = b[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        let high = b[i % 32] >> (i / 32) & 1;
        *c = low | high << 2;
    }
    for (j, s) in q3_scales(&b[96..108]).into_iter().enumerate() {
        scales[j] = d * f32::from(s);
        mins[j] = 4.0 * scales[j];
    }
});

/// Scales and minima of Q4_K and Q5_K, spread over 16 weights each.
#[inline(always)]
fn k_minima(b: &[u8], scales: &mut [f32], mins: &mut [f32]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    let (s, m) = k_scales(&b[4..16]);
    for j in 0..16 {
        scales[j] = d * f32::from(s[j / 2]);
        mins[j] = dmin * f32::from(m[j / 2]);
    }
}

/// The four low bits of Q4_K and Q5_K: each 32 bytes hold two groups of 32.
#[inline(always)]
fn k_nibbles(q: &[u8], codes: &mut [u8]) {
    for (q, codes) in q.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        let (low, high) = codes.split_at_mut(32);
        for ((q, l), h) in q.iter().zip(low).zip(high) {
            (*l, *h) = (q & 15, q >> 4);
        }
    }
}

format!(Q4K, 256, 144, |b, codes, scales, mins| {
    k_minima(b, scales, mins);
    k_nibbles(&b[16..144], codes);
});

format!(Q5K, 256, 176, |b, codes, scales, mins| {
    k_minima(b, scales, mins);
    k_nibbles(&b[48..176], codes);
    for (j, codes) in codes[..256].chunks_exact_mut(32).enumerate() {
        for (c, h) in codes.iter_mut().zip(&b[16..48]) {
            *c |= (h >> j & 1) << 4;
        }
    }
});

format!(Q6K, 256, 210, |b, codes, scales, mins| {
    let d = half_at(b, 208);
    for (j, codes) in codes[..256].chunks_exact_mut(32).enumerate() {
        let (half, quarter) = (j / 4, j % 4);
        let low = &b[half * 64 + quarter % 2 * 32..][..32];
        let high = &b[128 + half * 32..][..32];
        for ((c, l), h) in codes.iter_mut().zip(low).zip(high) {
            *c = l >> (quarter / 2 * 4) & 15 | (h >> (quarter * 2) & 3) << 4;
        }
    }
    for j in 0..16 {
        scales[j] = d * f32::from(b[192 + j] as i8);
        mins[j] = 32.0 * scales[j];
    }
});

format!(Iq4Xs, 256, 136, |b, codes, scales, mins| {
    let d = half_at(b, 0);
    for (j, s) in iq4_xs_scales(b).into_iter().enumerate() {
        let group = &mut codes[32 * j..32 * j + 32];
        nibbles(&b[8 + 16 * j..24 + 16 * j], group);
        group.iter_mut().for_each(|c| *c = IQ4[usize::from(*c)]);
        let s = d * f32::from(s);
        scales[2 * j..2 * j + 2].fill(s);
        mins[2 * j..2 * j + 2].fill(128.0 * s);
    }
});
