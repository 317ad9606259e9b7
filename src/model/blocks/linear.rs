//! Matrices, with biases and without.

use crate::{
    error::Result,
    ir::{Linear, Op, ValueId, WeightId},
    model::loader::Loader,
};

/// A matrix `[out, inp]` with its bias where the file has one.
pub(in crate::model) fn linear(l: &mut Loader<'_>, name: &str, out: usize, inp: usize, x: ValueId) -> Result<ValueId> {
    let weight = l.matrix(name, out, inp)?;
    let bias = name.replace(".weight", ".bias");
    let bias = if l.has(&bias) { Some(l.vector(&bias, out)?) } else { None };
    l.b.one(Op::Linear(Linear { weight, bias }), &[x])
}

/// A matrix that is declared already, without a bias.
pub(in crate::model) fn plain(l: &mut Loader<'_>, weight: WeightId, x: ValueId) -> Result<ValueId> {
    l.b.one(Op::Linear(Linear { weight, bias: None }), &[x])
}
