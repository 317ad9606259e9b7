//! AVX2, with or without AVX-VNNI.
//!
//! `vpmaddubsw` adds two products in 16 bits with saturation: 2 · 63 · 127 fits, 2 · 255 · 127 does not. With AVX2 alone,
//! quants of 8 bits are therefore multiplied by magnitude, with their signs moved to the activations (2 · 128 · 127 fits).
//! `vpdpbusd` of AVX-VNNI has no such limit.

use super::{IntDot, kernels};
use crate::quant::unpack::{InBlock, SignedWords, Unpack, Words};
use std::arch::x86_64::*;

/// AVX2, FMA and F16C; and AVX-VNNI if `VNNI`.
#[derive(Clone, Copy)]
pub struct Avx2<const VNNI: bool>(());

kernels!(
    /// AVX2, FMA, F16C.
    avx2, super::Avx2<false>, "avx2,fma,f16c");
kernels!(
    /// These and AVX-VNNI.
    avx_vnni, super::Avx2<true>, "avx2,fma,f16c,avxvnni");

impl<const VNNI: bool> Avx2<VNNI> {
    /// Safety: the processor has AVX2, FMA and F16C.
    #[inline(always)]
    pub unsafe fn unchecked() -> Self {
        Avx2(())
    }
}

/// The address of the `N` bytes from `at` on.
#[inline(always)]
pub(super) fn part<const N: usize>(b: &[u8], at: usize) -> *const u8 {
    b[at..at + N].as_ptr()
}

impl<const VNNI: bool> Unpack for Avx2<VNNI> {
    type Bytes = __m256i;
    type Groups<'a> = InBlock<'a>;

    #[inline(always)]
    fn groups<'a>(self, first: InBlock<'a>, _: InBlock<'a>) -> InBlock<'a> {
        first
    }

    #[inline(always)]
    fn load(self, (b, g): InBlock<'_>, at: impl Fn(usize) -> usize) -> __m256i {
        // SAFETY: a value of this type means that the features are there, here and below.
        unsafe { _mm256_loadu_si256(part::<32>(b, at(g)).cast()) }
    }

    #[inline(always)]
    fn nibbles(self, (b, g): InBlock<'_>, at: impl Fn(usize) -> usize) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let v = _mm256_broadcastsi128_si256(_mm_loadu_si128(part::<16>(b, at(g)).cast()));
            _mm256_and_si256(_mm256_srlv_epi64(v, _mm256_setr_epi64x(0, 0, 4, 4)), _mm256_set1_epi8(15))
        }
    }

    #[inline(always)]
    fn field(self, (_, g): InBlock<'_>, v: __m256i, shift: impl Fn(usize) -> usize, mask: u8) -> __m256i {
        // SAFETY: as above.
        unsafe {
            let v = _mm256_srl_epi64(v, _mm_cvtsi32_si128(shift(g) as i32));
            _mm256_and_si256(v, _mm256_set1_epi8(mask as i8))
        }
    }

    #[inline(always)]
    fn join<const S: i32>(self, low: __m256i, high: __m256i) -> __m256i {
        // SAFETY: as above. Bits that a byte would lose to its neighbour are 0.
        unsafe { _mm256_or_si256(low, _mm256_slli_epi16::<S>(high)) }
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], indices: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), indices) }
    }

    #[inline(always)]
    fn fifth_bits(self, (b, g): InBlock<'_>, v: __m256i, bits: impl Fn(&[u8], usize) -> u32) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_or_si256(v, _mm256_and_si256(spread(bits(b, g)), _mm256_set1_epi8(16))) }
    }

    #[inline(always)]
    fn flip(self, v: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_xor_si256(v, _mm256_set1_epi8(-128)) }
    }

    #[inline(always)]
    fn words<W: Words>(self, (b, g): InBlock<'_>) -> __m256i {
        // SAFETY: as above.
        unsafe { vector(W::words(b, g)) }
    }

    #[inline(always)]
    fn signed<W: SignedWords>(self, (b, g): InBlock<'_>) -> __m256i {
        let (v, signs) = W::signed(b, g);
        // SAFETY: as above.
        unsafe {
            let signs = spread(signs);
            self.flip(_mm256_sub_epi8(_mm256_xor_si256(vector(v), signs), signs))
        }
    }

    #[inline(always)]
    fn half(self, b: &[u8], at: usize) -> f32 {
        // SAFETY: as above. Volatile, because the compiler takes the halves of several blocks from masked loads of all their bytes
        // otherwise, which is slower than a load for each.
        unsafe {
            let Unaligned(bits) = part::<2>(b, at).cast::<Unaligned>().read_volatile();
            _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
        }
    }

    #[inline(always)]
    fn numbers(self, v: [u8; 16]) -> [f32; 16] {
        // SAFETY: as above.
        unsafe {
            let v = _mm_loadu_si128(v.as_ptr().cast());
            floats(_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(v)))
        }
    }

    #[inline(always)]
    fn signed_numbers(self, v: [i8; 16]) -> [f32; 16] {
        // SAFETY: as above.
        unsafe {
            let v = _mm_loadu_si128(v.as_ptr().cast());
            floats(_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(v)))
        }
    }
}

