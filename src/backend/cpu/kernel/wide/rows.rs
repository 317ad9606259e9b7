//! Weight rows one after the other against 1, 2 or 4 tokens.

use super::{Wide, formats::Format};
use crate::backend::cpu::{
    act::ActRow,
    kernel::{RowsJob, ask_ahead},
};

/// Blocks of 32 weights that are multiplied side by side, so that their sums do not wait for each other.
const ABREAST: usize = 4;

/// Partial sums of one row and one token.
#[derive(Clone, Copy)]
struct Sums<W: Wide> {
    /// Of products.
    dots: [W::Floats; ABREAST],
    /// Of minima (or scales) times sums of activations, in blocks of 256.
    lows: [W::Floats; 2],
    /// The same in blocks of 32.
    low: [f32; ABREAST],
}

/// Safety: see [`crate::backend::cpu::kernel::RowsKernel`], and [`Wide`].
#[inline(always)]
pub unsafe fn rows<W: Wide, F: Format, const T: usize>(job: &RowsJob<T>) {
    let blocks = job.cols / F::BLOCK;
    let abreast = if F::BLOCK == 32 { ABREAST } else { 1 };
    for r in 0..job.rows {
        // SAFETY: row r exists and has `cols` weights, and the activations have as many codes and the scales to match; the
        // prefetch may name any address.
        unsafe {
            let row = job.weights.add(r * job.row_bytes);
            let mut sums =
                [Sums::<W> { dots: [W::splat(0.0); ABREAST], lows: [W::splat(0.0); 2], low: [0.0; ABREAST] }; T];
            let mut b = 0;
            while b + abreast <= blocks {
                for line in 0..(abreast * F::BYTES).div_ceil(64) {
                    ask_ahead(row.wrapping_add(b * F::BYTES + 64 * line));
                }
                for u in 0..abreast {
                    block::<W, F, T>(job, row.add((b + u) * F::BYTES), b + u, u, &mut sums);
                }
                b += abreast;
            }
            while b < blocks {
                block::<W, F, T>(job, row.add(b * F::BYTES), b, 0, &mut sums);
                b += 1;
            }
            for t in 0..T {
                *job.out.add(t * job.stride + r) = finish::<W, F>(&sums[t]);
            }
        }
    }
}

/// Adds block `b` at `p`.
#[inline(always)]
unsafe fn block<W: Wide, F: Format, const T: usize>(
    job: &RowsJob<T>,
    p: *const u8,
    b: usize,
    u: usize,
    sums: &mut [Sums<W>; T],
) {
    let groups = F::BLOCK / 32;
    // SAFETY: by the contract of `rows`.
    unsafe {
        let (scales, minima) = F::scales::<W>(p);
        let low_of = if F::MINIMA { &minima } else { &scales };
        // Blocks of one group keep their scale in a register; others need a table.
        let (mut both, mut single) = ([[0f32; 16]; T], [0f32; T]);
        for t in 0..T {
            let act = &job.acts[t];
            if F::BLOCK == 32 {
                single[t] = scales[0] * *act.scales.add(b);
                sums[t].low[u] += low_of[0] * *act.sums32.add(b);
            } else {
                scaled::<W, F>(&scales, act.scales.add(8 * b), &mut both[t]);
                lows::<W, F>(low_of, act, b, &mut sums[t].lows);
            }
        }
        for g in 0..groups {
            let codes = F::group::<W>(p, g);
            let codes = if F::EIGHT && W::SIGNED { W::flip(codes) } else { codes };
            // An index known at compile time keeps the sums in registers.
            let k = if F::BLOCK == 32 { u } else { g & 3 };
            let k = if T == 4 { k & 1 } else { k };
            for t in 0..T {
                let x = W::load(job.acts[t].codes.add(32 * (b * groups + g)).cast());
                let dot = if F::EIGHT { W::dot::<true>(codes, x) } else { W::dot::<false>(codes, x) };
                let scale = if F::BLOCK == 32 {
                    W::splat(single[t])
                } else if F::FINE {
                    W::halves(both[t][2 * g], both[t][2 * g + 1])
                } else {
                    W::splat(both[t][g])
                };
                sums[t].dots[k] = W::fma(dot, scale, sums[t].dots[k]);
            }
        }
    }
}

/// The scales of 256 weights times the 8 of their activations.
#[inline(always)]
unsafe fn scaled<W: Wide, F: Format>(scales: &[f32; 16], x: *const f32, both: &mut [f32; 16]) {
    let (s, to) = (scales.as_ptr(), both.as_mut_ptr());
    // SAFETY: the caller's activations have 8 scales; features by the contract of `Wide`.
    unsafe {
        if F::FINE {
            let [a, b] = W::twice(x);
            W::write(W::mul(W::read(s), a), to);
            W::write(W::mul(W::read(s.add(8)), b), to.add(8));
        } else {
            W::write(W::mul(W::read(s), W::read(x)), to);
        }
    }
}

/// Adds minima (or scales, of formats with an offset) times the activations' sums of block `b` of 256 weights.
#[inline(always)]
unsafe fn lows<W: Wide, F: Format>(minima: &[f32; 16], act: &ActRow, b: usize, lows: &mut [W::Floats; 2]) {
    // SAFETY: the activations have sums for every block; features by the contract of `Wide`.
    unsafe {
        let m = minima.as_ptr();
        if F::FINE {
            lows[0] = W::fma(W::read(m), W::read(act.sums16.add(16 * b)), lows[0]);
            lows[1] = W::fma(W::read(m.add(8)), W::read(act.sums16.add(16 * b + 8)), lows[1]);
        } else {
            lows[0] = W::fma(W::read(m), W::read(act.sums32.add(8 * b)), lows[0]);
        }
    }
}

/// The result of one row and token.
#[inline(always)]
unsafe fn finish<W: Wide, F: Format>(s: &Sums<W>) -> f32 {
    // Signed codes have no offset left.
    let factor = match () {
        () if F::MINIMA => 1.0,
        () if F::EIGHT && W::SIGNED => 0.0,
        () => F::OFFSET,
    };
    // SAFETY: features by the contract of `Wide`.
    unsafe {
        let [a, b, c, d] = s.dots;
        let dots = W::sum(W::add(W::add(a, b), W::add(c, d)));
        let low = W::sum(W::add(s.lows[0], s.lows[1])) + ((s.low[0] + s.low[1]) + (s.low[2] + s.low[3]));
        // Not-a-number and infinities in the sums of the activations are in their scales too, and so in `dots`.
        if factor == 0.0 { dots } else { dots - factor * low }
    }
}
