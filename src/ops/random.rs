//! `dropout` and `noise`: random numbers that are computed from a counter, so that a mask needs no memory, backward makes it
//! again, and a run that goes on where another stopped needs no state.
//!
//! Bits: Threefry-2x32 with 20 rounds (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*), which needs only
//! additions, rotations and exclusive ors. Key: the two halves of the seed. Counter: the element's number, and the mix
//! `step · 0x9e3779b1 + micro · 0x85ebca6b + stream · 0xc2b2ae35` of where in the run and the graph it is.
//!
//! `dropout`: an element is 0 where its uniform number is below p, else x / (1 − p); its gradient is the same op on dy.
//! A uniform number is `(bits + ½) / 2³²`; a normal one by Box and Muller from both words: `√(−2 ln u) cos(2π v)`; a Gumbel
//! one is `−ln(−ln u)`. The bits are equal on all backends; normal numbers agree to 1e-6.

use super::{Array, Real};
use crate::ir::Distribution;

const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];

/// Threefry-2x32 with 20 rounds.
pub fn threefry(key: [u32; 2], counter: [u32; 2]) -> [u32; 2] {
    let keys = [key[0], key[1], 0x1bd1_1bda ^ key[0] ^ key[1]];
    let (mut x, mut y) = (counter[0].wrapping_add(keys[0]), counter[1].wrapping_add(keys[1]));
    for group in 0..5usize {
        for r in ROTATIONS[group % 2] {
            x = x.wrapping_add(y);
            y = y.rotate_left(r) ^ x;
        }
        x = x.wrapping_add(keys[(group + 1) % 3]);
        y = y.wrapping_add(keys[(group + 2) % 3]).wrapping_add(group as u32 + 1);
    }
    [x, y]
}

/// Where in a run random numbers are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draw {
    /// Of the run.
    pub seed: u64,
    /// The step.
    pub step: u32,
    /// The micro-batch within the step.
    pub micro: u32,
}

impl Draw {
    /// The bits of element `i` of a stream.
    pub fn bits(&self, stream: u32, i: usize) -> [u32; 2] {
        let mix = (self.step.wrapping_mul(0x9e37_79b1))
            .wrapping_add(self.micro.wrapping_mul(0x85eb_ca6b))
            .wrapping_add(stream.wrapping_mul(0xc2b2_ae35));
        threefry([self.seed as u32, (self.seed >> 32) as u32], [i as u32, mix])
    }

    /// A number of a distribution.
    pub fn number(&self, d: Distribution, stream: u32, i: usize) -> f64 {
        let [u, v] = self.bits(stream, i).map(uniform);
        match d {
            Distribution::Uniform => u,
            Distribution::Normal => (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos(),
            Distribution::Gumbel => -(-u.ln()).ln(),
        }
    }
}

fn uniform(bits: u32) -> f64 {
    (f64::from(bits) + 0.5) / 4_294_967_296.0
}

/// Whether dropout keeps an element.
pub fn kept(draw: &Draw, p: f64, stream: u32, i: usize) -> bool {
    draw.number(Distribution::Uniform, stream, i) >= p
}

/// Reference code of `dropout`.
pub fn dropout<T: Real>(x: &Array<T>, p: f64, stream: u32, draw: &Draw) -> Array<T> {
    let one = |(i, v): (usize, &T)| if kept(draw, p, stream, i) { T::of(v.get() / (1.0 - p)) } else { T::of(0.0) };
    Array { data: x.data.iter().enumerate().map(one).collect(), ..*x }
}

/// Reference code of `noise`.
pub fn noise<T: Real>(rows: usize, cols: usize, d: Distribution, stream: u32, draw: &Draw) -> Array<T> {
    Array { rows, cols, data: (0..rows * cols).map(|i| T::of(draw.number(d, stream, i))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random123's known answers (`kat_vectors`, threefry2x32 with 20 rounds).
    #[test]
    fn threefry_gives_the_known_answers() {
        assert_eq!(threefry([0, 0], [0, 0]), [0x6b20_0159, 0x99ba_4efe]);
        assert_eq!(threefry([u32::MAX; 2], [u32::MAX; 2]), [0x1cb9_96fc, 0xbb00_2be7]);
        let pi = threefry([0x1319_8a2e, 0x0370_7344], [0x243f_6a88, 0x85a3_08d3]);
        assert_eq!(pi, [0xc492_3a9c, 0x483d_f7a0]);
    }

    #[test]
    fn numbers_have_the_moments_of_their_distribution() {
        let draw = Draw { seed: 7, step: 3, micro: 1 };
        let moments = |d| {
            let x: Vec<f64> = (0..20_000).map(|i| draw.number(d, 5, i)).collect();
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            (mean, x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64)
        };
        let close = |(m, v): (f64, f64), mean: f64, var: f64| (m - mean).abs() < 0.03 && (v / var - 1.0).abs() < 0.05;
        assert!(close(moments(Distribution::Normal), 0.0, 1.0));
        assert!(close(moments(Distribution::Uniform), 0.5, 1.0 / 12.0));
        assert!(close(moments(Distribution::Gumbel), 0.5772, 1.6449));
        let other = Draw { step: 4, ..draw };
        assert_ne!(draw.bits(5, 0), other.bits(5, 0));
        assert_ne!(draw.bits(5, 0), draw.bits(6, 0));
    }
}
