//! From the file's blocks to panels. Plain Rust; run with the instructions of the SIMD level, which the loops over bytes are
//! vectorised for.

use super::{GROUP, PackLayout, ROWS, SUPERBLOCK};
use crate::{
    backend::cpu::{
        simd::F32x16,
        simd_level::{SimdKernel, SimdLevel, dispatch},
    },
    quant::{
        bits::{bytes, put_f16},
        format::{BlockFormat, PackedScales, Scales},
        unpack::Portable,
    },
};
use std::marker::PhantomData;

/// Some rows that become one panel.
pub struct Pack<'a> {
    /// The rows, 1 to 16; a panel's other rows become zeros.
    pub rows: &'a [&'a [u8]],
    /// Weights of a row.
    pub cols: usize,
    /// A panel of zeros.
    pub panel: &'a mut [u8],
}

/// Packs rows of `F` with the instructions of a SIMD level. Safety: the processor has the SIMD level.
pub unsafe fn pack<F: BlockFormat>(simd_level: SimdLevel, job: Pack<'_>) {
    if let Some(layout) = const { PackLayout::of::<F>() } {
        // SAFETY: by the contract; packing has no other conditions.
        unsafe { dispatch(simd_level, PackAs::<F>(job, layout, PhantomData)) }
    }
}

struct PackAs<'a, F>(Pack<'a>, PackLayout, PhantomData<F>);

impl<F: BlockFormat> SimdKernel for PackAs<'_, F> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let PackAs(Pack { rows, cols, panel }, layout, _) = self;
        let mut quants = [[0u8; GROUP * SUPERBLOCK]; ROWS];
        let (mut done, mut rest) = (0, panel);
        while done < cols {
            let n = (cols - done).min(GROUP * SUPERBLOCK);
            let groups = n / GROUP;
            let (here, after) = std::mem::take(&mut rest).split_at_mut(layout.superblock_bytes(groups));
            rest = after;
            let (to_quants, to_scales) = here.split_at_mut(groups * layout.quant_bytes());
            for (r, row) in rows.iter().enumerate() {
                let from = &row[done / F::BLOCK * F::BYTES..][..n / F::BLOCK * F::BYTES];
                for (b, block) in from.chunks_exact(F::BYTES).enumerate() {
                    for (g, to) in quants[r][b * F::BLOCK..][..F::BLOCK].chunks_exact_mut(GROUP).enumerate() {
                        to.copy_from_slice(&bytes(F::quants(Portable, (block, g))));
                    }
                    put_scales(&layout, &F::scales(Portable, block), r, b, groups, to_scales);
                }
            }
            for (g, to) in to_quants.chunks_exact_mut(layout.quant_bytes()).enumerate() {
                match layout.bits {
                    (2, 0) => planes::<2, 0>(&quants, g, to),
                    (2, 1) => planes::<2, 1>(&quants, g, to),
                    (4, 0) => planes::<4, 0>(&quants, g, to),
                    (4, 1) => planes::<4, 1>(&quants, g, to),
                    (4, 2) => planes::<4, 2>(&quants, g, to),
                    (8, 0) => planes::<8, 0>(&quants, g, to),
                    // `PackLayout::of` does not compile with others.
                    (_, _) => debug_assert!(false, "no planes of {:?} bits", layout.bits),
                }
            }
            done += n;
        }
    }
}

/// The scales of block `b` (of a superblock of `groups` groups) of row `r`. They are whole numbers and halves (or a power of two),
/// so nothing is rounded.
#[inline(always)]
fn put_scales(layout: &PackLayout, scales: &Scales, r: usize, b: usize, groups: usize, to: &mut [u8]) {
    // Where what a superblock has once begins, for the formats that have it: these have whole superblocks.
    let once = groups * layout.scale_bytes() + 2 * r;
    let sub_blocks = if layout.sub16 { 16 } else { 8 };
    match layout.scales {
        PackedScales::Half => put_f16(to, 2 * ROWS * b + 2 * r, scales.d),
        PackedScales::HalfMin => {
            put_f16(to, 4 * ROWS * b + 2 * r, scales.d);
            put_f16(to, 4 * ROWS * b + 2 * ROWS + 2 * r, -scales.dmin);
        }
        // The exponent, one more than that of the f32; of 2^-128 and 2^-127, which have no exponent, 0 and 1.
        PackedScales::Power => {
            let exponent = (scales.d.to_bits() >> 23) as u8;
            to[ROWS * b + r] = if exponent > 0 { exponent + 1 } else { u8::from(scales.d.to_bits() == 0x0040_0000) };
        }
        PackedScales::ByteMin => {
            put_f16(to, once, scales.d);
            put_f16(to, once + 2 * ROWS, scales.dmin);
            for j in 0..sub_blocks {
                to[2 * ROWS * j + r] = scales.s[j] as u8;
                to[2 * ROWS * j + ROWS + r] = scales.m[j] as u8;
            }
        }
        PackedScales::Byte => {
            put_f16(to, once, scales.d);
            (0..sub_blocks).for_each(|j| to[ROWS * j + r] = scales.s[j] as i8 as u8);
        }
        PackedScales::Nibble => {
            put_f16(to, once, scales.d);
            put_f16(to, once + 2 * ROWS, scales.dmin);
            (0..sub_blocks).for_each(|j| to[ROWS * j + r] = scales.s[j] as u8 | (scales.m[j] as u8) << 4);
        }
    }
}

/// Group `g` of all rows to planes of `LOW` and `MORE` bits: numbers known where this is compiled, because loading waits for
/// it.
#[inline(always)]
fn planes<const LOW: usize, const MORE: usize>(quants: &[[u8; GROUP * SUPERBLOCK]; ROWS], g: usize, to: &mut [u8]) {
    let (low, high) = to.split_at_mut(64 * LOW);
    for (r, row) in quants.iter().enumerate() {
        // Words of four columns: what becomes four bytes of a chunk.
        let row = &row[GROUP * g..][..GROUP];
        let words: [u32; 8] =
            std::array::from_fn(|k| u32::from_le_bytes([row[4 * k], row[4 * k + 1], row[4 * k + 2], row[4 * k + 3]]));
        plane::<LOW>(low, r, words.map(|w| w & mask(LOW)));
        if MORE > 0 {
            plane::<MORE>(high, r, words.map(|w| (w >> LOW) & mask(MORE)));
        }
    }
}

/// The lowest bits of each of four bytes.
const fn mask(bits: usize) -> u32 {
    0x0101_0101 * ((1u32 << bits) - 1)
}

/// The words of row `r` to a plane of `BITS` bits.
#[inline(always)]
fn plane<const BITS: usize>(to: &mut [u8], r: usize, words: [u32; 8]) {
    for (chunk, words) in to.chunks_exact_mut(64).zip(words.chunks_exact(8 / BITS)) {
        let v = words.iter().enumerate().fold(0, |v, (q, w)| v | w << (BITS * q));
        chunk[4 * r..4 * r + 4].copy_from_slice(&v.to_le_bytes());
    }
}
