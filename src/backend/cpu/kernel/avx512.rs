//! Rows kernels with AVX-512 VNNI: 64 weights an instruction, 256 weights (a block of a k-quant, eight blocks of the others)
//! a turn. `vpdpbusd` multiplies codes without sign by activations with sign and adds groups of four; scales are applied to
//! its sixteen sums in f32, minima and offsets once a turn through the activations' sums.

use super::{
    Kernels, RowsJob, ask_ahead, by_format,
    formats::{FP4, IQ4, e8m0_half, iq4_xs_scales, q3_scales},
};
use crate::quant::DType;
use std::arch::x86_64::*;

pub fn kernels(dtype: DType) -> Kernels {
    by_format!(dtype, types, of)
}

fn of<F: Codes>() -> Kernels {
    let multiply = if F::FINE { super::panel::multiply::<true> } else { super::panel::multiply::<false> };
    let panel = Some(super::panel::Fill { fill: super::panel::fill::<F>, multiply, fine: F::FINE });
    Kernels { one: rows::<F, 1>, two: rows::<F, 2>, four: rows::<F, 4>, panel }
}

/// A format's codes and scales in registers. All functions need AVX-512 F, BW, VL and AVX2, F16C, and a pointer to as many
/// blocks as they read.
#[allow(clippy::missing_safety_doc)]
pub(super) trait Codes {
    /// Weights and bytes of a block.
    const BLOCK: usize;
    const BYTES: usize;
    /// Scales (and minima) are per 16 weights, not 32.
    const FINE: bool;
    /// Subtracted from every code.
    const OFFSET: f32;
    /// Blocks have minima.
    const MINIMA: bool;
    /// Codes of 256 weights, in order.
    unsafe fn codes(p: *const u8) -> [__m512i; 4];
    /// Scales of 256 weights: 8 in the lower half, or 16.
    unsafe fn scales(p: *const u8) -> __m512;
    /// Minima of 256 weights, like the scales.
    unsafe fn minima(p: *const u8) -> __m512;
    /// Codes of two blocks of 32 (formats of such blocks only).
    unsafe fn pair(a: *const u8, b: *const u8) -> __m512i;
    /// Scale and minimum of one block of 32 (formats of such blocks only).
    unsafe fn one(p: *const u8) -> (f32, f32);
}

/// Safety: see [`super::RowsKernel`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn rows<F: Codes, const T: usize>(job: &RowsJob<T>) {
    let turn_bytes = 256 / F::BLOCK * F::BYTES;
    let spread = spreads(F::FINE);
    let doubled = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    let whole = job.cols / 256;
    for r in 0..job.rows {
        // SAFETY: row r exists, has `cols` weights, and the activations have as many codes and the scales to match; the
        // prefetch may name any address.
        unsafe {
            let row = job.weights.add(r * job.row_bytes);
            let mut sums = [[_mm512_setzero_ps(); 4]; T];
            let mut lows = [_mm512_setzero_ps(); T];
            for b in 0..whole {
                let p = row.add(b * turn_bytes);
                for line in 0..turn_bytes.div_ceil(64) {
                    ask_ahead(p.wrapping_add(64 * line));
                }
                let codes = F::codes(p);
                let scales = F::scales(p);
                let minima = if F::MINIMA { F::minima(p) } else { scales };
                for t in 0..T {
                    let act = &job.acts[t];
                    let x_scales = _mm512_castps256_ps512(_mm256_loadu_ps(act.scales.add(8 * b)));
                    let (x_scales, x_sums) = if F::FINE {
                        (_mm512_permutexvar_ps(doubled, x_scales), _mm512_loadu_ps(act.sums16.add(16 * b)))
                    } else {
                        (x_scales, _mm512_zextps256_ps512(_mm256_loadu_ps(act.sums32.add(8 * b))))
                    };
                    let both = _mm512_mul_ps(scales, x_scales);
                    for i in 0..4 {
                        let x = _mm512_loadu_si512(act.codes.add(256 * b + 64 * i).cast());
                        let dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[i], x);
                        let k = if T == 1 { i } else { i & 1 };
                        sums[t][k] = _mm512_fmadd_ps(
                            _mm512_cvtepi32_ps(dot),
                            _mm512_permutexvar_ps(spread[i], both),
                            sums[t][k],
                        );
                    }
                    if F::MINIMA || F::OFFSET != 0.0 {
                        lows[t] = _mm512_fmadd_ps(minima, x_sums, lows[t]);
                    }
                }
            }
            if F::BLOCK == 32 && job.cols % 256 != 0 {
                tail::<F, T>(job, row, &mut sums, &mut lows);
            }
            let factor = _mm512_set1_ps(if F::MINIMA { 1.0 } else { F::OFFSET });
            for t in 0..T {
                let [a, b, c, d] = sums[t];
                let sum = _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d));
                *job.out.add(t * job.stride + r) = _mm512_reduce_add_ps(_mm512_fnmadd_ps(lows[t], factor, sum));
            }
        }
    }
}

