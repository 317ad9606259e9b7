//! Rotary frequencies: base, partial rotation, and the scalings that files ask for.

use super::params::Params;
use crate::{
    error::{Error, Result},
    ir::{LongRope, Rope, RopePairs},
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
    let base = base(p, dims)?;
    let mut inv_freq = plain(base, dims);
    let attention_factor = scale(p, &mut inv_freq, base, dims)?;
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
    Ok(Rope {
        head_dim,
        dims,
        pairs,
        inv_freq: inv_freq.into(),
        scale: attention_factor,
        long: None,
        temperature: None,
    })
}

/// The base of the frequencies of `dims` columns. Hunyuan's `alpha` stretches it (NTK-aware scaling at a fixed factor; Hugging
/// Face `compute_ntk_alpha_rope_parameters`).
///
/// # Errors
/// [`Error::Model`] where it is not positive.
pub(super) fn base(p: &Params<'_>, dims: usize) -> Result<f32> {
    let base = match p.opt_f32("rope.freq_base", "rope_parameters.rope_theta")? {
        Some(b) => b,
        None => p.opt_f32("", "rope_theta")?.unwrap_or(10_000.0),
    };
    let base = match alpha(p)? {
        Some(alpha) if dims > 2 => (f64::from(base) * f64::from(alpha).powf(dims as f64 / (dims as f64 - 2.0))) as f32,
        _ => base,
    };
    if base > 0.0 { Ok(base) } else { Err(Error::Model(format!("a rotary base of {base}"))) }
}

/// The fixed factor of a scaling that is called dynamic.
fn alpha(p: &Params<'_>) -> Result<Option<f32>> {
    let (kind, path) = kind(p)?;
    if kind == "dynamic" && !p.is_gguf() { p.opt_f32("", &path("alpha")) } else { Ok(None) }
}

/// Frequencies without scaling.
pub(super) fn plain(base: f32, dims: usize) -> Vec<f32> {
    (0..dims / 2).map(|i| (1.0 / f64::from(base).powf(2.0 * i as f64 / dims as f64)) as f32).collect()
}

/// Gives a rotation the two sets of frequencies of LongRoPE, where the file has them: each is the plain one divided by
/// factors, `gguf` being those of a GGUF's `rope_factors_short.weight` and `rope_factors_long.weight`.
///
/// Source: Ding et al. 2024, *LongRoPE*; Hugging Face `_compute_longrope_parameters`, and `modeling_phimoe` for the factors
/// `short_mscale` and `long_mscale` (its frequencies follow the length as Microsoft's code for Phi-3.5-MoE does; in
/// transformers 5 they stay the short ones at any length, only the factor follows).
///
/// # Errors
/// [`Error::Model`] for missing or impossible values.
pub(super) fn long(p: &Params<'_>, rope: &mut Rope, gguf: [Option<Vec<f32>>; 2], bf16: bool) -> Result<()> {
    let (kind, path) = kind(p)?;
    let list = |key: &str| {
        let list = p.config(&path(key)).and_then(|v| v.as_array());
        list.map(|l| l.iter().map(|v| v.as_f64().unwrap_or(f64::NAN) as f32).collect::<Vec<f32>>())
    };
    let [short, long] = match kind.as_str() {
        _ if p.is_gguf() => gguf,
        "longrope" | "su" => [list("short_factor"), list("long_factor")],
        _ => return Ok(()),
    };
    let (short, long) = match (short, long) {
        (Some(s), Some(l)) => (s, l),
        (None, None) if p.is_gguf() => return Ok(()),
        _ => return Err(Error::Model("LongRoPE without its short or its long factors".into())),
    };
    let fits = |f: &[f32]| f.len() == rope.dims / 2 && f.iter().all(|f| f.is_finite() && *f > 0.0);
    if !fits(&short) || !fits(&long) {
        let (s, l) = (short.len(), long.len());
        return Err(Error::Model(format!("LongRoPE with {s} and {l} factors for {} columns", rope.dims)));
    }
    let context = p.usize("context_length", "max_position_embeddings")?;
    let original =
        match p.opt_usize("rope.scaling.original_context_length", &path("original_max_position_embeddings"))? {
            Some(n) => n,
            None => p.opt_usize("", "original_max_position_embeddings")?.unwrap_or(context),
        };
    let own = match p.opt_f32("rope.scaling.attn_factor", &path("attention_factor"))? {
        Some(f) => f,
        None if p.is_gguf() => 1.0,
        None => {
            let factor = p.opt_f32("", &path("factor"))?.unwrap_or(context as f32 / original.max(1) as f32);
            if factor > 1.0 { (1.0 + factor.ln() / (original.max(2) as f32).ln()).sqrt() } else { 1.0 }
        }
    };
    let scale = |key: &str| p.opt_f32("", &path(key)).map(|f| f.unwrap_or(own));
    let plain = plain(base(p, rope.dims)?, rope.dims);
    let divided = |by: &[f32]| {
        let one = |(f, d): (&f32, &f32)| if bf16 { half::bf16::from_f32(f / d).to_f32() } else { f / d };
        plain.iter().zip(by).map(one).collect::<std::sync::Arc<[f32]>>()
    };
    (rope.inv_freq, rope.scale) = (divided(&short), scale("short_mscale")?);
    rope.long = Some(LongRope { beyond: original, inv_freq: divided(&long), scale: scale("long_mscale")? });
    Ok(())
}

