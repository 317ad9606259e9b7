//! Steps on the CPU: the nodes of the fused graph in order, as many at a time as a budget allows.

use super::{
    Model, profile,
    run::{State, StepContext},
    sequence::{Rows, Segment, Sequence},
};
use crate::{
    backend::{
        KernelTime, check_cache_memory,
        runner::{
            Budget, Executor, ExecutorStep, ExpertSlotUse, PAGE, Results, RunnerOptions, StateCopy, StateMove, Status,
            Token, find_input,
        },
    },
    error::{Error, Result},
    ir::Op,
};
use std::{ops::Range, sync::Arc, time::Instant};

/// Some sequences of one size, and the memory of a step.
pub struct CpuExecutor {
    model: Arc<Model>,
    options: RunnerOptions,
    state: State,
    step: BegunStep,
    /// The node that comes next, where a step is begun.
    next: Option<usize>,
    /// Whether that step has touched caches or states.
    started: bool,
}

/// What was copied of a step.
#[derive(Default)]
struct BegunStep {
    tokens: Vec<u32>,
    segments: Vec<Segment>,
    outputs: usize,
    moves: Vec<(usize, StateMove)>,
    inputs: Vec<(String, Vec<f32>)>,
    trace: bool,
    hidden: Vec<usize>,
}

impl BegunStep {
    fn frame<'a>(&'a self, model: &'a Model) -> StepContext<'a> {
        let (tokens, inputs) = (&self.tokens[..], &self.inputs[..]);
        let step = Rows { tokens, outputs: self.outputs, inputs, trace: self.trace, hidden: &self.hidden };
        StepContext { model, step, segments: &self.segments }
    }
}

impl CpuExecutor {
    /// Allocates.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a size of 0; [`Error::Device`] where memory is short.
    pub fn new(model: Arc<Model>, options: RunnerOptions) -> Result<Self> {
        check_cache_memory(&model.graph, &options, options.kv)?;
        let of_one = |_| Sequence::new(&model.graph, options.ctx, options.kv);
        let sequences = (0..options.sequences).map(of_one).collect::<Result<_>>()?;
        let most = options.ubatch.min(options.ctx.saturating_mul(options.sequences));
        let mut state = State::new(&model, most, options.ctx, sequences);
        state.host = model.host.as_ref().map(|h| h.runner(most)).transpose()?;
        Ok(CpuExecutor { model, options, state, step: BegunStep::default(), next: None, started: false })
    }

    fn fill(&mut self, step: &ExecutorStep<'_>) -> Result<()> {
        let inputs = |op: &Op| match op {
            Op::Input { name, cols } => {
                let data = find_input(step.inputs, name, step.rows.len(), *cols)?;
                Ok(Some((name.clone(), data.to_vec())))
            }
            _ => Ok(None),
        };
        let to = &mut self.step;
        to.inputs.clear();
        for node in &self.model.graph.nodes {
            to.inputs.extend(inputs(&node.op)?);
        }
        to.tokens.clear();
        for row in step.rows {
            match row.token {
                Token::Id(id) => to.tokens.push(id),
                Token::Last => return Err(Error::Invalid("the CPU is told which tokens it is fed".into())),
            }
        }
        Segment::cut(step.rows, &mut to.segments);
        to.hidden.clear();
        to.hidden.extend(step.rows.iter().enumerate().filter(|(_, r)| r.hidden).map(|(i, _)| i));
        to.moves.clear();
        to.moves.extend_from_slice(step.moves);
        (to.outputs, to.trace) = (step.outputs, step.trace);
        Ok(())
    }

    /// What precedes the first node of a step.
    fn start(&mut self) {
        self.started = true;
        for (sequence, to) in &self.step.moves {
            self.state.sequences[*sequence].move_states(*to);
        }
        self.state.begin(self.step.frame(&self.model));
    }
}

impl Executor for CpuExecutor {
    fn begin(&mut self, step: &ExecutorStep<'_>) -> Result<()> {
        if self.next.is_some() {
            return Err(Error::Invalid("a step is begun before the last is done".into()));
        }
        self.fill(step)?;
        (self.next, self.started) = (Some(0), false);
        Ok(())
    }

