//! [`F32x16`] of AVX2 and AVX-512 registers.

use super::F32x16;
use std::arch::x86_64::*;

/// Two 256-bit registers.
#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

/// One 512-bit register.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

#[inline(always)]
unsafe fn round8(x: __m256) -> __m256 {
    // SAFETY: the features are there by the contract of `F32x16`.
    unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
}

#[inline(always)]
unsafe fn pow8(x: __m256, n: __m256) -> __m256 {
    // SAFETY: as above.
    unsafe {
        let e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(e)))
    }
}

/// Methods whose body is an expression over intrinsics; the features are there by the contract of `F32x16`.
macro_rules! methods {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        // SAFETY: as the contract of `F32x16` says: the features are there, pointers are valid.
        unsafe fn $name($($arg: $ty),*) $(-> $ret)? { unsafe { $body } }
    )*};
    ($(fn $name:ident(self $(, $arg:ident: $ty:ty)*) $(-> $ret:ty)? |$s:ident| { $body:expr })*) => {$(
        #[inline(always)]
        // SAFETY: as the contract of `F32x16` says: the features are there, pointers are valid.
        unsafe fn $name(self $(, $arg: $ty)*) $(-> $ret)? { let $s = self; unsafe { $body } }
    )*};
}

/// Sixteen integral values as integers of 16 bits; not-a-number becomes 0.
#[inline(always)]
unsafe fn words(s: Avx2) -> __m256i {
    // SAFETY: the features are there by the contract of `F32x16`.
    unsafe {
        let whole = |x| _mm256_cvtps_epi32(_mm256_and_ps(x, _mm256_cmp_ps::<_CMP_ORD_Q>(x, x)));
        _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(whole(s.0), whole(s.1)))
    }
}

impl F32x16 for Avx2 {
    type Ints = (__m256i, __m256i);

    methods! {
        fn splat(x: f32) -> Self { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        fn load(p: *const f32) -> Self { Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        fn load_f16(p: *const u16) -> Self {
            Avx2(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
        }
        fn load_bf16(p: *const u16) -> Self {{
            let wide = |p: *const u16| {
                let x = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
            };
            Avx2(wide(p), wide(p.add(8)))
        }}
        fn ints(x: i32) -> Self::Ints { (_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
        fn load_ints(p: *const i32) -> Self::Ints {
            (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast()))
        }
        fn widen_i8(p: *const i8) -> Self::Ints {{
            let wide = |p: *const i8| _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()));
            (wide(p), wide(p.add(16)))
        }}
        fn dot2(a: Self::Ints, b: Self::Ints, sum: Self::Ints) -> Self::Ints {{
            let dot = |a, b, sum| _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
            (dot(a.0, b.0, sum.0), dot(a.1, b.1, sum.1))
        }}
        fn from_ints(x: Self::Ints) -> Self { Avx2(_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1)) }
    }
    methods! {
        fn store(self, p: *mut f32) |s| {{ _mm256_storeu_ps(p, s.0); _mm256_storeu_ps(p.add(8), s.1) }}
        fn store_f16(self, p: *mut u16) |s| {{
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(s.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(s.1))
        }}
        fn store_i16(self, p: *mut i16) |s| { _mm256_storeu_si256(p.cast(), words(s)) }
        fn store_i8(self, p: *mut i8) |s| {{
            let words = words(s);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), _mm_packs_epi16(low, high))
        }}
        fn add(self, o: Self) -> Self |s| { Avx2(_mm256_add_ps(s.0, o.0), _mm256_add_ps(s.1, o.1)) }
        fn sub(self, o: Self) -> Self |s| { Avx2(_mm256_sub_ps(s.0, o.0), _mm256_sub_ps(s.1, o.1)) }
        fn mul(self, o: Self) -> Self |s| { Avx2(_mm256_mul_ps(s.0, o.0), _mm256_mul_ps(s.1, o.1)) }
        fn div(self, o: Self) -> Self |s| { Avx2(_mm256_div_ps(s.0, o.0), _mm256_div_ps(s.1, o.1)) }
        fn max(self, o: Self) -> Self |s| { Avx2(_mm256_max_ps(s.0, o.0), _mm256_max_ps(s.1, o.1)) }
        fn min(self, o: Self) -> Self |s| { Avx2(_mm256_min_ps(s.0, o.0), _mm256_min_ps(s.1, o.1)) }
        fn fma(self, m: Self, a: Self) -> Self |s| {
            Avx2(_mm256_fmadd_ps(s.0, m.0, a.0), _mm256_fmadd_ps(s.1, m.1, a.1))
        }
        fn round(self) -> Self |s| { Avx2(round8(s.0), round8(s.1)) }
        fn scale2(self, n: Self) -> Self |s| { Avx2(pow8(s.0, n.0), pow8(s.1, n.1)) }
        fn sum(self) -> f32 |s| { sum8(_mm256_add_ps(s.0, s.1)) }
        fn largest(self) -> f32 |s| {{
            let v = _mm256_max_ps(s.0, s.1);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }}
    }
}