/// How `config.json` calls the parameters of a scaling, and its kind.
fn kind(p: &Params<'_>) -> Result<(String, impl Fn(&str) -> String)> {
    let hf = if p.config("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let path = move |key: &str| format!("{hf}.{key}");
    let kind = match p.opt_str("rope.scaling.type", &path("rope_type"))? {
        Some(kind) => kind,
        None => p.opt_str("", &path("type"))?.unwrap_or_else(|| "none".into()),
    };
    Ok((kind, path))
}

/// The YaRN scaling of a file that has one.
///
/// # Errors
/// As [`Yarn::read`].
pub(super) fn yarn(p: &Params<'_>) -> Result<Option<Yarn>> {
    let (kind, path) = kind(p)?;
    if kind == "yarn" { Yarn::read(p, &path).map(Some) } else { Ok(None) }
}

/// Applies the scaling that the file names; gives the factor on the rotated vectors.
fn scale(p: &Params<'_>, inv_freq: &mut [f32], base: f32, dims: usize) -> Result<f32> {
    let (kind, path) = kind(p)?;
    match kind.as_str() {
        // LongRoPE has two sets of frequencies: see `long`.
        "none" | "default" | "longrope" | "su" => Ok(1.0),
        // In the base already.
        "dynamic" if alpha(p)?.is_some() => Ok(1.0),
        "linear" => {
            let factor = p.f32("rope.scaling.factor", &path("factor"))?;
            inv_freq.iter_mut().for_each(|f| *f /= factor);
            Ok(1.0)
        }
        "llama3" if !p.is_gguf() => {
            let number = |key: &str| p.f32("", &path(key));
            let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
            llama3(inv_freq, factor, low, high, number("original_max_position_embeddings")?);
            Ok(1.0)
        }
        "yarn" => {
            let y = Yarn::read(p, &path)?;
            y.apply(inv_freq, base, dims)?;
            Ok(y.attention_factor)
        }
        other => Err(Error::Unsupported(format!(
            "RoPE scaling `{other}` of architecture {}; known are none, linear, llama3, yarn and longrope",
            p.arch
        ))),
    }
}

/// YaRN (Peng et al. 2023, *YaRN: Efficient Context Window Extension of Large Language Models*; Hugging Face
/// `_compute_yarn_parameters`; llama.cpp's keys).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Yarn {
    /// How much longer the context is than the one of training.
    pub factor: f32,
    /// Context of training.
    pub original: f32,
    /// Rotations over `original` from which on frequencies are kept.
    pub beta_fast: f32,
    /// Rotations below which frequencies are divided by `factor`.
    pub beta_slow: f32,
    /// Whether the ends of the blend between the two are rounded to whole pairs.
    pub truncate: bool,
    /// Factor on the rotated vectors.
    pub attention_factor: f32,
}

impl Yarn {
    /// Reads it; `path` makes the path of a key in `config.json`.
    ///
    /// # Errors
    /// [`Error::Model`] for missing or impossible values.
    pub fn read(p: &Params<'_>, path: &dyn Fn(&str) -> String) -> Result<Yarn> {
        let number = |gguf: &str, hf: &str| p.opt_f32(gguf, &path(hf));
        let original = p.f32("rope.scaling.original_context_length", &path("original_max_position_embeddings"))?;
        let factor = match number("rope.scaling.factor", "factor")? {
            Some(f) => f,
            None => p.f32("context_length", "max_position_embeddings")? / original,
        };
        let beta = |gguf: &str, hf: &str, default: f32| {
            Ok::<f32, Error>(number(gguf, hf)?.filter(|b| *b != 0.0).unwrap_or(default))
        };
        let (beta_fast, beta_slow) = (
            beta("rope.scaling.yarn_beta_fast", "beta_fast", 32.0)?,
            beta("rope.scaling.yarn_beta_slow", "beta_slow", 1.0)?,
        );
        if !(factor >= 1.0 && original >= 1.0 && beta_fast > 0.0 && beta_slow > 0.0) {
            return Err(Error::Model(format!("YaRN by {factor} from {original}, betas {beta_fast} and {beta_slow}")));
        }
        let mscale = |m: f32| if factor > 1.0 { 0.1 * m * factor.ln() + 1.0 } else { 1.0 };
        let attention_factor = match number("", "attention_factor")? {
            Some(f) => f,
            None => match (number("", "mscale")?, number("", "mscale_all_dim")?) {
                (Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
                _ => mscale(1.0),
            },
        };
        // llama.cpp's factor on top of its own, which is the same as mscale(1).
        let attention_factor = attention_factor * number("rope.scaling.attn_factor", "")?.unwrap_or(1.0);
        // GPT-OSS was trained without rounding; no key of a GGUF says so.
        let truncate = p.opt_bool("", &path("truncate"))?.unwrap_or(p.arch != "gpt-oss");
        Ok(Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor })
    }

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
