//! A backward pass under construction.

use super::Builder;
use crate::{
    error::Result,
    ir::{Grad, Math, Op, Type, ValueId, WeightId},
};
use std::collections::BTreeSet;

/// What rules work on: the graph so far, and the gradients of its values.
pub(super) struct Back<'a> {
    pub(super) builder: Builder,
    pub(super) needs: Vec<bool>,
    pub(super) grads: Vec<Option<ValueId>>,
    pub(super) trained: &'a BTreeSet<WeightId>,
    pub(super) reached: BTreeSet<WeightId>,
}

impl Back<'_> {
    /// Whether a gradient by this value is needed. Values that the pass itself has made are beyond the list, and need none.
    pub fn needs(&self, v: ValueId) -> bool {
        self.needs.get(v.0 as usize).copied().unwrap_or(false)
    }

    /// Whether a weight is trained.
    pub fn trains(&self, w: WeightId) -> bool {
        self.trained.contains(&w)
    }

    /// The type of a value.
    pub fn ty(&self, v: ValueId) -> Type {
        self.builder.graph().ty(v)
    }

    /// Columns of a value.
    pub fn cols(&self, v: ValueId) -> usize {
        self.builder.graph().cols(v)
    }

    /// What a value repeats in each of its slots.
    pub fn repeated(&self, v: ValueId, slots: usize) -> Option<ValueId> {
        let maker = self.builder.graph().nodes.iter().rev().find(|n| n.outputs.contains(&v))?;
        (maker.op == Op::Math(Math::RepeatSlots { slots })).then(|| maker.inputs[0])
    }

    /// Adds a node with one result.
    pub fn one(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId> {
        self.builder.one(op.into(), inputs)
    }

    /// Adds a node.
    pub fn add(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        self.builder.add(op.into(), inputs)
    }

    /// Adds a node that adds to a weight's gradient.
    pub fn accumulate(&mut self, w: WeightId, op: Grad, inputs: &[ValueId]) -> Result<()> {
        self.reached.insert(w);
        self.builder.add(Op::Grad(op), inputs).map(|_| ())
    }

    /// Adds to the gradient of a value.
    pub fn give(&mut self, v: ValueId, d: ValueId) -> Result<()> {
        if !self.needs(v) {
            return Ok(());
        }
        let sum = match self.grads[v.0 as usize] {
            Some(before) => self.builder.one(Op::Add, &[before, d])?,
            None => d,
        };
        self.grads[v.0 as usize] = Some(sum);
        Ok(())
    }
}
