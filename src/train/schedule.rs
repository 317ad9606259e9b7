//! Learning rates by step.

use crate::error::{Error, Result};
use std::f64::consts::PI;

/// How the rate falls after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decay {
    /// Not at all.
    Constant,
    /// In a straight line to the least rate at the last step.
    Linear,
    /// Along half a cosine.
    Cosine,
    /// Warm-up, stable, decay: constant, and down over the last part of the steps, as much as given (0 to 1).
    Wsd {
        /// The part of all steps in which the rate falls.
        part: f64,
        /// The shape of the fall.
        tail: Tail,
    },
}

/// The shape of the fall at the end of [`Decay::Wsd`]; x goes from 0 to 1 over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// 1 − x.
    Linear,
    /// (1 + cos πx) / 2.
    Cosine,
    /// 1 − √x (Hägele et al. 2024).
    OneMinusSqrt,
}

/// A learning rate for every step. With r the peak rate, f the ratio of the least, W steps of warm-up and S steps in all, step
/// s (from 0) has
///
/// r · min(1, (s + 1) / W) · (f + (1 − f) · d(x)),   x = (s − W) / (S − W), at least 0,
///
/// and d falls from 1 to 0: so the first step has a rate already, and the last has not yet the least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The largest rate.
    pub peak: f64,
    /// The shape.
    pub decay: Decay,
    /// Steps over which the rate rises.
    pub warmup: u64,
    /// Steps in all.
    pub steps: u64,
    /// The least rate at the end, as a part of the peak.
    pub min_ratio: f64,
    /// Whether the fall begins with the first step, beneath the warm-up, and not behind it.
    pub decay_from_start: bool,
}

impl Schedule {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the one which is out of range.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Invalid(what));
        if !self.peak.is_finite() || self.peak < 0.0 {
            return bad(format!("learning_rate is {}; a number from 0 is expected", self.peak));
        }
        if !(0.0..=1.0).contains(&self.min_ratio) {
            return bad(format!("min_lr_ratio is {}; a number from 0 to 1 is expected", self.min_ratio));
        }
        if self.steps == 0 {
            return bad("there are no steps: max_steps or num_epochs must be at least 1".into());
        }
        if self.warmup > self.steps {
            let (w, s) = (self.warmup, self.steps);
            return bad(format!("warmup_steps is {w}, more than the {s} steps that there are"));
        }
        match self.decay {
            Decay::Wsd { part, .. } if !(0.0..=1.0).contains(&part) => {
                bad(format!("wsd_decay_ratio is {part}; a number from 0 to 1 is expected"))
            }
            Decay::Constant | Decay::Linear | Decay::Cosine | Decay::Wsd { .. } => Ok(()),
        }
    }

    /// The rate of step `step`, from 0.
    pub fn rate(&self, step: u64) -> f64 {
        let warm = if step < self.warmup { (step + 1) as f64 / self.warmup as f64 } else { 1.0 };
        let begin = if self.decay_from_start { 0 } else { self.warmup };
        let through = |begin: f64| {
            let length = self.steps as f64 - begin;
            if length > 0.0 { ((step as f64 - begin) / length).clamp(0.0, 1.0) } else { 0.0 }
        };
        let fall = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - through(begin as f64),
            Decay::Cosine => (1.0 + (PI * through(begin as f64)).cos()) / 2.0,
            Decay::Wsd { part, tail } => {
                let x = through((self.steps as f64 * (1.0 - part)).max(begin as f64));
                match tail {
                    Tail::Linear => 1.0 - x,
                    Tail::Cosine => (1.0 + (PI * x).cos()) / 2.0,
                    Tail::OneMinusSqrt => 1.0 - x.sqrt(),
                }
            }
        };
        self.peak * warm * (self.min_ratio + (1.0 - self.min_ratio) * fall)
    }
}
