//! Puts the blocks together: the graph of a decoder, layer by layer, in the order that the layers' descriptions say.

use super::{
    blocks::{
        Site,
        attention::attention,
        delta::delta,
        ffn::ffn,
        mla,
        moe::{Routed, routed, router_logits, shared},
        norm::norm,
        short_conv::short_conv,
    },
    decoder::{Decoder, Ffn, Glu, LayerSpec, Mixer, Moe},
    loader::{Built, Loader},
    options::Options,
};
use crate::{
    error::{Error, Result},
    ir::{Activation, Linear, Op, RESIDUAL, ValueId, WeightId},
};

/// Builds the graph of a decoder, declaring every weight on the way.
pub(super) fn graph(d: &Decoder, l: Loader<'_>, options: &Options) -> Result<Built> {
    let mut g = Assembly { d, l, heads: None, traces: vec![] };
    let table = g.l.table("token_embd.weight", d.vocab, d.hidden)?;
    let ids = g.l.b.one(Op::Tokens, &[])?;
    let mut x = g.l.b.one(Op::Embed { table, scale: d.multipliers.embedding }, &[ids])?; // [T, H]
    if let Some(m) = d.latent() {
        g.heads = Some(g.l.b.one(Op::HeadIds { heads: m.heads }, &[])?); // [T, heads]
    }
    for (i, layer) in d.layers.iter().enumerate() {
        g.l.b.set_layer(Some(i as u32));
        x = g.layer(layer, i, x)?;
    }
    g.l.b.set_layer(None);
    let logits = g.head(table, x)?;
    g.l.b.output("logits", logits);
    if options.trace_router {
        for (i, ids, weights) in std::mem::take(&mut g.traces) {
            g.l.b.output(format!("router_ids_{i}"), ids);
            g.l.b.output(format!("router_weights_{i}"), weights);
        }
    }
    g.l.b.output(RESIDUAL, x);
    g.l.finish(d.layers.len())
}

/// A graph under construction.
struct Assembly<'d, 'a> {
    d: &'d Decoder,
    l: Loader<'a>,
    /// The numbers of the heads, `[T, heads]`, where there is latent attention.
    heads: Option<ValueId>,
    /// Layers with experts, with the chosen ones' ids and weights.
    traces: Vec<(usize, ValueId, ValueId)>,
}

impl Assembly<'_, '_> {
    /// One layer, from `[T, H]` to `[T, H]`.
    fn layer(&mut self, spec: &LayerSpec, i: usize, x: ValueId) -> Result<ValueId> {
        let site = Site { layer: i, hidden: self.d.hidden, norm: self.d.norm };
        let normed = self.norm(&site, "attn_norm", x)?; // [T, H]
        let mut y = self.mix(&site, &spec.mixer, normed)?; // [T, H]
        if spec.norms.post {
            y = self.norm(&site, "post_attention_norm", y)?; // [T, H]
        }
        let x = self.add(x, y)?; // [T, H]
        let normed = self.norm(&site, spec.norms.ffn, x)?; // [T, H]
        let (x, mut y) = match &spec.ffn {
            Ffn::Dense(g) => (x, self.dense(&site, g, normed)?),
            Ffn::Moe(m) => self.experts(&site, m, x, normed)?,
            Ffn::DenseBesideMoe(g, m) => (x, self.dense_beside_experts(&site, (g, m), x, normed)?),
        };
        if !spec.norms.post {
            return self.add(x, y);
        }
        y = self.norm(&site, "post_ffw_norm", y)?; // [T, H]
        let x = self.add(x, y)?; // [T, H]
        self.output_scale(&site, x)
    }

    /// What the layer's mixer makes of its normalised input, `[T, H]`.
    fn mix(&mut self, site: &Site, mixer: &Mixer, normed: ValueId) -> Result<ValueId> {
        let l = &mut self.l;
        match mixer {
            Mixer::Attention(a) => attention(l, site, a, normed),
            Mixer::Latent(m) => {
                let heads =
                    self.heads.ok_or_else(|| Error::Graph("latent attention without numbers of heads".into()))?;
                mla::attention(l, site, m, normed, heads)
            }
            Mixer::Delta(s) => delta(l, site, s, normed),
            Mixer::Conv(c) => short_conv(l, site, c, normed),
        }
    }

