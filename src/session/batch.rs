//! Several sequences side by side: see [`Batch`].
//!
//! Deliberately absent: which sequence comes when, random states.

use super::{Budget, Chosen, Model, Status};
use crate::{
    backend::runner::{ExpertSlotUse, Mask, Row, Runner, RunnerOptions, Step, Token, not_finite},
    error::{Error, Result},
    sampler::Sampling,
};

/// Several sequences on one model, fed in common steps: what a server schedules.
///
/// It is a view of a `Runner` with a fixed number of sequences. A step feeds some of them any number of tokens, one as
/// a rule, a whole piece of a prompt for a sequence that is new, and leaves the logits after the last token of each, or tokens
/// chosen after them. On the GPU and on the CPU every weight is read once for all rows of a step.
pub struct Batch {
    model: Model,
    runner: Runner,
    rows: Vec<Row>,
}

/// What one sequence does in a step that chooses tokens.
#[derive(Clone, Copy, Debug)]
pub struct BatchTurn<'a> {
    /// The sequence.
    pub sequence: usize,
    /// The tokens that are fed; none: the one that was chosen last.
    pub tokens: &'a [u32],
    /// The random word of the choice after the last token; `None`: no token is chosen.
    pub random: Option<u64>,
    /// The tokens that may be chosen, one bit each from the lowest bit of the first word on; `None`: all.
    pub allowed: Option<&'a [u32]>,
    /// Whether the hidden states of all tokens of the turn are wanted: [`Batch::hidden`].
    pub hidden: bool,
}

/// A turn that chooses nothing.
fn fed<'a>(f: &(usize, &'a [u32])) -> BatchTurn<'a> {
    BatchTurn { sequence: f.0, tokens: f.1, random: None, allowed: None, hidden: false }
}

impl Batch {
    /// Makes a batch: allocates its KV caches and scratch.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a size of 0, [`Error::Device`] where memory is short, [`Error::Unsupported`] where the model
    /// has ops that are not made for several sequences.
    pub fn new(model: &Model, options: RunnerOptions) -> Result<Batch> {
        let runner = model.loaded().runner(options)?;
        Ok(Batch { model: model.clone(), runner, rows: vec![] })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.runner.options().sequences
    }

    /// Positions that each has.
    pub fn ctx(&self) -> usize {
        self.runner.options().ctx
    }

    /// Most tokens of one step, of all sequences together.
    pub fn rows(&self) -> usize {
        self.runner.options().ubatch
    }

    /// Tokens of a sequence in its cache; 0 for one that is not there.
    pub fn position(&self, sequence: usize) -> usize {
        self.runner.len(sequence)
    }

    /// Forgets all but the first `n` tokens of a sequence; 0 makes it free for another text. With recurrent states the next
    /// tokens must come where [`Batch::resume_at`] says.
    pub fn truncate(&mut self, sequence: usize, n: usize) {
        self.runner.truncate(sequence, n);
    }

    /// The largest position up to `n` from which a sequence can be fed: with recurrent states where these stand, where
    /// [`Batch::snapshot`] kept them, or 0; else where its text ends or earlier.
    pub fn resume_at(&self, sequence: usize, n: usize) -> usize {
        self.runner.resume_at(sequence, n)
    }

    /// Bytes of KV caches, recurrent states and scratch.
    pub fn memory_bytes(&self) -> u64 {
        self.runner.memory_bytes()
    }

    /// What slots of experts have done: as [`crate::session::Session::expert_slots`].
    ///
    /// # Errors
    /// [`Error::Invalid`] while something is queued, [`Error::Device`].
    pub fn expert_slots(&mut self) -> Result<Vec<ExpertSlotUse>> {
        self.runner.expert_slots()
    }

    /// Feeds some sequences, each at most once, the tokens beside them. Gives the logits after the last token of each, in
    /// the same order, row-major `[n, V]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty step or sequence, one that is named twice or is not there, an id beyond the vocabulary,
    /// more tokens than a step has rows, a position where recurrent states are not known; [`Error::ContextFull`];
    /// [`Error::Device`]; [`Error::Model`] where the logits are no finite numbers. No position moves on then.
    pub fn step(&mut self, feed: &[(usize, &[u32])]) -> Result<&[f32]> {
        if let Some((sequence, _)) = feed.iter().find(|f| f.1.is_empty()) {
            return Err(Error::Invalid(format!("no tokens for sequence {sequence}")));
        }
        self.lay_out(feed.iter().map(fed))?;
        let first = self.rows.len() - feed.len();
        self.rows[first..].iter_mut().for_each(|r| r.logits = true);
        self.runner.step(&Step { rows: &self.rows, ..Step::default() })?;
        if self.logits().iter().any(|x| !x.is_finite()) {
            for row in &self.rows {
                self.runner.truncate(row.sequence, row.position);
            }
            return Err(not_finite("the logits hold"));
        }
        Ok(self.logits())
    }

    fn logits(&self) -> &[f32] {
        self.runner.results().outputs.get(self.model.logits_output()).map_or(&[], |o| &o.f32)
    }

    /// Sets how tokens of a sequence are chosen from here on; gives whether the backend chooses them, not the host from
    /// logits.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options out of range or a sequence that is not there; [`Error::Device`].
    pub fn set_sampler(&mut self, sequence: usize, sampling: &Sampling<'_>) -> Result<bool> {
        self.runner.set_sampler(sequence, sampling)
    }

