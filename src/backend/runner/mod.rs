//! The one runner: some sequences on a loaded model, and steps of rows through them.
//!
//! A [`Runner`] is the same for all backends. It checks steps, knows where each sequence and its recurrent states stand, keeps
//! the queue, chooses tokens on the host where the backend does not, and saves, restores and forks sequences. A backend
//! implements the [`Executor`] under it.
//!
//! Nothing here blocks but the methods that say so: [`Runner::begin`] queues a step, [`Runner::poll`] does one slice of the work
//! within a [`Budget`], and [`Runner::finish`] is the same as a future.
//!
//! Deliberately absent: tokens' text, random states, which sequence comes when.

mod check;
mod executor;
mod finish;
mod future;
mod host;
mod owned;
mod page;
mod pages;
mod prefix;
mod queue;
mod saved;
mod sequence;
mod step;
mod steps;

pub use executor::{Executor, ExecutorStep, ExpertSlotUse, KernelTime, StateCopy, StateMove, find_input};
pub use future::StepFuture;
pub use owned::OwnedStep;
pub use page::Page;
pub use pages::PAGE;
pub(crate) use saved::{checksum, fingerprint};
pub(crate) use step::not_finite;
pub use step::{Budget, Chosen, Inputs, Mask, Output, Results, Row, Status, Step, Token};

use crate::{
    error::{Error, Result},
    graph::Program,
    ir::{Graph, Norm, Op, RESIDUAL, Rows, Type},
    quant::KvType,
    sampler::{Chooser, Sampling},
};
use host::SequenceSampler;
use page::PagePool;
use queue::Queued;
use sequence::Sequence;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, OnceLock},
};

/// Size of a runner: fixed when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunnerOptions {
    /// Positions in the KV cache of each sequence.
    pub ctx: usize,
    /// Sequences, each with KV caches and recurrent states of its own.
    pub sequences: usize,
    /// Most rows of one step, of all sequences together. A longer prompt takes several steps.
    pub ubatch: usize,
    /// Storage of keys and values.
    pub kv: KvType,
}

/// Steps that may be queued at once.
const QUEUE: usize = 4;

/// See the [module](self).
pub struct Runner {
    executor: Box<dyn Executor>,
    /// Bytes of each part of a page.
    page_parts: Vec<usize>,
    /// Scratch: pages on their way.
    page_range: Vec<u8>,
    page_pool: Arc<Mutex<PagePool>>,
    options: RunnerOptions,
    graph: GraphFacts,
    sequences: Vec<Sequence>,
    samplers: Vec<SequenceSampler>,
    chooser: Chooser,
    /// Steps whose results were not taken, the oldest first; the first `begun` are the executor's.
    queue: VecDeque<Queued>,
    begun: usize,
    /// Steps to be filled again.
    spare: Vec<Queued>,
    results: Results,
    /// Rows as the executor gets them, and the choices of a step.
    rows: Vec<Row>,
    chosen: Vec<Chosen>,
}

/// What a runner needs to know of the program.
struct GraphFacts {
    program: Program,
    /// Ids are below: rows of the embedding table.
    ids: usize,
    /// The output of logits and its columns.
    logits: Option<(usize, usize)>,
    /// For each output, whether it has a row for each of the last rows only.
    of_outputs: Vec<bool>,
    /// Where hidden states come from.
    hidden: Option<HiddenFacts>,
    fingerprint: OnceLock<u64>,
}

/// The output that hidden states are made of.
struct HiddenFacts {
    /// Its place among the graph's outputs.
    at: usize,
    /// H.
    cols: usize,
    /// The final norm, which only rows with logits have been through on the backend.
    norm: Norm,
}

impl HiddenFacts {
    fn new(g: &Graph) -> Option<Self> {
        let at = g.outputs.iter().position(|(name, _)| name == RESIDUAL)?;
        let value = g.outputs[at].1;
        let taken = g.nodes.iter().find(|n| matches!(n.op, Op::TakeOutputs) && n.inputs == [value])?;
        let norm = g.nodes.iter().find_map(|n| match n.op {
            Op::RmsNorm(norm) if n.inputs == taken.outputs => Some(norm),
            _ => None,
        })?;
        Some(HiddenFacts { at, cols: g.cols(value), norm })
    }
}

impl GraphFacts {
    fn new(program: &Program) -> Self {
        let g = &program.graph;
        let of_outputs = |v| matches!(g.ty(v), Type::F32(Rows::Outputs, _) | Type::U32(Rows::Outputs, _));
        let logits = g.outputs.iter().position(|(name, v)| name == "logits" && of_outputs(*v));
        GraphFacts {
            program: program.clone(),
            ids: vocab(g),
            logits: logits.map(|at| (at, g.cols(g.outputs[at].1))),
            of_outputs: g.outputs.iter().map(|(_, v)| of_outputs(*v)).collect(),
            hidden: HiddenFacts::new(g),
            fingerprint: OnceLock::new(),
        }
    }
}

/// Rows of the embedding table: token ids are below.
fn vocab(g: &Graph) -> usize {
    let rows = |op: &Op| match op {
        Op::Embed { table, .. } => g.weight(*table).shape.first().copied(),
        _ => None,
    };
    g.nodes.iter().filter_map(|n| rows(&n.op)).min().unwrap_or(usize::MAX)
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (options, sequences) = (&self.options, &self.sequences);
        f.debug_struct("Runner").field("options", options).field("sequences", sequences).finish_non_exhaustive()
    }
}

