//! Weights on the device: matrices in segments, vectors in one buffer.

use super::Caps;
use crate::{
    error::{Error, Result},
    ir::{Graph, Linear, Node, Norm, Op, Router, WeightId},
    quant::{DType, gpu},
};
use std::collections::BTreeMap;

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

/// A piece of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VectorPart {
    /// A weight `[n]`, as f32.
    Weight(WeightId),
    /// Zeros: the bias of a stacked matrix that has none.
    Zeros(usize),
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// Matrices, in the order in which the graph names them.
    pub matrices: Vec<Matrix>,
    /// Vectors.
    pub vectors: Vec<Vector>,
    /// Bytes of the buffer of vectors.
    pub vector_bytes: u64,
    /// Format of every weight of the graph.
    pub dtypes: Vec<DType>,
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
    pub fn dtype(&self, w: WeightId) -> DType {
        self.dtypes.get(w.0 as usize).copied().unwrap_or(DType::F32)
    }
}

/// Stacks the parts of a `norm_linears` that have the same format. Returns the parts by matrix, each in order. A part
/// whose rows are no multiple of 4 ends its matrix, so that every part's columns start at a multiple of 4.
pub(super) fn stacks(graph: &Graph, weights: &Weights, parts: &[Linear]) -> Vec<Vec<usize>> {
    let rows = |i: usize| graph.weight(parts[i].weight).shape.first().copied().unwrap_or(0);
    let mut out: Vec<Vec<usize>> = Vec::new();
    for i in 0..parts.len() {
        let dtype = weights.dtype(parts[i].weight);
        let fits = |s: &&mut Vec<usize>| {
            weights.dtype(parts[s[0]].weight) == dtype && s.iter().all(|j| rows(*j).is_multiple_of(4))
        };
        match out.iter_mut().find(fits) {
            Some(s) => s.push(i),
            None => out.push(vec![i]),
        }
    }
    out
}

/// Most rows of a matrix that is stacked under a router's.
const MOST_RIDER_ROWS: usize = 32;

/// The matrix of a `linear`.
pub(super) fn linear_of(node: &Node) -> Option<Linear> {
    match node.op {
        Op::Linear(l) => Some(l),
        _ => None,
    }
}

/// The small `linear` on the same normalised value as this `norm_router`'s matrix, in the same format: the gate of a shared
/// expert. Its rows are stacked under the router's, which saves a dispatch.
pub(super) fn router_rider<'a>(graph: &'a Graph, weights: &Weights, router: &Node) -> Option<&'a Node> {
    let Op::NormRouter { linear, .. } = &router.op else { return None };
    let shape = |l: &Linear| graph.weight(l.weight).shape.clone();
    let experts = shape(linear).first().copied().unwrap_or(0);
    let fits = |n: &&Node| {
        linear_of(n).is_some_and(|l| {
            n.inputs[0] == router.outputs[0]
                && weights.dtype(l.weight) == weights.dtype(linear.weight)
                && shape(&l).first().is_some_and(|rows| *rows <= MOST_RIDER_ROWS)
        })
    };
    // A single number is read as such; of several, kernels read four at a time.
    let aligned = |n: &&Node| experts.is_multiple_of(4) || graph.cols(n.outputs[0]) == 1;
    graph.nodes.iter().filter(fits).find(aligned)
}

/// A router's numbers of each expert: selection biases, and behind them the factors; `None` where it has neither.
pub(super) fn router_parts(r: &Router) -> Option<Vec<VectorPart>> {
    let bias = r.selection_bias.map(VectorPart::Weight);
    match r.expert_scale {
        Some(scale) => Some(vec![bias.unwrap_or(VectorPart::Zeros(r.experts)), VectorPart::Weight(scale)]),
        None => bias.map(|b| vec![b]),
    }
}

/// Whether this `linear` is some router's [`router_rider`].
pub(super) fn rides_with_router(graph: &Graph, weights: &Weights, node: &Node) -> bool {
    let rider = |router: &Node| router_rider(graph, weights, router);
    graph.nodes.iter().filter_map(rider).any(|r| r.outputs == node.outputs)
}

