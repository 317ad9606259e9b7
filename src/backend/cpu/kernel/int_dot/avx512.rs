//! AVX-512 with VNNI: two groups a vector.

use super::{
    IntDot, kernels,
    x86::{Avx2, part, vector},
};
use crate::quant::unpack::{InBlock, SignedWords, Unpack, Words};
use std::arch::x86_64::*;

/// AVX-512 F, BW, VL, DQ and VNNI, and AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx512(Avx2<false>);

kernels!(
    /// AVX-512 VNNI.
    avx512_vnni, super::Avx512, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c");

impl Unpack for Avx512 {
    type Bytes = __m512i;
    type Groups<'a> = [InBlock<'a>; 2];

    #[inline(always)]
    fn groups<'a>(self, first: InBlock<'a>, second: InBlock<'a>) -> [InBlock<'a>; 2] {
        [first, second]
    }

    /// Of the same bytes twice, or of 64 neighbours, the compiler makes one load.
    #[inline(always)]
    fn load(self, [a, b]: [InBlock<'_>; 2], at: impl Fn(usize) -> usize) -> __m512i {
        let (p, q) = (part::<32>(a.0, at(a.1)), part::<32>(b.0, at(b.1)));
        // SAFETY: a value of this type means that the features are there, here and below.
        unsafe { join(_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(q.cast())) }
    }

    #[inline(always)]
    fn nibbles(self, [a, b]: [InBlock<'_>; 2], at: impl Fn(usize) -> usize) -> __m512i {
        let (p, q) = (part::<16>(a.0, at(a.1)), part::<16>(b.0, at(b.1)));
        // SAFETY: as above.
        unsafe {
            let (v, w) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(q.cast()));
            let v = _mm512_inserti64x4::<1>(_mm512_broadcast_i32x4(v), _mm256_broadcastsi128_si256(w));
            _mm512_and_si512(_mm512_srlv_epi64(v, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)), _mm512_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn field(self, [a, b]: [InBlock<'_>; 2], v: __m512i, shift: impl Fn(usize) -> usize, mask: u8) -> __m512i {
        let (a, b) = (shift(a.1) as i64, shift(b.1) as i64);
        // SAFETY: as above.
        unsafe {
            let v = _mm512_srlv_epi64(v, _mm512_setr_epi64(a, a, a, a, b, b, b, b));
            _mm512_and_si512(v, _mm512_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    fn join<const S: i32>(self, low: __m512i, high: __m512i) -> __m512i {
        // SAFETY: as above. Bits that a byte would lose to its neighbour are 0.
        unsafe {
            let by = _mm_cvtsi32_si128(S);
            _mm512_or_si512(low, _mm512_sll_epi16(high, by))
        }
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], indices: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), indices) }
    }

    #[inline(always)]
    fn fifth_bits(self, [a, b]: [InBlock<'_>; 2], v: __m512i, bits: impl Fn(&[u8], usize) -> u32) -> __m512i {
        let bits = u64::from(bits(a.0, a.1)) | u64::from(bits(b.0, b.1)) << 32;
        // SAFETY: as above.
        unsafe { _mm512_mask_add_epi8(v, bits, v, _mm512_set1_epi8(16)) }
    }

    #[inline(always)]
    fn flip(self, v: __m512i) -> __m512i {
        // SAFETY: as above.
        unsafe { _mm512_xor_si512(v, _mm512_set1_epi8(-128)) }
    }

    #[inline(always)]
    fn words<W: Words>(self, [a, b]: [InBlock<'_>; 2]) -> __m512i {
        // SAFETY: as above.
        unsafe { join(vector(W::words(a.0, a.1)), vector(W::words(b.0, b.1))) }
    }

    #[inline(always)]
    fn signed<W: SignedWords>(self, [a, b]: [InBlock<'_>; 2]) -> __m512i {
        let ((v, of_v), (w, of_w)) = (W::signed(a.0, a.1), W::signed(b.0, b.1));
        // SAFETY: as above.
        unsafe {
            let (v, signs) = (join(vector(v), vector(w)), u64::from(of_v) | u64::from(of_w) << 32);
            self.flip(_mm512_mask_sub_epi8(v, signs, _mm512_setzero_si512(), v))
        }
    }

    #[inline(always)]
    fn half(self, b: &[u8], at: usize) -> f32 {
        self.0.half(b, at)
    }

    #[inline(always)]
    fn numbers(self, v: [u8; 16]) -> [f32; 16] {
        // SAFETY: as above; the array has 16 bytes.
        unsafe { floats(_mm512_cvtepu8_epi32(_mm_loadu_si128(v.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn signed_numbers(self, v: [i8; 16]) -> [f32; 16] {
        // SAFETY: as above; the array has 16 bytes.
        unsafe { floats(_mm512_cvtepi8_epi32(_mm_loadu_si128(v.as_ptr().cast()))) }
    }
}

/// Two halves of a vector.
#[inline(always)]
unsafe fn join(first: __m256i, second: __m256i) -> __m512i {
    // SAFETY: the caller has the features.
    unsafe { _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second) }
}

/// Sixteen whole numbers as f32.
#[inline(always)]
unsafe fn floats(v: __m512i) -> [f32; 16] {
    let mut out = [0f32; 16];
    // SAFETY: the caller has the features; the array has 16 numbers.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), _mm512_cvtepi32_ps(v)) }
    out
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
    type Floats = __m512;
    type Scales = __m512;

    const GROUPS: usize = 2;
    const TOKENS: usize = 8;
    const SIGNED: bool = false;

    functions! {
        fn new() -> Self { Avx512(Avx2::unchecked()) }
        fn store(b: __m512i, p: *mut u8) { _mm512_storeu_si512(p.cast(), b) }
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
            // Plain loops here and below: closures do not have these instructions.
            let mut sums = [_mm512_setzero_ps(); T];
            for t in 0..T {
                sums[t] = _mm512_cvtepi32_ps(totals[t]);
            }
            sums
        }
    }

    /// A transpose of 16 × 16 words.
    #[inline(always)]
    unsafe fn interleave(from: *const u8, to: *mut u8) {
        // SAFETY: by the contract: 16 readable rows of 64 bytes, 1024 writable bytes.
        unsafe {
            let mut a = [_mm512_setzero_si512(); 16];
            for r in 0..16 {
                a[r] = _mm512_loadu_si512(from.add(64 * r).cast());
            }
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
    unsafe fn times<const SUB16: bool>(s: &[f32; 16], d: f32) -> [f32; 16] {
        let mut out = [0f32; 16];
        // SAFETY: both have 16 numbers; features by the contract of `IntDot`.
        unsafe {
            let of = if SUB16 { 0xffff } else { 0xff };
            let v = _mm512_maskz_mul_ps(of, _mm512_loadu_ps(s.as_ptr()), _mm512_set1_ps(d));
            _mm512_storeu_ps(out.as_mut_ptr(), v);
        }
        out
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