impl Runner {
    /// Puts a runner on top of an executor of `program` that was made with these options.
    pub fn new(mut executor: Box<dyn Executor>, program: &Program, options: RunnerOptions) -> Self {
        let (recurrent, cached) = (!program.graph.states.is_empty(), !program.graph.caches.is_empty());
        let samplers = std::iter::repeat_with(SequenceSampler::default).take(options.sequences).collect();
        Runner {
            page_parts: executor.page_parts(),
            page_range: vec![],
            page_pool: Arc::default(),
            executor,
            options,
            graph: GraphFacts::new(program),
            sequences: vec![Sequence::new(recurrent, recurrent || cached); options.sequences],
            samplers,
            chooser: Chooser::default(),
            queue: VecDeque::with_capacity(QUEUE),
            begun: 0,
            spare: vec![],
            results: Results::default(),
            rows: vec![],
            chosen: vec![],
        }
    }

    /// The options it was made with.
    pub fn options(&self) -> &RunnerOptions {
        &self.options
    }

    /// Bytes of KV caches, recurrent states with their snapshots, and scratch.
    pub fn memory_bytes(&self) -> u64 {
        self.executor.memory_bytes()
    }

    /// What slots of experts have done, of each layer that has any.
    ///
    /// # Errors
    /// [`Error::Invalid`] while steps are queued, [`Error::Device`].
    pub fn expert_slots(&mut self) -> Result<Vec<ExpertSlotUse>> {
        self.check_idle(0)?;
        self.executor.expert_slots()
    }

    /// Steps whose results were not taken.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How many steps are worth queueing: 2 where the host encodes a step while the device runs the one before it.
    pub fn depth(&self) -> usize {
        self.executor.depth().clamp(1, QUEUE)
    }

    /// Positions of a sequence that hold its text once all queued steps are done; 0 for one that is not there.
    pub fn len(&self, sequence: usize) -> usize {
        self.sequences.get(sequence).map_or(0, Sequence::len)
    }

    /// Whether no sequence holds any text.
    pub fn is_empty(&self) -> bool {
        self.sequences.iter().all(|s| s.len() == 0)
    }

    /// Forgets a sequence from position `n` on. With recurrent states the next row must then come where
    /// [`Runner::resume_at`] says.
    pub fn truncate(&mut self, sequence: usize, n: usize) {
        if let Some(s) = self.sequences.get_mut(sequence) {
            s.truncate(n);
        }
        // What a cancellation goes back to is forgotten as well.
        for span in self.queue.iter_mut().flat_map(|q| &mut q.spans).filter(|s| s.sequence == sequence) {
            span.before.truncate(n);
        }
    }

    /// The largest position up to `n` at which a sequence's next row may come: where its text ends, or earlier; on a graph with
    /// recurrent states where these stand, where their snapshot was kept, or 0.
    pub fn resume_at(&self, sequence: usize, n: usize) -> usize {
        self.sequences.get(sequence).map_or(0, |s| s.resume_at(n))
    }

    /// Keeps a copy of a sequence's recurrent states as they stand, in place of the one before, so that rows may come there
    /// again. Does nothing on graphs without states.
    ///
    /// # Errors
    /// [`Error::Invalid`] while steps are queued, or for a sequence that is not there; [`Error::Device`].
    pub fn snapshot(&mut self, sequence: usize) -> Result<()> {
        self.check_idle(sequence)?;
        if self.sequences[sequence].keep() {
            self.executor.copy_states(StateCopy::live(sequence), StateCopy::snapshot(sequence))?;
        }
        Ok(())
    }

    /// Sets how tokens of a sequence are chosen from here on; gives whether the executor chooses them, not the host from
    /// logits. A row with [`Token::Last`] needs a choice after it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options out of range, a graph without logits, or while steps of the sequence are queued;
    /// [`Error::Device`].
    pub fn set_sampler(&mut self, sequence: usize, sampling: &Sampling<'_>) -> Result<bool> {
        self.check_sequence(sequence)?;
        if self.queue.iter().flat_map(|q| &q.spans).any(|s| s.sequence == sequence) {
            return Err(Error::Invalid(format!("steps of sequence {sequence} are queued: take or cancel them first")));
        }
        host::check_sampling(sampling, self.graph.logits.map(|l| l.1))?;
        let on_device = !sampling.on_host && self.executor.set_sampler(sequence, sampling)?;
        self.samplers[sequence].set(sampling, on_device);
        Ok(on_device)
    }

    fn check_sequence(&self, sequence: usize) -> Result<()> {
        if sequence < self.options.sequences {
            return Ok(());
        }
        Err(Error::Invalid(format!("sequence {sequence} of {}", self.options.sequences)))
    }

    /// No step is queued, and the sequence is there.
    fn check_idle(&self, sequence: usize) -> Result<()> {
        if !self.queue.is_empty() {
            return Err(Error::Invalid(format!("{} steps are queued: take or cancel them first", self.queue.len())));
        }
        self.check_sequence(sequence)
    }
}
