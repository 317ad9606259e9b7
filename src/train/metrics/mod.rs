//! How a run goes: a record a step, to files that people and programs read.

mod picture;
mod pictures;
mod table;
mod tensorboard;

pub use picture::{load_svg, loss_svg};
pub use pictures::Pictures;
pub use table::{CsvLog, JsonLog, read_log};
pub use tensorboard::EventLog;

use super::learner::{ExpertLoad, LossTerm};
use crate::error::Result;
use serde_json::{Value as Json, json};

/// What a step came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// The step, from 1.
    pub step: u64,
    /// How often the data was seen, with the part of the current time.
    pub epoch: f64,
    /// The total loss.
    pub loss: f64,
    /// Its terms.
    pub terms: Vec<LossTerm>,
    /// The norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Tokens that were learnt from so far.
    pub tokens: u64,
    /// Rows a second in this step, padding left out.
    pub tokens_per_second: f64,
    /// Loads of the layers with experts.
    pub loads: Vec<ExpertLoad>,
    /// Whether the step was skipped, because its loss or gradient was no number.
    pub skipped: bool,
}

impl StepRecord {
    /// The load of the fullest expert over the mean load, in the layer where that is largest; `None` without experts.
    pub fn fullest(&self) -> Option<f64> {
        let ratio = |l: &ExpertLoad| {
            let sum: u64 = l.tokens.iter().sum();
            let most = l.tokens.iter().max().copied().unwrap_or(0);
            (sum > 0).then(|| most as f64 * l.tokens.len() as f64 / sum as f64)
        };
        self.loads.iter().filter_map(ratio).reduce(f64::max)
    }

    /// The part of all pairs of token and expert that found no place.
    pub fn dropped_share(&self) -> f64 {
        let (dropped, kept) =
            self.loads.iter().fold((0, 0), |(d, k), l| (d + l.dropped, k + l.tokens.iter().sum::<u64>()));
        if dropped + kept > 0 { dropped as f64 / (dropped + kept) as f64 } else { 0.0 }
    }

    /// Everything as a JSON object; numbers that are none (NaN, infinite) are null.
    pub fn to_json(&self) -> Json {
        let mut object = json!({ "step": self.step, "epoch": self.epoch, "loss": self.loss });
        for t in &self.terms {
            object[t.name] = t.value.into();
        }
        object["grad_norm"] = self.grad_norm.into();
        object["learning_rate"] = self.learning_rate.into();
        object["tokens"] = self.tokens.into();
        object["tokens_per_second"] = self.tokens_per_second.into();
        if !self.loads.is_empty() {
            object["dropped_share"] = self.dropped_share().into();
            object["loads"] = self.loads.iter().map(|l| json!({ "layer": l.layer, "tokens": l.tokens })).collect();
        }
        if self.skipped {
            object["skipped"] = true.into();
        }
        object
    }

    /// Names and numbers, for tables and TensorBoard.
    pub fn scalars(&self) -> Vec<(String, f64)> {
        let mut all = vec![("loss".to_owned(), self.loss)];
        all.extend(self.terms.iter().map(|t| (t.name.to_owned(), t.value)));
        all.push(("grad_norm".into(), self.grad_norm));
        all.push(("learning_rate".into(), self.learning_rate));
        all.push(("epoch".into(), self.epoch));
        all.push(("tokens".into(), self.tokens as f64));
        all.push(("tokens_per_second".into(), self.tokens_per_second));
        all.extend(self.fullest().map(|f| ("expert_load_max_over_mean".into(), f)));
        if !self.loads.is_empty() {
            all.push(("dropped_share".into(), self.dropped_share()));
        }
        all
    }
}

/// What an evaluation came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalRecord {
    /// Steps before it.
    pub step: u64,
    /// The mean loss of a token: the first term.
    pub loss: f64,
    /// All terms.
    pub terms: Vec<LossTerm>,
    /// Tokens that were scored.
    pub tokens: u64,
}

impl EvalRecord {
    /// As a JSON object.
    pub fn to_json(&self) -> Json {
        let mut object = json!({ "step": self.step, "eval_loss": self.loss });
        for t in self.terms.iter().skip(1) {
            object[format!("eval_{}", t.name)] = t.value.into();
        }
        object["eval_tokens"] = self.tokens.into();
        object
    }
}

/// Where records go.
pub trait Log {
    /// A step.
    ///
    /// # Errors
    /// [`crate::Error::Write`].
    fn step(&mut self, record: &StepRecord) -> Result<()>;

    /// An evaluation.
    ///
    /// # Errors
    /// [`crate::Error::Write`].
    fn evaluation(&mut self, record: &EvalRecord) -> Result<()>;

    /// What was recorded goes to the disk: before a checkpoint, and at the end.
    ///
    /// # Errors
    /// [`crate::Error::Write`].
    fn flush(&mut self) -> Result<()>;
}
