//! Looking at routing: which experts each token took and with which weights, how evenly the experts were used, and a
//! picture of it.
//!
//! A [`Trace`] is filled by [`crate::session::Session::record_routing`] from a model that was loaded with
//! [`crate::model::Options::trace_router`]. It costs `8 · k` bytes a token and layer, read back with the logits of each
//! step; routing itself stays where it is computed. [`Load`] and [`Statistics`] count, [`Trace::to_json`] saves, [`Load::heat_map`],
//! [`Statistics::co_activation`] and [`Statistics::over_positions`] draw, and [`Statistics::html`] puts all of it on a page.
//! [`Policy::simulate`] says how often a cache of experts would have hit on a recorded text.
//!
//! Deliberately absent: files, terminals, models.

pub(crate) mod canvas;
mod html;
mod picture;
mod slots;
mod statistics;

pub use slots::{Policy, SlotCounts, Slots};
pub use statistics::{LayerStatistics, Statistics};

use crate::{
    backend::Output,
    error::{Error, Result},
    ir::{Graph, Op},
};
use serde_json::{Value as Json, json};

/// What the router of one layer chose, token after token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerTrace {
    /// The number of the transformer layer, from 0.
    pub layer: usize,
    /// The number of experts, E.
    pub experts: usize,
    /// The number of experts that each token uses, k.
    pub used: usize,
    /// Expert ids `[T, k]`, row-major, in the router's order (descending score).
    pub ids: Vec<u32>,
    /// The weights of these experts `[T, k]`, as the model applies them. Not in every family do they sum to 1.
    pub weights: Vec<f32>,
    /// The places of ids and weights among the graph's outputs.
    at: (usize, usize),
}

impl LayerTrace {
    /// The experts that token `t` took, with their weights; empty beyond the last token.
    pub fn token(&self, t: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        let range = |len: usize| (t * self.used).min(len)..((t + 1) * self.used).min(len);
        let ids = &self.ids[range(self.ids.len())];
        ids.iter().copied().zip(self.weights[range(self.weights.len())].iter().copied())
    }
}

/// What the routers of all layers chose, for every token that a session was fed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Tokens.
    tokens: usize,
    /// Layers with experts, in order.
    layers: Vec<LayerTrace>,
}

impl Trace {
    /// An empty trace of the routers that `graph` gives out; `None` where it gives none (a dense model, or one that was
    /// built without `trace_router`).
    pub fn new(graph: &Graph) -> Option<Trace> {
        let position = |name: &str| graph.outputs.iter().position(|(n, _)| n == name);
        let mut layers = vec![];
        for (i, (name, v)) in graph.outputs.iter().enumerate() {
            let Some(layer) = name.strip_prefix("router_ids_") else { continue };
            let weights = position(&format!("router_weights_{layer}"))?;
            let maker = graph.nodes.iter().find(|n| n.outputs.contains(v))?;
            let (Op::Router(r) | Op::NormRouter { router: r, .. }) = &maker.op else { return None };
            let (layer, at) = (layer.parse().ok()?, (i, weights));
            layers.push(LayerTrace { layer, experts: r.experts, used: r.used, at, ..LayerTrace::default() });
        }
        (!layers.is_empty()).then_some(Trace { tokens: 0, layers })
    }

    /// Appends a step's outputs, in the order of the graph's.
    ///
    /// # Errors
    /// [`Error::Graph`] where they are not what the graph gives.
    pub fn push(&mut self, outputs: &[Output]) -> Result<()> {
        let wrong = || Error::Graph("a step gave other router choices than the graph names".into());
        let mut rows = None;
        for l in &mut self.layers {
            let (ids, weights) = (outputs.get(l.at.0).ok_or_else(wrong)?, outputs.get(l.at.1).ok_or_else(wrong)?);
            let len = ids.rows * l.used;
            if ids.u32.len() != len || weights.f32.len() != len || rows.is_some_and(|r| r != ids.rows) {
                return Err(wrong());
            }
            rows = Some(ids.rows);
            l.ids.extend_from_slice(&ids.u32);
            l.weights.extend_from_slice(&weights.f32);
        }
        self.tokens += rows.unwrap_or(0);
        Ok(())
    }

    /// Forgets the choices of all but the first `n` tokens.
    pub fn truncate(&mut self, n: usize) {
        self.tokens = self.tokens.min(n);
        for l in &mut self.layers {
            l.ids.truncate(n.saturating_mul(l.used));
            l.weights.truncate(n.saturating_mul(l.used));
        }
    }

    /// The number of tokens in the trace.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Layers with experts, in order.
    pub fn layers(&self) -> &[LayerTrace] {
        &self.layers
    }

    /// How each layer's experts were used.
    pub fn loads(&self) -> Vec<Load> {
        self.layers.iter().map(Load::of).collect()
    }

