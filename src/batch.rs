//! Several sequences on one model, fed in common steps: what a server schedules.
//!
//! A [`Batch`] has a fixed number of sequences, each with its own KV cache and position. A step feeds some of them any number
//! of tokens, one as a rule, a whole piece of a prompt for a sequence that is new, and leaves the logits after the last token
//! of each. On the GPU and on the CPU every weight is read once for all rows of a step.
//!
//! Deliberately absent: which sequence comes when, sampling.

use crate::{
    backend::{BatchOptions, BatchRow, BatchRunner, Output},
    error::{Error, Result},
    session::Model,
};

/// See the [module](self).
pub struct Batch {
    model: Model,
    runner: Box<dyn BatchRunner>,
    options: BatchOptions,
    positions: Vec<usize>,
    rows: Vec<BatchRow>,
    out: Vec<Output>,
    logits: usize,
}

impl Batch {
    /// Makes a batch: allocates its KV caches and scratch.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a size of 0, [`Error::Device`] where memory is short, [`Error::Unsupported`] where the model
    /// has ops that are not made for several sequences.
    pub fn new(model: &Model, options: BatchOptions) -> Result<Batch> {
        if options.ctx == 0 || options.sequences == 0 || options.rows == 0 {
            return Err(Error::Invalid("a batch has at least one sequence, one position and one row".into()));
        }
        let runner = model.loaded().batch(options)?;
        let outputs = &model.definition().program.graph.outputs;
        let logits = outputs.iter().position(|(n, _)| n == "logits").unwrap_or(0);
        let positions = vec![0; options.sequences];
        Ok(Batch { model: model.clone(), runner, options, positions, rows: vec![], out: vec![], logits })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.options.sequences
    }

    /// Positions that each has.
    pub fn ctx(&self) -> usize {
        self.options.ctx
    }

    /// Most tokens of one step, of all sequences together.
    pub fn rows(&self) -> usize {
        self.options.rows
    }

    /// Tokens of a sequence in its cache; 0 for one that is not there.
    pub fn position(&self, sequence: usize) -> usize {
        self.positions.get(sequence).copied().unwrap_or(0)
    }

    /// Forgets all but the first `n` tokens of a sequence; 0 makes it free for another text.
    pub fn truncate(&mut self, sequence: usize, n: usize) {
        if let Some(p) = self.positions.get_mut(sequence) {
            *p = (*p).min(n);
        }
    }

    /// Bytes of KV caches and scratch.
    pub fn memory_bytes(&self) -> u64 {
        self.runner.memory_bytes()
    }

    /// Feeds some sequences, each at most once, the tokens beside them. Gives the logits after the last token of each, in
    /// the same order, row-major `[n, V]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty step or sequence, one that is named twice or is not there, an id beyond the vocabulary,
    /// more tokens than a step has rows; [`Error::ContextFull`]; [`Error::Device`]; [`Error::Model`] where the logits are no
    /// finite numbers. No position moves then.
    pub fn step(&mut self, feed: &[(usize, &[u32])]) -> Result<&[f32]> {
        self.rows.clear();
        for (i, (sequence, tokens)) in feed.iter().enumerate() {
            if tokens.is_empty() {
                return Err(Error::Invalid(format!("no tokens for sequence {sequence}")));
            }
            if feed[..i].iter().any(|(other, _)| other == sequence) {
                return Err(Error::Invalid(format!("sequence {sequence} is fed twice in one step")));
            }
            let vocab = self.model.vocab();
            if let Some(id) = tokens.iter().find(|id| **id as usize >= vocab) {
                return Err(Error::Invalid(format!("token id {id} is not below the vocabulary's {vocab}")));
            }
        }
        // The rows whose logits are wanted come last.
        let (position, rows) = (&self.positions, &mut self.rows);
        let row = |sequence: usize, tokens: &[u32], i: usize| BatchRow {
            token: tokens[i],
            sequence,
            position: position.get(sequence).map_or(0, |p| p + i),
        };
        for (sequence, tokens) in feed {
            rows.extend((0..tokens.len() - 1).map(|i| row(*sequence, tokens, i)));
        }
        rows.extend(feed.iter().map(|(sequence, tokens)| row(*sequence, tokens, tokens.len() - 1)));
        self.runner.step(&self.rows, feed.len(), &mut self.out)?;
        let logits = &self.out[self.logits].f32;
        if logits.iter().any(|x| !x.is_finite()) {
            let what = "the logits hold NaN or infinity: the weights are damaged, or numbers overflow";
            return Err(Error::Model(what.into()));
        }
        for (sequence, tokens) in feed {
            self.positions[*sequence] += tokens.len();
        }
        Ok(logits)
    }
}
