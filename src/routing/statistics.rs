//! What the routers did with some texts, added up: the figures behind the pictures.

use super::{LayerTrace, Load, Trace};

/// Bins of positions at most; with more positions each bin takes twice as many.
const BINS: usize = 128;

/// The use of the experts of all layers, added up over texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    tokens: usize,
    layers: Vec<LayerStatistics>,
}

/// The use of the experts of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerStatistics {
    /// How often each expert was chosen.
    pub load: Load,
    together: Together,
    over_positions: OverPositions,
}

/// Pairs of experts that tokens took together.
#[derive(Clone, Debug, PartialEq)]
struct Together {
    experts: usize,
    tokens: u64,
    /// `[E, E]`, row-major; the diagonal holds the tokens that took an expert at all.
    counts: Vec<u32>,
}

/// Choices by position in the text.
#[derive(Clone, Debug, PartialEq)]
struct OverPositions {
    experts: usize,
    /// Positions of a bin.
    width: usize,
    /// Choices `[bins, E]`, row-major.
    counts: Vec<u32>,
}

impl Statistics {
    /// Adds a text's trace, which comes from the same model as those before.
    pub fn add(&mut self, trace: &Trace) {
        self.tokens += trace.tokens();
        if self.layers.is_empty() {
            self.layers = trace.layers().iter().map(LayerStatistics::empty).collect();
        }
        for (to, layer) in self.layers.iter_mut().zip(trace.layers()) {
            to.load.merge(&Load::of(layer));
            to.together.add(layer, trace.tokens());
            to.over_positions.add(layer, trace.tokens());
        }
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Layers with experts, in order.
    pub fn layers(&self) -> &[LayerStatistics] {
        &self.layers
    }

    /// How each layer's experts were used.
    pub fn loads(&self) -> Vec<Load> {
        self.layers.iter().map(|l| l.load.clone()).collect()
    }
}

impl LayerStatistics {
    fn empty(l: &LayerTrace) -> Self {
        LayerStatistics {
            load: Load::of(&LayerTrace { ids: vec![], weights: vec![], ..l.clone() }),
            together: Together { experts: l.experts, tokens: 0, counts: vec![0; l.experts * l.experts] },
            over_positions: OverPositions { experts: l.experts, width: 1, counts: vec![] },
        }
    }

    /// The number of tokens that took both experts; of an expert with itself, those that took it.
    pub fn together(&self, a: usize, b: usize) -> u32 {
        let Together { experts, counts, .. } = &self.together;
        if a < *experts { counts.get(a * experts + b).copied().unwrap_or(0) } else { 0 }
    }

    /// How many times as often two experts go together as they would if tokens took them independently; `None` where one of them
    /// is not used.
    pub fn lift(&self, a: usize, b: usize) -> Option<f64> {
        let expected = f64::from(self.together(a, a)) * f64::from(self.together(b, b));
        (expected > 0.0).then(|| f64::from(self.together(a, b)) * self.together.tokens as f64 / expected)
    }

    /// Positions of the text that a bin of [`LayerStatistics::load_in_bin`] holds.
    pub fn bin_width(&self) -> usize {
        self.over_positions.width
    }

    /// The number of bins.
    pub fn bins(&self) -> usize {
        self.over_positions.counts.len() / self.over_positions.experts.max(1)
    }

    /// An expert's choices in a bin of positions, divided by the mean of all experts in that bin.
    pub fn load_in_bin(&self, bin: usize, expert: usize) -> f64 {
        let OverPositions { experts, counts, .. } = &self.over_positions;
        let counts = counts.get(bin * experts..(bin + 1) * experts).unwrap_or(&[]);
        let total: u64 = counts.iter().map(|c| u64::from(*c)).sum();
        let mean = total as f64 / (*experts).max(1) as f64;
        counts.get(expert).map_or(0.0, |c| if mean > 0.0 { f64::from(*c) / mean } else { 0.0 })
    }
}

/// The experts of a token, those below `experts`.
fn experts_of(layer: &LayerTrace, t: usize) -> impl Iterator<Item = usize> + Clone + '_ {
    layer.ids.iter().skip(t * layer.used).take(layer.used).map(|id| *id as usize).filter(|e| *e < layer.experts)
}

impl Together {
    fn add(&mut self, layer: &LayerTrace, tokens: usize) {
        for t in 0..tokens {
            for a in experts_of(layer, t) {
                experts_of(layer, t).for_each(|b| self.counts[a * self.experts + b] += 1);
            }
        }
        self.tokens += tokens as u64;
    }
}

impl OverPositions {
    fn add(&mut self, layer: &LayerTrace, tokens: usize) {
        while tokens > self.width * BINS {
            self.widen();
        }
        let bins = tokens.div_ceil(self.width);
        self.counts.resize(self.counts.len().max(bins * self.experts), 0);
        for t in 0..tokens {
            let bin = t / self.width * self.experts;
            experts_of(layer, t).for_each(|e| self.counts[bin + e] += 1);
        }
    }

    /// Puts every two bins together.
    fn widen(&mut self) {
        self.width *= 2;
        let pairs = self.counts.chunks(2 * self.experts.max(1));
        let joined = pairs.flat_map(|two| {
            let (first, second) = two.split_at(self.experts.min(two.len()));
            first.iter().enumerate().map(|(e, n)| n + second.get(e).copied().unwrap_or(0)).collect::<Vec<_>>()
        });
        self.counts = joined.collect();
    }
}
