//! Reads a rotation from hyperparameters: base, partial rotation, and the scalings that files ask for.

use super::{
    params::Params,
    rope::{Llama3, Long, RopeSpec, Scaling, Yarn},
};
use crate::{
    error::{Error, Result},
    ir::RopePairs,
};
use std::sync::Arc;

/// The rotation of heads of `head_dim` columns.
///
/// # Errors
/// [`Error::Unsupported`] for a scaling that is not known here: it would change every number. [`Error::Model`] for missing or
/// impossible values.
pub(super) fn rope(p: &Params<'_>, head_dim: usize, pairs: RopePairs) -> Result<RopeSpec> {
    let dims = dims(p, head_dim)?;
    if dims % 2 != 0 || dims > head_dim || dims == 0 {
        return Err(Error::Model(format!("{dims} rotary columns in heads of {head_dim}")));
    }
    let mut rope = RopeSpec::plain(head_dim, dims, pairs, base(p, dims)?);
    (rope.scaling, rope.scale) = scaling(p)?;
    if let Some(divisors) = p.vector("rope_freqs.weight")? {
        rope.divisors = Some(checked_divisors(divisors.into(), dims)?);
    }
    if let Some((long, scale)) = long(p, dims)? {
        (rope.scaling, rope.scale) = (Scaling::Long(long), scale);
    }
    Ok(rope)
}

/// How many of the columns of a head rotate: a part of them, or in MiniMax-M2's configs a count.
fn dims(p: &Params<'_>, head_dim: usize) -> Result<usize> {
    if p.is_gguf() {
        return Ok(p.opt_usize("rope.dimension_count", "")?.unwrap_or(head_dim));
    }
    let part = match p.opt_f32("", &section(p, "partial_rotary_factor"))? {
        Some(part) => Some(part),
        None => p.opt_f32("", "partial_rotary_factor")?,
    };
    match (part, p.opt_usize("", "rotary_dim")?) {
        (Some(part), _) => Ok((head_dim as f32 * part) as usize),
        (None, Some(n)) => Ok(n),
        (None, None) => Ok(head_dim),
    }
}

/// Divisors of the frequencies of `dims` columns.
///
/// # Errors
/// [`Error::Model`] where their number is another, or one is not positive.
pub(super) fn checked_divisors(f: Arc<[f32]>, dims: usize) -> Result<Arc<[f32]>> {
    if f.len() == dims / 2 && f.iter().all(|f| f.is_finite() && *f > 0.0) {
        return Ok(f);
    }
    Err(Error::Model(format!("rope_freqs.weight has {} factors for {dims} columns", f.len())))
}

/// The path of a key of the scaling in `config.json`: transformers 5 has `rope_parameters`, and takes the older `rope_scaling`
/// instead of it where a config has that.
fn section(p: &Params<'_>, key: &str) -> String {
    let old = p.config("rope_scaling").and_then(|v| v.as_object()).is_some_and(|o| !o.is_empty());
    format!("{}.{key}", if old { "rope_scaling" } else { "rope_parameters" })
}

/// The base of the frequencies of `dims` columns. Hunyuan's `alpha` stretches it (NTK-aware scaling at a fixed factor; Hugging
/// Face `compute_ntk_alpha_rope_parameters`).
fn base(p: &Params<'_>, dims: usize) -> Result<f32> {
    let base = match p.opt_f32("", &section(p, "rope_theta"))? {
        Some(b) => b,
        None => p.f32("rope.freq_base", "rope_theta")?,
    };
    let base = match alpha(p)? {
        Some(alpha) if dims > 2 => (f64::from(base) * f64::from(alpha).powf(dims as f64 / (dims as f64 - 2.0))) as f32,
        _ => base,
    };
    if base > 0.0 { Ok(base) } else { Err(Error::Model(format!("a rotary base of {base}"))) }
}

/// The fixed factor of a scaling that is called dynamic.
fn alpha(p: &Params<'_>) -> Result<Option<f32>> {
    if kind(p)? == "dynamic" && !p.is_gguf() { p.opt_f32("", &section(p, "alpha")) } else { Ok(None) }
}

/// Which scaling the file names. llama.cpp takes a factor without a name for the linear one.
fn kind(p: &Params<'_>) -> Result<String> {
    if let Some(kind) = p.opt_str("rope.scaling.type", &section(p, "rope_type"))? {
        return Ok(kind);
    }
    if p.is_gguf() {
        let factor = p.opt_f32("rope.scaling.factor", "")?.or(p.opt_f32("rope.scale_linear", "")?);
        return Ok(if factor.is_some_and(|f| f != 0.0) { "linear".into() } else { "none".into() });
    }
    Ok(p.opt_str("", &section(p, "type"))?.unwrap_or_else(|| "none".into()))
}

/// The context of training: in transformers and in llama.cpp the model's own where nothing else is said.
fn original(p: &Params<'_>) -> Result<f32> {
    if let Some(n) = p.opt_f32("", "original_max_position_embeddings")? {
        return Ok(n);
    }
    match p.opt_f32("rope.scaling.original_context_length", &section(p, "original_max_position_embeddings"))? {
        Some(n) => Ok(n),
        None => p.f32("context_length", "max_position_embeddings"),
    }
}

