//! Storage of keys and values in a cache: the types, their row sizes on the CPU and on the GPU, and their rounding.

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KvType {
    /// Half precision: half the memory and half the bytes read.
    #[default]
    F16,
    /// Single precision: for comparing with references.
    F32,
    /// 8-bit quants, about half the memory and half the bytes read of [`KvType::F16`], for long contexts. Blocks of 32
    /// neighbouring columns of a head (its last may be shorter) have a scale d, a 127th of the largest magnitude rounded up to
    /// the upper half of a single; a quant is x / d rounded to the nearest whole number, ties to even. (ggml's Q8_0, but for the
    /// scale, which here holds whatever a single does.)
    Q8_0,
}

impl KvType {
    /// Columns that share a scale in [`KvType::Q8_0`].
    pub const BLOCK: usize = 32;

    /// Bytes of one head's keys or values, `cols` values, at one position of a cache on the CPU. There the scales of
    /// [`KvType::Q8_0`] lie 16 bits each beside the quants.
    pub fn cpu_row_bytes(self, cols: usize) -> usize {
        match self {
            KvType::F16 => cols.saturating_mul(2),
            KvType::F32 => cols.saturating_mul(4),
            KvType::Q8_0 => cols.saturating_add(2 * cols.div_ceil(Self::BLOCK)),
        }
    }

    /// Bytes of one head's keys or values, `cols` values, at one position of a cache on the GPU. There the scales of
    /// [`KvType::Q8_0`] follow the quants of their row, two in a u32 word, so a row of an odd number of blocks ends in two
    /// unused bytes. A multiple of 4 where `cols` is one, the only widths that the kernels take.
    pub fn gpu_row_bytes(self, cols: usize) -> usize {
        match self {
            KvType::F16 => cols.saturating_mul(2),
            KvType::F32 => cols.saturating_mul(4),
            KvType::Q8_0 => cols.saturating_add(4 * cols.div_ceil(2 * Self::BLOCK)),
        }
    }

    /// What values become when they are stored: `row` is one head's at one position.
    pub fn round(self, row: &mut [f32]) {
        match self {
            KvType::F32 => {}
            KvType::F16 => row.iter_mut().for_each(|x| *x = half::f16::from_f32(*x).to_f32()),
            KvType::Q8_0 => {
                for block in row.chunks_mut(Self::BLOCK) {
                    let d = block_scale(block.iter().fold(0f32, |top, x| top.max(x.abs())));
                    let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
                    block.iter_mut().for_each(|x| *x = (*x * inverse).round_ties_even().clamp(-127.0, 127.0) * d);
                }
            }
        }
    }
}

/// The scale of a block of [`KvType::Q8_0`] whose largest magnitude is `top`: its upper 16 bits are stored.
pub(crate) fn block_scale(top: f32) -> f32 {
    let bits = (top * (1.0 / 127.0)).to_bits();
    f32::from_bits(bits.saturating_add(0xffff) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// No value moves by more than half a quant of its block, and none of another block matters.
        #[test]
        fn quants_are_near(x in proptest::collection::vec(-1e3f32..1e3, 1..100), power in -30i32..30) {
            let x: Vec<f32> = x.iter().map(|x| x * 2f32.powi(power)).collect();
            let mut y = x.clone();
            KvType::Q8_0.round(&mut y);
            for (x, y) in x.chunks(KvType::BLOCK).zip(y.chunks(KvType::BLOCK)) {
                let top = x.iter().fold(0f32, |t, x| t.max(x.abs()));
                // A scale is rounded up by less than a 128th.
                let step = top / 127.0 * (1.0 + 1.0 / 128.0);
                prop_assert!(x.iter().zip(y).all(|(x, y)| (x - y).abs() <= 0.5001 * step));
                prop_assert!(y.iter().any(|y| (y.abs() - top).abs() <= 0.5001 * step));
            }
        }
    }

    #[test]
    fn zeros_stay_and_infinities_show() {
        let mut x = [0.0; 40];
        KvType::Q8_0.round(&mut x);
        assert_eq!(x, [0.0; 40]);
        x[3] = f32::INFINITY;
        KvType::Q8_0.round(&mut x);
        assert!(!x[3].is_finite() && x[35] == 0.0);
    }

    #[test]
    fn rows_have_these_bytes() {
        let all = [KvType::F32, KvType::F16, KvType::Q8_0];
        let cpu = |cols: usize| all.map(|kv| kv.cpu_row_bytes(cols));
        assert_eq!(cpu(64), [256, 128, 68]);
        assert_eq!(cpu(36), [144, 72, 40]);
        assert_eq!(cpu(0), [0, 0, 0]);
        let gpu = |cols: usize| all.map(|kv| kv.gpu_row_bytes(cols));
        assert_eq!(gpu(64), cpu(64));
        assert_eq!(gpu(96), [384, 192, 104]);
        assert_eq!(gpu(0), [0, 0, 0]);
    }
}
