//! AVX-512 VNNI: a chunk a vector, sixteen rows in sixteen lanes.

use super::multiply::{Vectors, packed_kernels};
use std::arch::x86_64::*;

packed_kernels!(avx512_vnni, super::Avx512, Avx512Vnni, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c", 1 2 4 8);

#[derive(Clone, Copy)]
struct Avx512;

// Features and readable memory are what the methods' contract promises: that is what each SAFETY line here stands for.
impl Vectors for Avx512 {
    type Ints = __m512i;
    type Floats = __m512;
    type Sums = __m512i;
    const LANES: usize = 16;
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        // SAFETY: by the contract; panels begin at lines.
        unsafe { _mm512_load_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn part(v: __m512i, from: usize, to: usize, mask: u8) -> __m512i {
        // SAFETY: by the contract.
        unsafe {
            // Counts are known where this is inlined, so these become shifts by an immediate.
            let moved = match from.cmp(&to) {
                std::cmp::Ordering::Equal => v,
                std::cmp::Ordering::Greater => _mm512_srl_epi16(v, _mm_cvtsi32_si128((from - to) as i32)),
                std::cmp::Ordering::Less => _mm512_sll_epi16(v, _mm_cvtsi32_si128((to - from) as i32)),
            };
            _mm512_and_si512(moved, _mm512_set1_epi8((mask << to) as i8))
        }
    }

    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: by the contract.
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], indices: __m512i) -> __m512i {
        // SAFETY: by the contract; the table has 16 bytes.
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), indices) }
    }

    #[inline(always)]
    unsafe fn flip(v: __m512i) -> __m512i {
        // SAFETY: by the contract.
        unsafe { _mm512_xor_si512(v, _mm512_set1_epi8(-128)) }
    }

    #[inline(always)]
    unsafe fn start(x: i32) -> __m512i {
        // SAFETY: by the contract.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn add<const EIGHT: bool>(sums: __m512i, quants: __m512i, four: i32) -> __m512i {
        // SAFETY: by the contract.
        unsafe { _mm512_dpbusd_epi32(sums, quants, _mm512_set1_epi32(four)) }
    }

    #[inline(always)]
    unsafe fn widen(sums: __m512i) -> __m512i {
        sums
    }

    #[inline(always)]
    unsafe fn finish(sums: __m512i) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_cvtepi32_ps(sums) }
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn whole(p: *const u8) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn signed(p: *const u8) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn nibbles(p: *const u8, from: i32) -> __m512 {
        // SAFETY: by the contract.
        unsafe {
            let v = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let v = _mm512_and_si512(_mm512_srl_epi32(v, _mm_cvtsi32_si128(from)), _mm512_set1_epi32(15));
            _mm512_cvtepi32_ps(v)
        }
    }

    #[inline(always)]
    unsafe fn powers(p: *const u8) -> __m512 {
        // SAFETY: by the contract.
        unsafe {
            let e = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
            let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
            let is_small = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2));
            _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, is_small, small))
        }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn fnma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: by the contract.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn write(x: __m512, n: usize, to: *mut f32) {
        // SAFETY: by the contract; nothing is written where the mask is 0.
        unsafe { _mm512_mask_storeu_ps(to, ((1u32 << n) - 1) as u16, x) }
    }
}