/// The scaling that the file names, and its factor on the rotated vectors.
fn scaling(p: &Params<'_>) -> Result<(Scaling, f32)> {
    let number = |key: &str| {
        let path = section(p, key);
        p.opt_f32("", &path)?.ok_or_else(|| Error::Model(format!("the hyperparameter {path} is missing")))
    };
    match kind(p)?.as_str() {
        // LongRoPE has two sets of frequencies: see `long`.
        "none" | "default" | "longrope" | "su" => Ok((Scaling::None, 1.0)),
        // In the base already.
        "dynamic" if alpha(p)?.is_some() => Ok((Scaling::None, 1.0)),
        "linear" => {
            let factor = match p.opt_f32("rope.scaling.factor", "")?.or(p.opt_f32("rope.scale_linear", "")?) {
                Some(f) => f,
                None if p.is_gguf() => p.f32("rope.scaling.factor", "")?,
                None => number("factor")?,
            };
            Ok((Scaling::Linear(factor), 1.0))
        }
        "llama3" if !p.is_gguf() => {
            let (factor, low, high) = (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
            Ok((Scaling::Llama3(Llama3 { factor, low, high, original: original(p)? }), 1.0))
        }
        "yarn" => yarn(p).map(|(y, scale)| (Scaling::Yarn(y), scale)),
        other => Err(Error::Unsupported(format!(
            "RoPE scaling `{other}` of architecture {}; known are none, linear, llama3, yarn and longrope",
            p.arch
        ))),
    }
}

/// YaRN, and its factor on the rotated vectors.
fn yarn(p: &Params<'_>) -> Result<(Yarn, f32)> {
    let number = |gguf: &str, hf: &str| p.opt_f32(gguf, &section(p, hf));
    let original = original(p)?;
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
    let attention_factor = attention_factor * p.opt_f32("rope.scaling.attn_factor", "")?.unwrap_or(1.0);
    let truncate = match p.opt_bool("", &section(p, "truncate"))? {
        Some(truncate) => truncate,
        None => !p.is_gguf() || p.form().yarn_truncates,
    };
    // llama.cpp stores it times 0.1.
    let mscale_all = match p.opt_f32("rope.scaling.yarn_log_multiplier", "")? {
        Some(m) => m / 0.1,
        None => number("", "mscale_all_dim")?.unwrap_or(0.0),
    };
    Ok((Yarn { factor, original, beta_fast, beta_slow, truncate, mscale_all }, attention_factor))
}

/// The two sets of factors of LongRoPE, where the file has them, and the factor on the rotated vectors with the short ones.
///
/// Source: Hugging Face `_compute_longrope_parameters`, and `modeling_phimoe` for the factors `short_mscale` and `long_mscale`
/// (its frequencies follow the length as Microsoft's code for Phi-3.5-MoE does; in transformers 5 they stay the short ones at
/// any length, only the factor follows).
fn long(p: &Params<'_>, dims: usize) -> Result<Option<(Long, f32)>> {
    let list = |key: &str| {
        let list = p.config(&section(p, key)).and_then(|v| v.as_array());
        list.map(|l| l.iter().map(|v| v.as_f64().unwrap_or(f64::NAN) as f32).collect::<Vec<f32>>())
    };
    let both = match kind(p)?.as_str() {
        _ if p.is_gguf() => [p.vector("rope_factors_short.weight")?, p.vector("rope_factors_long.weight")?],
        "longrope" | "su" => [list("short_factor"), list("long_factor")],
        _ => return Ok(None),
    };
    let (short, long) = match both {
        [Some(s), Some(l)] => (s, l),
        [None, None] if p.is_gguf() => return Ok(None),
        _ => return Err(Error::Model("LongRoPE without its short or its long factors".into())),
    };
    let fits = |f: &[f32]| f.len() == dims / 2 && f.iter().all(|f| f.is_finite() && *f > 0.0);
    if !fits(&short) || !fits(&long) {
        let (s, l) = (short.len(), long.len());
        return Err(Error::Model(format!("LongRoPE with {s} and {l} factors for {dims} columns")));
    }
    let context = p.context()?;
    let original = original(p)?;
    let own = match p.opt_f32("rope.scaling.attn_factor", &section(p, "attention_factor"))? {
        Some(f) => f,
        None if p.is_gguf() => 1.0,
        None => {
            let factor = p.opt_f32("", &section(p, "factor"))?.unwrap_or(context as f32 / original.max(1.0));
            if factor > 1.0 { (1.0 + factor.ln() / original.max(2.0).ln()).sqrt() } else { 1.0 }
        }
    };
    let scale = |key: &str| p.opt_f32("", &section(p, key)).map(|f| f.unwrap_or(own));
    let (short, long) = (short.into(), long.into());
    let long = Long { short, long, original: original as usize, long_scale: scale("long_mscale")? };
    Ok(Some((long, scale("short_mscale")?)))
}
