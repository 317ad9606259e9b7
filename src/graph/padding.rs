//! Rows of padding in training: they count for nothing that routers are judged by, and take no room in experts.

use super::Builder;
use crate::{
    error::Result,
    ir::{Node, Op, ValueId},
};

/// The input `[T, 1]` that says which rows count: 1 for a token, 0 for padding.
pub const COUNTED: &str = "counted";

/// The value of that input; it is added where the graph has none yet.
pub(super) fn counted_rows(b: &mut Builder) -> Result<ValueId> {
    let is = |n: &&Node| matches!(&n.op, Op::Input { name, .. } if name == COUNTED);
    if let Some(found) = b.graph().nodes.iter().find(is) {
        return Ok(found.outputs[0]);
    }
    b.one(Op::Input { name: COUNTED.into(), cols: 1 }, &[])
}
