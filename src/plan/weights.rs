//! Weights on the device: matrices in segments, vectors in one buffer.

use super::{
    Caps,
    nodes::{self, KernelGraph, Operand, VectorPart},
    routed,
};
use crate::{
    error::{Error, Result},
    ir::{Graph, WeightId},
    quant::{DType, gpu},
};
use std::collections::{BTreeMap, BTreeSet};

/// Largest segment, whatever the device allows: a segment is packed in host memory before it is sent.
const MAX_SEGMENT: u64 = 1 << 30;

/// Whole rows of a matrix in one binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub row0: usize,
    /// Rows.
    pub rows: usize,
    /// Bytes on the device.
    pub bytes: u64,
}

/// A matrix: one weight, or several of one format stacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Names of its parts, for messages.
    pub name: String,
    /// Weights, stacked by rows.
    pub parts: Vec<WeightId>,
    /// Format of all parts.
    pub dtype: DType,
    /// Rows (of experts: all of them).
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Its rows, cut.
    pub segments: Vec<Segment>,
}

impl Matrix {
    /// Groups of 32 weights a row.
    pub fn groups(&self) -> u32 {
        gpu::groups_per_row(self.cols) as u32
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }
}

/// A vector of f32 in [`super::Buffer::Vectors`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    /// Its pieces, one after the other.
    pub parts: Vec<VectorPart>,
    /// First byte.
    pub offset: u64,
    /// Numbers.
    pub len: usize,
}

/// The layout of all weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// Matrices, in the order in which the graph names them.
    pub matrices: Vec<Matrix>,
    /// Vectors.
    pub vectors: Vec<Vector>,
    /// Bytes of the buffer of vectors.
    pub vector_bytes: u64,
    /// Format of every weight of the graph.
    pub dtypes: Vec<DType>,
    /// The nodes that the layout was made for.
    pub(super) nodes: KernelGraph,
    matrix_of: BTreeMap<Vec<WeightId>, u32>,
    vector_of: BTreeMap<Vec<VectorPart>, u32>,
}

impl Weights {
    /// The number of the matrix with these parts.
    pub fn matrix(&self, parts: &[WeightId]) -> Result<u32> {
        (self.matrix_of.get(parts).copied()).ok_or_else(|| Error::Graph(format!("weights {parts:?} have no matrix")))
    }

    /// The vector with these parts.
    pub fn vector(&self, parts: &[VectorPart]) -> Result<&Vector> {
        let i = self.vector_of.get(parts).ok_or_else(|| Error::Graph(format!("{parts:?} have no vector")))?;
        Ok(&self.vectors[*i as usize])
    }

    /// Bytes of all weights on the device.
    pub fn bytes(&self) -> u64 {
        self.vector_bytes + self.matrices.iter().map(Matrix::bytes).sum::<u64>()
    }

    /// The format of a weight.
    pub(super) fn dtype(&self, w: WeightId) -> Result<DType> {
        let found = self.dtypes.get(w.0 as usize).copied();
        found.ok_or_else(|| Error::Graph(format!("weight {} has no format", w.0)))
    }

    /// The numbers of the matrices of experts that a router chooses among, ascending.
    pub fn expert_matrices(&self) -> Result<BTreeSet<u32>> {
        let all = routed::routed(&self.nodes);
        all.iter().flat_map(|r| r.weights()).map(|w| self.matrix(&[w])).collect()
    }

    /// Whether the matrix with these parts is one segment.
    pub(super) fn is_whole(&self, parts: &[WeightId]) -> Result<bool> {
        Ok(self.matrices[self.matrix(parts)? as usize].segments.len() == 1)
    }
}

/// Lays out the weights that the nodes of `graph` read, each matrix and vector once, in the order of the nodes. With `by_expert` no
/// expert is cut.
pub(super) fn layout(graph: &Graph, dtypes: &[DType], caps: &Caps, by_expert: bool) -> Result<Weights> {
    let nodes = nodes::from_graph(graph, dtypes)?;
    let mut b = Layout { graph, out: Weights { dtypes: dtypes.to_vec(), ..Weights::default() }, pairs: vec![] };
    for operand in nodes.nodes.iter().flat_map(|n| n.op.operands(graph)) {
        b.operand(operand)?;
    }
    let Layout { mut out, pairs, .. } = b;
    let whole = if by_expert { expert_rows(&out, &nodes)? } else { BTreeMap::new() };
    cut(&mut out, &pairs, &whole, caps)?;
    place_vectors(&mut out, caps)?;
    out.nodes = nodes;
    Ok(out)
}

/// Rows of an expert of each matrix of experts that a router chooses among.
fn expert_rows(out: &Weights, nodes: &KernelGraph) -> Result<BTreeMap<u32, usize>> {
    let mut rows = BTreeMap::new();
    for r in routed::routed(nodes) {
        for w in r.weights() {
            let m = out.matrix(&[w])?;
            rows.insert(m, out.matrices[m as usize].rows / r.router.experts.max(1));
        }
    }
    Ok(rows)
}

struct Layout<'a> {
    graph: &'a Graph,
    out: Weights,
    /// Matrices that are cut at the same rows.
    pairs: Vec<(u32, u32)>,
}

