//! Choosing scales: least squares over several candidates, the common part of all quantisers.
//!
//! A format represents a weight as `s * v` (v one of its levels) or `s * q - m`. Given the levels that the weights take,
//! the best `s` (and `m`) is a linear least-squares problem with a closed form; given the scale, each weight takes its
//! nearest level. Both are alternated from several starting scales, and the start with the least weighted squared error
//! wins. Formats with scales of scales ([`blocks_of_scales`], [`blocks_of_affine`]) then choose the small integers with
//! the rounding of the outer scale in view, and fit the outer scale to all 256 weights.
//!
//! ggml's quantisers (`ggml-quants.c`) work in the same spirit, but weigh large weights more (by their square) where no
//! importance matrix is given; here every weight counts the same unless the caller gives importances.

use super::bits::round_f16;

/// Lanes of the inner loops: sums run in that many independent accumulators, which compilers turn into vectors.
pub const LANES: usize = 8;

/// Below this magnitude a block is taken as zero: the smallest half is 6e-8, and the reciprocals below stay finite.
const TINY: f32 = 1e-20;

/// The sums over the lanes of several accumulators.
///
/// Kept out of line: where compilers see the lanes added up they arrange the loop before for that, lane by lane, and it
/// takes twice as long.
#[inline(never)]
pub fn totals<const N: usize>(lanes: &[[f32; LANES]; N]) -> [f32; N] {
    lanes.map(|l| ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])))
}

/// The integer nearest to `v`, for |v| < 2^22.
#[inline(always)]
pub fn nearest(v: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23: its unit in the last place is 1
    (v + MAGIC) - MAGIC
}

/// `v` within `low..=high`, as plain comparisons: unlike `f32::clamp` that is two instructions a vector.
#[inline(always)]
pub fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    if v < high { v } else { high }
}

/// `1 / v`, or zero where that is of no use.
#[inline(always)]
pub fn reciprocal(v: f32) -> f32 {
    if v.abs() < TINY { 0.0 } else { 1.0 / v }
}

/// The values that a quant can stand for, before scaling.
pub trait Levels: Copy {
    /// The lowest and the highest.
    const ENDS: [f32; 2];
    /// The level nearest to `v`.
    fn level(v: f32) -> f32;
    /// The levels nearest to `v`.
    #[inline(always)]
    fn levels(v: [f32; LANES]) -> [f32; LANES] {
        v.map(Self::level)
    }
    /// Its number in the file.
    fn index(level: f32) -> u8;
}

/// Integers from `-N` to `N - 1`, stored plus `N`.
#[derive(Clone, Copy)]
pub struct Signed<const N: u8>;

impl<const N: u8> Levels for Signed<N> {
    const ENDS: [f32; 2] = [-(N as f32), N as f32 - 1.0];

    #[inline(always)]
    fn level(v: f32) -> f32 {
        nearest(clamp(v, Self::ENDS[0], Self::ENDS[1]))
    }

    #[inline(always)]
    fn index(level: f32) -> u8 {
        (level + f32::from(N)) as u8
    }
}

/// Sums over a sub-block with levels `v`: `w v x` and `w v v`.
#[derive(Clone, Copy, Default)]
struct Sums {
    vx: f32,
    vv: f32,
}

impl Sums {
    /// With the levels nearest to `x * inverse`.
    #[inline(always)]
    fn of<R: Levels, const L: usize>(x: &[f32; L], w: &[f32; L], inverse: f32) -> Sums {
        let (mut vx, mut vv) = ([0f32; LANES], [0f32; LANES]);
        for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
            let v = R::levels(x.map(|x| x * inverse));
            for l in 0..LANES {
                let wv = w[l] * v[l];
                vx[l] += wv * x[l];
                vv[l] += wv * v[l];
            }
        }
        let [vx, vv] = totals(&[vx, vv]);
        Sums { vx, vv }
    }

    /// The best scale for these levels.
    #[inline(always)]
    fn scale(self) -> f32 {
        if self.vv > 0.0 { self.vx / self.vv } else { 0.0 }
    }

    /// How much the squared error falls, from all-zero levels, with scale `s`.
    #[inline(always)]
    fn gain(self, s: f32) -> f32 {
        s * (2.0 * self.vx - s * self.vv)
    }
}

