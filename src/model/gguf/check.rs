//! Refuses what a GGUF cannot say of a model: what no key of the family's form says must be as llama.cpp's graph has it.

use super::{
    form::{GgufForm, Renormalises, SharedForm, divides},
    keys,
};
use crate::{
    error::Result,
    ir::{NormKind, Renormalise, RopePairs, Score},
    model::{
        decoder::{Decoder, Glu, LayerSpec, Moe},
        rope::{RopeSpec, Scaling},
    },
};

impl GgufForm {
    /// Refuses what a file of this form cannot say.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] that names it.
    pub(in crate::model) fn check(&self, d: &Decoder) -> Result<()> {
        if d.norm.kind != NormKind::Rms && !self.graph.any_norm {
            return Err(self.refused("layer norms"));
        }
        self.multipliers(d)?;
        for layer in &d.layers {
            self.layer(layer)?;
        }
        if let Some(moe) = d.moe() {
            self.router(moe)?;
            self.experts(d, moe)?;
        }
        (self.check)(d)
    }

    fn multipliers(&self, d: &Decoder) -> Result<()> {
        if !self.has(&keys::EMBEDDING_SCALE) && d.multipliers != (self.graph.multipliers)(d) {
            return Err(self.refused(format!("{:?}", d.multipliers)));
        }
        let scale = |head_dim: usize| self.graph.attention_scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
        for a in d.layers.iter().filter_map(LayerSpec::attention) {
            if !self.has(&keys::ATTENTION_SCALE) && a.scale != scale(a.head_dim) {
                return Err(self.refused(format!("dot products of attention times {}", a.scale)));
            }
        }
        Ok(())
    }

    fn layer(&self, layer: &LayerSpec) -> Result<()> {
        let units = layer.dense().into_iter().chain(layer.moe().map(|m| &m.experts));
        for Glu { act, gated, .. } in units {
            if *act != self.graph.act {
                return Err(self.refused(format!("the activation {act:?}")));
            }
            if !gated {
                return Err(self.refused("feed-forward units without a gate"));
            }
        }
        layer.rope().map_or(Ok(()), |rope| self.rope(rope, layer.attention().is_none()))
    }

    fn rope(&self, rope: &RopeSpec, latent: bool) -> Result<()> {
        if self.graph.whole_heads && rope.dims != rope.head_dim {
            return Err(self.refused(format!("rotation of {} of {} columns of a head", rope.dims, rope.head_dim)));
        }
        if latent && rope.pairs != RopePairs::Interleaved {
            return Err(self.refused("rotation of halves (rope_interleave)"));
        }
        match &rope.scaling {
            Scaling::Yarn(y) => {
                if y.truncate != self.yarn_truncates {
                    let rounded = if y.truncate { "" } else { "not " };
                    return Err(self.refused(format!("YaRN whose blend is {rounded}rounded")));
                }
                // Of DeepSeek's two factors one is that of the dot products, and the other must cancel against it.
                let own = if y.factor > 1.0 && !latent { 0.1 * y.factor.ln() + 1.0 } else { 1.0 };
                if rope.scale != own {
                    let of = if latent { " (mscale beside mscale_all_dim)" } else { "" };
                    return Err(self.refused(format!("YaRN with an attention factor of {}{of}", rope.scale)));
                }
            }
            Scaling::Long(l) if l.long_scale != rope.scale => {
                return Err(self.refused("LongRoPE with two factors on the rotated vectors"));
            }
            Scaling::Llama3(_) if !self.graph.divisors => {
                return Err(self.refused("rotary frequencies scaled by other than one factor"));
            }
            Scaling::None | Scaling::Linear(_) | Scaling::Llama3(_) | Scaling::Long(_) | Scaling::Proportional(_) => {}
        }
        Ok(())
    }

    fn router(&self, m: &Moe) -> Result<()> {
        let r = &m.router;
        if m.router_hidden.is_some() {
            return Err(self.refused("routers of several layers"));
        }
        if r.renormalise == Renormalise::Softmax {
            return Err(self.refused("a second softmax over the chosen scores"));
        }
        // A softmax over the chosen logits is the renormalised softmax over all.
        let score = if r.score == Score::SoftmaxOfSelected { Score::Softmax } else { r.score };
        let known = [Score::Softmax, Score::Sigmoid].contains(&score);
        if self.graph.score.map_or(!known, |s| s != score) {
            return Err(self.refused(format!("a router of the kind `{}`", r.variant())));
        }
        let divides = divides(m, self.graph.sum_plus)
            .ok_or_else(|| self.refused(format!("weights of experts divided by {:?}", r.renormalise)))?;
        let wanted = match self.graph.renormalises {
            Renormalises::Always => true,
            Renormalises::Never => false,
            Renormalises::ByKey => divides,
        };
        if divides != wanted {
            let what = match divides {
                true => "weights of the chosen experts that sum to 1",
                false => "router weights as they are",
            };
            return Err(self.refused(format!("{what} (norm_topk_prob)")));
        }
        if !self.has(&keys::EXPERT_WEIGHTS_SCALE) && r.scale != 1.0 {
            return Err(self.refused(format!("router weights times {}", r.scale)));
        }
        let own = r.over_groups().is_some();
        if !own && !self.has(&keys::EXPERT_GROUP_COUNT) && r.groups.is_some() {
            return Err(self.refused("groups of experts"));
        }
        if self.graph.selection_bias.is_some_and(|b| b != m.selection_bias) {
            return Err(self.refused(format!(
                "a router of the kind `{}`, selection bias: {}",
                r.variant(),
                m.selection_bias
            )));
        }
        Ok(())
    }

    fn experts(&self, d: &Decoder, m: &Moe) -> Result<()> {
        let width = m.experts.width;
        if !self.has(&keys::EXPERT_FEED_FORWARD_LENGTH) && width != d.ffn {
            return Err(self.refused(format!("experts of width {width} beside feed_forward_length {}", d.ffn)));
        }
        let (by_width, by_count) =
            (self.has(&keys::EXPERT_SHARED_FEED_FORWARD_LENGTH), self.has(&keys::EXPERT_SHARED_COUNT));
        match (&m.shared, self.graph.shared) {
            (None, SharedForm::Never | SharedForm::Maybe) => Ok(()),
            (None, SharedForm::Always | SharedForm::Gated) => Err(self.refused("layers without a shared expert")),
            (Some(_), SharedForm::Never) => Err(self.refused("a shared expert of this kind")),
            (Some(s), form) => {
                // One dense unit holds shared experts together.
                let whole = s.unit.width.is_multiple_of(width);
                let fits = if by_count { whole } else { by_width || s.unit.width == width };
                if s.count != 1 || s.gated != (form == SharedForm::Gated) || !fits {
                    let (n, w) = (s.count, s.unit.width);
                    return Err(self.refused(format!("{n} shared experts of width {w} beside experts of {width}")));
                }
                Ok(())
            }
        }
    }
}