/// The bias of a stack: `None` where no part has one.
pub(super) fn bias_parts(graph: &Graph, parts: &[Linear]) -> Option<Vec<VectorPart>> {
    let zeros = |l: &Linear| VectorPart::Zeros(graph.weight(l.weight).shape.first().copied().unwrap_or(0));
    parts
        .iter()
        .any(|l| l.bias.is_some())
        .then(|| parts.iter().map(|l| l.bias.map_or_else(|| zeros(l), VectorPart::Weight)).collect())
}

/// The bias by column of the result of two stacks that lie side by side, the second from a multiple of 4 on.
pub(super) fn bias_of_two(graph: &Graph, parts: &[Linear], stacks: [&[usize]; 2]) -> Option<Vec<VectorPart>> {
    let list = |s: &[usize]| s.iter().map(|i| parts[*i]).collect::<Vec<_>>();
    let rows = |l: &Linear| graph.weight(l.weight).shape.first().copied().unwrap_or(0);
    let (first, second) = (list(stacks[0]), list(stacks[1]));
    let end: usize = first.iter().map(rows).sum();
    let all = |parts: &[Linear]| -> Vec<VectorPart> {
        parts.iter().map(|l| l.bias.map_or(VectorPart::Zeros(rows(l)), VectorPart::Weight)).collect()
    };
    let some = first.iter().chain(&second).any(|l| l.bias.is_some());
    let gap = VectorPart::Zeros(super::lower::padded(end) - end);
    some.then(|| [all(&first), vec![gap], all(&second)].concat())
}

/// The biases of an `expert_glu`, those of the gates first: one vector.
pub(super) fn both_biases(both: &[Linear; 2]) -> Option<[VectorPart; 2]> {
    Some([VectorPart::Weight(both[0].bias?), VectorPart::Weight(both[1].bias?)])
}

pub(super) fn layout(graph: &Graph, dtypes: &[DType], caps: &Caps) -> Result<Weights> {
    if dtypes.len() != graph.weights.len() {
        return Err(Error::Graph(format!("{} formats of {} weights", dtypes.len(), graph.weights.len())));
    }
    let mut b = Layout { graph, out: Weights { dtypes: dtypes.to_vec(), ..Weights::default() }, pairs: vec![] };
    for node in &graph.nodes {
        b.node(node)?;
    }
    let Layout { mut out, pairs, .. } = b;
    cut(&mut out, &pairs, caps)?;
    place_vectors(&mut out, caps)?;
    Ok(out)
}

struct Layout<'a> {
    graph: &'a Graph,
    out: Weights,
    /// Matrices that are cut at the same rows.
    pairs: Vec<(u32, u32)>,
}

