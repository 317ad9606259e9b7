//! Rotary frequencies: base, partial rotation, and the scalings that files ask for.

use super::params::Params;
use crate::{
    error::{Error, Result},
    ir::{Rope, RopePairs},
};

/// Makes a model's rotation. `factors` are the divisors of a GGUF's `rope_freqs.weight` (Llama 3's scaling, precomputed);
/// `bf16` rounds the frequencies, see [`super::Options::bf16_rope`].
///
/// # Errors
/// [`Error::Unsupported`] for a scaling that is not known here: it would change every number.
pub fn rope(p: &Params<'_>, head_dim: usize, pairs: RopePairs, factors: Option<&[f32]>, bf16: bool) -> Result<Rope> {
    let partial = p.opt_f32("", "partial_rotary_factor")?.or(p.opt_f32("", "rope_parameters.partial_rotary_factor")?);
    let dims = match p.opt_usize("rope.dimension_count", "rotary_dim")? {
        Some(n) => n,
        None => (head_dim as f32 * partial.unwrap_or(1.0)) as usize,
    };
    if dims % 2 != 0 || dims > head_dim || dims == 0 {
        return Err(Error::Model(format!("{dims} rotary columns in heads of {head_dim}")));
    }
    let base = match p.opt_f32("rope.freq_base", "rope_parameters.rope_theta")? {
        Some(b) => b,
        None => p.opt_f32("", "rope_theta")?.unwrap_or(10_000.0),
    };
    if base <= 0.0 {
        return Err(Error::Model(format!("a rotary base of {base}")));
    }
    let mut inv_freq: Vec<f32> =
        (0..dims / 2).map(|i| (1.0 / f64::from(base).powf(2.0 * i as f64 / dims as f64)) as f32).collect();
    scale(p, &mut inv_freq)?;
    if inv_freq.iter().any(|f| !f.is_finite()) {
        return Err(Error::Model(
            "rotary frequencies that are no numbers: the scaling in the file is impossible".into(),
        ));
    }
    if let Some(f) = factors {
        if f.len() != inv_freq.len() || f.iter().any(|f| !f.is_finite() || *f <= 0.0) {
            return Err(Error::Model(format!("rope_freqs.weight has {} factors for {dims} columns", f.len())));
        }
        inv_freq.iter_mut().zip(f).for_each(|(x, f)| *x /= f);
    }
    if bf16 {
        inv_freq.iter_mut().for_each(|f| *f = half::bf16::from_f32(*f).to_f32());
    }
    Ok(Rope { head_dim, dims, pairs, inv_freq: inv_freq.into(), scale: 1.0 })
}

/// Applies the scaling that the file names.
fn scale(p: &Params<'_>, inv_freq: &mut [f32]) -> Result<()> {
    let hf = if p.config("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let path = |key: &str| format!("{hf}.{key}");
    let kind = match p.opt_str("rope.scaling.type", &path("rope_type"))? {
        Some(kind) => kind,
        None => p.opt_str("", &path("type"))?.unwrap_or_else(|| "none".into()),
    };
    match kind.as_str() {
        "none" | "default" => Ok(()),
        "linear" => {
            let factor = p.f32("rope.scaling.factor", &path("factor"))?;
            inv_freq.iter_mut().for_each(|f| *f /= factor);
            Ok(())
        }
        "llama3" if !p.is_gguf() => {
            let number = |key: &str| p.f32("", &path(key));
            let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
            llama3(inv_freq, factor, low, high, number("original_max_position_embeddings")?);
            Ok(())
        }
        other => Err(Error::Unsupported(format!(
            "RoPE scaling `{other}` of architecture {}; known are none, linear and llama3",
            p.arch
        ))),
    }
}

/// Llama 3.1's scaling (Hugging Face `_compute_llama3_parameters`): wavelengths beyond `original / low` are stretched by
/// `factor`, those below `original / high` are kept, and between the two runs a straight blend.
fn llama3(inv_freq: &mut [f32], factor: f32, low: f32, high: f32, original: f32) {
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
