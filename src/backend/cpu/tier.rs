//! Which instructions this processor has, and how code for them is entered.

use super::lanes::{Lanes, Portable};

/// A set of instructions that kernels are written for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Plain Rust.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512Vnni,
}

impl Tier {
    /// Every tier, slowest first.
    pub const ALL: [Tier; 3] = [Tier::Scalar, Tier::Avx2, Tier::Avx512Vnni];

    /// The name that people know it by.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Scalar => "scalar",
            Tier::Avx2 => "AVX2",
            Tier::Avx512Vnni => "AVX-512 VNNI",
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            };
            match self {
                Tier::Scalar => true,
                Tier::Avx2 => avx2(),
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
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Tier::Scalar
        }
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
                Tier::Avx2 => avx2(f),
                Tier::Scalar => f.run::<Portable>(),
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = tier;
        // SAFETY: plain Rust needs no features; the rest is the caller's.
        unsafe { f.run::<Portable>() }
    }
}