/// The last weights of a row that is no multiple of 256: blocks of 32, two at a time.
#[inline(always)]
unsafe fn tail<F: Codes, const T: usize>(
    job: &RowsJob<T>,
    row: *const u8,
    sums: &mut [[__m512; 4]; T],
    lows: &mut [__m512; T],
) {
    let blocks = job.cols / 32;
    let mut b = job.cols / 256 * 8;
    while b < blocks {
        // SAFETY: block b exists; where b + 1 does not, block b stands in for it with a scale of 0, and the activations'
        // codes go on to the next multiple of 64.
        unsafe {
            let p = row.add(b * F::BYTES);
            let second = b + 1 < blocks;
            let q = if second { p.add(F::BYTES) } else { p };
            let codes = F::pair(p, q);
            let (s0, m0) = F::one(p);
            let (s1, m1) = if second { F::one(q) } else { (0.0, 0.0) };
            for t in 0..T {
                let act = &job.acts[t];
                let x = _mm512_loadu_si512(act.codes.add(32 * b).cast());
                let dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, x));
                let (x0, x1) = (*act.scales.add(b), if second { *act.scales.add(b + 1) } else { 0.0 });
                let both = _mm512_insertf32x8::<1>(_mm512_set1_ps(s0 * x0), _mm256_set1_ps(s1 * x1));
                sums[t][0] = _mm512_fmadd_ps(dot, both, sums[t][0]);
                let (u0, u1) = (*act.sums32.add(b), if second { *act.sums32.add(b + 1) } else { 0.0 });
                let low = if F::MINIMA { m0 * u0 + m1 * u1 } else { s0 * u0 + s1 * u1 };
                lows[t] = _mm512_add_ps(lows[t], _mm512_zextps128_ps512(_mm_set_ss(low)));
            }
        }
        b += 2;
    }
}

/// For each 64 of 256 weights, which scale each of the sixteen sums takes.
#[inline(always)]
fn spreads(fine: bool) -> [__m512i; 4] {
    let of = |i: i32, lane: i32| if fine { 4 * i + lane / 4 } else { 2 * i + lane / 8 };
    let table: [[i32; 16]; 4] = std::array::from_fn(|i| std::array::from_fn(|lane| of(i as i32, lane as i32)));
    // SAFETY: same size, any bits are valid.
    table.map(|t| unsafe { std::mem::transmute::<[i32; 16], __m512i>(t) })
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

/// 16 bytes at `a` twice, then 16 bytes at `b` twice.
#[inline(always)]
unsafe fn twice(a: *const u8, b: *const u8) -> __m512i {
    // SAFETY: the caller's pointers are readable; features by the contract of `Codes`.
    unsafe { _mm512_inserti64x4::<1>(_mm512_broadcast_i32x4(load128(a)), _mm256_broadcastsi128_si256(load128(b))) }
}

/// Nibbles of two blocks of 16 bytes: 16 low, 16 high, 16 low, 16 high.
#[inline(always)]
unsafe fn nibbles(a: *const u8, b: *const u8) -> __m512i {
    // SAFETY: as `twice`.
    unsafe {
        let shift = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
        _mm512_and_si512(_mm512_srlv_epi64(twice(a, b), shift), _mm512_set1_epi8(15))
    }
}

/// 32 bytes at `p` shifted right by `low`, then by `high`, and masked.
#[inline(always)]
unsafe fn fields(p: *const u8, low: i64, high: i64, mask: i8) -> __m512i {
    // SAFETY: as `twice`.
    unsafe {
        let v = _mm512_broadcast_i64x4(load256(p));
        let shift = _mm512_setr_epi64(low, low, low, low, high, high, high, high);
        _mm512_and_si512(_mm512_srlv_epi64(v, shift), _mm512_set1_epi8(mask))
    }
}

/// A lookup of 64 nibbles in a table of 16.
#[inline(always)]
unsafe fn lookup(table: &[u8; 16], nibbles: __m512i) -> __m512i {
    // SAFETY: features by the contract of `Codes`.
    unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(load128(table.as_ptr())), nibbles) }
}

