//! What a runner keeps of each sequence, and which rows of a step are whose.

use super::{buffer::Aligned, cache::Cache};
use crate::{
    backend::{
        BatchRow, KvType,
        state::{Move, Standing},
    },
    error::{Error, Result},
    ir::Graph,
};

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
    pub fn cut(rows: &[BatchRow], to: &mut Vec<Segment>) {
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
    /// The copy of the states that [`Sequence::keep`] made; empty before.
    kept: Vec<Aligned<f32>>,
    standing: Standing,
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
        Ok(Sequence { caches, states, kept: vec![], standing: Standing::new(graph) })
    }

    /// Prepares the states for a step that begins at `past`. Until [`Sequence::done`] they count as lost.
    ///
    /// # Errors
    /// As [`Standing::begin`].
    pub fn begin(&mut self, past: usize) -> Result<()> {
        match self.standing.begin(past)? {
            Move::Stay => {}
            Move::Clear => self.states.iter_mut().for_each(|s| s.fill(0.0)),
            Move::Restore => self.states.iter_mut().zip(&self.kept).for_each(|(to, from)| to.copy_from_slice(from)),
        }
        Ok(())
    }

    /// A step has moved the states to `position`.
    pub fn done(&mut self, position: usize) {
        self.standing.done(position);
    }

    /// The states were overwritten with what belongs to no sequence.
    pub fn lose(&mut self) {
        self.standing.lose();
    }

    /// As [`crate::backend::Runner::resume_at`].
    pub fn resume_at(&self, past: usize) -> usize {
        self.standing.resume_at(past)
    }

    /// Keeps a copy of the states as they stand.
    pub fn keep(&mut self) {
        if self.standing.keep() {
            self.kept.resize_with(self.states.len(), Aligned::default);
            for (to, from) in self.kept.iter_mut().zip(&self.states) {
                to.grow(from.len());
                to.copy_from_slice(from);
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        let caches: u64 = self.caches.iter().map(Cache::bytes).sum();
        caches + self.states.iter().chain(&self.kept).map(Aligned::bytes).sum::<u64>()
    }
}
