//! Instruction sets: which ones this processor has, and how code that is compiled for one is called.

use super::simd::{F32x16, Portable};

/// An instruction set that kernels are written for, slowest first. Those of other architectures than the one that the program
/// was compiled for are listed too, but never available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SimdLevel {
    /// Plain Rust.
    Scalar,
    /// aarch64 with NEON and the dot products of ARMv8.2.
    NeonDotprod,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX2, FMA, F16C and AVX-VNNI.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512Vnni,
}

impl SimdLevel {
    /// All SIMD levels, slowest first.
    pub const ALL: [SimdLevel; 5] =
        [SimdLevel::Scalar, SimdLevel::NeonDotprod, SimdLevel::Avx2, SimdLevel::AvxVnni, SimdLevel::Avx512Vnni];

    /// The name in the words of processor manuals, such as `AVX-512 VNNI`.
    pub fn name(self) -> &'static str {
        match self {
            SimdLevel::Scalar => "scalar",
            SimdLevel::NeonDotprod => "NEON dotprod",
            SimdLevel::Avx2 => "AVX2",
            SimdLevel::AvxVnni => "AVX-VNNI",
            SimdLevel::Avx512Vnni => "AVX-512 VNNI",
        }
    }

    /// Whether this processor has the instructions.
    pub fn is_available(self) -> bool {
        self == SimdLevel::Scalar || self.is_detected()
    }

    #[cfg(target_arch = "x86_64")]
    fn is_detected(self) -> bool {
        let avx2 =
            || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match self {
            SimdLevel::Scalar | SimdLevel::NeonDotprod => false,
            SimdLevel::Avx2 => avx2(),
            SimdLevel::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
            SimdLevel::Avx512Vnni => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn is_detected(self) -> bool {
        // The kernels read the low byte of a word at its lowest address.
        self == SimdLevel::NeonDotprod
            && cfg!(target_endian = "little")
            && std::arch::is_aarch64_feature_detected!("neon")
            && std::arch::is_aarch64_feature_detected!("dotprod")
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_detected(self) -> bool {
        false
    }
}

impl SimdLevel {
    /// The SIMD levels that this processor has, slowest first.
    pub fn available() -> Vec<SimdLevel> {
        SimdLevel::ALL.into_iter().filter(|t| t.is_available()).collect()
    }
}

/// The fastest SIMD level that this processor has.
pub fn best() -> SimdLevel {
    SimdLevel::available().pop().unwrap_or(SimdLevel::Scalar)
}

/// A kernel over vectors of f32 ([`F32x16`]), compiled once for every SIMD level and run by [`dispatch`].
pub trait SimdKernel {
    /// The result.
    type Output;

    /// The code of the kernel, for vectors of type `L`. It must be `#[inline(always)]`, so that it is compiled with the target
    /// features of the function that calls it.
    ///
    /// # Safety
    /// The processor has the features of `L`; further conditions are the implementor's.
    unsafe fn run<L: F32x16>(self) -> Self::Output;
}

/// Runs `f` with the instructions of `simd_level`.
///
/// # Safety
/// The processor has `simd_level` (see [`SimdLevel::is_available`]), and the conditions of `f` hold.
#[inline]
pub unsafe fn dispatch<F: SimdKernel>(simd_level: SimdLevel, f: F) -> F::Output {
    #[cfg(target_arch = "x86_64")]
    {
        use super::simd::{Avx2, Avx512};

        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2<F: SimdKernel>(f: F) -> F::Output {
            // SAFETY: the features are enabled here; the rest is the caller's.
            unsafe { f.run::<Avx2>() }
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        unsafe fn avx512<F: SimdKernel>(f: F) -> F::Output {
            // SAFETY: the features are enabled here; the rest is the caller's.
            unsafe { f.run::<Avx512>() }
        }
        // SAFETY: the processor has the SIMD level by the contract.
        unsafe {
            match simd_level {
                SimdLevel::Avx512Vnni => avx512(f),
                SimdLevel::AvxVnni | SimdLevel::Avx2 => avx2(f),
                SimdLevel::Scalar | SimdLevel::NeonDotprod => f.run::<Portable>(),
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        #[target_feature(enable = "neon")]
        unsafe fn neon<F: SimdKernel>(f: F) -> F::Output {
            // SAFETY: the features are enabled here; the rest is the caller's.
            unsafe { f.run::<super::simd::Neon>() }
        }
        // SAFETY: the processor has the SIMD level by the contract.
        unsafe { if simd_level == SimdLevel::NeonDotprod { neon(f) } else { f.run::<Portable>() } }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = simd_level;
        // SAFETY: plain Rust needs no features; the rest is the caller's.
        unsafe { f.run::<Portable>() }
    }
}