/// Eight half-precision numbers, `step` bytes apart.
#[inline(always)]
unsafe fn halves(p: *const u8, step: usize) -> __m512 {
    // SAFETY: the caller's blocks are readable.
    unsafe {
        let at = |i: usize| p.add(i * step).cast::<i16>().read_unaligned();
        let v = _mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
        _mm512_zextps256_ps512(_mm256_cvtph_ps(v))
    }
}

/// Four 64-bit words of fifth bits spread to bit 4 of codes.
#[inline(always)]
unsafe fn fifth(codes: __m512i, a: *const u8, b: *const u8) -> __m512i {
    // SAFETY: the caller's pointers are readable for 4 bytes.
    unsafe {
        let bits = u64::from(a.cast::<u32>().read_unaligned()) | u64::from(b.cast::<u32>().read_unaligned()) << 32;
        _mm512_mask_add_epi8(codes, bits, codes, _mm512_set1_epi8(16))
    }
}

/// The half-precision number at byte `at`.
#[inline(always)]
unsafe fn half(p: *const u8, at: usize) -> f32 {
    // SAFETY: the caller's block is readable; features by the contract of `Codes`.
    unsafe {
        let bits = p.add(at).cast::<u16>().read_unaligned();
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
    }
}

/// Scale and minimum of a k-quant with 6-bit pairs (Q4_K, Q5_K): 8 scales, then 8 minima, as numbers.
#[inline(always)]
unsafe fn k_scales(p: *const u8) -> (__m512, __m512) {
    // SAFETY: the caller's block is readable; features by the contract of `Codes`.
    unsafe {
        let word = |i: usize| p.add(4 + 4 * i).cast::<u32>().read_unaligned();
        let (a, b, c) = (word(0), word(1), word(2));
        let low = 0x3f3f_3f3f;
        let scales = (a & low) as u64 | (((c & 0x0f0f_0f0f) | (a >> 2 & 0x3030_3030)) as u64) << 32;
        let minima = (b & low) as u64 | (((c >> 4 & 0x0f0f_0f0f) | (b >> 2 & 0x3030_3030)) as u64) << 32;
        let (d, dmin) = (_mm256_set1_ps(half(p, 0)), _mm256_set1_ps(half(p, 2)));
        (
            _mm512_zextps256_ps512(_mm256_mul_ps(eight(scales), d)),
            _mm512_zextps256_ps512(_mm256_mul_ps(eight(minima), dmin)),
        )
    }
}

/// The bytes of a word as numbers.
#[inline(always)]
unsafe fn eight(v: u64) -> __m256 {
    // SAFETY: features by the contract of `Codes`.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(v as i64))) }
}

mod types {
    use super::*;

    /// A format of blocks of 32 with half-precision scale (and minimum).
    macro_rules! block32 {
        ($name:ident, $bytes:literal, $offset:literal, $minima:literal, |$a:ident, $b:ident| $pair:expr) => {
            block32!($name, $bytes, $offset, $minima, |$a, $b| $pair, |p| halves(p, $bytes), |p| half(p, 0));
        };
        ($name:ident, $bytes:literal, $offset:literal, $minima:literal, |$a:ident, $b:ident| $pair:expr,
         |$p:ident| $scales:expr, |$q:ident| $scale:expr) => {
            pub struct $name;
            // SAFETY (all functions): the contract of `Codes`: features are there, blocks are readable.
            impl Codes for $name {
                const BLOCK: usize = 32;
                const BYTES: usize = $bytes;
                const FINE: bool = false;
                const OFFSET: f32 = $offset;
                const MINIMA: bool = $minima;
                #[inline(always)]
                unsafe fn codes(p: *const u8) -> [__m512i; 4] {
                    // SAFETY: eight blocks are readable.
                    unsafe {
                        [
                            Self::pair(p, p.add($bytes)),
                            Self::pair(p.add(2 * $bytes), p.add(3 * $bytes)),
                            Self::pair(p.add(4 * $bytes), p.add(5 * $bytes)),
                            Self::pair(p.add(6 * $bytes), p.add(7 * $bytes)),
                        ]
                    }
                }
                #[inline(always)]
                unsafe fn scales($p: *const u8) -> __m512 {
                    // SAFETY: eight blocks are readable.
                    unsafe { $scales }
                }
                #[inline(always)]
                unsafe fn minima(p: *const u8) -> __m512 {
                    // SAFETY: eight blocks are readable; formats with minima have them at byte 2, to be added.
                    unsafe { _mm512_sub_ps(_mm512_setzero_ps(), halves(p.add(2), $bytes)) }
                }
                #[inline(always)]
                unsafe fn pair($a: *const u8, $b: *const u8) -> __m512i {
                    // SAFETY: both blocks are readable.
                    unsafe { $pair }
                }
                #[inline(always)]
                unsafe fn one($q: *const u8) -> (f32, f32) {
                    // SAFETY: the block is readable.
                    unsafe { ($scale, if $minima { -half($q, 2) } else { 0.0 }) }
                }
            }
        };
    }

