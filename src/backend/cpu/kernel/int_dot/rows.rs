//! Weight rows one after the other against 1, 2 or 4 tokens.

use super::{IntDot, TURN, each_vector, eight, offset, quants, scales, sub16};
use crate::{
    backend::cpu::kernel::{RowsJob, ask_ahead},
    quant::format::BlockFormat,
};

/// Partial sums of one row and one token: several, so that they do not wait for each other.
#[derive(Clone, Copy)]
struct Sums<W: IntDot> {
    /// Of products.
    dots: [W::Floats; 4],
    /// Of minima (or scales) times sums of activations.
    lows: W::Floats,
}

/// Safety: see [`crate::backend::cpu::kernel::RowsKernel`]; the processor has the features of `W`.
#[inline(always)]
pub unsafe fn rows<W: IntDot, F: BlockFormat, const T: usize>(job: &RowsJob<T>) {
    let turn_bytes = 32 * TURN / F::BLOCK * F::BYTES;
    for r in 0..job.rows {
        // SAFETY: row r exists and has `cols` weights, and the activations have as many quants and the scales to match; the
        // prefetch may name any address.
        unsafe {
            let w = W::new();
            let row = job.weights.add(r * job.row_bytes);
            let mut sums = [Sums::<W> { dots: [W::splat(0.0); 4], lows: W::splat(0.0) }; T];
            let mut g = 0;
            while g + TURN <= job.cols / 32 {
                let p = row.add(g / TURN * turn_bytes);
                for line in 0..turn_bytes.div_ceil(64) {
                    ask_ahead(p.wrapping_add(64 * line));
                }
                turn::<W, F, T>(w, job, p, g, &mut sums);
                g += TURN;
            }
            // Rows of blocks of 256 have whole turns.
            while F::BLOCK < 32 * TURN && g < job.cols / 32 {
                let block = g * 32 / F::BLOCK;
                last_block::<W, F, T>(w, job, row.add(block * F::BYTES), g, &mut sums);
                g += F::BLOCK / 32;
            }
            for t in 0..T {
                *job.out.add(t * job.stride + r) = finish::<W, F>(&sums[t]);
            }
        }
    }
}

/// Adds eight groups at `p`, the first of which is group `first` of the row.
#[inline(always)]
unsafe fn turn<W: IntDot, F: BlockFormat, const T: usize>(
    w: W,
    job: &RowsJob<T>,
    p: *const u8,
    first: usize,
    sums: &mut [Sums<W>; T],
) {
    // SAFETY: by the contract of `rows`.
    unsafe {
        let (s, m) = scales::<W, F>(w, p, TURN);
        let low_of = if F::MINIMA { &m } else { &s };
        let mut both = [activation_scales::<W, F>(&s, job.acts[0].scales.add(first)); T];
        for t in 0..T {
            let act = &job.acts[t];
            both[t] = activation_scales::<W, F>(&s, act.scales.add(first));
            sums[t].lows = if sub16::<F>() {
                W::lows::<true>(low_of, act.sums16.add(2 * first), sums[t].lows)
            } else {
                W::lows::<false>(low_of, act.sums32.add(first), sums[t].lows)
            };
        }
        each_vector!(W, G => {
            let quants = quants::<W, F>(w, p, G, TURN);
            let k = (G / W::GROUPS) & if T == 4 { 1 } else { 3 };
            for t in 0..T {
                let x = W::activations(job.acts[t].quants.add(32 * (first + G)));
                add::<W, F>(quants, x, &both[t], G, &mut sums[t].dots[k]);
            }
        });
    }
}

/// The scales of eight groups times those of the activations at `x`.
#[inline(always)]
unsafe fn activation_scales<W: IntDot, F: BlockFormat>(s: &[f32; 16], x: *const f32) -> W::Scales {
    // SAFETY: by the contract of `rows`.
    unsafe { if sub16::<F>() { W::scales::<true>(s, x) } else { W::scales::<false>(s, x) } }
}

/// Adds the products of a vector of quants, the first group of which is `g`, to `sum`.
#[inline(always)]
unsafe fn add<W: IntDot, F: BlockFormat>(
    quants: W::Bytes,
    x: W::Bytes,
    both: &W::Scales,
    g: usize,
    sum: &mut W::Floats,
) {
    // SAFETY: by the contract of `rows`.
    unsafe {
        let dot = if eight::<F>() { W::dot::<true>(quants, x) } else { W::dot::<false>(quants, x) };
        let scale = if sub16::<F>() { W::group_scales::<true>(both, g) } else { W::group_scales::<false>(both, g) };
        *sum = W::fma(dot, scale, *sum);
    }
}

/// Adds one block at `p`, shorter than a turn, the first group of which is group `first` of the row.
#[inline(always)]
unsafe fn last_block<W: IntDot, F: BlockFormat, const T: usize>(
    w: W,
    job: &RowsJob<T>,
    p: *const u8,
    first: usize,
    sums: &mut [Sums<W>; T],
) {
    let groups = F::BLOCK / 32;
    let per_group = 32 / F::SUB_BLOCK;
    // SAFETY: by the contract of `rows`; the activations' quants go on to the next multiple of 64.
    unsafe {
        let (s, m) = scales::<W, F>(w, p, groups);
        let low_of = if F::MINIMA { &m } else { &s };
        for t in 0..T {
            let act = &job.acts[t];
            // What a turn reads beyond the block counts as nothing: its scales are 0.
            let (mut x_scales, mut x_sums) = ([0f32; TURN], [0f32; 2 * TURN]);
            for g in 0..groups {
                x_scales[g] = *act.scales.add(first + g);
            }
            let of = if sub16::<F>() { act.sums16 } else { act.sums32 };
            for j in 0..groups * per_group {
                x_sums[j] = *of.add(first * per_group + j);
            }
            sums[t].lows = if sub16::<F>() {
                W::lows::<true>(low_of, x_sums.as_ptr(), sums[t].lows)
            } else {
                W::lows::<false>(low_of, x_sums.as_ptr(), sums[t].lows)
            };
            let both = activation_scales::<W, F>(&s, x_scales.as_ptr());
            for g in (0..groups).step_by(W::GROUPS) {
                let x = W::activations(act.quants.add(32 * (first + g)));
                add::<W, F>(quants::<W, F>(w, p, g, groups), x, &both, g, &mut sums[t].dots[0]);
            }
        }
    }
}

/// The result of one row and token.
#[inline(always)]
unsafe fn finish<W: IntDot, F: BlockFormat>(s: &Sums<W>) -> f32 {
    let factor = if F::MINIMA { 1.0 } else { offset::<W, F>() };
    // SAFETY: the processor has the features of `W`, by the contract of `rows`.
    unsafe {
        let [a, b, c, d] = s.dots;
        let dots = W::add(W::add(a, b), W::add(c, d));
        // Not-a-number and infinities in the sums of the activations are in their scales too, and so in `dots`.
        W::sum(if factor == 0.0 { dots } else { W::fnma(s.lows, W::splat(factor), dots) })
    }
}
