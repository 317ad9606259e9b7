//! What a configuration says, in the words of the rooms that do it; values out of range.

use super::{
    BackendConfig, DatasetConfig, ExcessName, MomentsName, OptimizerName, SchedulerName, TailName, TrainConfig,
    UnusedName,
};
use crate::{
    error::{Error, Result},
    train::{
        data::{Excess, FeedOptions, PackingOptions, Source},
        optimizer::{Algorithm, Moments, OptimizerOptions, Rule, Unused},
        parameter::Parameter,
        schedule::{Decay, Schedule, Tail},
        select::Selection,
    },
};

/// Rows of a micro-batch at most.
const MOST_ROWS: usize = 1 << 24;

/// Rows of a step at most: its batches are made before it begins.
const MOST_ROWS_OF_STEP: usize = 1 << 26;

/// Threads at most.
const MOST_THREADS: usize = 1024;

/// Entries of `top_k_schedule` at most.
const MOST_CHANGES: usize = 4096;

/// Steps of warm-up among `steps`.
pub fn warmup_steps(config: &TrainConfig, steps: u64) -> u64 {
    match config.warmup_steps {
        0 => (config.warmup_ratio * steps as f64).ceil() as u64,
        n => n,
    }
}

impl TrainConfig {
    /// Refuses sequences and batches of impossible sizes.
    fn check_sizes(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Invalid(what));
        for (key, value) in [
            ("sequence_len", self.sequence_len),
            ("micro_batch_size", self.micro_batch_size),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
        ] {
            if value == 0 || value > 1 << 24 {
                return bad(format!("{key} is {value}; a number from 1 to {} is expected", 1 << 24));
            }
        }
        let rows = |key: &str, sequences: usize| match sequences.saturating_mul(self.sequence_len) {
            n if n > MOST_ROWS => Err(Error::Invalid(format!(
                "{key} is {sequences}, with sequence_len {n} rows at once; at most {MOST_ROWS} are expected, and \
                 gradient_accumulation_steps makes a larger batch of them"
            ))),
            _ => Ok(()),
        };
        rows("micro_batch_size", self.micro_batch_size)?;
        rows("eval_batch_size", self.eval_batch_size)?;
        let step =
            self.micro_batch_size.saturating_mul(self.sequence_len).saturating_mul(self.gradient_accumulation_steps);
        if step > MOST_ROWS_OF_STEP {
            return bad(format!(
                "gradient_accumulation_steps is {}: a step of {step} rows; at most {MOST_ROWS_OF_STEP} are expected",
                self.gradient_accumulation_steps
            ));
        }
        Ok(())
    }

    /// Refuses changes of k that are none.
    fn check_schedule(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Invalid(what));
        if self.top_k_schedule.len() > MOST_CHANGES {
            return bad(format!(
                "top_k_schedule has {} entries; at most {MOST_CHANGES} are expected",
                self.top_k_schedule.len()
            ));
        }
        if let Some([epoch, _]) = self.top_k_schedule.iter().find(|[_, k]| *k == 0) {
            return bad(format!("top_k_schedule: no experts from epoch {epoch} on; at least 1 is expected"));
        }
        if self.top_k_schedule.windows(2).any(|w| w[0][0] >= w[1][0]) {
            return bad("top_k_schedule: its epochs do not rise".into());
        }
        Ok(())
    }

    /// Refuses values out of range, before anything is read for them.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the key.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Invalid(what));
        if self.datasets.is_empty() {
            return bad("datasets is empty: a run needs data, such as datasets = [{ path = \"texts/\" }]".into());
        }
        self.check_paths()?;
        self.check_optimizer()?;
        if self.threads > MOST_THREADS {
            return bad(format!(
                "threads is {}; a number up to {MOST_THREADS} is expected, 0 for all cores",
                self.threads
            ));
        }
        self.check_sizes()?;
        let share = |key: &str, value: f64, below: f64| match value {
            v if (0.0..below).contains(&v) => Ok(()),
            v => Err(Error::Invalid(format!("{key} is {v}; a part from 0 to below {below} is expected"))),
        };
        share("val_set_size", self.val_set_size, 1.0)?;
        share("warmup_ratio", self.warmup_ratio, 1.0)?;
        share("expert_dropout", self.expert_dropout, 1.0)?;
        share("expert_output_dropout", self.expert_output_dropout, 1.0)?;
        if !(self.num_epochs > 0.0 && self.num_epochs < 1e9) {
            return bad(format!("num_epochs is {}; a number above 0 is expected", self.num_epochs));
        }
        if !(self.max_grad_norm >= 0.0 && self.max_grad_norm.is_finite()) {
            return bad(format!("max_grad_norm is {}; a number from 0 (no limit) is expected", self.max_grad_norm));
        }
        if self.logging_steps == 0 {
            return bad("logging_steps is 0; at least 1 is expected".into());
        }
        self.check_schedule()?;
        if self.early_stopping_patience > 0 && self.val_set_size == 0.0 && self.test_datasets.is_empty() {
            return bad("early_stopping_patience needs an evaluation: val_set_size or test_datasets".into());
        }
        if let Some(device) = self.device.as_ref().filter(|_| self.backend != BackendConfig::Wgpu) {
            return bad(format!("device = {device:?} names a GPU; backend = \"wgpu\" trains on it"));
        }
        self.router.check()?;
        if self.router.groups.is_some() {
            self.check_groups()?;
        }
        if let Some(lora) = &self.lora {
            lora.check()?;
        }
        if let Some(architecture) = &self.architecture {
            architecture.check()?;
            if self.base_model.is_some() || self.lora.is_some() {
                return bad(
                    "architecture makes a model from nothing: base_model and lora belong to one that is there".into()
                );
            }
        }
        // Without `max_steps` the number of steps is known with the data: the rest is checked with some number.
        let steps = if self.max_steps > 0 { self.max_steps } else { self.warmup_steps.max(1) };
        self.schedule(steps).check()
    }

    /// Refuses paths that name nothing.
    fn check_paths(&self) -> Result<()> {
        let sets = [("datasets", &self.datasets), ("test_datasets", &self.test_datasets)];
        let of_sets = sets.iter().flat_map(|(key, sets)| sets.iter().map(move |d| (*key, d.path.as_path())));
        let models = [("base_model", &self.base_model), ("tokenizer", &self.tokenizer)];
        let of_models = models.iter().filter_map(|(key, path)| Some((*key, path.as_deref()?)));
        let out = ("output_dir", self.output_dir.as_path());
        match of_sets.chain(of_models).chain([out]).find(|(_, path)| path.as_os_str().is_empty()) {
            Some((key, _)) => Err(Error::Invalid(format!("{key}: a path is empty; a file or folder is expected"))),
            None => Ok(()),
        }
    }

    /// Refuses numbers of optimizers and schedules that are none, also of those that are not chosen.
    fn check_optimizer(&self) -> Result<()> {
        let (beta1, beta2, eps) = (self.adam_beta1, self.adam_beta2, self.adam_epsilon);
        let options = self.optimizer_options();
        let adam = Algorithm::Adam { beta1, beta2, eps, decoupled: true };
        // Without nesterov: that it needs a momentum is of a run with SGD.
        let sgd = Algorithm::Sgd { momentum: self.momentum, nesterov: false };
        for algorithm in [options.algorithm, adam, sgd] {
            OptimizerOptions { algorithm, ..options }.check()?;
        }
        if !(0.0..=1.0).contains(&self.wsd_decay_ratio) {
            return Err(Error::Invalid(format!(
                "wsd_decay_ratio is {}; a number from 0 to 1 is expected",
                self.wsd_decay_ratio
            )));
        }
        Ok(())
    }

    /// Refuses what does not go together with a router over groups.
    fn check_groups(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::Invalid(format!("router: groups {what}")));
        if self.lora.is_some() {
            return bad("have a matrix of their own, and [lora] trains adapters alone");
        }
        if !self.top_k_schedule.is_empty() {
            return bad("have one number of experts: top_k_schedule changes it");
        }
        Ok(())
    }

    /// The sources of data sets.
    pub fn sources(&self, sets: &[DatasetConfig]) -> Vec<Source> {
        let excess = match self.excess_length_strategy {
            ExcessName::Raise => Excess::Raise,
            ExcessName::Drop => Excess::Drop,
            ExcessName::Truncate => Excess::Truncate,
        };
        let source = |d: &DatasetConfig| Source {
            path: d.path.clone(),
            kind: d.ds_type.map(|t| t.kind()),
            train_on_inputs: d.train_on_inputs,
            add_eos: d.add_eos,
            excess,
        };
        sets.iter().map(source).collect()
    }

    /// How batches of training are made.
    pub fn feed(&self) -> FeedOptions {
        FeedOptions {
            packing: PackingOptions {
                sequence_len: self.sequence_len,
                packed: self.sample_packing,
                shuffle: self.shuffle,
                seed: self.seed,
            },
            micro_batch_size: self.micro_batch_size,
            accumulation: self.gradient_accumulation_steps,
            windows: self.random_windows,
        }
    }

    /// How batches of evaluation are made: in order.
    pub fn eval_feed(&self) -> FeedOptions {
        let train = self.feed();
        FeedOptions {
            packing: PackingOptions { shuffle: false, ..train.packing },
            micro_batch_size: if self.eval_batch_size > 0 { self.eval_batch_size } else { train.micro_batch_size },
            accumulation: 1,
            windows: false,
        }
    }

    /// The learning rate over `steps` steps.
    pub fn schedule(&self, steps: u64) -> Schedule {
        let tail = match self.wsd_decay_type {
            TailName::Linear => Tail::Linear,
            TailName::Cosine => Tail::Cosine,
            TailName::OneMinusSqrt => Tail::OneMinusSqrt,
        };
        Schedule {
            peak: self.learning_rate,
            decay: match self.lr_scheduler {
                SchedulerName::Cosine => Decay::Cosine,
                SchedulerName::Linear => Decay::Linear,
                SchedulerName::Constant => Decay::Constant,
                SchedulerName::Wsd => Decay::Wsd { part: self.wsd_decay_ratio, tail },
            },
            warmup: warmup_steps(self, steps),
            steps,
            min_ratio: self.min_lr_ratio,
            decay_from_start: self.lr_decay_from_start,
        }
    }

    /// The optimizer.
    pub fn optimizer_options(&self) -> OptimizerOptions {
        let (beta1, beta2, eps) = (self.adam_beta1, self.adam_beta2, self.adam_epsilon);
        OptimizerOptions {
            algorithm: match self.optimizer {
                OptimizerName::AdamW => Algorithm::Adam { beta1, beta2, eps, decoupled: true },
                OptimizerName::Adam => Algorithm::Adam { beta1, beta2, eps, decoupled: false },
                OptimizerName::Sgd => Algorithm::Sgd { momentum: self.momentum, nesterov: self.nesterov },
                OptimizerName::Adafactor => Algorithm::Adafactor { beta2_decay: -0.8, eps: 1e-3, clip_threshold: 1.0 },
            },
            weight_decay: self.weight_decay,
            decay_norms: self.decay_norms,
            expert_moments: match self.expert_moments {
                MomentsName::Full => Moments::Full,
                MomentsName::FactoredSecond => Moments::FactoredSecond,
                MomentsName::FactoredOnly => Moments::FactoredOnly,
            },
            unused: match self.unused_experts {
                UnusedName::Skip => Unused::Skip,
                UnusedName::Decay => Unused::Decay,
            },
        }
    }

    /// What holds for each parameter.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a word of `freeze` or `train_only` that matches nothing, and where all parameters are frozen.
    pub fn rules(&self, parameters: &[Parameter]) -> Result<Vec<Rule>> {
        let frozen = Selection::new("freeze", &self.freeze, parameters)?;
        let only = Selection::new("train_only", &self.train_only, parameters)?;
        let options = self.optimizer_options();
        let rule = |p: &Parameter| {
            let mut rule = Rule::of(p, &options, &frozen);
            rule.trained &= only.is_empty() || only.matches(&p.name);
            // A selection bias has no gradient, and is not to fade.
            if p.name.contains("exp_probs_b") {
                rule.weight_decay = 0.0;
            }
            rule
        };
        let rules: Vec<Rule> = parameters.iter().map(rule).collect();
        if rules.iter().any(|r| r.trained) {
            return Ok(rules);
        }
        let keys = if only.is_empty() { "freeze leaves" } else { "freeze and train_only leave" };
        Err(Error::Invalid(format!("{keys} no parameter that would be trained")))
    }

    /// How many experts a token uses in an epoch, where a schedule says so.
    pub fn top_k(&self, epoch: u64) -> Option<u32> {
        self.top_k_schedule.iter().rev().find(|[from, _]| u64::from(*from) <= epoch).map(|[_, k]| *k)
    }
}
