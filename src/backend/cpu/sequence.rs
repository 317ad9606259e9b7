//! What a runner keeps of each sequence, and which rows of a step are whose.

use super::{buffer::Aligned, cache::Cache};
use crate::{
    backend::runner::{Row, StateMove},
    error::{Error, Result},
    ir::Graph,
    quant::KvType,
};

/// The rows of a step, apart from their places in sequences.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The ids of T tokens.
    pub tokens: &'a [u32],
    /// O: how many of the last rows have outputs.
    pub outputs: usize,
    /// Named inputs of T rows each.
    pub inputs: &'a [(String, Vec<f32>)],
    /// Whether outputs of all T rows are wanted.
    pub trace: bool,
    /// The rows whose hidden states are wanted, in order.
    pub hidden: &'a [usize],
}

/// Rows of a step that follow each other in one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Whose.
    pub sequence: usize,
    /// The first, among all rows of the step.
    pub first: usize,
    /// How many.
    pub rows: usize,
    /// Position of the first in its sequence.
    pub past: usize,
}

impl Segment {
    /// The first position behind these rows.
    pub fn end(&self) -> usize {
        self.past + self.rows
    }

    /// This segment's part of rows of `cols` numbers.
    pub fn of<'a>(&self, rows: &'a [f32], cols: usize) -> &'a [f32] {
        &rows[self.first * cols..(self.first + self.rows) * cols]
    }

    /// The same to write to.
    pub fn of_mut<'a>(&self, rows: &'a mut [f32], cols: usize) -> &'a mut [f32] {
        &mut rows[self.first * cols..(self.first + self.rows) * cols]
    }

    /// Cuts the rows of a step into `to`.
    pub fn cut(rows: &[Row], to: &mut Vec<Segment>) {
        to.clear();
        for (i, r) in rows.iter().enumerate() {
            match to.last_mut() {
                Some(s) if s.sequence == r.sequence && s.end() == r.position => s.rows += 1,
                _ => to.push(Segment { sequence: r.sequence, first: i, rows: 1, past: r.position }),
            }
        }
    }
}

/// The memory of one sequence.
pub struct Sequence {
    /// By cache id.
    pub caches: Vec<Cache>,
    /// Recurrent states by id.
    pub states: Vec<Aligned<f32>>,
    /// A copy of the states; empty before one was made.
    snapshot: Vec<Aligned<f32>>,
}

impl Sequence {
    /// An empty one of up to `ctx` positions.
    ///
    /// # Errors
    /// [`Error::Device`] where a cache is too large to address, or the system does not give it.
    pub fn new(graph: &Graph, ctx: usize, kv: KvType) -> Result<Self> {
        let mut caches = vec![];
        for d in &graph.caches {
            let too_large = || Error::Device(format!("a context of {ctx} positions of {d:?} is too large"));
            caches.push(Cache::new(d, ctx, kv).ok_or_else(too_large)?);
        }
        let states = graph.states.iter().map(|s| Aligned::zeroed(s.len)).collect();
        Ok(Sequence { caches, states, snapshot: vec![] })
    }

    /// Brings the states to where a step begins.
    pub fn move_states(&mut self, to: StateMove) {
        match to {
            StateMove::Clear => self.states.iter_mut().for_each(|s| s.fill(0.0)),
            StateMove::Restore => copy(&self.snapshot, &mut self.states),
        }
    }

    /// The live states, or the snapshot.
    pub fn copy_of_states(&self, snapshot: bool) -> &[Aligned<f32>] {
        if snapshot { &self.snapshot } else { &self.states }
    }

    /// Replaces the live states, or the snapshot.
    pub fn set_states(&mut self, snapshot: bool, from: &[Aligned<f32>]) {
        let to = if snapshot { &mut self.snapshot } else { &mut self.states };
        copy(from, to);
    }

    /// Copies the live states to the snapshot or back.
    pub fn copy_within(&mut self, to_snapshot: bool) {
        if to_snapshot {
            copy(&self.states, &mut self.snapshot);
        } else {
            copy(&self.snapshot, &mut self.states);
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        let caches: u64 = self.caches.iter().map(Cache::bytes).sum();
        caches + self.states.iter().chain(&self.snapshot).map(Aligned::bytes).sum::<u64>()
    }
}

fn copy(from: &[Aligned<f32>], to: &mut Vec<Aligned<f32>>) {
    to.resize_with(from.len(), Aligned::default);
    for (to, from) in to.iter_mut().zip(from) {
        to.grow(from.len());
        to.copy_from_slice(from);
    }
}
