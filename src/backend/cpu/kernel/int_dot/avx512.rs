//! AVX-512 with VNNI: two groups a vector.

use super::{IntDot, kernels, x86::Avx2};
use crate::quant::unpack::Unpack;
use std::arch::x86_64::*;

/// AVX-512 F, BW, VL, DQ and VNNI, and AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx512(Avx2<false>);

kernels!(
    /// AVX-512 VNNI.
    avx512_vnni, super::Avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");

/// Unpacks a group as AVX2 does.
impl Unpack for Avx512 {
    type Bytes = __m256i;

    #[inline(always)]
    fn load(self, b: &[u8], at: usize) -> __m256i {
        self.0.load(b, at)
    }

    #[inline(always)]
    fn nibbles(self, b: &[u8], at: usize) -> __m256i {
        self.0.nibbles(b, at)
    }

    #[inline(always)]
    fn field(self, v: __m256i, shift: usize, mask: u8) -> __m256i {
        self.0.field(v, shift, mask)
    }

    #[inline(always)]
    fn join<const S: i32>(self, low: __m256i, high: __m256i) -> __m256i {
        self.0.join::<S>(low, high)
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], indices: __m256i) -> __m256i {
        self.0.lookup(table, indices)
    }

    #[inline(always)]
    fn fifth_bits(self, v: __m256i, bits: u32) -> __m256i {
        // SAFETY: a value of this type means that the features are there.
        unsafe { _mm256_mask_add_epi8(v, bits, v, _mm256_set1_epi8(16)) }
    }

    #[inline(always)]
    fn flip(self, v: __m256i) -> __m256i {
        self.0.flip(v)
    }

    #[inline(always)]
    fn words(self, w: [u64; 4]) -> __m256i {
        self.0.words(w)
    }

    #[inline(always)]
    fn signed(self, magnitudes: [u64; 4], signs: u32) -> __m256i {
        let v = self.words(magnitudes);
        // SAFETY: a value of this type means that the features are there.
        unsafe { self.flip(_mm256_mask_sub_epi8(v, signs, _mm256_setzero_si256(), v)) }
    }

    #[inline(always)]
    fn half(self, b: &[u8], at: usize) -> f32 {
        self.0.half(b, at)
    }
}

/// Functions whose body is an expression over intrinsics; the contract of `IntDot` holds.
macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        // SAFETY: as the contract of `IntDot` says: the features are there, pointers are valid.
        unsafe fn $name($($arg: $ty),*) $(-> $ret)? { unsafe { $body } }
    )*};
}

impl IntDot for Avx512 {
    type Quants = __m512i;
    type Floats = __m512;
    type Scales = __m512;

    const GROUPS: usize = 2;
    const TOKENS: usize = 8;
    const SIGNED: bool = false;

    functions! {
        fn new() -> Self { Avx512(Avx2::unchecked()) }
        fn store(b: __m256i, p: *mut u8) { _mm256_storeu_si256(p.cast(), b) }
        fn activations(p: *const i8) -> __m512i { _mm512_loadu_si512(p.cast()) }
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn read(p: *const f32) -> __m512 { _mm512_loadu_ps(p) }
        fn write(x: __m512, p: *mut f32) { _mm512_storeu_ps(p, x) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn fnma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fnmadd_ps(a, b, c) }
        fn sum(x: __m512) -> f32 { _mm512_reduce_add_ps(x) }
    }

