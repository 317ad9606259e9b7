//! Sixteen f32 numbers at a time, on whatever the processor has: the float kernels are written once over [`Lanes`].
//!
//! Every function here is `#[inline(always)]` and is meant to be inlined into a function that enables the target features
//! of its tier (see [`super::tier::dispatch`]); called from elsewhere it would be slow, and on a processor without the
//! features undefined.

/// Numbers in a vector.
pub const N: usize = 16;

/// How floating-point storage becomes f32.
pub trait Store: Copy {
    /// Bytes of a number.
    const BYTES: usize;
    /// One number.
    ///
    /// # Safety
    /// `p` is readable for `BYTES` bytes.
    unsafe fn one(p: *const u8) -> f32;
    /// Sixteen numbers.
    ///
    /// # Safety
    /// `p` is readable for `16 * BYTES` bytes and the processor has the features of `L`.
    unsafe fn load<L: Lanes>(p: *const u8) -> L;
}

/// IEEE single precision.
#[derive(Clone, Copy)]
pub struct Single;
/// IEEE half precision.
#[derive(Clone, Copy)]
pub struct Half;
/// The upper half of a single.
#[derive(Clone, Copy)]
pub struct Brain;

impl Store for Single {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: readable by the contract; unaligned reads are asked for.
        unsafe { p.cast::<f32>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L {
        // SAFETY: by the contract.
        unsafe { L::load(p.cast()) }
    }
}

impl Store for Half {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: as `Single::one`.
        half::f16::from_bits(unsafe { p.cast::<u16>().read_unaligned() }).to_f32()
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L {
        // SAFETY: by the contract.
        unsafe { L::load_f16(p.cast()) }
    }
}

impl Store for Brain {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: as `Single::one`.
        half::bf16::from_bits(unsafe { p.cast::<u16>().read_unaligned() }).to_f32()
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L {
        // SAFETY: by the contract.
        unsafe { L::load_bf16(p.cast()) }
    }
}

/// Sixteen f32 numbers.
///
/// All functions are unsafe for one reason: the processor must have the features of the implementation. Pointers need no
/// alignment and must be valid for sixteen numbers.
#[allow(clippy::missing_safety_doc, missing_docs)]
pub trait Lanes: Copy {
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_f16(p: *const u16) -> Self;
    unsafe fn load_bf16(p: *const u16) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// To the nearest half-precision numbers, ties to even.
    unsafe fn store_f16(self, p: *mut u16);
    /// Of whole numbers in -127 ..= 127; not-a-number becomes 0.
    unsafe fn store_i8(self, p: *mut i8);
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    unsafe fn div(self, o: Self) -> Self;
    /// The larger; `o` where either is not a number.
    unsafe fn max(self, o: Self) -> Self;
    /// The smaller; `o` where either is not a number.
    unsafe fn min(self, o: Self) -> Self;
    /// `self * m + a`.
    unsafe fn fma(self, m: Self, a: Self) -> Self;
    /// Nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^n` for whole n in -126 ..= 127.
    unsafe fn scale2(self, n: Self) -> Self;
    unsafe fn sum(self) -> f32;
    unsafe fn largest(self) -> f32;
    /// Asks for the cache line at `p`, which may be any address; does nothing where there is no such instruction.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}

    /// `e^self` with a relative error of about 1e-7: range reduction by ln 2 in two parts (Cody and Waite) and the minimax
    /// polynomial of degree 6 of Cephes' `expf`. Clamped to -87.33 ..= 88; not-a-number stays.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the features are there by the contract.
        unsafe {
            let x = Self::splat(88.0).min(Self::splat(-87.33).max(self));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let r = n.fma(Self::splat(-0.693_359_4), x);
            let r = n.fma(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = p.fma(r, Self::splat(c));
            }
            let y = p.fma(r.mul(r), r).add(Self::splat(1.0));
            y.scale2(n)
        }
    }
}

/// The portable implementation.
#[derive(Clone, Copy)]
pub struct Portable([f32; N]);

