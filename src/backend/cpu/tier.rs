//! Which instructions this processor has, and how code for them is entered.

use super::lanes::{Lanes, Portable};

/// A set of instructions that kernels are written for, slowest first. Those of other processors than the one that the program
/// was compiled for have a name here too, and are never available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Plain Rust.
    Scalar,
    /// aarch64 with NEON and the dot products of ARMv8.2.
    NeonDotprod,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// These and AVX-VNNI.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512Vnni,
}

impl Tier {
    /// Every tier, slowest first.
    pub const ALL: [Tier; 5] = [Tier::Scalar, Tier::NeonDotprod, Tier::Avx2, Tier::AvxVnni, Tier::Avx512Vnni];

    /// The name that people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Scalar => "scalar",
            Tier::NeonDotprod => "NEON dotprod",
            Tier::Avx2 => "AVX2",
            Tier::AvxVnni => "AVX-VNNI",
            Tier::Avx512Vnni => "AVX-512 VNNI",
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        self == Tier::Scalar || self.is_detected()
    }

    #[cfg(target_arch = "x86_64")]
    fn is_detected(self) -> bool {
        let avx2 =
            || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match self {
            Tier::Scalar | Tier::NeonDotprod => false,
            Tier::Avx2 => avx2(),
            Tier::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
            Tier::Avx512Vnni => {
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
        // The kernels take bytes for the lower parts of words.
        self == Tier::NeonDotprod
            && cfg!(target_endian = "little")
            && std::arch::is_aarch64_feature_detected!("neon")
            && std::arch::is_aarch64_feature_detected!("dotprod")
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_detected(self) -> bool {
        false
    }
}

/// The tiers that this processor has, slowest first.
pub fn tiers() -> Vec<Tier> {
    Tier::ALL.into_iter().filter(|t| t.is_available()).collect()
}

/// The fastest tier that this processor has.
pub fn best() -> Tier {
    tiers().pop().unwrap_or(Tier::Scalar)
}

/// Float code written over [`Lanes`], to be run at a tier.
pub trait Floats {
    /// What it gives.
    type Output;

    /// The code; must be `#[inline(always)]`.
    ///
    /// # Safety
    /// Called only where the processor has the features of `L`; other conditions are the implementor's.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs `f` with the instructions of `tier`.
///
/// # Safety
/// The processor has `tier` (see [`Tier::is_available`]), and the conditions of `f` hold.
#[inline]
pub unsafe fn dispatch<F: Floats>(tier: Tier, f: F) -> F::Output {
    #[cfg(target_arch = "x86_64")]
    {
        use super::lanes::{Avx2, Avx512};

        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2<F: Floats>(f: F) -> F::Output {
            // SAFETY: the features are enabled here; the rest is the caller's.
            unsafe { f.run::<Avx2>() }
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        unsafe fn avx512<F: Floats>(f: F) -> F::Output {
            // SAFETY: the features are enabled here; the rest is the caller's.
            unsafe { f.run::<Avx512>() }
        }
        // SAFETY: the processor has the tier by the contract.
        unsafe {
            match tier {
                Tier::Avx512Vnni => avx512(f),
                Tier::AvxVnni | Tier::Avx2 => avx2(f),
                Tier::Scalar | Tier::NeonDotprod => f.run::<Portable>(),
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        #[target_feature(enable = "neon")]
        unsafe fn neon<F: Floats>(f: F) -> F::Output {
            // SAFETY: the features are enabled here; the rest is the caller's.
            unsafe { f.run::<super::lanes::Neon>() }
        }
        // SAFETY: the processor has the tier by the contract.
        unsafe { if tier == Tier::NeonDotprod { neon(f) } else { f.run::<Portable>() } }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = tier;
        // SAFETY: plain Rust needs no features; the rest is the caller's.
        unsafe { f.run::<Portable>() }
    }
}
