//! Rows kernels with AVX2: 32 weights an instruction, 256 weights a turn. `vpmaddubsw` and `vpmaddwd` make eight sums of four
//! products; scales are applied to them in f32, minima and offsets once a turn through the activations' sums.
//!
//! `vpmaddubsw` adds two products in 16 bits with saturation: 2 · 63 · 127 fits, 2 · 255 · 127 does not. Formats whose codes use
//! all 8 bits are therefore multiplied by magnitude, with their signs moved to the activations (2 · 128 · 127 fits).

use super::{
    Kernels, RowsJob, by_format,
    formats::{FP4, IQ4, e8m0_half, iq4_xs_scales, k_scales, q3_scales},
};
use crate::backend::cpu::act::ActRow;
use crate::quant::DType;
use std::arch::x86_64::*;

pub fn kernels(dtype: DType) -> Kernels {
    by_format!(dtype, types, of)
}

fn of<F: Codes>() -> Kernels {
    Kernels { one: rows::<F, 1>, two: rows::<F, 2>, four: rows::<F, 4>, panel: None }
}

/// A format's codes and scales. All functions need AVX2 and F16C, and a pointer to readable blocks.
#[allow(clippy::missing_safety_doc)]
trait Codes {
    /// Weights and bytes of a block.
    const BLOCK: usize;
    const BYTES: usize;
    /// Scales (and minima) are per 16 weights, not 32.
    const FINE: bool;
    /// Subtracted from every code; 128 means codes of 8 bits, which become signed numbers.
    const OFFSET: f32;
    /// Blocks have minima.
    const MINIMA: bool;
    /// Codes of the 32 weights of group `g` of the block, in order.
    unsafe fn group(p: *const u8, g: usize) -> __m256i;
    /// Scales and minima of a block: of its one group, or 8, or 16.
    unsafe fn scales(p: *const u8) -> ([f32; 16], [f32; 16]);
}

/// Safety: see [`super::RowsKernel`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<F: Codes, const T: usize>(job: &RowsJob<T>) {
    let signed = F::OFFSET == 128.0;
    let groups = F::BLOCK / 32;
    // Signed codes have no offset left.
    let low_factor = match () {
        () if F::MINIMA => 1.0,
        () if signed => 0.0,
        () => F::OFFSET,
    };
    for r in 0..job.rows {
        // SAFETY: row r exists and has `cols` weights, and the activations have as many codes and the scales to match; the
        // prefetch may name any address.
        unsafe {
            let row = job.weights.add(r * job.row_bytes);
            let mut sums = [[_mm256_setzero_ps(); 2]; T];
            let mut lows = [[_mm256_setzero_ps(); 2]; T];
            let mut single_lows = [0f32; T];
            for b in 0..job.cols / F::BLOCK {
                let p = row.add(b * F::BYTES);
                for line in 0..F::BYTES.div_ceil(64) {
                    _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(1536 + 64 * line).cast());
                }
                let (scales, minima) = F::scales(p);
                let low_of = if F::MINIMA { &minima } else { &scales };
                // Blocks of one group keep their scale in a register; others need a table.
                let (mut both, mut single) = ([[0f32; 16]; T], [0f32; T]);
                for t in 0..T {
                    let act = &job.acts[t];
                    if F::BLOCK == 32 {
                        single[t] = scales[0] * *act.scales.add(b);
                        single_lows[t] += low_of[0] * *act.sums32.add(b);
                    } else {
                        scaled::<F>(&scales, act, b, &mut both[t]);
                        low::<F>(low_of, act, b, &mut lows[t]);
                    }
                }
                for g in 0..groups {
                    let codes = F::group(p, g);
                    for t in 0..T {
                        let x = _mm256_loadu_si256(job.acts[t].codes.add(32 * (b * groups + g)).cast());
                        let pairs = if signed {
                            let w = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
                            _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                        } else {
                            _mm256_maddubs_epi16(codes, x)
                        };
                        let dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                        let scale = if F::BLOCK == 32 {
                            _mm256_set1_ps(single[t])
                        } else if F::FINE {
                            let (a, c) = (_mm_set1_ps(both[t][2 * g]), _mm_set1_ps(both[t][2 * g + 1]));
                            _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(a), c)
                        } else {
                            _mm256_set1_ps(both[t][g])
                        };
                        // An index known at compile time keeps the sums in registers.
                        sums[t][g & 1] = _mm256_fmadd_ps(dot, scale, sums[t][g & 1]);
                    }
                }
            }
            for t in 0..T {
                let single = _mm256_zextps128_ps256(_mm_set_ss(single_lows[t]));
                let low = _mm256_add_ps(_mm256_add_ps(lows[t][0], lows[t][1]), single);
                let low = _mm256_mul_ps(low, _mm256_set1_ps(low_factor));
                let v = _mm256_sub_ps(_mm256_add_ps(sums[t][0], sums[t][1]), low);
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                *job.out.add(t * job.stride + r) = _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
            }
        }
    }
}

