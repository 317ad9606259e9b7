//! From logits to a token: penalties, top-k, top-p, min-p, temperature, and a seeded draw.
//!
//! The filters stand in the order of llama.cpp's default chain (`common_params_sampling::samplers` in
//! [`common/common.h`](https://github.com/ggml-org/llama.cpp/blob/master/common/common.h)), so that the same numbers mean
//! the same distribution:
//!
//! 1. *Repetition penalty* (Keskar et al. 2019, as llama.cpp applies it): the logit of every token among the last
//!    `repeat_last_n` is divided by the penalty where it is positive and multiplied where it is not, once a token.
//! 2. *Top-k* (Fan et al. 2018): the k largest logits stay.
//! 3. *Top-p* (Holtzman et al. 2020): of these, in descending order, as many as are needed for a probability of p stay.
//! 4. *Min-p* (Nguyen et al. 2024): tokens of at least `min_p` times the probability of the best one stay.
//! 5. *Temperature*: the logits that are left are divided by it, and one is drawn from their softmax.
//!
//! Steps 3 and 4 see the probabilities at temperature 1. Ties always go to the lower id. At temperature 0 the best token
//! after step 1 is taken and nothing is drawn.
//!
//! The same seed and the same logits give the same tokens on every platform: the generator and the exponential function
//! are written here, from operations that IEEE 754 fixes to the bit.
//!
//! ```
//! use moeray::sampler::{Sampler, SamplerOptions};
//!
//! let mut sampler = Sampler::new(SamplerOptions { temperature: 0.8, seed: 7, ..Default::default() })?;
//! let logits = [0.1, 2.0, -1.0, 1.9];
//! let token = sampler.sample(&logits, &[])?;
//! assert!(token == 1 || token == 3);
//! # Ok::<(), moeray::Error>(())
//! ```

use crate::error::{Error, Result};
use std::cmp::Ordering;

/// How tokens are chosen. The defaults are llama.cpp's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits before the draw; 0 takes the best token.
    pub temperature: f32,
    /// How many of the best tokens stay; 0 for all.
    pub top_k: usize,
    /// Probability mass that stays, in (0, 1]; 1 for all.
    pub top_p: f32,
    /// Smallest probability that stays, as a part of the best token's, in [0, 1]; 0 for all.
    pub min_p: f32,
    /// Penalty on recent tokens, above 0; 1 for none.
    pub repeat_penalty: f32,
    /// How many of the recent tokens the penalty looks at; 0 for none.
    pub repeat_last_n: usize,
    /// Seed of the random words. Rows of a [`crate::backend::Runner`] bring their own words: there the seed is not looked at.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        SamplerOptions {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
        }
    }
}

impl SamplerOptions {
    /// Always the best token.
    pub fn greedy() -> Self {
        SamplerOptions { temperature: 0.0, ..Default::default() }
    }

    /// Checks every option's range.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the option, its value and its range.
    pub fn check(&self) -> Result<()> {
        let ranges = [
            ("temperature", self.temperature, self.temperature >= 0.0 && self.temperature.is_finite(), "0 or more"),
            ("top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            (
                "repeat penalty",
                self.repeat_penalty,
                self.repeat_penalty > 0.0 && self.repeat_penalty.is_finite(),
                "above 0 (1 for none)",
            ),
        ];
        match ranges.iter().find(|r| !r.2) {
            Some((name, value, _, range)) => Err(Error::Invalid(format!("{name} {value} must be {range}"))),
            None => Ok(()),
        }
    }
}

/// Everything that is fixed while a sequence's tokens are chosen: what a generation sets once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampling<'a> {
    /// The filters.
    pub options: SamplerOptions,
    /// Tokens that are never chosen.
    pub forbidden: &'a [u32],
    /// Tokens to whose logits a number is added first, at most once each.
    pub bias: &'a [(u32, f32)],
    /// The tokens so far, the latest last, for the repetition penalty. Chosen tokens are appended to them.
    pub recent: &'a [u32],
    /// Whether rows will bring masks of allowed tokens.
    pub masked: bool,
    /// Choose on the host even where the device could.
    pub on_host: bool,
}

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

/// Chooses tokens. Holds its random state and scratch, so that a token allocates nothing after the first.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    rng: Rng,
    chooser: Chooser,
    forbidden: Vec<u32>,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    ///
    /// # Errors
    /// [`Error::Invalid`] where an option is out of its range.
    pub fn new(options: SamplerOptions) -> Result<Self> {
        options.check()?;
        Ok(Sampler { options, rng: Rng::new(options.seed), chooser: Chooser::default(), forbidden: vec![] })
    }

    /// Never chooses one of `ids` from now on.
    pub fn forbid(&mut self, ids: &[u32]) {
        self.forbidden.extend_from_slice(ids);
    }

    /// Tokens that are never chosen.
    pub fn forbidden(&self) -> &[u32] {
        &self.forbidden
    }

    /// The next random word, for a runner that chooses tokens itself. One is used up a token, none at temperature 0.
    pub fn next_random(&mut self) -> u64 {
        if self.options.temperature == 0.0 { 0 } else { self.rng.next_u64() }
    }

    /// The options it was made with.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Back to the start of the seed's sequence.
    pub fn reset(&mut self) {
        self.rng = Rng::new(self.options.seed);
    }

    /// The next token. `logits` has one number a token of the vocabulary (minus infinity forbids one); `recent` are the
    /// tokens so far, the latest last, for the repetition penalty.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a logit is NaN or plus infinity, or no token is left to choose from.
    pub fn sample(&mut self, logits: &[f32], recent: &[u32]) -> Result<u32> {
        check_logits(logits)?;
        let random = self.next_random();
        let rules = Rules { options: &self.options, forbidden: &self.forbidden, bias: &[], mask: None, recent };
        self.chooser.choose(logits, &rules, random).ok_or_else(nothing_left)
    }
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
        self.keep_top_k(o.top_k);
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

    fn keep_top_k(&mut self, k: usize) {
        if k > 0 && k < self.candidates.len() {
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

/// A random word as a number in [0, 1), of its upper 53 bits.
fn unit(word: u64) -> f64 {
    (word >> 11) as f64 / (1u64 << 53) as f64
}

fn check_logits(logits: &[f32]) -> Result<()> {
    // A sum of comparisons, not an early exit: this loop runs over the whole vocabulary and vectorises.
    let bad = logits.iter().map(|l| usize::from(l.is_nan() || *l == f32::INFINITY)).sum::<usize>();
    if bad == 0 {
        return Ok(());
    }
    match logits.iter().zip(0..).find(|(l, _)| l.is_nan() || **l == f32::INFINITY) {
        None => Ok(()),
        Some((logit, token)) => Err(Error::Invalid(format!(
            "{bad} of {} logits are not finite (the first is {logit} of token {token}): the model's weights or the \
             computation are broken",
            logits.len(),
        ))),
    }
}

fn nothing_left() -> Error {
    Error::Invalid("no token to choose from: there are no logits, or all are minus infinity".into())
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

/// xoshiro256++ (Blackman and Vigna 2019, public domain), its state filled by splitmix64 as its authors advise.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut s = seed;
        Rng(std::array::from_fn(|_| {
            s = s.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (s ^ (s >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// The generator in a given state; for tests against published values. All zeros is a state that never leaves.
    pub fn from_state(state: [u64; 4]) -> Self {
        Rng(state)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// A number in [0, 1), of 53 random bits.
    pub fn unit(&mut self) -> f64 {
        unit(self.next_u64())
    }
}
