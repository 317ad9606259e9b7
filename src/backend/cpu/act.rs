//! Activations as int8 quants: a scale for every 32 of them, and the sums of quants that formats with a minimum need.
//!
//! They are stored twice. Kernels that read several groups of a row at a time take arrays of one kind of value each (a structure
//! of arrays); kernels of packed weights take an [`ActBlock`] for every 32 activations (an array of structures).
//!
//! With [`Activations::Int16`] a row has two planes of quants: those of the activations, and those of the rounding errors that
//! the first plane leaves. A product with both costs a second pass of integer arithmetic over weights that are in registers
//! already, and no memory traffic.

use super::{
    buffer::{Aligned, Out},
    pool::Pool,
    simd::F32x16,
    simd_level::{SimdKernel, SimdLevel, dispatch},
};
use crate::{error::Result, ops::linear::Activations};

/// Rows of activations, each quantised by itself: `x ≈ scale · quant` with quants −127 ..= 127. A scale is a 127th of the largest
/// magnitude among 32 neighbours, so the error of an element is at most half a scale. ggml's k-quants share a scale among 256
/// neighbours; 32 keep an outlier from coarsening activations that are far from it.
#[derive(Default)]
pub struct Acts {
    quants: Aligned<i8>,
    scales: Aligned<f32>,
    sums16: Aligned<f32>,
    sums32: Aligned<f32>,
    blocks: Aligned<ActBlock>,
    stride: usize,
    cols: usize,
    /// Whether every row has a second plane, with the quants of the first plane's rounding errors.
    fine: bool,
}

/// A block of 32 activations as kernels of packed weights read it: one cache line with everything that belongs to them, so that
/// a kernel that multiplies many rows needs one address for each.
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct ActBlock {
    /// The quants.
    pub quants: [i8; 32],
    /// Their scale.
    pub scale: f32,
    /// Scale times the sum of all quants.
    pub sum: f32,
    /// Scale times the sum of the first 16 quants, and of the last 16.
    pub sums16: [f32; 2],
    /// The sum of the first 16 quants, and of the last 16.
    pub isums16: [i32; 2],
    /// The sum of all quants.
    pub isum: i32,
    unused: u32,
}

/// One plane of one quantised row, as kernels take it. Quants are zero from the last column up to the next multiple of 64.
#[derive(Clone, Copy, Debug)]
pub struct ActRow {
    /// The quants.
    pub quants: *const i8,
    /// The scale of each 32 quants.
    pub scales: *const f32,
    /// Scale times sum, of each 16 quants.
    pub sums16: *const f32,
    /// Scale times sum, of each 32 quants.
    pub sums32: *const f32,
    /// The same row as blocks of 32, for kernels of packed weights.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub blocks: *const ActBlock,
}

impl ActRow {
    /// No row, for kernels that read f32 activations.
    pub const NONE: ActRow = ActRow {
        quants: std::ptr::null(),
        scales: std::ptr::null(),
        sums16: std::ptr::null(),
        sums32: std::ptr::null(),
        blocks: std::ptr::null(),
    };
}

/// The number of columns rounded up to whole 64s: what a plane of a row takes, in quants.
fn padded(cols: usize) -> usize {
    cols.next_multiple_of(64)
}

impl Acts {
    /// The planes of a row: 1, or 2 with [`Activations::Int16`].
    fn planes_a_row(&self) -> usize {
        1 + usize::from(self.fine)
    }

    /// Makes room for `rows` rows of `cols` activations. [`Activations::F32`] has no quants and counts as [`Activations::Int16`].
    pub fn reserve(&mut self, activations: Activations, rows: usize, cols: usize) {
        self.fine = match activations {
            Activations::Int8 => false,
            Activations::Int16 | Activations::F32 => true,
        };
        let n = rows.saturating_mul(padded(cols)).saturating_mul(self.planes_a_row());
        self.quants.grow(n);
        self.scales.grow(n / 32);
        self.sums16.grow(n / 16);
        self.sums32.grow(n / 32);
        self.blocks.grow(n / 32);
    }