/// The scales of block `b` (of 256 weights) times those of the activations.
#[inline(always)]
unsafe fn scaled<F: Codes>(scales: &[f32; 16], act: &ActRow, b: usize, both: &mut [f32; 16]) {
    // SAFETY: the activations have scales for every block; features by the contract of `Codes`.
    unsafe {
        let x = _mm256_loadu_ps(act.scales.add(8 * b));
        let (lower, upper) = if F::FINE {
            let (a, c) = (_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            (
                _mm256_set_m128(_mm_unpackhi_ps(a, a), _mm_unpacklo_ps(a, a)),
                _mm256_set_m128(_mm_unpackhi_ps(c, c), _mm_unpacklo_ps(c, c)),
            )
        } else {
            (x, _mm256_setzero_ps())
        };
        _mm256_storeu_ps(both.as_mut_ptr(), _mm256_mul_ps(_mm256_loadu_ps(scales.as_ptr()), lower));
        if F::FINE {
            _mm256_storeu_ps(both.as_mut_ptr().add(8), _mm256_mul_ps(_mm256_loadu_ps(scales.as_ptr().add(8)), upper));
        }
    }
}

/// Adds minima (or scales, of formats with an offset) times the activations' sums of block `b` of 256 weights.
#[inline(always)]
unsafe fn low<F: Codes>(minima: &[f32; 16], act: &ActRow, b: usize, lows: &mut [__m256; 2]) {
    // SAFETY: the activations have sums for every block; features by the contract of `Codes`.
    unsafe {
        let (m0, m1) = (_mm256_loadu_ps(minima.as_ptr()), _mm256_loadu_ps(minima.as_ptr().add(8)));
        if F::FINE {
            lows[0] = _mm256_fmadd_ps(m0, _mm256_loadu_ps(act.sums16.add(16 * b)), lows[0]);
            lows[1] = _mm256_fmadd_ps(m1, _mm256_loadu_ps(act.sums16.add(16 * b + 8)), lows[1]);
        } else {
            lows[0] = _mm256_fmadd_ps(m0, _mm256_loadu_ps(act.sums32.add(8 * b)), lows[0]);
        }
    }
}

// ---- pieces of formats ---------------------------------------------------------------------------------------------------

#[inline(always)]
unsafe fn load128(p: *const u8) -> __m128i {
    // SAFETY: the caller's pointer is readable.
    unsafe { _mm_loadu_si128(p.cast()) }
}

#[inline(always)]
unsafe fn load256(p: *const u8) -> __m256i {
    // SAFETY: the caller's pointer is readable.
    unsafe { _mm256_loadu_si256(p.cast()) }
}

#[inline(always)]
unsafe fn bytes<'a>(p: *const u8, at: usize, len: usize) -> &'a [u8] {
    // SAFETY: the caller's block is readable.
    unsafe { std::slice::from_raw_parts(p.add(at), len) }
}

#[inline(always)]
unsafe fn half(p: *const u8, at: usize) -> f32 {
    // SAFETY: the caller's block is readable.
    unsafe {
        let bits = p.add(at).cast::<u16>().read_unaligned();
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
    }
}

/// Nibbles of 16 bytes: 16 low, 16 high.
#[inline(always)]
unsafe fn nibbles(p: *const u8) -> __m256i {
    // SAFETY: the caller's pointer is readable; features by the contract of `Codes`.
    unsafe {
        let v = _mm256_broadcastsi128_si256(load128(p));
        _mm256_and_si256(_mm256_srlv_epi64(v, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15))
    }
}

/// 32 bytes at `p` shifted right and masked.
#[inline(always)]
unsafe fn fields(p: *const u8, shift: usize, mask: i8) -> __m256i {
    // SAFETY: as `nibbles`.
    unsafe {
        let v = _mm256_srl_epi64(load256(p), _mm_cvtsi32_si128(shift as i32));
        _mm256_and_si256(v, _mm256_set1_epi8(mask))
    }
}

#[inline(always)]
unsafe fn lookup(table: &[u8; 16], nibbles: __m256i) -> __m256i {
    // SAFETY: features by the contract of `Codes`.
    unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table.as_ptr())), nibbles) }
}

/// Bit i of the 32-bit word at `p` as bit 4 of code i.
#[inline(always)]
unsafe fn fifth(p: *const u8, codes: __m256i) -> __m256i {
    // SAFETY: the caller's pointer is readable for 4 bytes; features by the contract of `Codes`.
    unsafe {
        let word = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
        let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(word, byte), bit), bit);
        _mm256_or_si256(codes, _mm256_and_si256(set, _mm256_set1_epi8(16)))
    }
}

mod types {
    use super::*;

    macro_rules! format {
        ($name:ident, $block:literal, $bytes:literal, fine $fine:literal, offset $offset:literal, minima $minima:literal,
         |$p:ident, $g:ident| $group:expr, |$q:ident| $scales:expr) => {
            pub struct $name;
            impl Codes for $name {
                const BLOCK: usize = $block;
                const BYTES: usize = $bytes;
                const FINE: bool = $fine;
                const OFFSET: f32 = $offset;
                const MINIMA: bool = $minima;
                #[inline(always)]
                unsafe fn group($p: *const u8, $g: usize) -> __m256i {
                    // SAFETY: the block is readable; features by the contract of `Codes`.
                    unsafe { $group }
                }
                #[inline(always)]
                unsafe fn scales($q: *const u8) -> ([f32; 16], [f32; 16]) {
                    // SAFETY: as above.
                    unsafe { $scales }
                }
            }
        };
    }

