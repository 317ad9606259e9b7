//! The loop: batches, gradients, steps, evaluations, checkpoints.

use super::{
    checkpoint::{Checkpoints, Resumed, TrainState},
    clip::{clip_factor, gradient_norm},
    config::TrainConfig,
    data::{Corpus, Cursor, Feed},
    lasting::lasting,
    learner::{Learner, MicroBatch, Outcome},
    metrics::{EvalRecord, Log, StepRecord},
    model_learner::ModelLearner,
    optimizer::Optimizer,
    schedule::Schedule,
};
use crate::{
    cancel::CancelToken,
    error::{Error, Result},
};
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// What a run says while it goes on.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A step was taken.
    Step(&'a StepRecord),
    /// The model was evaluated.
    Evaluated(&'a EvalRecord),
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Steps that were taken in all.
    pub steps: u64,
    /// Steps that were skipped among them.
    pub skipped: u64,
    /// The last checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// The best evaluation and its step.
    pub best: Option<(f64, u64)>,
    /// Whether evaluations did not get better any more.
    pub stopped_early: bool,
}

/// A run: a model that learns, its data, and where it stands.
pub struct Trainer<L: Learner = ModelLearner> {
    learner: L,
    config: TrainConfig,
    feed: Feed,
    eval: Option<Feed>,
    optimizer: Optimizer,
    schedule: Schedule,
    checkpoints: Checkpoints,
    state: TrainState,
    saved: Option<PathBuf>,
    threads: usize,
    logs: Vec<Box<dyn Log>>,
}

impl<L: Learner> Trainer<L> {
    /// A run from its beginning, or from the checkpoint that `resume` of the configuration means. `eval` is what is evaluated on.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a configuration that does not fit the model or the data: it names the key.
    /// [`Error::Unsupported`] where the model has an operation without a gradient. Errors of reading a checkpoint.
    pub fn new(mut learner: L, config: TrainConfig, train: Corpus, eval: Option<Corpus>) -> Result<Self> {
        config.check()?;
        if config.sequence_len > learner.context() {
            let (s, c) = (config.sequence_len, learner.context());
            return Err(Error::Invalid(format!("sequence_len is {s}, and the model takes {c} tokens")));
        }
        let rules = config.rules(learner.parameters())?;
        let optimizer = Optimizer::new(config.optimizer_options(), learner.parameters(), rules)?;
        let feed = Feed::new(train, config.feed())?;
        let eval = eval.map(|corpus| Feed::new(corpus, config.eval_feed())).transpose()?;
        let steps = match config.max_steps {
            0 => (feed.steps_per_epoch() as f64 * config.num_epochs).ceil().max(1.0) as u64,
            n => n,
        };
        let schedule = config.schedule(steps);
        schedule.check()?;
        let checkpoints =
            Checkpoints::new(&config.output_dir, config.save_total_limit, lasting(&config, steps, &feed, &learner)?);
        let resumed = match config.resume.as_str() {
            "auto" | "true" => checkpoints.newest()?,
            "never" | "false" | "" => None,
            path => Some(checkpoints.named(path.as_ref())?),
        };
        learner.choose(&optimizer.trained())?;
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            n => n,
        };
        let mut trainer = Trainer {
            learner,
            config,
            feed,
            eval,
            optimizer,
            schedule,
            checkpoints,
            state: TrainState::default(),
            saved: None,
            threads,
            logs: vec![],
        };
        if let Some(resumed) = resumed {
            trainer.restore(resumed)?;
        }
        Ok(trainer)
    }

    fn restore(&mut self, resumed: Resumed) -> Result<()> {
        let path = resumed.path.display();
        self.feed
            .seek(resumed.state.cursor)
            .map_err(|e| Error::format(path.to_string(), format!("goes on with {e}")))?;
        resumed.restore(&mut self.learner, &mut self.optimizer)?;
        self.state = resumed.state;
        self.saved = Some(resumed.path);
        Ok(())
    }

    /// Adds a log; those of files begin behind [`Trainer::state`]'s step.
    pub fn log(&mut self, log: Box<dyn Log>) {
        self.logs.push(log);
    }

    /// What the run was asked for.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Where the run stands.
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// Steps in all.
    pub fn steps(&self) -> u64 {
        self.schedule.steps
    }

    /// The checkpoint that the run went on from, or that it wrote last.
    pub fn checkpoint(&self) -> Option<&Path> {
        self.saved.as_deref()
    }

    /// The data that is trained on.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Rows of a micro-batch.
    pub fn rows(&self) -> usize {
        self.config.micro_batch_size * self.config.sequence_len
    }

    /// Runs the first micro-batch and forgets it; gives the micro-batches of a step, and the seconds that one took.
    ///
    /// # Errors
    /// What the backend says.
    pub fn time_micro_batch(&mut self) -> Result<(usize, f64)> {
        let cursor = self.feed.cursor();
        let batch = self.feed.next_batch();
        self.feed.seek(cursor)?;
        let Some(micro) = batch.micro.first() else { return Ok((0, 0.0)) };
        let begun = Instant::now();
        self.learner.accumulate(micro)?;
        let seconds = begun.elapsed().as_secs_f64();
        self.learner.clear()?;
        Ok((batch.micro.len(), seconds))
    }

    /// The optimizer.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// The model.
    pub fn learner(&mut self) -> &mut L {
        &mut self.learner
    }

    /// The model, when the run is over.
    pub fn into_learner(self) -> L {
        self.learner
    }

    /// Takes one step.
    ///
    /// # Errors
    /// What the backend says; [`Error::Model`] after too many steps in a row whose loss or gradient was no number; errors of logs.
    pub fn step(&mut self) -> Result<StepRecord> {
        let begun = Instant::now();
        let epoch = self.state.cursor;
        let mut batch = self.feed.next_batch();
        let (outcome, norm) = self.gradients(std::mem::take(&mut batch.micro), epoch.epoch)?;
        let rate = self.schedule.rate(self.state.step);
        let skipped = !norm.is_finite() || !outcome.total().is_finite();
        if !skipped {
            let factor = clip_factor(norm, self.config.max_grad_norm);
            self.optimizer.update(&mut self.learner, rate, factor, self.threads)?;
            self.learner.stepped()?;
        }
        self.learner.clear()?;
        self.state.step += 1;
        self.state.cursor = self.feed.cursor();
        if skipped {
            self.state.skipped += 1;
            self.state.skipped_in_row += 1;
        } else {
            self.state.skipped_in_row = 0;
            self.state.tokens = self.state.tokens.saturating_add(batch.learnt);
        }
        let part = epoch.sequence as f64 / self.feed.sequences() as f64;
        let record = StepRecord {
            step: self.state.step,
            epoch: epoch.epoch as f64 + part,
            loss: outcome.total(),
            terms: outcome.terms,
            grad_norm: norm.value,
            learning_rate: rate,
            tokens: self.state.tokens,
            tokens_per_second: batch.rows as f64 / begun.elapsed().as_secs_f64().max(1e-9),
            loads: outcome.loads,
            skipped,
        };
        if record.step % self.config.logging_steps == 0 || skipped {
            self.logs.iter_mut().try_for_each(|l| l.step(&record))?;
        }
        if self.state.skipped_in_row > self.config.max_skipped_steps {
            return Err(self.diverged(&record));
        }
        Ok(record)
    }

    /// The gradients of a batch's micro-batches.
    fn gradients(&mut self, batch: Vec<MicroBatch>, epoch: u64) -> Result<(Outcome, super::Norm)> {
        let mut outcome = Outcome::default();
        for mut micro in batch {
            micro.step = self.state.step;
            micro.seed = self.config.seed;
            micro.top_k = self.config.top_k(epoch);
            outcome.add(&self.learner.accumulate(&micro)?);
        }
        Ok((outcome, gradient_norm(&mut self.learner, self.threads)?))
    }

    /// Experts that a token takes now, where a schedule says so: as in the last step, which may have been the last of its epoch.
    pub fn top_k(&self) -> Option<u32> {
        let Cursor { epoch, sequence } = self.state.cursor;
        self.config.top_k(if sequence == 0 { epoch.saturating_sub(1) } else { epoch })
    }

    fn diverged(&self, record: &StepRecord) -> Error {
        let n = self.state.skipped_in_row;
        let kept = match &self.saved {
            Some(path) => format!("the last good weights are in {}", path.display()),
            None => "no checkpoint was written yet".into(),
        };
        let helps = match self.state.skipped == self.state.step {
            true => {
                "no step was taken before: the model's own weights, or weights and noise of [router], make no numbers"
            }
            false => "a lower learning_rate or more warmup_steps help",
        };
        Error::Model(format!(
            "{n} steps in a row had a loss or gradient that is no number (step {}: loss {}, gradient norm {}); {kept}; {helps}",
            record.step, record.loss, record.grad_norm
        ))
    }

    /// Evaluates the model on all of the data that is held back.
    ///
    /// # Errors
    /// What the backend says; [`Error::Invalid`] without such data; errors of logs.
    pub fn evaluate(&mut self) -> Result<EvalRecord> {
        let top_k = self.top_k();
        let Some(eval) = &mut self.eval else {
            return Err(Error::Invalid("there is nothing to evaluate on: val_set_size or test_datasets".into()));
        };
        let (limit, mut all, mut rows) = (self.config.eval_max_batches, 0u64, 0usize);
        eval.each(limit, &mut |batch| {
            all += batch.learnt;
            rows += batch.rows as usize;
            Ok(())
        })?;
        let (mut outcome, learner) = (Outcome::default(), &mut self.learner);
        let (step, seed) = (self.state.step, self.config.seed);
        eval.each(limit, &mut |batch| {
            for mut micro in batch.micro {
                (micro.step, micro.seed, micro.top_k) = (step, seed, top_k);
                micro.scale = 1.0 / all.max(1) as f64;
                micro.share = micro.counted() as f64 / rows.max(1) as f64;
                outcome.add(&learner.evaluate(&micro)?);
            }
            Ok(())
        })?;
        let loss = outcome.terms.first().map_or(f64::NAN, |t| t.value);
        let record = EvalRecord { step: self.state.step, loss, terms: outcome.terms, tokens: all };
        self.logs.iter_mut().try_for_each(|l| l.evaluation(&record))?;
        match self.state.best {
            Some((best, _)) if loss >= best || loss.is_nan() => {
                self.state.since_best = self.state.since_best.saturating_add(1);
            }
            _ if loss.is_nan() => {}
            _ => (self.state.best, self.state.since_best) = (Some((loss, self.state.step)), 0),
        }
        Ok(record)
    }

    /// Makes the folder of checkpoints and logs, and takes away what an interrupted run left half-written there.
    pub(super) fn prepare_folder(&self) -> Result<()> {
        self.checkpoints.prepare()
    }

    /// Writes a checkpoint.
    ///
    /// # Errors
    /// [`Error::Write`]: earlier checkpoints stay.
    pub fn save(&mut self) -> Result<PathBuf> {
        self.logs.iter_mut().try_for_each(|l| l.flush())?;
        self.optimizer.fetch(&mut self.learner)?;
        let path = self.checkpoints.save(&self.state, &mut self.learner, &self.optimizer)?;
        self.saved = Some(path.clone());
        Ok(path)
    }

    /// Trains to the end: steps, and evaluations and checkpoints as the configuration says. Where `cancel` is set the run ends
    /// between two steps with a checkpoint, from which it can go on.
    ///
    /// # Errors
    /// As [`Trainer::step`], [`Trainer::evaluate`] and [`Trainer::save`]; [`Error::Cancelled`].
    pub fn run(&mut self, cancel: &CancelToken, progress: &mut dyn FnMut(Event<'_>)) -> Result<Finished> {
        self.prepare_folder()?;
        let gave_up =
            |t: &Self| t.config.early_stopping_patience > 0 && t.state.since_best >= t.config.early_stopping_patience;
        let mut stopped_early = gave_up(self);
        let every = |n: u64, step: u64| n > 0 && step % n == 0;
        while self.state.step < self.schedule.steps && !stopped_early {
            if cancel.is_cancelled() {
                self.save_once(progress)?;
                return Err(Error::Cancelled);
            }
            let record = self.step()?;
            progress(Event::Step(&record));
            let last = self.state.step == self.schedule.steps;
            if self.eval.is_some() && (every(self.config.eval_steps, self.state.step) || last) {
                let record = self.evaluate()?;
                progress(Event::Evaluated(&record));
                stopped_early = gave_up(self);
            }
            // The best is kept, so it is written even between two checkpoints.
            let best = self.config.early_stopping_patience > 0
                && self.state.best.is_some_and(|(_, step)| step == self.state.step);
            if every(self.config.save_steps, self.state.step) || last || stopped_early || best {
                self.save_once(progress)?;
            }
        }
        self.logs.iter_mut().try_for_each(|l| l.flush())?;
        Ok(Finished {
            steps: self.state.step,
            skipped: self.state.skipped,
            checkpoint: self.saved.clone(),
            best: self.state.best,
            stopped_early,
        })
    }

    /// Writes a checkpoint, unless the last one is of this step.
    fn save_once(&mut self, progress: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let name = format!("checkpoint-{:06}", self.state.step);
        if self.state.step == 0 || self.saved.as_ref().is_some_and(|p| p.ends_with(&name)) {
            return Ok(());
        }
        let path = self.save()?;
        progress(Event::Saved(&path));
        Ok(())
    }
}
