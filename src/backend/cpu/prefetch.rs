//! Prefetching: asking for memory that will be read soon, so that it is in a cache by then. A token reads weights, keys and
//! values once and in order, so the speed of decoding follows from how many cache lines are in flight at a time.

/// The cache that a line of memory is prefetched into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The first-level cache.
    L1,
    /// The first-level cache and no other: data that a token reads once should not evict other data from the larger caches.
    L1Only,
    /// The second-level cache.
    L2,
}

/// Prefetches the cache line at `p`, which may be any address. Does nothing on processors without such an instruction.
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

/// Prefetches `lines` consecutive cache lines, `p`'s first.
#[inline(always)]
pub fn lines(p: *const u8, lines: usize, level: Level) {
    // There are mostly one or two lines, which need no loop inside the caller's loop.
    line(p, level);
    if lines > 1 {
        line(p.wrapping_add(64), level);
    }
    for i in 2..lines {
        line(p.wrapping_add(64 * i), level);
    }
}

/// The cache into which data that is read once and in order should be prefetched, far ahead of its use.
///
/// An Intel core has up to 48 lines in flight to its second-level cache, but 16 to its first (Intel, *Optimization Reference
/// Manual*, 2.6 and later). One thread of an Emerald Rapids reads weights at 10 GB/s when they bypass the second level and at 17
/// through it. Two threads of attention read 25 GB/s with prefetches into the first level, which fill both, and 27 with
/// prefetches into the second. On a Zen 5 only the first level was measured; it is as fast as memory.
pub fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        // In a virtual machine this instruction takes microseconds, so it runs once.
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