    #[inline(always)]
    fn single(scale: f32, minimum: f32) -> ([f32; 16], [f32; 16]) {
        let (mut s, mut m) = ([0.0; 16], [0.0; 16]);
        (s[0], m[0]) = (scale, minimum);
        (s, m)
    }

    /// Scales of Q4_K and Q5_K.
    #[inline(always)]
    unsafe fn k(p: *const u8) -> ([f32; 16], [f32; 16]) {
        let (mut s, mut m) = ([0.0; 16], [0.0; 16]);
        // SAFETY: the caller's block is readable.
        unsafe {
            let (a, b) = k_scales(bytes(p, 4, 12));
            let (d, dmin) = (half(p, 0), half(p, 2));
            for j in 0..8 {
                s[j] = d * f32::from(a[j]);
                m[j] = dmin * f32::from(b[j]);
            }
        }
        (s, m)
    }

    #[inline(always)]
    fn plain(d: f32, whole: [i8; 16]) -> ([f32; 16], [f32; 16]) {
        (whole.map(|v| d * f32::from(v)), [0.0; 16])
    }

    format!(Q4_0, 32, 18, fine false, offset 8.0, minima false, |p, _g| nibbles(p.add(2)), |p| single(half(p, 0), 0.0));
    format!(Q4_1, 32, 20, fine false, offset 0.0, minima true, |p, _g| nibbles(p.add(4)), |p| single(half(p, 0), -half(p, 2)));
    format!(Q5_0, 32, 22, fine false, offset 16.0, minima false,
        |p, _g| fifth(p.add(2), nibbles(p.add(6))), |p| single(half(p, 0), 0.0));
    format!(Q5_1, 32, 24, fine false, offset 0.0, minima true,
        |p, _g| fifth(p.add(4), nibbles(p.add(8))), |p| single(half(p, 0), -half(p, 2)));
    format!(Q8_0, 32, 34, fine false, offset 128.0, minima false,
        |p, _g| _mm256_xor_si256(load256(p.add(2)), _mm256_set1_epi8(-128)), |p| single(half(p, 0), 0.0));
    format!(Iq4Nl, 32, 18, fine false, offset 128.0, minima false,
        |p, _g| lookup(&IQ4, nibbles(p.add(2))), |p| single(half(p, 0), 0.0));
    format!(Mxfp4, 32, 17, fine false, offset 12.0, minima false,
        |p, _g| lookup(&FP4, nibbles(p.add(1))), |p| single(e8m0_half(*p), 0.0));
    format!(Q4K, 256, 144, fine false, offset 0.0, minima true,
        |p, g| fields(p.add(16 + g / 2 * 32), g % 2 * 4, 15), |p| k(p));
    format!(Q5K, 256, 176, fine false, offset 0.0, minima true,
        |p, g| {
            let high = _mm256_slli_epi16::<4>(fields(p.add(16), g, 1));
            _mm256_or_si256(fields(p.add(48 + g / 2 * 32), g % 2 * 4, 15), high)
        },
        |p| k(p));
    format!(Q6K, 256, 210, fine true, offset 32.0, minima false,
        |p, g| {
            let (h, q) = (g / 4, g % 4);
            let high = _mm256_slli_epi16::<4>(fields(p.add(128 + 32 * h), 2 * q, 3));
            _mm256_or_si256(fields(p.add(64 * h + q % 2 * 32), q / 2 * 4, 15), high)
        },
        |p| plain(half(p, 208), p.add(192).cast::<[i8; 16]>().read_unaligned()));
    format!(Q2K, 256, 84, fine true, offset 0.0, minima true,
    |p, g| fields(p.add(16 + g / 4 * 32), g % 4 * 2, 3),
    |p| {
        let (d, dmin, s) = (half(p, 80), half(p, 82), bytes(p, 0, 16));
        (std::array::from_fn(|j| d * f32::from(s[j] & 15)), std::array::from_fn(|j| dmin * f32::from(s[j] >> 4)))
    });
    format!(Q3K, 256, 110, fine true, offset 4.0, minima false,
        |p, g| {
            let high = _mm256_slli_epi16::<2>(fields(p, g, 1));
            _mm256_or_si256(fields(p.add(32 + g / 4 * 32), g % 4 * 2, 3), high)
        },
        |p| plain(half(p, 108), q3_scales(bytes(p, 96, 12))));
    format!(Iq4Xs, 256, 136, fine false, offset 128.0, minima false,
    |p, g| lookup(&IQ4, nibbles(p.add(8 + 16 * g))),
    |p| {
        let (d, whole) = (half(p, 0), iq4_xs_scales(bytes(p, 0, 8)));
        let mut s = [0.0; 16];
        for j in 0..8 {
            s[j] = d * f32::from(whole[j]);
        }
        (s, [0.0; 16])
    });
}
