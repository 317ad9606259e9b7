//! Rows of tables: embeddings by ids, and rotations by positions, whose angles are computed once for all rows and heads.

use super::{
    super::buffer::Out,
    gemm::{Machine, Source},
    source::with_rows,
};
use crate::{
    error::{Error, Result},
    ir::{Math, Op, RopePairs, Rotation, WeightId},
    ops::{
        Array,
        train::{Operands, Scope, Value},
    },
};

/// Rows of an item.
const BLOCK: usize = 16;

/// Evaluates `embed` and `rotate`; `None` for other ops.
///
/// # Errors
/// [`Error::Invalid`] for an id out of range; [`Error::Device`] where a thread panicked.
pub fn eval(machine: Machine<'_>, x: &Operands<'_, f32>, s: &Scope<'_, f32>) -> Result<Option<Vec<Value<f32>>>> {
    let made = match &x.node.op {
        Op::Embed { table, scale } => embed(machine, x.ids(0), *table, *scale, s)?,
        Op::Math(Math::Rotate(r)) => rotate(machine, x.nums(0), x.ids(1), r)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![Value::Numbers(made)]))
}

fn embed(machine: Machine<'_>, ids: &[u32], table: WeightId, scale: f32, s: &Scope<'_, f32>) -> Result<Array<f32>> {
    let (rows, cols) = (s.weights.tensor(table).rows(), s.weights.tensor(table).cols());
    if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
        return Err(Error::Invalid(format!("token id {id} is not below {rows}")));
    }
    let mut y = machine.spare.array(ids.len(), cols);
    let out = Out::new(&mut y.data);
    with_rows(s.weights, table, 0, |source| {
        machine.pool.run(ids.len().div_ceil(BLOCK), &|_, block| {
            for t in block * BLOCK..ids.len().min((block + 1) * BLOCK) {
                // SAFETY: each row is of one item.
                let to = unsafe { out.slice(t * cols, cols) };
                match source {
                    Source::Slices(row) => to.copy_from_slice(row(ids[t] as usize)),
                    Source::Copied(copy) => copy(ids[t] as usize, to),
                }
                if scale != 1.0 {
                    to.iter_mut().for_each(|x| *x *= scale);
                }
            }
        })
    })?;
    Ok(y)
}

/// Cosines and sines of the pairs at each position below `count`, times the factor there: `[count][pairs][2]`.
fn angles(machine: Machine<'_>, r: &Rotation, count: usize) -> Result<Vec<f32>> {
    let pairs = r.freq.len();
    let mut table = vec![0f32; count * pairs * 2];
    let out = Out::new(&mut table);
    machine.pool.run(count.div_ceil(BLOCK), &|_, block| {
        for at in block * BLOCK..count.min((block + 1) * BLOCK) {
            let scale = r.scale * r.temperature.map_or(1.0, |t| t.at(at));
            // SAFETY: each position is of one item.
            let to = unsafe { out.slice(at * pairs * 2, pairs * 2) };
            for (to, f) in to.chunks_exact_mut(2).zip(r.freq.iter()) {
                let (sin, cos) = (at as f64 * f).sin_cos();
                let sin = if r.inverse { -sin } else { sin };
                to.copy_from_slice(&[(scale * cos) as f32, (scale * sin) as f32]);
            }
        }
    })?;
    Ok(table)
}

fn rotate(machine: Machine<'_>, x: &Array<f32>, starts: &[u32], r: &Rotation) -> Result<Array<f32>> {
    let position = |t: usize| t - starts[t] as usize;
    let count = (0..x.rows).map(|t| position(t) + 1).max().unwrap_or(0);
    let (table, pairs) = (angles(machine, r, count)?, r.freq.len());
    let mut y = machine.spare.array(x.rows, x.cols);
    let out = Out::new(&mut y.data);
    machine.pool.run(x.rows.div_ceil(BLOCK), &|_, block| {
        for t in block * BLOCK..x.rows.min((block + 1) * BLOCK) {
            let angles = &table[position(t) * pairs * 2..][..pairs * 2];
            // SAFETY: each row is of one item.
            let row = unsafe { out.slice(t * x.cols, x.cols) };
            row.copy_from_slice(x.row(t));
            for head in row.chunks_exact_mut(r.head_dim) {
                let rotated =
                    |a: f32, b: f32, angle: &[f32]| (a * angle[0] - b * angle[1], a * angle[1] + b * angle[0]);
                match r.pairs {
                    RopePairs::Interleaved => {
                        for (pair, angle) in head.chunks_exact_mut(2).zip(angles.chunks_exact(2)) {
                            (pair[0], pair[1]) = rotated(pair[0], pair[1], angle);
                        }
                    }
                    RopePairs::Halves => {
                        let (first, rest) = head.split_at_mut(r.dims / 2);
                        for ((a, b), angle) in first.iter_mut().zip(rest).zip(angles.chunks_exact(2)) {
                            (*a, *b) = rotated(*a, *b, angle);
                        }
                    }
                }
            }
        }
    })?;
    Ok(y)
}
