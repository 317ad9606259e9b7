//! Perplexity and KL divergence, as llama.cpp's `llama-perplexity` defines them (`tools/perplexity/perplexity.cpp`).

/// Natural logarithm of the softmax's denominator.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    f64::from(max) + sum.ln()
}

fn best(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[best] {
            best = i;
        }
    }
    best
}

/// Mean and its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error; 0 below two samples.
    pub error: f64,
}

/// A running mean.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    n: f64,
    sum: f64,
    squares: f64,
}

impl Mean {
    /// One more sample.
    pub fn add(&mut self, x: f64) {
        self.n += 1.0;
        self.sum += x;
        self.squares += x * x;
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.n as usize
    }

    /// The mean so far.
    pub fn estimate(&self) -> Estimate {
        let mean = self.sum / self.n;
        let variance = (self.squares / self.n - mean * mean).max(0.0);
        Estimate { mean, error: if self.n > 1.0 { (variance / (self.n - 1.0)).sqrt() } else { 0.0 } }
    }
}

/// Perplexity of the tokens scored so far: `exp` of the mean negative log-likelihood.
#[derive(Clone, Copy, Debug, Default)]
pub struct Perplexity(Mean);

impl Perplexity {
    /// Scores `next` under the distribution `logits` `[V]`.
    pub fn add(&mut self, logits: &[f32], next: u32) {
        let l = logits.get(next as usize).map_or(f64::NAN, |l| f64::from(*l));
        self.0.add(log_sum_exp(logits) - l);
    }

    /// Tokens scored.
    pub fn count(&self) -> usize {
        self.0.count()
    }

    /// Perplexity and its error, propagated from the mean's.
    pub fn estimate(&self) -> Estimate {
        let e = self.0.estimate();
        Estimate { mean: e.mean.exp(), error: e.error * e.mean.exp() }
    }
}

/// How far distributions are from a base's.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    values: Vec<f64>,
    kl: Mean,
    same_top: Mean,
}

/// What [`Divergence`] sums up to. KL divergences in nats, `same_top` from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DivergenceSummary {
    /// Mean.
    pub mean: Estimate,
    /// Half are below it.
    pub median: f64,
    /// 99 in 100 are below it.
    pub p99: f64,
    /// Largest.
    pub max: f64,
    /// Part of the positions where both prefer the same token.
    pub same_top: Estimate,
}

impl Divergence {
    /// One position: `sum p (ln p - ln q)`, p the base's softmax and q the other's.
    pub fn add(&mut self, base: &[f32], other: &[f32]) {
        let (zp, zq) = (log_sum_exp(base), log_sum_exp(other));
        let kl: f64 = base
            .iter()
            .zip(other)
            .map(|(p, q)| (f64::from(*p) - zp, f64::from(*q) - zq))
            // A probability of 0 adds nothing, whatever the other says.
            .filter(|(p, _)| *p > f64::NEG_INFINITY)
            .map(|(p, q)| p.exp() * (p - q))
            .sum();
        self.values.push(kl);
        self.kl.add(kl);
        self.same_top.add(if best(base) == best(other) { 1.0 } else { 0.0 });
    }

    /// The summary; `None` before there is anything.
    pub fn summary(&self) -> Option<DivergenceSummary> {
        let mut sorted = self.values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let max = *sorted.last()?;
        let at = |p: f64| {
            let x = p * (sorted.len() - 1) as f64;
            let (i, f) = (x as usize, x.fract());
            sorted[i] + f * (sorted[(i + 1).min(sorted.len() - 1)] - sorted[i])
        };
        Some(DivergenceSummary {
            mean: self.kl.estimate(),
            median: at(0.5),
            p99: at(0.99),
            max,
            same_top: self.same_top.estimate(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_of_known_distributions() {
        let mut p = Perplexity::default();
        for next in 0..4 {
            p.add(&[3.0; 4], next);
        }
        // Uniform over 4, however large the logits.
        assert!((p.estimate().mean - 4.0).abs() < 1e-12 && p.estimate().error < 1e-6);
        let mut p = Perplexity::default();
        let logits = [0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()];
        p.add(&logits, 0);
        p.add(&logits, 1);
        // exp of the mean of ln 2 and ln 4; the error is half their distance, times the perplexity.
        let want = 8f64.sqrt();
        assert!((p.estimate().mean - want).abs() < 1e-6);
        assert!((p.estimate().error - want * 2f64.ln() / 2.0).abs() < 1e-6);
        p.add(&logits, 9);
        assert!(p.estimate().mean.is_nan(), "a token beyond the vocabulary has no probability");
    }

    #[test]
    fn divergence_of_known_distributions() {
        let mut d = Divergence::default();
        let (p, q) = ([0.5f32.ln(), 0.5f32.ln()], [0.25f32.ln() + 7.0, 0.75f32.ln() + 7.0]);
        d.add(&p, &p);
        d.add(&p, &q);
        let s = d.summary().unwrap();
        let want = 0.5 * (2f64.ln() + (2.0 / 3.0f64).ln());
        assert!((s.max - want).abs() < 1e-6, "{s:?}");
        assert!((s.mean.mean - want / 2.0).abs() < 1e-6 && (s.median - want / 2.0).abs() < 1e-6);
        assert_eq!(s.same_top.mean, 0.5);
        // Alarm: the divergence is not symmetric.
        let mut r = Divergence::default();
        r.add(&q, &p);
        assert!((r.summary().unwrap().max - want).abs() > 1e-3);
        assert!(Divergence::default().summary().is_none());
    }
}