    fn dense(&mut self, site: &Site, g: &Glu, normed: ValueId) -> Result<ValueId> {
        ffn(&mut self.l, g, [&site.at("ffn_"), ".weight"], site.hidden, normed)
    }

    /// What routed and shared experts add: the residual with all parts but the last, and the last, `[T, H]` each. `x` is the
    /// residual before, and `normed` what is behind the layer's norm.
    fn experts(&mut self, site: &Site, m: &Moe, mut x: ValueId, normed: ValueId) -> Result<(ValueId, ValueId)> {
        let logits = router_logits(&mut self.l, site, m, x, normed)?; // [T, E]
        let Routed { mut y, ids, weights } = routed(&mut self.l, site, m, logits, normed)?;
        self.traces.push((site.layer, ids, weights));
        if let Some(s) = &m.shared {
            for n in 0..s.count {
                x = self.add(x, y)?; // [T, H]
                y = shared(&mut self.l, site, s, n, normed)?; // [T, H]
            }
        }
        Ok((x, y))
    }

    /// norm(dense(normed)) + norm(experts(norm(x))), `[T, H]`.
    fn dense_beside_experts(
        &mut self,
        site: &Site,
        (g, m): (&Glu, &Moe),
        x: ValueId,
        normed: ValueId,
    ) -> Result<ValueId> {
        let y = self.dense(site, g, normed)?; // [T, H]
        let dense = self.norm(site, "post_ffw_norm_1", y)?; // [T, H]
        let logits = router_logits(&mut self.l, site, m, x, normed)?; // [T, E]
        let input = self.norm(site, "pre_ffw_norm_2", x)?; // [T, H]
        let Routed { y, ids, weights } = routed(&mut self.l, site, m, logits, input)?;
        self.traces.push((site.layer, ids, weights));
        let routed = self.norm(site, "post_ffw_norm_2", y)?; // [T, H]
        self.l.b.one(Op::Add, &[dense, routed])
    }

    /// The factor on what the layer gives on, one number, where the file has it.
    fn output_scale(&mut self, site: &Site, x: ValueId) -> Result<ValueId> {
        match self.l.numbers(&site.weight("layer_output_scale"))?.as_deref() {
            None | Some([1.0]) => Ok(x),
            Some([f]) if f.is_finite() => self.l.b.one(Op::Scale(*f), &[x]),
            Some(other) => Err(Error::Model(format!("{} numbers as the factor of layer {}", other.len(), site.layer))),
        }
    }

    /// Logits `[O, V]` of the last layer's result `[T, H]`; `table` is the embedding.
    fn head(&mut self, table: WeightId, x: ValueId) -> Result<ValueId> {
        let (d, l) = (self.d, &mut self.l);
        let x = l.b.one(Op::TakeOutputs, &[x])?; // [O, H]
        let x = norm(l, &d.norm, &format!("{}.weight", d.output_norm), d.hidden, x)?; // [O, H]
        let vocab = l.b.graph().weight(table).shape[0];
        let head = if d.tied && !l.has("output.weight") { table } else { l.matrix("output.weight", vocab, d.hidden)? };
        let bias = if l.has("output.bias") { Some(l.vector("output.bias", vocab)?) } else { None };
        let mut logits = l.b.one(Op::Linear(Linear { weight: head, bias }), &[x])?; // [O, V]
        if d.multipliers.logits != 1.0 {
            logits = l.b.one(Op::Scale(d.multipliers.logits), &[logits])?;
        }
        if let Some(c) = d.softcap {
            logits = l.b.one(Op::Scale(1.0 / c), &[logits])?;
            logits = l.b.one(Op::Act(Activation::Tanh), &[logits])?;
            logits = l.b.one(Op::Scale(c), &[logits])?;
        }
        Ok(logits)
    }

    /// A norm of the layer over the hidden columns.
    fn norm(&mut self, site: &Site, stem: &str, x: ValueId) -> Result<ValueId> {
        norm(&mut self.l, &site.norm, &site.weight(stem), site.hidden, x)
    }

    /// The residual and what is added to it.
    fn add(&mut self, x: ValueId, mut y: ValueId) -> Result<ValueId> {
        if self.d.multipliers.residual != 1.0 {
            y = self.l.b.one(Op::Scale(self.d.multipliers.residual), &[y])?;
        }
        self.l.b.one(Op::Add, &[x, y])
    }
}
