//! Ops that compute each row by itself: blocks of rows on all threads, by the pages' reference code.

use super::super::{buffer::Out, pool::Pool};
use crate::{
    error::{Error, Result},
    ir::{Grad, Math, Node, Op, Type, ValueId},
    ops::{
        Array,
        train::{Scope, Value, eval as by_page},
    },
};
use std::sync::{Mutex, PoisonError};

/// Rows of a block.
const BLOCK: usize = 32;

/// Whether a row of the results depends on that row of the operands alone, and on nothing else of the micro-batch.
pub fn by_row(op: &Op) -> bool {
    match op {
        Op::Glu(_) | Op::Act(_) | Op::Router(_) | Op::ScaleExpertInputs | Op::JoinHeads { .. } => true,
        Op::Math(m) => {
            matches!(m, Math::Unary(_) | Math::Softmax { .. } | Math::LogSumExp | Math::RepeatSlots { .. })
        }
        Op::Grad(g) => matches!(
            g,
            Grad::SplitHeads { .. }
                | Grad::Glu(_)
                | Grad::Act(_)
                | Grad::SigmoidGate
                | Grad::Router(_)
                | Grad::Unary(_)
                | Grad::Softmax { .. }
        ),
        _ => false,
    }
}

/// An operand or a result by rows.
enum Rows<'a> {
    Numbers(&'a Array<f32>),
    Ids(&'a [u32]),
}

/// Evaluates a node that [`by_row`] accepts; `None` where it has too few rows to be divided.
///
/// # Errors
/// [`Error::Invalid`] as the page has it.
pub fn eval(pool: &Pool, node: &Node, values: &[Value<f32>], s: &Scope<'_, f32>) -> Result<Option<Vec<Value<f32>>>> {
    let operand = |v: &ValueId| match &values[v.0 as usize] {
        Value::Numbers(a) => Some(Rows::Numbers(a)),
        Value::Ids(ids) => Some(Rows::Ids(ids)),
        Value::Nothing => None,
    };
    let Some(operands) = node.inputs.iter().map(operand).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let rows = operands.iter().find_map(|o| if let Rows::Numbers(a) = o { Some(a.rows) } else { None }).unwrap_or(0);
    if rows < 2 * BLOCK || operands.iter().any(|o| matches!(o, Rows::Numbers(a) if a.rows != rows)) {
        return Ok(None);
    }
    // The same op on operands 0, 1, 2….
    let inputs = (0..operands.len() as u32).map(ValueId).collect();
    let part = Node { op: node.op.clone(), inputs, outputs: vec![], layer: None };
    let (mut numbers, mut ids): (Vec<Vec<f32>>, Vec<Vec<u32>>) = (vec![], vec![]);
    for v in &node.outputs {
        let len = rows * s.graph.cols(*v);
        let is_ids = matches!(s.graph.ty(*v), Type::U32(..));
        numbers.push(vec![0.0; if is_ids { 0 } else { len }]);
        ids.push(vec![0; if is_ids { len } else { 0 }]);
    }
    let outs: Vec<_> = numbers.iter_mut().zip(&mut ids).map(|(n, i)| (Out::new(n), Out::new(i))).collect();
    let failed = Mutex::new(None);
    pool.run(rows.div_ceil(BLOCK), &|_, block| {
        let (first, count) = (block * BLOCK, BLOCK.min(rows - block * BLOCK));
        let own: Vec<Value<f32>> = operands.iter().map(|o| rows_of(o, rows, first, count)).collect();
        let mut scope = Scope { graph: s.graph, weights: s.weights, feed: s.feed, gradients: &mut [] };
        match by_page(&part, &own, &mut scope) {
            Ok(made) => made.iter().zip(&outs).for_each(|(v, out)| write(v, out, rows, first)),
            Err(what) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(what),
        }
    })?;
    if let Some(what) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(Error::Invalid(what));
    }
    drop(outs);
    let results = node.outputs.iter().zip(numbers.into_iter().zip(ids)).map(|(v, (data, ids))| {
        let cols = s.graph.cols(*v);
        if matches!(s.graph.ty(*v), Type::U32(..)) {
            Value::Ids(ids)
        } else {
            Value::Numbers(Array { rows, cols, data })
        }
    });
    Ok(Some(results.collect()))
}

fn rows_of(o: &Rows<'_>, rows: usize, first: usize, count: usize) -> Value<f32> {
    match o {
        Rows::Numbers(a) => Value::Numbers(Array {
            rows: count,
            cols: a.cols,
            data: a.data[first * a.cols..(first + count) * a.cols].to_vec(),
        }),
        Rows::Ids(ids) => {
            let cols = ids.len() / rows;
            Value::Ids(ids[first * cols..(first + count) * cols].to_vec())
        }
    }
}

fn write(v: &Value<f32>, (numbers, ids): &(Out<'_, f32>, Out<'_, u32>), rows: usize, first: usize) {
    debug_assert!(first < rows);
    match v {
        // SAFETY: each block has its rows of every result to itself.
        Value::Numbers(a) => unsafe { numbers.slice(first * a.cols, a.data.len()) }.copy_from_slice(&a.data),
        Value::Ids(i) => {
            // The block's first row: all blocks but the last have `BLOCK` rows, and so many columns.
            let count = BLOCK.min(rows - first);
            // SAFETY: as above.
            unsafe { ids.slice(first * (i.len() / count), i.len()) }.copy_from_slice(i);
        }
        Value::Nothing => {}
    }
}
