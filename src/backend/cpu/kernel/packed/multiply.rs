//! Products with packed weights: sixteen rows, a slice of as many as a vector has lanes at a time.
//!
//! Integer sums of 16 or 32 products start at minus the format's offset times the sum of the activations' quants, so the offset
//! costs nothing and loses nothing; they are scaled in f32. Minima meet the activations' sums.

use super::{GROUP, Job, PackLayout, ROWS, SUPERBLOCK};
use crate::{
    backend::cpu::{act::ActBlock, kernel::int_dot},
    quant::format::{BlockFormat, PackedScales},
};

/// The vectors of an instruction set: a 32-bit lane for each row of a slice.
///
/// Safety of all methods: the processor has the instructions, and what is pointed to is readable.
pub trait Vectors: Copy {
    /// Four quants of each row, or an integer of each.
    type Ints: Copy;
    /// A number of each row.
    type Floats: Copy;
    /// Integer sums of products.
    type Sums: Copy;
    /// Rows of a slice.
    const LANES: usize;
    /// Whether quants of 8 bits are multiplied as signed numbers, not less their offset.
    const SIGNED: bool;

    /// Four quants of each row.
    unsafe fn load(p: *const u8) -> Self::Ints;
    /// `mask` of the bits of each byte from bit `from` on, moved to bit `to`.
    unsafe fn part(v: Self::Ints, from: usize, to: usize, mask: u8) -> Self::Ints;
    /// The bits of both.
    unsafe fn or(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// The entries of a table.
    unsafe fn lookup(table: &[u8; 16], indices: Self::Ints) -> Self::Ints;
    /// Bytes less 128, as signed numbers.
    unsafe fn flip(v: Self::Ints) -> Self::Ints;

    /// Sums that begin at `x`.
    unsafe fn start(x: i32) -> Self::Sums;
    /// Adds products of four quants a row with four activations; the quants are of 8 bits if `EIGHT`, and signed where
    /// [`Vectors::SIGNED`] says so.
    unsafe fn add<const EIGHT: bool>(sums: Self::Sums, quants: Self::Ints, four: i32) -> Self::Sums;
    /// Makes room for as many further products as [`int_dot::sums_in_16_bits`] says.
    unsafe fn widen(sums: Self::Sums) -> Self::Sums;
    /// The sums.
    unsafe fn finish(sums: Self::Sums) -> Self::Floats;

    /// Halves.
    unsafe fn halves(p: *const u8) -> Self::Floats;
    /// Bytes without sign.
    unsafe fn whole(p: *const u8) -> Self::Floats;
    /// Bytes with sign.
    unsafe fn signed(p: *const u8) -> Self::Floats;
    /// The nibbles of bytes from bit `from` on.
    unsafe fn nibbles(p: *const u8, from: i32) -> Self::Floats;
    /// Scales of MXFP4, 2^(e - 128).
    unsafe fn powers(p: *const u8) -> Self::Floats;

    /// `x` for every row.
    unsafe fn splat(x: f32) -> Self::Floats;
    /// `a · b`.
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    unsafe fn fma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c − a · b`.
    unsafe fn fnma(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Writes the first `n` numbers.
    unsafe fn write(x: Self::Floats, n: usize, to: *mut f32);
}

/// The layout of a format as a constant, which the compiler folds before it decides what to unroll and to inline.
struct Of<F>(std::marker::PhantomData<F>);

impl<F: BlockFormat> Of<F> {
    /// For a format that is not packed, whose kernels nobody gets, an empty one.
    const LAYOUT: PackLayout = match PackLayout::of::<F>() {
        Some(layout) => layout,
        None => PackLayout { bits: (2, 0), sub16: false, scales: PackedScales::Half },
    };
}

/// The kernels of packed weights of one instruction set, entered through functions that enable its features, for 1, 2, 4 … activation
/// rows: as many as there are registers for.
macro_rules! packed_kernels {
    ($module:ident, $vectors:ty, $level:ident, $features:literal, $($tokens:literal)*) => {
        /// The kernels for packed weights of one SIMD level.
        pub mod $module {
            use crate::{
                backend::cpu::{
                    kernel::packed::{Job, Kernels, PackLayout, Packing, multiply::multiply as multiply_with, pack},
                    simd_level::SimdLevel,
                },
                quant::{
                    DType,
                    format::{BlockFormat, WithFormat},
                },
            };

            /// How a format is packed; `None` for floats and for formats that are not.
            pub fn packing(dtype: DType) -> Option<Packing> {
                dtype.with_format(Of).ok().flatten()
            }

            struct Of;

            impl WithFormat for Of {
                type Output = Option<Packing>;

                fn run<F: BlockFormat>(self) -> Option<Packing> {
                    let layout = PackLayout::of::<F>()?;
                    let kernels =
                        Kernels { by: &[$(multiply::<F, $tokens>),*] };
                    // SAFETY: the caller of `pack` says that the processor has this SIMD level.
                    Some(Packing { layout, pack: |job| unsafe { pack::pack::<F>(SimdLevel::$level, job) }, kernels })
                }
            }

            /// Safety: see [`crate::backend::cpu::kernel::packed::Kernel`].
            #[target_feature(enable = $features)]
            unsafe fn multiply<F: BlockFormat, const T: usize>(job: &Job) {
                // SAFETY: the features are enabled here; the rest is the caller's.
                unsafe { multiply_with::<$vectors, F, T>(job) }
            }
        }
    };
}
pub(super) use packed_kernels;

/// Multiplies a panel with `T` activation rows.
///
/// Safety: see [`super::Kernel`]; the processor has the instructions of `W`.
#[inline(always)]
pub unsafe fn multiply<W: Vectors, F: BlockFormat, const T: usize>(job: &Job) {
    const { assert!(ROWS == W::LANES || ROWS == 2 * W::LANES, "there are sums for one slice or two") }
    // SAFETY: every read is within the panel or an activation row, by the contract; the prefetch may name any address.
    unsafe {
        let acts: [*const ActBlock; T] = std::array::from_fn(|t| (*job.acts.add(t)).blocks);
        let mut sums = [[W::splat(0.0); T]; 2];
        let groups = job.cols / GROUP;
        let (mut p, mut done) = (job.panel, 0);
        while done < groups {
            let n = SUPERBLOCK.min(groups - done);
            // With a known number of groups all of them are unrolled. Where quants are bytes, whose loop is short, that brings 4 %
            // on an Emerald Rapids; it costs as much where they are unpacked.
            if const { Of::<F>::LAYOUT.bits.0 == 8 } && n == SUPERBLOCK {
                one_superblock::<W, F, T>(job, p, done, SUPERBLOCK, &acts, &mut sums);
            } else {
                one_superblock::<W, F, T>(job, p, done, n, &acts, &mut sums);
            }
            p = p.add(Of::<F>::LAYOUT.superblock_bytes(n));
            done += n;
        }
        for slice in 0..const { ROWS / W::LANES } {
            let (first, sums) = (slice * W::LANES, &sums[slice]);
            let n = job.rows.saturating_sub(first).min(W::LANES);
            for t in 0..T {
                W::write(sums[t], n, job.out.add(t * job.stride).wrapping_add(first));
            }
        }
    }
}

/// `groups` groups at `p`, the first of which is group `first` of the row.
#[inline(always)]
unsafe fn one_superblock<W: Vectors, F: BlockFormat, const T: usize>(
    job: &Job,
    p: *const u8,
    first: usize,
    groups: usize,
    acts: &[*const ActBlock; T],
    sums: &mut [[W::Floats; T]; 2],
) {
    // SAFETY: as `multiply`.
    unsafe {
        for slice in 0..const { ROWS / W::LANES } {
            one_slice::<W, F, T>(job, Place { p, first, groups, slice }, acts, &mut sums[slice]);
        }
    }
}

/// A slice of a superblock.
#[derive(Clone, Copy)]
struct Place {
    /// Where the superblock begins.
    p: *const u8,
    /// Its first group's number in the row.
    first: usize,
    /// Its groups.
    groups: usize,
    /// Which of the slices of rows.
    slice: usize,
}

/// One slice of a superblock's rows.
#[inline(always)]
unsafe fn one_slice<W: Vectors, F: BlockFormat, const T: usize>(
    job: &Job,
    Place { p, first, groups, slice }: Place,
    acts: &[*const ActBlock; T],
    sums: &mut [W::Floats; T],
) {
    // SAFETY: as `multiply`.
    unsafe {
        let row = slice * W::LANES;
        let scales = p.add(groups * Of::<F>::LAYOUT.quant_bytes());
        let once = scales.add(groups * Of::<F>::LAYOUT.scale_bytes() + 2 * row);
        let d = match Of::<F>::LAYOUT.scales {
            PackedScales::ByteMin | PackedScales::Nibble => (W::halves(once), W::halves(once.add(2 * ROWS))),
            PackedScales::Byte => (W::halves(once), W::splat(0.0)),
            PackedScales::Half | PackedScales::HalfMin | PackedScales::Power => (W::splat(0.0), W::splat(0.0)),
        };
        for i in 0..groups {
            let quants = p.add(i * Of::<F>::LAYOUT.quant_bytes());
            let s = scales.add(i * Of::<F>::LAYOUT.scale_bytes());
            if slice == 0 {
                // Every line of a superblock, scales too, shared out among its groups.
                let lines = const { Of::<F>::LAYOUT.superblock_bytes(SUPERBLOCK).div_ceil(64 * SUPERBLOCK) };
                job.prefetch(p.wrapping_add(64 * i * lines), lines);
            }
            let quants = quants.add(4 * row);
            if Of::<F>::LAYOUT.sub16 {
                sub_blocks_of_16::<W, F, T>(quants, s.add(row), d, first + i, acts, sums);
            } else {
                one_scale::<W, F, T>(quants, s, row, d, first + i, acts, sums);
            }
        }
    }
}

/// One group with one scale a row.
#[inline(always)]
unsafe fn one_scale<W: Vectors, F: BlockFormat, const T: usize>(
    quants: *const u8,
    s: *const u8,
    row: usize,
    (d, dmin): (W::Floats, W::Floats),
    g: usize,
    acts: &[*const ActBlock; T],
    sums: &mut [W::Floats; T],
) {
    // SAFETY: as `multiply`.
    unsafe {
        let scale = match Of::<F>::LAYOUT.scales {
            PackedScales::Half | PackedScales::HalfMin => W::halves(s.add(2 * row)),
            PackedScales::ByteMin => W::mul(W::whole(s.add(row)), d),
            PackedScales::Power => W::powers(s.add(row)),
            PackedScales::Byte => W::mul(W::signed(s.add(row)), d),
            // Scales of sub-blocks of 16: see `PackLayout::of`.
            PackedScales::Nibble => W::splat(0.0),
        };
        let mut dots = [W::start(0); T];
        if subtracts_offset::<W, F>() {
            for t in 0..T {
                dots[t] = W::start(-i32::from(F::OFFSET) * (*acts[t].add(g)).isum);
            }
        }
        add_products::<W, F, T, 0, 8>(quants, g, acts, &mut dots);
        for t in 0..T {
            let x = W::mul(scale, W::splat((*acts[t].add(g)).scale));
            sums[t] = W::fma(W::finish(dots[t]), x, sums[t]);
        }
        // Plain loops: closures that go through the core library are compiled without these instructions where they are not inlined.
        match Of::<F>::LAYOUT.scales {
            PackedScales::HalfMin => {
                let m = W::halves(s.add(2 * ROWS + 2 * row));
                for t in 0..T {
                    sums[t] = W::fma(m, W::splat((*acts[t].add(g)).sum), sums[t]);
                }
            }
            PackedScales::ByteMin => {
                let m = W::mul(W::whole(s.add(ROWS + row)), dmin);
                for t in 0..T {
                    sums[t] = W::fnma(m, W::splat((*acts[t].add(g)).sum), sums[t]);
                }
            }
            PackedScales::Half | PackedScales::Byte | PackedScales::Power | PackedScales::Nibble => {}
        }
    }
}

/// One group with two scales a row.
#[inline(always)]
unsafe fn sub_blocks_of_16<W: Vectors, F: BlockFormat, const T: usize>(
    quants: *const u8,
    s: *const u8,
    (d, dmin): (W::Floats, W::Floats),
    g: usize,
    acts: &[*const ActBlock; T],
    sums: &mut [W::Floats; T],
) {
    // SAFETY: as `multiply`.
    unsafe {
        let mut both = [W::splat(0.0); T];
        for h in 0..2 {
            let of = s.add(ROWS * h);
            let scale = match Of::<F>::LAYOUT.scales {
                PackedScales::Nibble => W::mul(W::nibbles(of, 0), d),
                PackedScales::Byte => W::mul(W::signed(of), d),
                // No layout of sub-blocks of 16 has these: see `PackLayout::of`.
                PackedScales::Half | PackedScales::HalfMin | PackedScales::ByteMin | PackedScales::Power => {
                    W::splat(0.0)
                }
            };
            let mut dots = [W::start(0); T];
            if subtracts_offset::<W, F>() {
                for t in 0..T {
                    dots[t] = W::start(-i32::from(F::OFFSET) * (*acts[t].add(g)).isums16[h]);
                }
            }
            if h == 0 {
                add_products::<W, F, T, 0, 4>(quants, g, acts, &mut dots);
            } else {
                add_products::<W, F, T, 4, 8>(quants, g, acts, &mut dots);
            }
            for t in 0..T {
                both[t] = W::fma(W::finish(dots[t]), scale, both[t]);
            }
            if Of::<F>::LAYOUT.scales == PackedScales::Nibble {
                let m = W::mul(W::nibbles(of, 4), dmin);
                for t in 0..T {
                    sums[t] = W::fnma(m, W::splat((*acts[t].add(g)).sums16[h]), sums[t]);
                }
            }
        }
        for t in 0..T {
            sums[t] = W::fma(both[t], W::splat((*acts[t].add(g)).scale), sums[t]);
        }
    }
}

/// Whether the format has an offset that these vectors do not take away from quants of 8 bits themselves.
const fn subtracts_offset<W: Vectors, F: BlockFormat>() -> bool {
    F::OFFSET != 0 && !(W::SIGNED && int_dot::eight::<F>())
}

/// Adds the products of columns `4 FROM .. 4 TO` of group `g` to `dots`.
#[inline(always)]
unsafe fn add_products<W: Vectors, F: BlockFormat, const T: usize, const FROM: usize, const TO: usize>(
    quants: *const u8,
    g: usize,
    acts: &[*const ActBlock; T],
    dots: &mut [W::Sums; T],
) {
    let eight = const { int_dot::eight::<F>() };
    // SAFETY: as `multiply`.
    unsafe {
        for k in FROM..TO {
            let w = step::<W, F>(quants, k);
            for t in 0..T {
                // Activations `4 k .. 4 k + 4`, for every row.
                let four = acts[t].add(g).cast::<i32>().add(k).read();
                dots[t] = if eight { W::add::<true>(dots[t], w, four) } else { W::add::<false>(dots[t], w, four) };
            }
            if (k + 1 - FROM) % const { int_dot::sums_in_16_bits::<F>() } == 0 || k + 1 == TO {
                for t in 0..T {
                    dots[t] = W::widen(dots[t]);
                }
            }
        }
    }
}

/// The quants of columns `4 k .. 4 k + 4` of a group, for the rows of a slice.
#[inline(always)]
unsafe fn step<W: Vectors, F: BlockFormat>(quants: *const u8, k: usize) -> W::Ints {
    // SAFETY: the group is readable, by the contract of `multiply`.
    unsafe {
        let chunk = |i: usize| quants.add(64 * i);
        let (bits, more) = Of::<F>::LAYOUT.bits;
        // The numbers of bits that are told apart here: another one is no other's.
        const { assert!(matches!(Of::<F>::LAYOUT.bits, (2 | 4 | 8, 0..=2))) }
        let low = match bits {
            8 => W::load(chunk(k)),
            4 => W::part(W::load(chunk(k / 2)), 4 * (k % 2), 0, 15),
            // 2.
            _ => W::part(W::load(chunk(k / 4)), 2 * (k % 4), 0, 3),
        };
        let all = match more {
            1 => W::or(low, W::part(W::load(chunk(bits)), k, bits, 1)),
            2 => W::or(low, W::part(W::load(chunk(bits + k / 4)), 2 * (k % 4), bits, 3)),
            // 0.
            _ => low,
        };
        let values = match F::TABLE {
            Some(table) => W::lookup(table, all),
            None => all,
        };
        if const { W::SIGNED && int_dot::eight::<F>() } { W::flip(values) } else { values }
    }
}
