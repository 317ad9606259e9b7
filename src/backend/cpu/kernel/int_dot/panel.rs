//! Panels of 16 rows (see [`crate::backend::cpu::kernel::panel`]), as many rows at a time as a vector has lanes.

use super::{IntDot, TURN, each_vector, offset, quants, scales};
use crate::{
    backend::cpu::{
        act::ActRow,
        kernel::panel::{FillJob, MultiplyJob, ROWS},
    },
    quant::format::BlockFormat,
};

/// Unpacks 16 rows. Safety: a valid job; the processor has the features of `W`.
#[inline(always)]
pub unsafe fn fill<W: IntDot, F: BlockFormat>(job: &FillJob) {
    let groups = job.cols / 32;
    let mut room = [0; 32 * TURN * ROWS];
    let mut g = 0;
    // SAFETY: the rows have `groups` groups; the rest is the caller's.
    unsafe {
        while g + TURN <= groups {
            some_groups::<W, F>(job, &mut room, g, TURN);
            g += TURN;
        }
        // Rows of blocks of 256 have whole turns.
        while F::BLOCK < 32 * TURN && g < groups {
            some_groups::<W, F>(job, &mut room, g, F::BLOCK / 32);
            g += F::BLOCK / 32;
        }
    }
}

/// Unpacks `n` groups of 16 rows, whole blocks from group `first` on; at most a turn. `room` is for a vector of each row, then the
/// next vectors; there, rows that do not exist stay as they are.
#[inline(always)]
unsafe fn some_groups<W: IntDot, F: BlockFormat>(
    job: &FillJob,
    room: &mut [u8; 32 * TURN * ROWS],
    first: usize,
    n: usize,
) {
    let per_group = 32 / F::SUB_BLOCK;
    let room = room.as_mut_ptr();
    // SAFETY: rows below `job.rows` exist and have these groups; the buffers have the sizes that the job states, which are
    // rounded up to whole vectors.
    unsafe {
        let w = W::new();
        for r in 0..ROWS {
            let p = job.weights.wrapping_add(r * job.row_bytes + first * 32 / F::BLOCK * F::BYTES);
            let (s, m) = if r < job.rows { scales::<W, F>(w, p, n) } else { ([0.0; 16], [0.0; 16]) };
            for j in 0..n * per_group {
                let at = (first * per_group + j) * ROWS + r;
                *job.scales.add(at) = s[j];
                *job.mins.add(at) = if F::MINIMA { m[j] } else { s[j] * offset::<W, F>() };
            }
            if r < job.rows {
                let to = room.add(32 * W::GROUPS * r);
                each_vector!(W, G => {
                    if G < n {
                        W::store(quants::<W, F>(w, p, G, n), to.add(32 * ROWS * G));
                    }
                });
            }
        }
        for g in (0..n).step_by(W::GROUPS) {
            W::interleave(room.add(32 * ROWS * g), job.quants.add((first + g) * 32 * ROWS));
        }
    }
}

/// Multiplies a panel with tokens. Safety: a valid job; the processor has the features of `W`.
#[inline(always)]
pub unsafe fn multiply<W: IntDot, const SUB16: bool, const SUMS: usize>(job: &MultiplyJob<'_>) {
    let mut done = 0;
    while done < job.acts.len() {
        let acts = &job.acts[done..];
        // SAFETY: `out` has room for every token, by the job.
        unsafe {
            let out = job.out.add(done * job.stride);
            done += match acts.len().min(W::TOKENS) {
                8.. => tokens::<W, SUB16, SUMS, 8>(job, acts, out),
                4.. => tokens::<W, SUB16, SUMS, 4>(job, acts, out),
                2.. => tokens::<W, SUB16, SUMS, 2>(job, acts, out),
                ..2 => tokens::<W, SUB16, SUMS, 1>(job, acts, out),
            };
        }
    }
}

/// The first `T` of `acts`; gives `T`.
#[inline(always)]
unsafe fn tokens<W: IntDot, const SUB16: bool, const SUMS: usize, const T: usize>(
    job: &MultiplyJob<'_>,
    acts: &[ActRow],
    out: *mut f32,
) -> usize {
    for first in (0..job.rows).step_by(W::LANES) {
        // SAFETY: the panel has 16 rows, `acts` at least `T` tokens and `out` room for `rows` numbers of each.
        unsafe {
            let sums = some_rows::<W, SUB16, SUMS, T>(job, acts, first);
            for t in 0..T {
                let (to, n) = (out.add(t * job.stride + first), job.rows - first);
                if n >= W::LANES {
                    W::write(sums[t], to);
                } else {
                    let mut y = [0f32; ROWS];
                    W::write(sums[t], y.as_mut_ptr());
                    to.copy_from_nonoverlapping(y.as_ptr(), n);
                }
            }
        }
    }
    T
}

/// As many rows of the panel as a vector has lanes, from `first` on, with `T` tokens.
#[inline(always)]
unsafe fn some_rows<W: IntDot, const SUB16: bool, const SUMS: usize, const T: usize>(
    job: &MultiplyJob<'_>,
    acts: &[ActRow],
    first: usize,
) -> [W::Floats; T] {
    // SAFETY: every read is within the panel or an activation row, by the contract of `tokens`.
    unsafe {
        let act: [&ActRow; T] = std::array::from_fn(|t| &acts[t]);
        let mut sums = [W::splat(0.0); T];
        for g in 0..job.groups {
            let quants = job.quants.add(g * 32 * ROWS + 4 * first);
            let x: [*const i8; T] = std::array::from_fn(|t| act[t].quants.add(32 * g));
            if SUB16 {
                let mut both = [W::splat(0.0); T];
                for h in 0..2 {
                    let at = (2 * g + h) * ROWS + first;
                    let (s, m) = (W::read(job.scales.add(at)), W::read(job.mins.add(at)));
                    let dots = W::dots::<T, 4, SUMS>(quants.add(h * 16 * ROWS), x.map(|x| x.add(16 * h)));
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
                let dots = W::dots::<T, 8, SUMS>(quants, x);
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
