//! What a backend implements under a [`super::Runner`]: checked steps, executed in slices.

use super::step::{Budget, Inputs, Mask, Results, Row, Status};
use crate::{
    error::{Error, Result},
    sampler::Sampling,
};
use std::{ops::Range, task::Waker};

/// What happens to a sequence's recurrent states before the first row of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateMove {
    /// They become zeros: the step begins a text.
    Clear,
    /// The sequence's snapshot is copied to them.
    Restore,
}

/// One of the two copies of a sequence's recurrent states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateCopy {
    /// The sequence.
    pub sequence: usize,
    /// The snapshot, not the live states.
    pub snapshot: bool,
}

impl StateCopy {
    /// The states that steps move on.
    pub fn live(sequence: usize) -> Self {
        StateCopy { sequence, snapshot: false }
    }

    /// The copy that was kept.
    pub fn snapshot(sequence: usize) -> Self {
        StateCopy { sequence, snapshot: true }
    }
}

/// A step that was checked: rows, sequences, positions and ids are in range, and no position is skipped.
#[derive(Clone, Copy, Debug)]
pub struct ExecutorStep<'a> {
    /// T rows, see [`super::Step::rows`]. Sequences for which [`Executor::set_sampler`] gave `false` have no
    /// [`super::Token::Last`] and no [`Row::choose`] here.
    pub rows: &'a [Row],
    /// O: the last rows, from which something is wanted.
    pub outputs: usize,
    /// Sequences whose recurrent states move before the first row; each at most once.
    pub moves: &'a [(usize, StateMove)],
    /// Masks of rows that choose.
    pub masks: &'a [Mask<'a>],
    /// Named inputs, unchecked.
    pub inputs: Inputs<'a>,
    /// Whether outputs with a row for every token are read back.
    pub trace: bool,
}

/// Executes steps. The methods below `cancel` are called only while no step is begun.
pub trait Executor: Send {
    /// Sets how tokens of a sequence are chosen from here on, called while no step of the sequence is begun; `false` where
    /// this executor does not choose tokens, or not like this: the host then chooses from logits.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn set_sampler(&mut self, _sequence: usize, _sampling: &Sampling<'_>) -> Result<bool> {
        Ok(false)
    }

    /// How many steps may be begun before the first of them is done: 2 or more where the host encodes a step while the
    /// device runs the one before.
    fn depth(&self) -> usize {
        1
    }

    /// Takes a step behind those that are begun; copies of it what is needed and runs nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a named input that is missing or has another size; [`Error::Device`]. The step is not begun
    /// then.
    fn begin(&mut self, step: &ExecutorStep<'_>) -> Result<()>;

    /// Does at most one slice and never blocks. Leaves the results of the oldest step in `out` where they are
    /// there: then the step is over.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Model`]. The caller then calls [`Executor::cancel`].
    fn poll(&mut self, budget: Budget, out: &mut Results) -> Result<Status>;

    /// Blocks until the device has done what [`Executor::poll`] waits for, within a bound.
    ///
    /// # Errors
    /// [`Error::Device`], also where the bound is exceeded.
    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    /// Arranges that the waker is woken when [`Executor::poll`] can do more; `false` where nobody would, and the caller
    /// polls again.
    fn wake(&mut self, _waker: &Waker) -> bool {
        false
    }

    /// Drops all steps that are begun; gives how many of them, from the oldest on, may have changed recurrent states.
    fn cancel(&mut self) -> usize;

    /// Copies keys and values of the first `positions` positions to another sequence.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn copy_prefix(&mut self, from: usize, to: usize, positions: usize) -> Result<()>;

    /// Copies recurrent states.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn copy_states(&mut self, from: StateCopy, to: StateCopy) -> Result<()>;

    /// A name for the layout of saved bytes: whatever changes them changes it.
    fn layout(&self) -> &'static str;

    /// Bytes that [`Executor::read_sequence`] appends.
    fn sequence_bytes(&self, positions: usize, states: bool) -> usize;

    /// Bytes of the parts of [`Executor::read_sequence`]'s keys and values for one [`super::PAGE`] of positions, in order: a
    /// part of several pages is so many times as long, position by position or in blocks that divide a page.
    fn page_parts(&mut self) -> Vec<usize>;

    /// Appends keys and values of some positions, the first of which is a multiple of [`super::PAGE`], and the recurrent states
    /// asked for. The bytes do not depend on the length of the context.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn read_sequence(
        &mut self,
        sequence: usize,
        positions: Range<usize>,
        states: Option<StateCopy>,
        out: &mut Vec<u8>,
    ) -> Result<()>;

    /// Puts back what [`Executor::read_sequence`] gave; `states` says whether live states are among the bytes, whose
    /// number was checked.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn write_sequence(&mut self, sequence: usize, positions: Range<usize>, states: bool, bytes: &[u8]) -> Result<()>;

    /// Bytes of KV caches, recurrent states with their snapshots, and scratch.
    fn memory_bytes(&self) -> u64;

    /// What slots of experts have done, of each layer that has any.
    ///
    /// # Errors
    /// [`Error::Device`].
    fn expert_slots(&mut self) -> Result<Vec<ExpertSlotUse>>;

    /// Runs a step with a clock around every kernel, without its results; `None` where the backend has no such clock.
    ///
    /// # Errors
    /// As [`Executor::poll`]; [`Error::Unsupported`] where the device cannot.
    fn profile(&mut self, _step: &ExecutorStep<'_>) -> Result<Option<Vec<KernelTime>>> {
        Ok(None)
    }
}

/// Time of a kernel in a profiled step.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// Its variant.
    pub kernel: String,
    /// The op that it computes or is part of.
    pub op: &'static str,
    /// How many.
    pub dispatches: usize,
    /// All of them together.
    pub seconds: f64,
    /// Bytes that they have to move at least.
    pub bytes: u64,
}

/// What the slots of a layer's experts have done since their runner was made: see `graph::ExpertSlots`. Steps that read all experts where
/// they lie are not counted: those of many tokens, and of a few where not all experts that they can choose have slots at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertSlotUse {
    /// The transformer layer.
    pub layer: usize,
    /// Experts, E.
    pub experts: usize,
    /// Experts that a token uses, k.
    pub used: usize,
    /// Slots.
    pub slots: usize,
    /// Steps.
    pub steps: u64,
    /// Experts that were asked for, once for each token that chose one.
    pub lookups: u64,
    /// Those of them that were in slots.
    pub hits: u64,
    /// Experts that were copied to slots, once for all tokens of a step.
    pub uploads: u64,
    /// Bytes of an expert, which an upload copies.
    pub expert_bytes: u64,
}

impl ExpertSlotUse {
    /// Bytes that were copied to slots.
    pub fn uploaded_bytes(&self) -> u64 {
        self.uploads * self.expert_bytes
    }
}

/// The values of a named input in a step of `rows` rows.
///
/// # Errors
/// [`Error::Invalid`] where it is missing or has another size.
pub fn find_input<'a>(inputs: Inputs<'a>, name: &str, rows: usize, cols: usize) -> Result<&'a [f32]> {
    match inputs.iter().find(|(n, _)| *n == name) {
        Some((_, data)) if data.len() == rows * cols => Ok(data),
        Some((_, data)) => Err(Error::Invalid(format!("input {name}: {} f32 values for [{rows}, {cols}]", data.len()))),
        None => Err(Error::Invalid(format!("input {name} is missing"))),
    }
}