    #[inline(always)]
    unsafe fn quants(first: __m256i, second: impl FnOnce() -> __m256i) -> __m512i {
        // SAFETY: features by the contract of `IntDot`.
        unsafe { _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second()) }
    }

    #[inline(always)]
    unsafe fn dot<const EIGHT: bool>(quants: __m512i, x: __m512i) -> __m512 {
        // SAFETY: features by the contract of `IntDot`.
        unsafe { _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), quants, x)) }
    }

    #[inline(always)]
    unsafe fn dots<const T: usize, const STEPS: usize, const SUMS: usize>(
        quants: *const u8,
        x: [*const i8; T],
    ) -> [__m512; T] {
        // SAFETY: by the contract of `IntDot`.
        unsafe {
            let mut totals = [_mm512_setzero_si512(); T];
            for i in 0..STEPS {
                let w = _mm512_loadu_si512(quants.add(64 * i).cast());
                for t in 0..T {
                    let four = x[t].add(4 * i).cast::<i32>().read_unaligned();
                    totals[t] = _mm512_dpbusd_epi32(totals[t], w, _mm512_set1_epi32(four));
                }
            }
            totals.map(|v| _mm512_cvtepi32_ps(v))
        }
    }

    /// A transpose of 16 × 16 words.
    #[inline(always)]
    unsafe fn interleave(from: *const u8, to: *mut u8) {
        // SAFETY: by the contract: 16 readable rows of 64 bytes, 1024 writable bytes.
        unsafe {
            let a: [__m512i; 16] = std::array::from_fn(|r| _mm512_loadu_si512(from.add(64 * r).cast()));
            // Words, then pairs of words, of four rows each: lane l of b[4 i + j] holds word 4 l + j of rows 4 i .. 4 i + 4.
            let mut b = a;
            for i in 0..4 {
                let [r0, r1, r2, r3] = [a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]];
                let (l01, h01) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
                let (l23, h23) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
                b[4 * i] = _mm512_unpacklo_epi64(l01, l23);
                b[4 * i + 1] = _mm512_unpackhi_epi64(l01, l23);
                b[4 * i + 2] = _mm512_unpacklo_epi64(h01, h23);
                b[4 * i + 3] = _mm512_unpackhi_epi64(h01, h23);
            }
            // Then a transpose of the 4 × 4 lanes: output word 4 l + j takes lane l of b[j], b[4 + j], b[8 + j], b[12 + j].
            for j in 0..4 {
                let (x, y, z, w) = (b[j], b[4 + j], b[8 + j], b[12 + j]);
                let (xy0, xy1) = (_mm512_shuffle_i32x4::<0x44>(x, y), _mm512_shuffle_i32x4::<0xee>(x, y));
                let (zw0, zw1) = (_mm512_shuffle_i32x4::<0x44>(z, w), _mm512_shuffle_i32x4::<0xee>(z, w));
                _mm512_storeu_si512(to.add(64 * j).cast(), _mm512_shuffle_i32x4::<0x88>(xy0, zw0));
                _mm512_storeu_si512(to.add(64 * (4 + j)).cast(), _mm512_shuffle_i32x4::<0xdd>(xy0, zw0));
                _mm512_storeu_si512(to.add(64 * (8 + j)).cast(), _mm512_shuffle_i32x4::<0x88>(xy1, zw1));
                _mm512_storeu_si512(to.add(64 * (12 + j)).cast(), _mm512_shuffle_i32x4::<0xdd>(xy1, zw1));
            }
        }
    }

    #[inline(always)]
    unsafe fn scales<const SUB16: bool>(s: &[f32; 16], x: *const f32) -> __m512 {
        // SAFETY: the caller's activations have 8 scales; features by the contract of `IntDot`.
        unsafe {
            let x = _mm512_zextps256_ps512(_mm256_loadu_ps(x));
            let doubled = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            let x = if SUB16 { _mm512_permutexvar_ps(doubled, x) } else { x };
            _mm512_mul_ps(_mm512_loadu_ps(s.as_ptr()), x)
        }
    }

    #[inline(always)]
    unsafe fn group_scales<const SUB16: bool>(s: &__m512, g: usize) -> __m512 {
        // SAFETY: features by the contract of `IntDot`.
        unsafe {
            let lanes = if SUB16 {
                _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
            } else {
                _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
            };
            let first = if SUB16 { 2 * g } else { g };
            _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(first as i32)), *s)
        }
    }

    #[inline(always)]
    unsafe fn lows<const SUB16: bool>(m: &[f32; 16], x: *const f32, sum: __m512) -> __m512 {
        // SAFETY: the caller's numbers are readable; features by the contract of `IntDot`.
        unsafe {
            let x = if SUB16 { _mm512_loadu_ps(x) } else { _mm512_zextps256_ps512(_mm256_loadu_ps(x)) };
            _mm512_fmadd_ps(_mm512_loadu_ps(m.as_ptr()), x, sum)
        }
    }
}
