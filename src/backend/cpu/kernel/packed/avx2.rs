//! AVX2, with or without AVX-VNNI: half a chunk a vector, eight rows in eight lanes.
//!
//! Without AVX-VNNI `vpmaddubsw` adds two products in 16 bits with saturation. So many steps are added in 16 bits as the format's
//! largest quants allow; quants of 8 bits are multiplied by magnitude, with their signs moved to the activations.

use super::multiply::{Vectors, packed_kernels};
use std::arch::x86_64::*;

packed_kernels!(avx2, super::Avx2<false>, Avx2, "avx2,fma,f16c", 1 2 4);
packed_kernels!(avx_vnni, super::Avx2<true>, AvxVnni, "avx2,fma,f16c,avxvnni", 1 2 4);

/// AVX2, FMA and F16C; and AVX-VNNI if `VNNI`.
#[derive(Clone, Copy)]
struct Avx2<const VNNI: bool>;

/// Sums of products.
#[derive(Clone, Copy)]
struct Sums {
    /// A sum of each row.
    wide: __m256i,
    /// Two sums of each row in 16 bits, which are not in `wide` yet.
    narrow: __m256i,
}

// Features and readable memory are what the methods' contract promises: that is what each SAFETY line here stands for.
impl<const VNNI: bool> Vectors for Avx2<VNNI> {
    type Ints = __m256i;
    type Floats = __m256;
    type Sums = Sums;
    const LANES: usize = 8;
    const SIGNED: bool = !VNNI;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256i {
        // SAFETY: by the contract; panels begin at lines.
        unsafe { _mm256_load_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn part(v: __m256i, from: usize, to: usize, mask: u8) -> __m256i {
        // SAFETY: by the contract.
        unsafe {
            // Counts are known where this is inlined, so these become shifts by an immediate.
            let moved = match from.cmp(&to) {
                std::cmp::Ordering::Equal => v,
                std::cmp::Ordering::Greater => _mm256_srl_epi16(v, _mm_cvtsi32_si128((from - to) as i32)),
                std::cmp::Ordering::Less => _mm256_sll_epi16(v, _mm_cvtsi32_si128((to - from) as i32)),
            };
            _mm256_and_si256(moved, _mm256_set1_epi8((mask << to) as i8))
        }
    }

    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: by the contract.
        unsafe { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], indices: __m256i) -> __m256i {
        // SAFETY: by the contract; the table has 16 bytes.
        unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), indices) }
    }

    #[inline(always)]
    unsafe fn flip(v: __m256i) -> __m256i {
        // SAFETY: by the contract.
        unsafe { _mm256_xor_si256(v, _mm256_set1_epi8(-128)) }
    }

    #[inline(always)]
    unsafe fn start(x: i32) -> Sums {
        // SAFETY: by the contract.
        unsafe { Sums { wide: _mm256_set1_epi32(x), narrow: _mm256_setzero_si256() } }
    }

    #[inline(always)]
    unsafe fn add<const EIGHT: bool>(sums: Sums, quants: __m256i, four: i32) -> Sums {
        // SAFETY: by the contract.
        unsafe {
            let x = _mm256_set1_epi32(four);
            if VNNI {
                return Sums { wide: _mm256_dpbusd_avx_epi32(sums.wide, quants, x), ..sums };
            }
            let products = if EIGHT {
                _mm256_maddubs_epi16(_mm256_abs_epi8(quants), _mm256_sign_epi8(x, quants))
            } else {
                _mm256_maddubs_epi16(quants, x)
            };
            Sums { narrow: _mm256_add_epi16(sums.narrow, products), ..sums }
        }
    }

    #[inline(always)]
    unsafe fn widen(sums: Sums) -> Sums {
        if VNNI {
            return sums;
        }
        // SAFETY: by the contract.
        unsafe {
            let four = _mm256_madd_epi16(sums.narrow, _mm256_set1_epi16(1));
            Sums { wide: _mm256_add_epi32(sums.wide, four), narrow: _mm256_setzero_si256() }
        }
    }

    #[inline(always)]
    unsafe fn finish(sums: Sums) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_cvtepi32_ps(sums.wide) }
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn whole(p: *const u8) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn signed(p: *const u8) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn nibbles(p: *const u8, from: i32) -> __m256 {
        // SAFETY: by the contract.
        unsafe {
            let v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let v = _mm256_and_si256(_mm256_srl_epi32(v, _mm_cvtsi32_si128(from)), _mm256_set1_epi32(15));
            _mm256_cvtepi32_ps(v)
        }
    }

    #[inline(always)]
    unsafe fn powers(p: *const u8) -> __m256 {
        // SAFETY: by the contract.
        unsafe {
            let e = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
            let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
            let small = _mm256_sllv_epi32(_mm256_set1_epi32(0x0020_0000), e);
            let is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
            _mm256_castsi256_ps(_mm256_blendv_epi8(normal, small, is_small))
        }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn fnma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: by the contract.
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn write(x: __m256, n: usize, to: *mut f32) {
        // SAFETY: by the contract; at most the first `n` are written.
        unsafe {
            if n >= 8 {
                return _mm256_storeu_ps(to, x);
            }
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lanes), x);
        }
    }
}
