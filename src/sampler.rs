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
//! use moeray::generate::{Sampler, SamplerOptions};
//!
//! let mut sampler = Sampler::new(SamplerOptions { temperature: 0.8, seed: 7, ..Default::default() })?;
//! let logits = [0.1, 2.0, -1.0, 1.9];
//! let token = sampler.sample(&logits, &[])?;
//! assert!(token == 1 || token == 3);
//! # Ok::<(), moeray::Error>(())
//! ```

mod chooser;
mod rng;

pub(crate) use chooser::{Chooser, Rules};
pub use rng::Rng;

use crate::error::{Error, Result};

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
    /// Seed of the random words. The rows of a runner bring their own words: there the seed is not looked at.
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

/// Chooses tokens. Holds its random state and scratch, so that a token allocates nothing after the first.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplerOptions,
    rng: Rng,
    chooser: Chooser,
    forbidden: Vec<u32>,
    bias: Vec<(u32, f32)>,
}

impl Sampler {
    /// A sampler at the start of its seed's sequence.
    ///
    /// # Errors
    /// [`Error::Invalid`] where an option is out of its range.
    pub fn new(options: SamplerOptions) -> Result<Self> {
        options.check()?;
        Ok(Sampler {
            options,
            rng: Rng::new(options.seed),
            chooser: Chooser::default(),
            forbidden: vec![],
            bias: vec![],
        })
    }

    /// Never chooses one of `ids` from now on.
    pub fn forbid(&mut self, ids: &[u32]) {
        self.forbidden.extend_from_slice(ids);
    }

    /// Tokens that are never chosen.
    pub fn forbidden(&self) -> &[u32] {
        &self.forbidden
    }

    /// Adds numbers to the logits of tokens before everything else, each token named at most once.
    pub fn set_bias(&mut self, bias: &[(u32, f32)]) {
        self.bias = bias.to_vec();
    }

    /// What is added to the logits of tokens.
    pub fn bias(&self) -> &[(u32, f32)] {
        &self.bias
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
        let rules = Rules { options: &self.options, forbidden: &self.forbidden, bias: &self.bias, mask: None, recent };
        self.chooser.choose(logits, &rules, random).ok_or_else(nothing_left)
    }
}

/// Whether no logit is infinite or no number. A sum of comparisons, not an early exit: this loop runs over the whole vocabulary
/// and vectorises.
pub(crate) fn all_finite(logits: &[f32]) -> bool {
    logits.iter().map(|l| u32::from(!l.is_finite())).fold(0, |bad, b| bad | b) == 0
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
