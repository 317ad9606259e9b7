//! Sizes of a decoder that contradict each other, or that no model has: refused before anything is made of them.

use super::{
    decoder::{AttentionSpec, ConvSpec, Decoder, DeltaSpec, Ffn, LatentSpec, LayerSpec, Mixer},
    facts::MOST,
};
use crate::{
    error::{Error, Result},
    ops::short_conv::MOST_TAPS,
};

impl Decoder {
    /// Refuses sizes that contradict each other.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub(super) fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Model(what));
        if self.softcap.is_some_and(|c| !c.is_finite() || c <= 0.0) {
            return bad(format!("logits bounded by {:?}", self.softcap));
        }
        if !self.norm.eps.is_finite() || self.norm.eps < 0.0 {
            return bad(format!("an epsilon of {} in the norms", self.norm.eps));
        }
        let m = self.multipliers;
        if ![m.embedding, m.residual, m.logits].iter().all(|f| f.is_finite() && *f != 0.0) {
            return bad(format!("{m:?}"));
        }
        self.layers.iter().try_for_each(LayerSpec::check)
    }
}

impl LayerSpec {
    fn check(&self) -> Result<()> {
        match &self.mixer {
            Mixer::Attention(a) => a.check()?,
            Mixer::Delta(d) => d.check()?,
            Mixer::Conv(c) => c.check()?,
            Mixer::Latent(m) => m.check()?,
        }
        if self.norms.post && matches!(self.ffn, Ffn::Moe(_)) {
            return Err(Error::Unsupported("a norm behind experts that have no dense unit beside them".into()));
        }
        if let Some(m) = self.moe()
            && (m.router.used == 0 || m.router.used > m.router.experts || m.experts.width == 0)
        {
            let (r, width) = (&m.router, m.experts.width);
            return Err(Error::Model(format!("top {} of {} experts of width {width}", r.used, r.experts)));
        }
        Ok(())
    }
}

impl AttentionSpec {
    fn check(&self) -> Result<()> {
        columns("attention", &[self.heads, self.head_dim])?;
        if self.kv_heads == 0 || self.heads % self.kv_heads != 0 {
            return Err(Error::Model(format!("{} query heads on {} heads of keys", self.heads, self.kv_heads)));
        }
        if self.head_dim == 0 || !self.scale.is_finite() || self.scale == 0.0 {
            return Err(Error::Model(format!(
                "heads of {} whose products are scaled by {}",
                self.head_dim, self.scale
            )));
        }
        Ok(())
    }
}

impl LatentSpec {
    fn check(&self) -> Result<()> {
        let (key, value) = (self.nope + self.rope, self.value);
        columns("latent attention", &[self.heads, key.max(value)])?;
        columns("latent attention", &[self.heads, self.kv_rank + self.rope])?;
        if self.scale.is_finite() && self.scale != 0.0 {
            return Ok(());
        }
        Err(Error::Model(format!("latent attention whose products are scaled by {}", self.scale)))
    }
}

/// Refuses more columns of all heads together than a matrix of any model has: what is made of sizes must not overflow.
fn columns(what: &str, sizes: &[usize]) -> Result<()> {
    let all = sizes.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    match all.filter(|n| *n <= MOST) {
        Some(_) => Ok(()),
        None => Err(Error::Model(format!("{what} with {} heads of {} columns", sizes[0], sizes[1]))),
    }
}

impl DeltaSpec {
    fn check(&self) -> Result<()> {
        let sizes = [self.k_heads, self.v_heads, self.k_dim, self.v_dim];
        columns("linear attention", &[self.k_heads, self.k_dim])?;
        columns("linear attention", &[self.v_heads, self.v_dim])?;
        if sizes.contains(&0) || self.v_heads % self.k_heads != 0 || !(2..=MOST_TAPS).contains(&self.taps) {
            return Err(Error::Model(format!("linear attention of the sizes {self:?}")));
        }
        Ok(())
    }
}

impl ConvSpec {
    fn check(&self) -> Result<()> {
        if (2..=MOST_TAPS).contains(&self.taps) {
            return Ok(());
        }
        Err(Error::Model(format!("short convolutions of {} taps", self.taps)))
    }
}