/// Two bytes anywhere.
#[repr(C, packed)]
struct Unaligned(u16);

/// Words as a vector.
#[inline(always)]
pub(super) unsafe fn vector([a, b, c, d]: [u64; 4]) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_setr_epi64x(a as i64, b as i64, c as i64, d as i64) }
}

/// Sixteen whole numbers as f32.
#[inline(always)]
unsafe fn floats(first: __m256i, second: __m256i) -> [f32; 16] {
    let mut out = [0f32; 16];
    // SAFETY: the caller has AVX2; both halves are in the array.
    unsafe {
        _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtepi32_ps(first));
        _mm256_storeu_ps(out.as_mut_ptr().add(8), _mm256_cvtepi32_ps(second));
    }
    out
}

/// All bits of byte i set where bit i of `bits` is.
#[inline(always)]
unsafe fn spread(bits: u32) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let byte = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let v = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), byte);
        _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit)
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

impl<const VNNI: bool> IntDot for Avx2<VNNI> {
    type Floats = __m256;
    // In memory: a scale is then read into every lane.
    type Scales = [f32; 16];

    const GROUPS: usize = 1;
    const TOKENS: usize = 4;
    const SIGNED: bool = !VNNI;

    functions! {
        fn new() -> Self { Self::unchecked() }
        fn store(b: __m256i, p: *mut u8) { _mm256_storeu_si256(p.cast(), b) }
        fn activations(p: *const i8) -> __m256i { _mm256_loadu_si256(p.cast()) }
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn read(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
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
    unsafe fn dot<const EIGHT: bool>(quants: __m256i, x: __m256i) -> __m256 {
        // SAFETY: features by the contract of `IntDot`.
        unsafe {
            let sums = if VNNI {
                _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), quants, x)
            } else {
                _mm256_madd_epi16(pairs::<EIGHT>(quants, x), _mm256_set1_epi16(1))
            };
            _mm256_cvtepi32_ps(sums)
        }
    }