    block32!(Q4_0, 18, 8.0, false, |a, b| nibbles(a.add(2), b.add(2)));
    block32!(Q4_1, 20, 0.0, true, |a, b| nibbles(a.add(4), b.add(4)));
    block32!(Q5_0, 22, 16.0, false, |a, b| fifth(nibbles(a.add(6), b.add(6)), a.add(2), b.add(2)));
    block32!(Q5_1, 24, 0.0, true, |a, b| fifth(nibbles(a.add(8), b.add(8)), a.add(4), b.add(4)));
    block32!(Q8_0, 34, 128.0, false, |a, b| {
        let v = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(load256(a.add(2))), load256(b.add(2)));
        _mm512_xor_si512(v, _mm512_set1_epi8(-128))
    });
    block32!(Iq4Nl, 18, 128.0, false, |a, b| lookup(&IQ4, nibbles(a.add(2), b.add(2))));
    block32!(
        Mxfp4,
        17,
        12.0,
        false,
        |a, b| lookup(&FP4, nibbles(a.add(1), b.add(1))),
        |p| {
            let s: [f32; 8] = std::array::from_fn(|i| e8m0_half(*p.add(17 * i)));
            _mm512_zextps256_ps512(_mm256_loadu_ps(s.as_ptr()))
        },
        |p| e8m0_half(*p)
    );

    /// A format of blocks of 256.
    macro_rules! block256 {
        ($name:ident, $bytes:literal, fine $fine:literal, offset $offset:literal, minima $minima:literal,
         |$p:ident| $codes:expr, $scales:expr, $mins:expr) => {
            pub struct $name;
            impl Codes for $name {
                const BLOCK: usize = 256;
                const BYTES: usize = $bytes;
                const FINE: bool = $fine;
                const OFFSET: f32 = $offset;
                const MINIMA: bool = $minima;
                #[inline(always)]
                unsafe fn codes($p: *const u8) -> [__m512i; 4] {
                    // SAFETY: the block is readable.
                    unsafe { $codes }
                }
                #[inline(always)]
                unsafe fn scales($p: *const u8) -> __m512 {
                    // SAFETY: the block is readable.
                    unsafe { $scales }
                }
                #[inline(always)]
                #[allow(unused_variables)]
                unsafe fn minima($p: *const u8) -> __m512 {
                    // SAFETY: the block is readable.
                    unsafe { $mins }
                }
                #[inline(always)]
                unsafe fn pair(a: *const u8, _: *const u8) -> __m512i {
                    // SAFETY: the block is readable. Never called: rows of this format are whole turns.
                    unsafe { Self::codes(a)[0] }
                }
                #[inline(always)]
                unsafe fn one(_: *const u8) -> (f32, f32) {
                    (0.0, 0.0)
                }
            }
        };
    }

    /// The block as a slice, for the portable scale decoders.
    #[inline(always)]
    unsafe fn bytes<'a>(p: *const u8, at: usize, len: usize) -> &'a [u8] {
        // SAFETY: the caller's block is readable.
        unsafe { std::slice::from_raw_parts(p.add(at), len) }
    }

    /// Sixteen small whole numbers times `d`.
    #[inline(always)]
    unsafe fn scaled(v: __m128i, d: f32) -> __m512 {
        // SAFETY: features by the contract of `Codes`.
        unsafe { _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)), _mm512_set1_ps(d)) }
    }

    /// 64 codes of Q5_K: nibbles at byte `at`, fifth bits `low` and `low + 1`.
    #[inline(always)]
    unsafe fn q5(p: *const u8, at: usize, low: i64) -> __m512i {
        // SAFETY: the caller's block is readable; features by the contract of `Codes`.
        unsafe {
            let high = _mm512_slli_epi16::<4>(fields(p.add(16), low, low + 1, 1));
            _mm512_or_si512(fields(p.add(at), 0, 4, 15), high)
        }
    }

    /// 64 codes of Q6_K: of half `h`, the low (`shift` 0) or high (4) nibbles and their two high bits.
    #[inline(always)]
    unsafe fn q6(p: *const u8, h: usize, shift: i64) -> __m512i {
        // SAFETY: as `q5`.
        unsafe {
            let v = _mm512_loadu_si512(p.add(64 * h).cast());
            let low = _mm512_and_si512(_mm512_srlv_epi64(v, _mm512_set1_epi64(shift)), _mm512_set1_epi8(15));
            _mm512_or_si512(low, _mm512_slli_epi16::<4>(fields(p.add(128 + 32 * h), shift, shift + 2, 3)))
        }
    }

    /// 64 codes of Q3_K: two bits from `low` on at byte `at`, third bits `bit` and `bit + 1`.
    #[inline(always)]
    unsafe fn q3(p: *const u8, at: usize, low: i64, bit: i64) -> __m512i {
        // SAFETY: as `q5`.
        unsafe {
            let high = _mm512_slli_epi16::<2>(fields(p, bit, bit + 1, 1));
            _mm512_or_si512(fields(p.add(at), low, low + 2, 3), high)
        }
    }

    block256!(Q4K, 144, fine false, offset 0.0, minima true,
        |p| [fields(p.add(16), 0, 4, 15), fields(p.add(48), 0, 4, 15), fields(p.add(80), 0, 4, 15), fields(p.add(112), 0, 4, 15)],
        k_scales(p).0, k_scales(p).1);

    block256!(Q5K, 176, fine false, offset 0.0, minima true,
        |p| [q5(p, 48, 0), q5(p, 80, 2), q5(p, 112, 4), q5(p, 144, 6)],
        k_scales(p).0, k_scales(p).1);

    block256!(Q6K, 210, fine true, offset 32.0, minima false,
        |p| [q6(p, 0, 0), q6(p, 0, 4), q6(p, 1, 0), q6(p, 1, 4)],
        scaled(load128(p.add(192)), half(p, 208)), _mm512_setzero_ps());

    block256!(Q2K, 84, fine true, offset 0.0, minima true,
        |p| [fields(p.add(16), 0, 2, 3), fields(p.add(16), 4, 6, 3), fields(p.add(48), 0, 2, 3), fields(p.add(48), 4, 6, 3)],
        scaled(_mm_and_si128(load128(p), _mm_set1_epi8(15)), half(p, 80)),
        scaled(_mm_and_si128(_mm_srli_epi16::<4>(load128(p)), _mm_set1_epi8(15)), half(p, 82)));

    block256!(Q3K, 110, fine true, offset 4.0, minima false,
        |p| [q3(p, 32, 0, 0), q3(p, 32, 4, 2), q3(p, 64, 0, 4), q3(p, 64, 4, 6)],
        {
            let s = q3_scales(bytes(p, 96, 12));
            scaled(load128(s.as_ptr().cast()), half(p, 108))
        },
        _mm512_setzero_ps());

    block256!(Iq4Xs, 136, fine false, offset 128.0, minima false,
        |p| [
            lookup(&IQ4, nibbles(p.add(8), p.add(24))),
            lookup(&IQ4, nibbles(p.add(40), p.add(56))),
            lookup(&IQ4, nibbles(p.add(72), p.add(88))),
            lookup(&IQ4, nibbles(p.add(104), p.add(120))),
        ],
        {
            let s = iq4_xs_scales(bytes(p, 0, 8));
            let v = _mm_loadl_epi64(s.as_ptr().cast());
            let x = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
            _mm512_zextps256_ps512(_mm256_mul_ps(x, _mm256_set1_ps(half(p, 0))))
        },
        _mm512_setzero_ps());
}