    /// The memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        let sums = self.sums16.bytes() + self.sums32.bytes();
        self.quants.bytes() + self.scales.bytes() + sums + self.blocks.bytes()
    }

    /// The columns of the rows that the last [`Acts::fill`] quantised.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Quantises `x`, `[rows, cols]`, where `cols` is a multiple of 32.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub fn fill(
        &mut self,
        pool: &Pool,
        simd_level: SimdLevel,
        activations: Activations,
        x: &[f32],
        cols: usize,
    ) -> Result<()> {
        let rows = x.len() / cols;
        self.reserve(activations, rows, cols);
        self.stride = padded(cols);
        self.cols = cols;
        let stride = self.stride;
        let planes = self.planes_a_row();
        let (quants, scales) = (Out::new(&mut self.quants), Out::new(&mut self.scales));
        let (sums16, sums32) = (Out::new(&mut self.sums16), Out::new(&mut self.sums32));
        let blocks = Out::new(&mut self.blocks);
        // A row takes little time: an item has at least 8192 activations where there are that many.
        let per = (8192 / cols).max(1);
        pool.run(rows.div_ceil(per), &|_, item| {
            for r in item * per..rows.min((item + 1) * per) {
                let n = planes * stride;
                let at = r * n;
                // SAFETY: rows do not overlap, and each is of one item.
                let (quants, scales, sums16, sums32, blocks) = unsafe {
                    (
                        quants.slice(at, n),
                        scales.slice(at / 32, n / 32),
                        sums16.slice(at / 16, n / 16),
                        sums32.slice(at / 32, n / 32),
                        blocks.slice(at / 32, n / 32),
                    )
                };
                let x = &x[r * cols..(r + 1) * cols];
                let job = Quantise { x, quants, scales, sums16, sums32, blocks, stride };
                // SAFETY: the SIMD level is one of this processor's; the slices have the lengths that `Quantise` wants.
                unsafe { dispatch(simd_level, job) }
            }
        })
    }

    /// Fills `to` with the planes (one or two a row) of some of the rows that the last [`Acts::fill`] quantised.
    ///
    /// # Panics
    /// If one of `rows` does not exist.
    pub fn gather(&self, rows: &[u32], to: &mut Vec<ActRow>) {
        let (planes, n) = (self.planes_a_row(), self.stride);
        let most = rows.iter().max().map_or(0, |r| (*r as usize + 1) * planes * n);
        assert!(self.quants.len() >= most && self.blocks.len() >= most / 32 && self.sums32.len() >= most / 32);
        to.clear();
        to.reserve(rows.len() * planes);
        for r in rows {
            for p in 0..planes {
                let at = (*r as usize * planes + p) * n;
                to.push(ActRow {
                    quants: self.quants[at..].as_ptr(),
                    scales: self.scales[at / 32..].as_ptr(),
                    sums16: self.sums16[at / 16..].as_ptr(),
                    sums32: self.sums32[at / 32..].as_ptr(),
                    blocks: self.blocks[at / 32..].as_ptr(),
                });
            }
        }
    }
}

/// Quantises one row into one or two planes, each of `stride` quants (the length of `x` rounded up to whole 64s). The other
/// slices have matching lengths.
struct Quantise<'a> {
    x: &'a [f32],
    quants: &'a mut [i8],
    scales: &'a mut [f32],
    sums16: &'a mut [f32],
    sums32: &'a mut [f32],
    blocks: &'a mut [ActBlock],
    stride: usize,
}

impl SimdKernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(mut self) {
        let groups = self.x.len() / 32;
        let mut left = [0f32; 32];
        for g in 0..groups {
            left.copy_from_slice(&self.x[32 * g..32 * g + 32]);
            for plane in 0..self.quants.len() / self.stride {
                // SAFETY: the features are there by the contract.
                unsafe { self.group::<L>(plane * self.stride / 32 + g, &mut left) }
            }
        }
        for plane in 0..self.quants.len() / self.stride {
            let (from, to) = (plane * self.stride + 32 * groups, (plane + 1) * self.stride);
            self.quants[from..to].fill(0);
            self.scales[from / 32..to / 32].fill(0.0);
            self.sums16[from / 16..to / 16].fill(0.0);
            self.sums32[from / 32..to / 32].fill(0.0);
            self.blocks[from / 32..to / 32].fill(ActBlock::default());
        }
    }
}

impl Quantise<'_> {
    /// Quantises a group of 32, `x`, into the g-th place; `x` becomes the rounding errors.
    ///
    /// # Safety
    /// The processor has the features of `L`.
    #[inline(always)]
    unsafe fn group<L: F32x16>(&mut self, g: usize, x: &mut [f32; 32]) {
        let quants = &mut self.quants[32 * g..32 * g + 32];
        // SAFETY: `x` and `quants` have 32 elements; the processor has the features by the contract.
        let (scale, whole_sums) = unsafe {
            let (a, b) = (L::load(x.as_ptr()), L::load(x.as_ptr().add(16)));
            let largest = a.magnitude().max(b.magnitude()).largest();
            let inverse = if largest > 1e-30 { 127.0 / largest } else { 0.0 };
            let (qa, qb) = (a.mul(L::splat(inverse)).round(), b.mul(L::splat(inverse)).round());
            // Not-a-number becomes the quant 0 and stays visible in the scale.
            qa.store_i8(quants.as_mut_ptr());
            qb.store_i8(quants.as_mut_ptr().add(16));
            let (sa, sb) = (qa.sum(), qb.sum());
            // Infinities and not-a-number make the sums not finite, and these the scale.
            let scale = largest / 127.0 + 0.0 * (sa + sb);
            a.sub(qa.mul(L::splat(scale))).store(x.as_mut_ptr());
            b.sub(qb.mul(L::splat(scale))).store(x.as_mut_ptr().add(16));
            (scale, [sa, sb])
        };
        let (sums16, isums16) = (whole_sums.map(|s| s * scale), whole_sums.map(|s| s as i32));
        let sum = sums16[0] + sums16[1];
        self.scales[g] = scale;
        self.sums16[2 * g..2 * g + 2].copy_from_slice(&sums16);
        self.sums32[g] = sum;
        let block = &mut self.blocks[g];
        block.quants.copy_from_slice(quants);
        (block.scale, block.sum, block.sums16) = (scale, sum, sums16);
        (block.isums16, block.isum) = (isums16, isums16[0] + isums16[1]);
    }
}