    #[inline(always)]
    unsafe fn dots<const T: usize, const STEPS: usize, const SUMS: usize>(
        quants: *const u8,
        x: [*const i8; T],
    ) -> [__m256; T] {
        // SAFETY: by the contract of `IntDot`.
        unsafe {
            let load = |i: usize| _mm256_loadu_si256(quants.add(64 * i).cast());
            let four = |t: usize, i: usize| _mm256_set1_epi32(x[t].add(4 * i).cast::<i32>().read_unaligned());
            let mut totals = [_mm256_setzero_si256(); T];
            if VNNI {
                for i in 0..STEPS {
                    let w = load(i);
                    for t in 0..T {
                        totals[t] = _mm256_dpbusd_avx_epi32(totals[t], w, four(t, i));
                    }
                }
                return all_floats(totals);
            }
            let mut from = 0;
            while from < STEPS {
                let to = if from + SUMS < STEPS { from + SUMS } else { STEPS };
                let mut narrow = [_mm256_setzero_si256(); T];
                for i in from..to {
                    let w = load(i);
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
            all_floats(totals)
        }
    }

    #[inline(always)]
    unsafe fn interleave(from: *const u8, to: *mut u8) {
        let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
        for r in 0..16 {
            for i in 0..8 {
                // SAFETY: both have 16 rows of eight words, by the contract.
                unsafe { to.add(16 * i + r).write_unaligned(from.add(8 * r + i).read_unaligned()) }
            }
        }
    }

    #[inline(always)]
    unsafe fn times<const SUB16: bool>(s: &[f32; 16], d: f32) -> [f32; 16] {
        let mut out = [0f32; 16];
        let (s, to) = (s.as_ptr(), out.as_mut_ptr());
        // SAFETY: both have 16 numbers; features by the contract of `IntDot`.
        unsafe {
            let d = _mm256_set1_ps(d);
            _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_loadu_ps(s), d));
            if SUB16 {
                _mm256_storeu_ps(to.add(8), _mm256_mul_ps(_mm256_loadu_ps(s.add(8)), d));
            }
        }
        out
    }

    #[inline(always)]
    unsafe fn scales<const SUB16: bool>(s: &[f32; 16], x: *const f32) -> [f32; 16] {
        let mut both = [0f32; 16];
        let (s, to) = (s.as_ptr(), both.as_mut_ptr());
        // SAFETY: the caller's activations have 8 scales; features by the contract of `IntDot`.
        unsafe {
            if SUB16 {
                let (a, b) = (_mm_loadu_ps(x), _mm_loadu_ps(x.add(4)));
                let a = _mm256_set_m128(_mm_unpackhi_ps(a, a), _mm_unpacklo_ps(a, a));
                let b = _mm256_set_m128(_mm_unpackhi_ps(b, b), _mm_unpacklo_ps(b, b));
                _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_loadu_ps(s), a));
                _mm256_storeu_ps(to.add(8), _mm256_mul_ps(_mm256_loadu_ps(s.add(8)), b));
            } else {
                _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_loadu_ps(s), _mm256_loadu_ps(x)));
            }
        }
        both
    }

    #[inline(always)]
    unsafe fn group_scales<const SUB16: bool>(s: &[f32; 16], g: usize) -> __m256 {
        // SAFETY: features by the contract of `IntDot`.
        unsafe {
            if SUB16 {
                let low = _mm256_castps128_ps256(_mm_set1_ps(s[2 * g]));
                _mm256_insertf128_ps::<1>(low, _mm_set1_ps(s[2 * g + 1]))
            } else {
                _mm256_set1_ps(s[g])
            }
        }
    }

    #[inline(always)]
    unsafe fn lows<const SUB16: bool>(m: &[f32; 16], x: *const f32, sum: __m256) -> __m256 {
        let m = m.as_ptr();
        // SAFETY: the caller's numbers are readable; features by the contract of `IntDot`.
        unsafe {
            let sum = _mm256_fmadd_ps(_mm256_loadu_ps(m), _mm256_loadu_ps(x), sum);
            if SUB16 { _mm256_fmadd_ps(_mm256_loadu_ps(m.add(8)), _mm256_loadu_ps(x.add(8)), sum) } else { sum }
        }
    }
}

/// Sums as f32.
#[inline(always)]
unsafe fn all_floats<const T: usize>(sums: [__m256i; T]) -> [__m256; T] {
    // SAFETY: the caller has AVX2. No `map`: closures do not have its instructions.
    unsafe {
        let mut out = [_mm256_setzero_ps(); T];
        for t in 0..T {
            out[t] = _mm256_cvtepi32_ps(sums[t]);
        }
        out
    }
}

/// Sums of two products in 16 bits; of signed numbers if `SIGNED`, else of quants below 64 with signed numbers.
#[inline(always)]
unsafe fn pairs<const SIGNED: bool>(quants: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        if SIGNED {
            _mm256_maddubs_epi16(_mm256_abs_epi8(quants), _mm256_sign_epi8(x, quants))
        } else {
            _mm256_maddubs_epi16(quants, x)
        }
    }
}
