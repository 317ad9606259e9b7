//! Random weights, made directly in their quantised type.
//!
//! Every byte is random except the scales, which are set so that the dequantised weights have mean 0 (nearly) and a
//! standard deviation near [`STD`], and are finite; each format says where they lie ([`crate::quant`]).

use crate::{
    error::Result,
    quant::{DType, Float},
    threads,
};
use half::{bf16, f16};
use std::sync::{Mutex, PoisonError};

/// Standard deviation that the weights are made for: that of a freshly initialised transformer.
pub(super) const STD: f32 = 0.02;

/// The bytes that one thread makes at a time, rounded down to whole blocks. Each such range has its own stream of random
/// numbers, so the result does not depend on the number of threads.
const PIECE: usize = 1 << 20;

/// SplitMix64 (Steele, Lea, Flood 2014): one addition and three shift-multiplies for 8 bytes.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Scales and tables for one type and standard deviation.
pub(super) struct Maker {
    dtype: DType,
    /// 16 scales near the wanted one and, for the types that have it, the minimum that centres the weights.
    scales: [([u8; 2], [u8; 2]); 16],
    /// For float types: 4096 numbers of a normal distribution.
    normal: Vec<f32>,
}

impl Maker {
    /// For weights of `dtype` with standard deviation `std`.
    pub(super) fn new(dtype: DType, std: f32) -> Self {
        let (rms, centre) = dtype.codec().map_or((1.0, 0.0), |codec| (codec.random.rms, codec.random.centre));
        let signed = centre == 0.0;
        let scales = std::array::from_fn(|i| {
            // From 3/4 to 5/4 of the wanted scale; where no minimum centres the block, every other scale is negative.
            let d = std / rms * (0.75 + i as f32 / 30.0) * if signed && i % 2 == 1 { -1.0 } else { 1.0 };
            (f16::from_f32(d).to_le_bytes(), f16::from_f32(d * centre).to_le_bytes())
        });
        let normal = if dtype.is_float() { normal_table(std) } else { Vec::new() };
        Maker { dtype, scales, normal }
    }

    /// Fills `out` (a whole number of blocks) with the weights that belong to `seed`, on `threads` threads; `done` is
    /// told the bytes made, from any thread but never twice at a time, and ends the work by an error.
    pub(super) fn fill(
        &self,
        seed: u64,
        out: &mut [u8],
        threads: usize,
        done: &mut (dyn FnMut(u64) -> Result<()> + Send),
    ) -> Result<()> {
        let block = self.dtype.layout().bytes;
        let piece = PIECE / block * block;
        let done = Mutex::new(done);
        threads::for_each(
            threads,
            out.chunks_mut(piece).enumerate(),
            || (),
            |(), (i, part)| {
                self.fill_piece(SplitMix(SplitMix(seed ^ i as u64).next()), part);
                (done.lock().unwrap_or_else(PoisonError::into_inner))(part.len() as u64)
            },
        )
    }

    fn fill_piece(&self, mut rng: SplitMix, out: &mut [u8]) {
        let mut words = out.chunks_exact_mut(8);
        for w in &mut words {
            w.copy_from_slice(&rng.next().to_le_bytes());
        }
        let rest = words.into_remainder();
        let n = rest.len();
        rest.copy_from_slice(&rng.next().to_le_bytes()[..n]);
        match self.dtype.codec() {
            Ok(codec) => (codec.set_scales)(out, &self.scales),
            Err(Float::F32) => self.floats::<4>(out, |v| v.to_le_bytes()),
            Err(Float::F16) => self.floats::<2>(out, |v| f16::from_f32(v).to_le_bytes()),
            Err(Float::BF16) => self.floats::<2>(out, |v| bf16::from_f32(v).to_le_bytes()),
        }
    }

    /// Replaces each number's random bits by an entry of the normal table.
    fn floats<const N: usize>(&self, out: &mut [u8], convert: impl Fn(f32) -> [u8; N]) {
        let table: Vec<[u8; N]> = self.normal.iter().map(|v| convert(*v)).collect();
        for b in out.chunks_exact_mut(N) {
            // The table's length is a power of two.
            let i = usize::from(u16::from_le_bytes([b[0], b[1]])) & (table.len() - 1);
            b.copy_from_slice(&table[i]);
        }
    }
}

/// 4096 draws of a normal distribution, made symmetric: each number also with the other sign.
fn normal_table(std: f32) -> Vec<f32> {
    let mut rng = SplitMix(0x6d6f_7261_7900);
    let mut table = Vec::with_capacity(4096);
    for _ in 0..2048 {
        // The sum of twelve uniform numbers has variance 1 (Irwin-Hall).
        let sum: f32 = (0..12).map(|_| (rng.next() >> 40) as f32 / (1u32 << 24) as f32).sum();
        table.extend([(sum - 6.0) * std, (6.0 - sum) * std]);
    }
    table
}
