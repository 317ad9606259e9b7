//! Kernels that take 32 codes at a time, written once over [`Wide`]: AVX2, AVX-VNNI (two names of one register size) and NEON
//! with dot products (two registers side by side).
//!
//! `formats` unpacks, `rows` multiplies a row at a time, `panel` 16 rows with many tokens; `x86` and `neon` are the
//! instructions. A step gives eight sums of four products; scales are applied to them in f32, minima and offsets through the
//! sums of the activations.

mod formats;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panel;
mod rows;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub use neon::dotprod;
#[cfg(target_arch = "x86_64")]
pub use x86::{avx_vnni, avx2};

/// Eight numbers at a time, and 32 bytes.
///
/// All functions are unsafe for one reason: the processor must have the features of the implementation, and pointers must be
/// readable (or writable) for what they name; no pointer needs alignment. All are `#[inline(always)]`, to be inlined into
/// functions that enable the features.
#[allow(clippy::missing_safety_doc)]
pub trait Wide: Copy {
    /// 32 bytes.
    type Bytes: Copy;
    /// Eight f32 numbers.
    type Floats: Copy;

    /// Codes of 8 bits are multiplied as signed numbers, 128 less than the code.
    const SIGNED: bool;

    /// 32 bytes.
    unsafe fn load(p: *const u8) -> Self::Bytes;
    /// Writes 32 bytes.
    unsafe fn store(b: Self::Bytes, p: *mut u8);
    /// Nibbles of 16 bytes: 16 low ones, then 16 high ones.
    unsafe fn nibbles(p: *const u8) -> Self::Bytes;
    /// Every byte shifted right by `shift`, 0 to 7, and masked; `mask` has no bit that a byte does not keep.
    unsafe fn field(b: Self::Bytes, shift: usize, mask: u8) -> Self::Bytes;
    /// `low | high << S` of every byte; `high` is below `256 >> S`.
    unsafe fn join<const S: i32>(low: Self::Bytes, high: Self::Bytes) -> Self::Bytes;
    /// Entries of a table by nibbles.
    unsafe fn lookup(table: &[u8; 16], nibbles: Self::Bytes) -> Self::Bytes;
    /// Sets bit 4 of byte i where bit i of the 32-bit word at `p` is set.
    unsafe fn fifth(p: *const u8, codes: Self::Bytes) -> Self::Bytes;
    /// Inverts the highest bit: codes of 8 bits without sign to signed numbers, and back.
    unsafe fn flip(b: Self::Bytes) -> Self::Bytes;

    /// Sums of four neighbouring products of `codes` and the signed numbers `x`. `codes` are without sign (below 64 unless
    /// `EIGHT`), but signed where `EIGHT` and [`Wide::SIGNED`].
    unsafe fn dot<const EIGHT: bool>(codes: Self::Bytes, x: Self::Bytes) -> Self::Floats;
    /// Sums of `4 · STEPS` products for 8 rows and each of `T` tokens: row r's codes at `codes + 64 i + 4 r`, token t's at
    /// `x[t] + 4 i`, for i below `STEPS`. `SUMS` steps of the largest codes stay below 2¹⁵ when pairs of products are added
    /// up; 1 means codes as for `dot` with `EIGHT`.
    unsafe fn dots<const T: usize, const STEPS: usize, const SUMS: usize>(
        codes: *const u8,
        x: [*const i8; T],
    ) -> [Self::Floats; T];

    /// A half-precision number.
    unsafe fn half(p: *const u8) -> f32;

    /// Eight times `x`.
    unsafe fn splat(x: f32) -> Self::Floats;
    /// Four times `a`, four times `b`.
    unsafe fn halves(a: f32, b: f32) -> Self::Floats;
    /// Eight numbers.
    unsafe fn read(p: *const f32) -> Self::Floats;
    /// Eight numbers, each twice.
    unsafe fn twice(p: *const f32) -> [Self::Floats; 2];
    /// Writes eight numbers.
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

/// The kernels of one instruction set, entered through functions that enable its features.
macro_rules! kernels {
    ($(#[$doc:meta])* $module:ident, $wide:ty, $features:literal) => {
        $(#[$doc])*
        pub mod $module {
            use super::super::{formats::{self, Format}, panel, rows};
            use crate::{
                backend::cpu::kernel::{Kernels, RowsJob, by_format, panel::{Fill, FillJob, MultiplyJob}},
                quant::DType,
            };

            /// The kernels of a quantised dtype.
            pub fn kernels(dtype: DType) -> Kernels {
                by_format!(dtype, formats, of)
            }

            fn of<F: Format>() -> Kernels {
                let multiply = match (F::FINE, panel::sums::<F>()) {
                    (true, 8) => multiply::<true, 8>,
                    (true, 4) => multiply::<true, 4>,
                    (true, _) => multiply::<true, 2>,
                    (false, 8) => multiply::<false, 8>,
                    (false, 4) => multiply::<false, 4>,
                    (false, _) => multiply::<false, 1>,
                };
                Kernels {
                    one: rows::<F, 1>,
                    two: rows::<F, 2>,
                    four: rows::<F, 4>,
                    panel: Some(Fill { fill: fill::<F>, multiply, fine: F::FINE }),
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn rows<F: Format, const T: usize>(job: &RowsJob<T>) {
                // SAFETY: the features are enabled here; the rest is the caller's.
                unsafe { rows::rows::<$wide, F, T>(job) }
            }

            #[target_feature(enable = $features)]
            unsafe fn fill<F: Format>(job: &FillJob) {
                // SAFETY: as above.
                unsafe { panel::fill::<$wide, F>(job) }
            }

            #[target_feature(enable = $features)]
            unsafe fn multiply<const FINE: bool, const SUMS: usize>(job: &MultiplyJob<'_>) {
                // SAFETY: as above.
                unsafe { panel::multiply::<$wide, FINE, SUMS>(job) }
            }
        }
    };
}
use kernels;
