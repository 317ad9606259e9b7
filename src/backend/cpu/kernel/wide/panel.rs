//! Panels of 16 rows (see [`crate::backend::cpu::kernel::panel`]), taken as twice eight.

use super::{Wide, formats::Format};
use crate::backend::cpu::{
    act::ActRow,
    kernel::panel::{FillJob, MultiplyJob, ROWS},
};

/// How many sums of two products of a format's codes with activations (127 at most) can be added in 16 bits; 1 for codes of 8
/// bits, which are multiplied as signed numbers.
pub const fn sums<F: Format>() -> usize {
    if F::EIGHT {
        return 1;
    }
    let most = 32767 / (2 * 127 * F::LARGEST);
    if most >= 8 {
        8
    } else if most >= 4 {
        4
    } else {
        2
    }
}

/// Unpacks 16 rows. Safety: a valid job, and [`Wide`].
#[inline(always)]
pub unsafe fn fill<W: Wide, F: Format>(job: &FillJob) {
    let (per, groups) = (if F::FINE { 16 } else { 32 }, F::BLOCK / 32);
    let (n, words) = (F::BLOCK / per, job.codes.cast::<u32>());
    for r in 0..ROWS {
        for b in 0..job.cols / F::BLOCK {
            // SAFETY: rows below `job.rows` exist and have `cols` weights; the buffers have the sizes that the job states.
            unsafe {
                if r >= job.rows {
                    for j in b * n..(b + 1) * n {
                        *job.scales.add(j * ROWS + r) = 0.0;
                        *job.mins.add(j * ROWS + r) = 0.0;
                    }
                    continue;
                }
                let p = job.weights.add(r * job.row_bytes + b * F::BYTES);
                let (scales, minima) = F::scales::<W>(p);
                for j in 0..n {
                    let at = (b * n + j) * ROWS + r;
                    *job.scales.add(at) = scales[j];
                    *job.mins.add(at) = match () {
                        () if F::MINIMA => minima[j],
                        () if F::EIGHT && W::SIGNED => 0.0,
                        () => scales[j] * F::OFFSET,
                    };
                }
                for g in 0..groups {
                    let codes = F::group::<W>(p, g);
                    let mut eight = [0u32; 8];
                    W::store(if F::EIGHT && W::SIGNED { W::flip(codes) } else { codes }, eight.as_mut_ptr().cast());
                    for (i, word) in eight.into_iter().enumerate() {
                        *words.add(((b * groups + g) * 8 + i) * ROWS + r) = word;
                    }
                }
            }
        }
    }
}

/// Multiplies a panel with tokens. Safety: a valid job, and [`Wide`].
#[inline(always)]
pub unsafe fn multiply<W: Wide, const FINE: bool, const SUMS: usize>(job: &MultiplyJob<'_>) {
    let mut done = 0;
    while done < job.acts.len() {
        let acts = &job.acts[done..];
        // SAFETY: `out` has room for every token, by the job.
        unsafe {
            let out = job.out.add(done * job.stride);
            done += match acts.len() {
                4.. => tokens::<W, FINE, SUMS, 4>(job, acts, out),
                2.. => tokens::<W, FINE, SUMS, 2>(job, acts, out),
                _ => tokens::<W, FINE, SUMS, 1>(job, acts, out),
            };
        }
    }
}

/// The first `T` of `acts`; gives `T`.
#[inline(always)]
unsafe fn tokens<W: Wide, const FINE: bool, const SUMS: usize, const T: usize>(
    job: &MultiplyJob<'_>,
    acts: &[ActRow],
    out: *mut f32,
) -> usize {
    for first in (0..job.rows).step_by(8) {
        // SAFETY: the panel has 16 rows, `acts` at least `T` tokens and `out` room for `rows` numbers of each.
        unsafe {
            let sums = eight_rows::<W, FINE, SUMS, T>(job, acts, first);
            for t in 0..T {
                let mut y = [0f32; 8];
                W::write(sums[t], y.as_mut_ptr());
                let n = (job.rows - first).min(8);
                out.add(t * job.stride + first).copy_from_nonoverlapping(y.as_ptr(), n);
            }
        }
    }
    T
}

/// Rows `first .. first + 8` of the panel with `T` tokens.
#[inline(always)]
unsafe fn eight_rows<W: Wide, const FINE: bool, const SUMS: usize, const T: usize>(
    job: &MultiplyJob<'_>,
    acts: &[ActRow],
    first: usize,
) -> [W::Floats; T] {
    // SAFETY: every read is within the panel or an activation row, by the contract of `tokens`.
    unsafe {
        let act: [&ActRow; T] = std::array::from_fn(|t| &acts[t]);
        let mut sums = [W::splat(0.0); T];
        for g in 0..job.groups {
            let codes = job.codes.add(g * 32 * ROWS + 4 * first);
            let x: [*const i8; T] = std::array::from_fn(|t| act[t].codes.add(32 * g));
            if FINE {
                let mut both = [W::splat(0.0); T];
                for h in 0..2 {
                    let at = (2 * g + h) * ROWS + first;
                    let (s, m) = (W::read(job.scales.add(at)), W::read(job.mins.add(at)));
                    let dots = W::dots::<T, 4, SUMS>(codes.add(h * 16 * ROWS), x.map(|x| x.add(16 * h)));
                    for t in 0..T {
                        both[t] = W::fma(dots[t], s, both[t]);
                        sums[t] = W::fnma(m, W::splat(*act[t].sums16.add(2 * g + h)), sums[t]);
                    }
                }
                for t in 0..T {
                    sums[t] = W::fma(both[t], W::splat(*act[t].scales.add(g)), sums[t]);
                }
            } else {
                let (s, m) = (W::read(job.scales.add(g * ROWS + first)), W::read(job.mins.add(g * ROWS + first)));
                let dots = W::dots::<T, 8, SUMS>(codes, x);
                for t in 0..T {
                    let scale = W::mul(s, W::splat(*act[t].scales.add(g)));
                    sums[t] = W::fma(dots[t], scale, sums[t]);
                    sums[t] = W::fnma(m, W::splat(*act[t].sums32.add(g)), sums[t]);
                }
            }
        }
        sums
    }
}