/// The sum of the eight values of a register.
#[inline(always)]
pub unsafe fn sum8(v: __m256) -> f32 {
    // SAFETY: the caller has AVX.
    unsafe {
        let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
        _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
    }
}

impl F32x16 for Avx512 {
    type Ints = __m512i;
    const MANY_REGISTERS: bool = true;

    methods! {
        fn splat(x: f32) -> Self { Avx512(_mm512_set1_ps(x)) }
        fn load(p: *const f32) -> Self { Avx512(_mm512_loadu_ps(p)) }
        fn load_f16(p: *const u16) -> Self { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
        fn load_bf16(p: *const u16) -> Self {{
            let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)))
        }}
        fn ints(x: i32) -> Self::Ints { _mm512_set1_epi32(x) }
        fn load_ints(p: *const i32) -> Self::Ints { _mm512_loadu_si512(p.cast()) }
        fn widen_i8(p: *const i8) -> Self::Ints { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) }
        fn dot2(a: Self::Ints, b: Self::Ints, sum: Self::Ints) -> Self::Ints { _mm512_dpwssd_epi32(sum, a, b) }
        fn from_ints(x: Self::Ints) -> Self { Avx512(_mm512_cvtepi32_ps(x)) }
    }
    methods! {
        fn store(self, p: *mut f32) |s| { _mm512_storeu_ps(p, s.0) }
        fn store_f16(self, p: *mut u16) |s| {
            _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(s.0))
        }
        // Not-a-number becomes the least 32-bit number, whose last bytes are 0.
        fn store_i16(self, p: *mut i16) |s| { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(s.0))) }
        fn store_i8(self, p: *mut i8) |s| { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(s.0))) }
        fn add(self, o: Self) -> Self |s| { Avx512(_mm512_add_ps(s.0, o.0)) }
        fn sub(self, o: Self) -> Self |s| { Avx512(_mm512_sub_ps(s.0, o.0)) }
        fn mul(self, o: Self) -> Self |s| { Avx512(_mm512_mul_ps(s.0, o.0)) }
        fn div(self, o: Self) -> Self |s| { Avx512(_mm512_div_ps(s.0, o.0)) }
        fn max(self, o: Self) -> Self |s| { Avx512(_mm512_max_ps(s.0, o.0)) }
        fn min(self, o: Self) -> Self |s| { Avx512(_mm512_min_ps(s.0, o.0)) }
        fn fma(self, m: Self, a: Self) -> Self |s| { Avx512(_mm512_fmadd_ps(s.0, m.0, a.0)) }
        fn round(self) -> Self |s| { Avx512(_mm512_roundscale_ps::<0>(s.0)) }
        fn scale2(self, n: Self) -> Self |s| { Avx512(_mm512_scalef_ps(s.0, n.0)) }
        fn sum(self) -> f32 |s| { _mm512_reduce_add_ps(s.0) }
        fn largest(self) -> f32 |s| { _mm512_reduce_max_ps(s.0) }
    }
}
