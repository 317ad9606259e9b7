//! A block format's functions without type parameters, for code that meets formats at run time.

use super::{
    bits::bytes,
    encode,
    format::{BlockFormat, Random, ScaleChoices, values},
    gpu,
    unpack::Portable,
};

/// Appends the blocks of f32 values with importances.
type Quantize = fn(&[f32], Option<&[f32]>, &mut Vec<u8>);

/// What code that is not generic over a format needs of it.
pub struct Codec {
    /// The f32 values of whole blocks.
    pub dequantize: fn(&[u8], &mut [f32]),
    /// Appends the blocks of whole blocks of f32 values, with importances that repeat, or why it cannot.
    pub quantize: Result<Quantize, &'static str>,
    /// [`BlockFormat::PLANES`].
    pub planes: [usize; 4],
    /// [`BlockFormat::GPU_TABLE`].
    pub gpu_table: &'static [u32],
    /// [`BlockFormat::WGSL`].
    pub wgsl: &'static str,
    /// [`BlockFormat::WGSL_INTS`].
    pub wgsl_ints: &'static str,
    /// [`BlockFormat::pack`] of whole blocks.
    pub pack: fn(&[u8], [&mut [u8]; 4]),
    /// [`BlockFormat::RANDOM`].
    pub random: Random,
    /// [`BlockFormat::set_scales`] of whole blocks.
    pub set_scales: fn(&mut [u8], &ScaleChoices),
}

impl Codec {
    /// That of `F`.
    pub const fn of<F: BlockFormat>() -> Codec {
        assert!(F::OFFSET == 128 || F::LARGEST < 255, "8-bit quants have the offset 128");
        assert!(F::GPU_TABLE.len() % 4 == 0, "planes begin at vec4s");
        Codec {
            dequantize: |b, y| {
                for (b, y) in b.chunks_exact(F::BYTES).zip(y.chunks_exact_mut(F::BLOCK)) {
                    dequantize_block::<F>(b, y);
                }
            },
            quantize: match F::NO_QUANTISER {
                Some(why) => Err(why),
                None => Ok(encode::blocks::<F>),
            },
            planes: F::PLANES,
            gpu_table: F::GPU_TABLE,
            wgsl: F::WGSL,
            wgsl_ints: F::WGSL_INTS,
            pack: gpu::pack_blocks::<F>,
            random: F::RANDOM,
            set_scales: |b, halves| b.chunks_exact_mut(F::BYTES).for_each(|b| F::set_scales(b, halves)),
        }
    }
}

/// The f32 values of a block.
#[inline(always)]
fn dequantize_block<F: BlockFormat>(b: &[u8], y: &mut [f32]) {
    let scales = F::scales(Portable, b);
    for (g, y) in y.chunks_exact_mut(32).enumerate() {
        let quants = bytes(values::<F, _>(Portable, (b, g)));
        for (i, y) in y.chunks_exact_mut(F::SUB_BLOCK).enumerate() {
            let j = g * (32 / F::SUB_BLOCK) + i;
            let (d, min) = (scales.d * scales.s[j], scales.dmin * scales.m[j]);
            for (y, q) in y.iter_mut().zip(&quants[i * F::SUB_BLOCK..]) {
                let x = d * f32::from(i16::from(*q) - i16::from(F::OFFSET));
                *y = if F::MINIMA { x - min } else { x };
            }
        }
    }
}
