//! How memory is asked for what will be read soon: weights, keys and values come from it once a token and in order, so speed is
//! how many lines are on their way at a time.

/// A cache that lines of memory are asked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The first.
    L1,
    /// The first, without keeping it in further ones: what one token reads once need not push other things out of them.
    L1Only,
    /// The second.
    L2,
}

/// Asks for the line of a cache at `p`, which may be any address; does nothing where there is no such instruction.
#[inline(always)]
pub fn line(p: *const u8, level: Level) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_NTA, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: every processor of this kind has the instruction, which reads nothing that the program sees.
        unsafe {
            match level {
                Level::L1 => _mm_prefetch::<_MM_HINT_T0>(p.cast()),
                Level::L1Only => _mm_prefetch::<_MM_HINT_NTA>(p.cast()),
                Level::L2 => _mm_prefetch::<_MM_HINT_T1>(p.cast()),
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::asm;
        // SAFETY: as above. Rust's own intrinsic is not stable yet.
        unsafe {
            match level {
                Level::L1 => asm!("prfm pldl1keep, [{0}]", in(reg) p, options(nostack, preserves_flags, readonly)),
                Level::L1Only => asm!("prfm pldl1strm, [{0}]", in(reg) p, options(nostack, preserves_flags, readonly)),
                Level::L2 => asm!("prfm pldl2keep, [{0}]", in(reg) p, options(nostack, preserves_flags, readonly)),
            }
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = (p, level);
}

/// [`line`] of some lines from `p` on.
#[inline(always)]
pub fn lines(p: *const u8, lines: usize, level: Level) {
    // Mostly one or two: no loop within a loop.
    line(p, level);
    if lines > 1 {
        line(p.wrapping_add(64), level);
    }
    for i in 2..lines {
        line(p.wrapping_add(64 * i), level);
    }
}

/// Where to ask for what is read once, in order, and some time later. An Intel core has 48 lines at a time on their way to its
/// second cache, but 16 on their way to its first (Intel, *Optimization Reference Manual*, 2.6 and later): past the second, one
/// thread of an Emerald Rapids reads 10 GB/s, through it 17; asked into the first, which takes both ways, attention reads 25 GB/s
/// with two threads, asked into the second 27. On a Zen 5 only the first was measured, and is as fast as memory.
pub fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        // A virtual machine takes microseconds for the question.
        static AMD: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        let amd = AMD.get_or_init(|| {
            // Safe in newer versions of Rust than the oldest that this builds with.
            #[allow(unused_unsafe)]
            // SAFETY: every processor of this architecture has the instruction.
            let id = unsafe { std::arch::x86_64::__cpuid(0) };
            [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
        });
        if !*amd {
            return Level::L2;
        }
    }
    Level::L1
}
