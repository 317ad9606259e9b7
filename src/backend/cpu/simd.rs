//! Vectors of sixteen f32 values on the registers of each SIMD level: float kernels are written once, over [`F32x16`].
//!
//! Every function here is `#[inline(always)]`, to be inlined into a function that enables the target features of its SIMD level
//! (see [`super::simd_level::dispatch`]). Called from elsewhere it would be slow, and undefined on a processor without the
//! features.

/// The number of f32 values in a vector.
pub const N: usize = 16;

/// A floating-point format in memory, and its conversion to f32.
pub trait FloatStorage: Copy {
    /// The size of a value, in bytes.
    const BYTES: usize;
    /// One value, as f32.
    ///
    /// # Safety
    /// `p` is readable for `BYTES` bytes.
    unsafe fn one(p: *const u8) -> f32;
    /// Sixteen consecutive values, as f32.
    ///
    /// # Safety
    /// `p` is readable for `16 * BYTES` bytes and the processor has the features of `L`.
    unsafe fn load<L: F32x16>(p: *const u8) -> L;
}

/// IEEE single precision.
#[derive(Clone, Copy)]
pub struct F32;
/// IEEE half precision.
#[derive(Clone, Copy)]
pub struct F16;
/// bfloat16: the upper half of an IEEE single.
#[derive(Clone, Copy)]
pub struct BF16;

impl FloatStorage for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: readable by the contract; unaligned reads are asked for.
        unsafe { p.cast::<f32>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load<L: F32x16>(p: *const u8) -> L {
        // SAFETY: by the contract.
        unsafe { L::load(p.cast()) }
    }
}

impl FloatStorage for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: as `F32::one`.
        half::f16::from_bits(unsafe { p.cast::<u16>().read_unaligned() }).to_f32()
    }
    #[inline(always)]
    unsafe fn load<L: F32x16>(p: *const u8) -> L {
        // SAFETY: by the contract.
        unsafe { L::load_f16(p.cast()) }
    }
}

impl FloatStorage for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn one(p: *const u8) -> f32 {
        // SAFETY: as `F32::one`.
        half::bf16::from_bits(unsafe { p.cast::<u16>().read_unaligned() }).to_f32()
    }
    #[inline(always)]
    unsafe fn load<L: F32x16>(p: *const u8) -> L {
        // SAFETY: by the contract.
        unsafe { L::load_bf16(p.cast()) }
    }
}

/// A vector of sixteen f32 values.
///
/// All functions are unsafe for one reason: the processor must have the features of the implementation. Pointers need no
/// alignment and must be valid for sixteen values.
#[allow(clippy::missing_safety_doc, missing_docs)]
pub trait F32x16: Copy {
    /// 64 bytes of integers: sixteen of 32 bits, or sixteen pairs of 16 bits.
    type Ints: Copy;
    /// Whether the processor has registers for about twenty such vectors, so that kernels may hold that many sums.
    const MANY_REGISTERS: bool = false;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_f16(p: *const u16) -> Self;
    unsafe fn load_bf16(p: *const u16) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// Stores the nearest half-precision values, ties to even.
    unsafe fn store_f16(self, p: *mut u16);
    /// Stores integral values in -127 ..= 127 as i8; not-a-number becomes 0.
    unsafe fn store_i8(self, p: *mut i8);
    /// Stores integral values in -32767 ..= 32767 as i16; not-a-number becomes 0.
    unsafe fn store_i16(self, p: *mut i16);
    /// `x` in all sixteen places: an integer of 32 bits, or a pair of 16 bits whose first is the lower half.
    unsafe fn ints(x: i32) -> Self::Ints;
    unsafe fn load_ints(p: *const i32) -> Self::Ints;
    /// 32 signed bytes, widened to sixteen pairs of 16 bits.
    unsafe fn widen_i8(p: *const i8) -> Self::Ints;
    /// For each of the sixteen pairs, `sum + a.0 * b.0 + a.1 * b.1` in 32 bits.
    unsafe fn dot2(a: Self::Ints, b: Self::Ints, sum: Self::Ints) -> Self::Ints;
    unsafe fn from_ints(x: Self::Ints) -> Self;
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    unsafe fn div(self, o: Self) -> Self;
    /// The larger value of each two; `o` where either is not a number.
    unsafe fn max(self, o: Self) -> Self;
    /// The smaller value of each two; `o` where either is not a number.
    unsafe fn min(self, o: Self) -> Self;
    /// `self * m + a`.
    unsafe fn fma(self, m: Self, a: Self) -> Self;
    /// The nearest integral values, ties to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^n` for integral n in -126 ..= 127.
    unsafe fn scale2(self, n: Self) -> Self;
    unsafe fn sum(self) -> f32;
    unsafe fn largest(self) -> f32;
    /// The absolute values.
    #[inline(always)]
    unsafe fn magnitude(self) -> Self {
        // SAFETY: the features are there by the contract.
        unsafe { self.max(Self::splat(0.0).sub(self)) }
    }
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

/// The implementation in plain Rust.
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

impl F32x16 for Portable {
    type Ints = [i32; N];

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
    unsafe fn store_i16(self, p: *mut i16) {
        // SAFETY: valid by the contract.
        unsafe { p.cast::<[i16; N]>().write_unaligned(self.0.map(|x| x as i16)) }
    }
    #[inline(always)]
    unsafe fn ints(x: i32) -> [i32; N] {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load_ints(p: *const i32) -> [i32; N] {
        // SAFETY: valid by the contract.
        unsafe { p.cast::<[i32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn widen_i8(p: *const i8) -> [i32; N] {
        // SAFETY: valid by the contract.
        let codes = unsafe { p.cast::<[[i8; 2]; N]>().read_unaligned() };
        codes.map(|[a, b]| i32::from(a) & 0xffff | i32::from(b) << 16)
    }
    #[inline(always)]
    unsafe fn dot2(a: [i32; N], b: [i32; N], sum: [i32; N]) -> [i32; N] {
        let [low, high] = [|x: i32| i32::from(x as i16), |x: i32| x >> 16];
        std::array::from_fn(|i| sum[i] + low(a[i]) * low(b[i]) + high(a[i]) * high(b[i]))
    }
    #[inline(always)]
    unsafe fn from_ints(x: [i32; N]) -> Self {
        Portable(x.map(|x| x as f32))
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
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;
