//! Runners: one sequence, or several in common steps, so that a weight is read once for the tokens of all.

use super::{
    Model, profile,
    run::{State, StepContext},
    sequence::{Segment, Sequence},
};
use crate::{
    backend::{
        BatchOptions, BatchRow, BatchRunner, KernelTime, Output, Runner, RunnerOptions, Step, check_batch,
        check_cache_memory, check_step,
    },
    error::{Error, Result},
};
use std::{mem::take, sync::Arc};

/// Some sequences of one size, and the memory of a step.
pub struct CpuRunner {
    model: Arc<Model>,
    options: RunnerOptions,
    state: State,
    /// The rows of the step that runs.
    segments: Vec<Segment>,
}

impl CpuRunner {
    /// Allocates.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a context or chunk of 0, or no sequence; [`Error::Device`] where memory is short.
    pub fn new(model: Arc<Model>, options: RunnerOptions, sequences: usize) -> Result<Self> {
        if sequences == 0 {
            return Err(Error::Invalid("a batch has at least one sequence".into()));
        }
        let all = RunnerOptions { ctx: options.ctx.saturating_mul(sequences), ..options };
        check_cache_memory(&model.graph, &all, options.kv)?;
        let of_one = |_| Sequence::new(&model.graph, options.ctx, options.kv);
        let sequences = (0..sequences).map(of_one).collect::<Result<_>>()?;
        let state = State::new(&model, options.chunk.min(all.ctx), options.ctx, sequences);
        Ok(CpuRunner { model, options, state, segments: vec![] })
    }

    /// Runs a checked step whose rows are `self.segments`.
    fn run(&mut self, step: Step<'_>, out: &mut Vec<Output>) -> Result<()> {
        self.begin()?;
        self.walk(step, |state, f| {
            f.model.graph.nodes.iter().try_for_each(|node| state.run(f, node))?;
            state.outputs(f, out);
            f.segments.iter().for_each(|s| state.sequences[s.sequence].done(s.end()));
            Ok(())
        })
    }

    /// Calls `work` with everything that the nodes of a step need.
    fn walk<R>(&mut self, step: Step<'_>, work: impl FnOnce(&mut State, StepContext<'_>) -> Result<R>) -> Result<R> {
        let segments = take(&mut self.segments);
        let frame = StepContext { model: &self.model, step, segments: &segments };
        self.state.begin(frame);
        let done = work(&mut self.state, frame);
        self.segments = segments;
        done
    }

    /// Moves the recurrent states of all sequences of a step to where it begins, or none.
    fn begin(&mut self) -> Result<()> {
        let segments = &self.segments;
        let is_first = |(i, s): &(usize, &Segment)| segments[..*i].iter().all(|b| b.sequence != s.sequence);
        let firsts = || segments.iter().enumerate().filter(is_first).map(|(_, s)| s);
        let stuck = |s: &&Segment| self.state.sequences[s.sequence].resume_at(s.past) != s.past;
        if let Some(s) = firsts().find(stuck) {
            // Says where it could.
            return self.state.sequences[s.sequence].begin(s.past);
        }
        firsts().try_for_each(|s| self.state.sequences[s.sequence].begin(s.past))
    }

    fn one_segment(&mut self, step: &Step<'_>) {
        self.segments.clear();
        self.segments.push(Segment { sequence: 0, first: 0, rows: step.tokens.len(), past: step.past });
    }
}

impl Runner for CpuRunner {
    fn step(&mut self, step: Step<'_>, out: &mut Vec<Output>) -> Result<()> {
        check_step(&step, &self.options)?;
        self.one_segment(&step);
        self.run(step, out)
    }

    fn resume_at(&self, past: usize) -> usize {
        self.state.sequences[0].resume_at(past)
    }

    fn keep_states(&mut self) -> Result<()> {
        self.state.sequences[0].keep();
        Ok(())
    }

    fn profile(&mut self, step: Step<'_>) -> Result<Option<Vec<KernelTime>>> {
        check_step(&step, &self.options)?;
        self.one_segment(&step);
        // Ops take their time whatever the states hold, but these are not those of a sequence any more.
        self.state.sequences[0].lose();
        let kv = self.options.kv;
        self.walk(step, |state, f| profile::times(state, f, kv)).map(Some)
    }

    fn memory_bytes(&self) -> u64 {
        self.state.bytes()
    }
}

/// See [`BatchRunner`].
pub struct CpuBatch {
    runner: CpuRunner,
    options: BatchOptions,
    tokens: Vec<u32>,
}

impl CpuBatch {
    /// Allocates.
    ///
    /// # Errors
    /// As [`CpuRunner::new`].
    pub fn new(model: Arc<Model>, options: BatchOptions) -> Result<Self> {
        let one = RunnerOptions { ctx: options.ctx, chunk: options.rows, kv: options.kv };
        Ok(CpuBatch { runner: CpuRunner::new(model, one, options.sequences)?, options, tokens: vec![] })
    }
}

impl BatchRunner for CpuBatch {
    fn step(&mut self, rows: &[BatchRow], outputs: usize, out: &mut Vec<Output>) -> Result<()> {
        check_batch(rows, outputs, &self.options)?;
        self.tokens.clear();
        self.tokens.extend(rows.iter().map(|r| r.token));
        Segment::cut(rows, &mut self.runner.segments);
        // The segments have the positions: the step itself has none.
        let step = Step { tokens: &self.tokens, past: 0, outputs, inputs: &[] };
        self.runner.run(step, out)
    }

    fn memory_bytes(&self) -> u64 {
        self.runner.memory_bytes()
    }
}