    /// A trace that [`Trace::to_json`] gave.
    ///
    /// # Errors
    /// [`Error::Invalid`] that says what is missing or does not fit.
    pub fn from_json(json: &Json) -> Result<Trace> {
        let bad = |what: &str| Error::Invalid(format!("no record of routing: {what}"));
        let number = |of: &Json, name: &str| -> Result<usize> {
            let n = of.get(name).and_then(Json::as_u64).and_then(|n| usize::try_from(n).ok());
            n.ok_or_else(|| bad(&format!("no number {name}")))
        };
        let tokens = number(json, "tokens")?;
        let list = json.get("layers").and_then(Json::as_array).ok_or_else(|| bad("no list of layers"))?;
        let layer = |of: &Json| -> Result<LayerTrace> {
            let (layer, experts, used) = (number(of, "layer")?, number(of, "experts")?, number(of, "used")?);
            let rows = |name: &str| -> Result<Vec<f64>> {
                let rows = of.get(name).and_then(Json::as_array).ok_or_else(|| bad(&format!("no list {name}")))?;
                let row = |r: &Json| r.as_array().filter(|r| r.len() == used).cloned();
                let rows: Option<Vec<Vec<Json>>> = rows.iter().map(row).collect();
                let all = rows.filter(|r| r.len() == tokens).map(|r| r.concat());
                let all = all.and_then(|r| r.iter().map(Json::as_f64).collect());
                all.ok_or_else(|| bad(&format!("{name} of layer {layer} are not {tokens} lists of {used} numbers")))
            };
            let (ids, weights) = (rows("ids")?, rows("weights")?);
            if let Some(id) = ids.iter().find(|id| **id < 0.0 || **id >= experts as f64 || id.fract() != 0.0) {
                return Err(bad(&format!("layer {layer} has no expert {id}: it has {experts}")));
            }
            let ids = ids.into_iter().map(|id| id as u32).collect();
            let weights = weights.into_iter().map(|w| w as f32).collect();
            Ok(LayerTrace { layer, experts, used, ids, weights, at: (0, 0) })
        };
        let layers = list.iter().map(layer).collect::<Result<Vec<_>>>()?;
        if layers.is_empty() || layers.iter().any(|l| l.used == 0) {
            return Err(bad("no layers with experts"));
        }
        Ok(Trace { tokens, layers })
    }

    /// The trace as JSON: `tokens`, and `layers` with `layer`, `experts`, `used`, `ids` and `weights` (a list a token), and
    /// the figures of [`Load`].
    pub fn to_json(&self) -> Json {
        let layer = |l: &LayerTrace| {
            let rows = |t: usize| -> (Vec<u32>, Vec<f32>) { l.token(t).unzip() };
            let (ids, weights): (Vec<_>, Vec<_>) = (0..self.tokens).map(rows).unzip();
            let load = Load::of(l);
            json!({
                "layer": l.layer, "experts": l.experts, "used": l.used, "ids": ids, "weights": weights,
                "load": {
                    "counts": load.counts, "weight_sums": load.weight_sums, "entropy_bits": load.entropy(),
                    "evenness": load.evenness(), "max_over_mean": load.max_over_mean(), "unused": load.unused(),
                },
            })
        };
        json!({ "tokens": self.tokens, "layers": self.layers.iter().map(layer).collect::<Vec<_>>() })
    }
}

/// How evenly the experts of one layer were used.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// The transformer layer.
    pub layer: usize,
    /// The number of times that each expert was chosen, `[E]`.
    pub counts: Vec<u64>,
    /// The sum of the weights that each expert was given, `[E]`.
    pub weight_sums: Vec<f64>,
}

impl Load {
    /// Counts a layer's choices.
    pub fn of(l: &LayerTrace) -> Load {
        let (mut counts, mut weight_sums) = (vec![0u64; l.experts], vec![0.0; l.experts]);
        for (id, w) in l.ids.iter().zip(&l.weights) {
            let i = *id as usize;
            if i < l.experts {
                counts[i] += 1;
                weight_sums[i] += f64::from(*w);
            }
        }
        Load { layer: l.layer, counts, weight_sums }
    }

    /// Adds the counts and weights of another text in the same layer.
    pub fn merge(&mut self, other: &Load) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.weight_sums.iter_mut().zip(&other.weight_sums).for_each(|(a, b)| *a += b);
    }

    /// Entropy of the experts' shares of the choices, in bits: log2(E) where all are used alike, 0 where one takes all.
    pub fn entropy(&self) -> f64 {
        let total = self.total().max(1) as f64;
        let shares = self.counts.iter().map(|c| *c as f64 / total).filter(|p| *p > 0.0);
        // A sum of no bits is 0, not the -0 that a certainty gives.
        shares.map(|p| -p * p.log2()).sum::<f64>().max(0.0) + 0.0
    }

    /// The number of choices: tokens times k.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Entropy as a part of the greatest possible, 0 to 1; 1 for a single expert.
    pub fn evenness(&self) -> f64 {
        let most = (self.counts.len().max(1) as f64).log2();
        if most > 0.0 { self.entropy() / most } else { 1.0 }
    }

    /// The choices of the most used expert divided by the mean of all experts: 1 where all are used alike, 0 for an empty trace.
    pub fn max_over_mean(&self) -> f64 {
        let max = self.counts.iter().max().copied().unwrap_or(0);
        let mean = self.total() as f64 / self.counts.len().max(1) as f64;
        if mean > 0.0 { max as f64 / mean } else { 0.0 }
    }

    /// The number of experts that no token took.
    pub fn unused(&self) -> usize {
        self.counts.iter().filter(|c| **c == 0).count()
    }

    /// The experts from the most to the least used, at most `most`; of equally used ones the first is first.
    pub fn busiest(&self, most: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.counts.len()).collect();
        order.sort_by_key(|e| std::cmp::Reverse(self.counts[*e]));
        order.truncate(most);
        order
    }

    /// The choices of each expert divided by the mean of all experts, `[E]`: what the heat map shows.
    pub fn relative(&self) -> Vec<f64> {
        let mean = self.total() as f64 / self.counts.len().max(1) as f64;
        self.counts.iter().map(|c| if mean > 0.0 { *c as f64 / mean } else { 0.0 }).collect()
    }
}
