//! Where weights lie on the device, and how products take matrices that lie in several buffers.
//!
//! A matrix lies in segments of whole rows, each in a binding. A frozen one of a quantised or half-precision format stays in that
//! format, as inference has it; trained ones, vectors and rows that no packed format takes are plain f32.

use crate::{
    backend::training::Parameter,
    error::{Error, Result},
    graph::TrainProgram,
    ir::{Grad, Graph, Op, WeightId},
    plan::{self, Caps, Matrix, Segment},
    quant::DType,
};
use std::{collections::BTreeSet, ops::Range, sync::Arc};

/// A weight on the device.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its rows, cut. Of plain f32, the sizes of segments are those of rows without padding.
    pub matrix: Matrix,
    /// Whether it lies there as plain f32.
    pub plain: bool,
}

impl Place {
    /// Numbers of segment i.
    pub fn numbers(&self, i: usize) -> usize {
        self.matrix.segments[i].rows * self.matrix.cols
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.matrix.bytes()
    }
}

/// The matrix that an op multiplies with, looks up or adds to. Other weights are vectors, which kernels bind whole.
fn matrix_of(op: &Op) -> Option<WeightId> {
    match op {
        Op::Embed { table, .. } => Some(*table),
        Op::Linear(l) | Op::ExpertLinear(l) => Some(l.weight),
        Op::Grad(g) => match g {
            Grad::LinearInput { weight } | Grad::ExpertInput { weight } => Some(*weight),
            Grad::Outer { into } | Grad::ExpertOuter { into } | Grad::Embed { into, .. } => Some(*into),
            _ => None,
        },
        _ => None,
    }
}

/// Where each weight lies that a graph reads or that is trained.
///
/// # Errors
/// [`Error::Device`] for a vector or a row that takes more than a binding.
pub fn places(program: &TrainProgram, graphs: &[&Arc<Graph>], caps: &Caps) -> Result<Vec<Option<Place>>> {
    let (mut matrices, mut vectors) = (BTreeSet::new(), BTreeSet::new());
    for op in graphs.iter().flat_map(|g| &g.nodes).map(|n| &n.op) {
        let own = matrix_of(op);
        matrices.extend(own);
        vectors.extend(op.weights().into_iter().filter(|w| Some(*w) != own));
    }
    let trained: BTreeSet<WeightId> = program.parameters.iter().map(|p: &Parameter| p.weight).collect();
    let mut all = vec![None; program.weights.len()];
    for w in matrices.iter().chain(&vectors).chain(&trained) {
        let t = &program.weights[w.0 as usize];
        let name = &program.graph.weight(*w).name;
        let sizes @ [rows, cols] = [t.rows(), t.cols()];
        let plain = trained.contains(w) || vectors.contains(w) || t.dtype() == DType::F32 || !cols.is_multiple_of(4);
        let limit = caps.max_binding.min(caps.max_buffer);
        let matrix = if plain {
            let row = 4 * cols as u64;
            let whole = vectors.contains(w);
            if row > limit || (whole && row * rows as u64 > limit) {
                let (what, bytes) = if whole { ("", row * rows as u64) } else { ("a row of ", row) };
                return Err(Error::Device(format!(
                    "{what}{name} takes {bytes} bytes, and the device binds at most {limit}; the cpu backend has no such limit"
                )));
            }
            let most = limit.checked_div(row).map_or(rows, |n| n as usize).clamp(1, rows.max(1));
            let segment = |row0: usize| {
                let rows = most.min(rows - row0);
                Segment { row0, rows, bytes: row * rows as u64 }
            };
            let segments = (0..rows).step_by(most).map(segment).collect();
            Matrix { name: name.clone(), parts: vec![*w], dtype: DType::F32, rows, cols, segments }
        } else {
            plan::matrix_in_segments(name, *w, t.dtype(), sizes, limit)?
        };
        all[w.0 as usize] = Some(Place { matrix, plain });
    }
    Ok(all)
}

/// Rows of a matrix, or whole matrices of experts, that lie together in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Experts; 0..1 of a matrix without.
    pub experts: Range<usize>,
    /// Rows of each expert's matrix.
    pub rows: Range<usize>,
    /// The segment.
    pub segment: usize,
    /// Its first row there.
    pub first: usize,
}

/// Cuts matrices of `out` rows each, which lie in segments one after the other, where segments end and after `most` rows.
pub fn cuts(segments: &[Segment], out: usize, most: usize) -> Vec<Cut> {
    let (mut all, most) = (vec![], most.max(1));
    for (i, s) in segments.iter().enumerate() {
        let (mut at, end) = (s.row0, s.row0 + s.rows);
        while at < end {
            let (expert, row, left) = (at / out, at % out, most.min(end - at));
            let (experts, rows) = match left / out {
                whole if row == 0 && whole > 0 => (expert..expert + whole, 0..out),
                _ => (expert..expert + 1, row..out.min(row + left)),
            };
            let taken = experts.len() * rows.len();
            all.push(Cut { experts, rows, segment: i, first: at - s.row0 });
            at += taken;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_whole_experts_or_rows_of_one() {
        let segment = |row0, rows| Segment { row0, rows, bytes: 0 };
        let cut = |e: Range<usize>, r: Range<usize>, segment, first| Cut { experts: e, rows: r, segment, first };
        let all = cuts(&[segment(0, 7), segment(7, 5)], 3, 100);
        let want = [cut(0..2, 0..3, 0, 0), cut(2..3, 0..1, 0, 6), cut(2..3, 1..3, 1, 0), cut(3..4, 0..3, 1, 2)];
        assert_eq!(all, want);
        let all = cuts(&[segment(0, 6)], 3, 2);
        let want = [cut(0..1, 0..2, 0, 0), cut(0..1, 2..3, 0, 2), cut(1..2, 0..2, 0, 3), cut(1..2, 2..3, 0, 5)];
        assert_eq!(all, want);
    }
}
