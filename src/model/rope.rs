//! Rotary positions as data: base, partial rotation and scaling, and the frequencies that follow from them.

use crate::{
    error::{Error, Result},
    ir::{LongRope, Rope, RopePairs},
};
use std::sync::Arc;

/// The rotation of queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Columns of a head.
    pub head_dim: usize,
    /// Columns that rotate, the first of each head.
    pub dims: usize,
    /// Which columns rotate together.
    pub pairs: RopePairs,
    /// Base of the frequencies.
    pub base: f32,
    /// How the frequencies are changed for longer contexts.
    pub scaling: Scaling,
    /// Divisors of the frequencies, one a pair, applied last (a GGUF's `rope_freqs.weight`).
    pub divisors: Option<Arc<[f32]>>,
    /// Factor on the rotated vectors.
    pub scale: f32,
}

/// How frequencies are changed for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// They are not.
    None,
    /// All are divided by one factor.
    Linear(f32),
    /// Llama 3.1's blend by wavelength.
    Llama3(Llama3),
    /// YaRN.
    Yarn(Yarn),
    /// LongRoPE's two sets of divisors.
    Long(Long),
    /// Only so many pairs turn; the others stand still (`_compute_proportional_rope_parameters`).
    Proportional(usize),
}

/// Llama 3.1's scaling (Hugging Face `_compute_llama3_parameters`): wavelengths beyond `original / low` are stretched by
/// `factor`, those below `original / high` are kept, and between the two runs a straight blend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3 {
    /// How far long wavelengths are stretched.
    pub factor: f32,
    /// Wavelengths longer than `original / low` are stretched.
    pub low: f32,
    /// Wavelengths shorter than `original / high` are kept.
    pub high: f32,
    /// Context of training, in tokens.
    pub original: f32,
}

/// YaRN (Peng et al. 2023, *YaRN: Efficient Context Window Extension of Large Language Models*; Hugging Face
/// `_compute_yarn_parameters`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// How much longer the context is than the one of training.
    pub factor: f32,
    /// Context of training, in tokens.
    pub original: f32,
    /// Rotations over `original` from which on frequencies are kept.
    pub beta_fast: f32,
    /// Rotations below which frequencies are divided by `factor`.
    pub beta_slow: f32,
    /// Whether the ends of the blend between the two are rounded to whole pairs.
    pub truncate: bool,
    /// How strongly a longer context sharpens the softmax of latent attention (DeepSeek's `mscale_all_dim`); 0 where a file does
    /// not say.
    pub mscale_all: f32,
}

/// LongRoPE (Ding et al. 2024): the plain frequencies divided by one set of factors or, in longer contexts, by another.
#[derive(Clone, Debug, PartialEq)]
pub struct Long {
    /// Divisors up to `original` positions, one a pair.
    pub short: Arc<[f32]>,
    /// Divisors beyond, one a pair.
    pub long: Arc<[f32]>,
    /// Context up to which the short ones hold, in tokens.
    pub original: usize,
    /// Factor on the rotated vectors with the long ones; [`RopeSpec::scale`] goes with the short ones.
    pub long_scale: f32,
}

/// Frequencies of `dims` columns without scaling.
pub(super) fn plain(base: f32, dims: usize) -> Vec<f32> {
    (0..dims / 2).map(|i| (1.0 / f64::from(base).powf(2.0 * i as f64 / dims as f64)) as f32).collect()
}

impl RopeSpec {
    /// A rotation of the first `dims` columns without scaling.
    pub(super) fn plain(head_dim: usize, dims: usize, pairs: RopePairs, base: f32) -> RopeSpec {
        RopeSpec { head_dim, dims, pairs, base, scaling: Scaling::None, divisors: None, scale: 1.0 }
    }

    /// The frequencies in radians a position, one a pair; with LongRoPE those of short contexts.
    ///
    /// # Errors
    /// [`Error::Model`] where they are no numbers.
    pub(super) fn frequencies(&self) -> Result<Vec<f32>> {
        let mut f = plain(self.base, self.dims);
        match &self.scaling {
            Scaling::None => {}
            Scaling::Linear(factor) => f.iter_mut().for_each(|f| *f /= factor),
            Scaling::Llama3(s) => s.apply(&mut f),
            Scaling::Yarn(y) => y.apply(&mut f, self.base, self.dims)?,
            Scaling::Long(l) => f.iter_mut().zip(l.short.iter()).for_each(|(f, d)| *f /= d),
            Scaling::Proportional(turning) => f.iter_mut().skip(*turning).for_each(|f| *f = 0.0),
        }
        if f.iter().any(|f| !f.is_finite()) {
            let what = "rotary frequencies that are no numbers: the scaling in the file is impossible";
            return Err(Error::Model(what.into()));
        }
        if let (Some(divisors), false) = (&self.divisors, matches!(self.scaling, Scaling::Long(_))) {
            f.iter_mut().zip(divisors.iter()).for_each(|(f, d)| *f /= d);
        }
        Ok(f)
    }

    /// The rotation as an op has it.
    ///
    /// # Errors
    /// As [`RopeSpec::frequencies`].
    pub(super) fn rope(&self) -> Result<Rope> {
        let long = match &self.scaling {
            Scaling::Long(l) => {
                let divided = plain(self.base, self.dims).iter().zip(l.long.iter()).map(|(f, d)| f / d).collect();
                Some(LongRope { beyond: l.original, inv_freq: divided, scale: l.long_scale })
            }
            _ => None,
        };
        Ok(Rope {
            head_dim: self.head_dim,
            dims: self.dims,
            pairs: self.pairs,
            inv_freq: self.frequencies()?.into(),
            scale: self.scale,
            long,
            temperature: None,
        })
    }
}

impl Yarn {
    /// Blends kept and divided frequencies.
    fn apply(&self, inv_freq: &mut [f32], base: f32, dims: usize) -> Result<()> {
        if base <= 1.0 {
            return Err(Error::Model(format!("YaRN with a rotary base of {base}")));
        }
        let (d, base) = (dims as f64, f64::from(base));
        // The pair that makes this many rotations over the context of training.
        let pair = |rotations: f32| {
            d * (f64::from(self.original) / (f64::from(rotations) * 2.0 * std::f64::consts::PI)).ln()
                / (2.0 * base.ln())
        };
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        for (i, f) in inv_freq.iter_mut().enumerate() {
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let x = f64::from(*f);
            *f = (x / f64::from(self.factor) * divided + x * (1.0 - divided)) as f32;
        }
        Ok(())
    }
}

impl Llama3 {
    fn apply(&self, inv_freq: &mut [f32]) {
        let Llama3 { factor, low, high, original } = *self;
        for f in inv_freq {
            let wavelength = 2.0 * std::f32::consts::PI / *f;
            if wavelength > original / low {
                *f /= factor;
            } else if wavelength > original / high {
                let smooth = (original / wavelength - low) / (high - low);
                *f = (1.0 - smooth) * *f / factor + smooth * *f;
            }
        }
    }
}