/// The weight of largest magnitude, with its sign.
#[inline(always)]
fn extreme(x: &[f32]) -> f32 {
    let (low, high) = range(x);
    if -low > high { low } else { high }
}

/// The least and the largest weight.
#[inline(always)]
pub fn range(x: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for x in x.as_chunks::<LANES>().0 {
        for l in 0..LANES {
            low[l] = if x[l] < low[l] { x[l] } else { low[l] };
            high[l] = if x[l] > high[l] { x[l] } else { high[l] };
        }
    }
    (low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// The scale `s` of `x ≈ s * v`. Starts: the extreme weight at either end of the levels, and up to `spread` (a fraction)
/// beyond and short of it in `steps` steps each.
#[inline(always)]
pub fn scale<R: Levels, const L: usize>(x: &[f32; L], w: &[f32; L], spread: f32, steps: i32) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < TINY {
        return 0.0;
    }
    let (mut best, mut best_gain) = (0.0, 0.0);
    for k in 0..2 * (2 * steps + 1) {
        let (end, k) = (R::ENDS[(k % 2) as usize], k / 2 - steps);
        let sums = Sums::of::<R, L>(x, w, end * (1.0 + spread * k as f32 / steps as f32) / extreme);
        let s = sums.scale();
        if sums.gain(s) > best_gain {
            (best, best_gain) = (s, sums.gain(s));
        }
    }
    best
}

/// The level numbers of `x ≈ s * v`.
#[inline(always)]
pub fn indices<R: Levels, const L: usize>(x: &[f32; L], s: f32) -> [u8; L] {
    let inverse = reciprocal(s);
    x.map(|x| R::index(R::level(x * inverse)))
}

/// What [`blocks_of_scales`] chose: `x ≈ d * s[j] * level(q)`.
pub struct Scaled<const N: usize> {
    /// The outer scale, a half.
    pub d: f32,
    /// The integer scale of each sub-block.
    pub s: [i8; N],
    /// The level numbers.
    pub q: [u8; 256],
}

/// Fits 256 weights in `N` sub-blocks of `L` with scales in `S::ENDS` and levels `R`.
#[inline(always)]
pub fn blocks_of_scales<S: Levels, R: Levels, const N: usize, const L: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    spread: f32,
    steps: i32,
) -> Scaled<N> {
    let (xs, ws) = (x.as_chunks::<L>().0, w.as_chunks::<L>().0);
    let mut free = [0f32; N];
    for (s, (x, w)) in free.iter_mut().zip(xs.iter().zip(ws)) {
        *s = scale::<R, L>(x, w, spread, steps);
    }
    let largest = free.iter().fold(0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    let mut best = (0.0, [0f32; N], 0.0);
    let mut d = round_f16(largest / S::ENDS[0]);
    for _ in 0..3 {
        // The integers nearest to the free scales, and their neighbours, with the levels that then are nearest.
        let (mut s, mut gain, mut vx, mut vv) = ([0f32; N], 0.0, 0.0, 0.0);
        for j in 0..N {
            let center = S::level(free[j] * reciprocal(d));
            let mut top = (0.0, 0.0, Sums::default());
            for candidate in [center - 1.0, center, center + 1.0] {
                let c = clamp(candidate, S::ENDS[0], S::ENDS[1]);
                let sums = Sums::of::<R, L>(&xs[j], &ws[j], reciprocal(d * c));
                if sums.gain(d * c) > top.1 {
                    top = (c, sums.gain(d * c), sums);
                }
            }
            s[j] = top.0;
            gain += top.1;
            vx += top.0 * top.2.vx;
            vv += top.0 * top.0 * top.2.vv;
        }
        if gain > best.2 {
            best = (d, s, gain);
        }
        // The outer scale that is best for these integers and levels.
        let next = if vv > 0.0 { round_f16(vx / vv) } else { 0.0 };
        if next == d {
            break;
        }
        d = next;
    }
    let (d, s, _) = best;
    let mut q = [0; 256];
    for ((q, x), s) in q.as_chunks_mut::<L>().0.iter_mut().zip(xs).zip(s) {
        *q = indices::<R, L>(x, d * s);
    }
    Scaled { d, s: s.map(|s| s as i8), q }
}
