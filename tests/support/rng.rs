//! Seeded random numbers for tests (splitmix64, Steele et al. 2014): the seed is part of every case's name.

pub struct Rng(pub u64);

impl Rng {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }

    /// Roughly normal, mean 0 and deviation 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| self.next_u64() as f64 / u64::MAX as f64).sum();
        (sum - 6.0) as f32
    }

    pub fn normals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * scale).collect()
    }

    /// Activations as real models have them: mostly near 1, a few of 1 in 64 thirty times larger.
    pub fn with_outliers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| if self.below(64) == 0 { 30.0 * self.normal() } else { self.normal() }).collect()
    }
}
