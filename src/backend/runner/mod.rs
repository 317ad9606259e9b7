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

mod executor;
mod future;
mod host;
mod queue;
mod saved;
mod sequence;
mod step;

pub use executor::{Executor, ExecutorStep, KernelTime, StateCopy, StateMove, find_input};
pub use future::StepFuture;
pub(crate) use step::not_finite;
pub use step::{Budget, Chosen, Inputs, Mask, Output, Results, Row, Status, Step, Token};

use crate::{
    error::{Error, Result},
    graph::Program,
    ir::{Graph, Op, Rows, Type},
    quant::KvType,
    sampler::{Chooser, Sampling},
};
use host::SequenceSampler;
use queue::{Queued, Span};
use saved::{HEADER, Header};
use sequence::Sequence;
use std::{collections::VecDeque, sync::OnceLock};

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
    fingerprint: OnceLock<u64>,
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
    pub fn new(executor: Box<dyn Executor>, program: &Program, options: RunnerOptions) -> Self {
        let (recurrent, cached) = (!program.graph.states.is_empty(), !program.graph.caches.is_empty());
        let samplers = std::iter::repeat_with(SequenceSampler::default).take(options.sequences).collect();
        Runner {
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

/// Steps.
impl Runner {
    /// Checks a step and queues it; everything of it is copied. Nothing runs before [`Runner::poll`].
    ///
    /// # Errors
    /// [`Error::ContextFull`]; [`Error::Invalid`] for a step without rows or with more than [`RunnerOptions::ubatch`], a
    /// sequence, id, mask or input that is not there, rows out of order, a skipped position, a position where recurrent
    /// states are not known, a choice without rules, a full queue; [`Error::Device`]. Everything is as before then.
    pub fn begin(&mut self, step: &Step<'_>) -> Result<()> {
        if self.queue.len() == QUEUE {
            return Err(Error::Invalid(format!("{QUEUE} steps are queued: take a result first")));
        }
        let outputs = self.check(step)?;
        let mut queued = self.spare.pop().unwrap_or_default();
        queued.fill(step, outputs)?;
        if let Err(e) = self.advance(&mut queued) {
            self.spare.push(queued);
            return Err(e);
        }
        self.queue.push_back(queued);
        if let Err(e) = self.hand_over() {
            self.undo_newest(false);
            return Err(e);
        }
        Ok(())
    }

    /// Does at most one slice of the queued steps and never blocks. After [`Status::Done`] the oldest step's results are
    /// [`Runner::results`].
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Model`]. All queued steps are cancelled then.
    pub fn poll(&mut self, budget: Budget) -> Result<Status> {
        if self.queue.is_empty() {
            return Ok(Status::Idle);
        }
        let done = self.hand_over().and_then(|()| self.executor.poll(budget, &mut self.results));
        if done.is_err() {
            self.cancel();
        }
        if let Ok(Status::Done) = done {
            self.finish_oldest();
        }
        done
    }

    /// The results of the step that [`Runner::poll`] said to be done, until a later one is.
    pub fn results(&self) -> &Results {
        &self.results
    }

    /// The oldest step as a future, a slice within `budget` a poll.
    pub fn finish(&mut self, budget: Budget) -> StepFuture<'_> {
        StepFuture::new(self, budget)
    }

    /// Arranges that the waker is woken when [`Runner::poll`] can do more after [`Status::Waiting`]; `false` where nobody would,
    /// and the caller polls again.
    pub fn wake(&mut self, waker: &std::task::Waker) -> bool {
        self.executor.wake(waker)
    }

    /// Blocks until the oldest step is done; gives its results.
    ///
    /// # Errors
    /// As [`Runner::poll`]; [`Error::Invalid`] where no step is queued.
    pub fn take(&mut self) -> Result<&Results> {
        loop {
            match self.poll(Budget::UNLIMITED)? {
                Status::Done => return Ok(&self.results),
                Status::Idle => return Err(Error::Invalid("no step is queued".into())),
                Status::Pending => {}
                Status::Waiting => self.wait()?,
            }
        }
    }

    /// Blocks until the device has done what [`Status::Waiting`] stands for, within a bound.
    ///
    /// # Errors
    /// As [`Runner::poll`].
    pub fn wait(&mut self) -> Result<()> {
        let done = self.executor.wait();
        if done.is_err() {
            self.cancel();
        }
        done
    }

    /// Queues a step, blocks until it is done, and gives its results.
    ///
    /// # Errors
    /// As [`Runner::begin`] and [`Runner::poll`]; [`Error::Invalid`] while other steps are queued.
    pub fn step(&mut self, step: &Step<'_>) -> Result<&Results> {
        self.check_idle(0)?;
        self.begin(step)?;
        self.take()
    }

    /// Drops all steps whose results were not taken, at any slice. Sequences hold what they held before these steps, without
    /// what those had begun to overwrite; recurrent states that may have moved are unknown from then on.
    pub fn cancel(&mut self) {
        let touched = if self.begun > 0 { self.executor.cancel() } else { 0 };
        self.begun = 0;
        while !self.queue.is_empty() {
            self.undo_newest(self.queue.len() <= touched);
        }
    }

    /// Runs a step with a clock around every kernel, slower and without its results; `None` where the backend has no such
    /// clock. Recurrent states of its sequences are unknown afterwards.
    ///
    /// # Errors
    /// As [`Runner::step`]; [`Error::Unsupported`] where the device cannot.
    pub fn profile(&mut self, step: &Step<'_>) -> Result<Option<Vec<KernelTime>>> {
        self.check_idle(0)?;
        let outputs = self.check(step)?;
        for row in step.rows {
            self.sequences[row.sequence].truncate(row.position);
            self.sequences[row.sequence].lose_states();
        }
        self.rows.clear();
        let id = |r: &Row| if r.token == Token::Last { Token::Id(0) } else { r.token };
        self.rows.extend(step.rows.iter().map(|r| host_row(Row { token: id(r), ..*r })));
        let (rows, inputs, trace) = (&self.rows[..], step.inputs, step.trace);
        self.executor.profile(&ExecutorStep { rows, outputs, moves: &[], masks: &[], inputs, trace })
    }

    /// What can be said of a step by itself; gives O.
    fn check(&self, step: &Step<'_>) -> Result<usize> {
        let rows = step.rows;
        if rows.is_empty() || rows.len() > self.options.ubatch {
            return Err(Error::Invalid(format!("a step takes 1 to {} rows, not {}", self.options.ubatch, rows.len())));
        }
        let outputs = rows.iter().rev().take_while(|r| r.wants()).count();
        if rows[..rows.len() - outputs].iter().any(Row::wants) {
            return Err(Error::Invalid("rows from which something is wanted come last in a step".into()));
        }
        for row in rows {
            self.check_sequence(row.sequence)?;
            if row.position >= self.options.ctx {
                let needed = row.position.saturating_add(1);
                return Err(Error::ContextFull { needed, capacity: self.options.ctx });
            }
            self.check_token(row)?;
        }
        self.check_masks(step)?;
        Ok(outputs)
    }

    fn check_token(&self, row: &Row) -> Result<()> {
        let sampler = &self.samplers[row.sequence];
        if row.choose.is_some() && !sampler.set {
            return Err(Error::Invalid(format!("sequence {} has no rules to choose a token by", row.sequence)));
        }
        match row.token {
            Token::Id(id) if id as usize >= self.graph.ids => {
                Err(Error::Invalid(format!("token id {id} is not below the vocabulary's {}", self.graph.ids)))
            }
            Token::Last if sampler.last.is_none() && !self.queue.iter().any(|q| q.chooses(row.sequence)) => {
                Err(Error::Invalid(format!("no token was chosen for sequence {} that could be fed", row.sequence)))
            }
            Token::Id(_) | Token::Last => Ok(()),
        }
    }

    fn check_masks(&self, step: &Step<'_>) -> Result<()> {
        let words = self.graph.logits.map_or(0, |l| Mask::words(l.1));
        for (i, mask) in step.masks.iter().enumerate() {
            let row = step.rows.get(mask.row).filter(|r| r.choose.is_some());
            let Some(row) = row else {
                return Err(Error::Invalid(format!("a mask for row {}, which chooses no token", mask.row)));
            };
            if !self.samplers[row.sequence].masked {
                return Err(Error::Invalid(format!("sequence {} was not said to bring masks", row.sequence)));
            }
            if i > 0 && step.masks[i - 1].row >= mask.row {
                return Err(Error::Invalid("masks do not stand in the order of their rows".into()));
            }
            if mask.allowed.len() != words {
                return Err(Error::Invalid(format!("a mask of {} words, not {words}", mask.allowed.len())));
            }
        }
        Ok(())
    }

    /// Moves the sequences of a step on, all or none.
    fn advance(&mut self, step: &mut Queued) -> Result<()> {
        for i in 0..step.spans.len() {
            let Span { sequence, first, end, .. } = step.spans[i];
            step.spans[i].before = self.sequences[sequence];
            match self.sequences[sequence].advance(first, end) {
                Ok(None) => {}
                Ok(Some(moving)) => step.moves.push((sequence, moving)),
                Err(e) => {
                    step.spans[..i].iter().for_each(|s| self.sequences[s.sequence] = s.before);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Takes the newest step out of the queue and its sequences back to before it; `touched` where it may have run.
    fn undo_newest(&mut self, touched: bool) {
        let Some(step) = self.queue.pop_back() else { return };
        for span in &step.spans {
            let s = &mut self.sequences[span.sequence];
            *s = span.before;
            if touched {
                s.truncate(span.first);
                s.lose_states();
            }
        }
        self.spare.push(step);
    }

    /// Hands the executor as many steps as it takes.
    fn hand_over(&mut self) -> Result<()> {
        while self.begun < self.queue.len().min(self.executor.depth()) {
            let step = &self.queue[self.begun];
            let by_host = |r: &Row| !self.samplers[r.sequence].on_device;
            // The host knows a token that it chooses only when the steps before are done.
            if self.begun > 0 && step.rows.iter().any(|r| r.token == Token::Last && by_host(r)) {
                return Ok(());
            }
            self.rows.clear();
            for row in &step.rows {
                let sampler = &self.samplers[row.sequence];
                self.rows.push(match row.token {
                    _ if sampler.on_device => *row,
                    // A choice that failed was reported; what follows from it has no meaning.
                    Token::Last => host_row(Row { token: Token::Id(sampler.last.unwrap_or(0)), ..*row }),
                    Token::Id(_) => host_row(*row),
                });
            }
            let mut masks = step.masks();
            masks.retain(|m| self.rows[m.row].choose.is_some());
            let (rows, inputs) = (&self.rows[..], step.inputs());
            let (outputs, moves, trace) = (step.outputs, &step.moves[..], step.trace);
            self.executor.begin(&ExecutorStep { rows, outputs, moves, masks: &masks, inputs: &inputs, trace })?;
            self.begun += 1;
        }
        Ok(())
    }

    /// Takes the oldest step out of the queue: chooses the tokens that are the host's, and leaves logits of the rows that want
    /// them.
    fn finish_oldest(&mut self) {
        let Some(step) = self.queue.pop_front() else { return };
        self.begun -= 1;
        self.choose(&step);
        self.leave_wanted(&step);
        self.spare.push(step);
    }

    fn choose(&mut self, step: &Queued) {
        self.chosen.clear();
        let (mut of_device, mut logits_row) = (0, 0);
        for (i, row) in step.rows.iter().enumerate().skip(step.rows.len() - step.outputs) {
            let sampler = &mut self.samplers[row.sequence];
            let has_logits = row.logits || !sampler.on_device;
            if let Some(random) = row.choose {
                let chosen = if sampler.on_device {
                    of_device += 1;
                    self.results.tokens.get(of_device - 1).copied().unwrap_or(Chosen::NotFinite)
                } else {
                    let (at, cols) = self.graph.logits.unwrap_or_default();
                    let logits = self.results.outputs.get(at).map_or(&[][..], |o| &o.f32);
                    let row = logits.get(logits_row * cols..(logits_row + 1) * cols).unwrap_or_default();
                    sampler.choose(&mut self.chooser, row, step.mask(i), random)
                };
                sampler.last = Some(if let Chosen::Token(id) = chosen { id } else { 0 });
                self.chosen.push(chosen);
            }
            logits_row += usize::from(has_logits);
        }
        std::mem::swap(&mut self.chosen, &mut self.results.tokens);
    }

    /// Drops logits that were read only for the host's choices.
    fn leave_wanted(&mut self, step: &Queued) {
        let last = &step.rows[step.rows.len() - step.outputs..];
        if last.iter().all(|r| r.logits) {
            return;
        }
        for (out, of_outputs) in self.results.outputs.iter_mut().zip(&self.graph.of_outputs) {
            if !of_outputs {
                continue;
            }
            let (mut from, mut to) = (0, 0);
            for row in last {
                let given = row.logits || !self.samplers[row.sequence].on_device;
                if row.logits {
                    move_row(out, from, to);
                    to += 1;
                }
                from += usize::from(given);
            }
            out.rows = to;
            out.f32.truncate(to * out.cols);
            out.u32.truncate(to * out.cols);
        }
    }
}

/// A row whose token the host chooses, as the executor sees it.
fn host_row(row: Row) -> Row {
    Row { logits: row.wants(), choose: None, ..row }
}

fn move_row(out: &mut Output, from: usize, to: usize) {
    let source = from * out.cols..(from + 1) * out.cols;
    if from == to {
        return;
    }
    if out.f32.len() >= source.end {
        out.f32.copy_within(source.clone(), to * out.cols);
    }
    if out.u32.len() >= source.end {
        out.u32.copy_within(source, to * out.cols);
    }
}

/// Saving, restoring, forking.
impl Runner {
    /// The first `n` positions of a sequence as bytes, with the recurrent states after them: what [`Runner::restore`] takes.
    ///
    /// # Errors
    /// [`Error::Invalid`] while steps are queued, for a sequence that is not there or shorter, or where recurrent states are
    /// not known after `n` tokens (see [`Runner::resume_at`]); [`Error::Device`].
    pub fn save(&mut self, sequence: usize, n: usize) -> Result<Vec<u8>> {
        self.check_idle(sequence)?;
        let states = self.sequences[sequence].states_at(sequence, n)?;
        let mut bytes = Vec::with_capacity(HEADER + self.executor.sequence_bytes(n, states.is_some()));
        bytes.resize(HEADER, 0);
        self.executor.read_sequence(sequence, n, states, &mut bytes)?;
        Header { states: states.is_some(), positions: n as u64, ..self.header() }.write(&mut bytes);
        Ok(bytes)
    }

    /// Puts a saved sequence in place of what a sequence holds; gives its number of tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] while steps are queued, for a sequence that is not there, or bytes that are damaged or belong to
    /// another model, KV type or backend; [`Error::ContextFull`]; the sequence is as before then. [`Error::Device`].
    pub fn restore(&mut self, sequence: usize, bytes: &[u8]) -> Result<usize> {
        self.check_idle(sequence)?;
        let own = self.header();
        let header = Header::read(bytes, &own)?;
        let n = usize::try_from(header.positions).unwrap_or(usize::MAX);
        if n > self.options.ctx {
            return Err(Error::ContextFull { needed: n, capacity: self.options.ctx });
        }
        let states = !self.graph.program.graph.states.is_empty() && n > 0;
        let wanted = HEADER + self.executor.sequence_bytes(n, states);
        if header.states != states || bytes.len() != wanted {
            return Err(Error::Invalid(format!(
                "a saved sequence of {n} tokens takes {wanted} bytes, not {}",
                bytes.len()
            )));
        }
        self.sequences[sequence].replace(0);
        self.executor.write_sequence(sequence, n, states, &bytes[HEADER..])?;
        self.sequences[sequence].replace(n);
        Ok(n)
    }

    /// Puts the first `n` positions of a sequence in place of what another one holds.
    ///
    /// # Errors
    /// As [`Runner::save`], and [`Error::Invalid`] for a sequence onto itself.
    pub fn fork(&mut self, from: usize, to: usize, n: usize) -> Result<()> {
        self.check_idle(from)?;
        self.check_sequence(to)?;
        if from == to {
            return Err(Error::Invalid(format!("sequence {from} is forked onto itself")));
        }
        let states = self.sequences[from].states_at(from, n)?;
        self.sequences[to].replace(0);
        self.executor.copy_prefix(from, to, n)?;
        if let Some(states) = states {
            self.executor.copy_states(states, StateCopy::live(to))?;
        }
        self.sequences[to].replace(n);
        Ok(())
    }

    /// The header of this runner's sequences, but for their length.
    fn header(&self) -> Header {
        let (program, ctx) = (&self.graph.program, self.options.ctx);
        let fingerprint = *self.graph.fingerprint.get_or_init(|| saved::fingerprint(program, ctx));
        let layout = Header::layout(self.executor.layout());
        Header { layout, kv: self.options.kv, states: false, positions: 0, fingerprint }
    }
}
