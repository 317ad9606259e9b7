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
    /// The logits with what the rules change; not used where they change none.
    changed: Vec<f32>,
    candidates: Vec<Candidate>,
    weights: Vec<f64>,
    window: Vec<u32>,
}

impl Chooser {
    /// A token by these rules; `None` where none is left to choose from. The logits hold neither NaN nor plus infinity.
    pub fn choose(&mut self, logits: &[f32], rules: &Rules<'_>, random: u64) -> Option<u32> {
        let o = rules.options;
        let mut changed = std::mem::take(&mut self.changed);
        let given = match self.change(logits, rules, &mut changed) {
            true => &changed[..],
            false => logits,
        };
        let chosen = if o.temperature == 0.0 {
            best(given)
        } else {
            self.candidates.clear();
            match o.top_k {
                // A k of the whole vocabulary sorts nothing. What was forbidden does not count: whether tokens are drawn by rank
                // or by id must not depend on a mask, as it does not on the GPU.
                k if k > 0 && k < given.len() => self.take_top_k(given, k),
                _ => self.candidates.extend(candidates(given).filter(|c| c.logit > f32::NEG_INFINITY)),
            }
            self.keep_top_p(o.top_p);
            self.keep_min_p(o.min_p);
            self.draw(o.temperature, random)
        };
        self.changed = changed;
        chosen
    }

    /// Puts the logits with biases, penalties, and minus infinity for what must not come into `to`; `false` where nothing changes.
    fn change(&mut self, logits: &[f32], rules: &Rules<'_>, to: &mut Vec<f32>) -> bool {
        let penalty = rules.options.repeat_penalty;
        if rules.bias.is_empty() && rules.forbidden.is_empty() && rules.mask.is_none() && penalty == 1.0 {
            return false;
        }
        to.clear();
        to.extend_from_slice(logits);
        for (id, bias) in rules.bias {
            if let Some(logit) = to.get_mut(*id as usize) {
                // An overflow would turn the best token into one that cannot be compared.
                *logit = (*logit + bias).min(f32::MAX);
            }
        }
        if penalty != 1.0 {
            self.penalise(rules, to);
        }
        for id in rules.forbidden {
            if let Some(logit) = to.get_mut(*id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for (i, logits) in to.chunks_mut(32).enumerate().filter(|_| rules.mask.is_some()) {
            let word = rules.mask.and_then(|m| m.get(i)).copied().unwrap_or(0);
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        true
    }

    fn penalise(&mut self, rules: &Rules<'_>, logits: &mut [f32]) {
        let (recent, penalty) = (rules.recent, rules.options.repeat_penalty);
        self.window.clear();
        self.window.extend_from_slice(&recent[recent.len().saturating_sub(rules.options.repeat_last_n)..]);
        self.window.sort_unstable();
        self.window.dedup();
        for id in &self.window {
            if let Some(logit) = logits.get_mut(*id as usize) {
                let penalised = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                *logit = penalised.min(f32::MAX);
            }
        }
    }

    /// The k best, in order, as candidates. Blocks without a logit above the k-th best so far are passed over by their largest: of equal
    /// logits the earlier one is the better.
    fn take_top_k(&mut self, logits: &[f32], k: usize) {
        let mut least = f32::NEG_INFINITY;
        for (block, first) in logits.chunks(BLOCK).zip((0u32..).step_by(BLOCK)) {
            if largest(block) <= least {
                continue;
            }
            self.candidates.extend(
                block.iter().zip(first..).filter(|(l, _)| **l > least).map(|(&logit, id)| Candidate { logit, id }),
            );
            if self.candidates.len() >= 4 * k + BLOCK {
                self.candidates.select_nth_unstable_by(k - 1, best_first);
                self.candidates.truncate(k);
                least = self.candidates[k - 1].logit;
            }
        }
        self.sort_prefix(k);
        self.candidates.truncate(k);
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

/// Logits that are looked at together.
const BLOCK: usize = 64;

fn candidates(logits: &[f32]) -> impl Iterator<Item = Candidate> {
    logits.iter().zip(0u32..).map(|(&logit, id)| Candidate { logit, id })
}

/// The largest number, in lanes that vectorise; minus infinity of none.
fn largest(of: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let blocks = of.chunks_exact(lanes.len());
    let rest = blocks.remainder();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, x| m.max(*x))
}

/// The first of the largest logits; `None` where all are minus infinity.
fn best(logits: &[f32]) -> Option<u32> {
    let max = largest(logits);
    let first = logits.iter().position(|l| *l == max).filter(|_| max > f32::NEG_INFINITY)?;
    u32::try_from(first).ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Rng;

    /// Passing blocks over changes nothing: against sorting all of them, with many equal logits and some that must not come.
    #[test]
    fn the_k_best_are_those_of_a_full_sort() {
        let mut rng = Rng::new(5);
        for n in [1usize, 15, 64, 65, 1000, 5003] {
            for distinct in [2, 7, 1_000_000] {
                let logit = |r: u64| if r % 11 == 0 { f32::NEG_INFINITY } else { (r % distinct) as f32 - 3.0 };
                let logits: Vec<f32> = (0..n).map(|_| logit(rng.next_u64() >> 20)).collect();
                let mut sorted: Vec<Candidate> = candidates(&logits).filter(|c| c.logit > f32::NEG_INFINITY).collect();
                sorted.sort_by(best_first);
                assert_eq!(best(&logits), sorted.first().map(|c| c.id));
                for k in [1usize, 3, 40, 300].into_iter().filter(|k| *k < n) {
                    let mut chooser = Chooser::default();
                    chooser.take_top_k(&logits, k);
                    let ids = |c: &[Candidate]| c.iter().map(|c| c.id).collect::<Vec<_>>();
                    assert_eq!(ids(&chooser.candidates), ids(&sorted[..k.min(sorted.len())]), "{n} {distinct} {k}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_chosen_where_nothing_may_come() {
        assert_eq!(best(&[f32::NEG_INFINITY; 70]), None);
        assert_eq!(best(&[]), None);
        let mut all = vec![f32::NEG_INFINITY; 70];
        all[69] = -1e30;
        assert_eq!(best(&all), Some(69));
    }
}