    /// Feeds some sequences, each at most once, and chooses tokens after the last token of those that want one: one choice
    /// each, in the same order. One that fails does not spoil the others.
    ///
    /// # Errors
    /// As [`Batch::step`], and [`Error::Invalid`] before [`Batch::set_sampler`], for a mask of another size, or while other
    /// steps are queued.
    pub fn choose(&mut self, turns: &[BatchTurn<'_>]) -> Result<&[Chosen]> {
        if self.runner.queued() > 0 {
            return Err(Error::Invalid("other steps are queued: take or cancel them first".into()));
        }
        self.begin(turns)?;
        self.runner.take()?;
        Ok(self.chosen())
    }

    /// Queues what [`Batch::choose`] does. Nothing runs before [`Batch::poll`].
    ///
    /// # Errors
    /// As [`Batch::choose`]; everything is as before then.
    pub fn begin(&mut self, turns: &[BatchTurn<'_>]) -> Result<()> {
        self.lay_out(turns.iter().copied())?;
        let first = self.rows.len() - turns.iter().filter(|t| t.random.is_some()).count();
        let choosing = turns.iter().filter(|t| t.random.is_some()).zip(first..);
        let masks: Vec<Mask<'_>> =
            choosing.filter_map(|(turn, row)| Some(Mask { row, allowed: turn.allowed? })).collect();
        self.runner.begin(&Step { rows: &self.rows, masks: &masks, ..Step::default() })
    }

    /// Does at most one slice of what is queued, and never blocks. [`Status::Done`]: the oldest step's choices are there.
    ///
    /// # Errors
    /// [`Error::Device`]. What is queued is dropped then.
    pub fn poll(&mut self, budget: Budget) -> Result<Status> {
        self.runner.poll(budget)
    }

    /// Blocks until the device has done what [`Status::Waiting`] stands for, within a bound.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn wait(&mut self) -> Result<()> {
        self.runner.wait()
    }

    /// The oldest step as a future, a slice within `budget` a poll.
    pub fn finish(&mut self, budget: Budget) -> impl Future<Output = Result<()>> + '_ {
        self.runner.finish(budget)
    }

    /// The choices of the step that was done last, in the order of its turns.
    pub fn chosen(&self) -> &[Chosen] {
        &self.runner.results().tokens
    }

    /// The hidden states after the final norm, `[H]` each, of the tokens that a sequence was fed in the step that was done last,
    /// in order; none where its turn did not ask for them. [`crate::session::Pooled`] makes one vector of them.
    pub fn hidden(&self, sequence: usize) -> impl Iterator<Item = &[f32]> {
        let (results, cols) = (self.runner.results(), self.model.hyper().hidden.max(1));
        let rows = results.hidden_of.iter().zip(results.hidden.chunks_exact(cols));
        rows.filter(move |(of, _)| of.0 == sequence).map(|(_, row)| row)
    }

    /// Drops what is queued, at any slice. Sequences hold the tokens of the steps that were done.
    pub fn cancel(&mut self) {
        self.runner.cancel();
    }

    /// Fills `rows`: the last rows of sequences that choose come last, in order.
    fn lay_out<'a>(&mut self, turns: impl Iterator<Item = BatchTurn<'a>> + Clone) -> Result<()> {
        self.rows.clear();
        let vocab = self.model.vocab();
        for (i, t) in turns.clone().enumerate() {
            if turns.clone().take(i).any(|other| other.sequence == t.sequence) {
                return Err(Error::Invalid(format!("sequence {} is fed twice in one step", t.sequence)));
            }
            if let Some(id) = t.tokens.iter().find(|id| **id as usize >= vocab) {
                return Err(Error::Invalid(format!("token id {id} is not below the vocabulary's {vocab}")));
            }
            let before = t.tokens.split_last().map_or(&[][..], |s| s.1);
            let first = self.runner.len(t.sequence);
            let row = |id, position| Row { hidden: t.hidden, ..Row::fed(id, t.sequence, position) };
            self.rows.extend(before.iter().zip(first..).map(|(id, position)| row(*id, position)));
        }
        for wants in [false, true] {
            for t in turns.clone().filter(|t| t.random.is_some() == wants) {
                let position = self.runner.len(t.sequence) + t.tokens.len().saturating_sub(1);
                let token = t.tokens.last().map_or(Token::Last, |id| Token::Id(*id));
                let row = Row::fed(0, t.sequence, position);
                self.rows.push(Row { token, choose: t.random, hidden: t.hidden, ..row });
            }
        }
        Ok(())
    }
}

/// Prefixes.
impl Batch {
    /// Keeps a copy of a sequence's recurrent states as they stand, in place of the one before. Does nothing for models without.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a sequence that is not there; [`Error::Device`].
    pub fn snapshot(&mut self, sequence: usize) -> Result<()> {
        self.runner.snapshot(sequence)
    }

    /// The first `n` tokens' keys, values and recurrent states as bytes: what [`Batch::restore`] takes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a sequence that is not there or shorter, or where recurrent states are not known after `n`
    /// tokens; [`Error::Device`].
    pub fn save(&mut self, sequence: usize, n: usize) -> Result<Vec<u8>> {
        self.runner.save(sequence, n)
    }

    /// Puts a saved prefix in place of what a sequence holds; gives its number of tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] for bytes that are damaged or belong to another model, KV type or backend;
    /// [`Error::ContextFull`]; [`Error::Device`].
    pub fn restore(&mut self, sequence: usize, bytes: &[u8]) -> Result<usize> {
        self.runner.restore(sequence, bytes)
    }

    /// Puts the first `n` tokens of a sequence in place of what another one holds.
    ///
    /// # Errors
    /// As [`Batch::save`].
    pub fn fork(&mut self, from: usize, to: usize, n: usize) -> Result<()> {
        self.runner.fork(from, to, n)
    }
}
