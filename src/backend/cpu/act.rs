//! Activations as 8-bit numbers: one f32 scale per 32, and the sums that formats with a minimum need.

use super::{
    buffer::{Aligned, Out},
    lanes::Lanes,
    pool::Pool,
    tier::{Floats, Tier, dispatch},
};
use crate::error::Result;

/// Rows of activations, each quantised by itself: `x ≈ scale · code` with codes −127 ..= 127 and a scale of a 127th of the
/// largest magnitude among 32 neighbours, so the error of an element is at most half a scale. ggml's k-quants use 256
/// neighbours; 32 keeps outliers from coarsening what is far from them.
#[derive(Default)]
pub struct Acts {
    codes: Aligned<i8>,
    scales: Aligned<f32>,
    sums16: Aligned<f32>,
    sums32: Aligned<f32>,
    stride: usize,
    cols: usize,
}

/// One quantised row, as kernels take it. Codes are zero up to the next multiple of 64.
#[derive(Clone, Copy, Debug)]
pub struct ActRow {
    /// Codes.
    pub codes: *const i8,
    /// Scale of each 32.
    pub scales: *const f32,
    /// Scale times sum of codes of each 16.
    pub sums16: *const f32,
    /// Scale times sum of codes of each 32.
    pub sums32: *const f32,
}

impl ActRow {
    /// No row: for kernels that read f32.
    pub const NONE: ActRow = ActRow {
        codes: std::ptr::null(),
        scales: std::ptr::null(),
        sums16: std::ptr::null(),
        sums32: std::ptr::null(),
    };
}

/// Weights of a row rounded up to whole 64s.
fn padded(cols: usize) -> usize {
    cols.next_multiple_of(64)
}

impl Acts {
    /// Room for `rows` rows of `cols` numbers.
    pub fn reserve(&mut self, rows: usize, cols: usize) {
        let n = rows.saturating_mul(padded(cols));
        self.codes.grow(n);
        self.scales.grow(n / 32);
        self.sums16.grow(n / 16);
        self.sums32.grow(n / 32);
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.codes.bytes() + self.scales.bytes() + self.sums16.bytes() + self.sums32.bytes()
    }

    /// Columns that the last [`Acts::fill`] was for.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Quantises `x`, rows of `cols` numbers; `cols` is a multiple of 32.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub fn fill(&mut self, pool: &Pool, tier: Tier, x: &[f32], cols: usize) -> Result<()> {
        let rows = x.len() / cols;
        self.reserve(rows, cols);
        self.stride = padded(cols);
        self.cols = cols;
        let stride = self.stride;
        let (codes, scales) = (Out::new(&mut self.codes), Out::new(&mut self.scales));
        let (sums16, sums32) = (Out::new(&mut self.sums16), Out::new(&mut self.sums32));
        // Rows are cheap: give a thread at least some thousand numbers.
        let per = (8192 / cols).max(1);
        pool.run(rows.div_ceil(per), &|_, item| {
            for r in item * per..rows.min((item + 1) * per) {
                let at = r * stride;
                // SAFETY: rows do not overlap, and each is of one item.
                let job = unsafe {
                    Quantise {
                        x: &x[r * cols..(r + 1) * cols],
                        codes: codes.slice(at, stride),
                        scales: scales.slice(at / 32, stride / 32),
                        sums16: sums16.slice(at / 16, stride / 16),
                        sums32: sums32.slice(at / 32, stride / 32),
                    }
                };
                // SAFETY: the tier is one of this processor's; the slices have the lengths that `Quantise` wants.
                unsafe { dispatch(tier, job) }
            }
        })
    }

    /// Row `r` of the last [`Acts::fill`].
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn row(&self, r: usize) -> ActRow {
        let (at, n) = (r * self.stride, self.stride);
        ActRow {
            codes: self.codes[at..at + n].as_ptr(),
            scales: self.scales[at / 32..(at + n) / 32].as_ptr(),
            sums16: self.sums16[at / 16..(at + n) / 16].as_ptr(),
            sums32: self.sums32[at / 32..(at + n) / 32].as_ptr(),
        }
    }
}

/// One row. `codes` is `x` rounded up to whole 64s, the others are of matching lengths.
struct Quantise<'a> {
    x: &'a [f32],
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums16: &'a mut [f32],
    sums32: &'a mut [f32],
}

impl Floats for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let groups = self.x.len() / 32;
        let mut whole = [0f32; 32];
        for g in 0..groups {
            let x = &self.x[32 * g..32 * g + 32];
            // SAFETY: `x` and `whole` have 32 numbers; the features are there by the contract.
            let (scale, sums) = unsafe {
                let (a, b) = (L::load(x.as_ptr()), L::load(x.as_ptr().add(16)));
                let zero = L::splat(0.0);
                let largest = a.max(b).max(zero.sub(a).max(zero.sub(b))).largest();
                let inverse = if largest > 1e-30 { 127.0 / largest } else { 0.0 };
                let (qa, qb) = (a.mul(L::splat(inverse)).round(), b.mul(L::splat(inverse)).round());
                qa.store(whole.as_mut_ptr());
                qb.store(whole.as_mut_ptr().add(16));
                let (sa, sb) = (qa.sum(), qb.sum());
                // Infinities and not-a-number end up in the sums, and from there in the scale.
                let scale = largest / 127.0 + 0.0 * (sa + sb);
                (scale, [sa * scale, sb * scale])
            };
            for (c, q) in self.codes[32 * g..32 * g + 32].iter_mut().zip(&whole) {
                // Not-a-number becomes 0 here: the scale carries it.
                *c = *q as i8;
            }
            self.scales[g] = scale;
            self.sums16[2 * g..2 * g + 2].copy_from_slice(&sums);
            self.sums32[g] = sums[0] + sums[1];
        }
        self.codes[32 * groups..].fill(0);
        self.scales[groups..].fill(0.0);
        self.sums16[2 * groups..].fill(0.0);
        self.sums32[groups..].fill(0.0);
    }
}
