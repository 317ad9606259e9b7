//! Norms, with weights and without.

use crate::{
    error::Result,
    ir::{Norm, Op, ValueId},
    model::{decoder::NormSpec, loader::Loader},
};

/// A norm of rows of `n` columns, with its bias where the file has one.
pub(in crate::model) fn norm(l: &mut Loader<'_>, s: &NormSpec, name: &str, n: usize, x: ValueId) -> Result<ValueId> {
    let weight = l.vector_of(name, n, |w| w + s.offset)?;
    let bias = name.replace(".weight", ".bias");
    let bias = if l.has(&bias) { Some(l.vector(&bias, n)?) } else { None };
    l.b.one(Op::RmsNorm(Norm { kind: s.kind, weight, bias, eps: s.eps }), &[x])
}

/// Each head of `n` columns normalised by itself, without weights; `name` is for the ones that stand for them.
pub(in crate::model) fn unweighted(
    l: &mut Loader<'_>,
    s: &NormSpec,
    name: &str,
    n: usize,
    x: ValueId,
) -> Result<ValueId> {
    let weight = l.ones(name, n)?;
    l.b.one(Op::RmsNorm(Norm { kind: s.kind, weight, bias: None, eps: s.eps }), &[x])
}