macro_rules! each {
    ($a:expr, $b:expr, $f:expr) => {{
        let mut out = $a;
        for i in 0..N {
            out[i] = $f($a[i], $b[i]);
        }
        Portable(out)
    }};
}

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; N])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: valid by the contract.
        Portable(unsafe { p.cast::<[f32; N]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: valid by the contract.
        let bits = unsafe { p.cast::<[u16; N]>().read_unaligned() };
        Portable(bits.map(|b| half::f16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: valid by the contract.
        let bits = unsafe { p.cast::<[u16; N]>().read_unaligned() };
        Portable(bits.map(|b| f32::from_bits(u32::from(b) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: valid by the contract.
        unsafe { p.cast::<[f32; N]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: valid by the contract.
        unsafe { p.cast::<[u16; N]>().write_unaligned(self.0.map(|x| half::f16::from_f32(x).to_bits())) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8) {
        // SAFETY: valid by the contract.
        unsafe { p.cast::<[i8; N]>().write_unaligned(self.0.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        each!(self.0, o.0, |a: f32, b: f32| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        each!(self.0, o.0, |a: f32, b: f32| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        each!(self.0, o.0, |a: f32, b: f32| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        each!(self.0, o.0, |a: f32, b: f32| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        each!(self.0, o.0, |a: f32, b: f32| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        each!(self.0, o.0, |a: f32, b: f32| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn fma(self, m: Self, a: Self) -> Self {
        let product = each!(self.0, m.0, |a: f32, b: f32| a * b);
        each!(product.0, a.0, |a: f32, b: f32| a + b)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Portable(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn scale2(self, n: Self) -> Self {
        each!(self.0, n.0, |a: f32, n: f32| a * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut v = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

#[cfg(target_arch = "aarch64")]
pub use neon::{Neon, half_neon};
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "aarch64")]
#[path = "lanes_neon.rs"]
mod neon;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// Two 256-bit registers.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256, __m256);

    /// One 512-bit register.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    #[inline(always)]
    unsafe fn round8(x: __m256) -> __m256 {
        // SAFETY: the features are there by the contract of `Lanes`.
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

    /// Methods whose body is an expression over intrinsics; the features are there by the contract of `Lanes`.
    macro_rules! methods {
        ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {$(
            #[inline(always)]
            // SAFETY: as the contract of `Lanes` says: the features are there, pointers are valid.
            unsafe fn $name($($arg: $ty),*) $(-> $ret)? { unsafe { $body } }
        )*};
        ($(fn $name:ident(self $(, $arg:ident: $ty:ty)*) $(-> $ret:ty)? |$s:ident| { $body:expr })*) => {$(
            #[inline(always)]
            // SAFETY: as the contract of `Lanes` says: the features are there, pointers are valid.
            unsafe fn $name(self $(, $arg: $ty)*) $(-> $ret)? { let $s = self; unsafe { $body } }
        )*};
    }

    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            // SAFETY: a prefetch reads nothing that the program sees.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
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
        }
        methods! {
            fn store(self, p: *mut f32) |s| {{ _mm256_storeu_ps(p, s.0); _mm256_storeu_ps(p.add(8), s.1) }}
            fn store_f16(self, p: *mut u16) |s| {{
                _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(s.0));
                _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(s.1))
            }}
            fn store_i8(self, p: *mut i8) |s| {{
                let whole = |x| _mm256_cvtps_epi32(_mm256_and_ps(x, _mm256_cmp_ps::<_CMP_ORD_Q>(x, x)));
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(whole(s.0), whole(s.1)));
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

    /// The sum of eight numbers.
    #[inline(always)]
    pub unsafe fn sum8(v: __m256) -> f32 {
        // SAFETY: the caller has AVX.
        unsafe {
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }

    impl Lanes for Avx512 {
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            // SAFETY: a prefetch reads nothing that the program sees.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        methods! {
            fn splat(x: f32) -> Self { Avx512(_mm512_set1_ps(x)) }
            fn load(p: *const f32) -> Self { Avx512(_mm512_loadu_ps(p)) }
            fn load_f16(p: *const u16) -> Self { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
            fn load_bf16(p: *const u16) -> Self {{
                let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)))
            }}
        }
        methods! {
            fn store(self, p: *mut f32) |s| { _mm512_storeu_ps(p, s.0) }
            fn store_f16(self, p: *mut u16) |s| {
                _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(s.0))
            }
            // Not-a-number becomes the least 32-bit number, whose last byte is 0.
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
}