impl Layout<'_> {
    fn operand(&mut self, operand: Operand) -> Result<()> {
        match operand {
            Operand::Matrix(parts) => _ = self.matrix(&parts)?,
            Operand::Aligned([a, b]) => {
                let pair = (self.matrix(&[a])?, self.matrix(&[b])?);
                self.pairs.push(pair);
            }
            Operand::Vector(parts) => self.vector(parts),
        }
        Ok(())
    }

    fn matrix(&mut self, parts: &[WeightId]) -> Result<u32> {
        if let Some(i) = self.out.matrix_of.get(parts) {
            return Ok(*i);
        }
        let decl = |w: &WeightId| self.graph.weight(*w);
        let name = parts.iter().map(|w| decl(w).name.as_str()).collect::<Vec<_>>().join(" + ");
        let cols = decl(&parts[0]).cols();
        if cols == 0 || !cols.is_multiple_of(4) {
            return Err(Error::Unsupported(format!(
                "{name} has rows of {cols} weights: the GPU kernels read 4 at a time; use the cpu backend"
            )));
        }
        let m = Matrix {
            dtype: self.out.dtype(parts[0])?,
            rows: parts.iter().map(|w| decl(w).rows()).sum(),
            parts: parts.to_vec(),
            name,
            cols,
            segments: vec![],
        };
        let i = self.out.matrices.len() as u32;
        self.out.matrices.push(m);
        self.out.matrix_of.insert(parts.to_vec(), i);
        Ok(i)
    }

    fn vector(&mut self, parts: Vec<VectorPart>) {
        if self.out.vector_of.contains_key(&parts) {
            return;
        }
        let len = |p: &VectorPart| match p {
            VectorPart::Weight(w) => self.graph.weight(*w).shape.iter().product(),
            VectorPart::Zeros(n) => *n,
        };
        let len = parts.iter().map(len).sum();
        self.out.vector_of.insert(parts.clone(), self.out.vectors.len() as u32);
        self.out.vectors.push(Vector { parts, offset: 0, len });
    }
}

/// A matrix by itself, cut into segments of at most `limit` bytes.
///
/// # Errors
/// [`Error::Device`] where a row takes more.
pub fn matrix_in_segments(
    name: &str,
    weight: WeightId,
    dtype: DType,
    [rows, cols]: [usize; 2],
    limit: u64,
) -> Result<Matrix> {
    let mut m = Matrix { name: name.into(), parts: vec![weight], dtype, rows, cols, segments: vec![] };
    let most = segment_rows(&m, limit.min(MAX_SEGMENT))?;
    m.segments = segments(&m, most);
    Ok(m)
}

fn segments(m: &Matrix, most: usize) -> Vec<Segment> {
    let segment = |row0: usize| {
        let rows = most.min(m.rows - row0);
        Segment { row0, rows, bytes: 4 * gpu::words(m.dtype, rows, m.cols) as u64 }
    };
    (0..m.rows).step_by(most.max(1)).map(segment).collect()
}

/// Most rows of a segment.
fn segment_rows(m: &Matrix, limit: u64) -> Result<usize> {
    let bytes = |rows: usize| 4 * gpu::words(m.dtype, rows, m.cols) as u64;
    if bytes(1) == 0 || bytes(1) > limit {
        return Err(Error::Device(format!(
            "{}: a row of {} weights ({}) does not fit a binding of {limit} bytes",
            m.name, m.cols, m.dtype
        )));
    }
    let (mut fits, mut too_many) = (1, m.rows + 1);
    while too_many - fits > 1 {
        let middle = fits + (too_many - fits) / 2;
        if bytes(middle) <= limit { fits = middle } else { too_many = middle }
    }
    // Where it has to be cut, whole workgroups are taken.
    Ok(if fits < m.rows && fits > 64 { fits / 64 * 64 } else { fits })
}

/// Cuts matrices into segments: those of `pairs` at the same rows, those of `whole` at multiples of so many rows.
fn cut(out: &mut Weights, pairs: &[(u32, u32)], whole: &BTreeMap<u32, usize>, caps: &Caps) -> Result<()> {
    let limit = caps.max_binding.min(caps.max_buffer).min(MAX_SEGMENT);
    let mut most: Vec<usize> = out.matrices.iter().map(|m| segment_rows(m, limit)).collect::<Result<_>>()?;
    for (i, rows) in whole {
        let (m, most) = (&out.matrices[*i as usize], &mut most[*i as usize]);
        if *most < m.rows {
            *most = *most / rows.max(&1) * rows;
        }
        if *most == 0 {
            return Err(Error::Device(format!(
                "{}: an expert of {rows} rows of {} weights ({}) does not fit a binding of {limit} bytes, and has no slot then; keep all \
                 experts in the device's memory",
                m.name, m.cols, m.dtype
            )));
        }
    }
    // A matrix may be in several pairs: repeat until nothing changes.
    loop {
        let before = most.clone();
        for (a, b) in pairs {
            let n = most[*a as usize].min(most[*b as usize]);
            (most[*a as usize], most[*b as usize]) = (n, n);
        }
        if most == before {
            break;
        }
    }
    for (m, most) in out.matrices.iter_mut().zip(most) {
        m.segments = segments(m, most);
    }
    Ok(())
}

fn place_vectors(out: &mut Weights, caps: &Caps) -> Result<()> {
    let mut at = 0;
    for v in &mut out.vectors {
        v.offset = at;
        at = (at + 4 * v.len as u64).next_multiple_of(caps.alignment.max(16));
    }
    out.vector_bytes = at.max(super::ZERO_BYTES);
    if out.vector_bytes > caps.max_buffer {
        return Err(Error::Device(format!(
            "norms and biases take {} bytes, a buffer {}",
            out.vector_bytes, caps.max_buffer
        )));
    }
    Ok(())
}
