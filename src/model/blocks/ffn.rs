//! Dense feed-forward units.

use super::linear::linear;
use crate::{
    error::Result,
    ir::{Op, ValueId},
    model::{decoder::Glu, loader::Loader},
};

/// down(act(gate(x)) · up(x)), or without up, with the matrices `<prefix>gate<suffix>` and so on.
pub(in crate::model) fn ffn(
    l: &mut Loader<'_>,
    g: &Glu,
    [prefix, suffix]: [&str; 2],
    hidden: usize,
    x: ValueId,
) -> Result<ValueId> {
    let name = |role: &str| format!("{prefix}{role}{suffix}");
    let gate = linear(l, &name("gate"), g.width, hidden, x)?; // [T, I]
    let h = if g.gated {
        let up = linear(l, &name("up"), g.width, hidden, x)?; // [T, I]
        l.b.one(Op::Glu(g.act), &[gate, up])? // [T, I]
    } else {
        l.b.one(Op::Act(g.act), &[gate])? // [T, I]
    };
    linear(l, &name("down"), hidden, g.width, h) // [T, H]
}
