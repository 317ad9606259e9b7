//! Packed weights: a copy of a quantised weight made at load, in panels of 16 rows that integer dot products read in order.
//!
//! The quants of 16 rows lie interleaved, four of a row after four of the next (a *chunk*: 64 bytes, or one vector of
//! AVX-512), so that one `vpdpbusd` adds four products for each of 16 rows and four activations of a token are one broadcast:
//! no sums across a register, one scale a row in a lane, and the same kernel for one token and for many. Narrower vectors take the
//! rows of a panel in slices.
//!
//! A panel holds its columns in *superblocks* of eight groups of 32 (the last may be shorter; k-quants have whole ones), each from
//! a 64-byte boundary on: first the quants group by group, then the scales group by group, then what a block of 256 has once.
//! Quants keep their bits, and scales theirs but for the 4- and 6-bit ones of k-quants, which take bytes (up to 4 % more):
//!
//! | plane | chunks a group | where column c of row r is |
//! |---|---|---|
//! | 8 bits | 8 | chunk c / 4, byte 4 r + c % 4 |
//! | 4 bits | 4 | chunk c / 8, byte 4 r + c % 4, low nibble where c % 8 < 4 |
//! | 2 bits | 2 | chunk c / 16, byte 4 r + c % 4, bits 2 (c % 16 / 4) and up |
//! | 1 bit | 1 | byte 4 r + c % 4, bit c / 4 |
//!
//! Formats of 3, 5 and 6 bits have a plane of 2 or 4 bits and one of 1 or 2 more significant ones.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod memory;
mod multiply;
mod pack;

pub use memory::{Packed, packed_bytes};

use super::{
    super::{
        act::ActRow,
        prefetch::{self, Level},
        simd_level::SimdLevel,
    },
    FAR, NEAR,
};
use crate::quant::{
    DType,
    format::{BlockFormat, PackedScales},
};

/// Rows of a panel.
pub const ROWS: usize = 16;

/// Columns of a group, groups of a superblock.
const GROUP: usize = 32;
const SUPERBLOCK: usize = 8;

/// How memory is asked for weights before they are read. Too early costs nothing but cache, too late is a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// Far ahead into the second cache, and from there into the first: where [`prefetch::level`] is the second. On an Emerald
    /// Rapids 100 tokens a second where [`Level::L1`] alone makes 88, and [`Level::L1Only`] 62.
    Staged,
    /// Into the first cache, for a single token [`Level::L1Only`]: on a Zen 5 that brings 3 to 5 % more tokens where memory is
    /// slow.
    Direct(Level),
    /// Not at all: these weights were just read for other tokens.
    Nothing,
}

/// How many bytes ahead of those in use memory is asked for where it goes to the first cache at once: what a core reads in the
/// time that memory takes to answer.
const AHEAD: usize = 5120;

/// How a format is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackLayout {
    /// Bits of the first plane, and of the second (more significant ones; 0: none).
    pub bits: (usize, usize),
    /// Scales are per 16 weights, not 32.
    pub sub16: bool,
    /// How scales are stored.
    pub scales: PackedScales,
}

impl PackLayout {
    /// That of a format; `None` where it is not packed.
    pub const fn of<F: BlockFormat>() -> Option<PackLayout> {
        match F::PACKED {
            Some((bits, scales)) => {
                assert!(matches!(bits, (2 | 4, 0 | 1) | (4, 2) | (8, 0)), "there are kernels for these planes");
                let sub16 = F::SUB_BLOCK == 16;
                let fits = match scales {
                    PackedScales::Byte => true,
                    PackedScales::Nibble => sub16,
                    PackedScales::Half | PackedScales::HalfMin | PackedScales::ByteMin | PackedScales::Power => !sub16,
                };
                assert!(fits, "there are kernels for these scales of sub-blocks of this size");
                Some(PackLayout { bits, sub16, scales })
            }
            None => None,
        }
    }

    /// Bytes of a group's quants.
    pub const fn quant_bytes(&self) -> usize {
        64 * (self.bits.0 + self.bits.1)
    }

    /// Bytes of a group's scales.
    pub const fn scale_bytes(&self) -> usize {
        match self.scales {
            PackedScales::Half => 2 * ROWS,
            PackedScales::HalfMin => 4 * ROWS,
            PackedScales::ByteMin | PackedScales::Nibble => 2 * ROWS,
            PackedScales::Byte => ROWS * (1 + self.sub16 as usize),
            PackedScales::Power => ROWS,
        }
    }

