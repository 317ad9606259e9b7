//! AVX2, with or without AVX-VNNI.
//!
//! `vpmaddubsw` adds two products in 16 bits with saturation: 2 · 63 · 127 fits, 2 · 255 · 127 does not. With AVX2 alone,
//! codes of 8 bits are therefore multiplied by magnitude, with their signs moved to the activations (2 · 128 · 127 fits).
//! `vpdpbusd` of AVX-VNNI has no such limit.

use super::{Wide, kernels};
use std::arch::x86_64::*;

/// AVX2, FMA and F16C; and AVX-VNNI if `VNNI`.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool>;

kernels!(
    /// AVX2, FMA, F16C.
    avx2, super::Avx2<false>, "avx2,fma,f16c");
kernels!(
    /// These and AVX-VNNI.
    avx_vnni, super::Avx2<true>, "avx2,fma,f16c,avxvnni");

/// Functions whose body is an expression over intrinsics; the contract of `Wide` holds.
macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        // SAFETY: as the contract of `Wide` says: the features are there, pointers are valid.
        unsafe fn $name($($arg: $ty),*) $(-> $ret)? { unsafe { $body } }
    )*};
}

impl<const VNNI: bool> Wide for Avx2<VNNI> {
    type Bytes = __m256i;
    type Floats = __m256;

    const SIGNED: bool = !VNNI;

    functions! {
        fn load(p: *const u8) -> __m256i { _mm256_loadu_si256(p.cast()) }
        fn store(b: __m256i, p: *mut u8) { _mm256_storeu_si256(p.cast(), b) }
        fn nibbles(p: *const u8) -> __m256i {{
            let v = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()));
            _mm256_and_si256(_mm256_srlv_epi64(v, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15))
        }}
        fn field(b: __m256i, shift: usize, mask: u8) -> __m256i {{
            let v = _mm256_srl_epi64(b, _mm_cvtsi32_si128(shift as i32));
            _mm256_and_si256(v, _mm256_set1_epi8(mask as i8))
        }}
        fn lookup(table: &[u8; 16], nibbles: __m256i) -> __m256i {
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), nibbles)
        }
        fn fifth(p: *const u8, codes: __m256i) -> __m256i {{
            let word = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
            let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(word, byte), bit), bit);
            _mm256_or_si256(codes, _mm256_and_si256(set, _mm256_set1_epi8(16)))
        }}
        fn flip(b: __m256i) -> __m256i { _mm256_xor_si256(b, _mm256_set1_epi8(-128)) }
        fn half(p: *const u8) -> f32 {{
            let bits = p.cast::<u16>().read_unaligned();
            _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
        }}
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn halves(a: f32, b: f32) -> __m256 {
            _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_set1_ps(a)), _mm_set1_ps(b))
        }
        fn read(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
        fn twice(p: *const f32) -> [__m256; 2] {{
            let (a, b) = (_mm_loadu_ps(p), _mm_loadu_ps(p.add(4)));
            [
                _mm256_set_m128(_mm_unpackhi_ps(a, a), _mm_unpacklo_ps(a, a)),
                _mm256_set_m128(_mm_unpackhi_ps(b, b), _mm_unpacklo_ps(b, b)),
            ]
        }}
        fn write(x: __m256, p: *mut f32) { _mm256_storeu_ps(p, x) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn fnma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fnmadd_ps(a, b, c) }
        fn sum(x: __m256) -> f32 {{
            let v = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }}
    }

    #[inline(always)]
    unsafe fn join<const S: i32>(low: __m256i, high: __m256i) -> __m256i {
        // SAFETY: features by the contract of `Wide`. Bits that a byte would lose to its neighbour are 0.
        unsafe { _mm256_or_si256(low, _mm256_slli_epi16::<S>(high)) }
    }

    #[inline(always)]
    unsafe fn dot<const EIGHT: bool>(codes: __m256i, x: __m256i) -> __m256 {
        // SAFETY: features by the contract of `Wide`.
        unsafe {
            let sums = if VNNI {
                _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), codes, x)
            } else {
                _mm256_madd_epi16(pairs::<EIGHT>(codes, x), _mm256_set1_epi16(1))
            };
            _mm256_cvtepi32_ps(sums)
        }
    }

    #[inline(always)]
    unsafe fn dots<const T: usize, const STEPS: usize, const SUMS: usize>(
        codes: *const u8,
        x: [*const i8; T],
    ) -> [__m256; T] {
        // SAFETY: by the contract of `Wide`.
        unsafe {
            let four = |t: usize, i: usize| _mm256_set1_epi32(x[t].add(4 * i).cast::<i32>().read_unaligned());
            let mut totals = [_mm256_setzero_si256(); T];
            if VNNI {
                for i in 0..STEPS {
                    let w = Self::load(codes.add(64 * i));
                    for t in 0..T {
                        totals[t] = _mm256_dpbusd_avx_epi32(totals[t], w, four(t, i));
                    }
                }
                return totals.map(|v| _mm256_cvtepi32_ps(v));
            }
            let mut from = 0;
            while from < STEPS {
                let to = if from + SUMS < STEPS { from + SUMS } else { STEPS };
                let mut narrow = [_mm256_setzero_si256(); T];
                for i in from..to {
                    let w = Self::load(codes.add(64 * i));
                    for t in 0..T {
                        let p = if SUMS == 1 { pairs::<true>(w, four(t, i)) } else { pairs::<false>(w, four(t, i)) };
                        narrow[t] = _mm256_add_epi16(narrow[t], p);
                    }
                }
                for t in 0..T {
                    let wide = _mm256_madd_epi16(narrow[t], _mm256_set1_epi16(1));
                    totals[t] = _mm256_add_epi32(totals[t], wide);
                }
                from = to;
            }
            totals.map(|v| _mm256_cvtepi32_ps(v))
        }
    }
}

/// Sums of two products in 16 bits; of signed numbers if `SIGNED`, else of codes below 64 with signed numbers.
#[inline(always)]
unsafe fn pairs<const SIGNED: bool>(codes: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        if SIGNED {
            _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
        } else {
            _mm256_maddubs_epi16(codes, x)
        }
    }
}