    fn poll(&mut self, budget: Budget, out: &mut Results) -> Result<Status> {
        let Some(first) = self.next else { return Ok(Status::Idle) };
        if !self.started {
            self.start();
        }
        let clock = (budget.micros < u64::MAX).then(Instant::now);
        let model = self.model.clone();
        let frame = self.step.frame(&model);
        let nodes = &model.graph.nodes;
        let most = budget.dispatches.max(1).min(nodes.len() - first);
        let mut next = first;
        for node in &nodes[first..first + most] {
            self.state.run(frame, node)?;
            next += 1;
            if clock.is_some_and(|c| c.elapsed().as_micros() >= u128::from(budget.micros)) {
                break;
            }
        }
        if next < nodes.len() {
            self.next = Some(next);
            return Ok(Status::Pending);
        }
        self.state.outputs(frame, &mut out.outputs);
        out.tokens.clear();
        self.next = None;
        Ok(Status::Done)
    }

    fn cancel(&mut self) -> usize {
        usize::from(self.next.take().is_some() && self.started)
    }

    fn copy_prefix(&mut self, from: usize, to: usize, positions: usize) -> Result<()> {
        let mut bytes = vec![];
        for cache in 0..self.model.graph.caches.len() {
            bytes.clear();
            let sequences = &mut self.state.sequences;
            sequences[from].caches[cache].each_part(0..positions, &mut |part| bytes.extend_from_slice(part));
            let mut rest = &bytes[..];
            sequences[to].caches[cache].each_part(0..positions, &mut |part| copy_front(&mut rest, part));
        }
        Ok(())
    }

    fn copy_states(&mut self, from: StateCopy, to: StateCopy) -> Result<()> {
        let sequences = &mut self.state.sequences;
        if from.sequence == to.sequence {
            sequences[to.sequence].copy_within(to.snapshot);
            return Ok(());
        }
        let (low, high) = (from.sequence.min(to.sequence), from.sequence.max(to.sequence));
        let (a, b) = sequences.split_at_mut(high);
        let (source, target) = if from.sequence == low { (&a[low], &mut b[0]) } else { (&b[0], &mut a[low]) };
        target.set_states(to.snapshot, source.copy_of_states(from.snapshot));
        Ok(())
    }

    fn layout(&self) -> &'static str {
        "cpu 1"
    }

    fn sequence_bytes(&self, positions: usize, states: bool) -> usize {
        let sequence = &self.state.sequences[0];
        let caches: usize = sequence.caches.iter().map(|c| c.part_bytes(positions)).sum();
        let states = if states { sequence.states.iter().map(|s| size_of_val(&s[..])).sum() } else { 0 };
        caches + states
    }

    fn page_parts(&mut self) -> Vec<usize> {
        let mut parts = vec![];
        for cache in &mut self.state.sequences[0].caches {
            cache.each_part(0..PAGE, &mut |part| parts.push(part.len()));
        }
        parts
    }

    fn read_sequence(
        &mut self,
        sequence: usize,
        positions: Range<usize>,
        states: Option<StateCopy>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let s = &mut self.state.sequences[sequence];
        for cache in &mut s.caches {
            cache.each_part(positions.clone(), &mut |part| out.extend_from_slice(part));
        }
        if let Some(copy) = states {
            let states = self.state.sequences[copy.sequence].copy_of_states(copy.snapshot);
            states.iter().for_each(|state| out.extend_from_slice(bytemuck::cast_slice(state)));
        }
        Ok(())
    }

    fn write_sequence(
        &mut self,
        sequence: usize,
        positions: Range<usize>,
        states: bool,
        mut bytes: &[u8],
    ) -> Result<()> {
        let s = &mut self.state.sequences[sequence];
        for cache in &mut s.caches {
            cache.each_part(positions.clone(), &mut |part| copy_front(&mut bytes, part));
        }
        if states {
            s.states.iter_mut().for_each(|state| copy_front(&mut bytes, bytemuck::cast_slice_mut(state)));
        }
        Ok(())
    }

    fn expert_slots(&mut self) -> Result<Vec<ExpertSlotUse>> {
        // All experts are in one memory here.
        Ok(vec![])
    }

    fn memory_bytes(&self) -> u64 {
        self.state.bytes()
    }

    fn profile(&mut self, step: &ExecutorStep<'_>) -> Result<Option<Vec<KernelTime>>> {
        self.fill(step)?;
        self.start();
        profile::times(&mut self.state, self.step.frame(&self.model), self.options.kv).map(Some)
    }
}

/// Copies the front of `from` to all of `to`, and moves `from` behind it.
fn copy_front(from: &mut &[u8], to: &mut [u8]) {
    let (front, rest) = from.split_at(to.len());
    to.copy_from_slice(front);
    *from = rest;
}