    /// Bytes of what a superblock has once.
    const fn once_bytes(&self) -> usize {
        match self.scales {
            PackedScales::ByteMin | PackedScales::Nibble => 4 * ROWS,
            PackedScales::Byte => 2 * ROWS,
            PackedScales::Half | PackedScales::HalfMin | PackedScales::Power => 0,
        }
    }

    /// Bytes of a superblock of `groups` groups.
    pub const fn superblock_bytes(&self, groups: usize) -> usize {
        (groups * (self.quant_bytes() + self.scale_bytes()) + self.once_bytes()).next_multiple_of(64)
    }

    /// Bytes of a panel of rows of `cols` weights, a multiple of 32.
    pub const fn panel_bytes(&self, cols: usize) -> usize {
        let groups = cols / GROUP;
        let rest = groups % SUPERBLOCK;
        groups / SUPERBLOCK * self.superblock_bytes(SUPERBLOCK) + if rest > 0 { self.superblock_bytes(rest) } else { 0 }
    }
}

/// One panel and some activation rows.
#[derive(Clone, Copy)]
pub struct Job {
    /// A panel, from a 64-byte boundary on.
    pub panel: *const u8,
    /// Weights of a row, a multiple of 32.
    pub cols: usize,
    /// Rows that are wanted, 1 to 16.
    pub rows: usize,
    /// As many activation rows as the kernel takes.
    pub acts: *const ActRow,
    /// Row r of the i-th activation row goes to `out[i * stride + r]`.
    pub out: *mut f32,
    /// See `out`.
    pub stride: usize,
    /// How weights are asked for: those up to `end` one behind the other, and then from `next` on. These are only asked for, and
    /// may be any addresses.
    pub prefetch: Prefetch,
    /// See `prefetch`.
    pub end: *const u8,
    /// See `prefetch`.
    pub next: *const u8,
}

impl Job {
    /// Prefetches as many cache lines ahead of those at `p`, which are this job's.
    #[inline(always)]
    fn prefetch(&self, p: *const u8, lines: usize) {
        let ahead = |bytes: usize| {
            let at = p.wrapping_add(bytes);
            if at < self.end { at } else { self.next.wrapping_add(at as usize - self.end as usize) }
        };
        match self.prefetch {
            Prefetch::Staged => {
                prefetch::lines(ahead(FAR), lines, Level::L2);
                prefetch::lines(ahead(NEAR), lines, Level::L1);
            }
            Prefetch::Direct(level) => prefetch::lines(ahead(AHEAD), lines, level),
            Prefetch::Nothing => {}
        }
    }
}

/// Multiplies a panel with some activation rows.
///
/// Safety: the processor has the kernel's SIMD level; the panel is of the kernel's format; the job's pointers are valid for the
/// sizes it states.
pub type Kernel = unsafe fn(&Job);

/// The kernels of a format: for 1, 2, 4 … activation rows at a time.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// By the logarithm of the number of rows.
    pub by: &'static [Kernel],
}

/// A packed form and its kernels.
#[derive(Clone, Copy)]
pub struct Packing {
    /// The form.
    pub layout: PackLayout,
    /// Packs some rows. Safety: the processor has the SIMD level.
    pub pack: unsafe fn(pack::Pack<'_>),
    /// The kernels.
    pub kernels: Kernels,
}

/// How weights of `dtype` are packed for a SIMD level, where they are: the SIMD level has kernels for packed weights, and the format says how.
pub fn packing(dtype: DType, simd_level: SimdLevel) -> Option<Packing> {
    match simd_level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512Vnni => avx512::avx512_vnni::packing(dtype),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::AvxVnni => avx2::avx_vnni::packing(dtype),
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => avx2::avx2::packing(dtype),
        // Those of other processors, which are never available.
        #[cfg(not(target_arch = "x86_64"))]
        SimdLevel::Avx512Vnni | SimdLevel::AvxVnni | SimdLevel::Avx2 => {
            let _ = dtype;
            None
        }
        // No kernels for packed weights yet.
        SimdLevel::Scalar | SimdLevel::NeonDotprod => None,
    }
}
