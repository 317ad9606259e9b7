//! The chain of filters, and the draw.

use super::{SamplerOptions, rng::unit};
use std::cmp::Ordering;

/// The rules of one choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    pub options: &'a SamplerOptions,
    pub forbidden: &'a [u32],
    pub bias: &'a [(u32, f32)],
    /// One bit a token: those that are allowed.
    pub mask: Option<&'a [u32]>,
    pub recent: &'a [u32],
}

/// A token that is still in the running.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    logit: f32,
    id: u32,
}

/// Best first; equal logits by ascending id.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// The chain of filters and its scratch, without a random state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chooser {
    candidates: Vec<Candidate>,
    weights: Vec<f64>,
    window: Vec<u32>,
}

impl Chooser {
    /// A token by these rules; `None` where none is left to choose from. The logits hold neither NaN nor plus infinity.
    pub fn choose(&mut self, logits: &[f32], rules: &Rules<'_>, random: u64) -> Option<u32> {
        let o = rules.options;
        self.candidates.clear();
        self.candidates.extend(logits.iter().zip(0u32..).map(|(&logit, id)| Candidate { logit, id }));
        for (id, bias) in rules.bias {
            if let Some(c) = self.candidates.get_mut(*id as usize) {
                // An overflow would turn the best token into one that cannot be compared.
                c.logit = (c.logit + bias).min(f32::MAX);
            }
        }
        self.penalise(o, rules.recent);
        self.forbid(rules);
        if o.temperature == 0.0 {
            let best = self.candidates.iter().copied().min_by(best_first);
            return best.filter(|c| c.logit > f32::NEG_INFINITY).map(|c| c.id);
        }
        self.candidates.retain(|c| c.logit > f32::NEG_INFINITY);
        self.keep_top_k(o.top_k, logits.len());
        self.keep_top_p(o.top_p);
        self.keep_min_p(o.min_p);
        self.draw(o.temperature, random)
    }

    fn penalise(&mut self, o: &SamplerOptions, recent: &[u32]) {
        let penalty = o.repeat_penalty;
        if penalty == 1.0 {
            return;
        }
        self.window.clear();
        self.window.extend_from_slice(&recent[recent.len().saturating_sub(o.repeat_last_n)..]);
        self.window.sort_unstable();
        self.window.dedup();
        for id in &self.window {
            // Candidates still stand in the order of their ids here.
            if let Some(c) = self.candidates.get_mut(*id as usize) {
                let penalised = if c.logit > 0.0 { c.logit / penalty } else { c.logit * penalty };
                c.logit = penalised.min(f32::MAX);
            }
        }
    }

    /// Forbidden tokens, and those outside the mask, get logits of minus infinity.
    fn forbid(&mut self, rules: &Rules<'_>) {
        for id in rules.forbidden {
            if let Some(c) = self.candidates.get_mut(*id as usize) {
                c.logit = f32::NEG_INFINITY;
            }
        }
        if let Some(mask) = rules.mask {
            for c in &mut self.candidates {
                let allowed = mask.get(c.id as usize / 32).is_some_and(|word| word >> (c.id % 32) & 1 == 1);
                if !allowed {
                    c.logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Brings the `n` best to the front, in order.
    fn sort_prefix(&mut self, n: usize) {
        let n = n.min(self.candidates.len());
        if n == 0 {
            return;
        }
        if n < self.candidates.len() {
            self.candidates.select_nth_unstable_by(n - 1, best_first);
        }
        self.candidates[..n].sort_unstable_by(best_first);
    }

    /// Of `vocab` tokens the k best stay, in order; a k of the whole vocabulary sorts nothing. What was forbidden does not count:
    /// whether tokens are drawn by rank or by id must not depend on a mask, as it does not on the GPU.
    fn keep_top_k(&mut self, k: usize, vocab: usize) {
        if k > 0 && k < vocab {
            self.sort_prefix(k);
            self.candidates.truncate(k);
        }
    }

    fn keep_top_p(&mut self, p: f32) {
        if p >= 1.0 || self.candidates.len() < 2 {
            return;
        }
        let max = self.max_logit();
        // The sum runs over ids or ranks, the running sum over ranks: both in f64, so that the order hardly matters.
        let total: f64 = self.candidates.iter().map(|c| exp(f64::from(c.logit) - max)).sum();
        let want = total * f64::from(p);
        // A few hundred tokens hold the mass as a rule: sort no more than needed.
        let mut sorted = 256;
        loop {
            self.sort_prefix(sorted);
            let mut sum = 0.0;
            for (i, c) in self.candidates.iter().take(sorted).enumerate() {
                sum += exp(f64::from(c.logit) - max);
                if sum >= want {
                    self.candidates.truncate(i + 1);
                    return;
                }
            }
            if sorted >= self.candidates.len() {
                return;
            }
            sorted = sorted.saturating_mul(8);
        }
    }

    fn keep_min_p(&mut self, min_p: f32) {
        if min_p <= 0.0 || self.candidates.len() < 2 {
            return;
        }
        let (max, min_p) = (self.max_logit(), f64::from(min_p));
        self.candidates.retain(|c| exp(f64::from(c.logit) - max) >= min_p);
    }

    fn max_logit(&self) -> f64 {
        f64::from(self.candidates.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit)))
    }

    fn draw(&mut self, temperature: f32, random: u64) -> Option<u32> {
        let (max, t) = (self.max_logit(), f64::from(temperature));
        self.weights.clear();
        self.weights.extend(self.candidates.iter().map(|c| exp((f64::from(c.logit) - max) / t)));
        let total: f64 = self.weights.iter().sum();
        let mut left = unit(random) * total;
        for (c, w) in self.candidates.iter().zip(&self.weights) {
            left -= w;
            if left < 0.0 {
                return Some(c.id);
            }
        }
        // Rounding can leave a trace of the total: the last token of any weight takes it.
        let last = self.candidates.iter().zip(&self.weights).rev().find(|(_, w)| **w > 0.0);
        last.map(|(c, _)| c.id)
    }
}

/// `e^x` for `x <= 0`, from operations that are exact or correctly rounded everywhere, so that platforms agree (the
/// system's `exp` differs between C libraries). Relative error below 1e-14; 0 below -700.
fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts keeps r exact (Cody and Waite 1980).
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let n = (x * std::f64::consts::LOG2_E).round();
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor's series by Horner; the 13th power's term is below 3e-17.
    let p = (1..=13).rev().fold(1.0, |p, i| 1.0 + p * r / f64::from(i));
    p * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}
