//! Kernels of quantised formats over an instruction set for integer dot products, [`IntDot`]: AVX2, AVX-VNNI, AVX-512 VNNI and
//! NEON with dot products. Formats come from their own description ([`BlockFormat`]).
//!
//! `rows` multiplies a row at a time, `panel` 16 rows with many tokens; the other files are the instructions. A step gives sums of
//! four products; scales are applied to them in f32, minima and offsets through the sums of the activations.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panel;
mod rows;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub use avx512::avx512_vnni;
#[cfg(target_arch = "aarch64")]
pub use neon::dotprod;
#[cfg(target_arch = "x86_64")]
pub use x86::{avx_vnni, avx2};

use crate::quant::{
    format::{BlockFormat, values},
    unpack::Unpack,
};

/// An instruction set: vectors of one or two groups of 32 quants, and eight f32 lanes for each group.
///
/// All functions are unsafe for one reason: pointers must be readable (or writable) for what they name, and the processor must
/// have the features; no pointer needs alignment. All are `#[inline(always)]`, to be inlined into functions that enable the
/// features.
#[allow(clippy::missing_safety_doc)]
pub trait IntDot: Unpack {
    /// [`IntDot::LANES`] f32 values.
    type Floats: Copy;
    /// Scales of eight groups: one or two each.
    type Scales: Copy;

    /// Groups of a vector, 1 or 2.
    const GROUPS: usize;
    /// f32 values of a vector: eight for each group.
    const LANES: usize = 8 * Self::GROUPS;
    /// Tokens whose sums registers hold together.
    const TOKENS: usize;
    /// Quants of 8 bits are multiplied as signed numbers, 128 less than the quant.
    const SIGNED: bool;

    /// A value, which stands for the processor's features.
    unsafe fn new() -> Self;
    /// Writes a vector of quants.
    unsafe fn store(b: Self::Bytes, p: *mut u8);
    /// A vector of activations.
    unsafe fn activations(p: *const i8) -> Self::Bytes;

    /// Sums of four neighbouring products of quants and activations. Quants are without sign (below 64 unless `EIGHT`), but signed
    /// where `EIGHT` and [`IntDot::SIGNED`].
    unsafe fn dot<const EIGHT: bool>(quants: Self::Bytes, x: Self::Bytes) -> Self::Floats;
    /// Sums of `4 · STEPS` products for a row a lane and each of `T` tokens: row r's quants at `quants + 64 i + 4 r`, token t's
    /// activations at `x[t] + 4 i`, for i below `STEPS`. `SUMS` steps of the largest quants stay below 2¹⁵ when pairs of products
    /// are added up; 1 means quants as for `dot` with `EIGHT`.
    unsafe fn dots<const T: usize, const STEPS: usize, const SUMS: usize>(
        quants: *const u8,
        x: [*const i8; T],
    ) -> [Self::Floats; T];
    /// 16 rows of quants, `[16][32 · GROUPS]`, to `[8 · GROUPS][16][4]`.
    unsafe fn interleave(from: *const u8, to: *mut u8);

    /// The first eight numbers (16 if `SUB16`) times `d`; the others become 0.
    unsafe fn times<const SUB16: bool>(s: &[f32; 16], d: f32) -> [f32; 16];
    /// The scales of eight groups (of 16 sub-blocks if `SUB16`) times those of their activations.
    unsafe fn scales<const SUB16: bool>(s: &[f32; 16], x: *const f32) -> Self::Scales;
    /// The scales of a vector's groups, the first of which is `g`, as the lanes of `dot` want them.
    unsafe fn group_scales<const SUB16: bool>(s: &Self::Scales, g: usize) -> Self::Floats;
    /// `sum` plus the products of eight numbers (16 if `SUB16`), in any lanes.
    unsafe fn lows<const SUB16: bool>(m: &[f32; 16], x: *const f32, sum: Self::Floats) -> Self::Floats;

    /// `x` in every lane.
    unsafe fn splat(x: f32) -> Self::Floats;
    /// f32 values.
    unsafe fn read(p: *const f32) -> Self::Floats;
    /// Writes f32 values.
    unsafe fn write(x: Self::Floats, p: *mut f32);
    /// `a · b`.
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a + b`.
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c − a · b`.
    unsafe fn fnma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The sum of all.
    unsafe fn sum(x: Self::Floats) -> f32;
}

/// Groups that a kernel takes at a time: 256 weights.
const TURN: usize = 8;

/// Quants of a format use all 8 bits.
pub const fn eight<F: BlockFormat>() -> bool {
    F::LARGEST == 255
}

/// How many sums of two products of a format's quants with activations (127 at most) can be added in 16 bits; 1 for quants of 8
/// bits, which are multiplied as signed numbers.
pub const fn sums_in_16_bits<F: BlockFormat>() -> usize {
    if eight::<F>() {
        return 1;
    }
    let most = 32767 / (2 * 127 * F::LARGEST as usize);
    assert!(most >= 2, "a format's quants are of 6 bits, or of 8");
    if most >= 8 {
        8
    } else if most >= 4 {
        4
    } else {
        2
    }
}

/// A format has two scales a group, not one.
const fn sub16<F: BlockFormat>() -> bool {
    F::SUB_BLOCK == 16
}

/// What is left to subtract of the offset, in units of the scale: nothing where quants of 8 bits are signed.
fn offset<W: IntDot, F: BlockFormat>() -> f32 {
    if eight::<F>() && W::SIGNED { 0.0 } else { f32::from(F::OFFSET) }
}