impl Layout<'_> {
    fn node(&mut self, node: &Node) -> Result<()> {
        match &node.op {
            Op::Embed { table, .. } => drop(self.matrix(&[*table])?),
            Op::RmsNorm(n) => self.norm(n),
            Op::Router(r) => router_parts(r).into_iter().for_each(|p| self.vector(p)),
            Op::Linear(_) if rides_with_router(self.graph, &self.out, node) => {}
            Op::Linear(l) | Op::LinearAdd { linear: l, .. } | Op::LinearAct { linear: l, .. } => self.stack(&[*l])?,
            Op::ShortConv(c) => {
                let weights = std::iter::once(c.weight).chain(c.bias);
                weights.for_each(|w| self.vector(vec![VectorPart::Weight(w)]));
            }
            Op::DeltaNet(d) => {
                [d.decay, d.dt_bias].map(|w| self.vector(vec![VectorPart::Weight(w)])).into_iter().collect()
            }
            Op::Attend(a) => a.sinks.into_iter().for_each(|s| self.vector(vec![VectorPart::Weight(s)])),
            Op::ExpertLinear(l) | Op::ExpertAct { linear: l, .. } | Op::ExpertDownAdd { linear: l, .. } => {
                self.matrix(&[l.weight])?;
                l.bias.into_iter().for_each(|b| self.vector(vec![VectorPart::Weight(b)]));
            }
            Op::NormLinears { norm, parts } => {
                norm.iter().for_each(|n| self.norm(n));
                let stacks = stacks(self.graph, &self.out, parts);
                for stack in &stacks {
                    self.stack(&stack.iter().map(|i| parts[*i]).collect::<Vec<_>>())?;
                }
                if let [first, second, ..] = &stacks[..]
                    && let Some(bias) = bias_of_two(self.graph, parts, [first, second])
                {
                    self.vector(bias);
                }
            }
            Op::RopeStore { q_norm, k_norm, .. } => {
                [q_norm, k_norm].into_iter().flatten().for_each(|n| self.norm(n));
            }
            Op::LinearGlu { gate, up, .. } => {
                let pair = (self.matrix(&[*gate])?, self.matrix(&[*up])?);
                self.pairs.push(pair);
            }
            Op::ExpertGlu { gate, up, .. } => {
                let pair = (self.matrix(&[gate.weight])?, self.matrix(&[up.weight])?);
                self.pairs.push(pair);
                both_biases(&[*gate, *up]).into_iter().for_each(|b| self.vector(b.to_vec()));
            }
            Op::NormRouter { norm, linear, router } => {
                self.norm(norm);
                router_parts(router).into_iter().for_each(|p| self.vector(p));
                let rider = router_rider(self.graph, &self.out, node).and_then(linear_of);
                self.stack(&[Some(*linear), rider].into_iter().flatten().collect::<Vec<_>>())?;
            }
            Op::Tokens
            | Op::Input { .. }
            | Op::Rope(_)
            | Op::HeadIds { .. }
            | Op::JoinHeads { .. }
            | Op::KvStore { .. }
            | Op::Add
            | Op::Scale(_)
            | Op::Glu(_)
            | Op::Act(_)
            | Op::SigmoidGate
            | Op::ExpertCombine
            | Op::WeighInputs
            | Op::TakeOutputs => {}
        }
        Ok(())
    }

    fn norm(&mut self, n: &Norm) {
        n.weights().for_each(|w| self.vector(vec![VectorPart::Weight(w)]));
    }

    fn stack(&mut self, parts: &[Linear]) -> Result<()> {
        self.matrix(&parts.iter().map(|l| l.weight).collect::<Vec<_>>())?;
        if let Some(bias) = bias_parts(self.graph, parts) {
            self.vector(bias);
        }
        Ok(())
    }

    fn matrix(&mut self, parts: &[WeightId]) -> Result<u32> {
        if let Some(i) = self.out.matrix_of.get(parts) {
            return Ok(*i);
        }
        let decl = |w: &WeightId| self.graph.weight(*w);
        let name = parts.iter().map(|w| decl(w).name.as_str()).collect::<Vec<_>>().join(" + ");
        let cols = decl(&parts[0]).shape.last().copied().unwrap_or(0);
        if cols == 0 || !cols.is_multiple_of(4) {
            return Err(Error::Unsupported(format!(
                "{name} has rows of {cols} weights: the GPU kernels read 4 at a time; use the cpu backend"
            )));
        }
        let rows_of = |w: &WeightId| decl(w).shape.iter().rev().skip(1).product::<usize>();
        let m = Matrix {
            dtype: self.out.dtype(parts[0]),
            rows: parts.iter().map(rows_of).sum(),
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

fn cut(out: &mut Weights, pairs: &[(u32, u32)], caps: &Caps) -> Result<()> {
    let limit = caps.max_binding.min(caps.max_buffer).min(MAX_SEGMENT);
    let mut most: Vec<usize> = out.matrices.iter().map(|m| segment_rows(m, limit)).collect::<Result<_>>()?;
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
        let (dtype, cols) = (m.dtype, m.cols);
        let segment = |row0: usize| {
            let rows = most.min(m.rows - row0);
            Segment { row0, rows, bytes: 4 * gpu::words(dtype, rows, cols) as u64 }
        };
        m.segments = (0..m.rows).step_by(most.max(1)).map(segment).collect();
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