/// Block `k` of those at `p`. Safety: it is readable, and stays.
#[inline(always)]
unsafe fn block<'a, F: BlockFormat>(p: *const u8, k: usize) -> &'a [u8] {
    // SAFETY: by the contract.
    unsafe { std::slice::from_raw_parts(p.add(k * F::BYTES), F::BYTES) }
}

/// The values of a vector's groups, the first of which is group `g` of `n` at `p`, as `W` multiplies them. Where a vector has a group
/// more than there are, it repeats the last.
///
/// Safety: the blocks of `n` groups are readable, and `g` is below `n`.
#[inline(always)]
unsafe fn quants<W: IntDot, F: BlockFormat>(w: W, p: *const u8, g: usize, n: usize) -> W::Bytes {
    let per_block = F::BLOCK / 32;
    let second = if W::GROUPS == 2 && g + 1 < n { g + 1 } else { g };
    // SAFETY: by the contract.
    let (a, b) = unsafe { (block::<F>(p, g / per_block), block::<F>(p, second / per_block)) };
    let values = values::<F, W>(w, w.groups((a, g % per_block), (b, second % per_block)));
    if eight::<F>() && W::SIGNED { w.flip(values) } else { values }
}

/// Scales and minima of the first `groups` groups, whole blocks, at `p`.
///
/// Safety: the blocks are readable.
#[inline(always)]
unsafe fn scales<W: IntDot, F: BlockFormat>(w: W, p: *const u8, groups: usize) -> ([f32; 16], [f32; 16]) {
    let n = F::BLOCK / F::SUB_BLOCK;
    let (mut s, mut m) = ([0.0; 16], [0.0; 16]);
    if F::BLOCK == 32 * TURN {
        // SAFETY: by the contract.
        unsafe {
            let of = F::scales(w, block::<F>(p, 0));
            s = if sub16::<F>() { W::times::<true>(&of.s, of.d) } else { W::times::<false>(&of.s, of.d) };
            if F::MINIMA {
                m = if sub16::<F>() { W::times::<true>(&of.m, of.dmin) } else { W::times::<false>(&of.m, of.dmin) };
            }
        }
        return (s, m);
    }
    for k in 0..groups * 32 / F::BLOCK {
        // SAFETY: by the contract.
        let of = F::scales(w, unsafe { block::<F>(p, k) });
        for j in 0..n {
            s[k * n + j] = of.d * of.s[j];
            if F::MINIMA {
                m[k * n + j] = of.dmin * of.m[j];
            }
        }
    }
    (s, m)
}

/// `$do` for every group `$g` of a turn that begins a vector of `$w`. The numbers of the groups are constants, and so become addresses
/// and shifts.
macro_rules! each_vector {
    ($w:ty, $g:ident => $do:expr) => {
        each_vector!($w, $g => $do, 0 1 2 3 4 5 6 7)
    };
    ($w:ty, $g:ident => $do:expr, $($n:literal)*) => {$(
        if $n % <$w as IntDot>::GROUPS == 0 {
            const $g: usize = $n;
            $do
        }
    )*};
}
use each_vector;

/// The kernels of one instruction set, entered through functions that enable its features.
macro_rules! kernels {
    ($(#[$doc:meta])* $module:ident, $isa:ty, $features:literal) => {
        $(#[$doc])*
        pub mod $module {
            use super::super::{panel, rows, sub16, sums_in_16_bits};
            use crate::{
                backend::cpu::kernel::{Kernels, RowsJob, panel::{Fill, FillJob, MultiplyJob}},
                quant::{DType, Float, format::{BlockFormat, WithFormat}},
            };

            /// The kernels of a block format; for a float, which.
            pub fn kernels(dtype: DType) -> Result<Kernels, Float> {
                dtype.with_format(Of)
            }

            struct Of;

            impl WithFormat for Of {
                type Output = Kernels;

                fn run<F: BlockFormat>(self) -> Kernels {
                    let multiply = match (sub16::<F>(), sums_in_16_bits::<F>()) {
                        (true, 8) => multiply::<true, 8>,
                        (true, 4) => multiply::<true, 4>,
                        (true, 2) => multiply::<true, 2>,
                        (true, _) => multiply::<true, 1>,
                        (false, 8) => multiply::<false, 8>,
                        (false, 4) => multiply::<false, 4>,
                        (false, 2) => multiply::<false, 2>,
                        (false, _) => multiply::<false, 1>,
                    };
                    Kernels {
                        one: rows::<F, 1>,
                        two: rows::<F, 2>,
                        four: rows::<F, 4>,
                        panel: Some(Fill { fill: fill::<F>, multiply, sub16: sub16::<F>() }),
                    }
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn rows<F: BlockFormat, const T: usize>(job: &RowsJob<T>) {
                // SAFETY: the features are enabled here; the rest is the caller's.
                unsafe { rows::rows::<$isa, F, T>(job) }
            }

            #[target_feature(enable = $features)]
            unsafe fn fill<F: BlockFormat>(job: &FillJob) {
                // SAFETY: as above.
                unsafe { panel::fill::<$isa, F>(job) }
            }

            #[target_feature(enable = $features)]
            unsafe fn multiply<const SUB16: bool, const SUMS: usize>(job: &MultiplyJob<'_>) {
                // SAFETY: as above.
                unsafe { panel::multiply::<$isa, SUB16, SUMS>(job) }
            }
        }
    };
}
use kernels;
