//! From nodes to kernels: what all lowerings share, and the ops that training has in common with inference.

use super::{
    fold::folded,
    kernel::{Body, Buffer, Kernel, Kind, Operand, RESERVED, Shape, Work},
    places::Place,
    router, text,
    tile::Tile,
};
use crate::{
    error::{Error, Result},
    ir::{Graph, Node, Norm, Op, Rows, Type, ValueId, WeightId},
};
use std::collections::HashMap;

/// All kernels of a graph, for T rows.
#[derive(Debug, Default)]
pub struct Lowered {
    /// In order.
    pub kernels: Vec<Kernel>,
    /// Numbers of each scratch buffer.
    pub scratch: Vec<usize>,
    /// Tables of numbers.
    pub tables: Vec<Vec<f32>>,
}

/// The lowering of a graph.
pub(super) struct Lower<'a> {
    pub g: &'a Graph,
    pub rows: usize,
    pub node: &'a Node,
    /// Whether products are of the form for processors that emulate a device.
    pub direct: bool,
    /// By weight: where it lies.
    pub places: &'a [Option<Place>],
    /// Most bytes of a buffer.
    pub binding: u64,
    /// The scratch in which parts of packed matrices become f32, all in turn.
    pub dequantized: Option<usize>,
    pub out: Lowered,
    /// By ids and number of experts: ranges of experts and their slots in ascending order.
    pub sorted: HashMap<(ValueId, usize), [Buffer; 2]>,
    /// The numbers of the kernel under way, behind the reserved ones.
    numbers: Vec<u32>,
    /// Work of the kernel under way beyond one look at each operand.
    more_work: f64,
}

/// Lowers all nodes for weights that lie so, with buffers of at most `binding` bytes; `direct` chooses the form of products (see `tile`).
///
/// # Errors
/// [`Error::Unsupported`] for an op without a kernel, by name.
pub fn lower(g: &Graph, rows: usize, direct: bool, places: &[Option<Place>], binding: u64) -> Result<Lowered> {
    let Some(first) = g.nodes.first() else { return Err(Error::Graph("a graph without nodes".into())) };
    let (out, sorted) = Default::default();
    let numbers = vec![0; RESERVED];
    let (dequantized, more_work) = (None, 0.0);
    let mut lower =
        Lower { g, rows, node: first, direct, places, binding, dequantized, out, sorted, numbers, more_work };
    let mut begin = 0;
    for (i, (node, folded)) in g.nodes.iter().zip(folded(g)).enumerate() {
        if folded {
            // Every kernel of the node before that makes a part of its result makes one of the sum.
            let made = g.nodes[i - 1].outputs[0];
            let other = node.inputs.iter().copied().find(|v| *v != made).unwrap_or(made);
            let [other, to] = [other, node.outputs[0]].map(|v| lower.value(v));
            let parts = lower.out.kernels[begin..].iter_mut();
            for part in parts.filter(|k| k.writes[0].buffer == Buffer::Value(made)) {
                part.add(other, to)?;
            }
        } else {
            begin = lower.out.kernels.len();
            lower.node = node;
            lower.one()?;
        }
    }
    Ok(lower.out)
}

/// Rows of a value in a micro-batch of `rows` rows.
pub fn rows_of(g: &Graph, v: ValueId, rows: usize) -> usize {
    match g.ty(v).dims() {
        Some((Rows::Fixed(n), _)) => n,
        Some((Rows::Tokens | Rows::Outputs, _)) => rows,
        None => 0,
    }
}

impl<'a> Lower<'a> {
    /// A size as an expression of the kernel under way.
    pub fn size(&mut self, n: usize) -> String {
        // Sizes beyond are those of buffers that no device gives.
        self.numbers.push(u32::try_from(n).unwrap_or(u32::MAX));
        text::parameter(self.numbers.len() - 1)
    }

    /// Sizes as expressions of the kernel under way.
    pub fn sizes<const N: usize>(&mut self, n: [usize; N]) -> [String; N] {
        n.map(|n| self.size(n))
    }

    /// A factor as an expression of the kernel under way.
    pub fn factor(&mut self, x: f64) -> String {
        self.numbers.push((x as f32).to_bits());
        format!("bitcast<f32>({})", text::parameter(self.numbers.len() - 1))
    }

    /// Rows of a value.
    pub fn rows_of(&self, v: ValueId) -> usize {
        rows_of(self.g, v, self.rows)
    }

    /// Rows of operand i.
    pub fn in_rows(&self, i: usize) -> usize {
        self.rows_of(self.node.inputs[i])
    }

    /// Rows of result i.
    pub fn out_rows(&self, i: usize) -> usize {
        self.rows_of(self.node.outputs[i])
    }

    /// Columns of operand i.
    pub fn cols(&self, i: usize) -> usize {
        self.g.cols(self.node.inputs[i])
    }

    /// Columns of result i.
    pub fn out_cols(&self, i: usize) -> usize {
        self.g.cols(self.node.outputs[i])
    }

    pub fn value(&self, v: ValueId) -> Operand {
        let kind = if matches!(self.g.ty(v), Type::U32(..)) { Kind::Ids } else { Kind::Numbers };
        Operand { buffer: Buffer::Value(v), kind }
    }

    pub fn input(&self, i: usize) -> Operand {
        self.value(self.node.inputs[i])
    }

    pub fn inputs(&self) -> Vec<Operand> {
        self.node.inputs.iter().map(|v| self.value(*v)).collect()
    }

    pub fn output(&self, i: usize) -> Operand {
        self.value(self.node.outputs[i])
    }

    /// A vector.
    pub fn weight(&self, w: WeightId) -> Operand {
        Operand { buffer: Buffer::Weight(w, 0), kind: Kind::Numbers }
    }

    /// The gradient of a vector.
    pub fn gradient(&self, w: WeightId) -> Operand {
        Operand { buffer: Buffer::Gradient(w, 0), kind: Kind::Numbers }
    }

    pub fn shape(&self, w: WeightId) -> &'a [usize] {
        &self.g.weight(w).shape
    }

    pub fn scratch(&mut self, numbers: usize, ids: bool) -> Operand {
        self.out.scratch.push(numbers);
        let kind = if ids { Kind::Ids } else { Kind::Numbers };
        Operand { buffer: Buffer::Scratch(self.out.scratch.len() - 1), kind }
    }

    pub fn table(&mut self, numbers: Vec<f32>) -> Operand {
        // Layers rotate by the same angles.
        let known = self.out.tables.iter().position(|t| *t == numbers);
        let at = known.unwrap_or(self.out.tables.len());
        if known.is_none() {
            self.out.tables.push(numbers);
        }
        Operand { buffer: Buffer::Table(at), kind: Kind::Numbers }
    }

    /// A kernel of `count` invocations.
    pub fn push(&mut self, reads: Vec<Operand>, writes: Vec<Operand>, count: usize, body: String) {
        self.push_named(self.node.op.name(), reads, writes, count, body);
    }

    /// The same under a name of its own.
    pub fn push_named(
        &mut self,
        name: &'static str,
        reads: Vec<Operand>,
        writes: Vec<Operand>,
        count: usize,
        body: String,
    ) {
        let mut numbers = self.take_numbers();
        let more = std::mem::take(&mut self.more_work);
        if count == 0 {
            return;
        }
        numbers[0] = u32::try_from(count).unwrap_or(u32::MAX);
        let values = self.node.inputs.iter().chain(&self.node.outputs);
        let looks: f64 = values.map(|v| (self.rows_of(*v) * self.g.ty(*v).dims().map_or(0, |d| d.1)) as f64).sum();
        let (shape, body, work) = (Shape::Each(count), Body::Each(body), Work::of(looks.max(count as f64) + more));
        self.out.kernels.push(Kernel { name, reads, writes, shape, numbers, work, body });
    }

    /// Says that the kernel under way does more than look at each operand once: so many operations.
    pub fn does(&mut self, operations: usize) {
        self.more_work = operations as f64;
    }

    fn take_numbers(&mut self) -> Vec<u32> {
        std::mem::replace(&mut self.numbers, vec![0; RESERVED])
    }

    /// Rows of a workgroup of a block: as many as invocations that run together where a processor emulates the device.
    pub fn lanes(&self) -> usize {
        if self.direct { 8 } else { 64 }
    }

    /// A kernel of workgroups of rows of one head, of `[rows, heads]`.
    pub fn block(
        &mut self,
        reads: Vec<Operand>,
        writes: Vec<Operand>,
        [rows, heads]: [usize; 2],
        work: Work,
        body: String,
    ) {
        let (numbers, lanes) = (self.take_numbers(), self.lanes());
        let (name, shape, body) = (self.node.op.name(), Shape::Blocks { rows, heads, lanes }, Body::Block(body, lanes));
        self.out.kernels.push(Kernel { name, reads, writes, shape, numbers, work, body });
    }

    /// Products, `batch` side by side, of at most `[rows, cols]` results, which sum `products` products in all.
    pub fn tiles(
        &mut self,
        reads: Vec<Operand>,
        write: Operand,
        [rows, cols, batch]: [usize; 3],
        products: f64,
        tile: Tile,
    ) {
        let (numbers, work) = (self.take_numbers(), Work::of(products));
        let (name, shape, body) = (self.node.op.name(), Shape::Tiles { rows, cols, batch }, Body::Tile(Box::new(tile)));
        self.out.kernels.push(Kernel { name, reads, writes: vec![write], shape, numbers, work, body });
    }

    /// A kernel whose invocation makes element (r, col) of output `which`.
    pub fn each(&mut self, which: usize, reads: Vec<Operand>, expression: &str) {
        let (count, write) = (self.out_rows(which) * self.out_cols(which), self.output(which));
        let cols = self.size(self.out_cols(which));
        let body = format!("let r = i / {cols}; let col = i % {cols}; y[i] = {expression};");
        self.push(reads, vec![write], count, body);
    }

    /// A kernel with `each` invocations for each row of the first output, which writes all outputs.
    pub fn by_row(&mut self, each: usize, reads: Vec<Operand>, body: String) {
        let writes = self.node.outputs.iter().map(|v| self.value(*v)).collect();
        self.push(reads, writes, each * self.out_rows(0), body);
    }

    pub(super) fn refused(&self) -> Error {
        Error::Unsupported(format!(
            "{} has no training kernel on the GPU; the cpu backend trains it",
            self.node.op.name()
        ))
    }

    fn one(&mut self) -> Result<()> {
        match &self.node.op {
            // Written by the host.
            Op::Tokens | Op::Input { .. } => {}
            Op::HeadIds { .. } => self.each(0, vec![], "col"),
            Op::Embed { table, scale } => self.embed(*table, *scale),
            Op::RmsNorm(n) => self.norm(n),
            Op::Linear(l) => self.linear(l)?,
            Op::JoinHeads { heads } => self.join_heads(*heads),
            Op::Add => self.each(0, self.inputs(), "a[i] + b[i]"),
            Op::Scale(f) => {
                let f = self.factor(f64::from(*f));
                self.each(0, self.inputs(), &format!("{f} * a[i]"));
            }
            Op::Glu(act) => self.each(0, self.inputs(), &text::gated(*act, "a[i]", "b[i]")),
            Op::Act(act) => self.each(0, self.inputs(), &text::activated(*act, "a[i]")),
            Op::SigmoidGate => self.each(0, self.inputs(), "a[i] * sigmoid(b[r])"),
            Op::Router(r) => {
                let mut reads = self.inputs();
                reads.extend(r.selection_bias.iter().chain(&r.expert_scale).map(|w| self.weight(*w)));
                self.by_row(1, reads, router::forward(r)?);
            }
            Op::ScaleExpertInputs => {
                let [n, k] = self.sizes([self.cols(0), self.cols(1)]);
                self.each(0, self.inputs(), &format!("b[r * {k} + col / {n}] * a[r * {n} + col % {n}]"));
                self.each(1, vec![], "1.0");
            }
            Op::ExpertLinear(l) => self.expert_linear(l)?,
            Op::ExpertCombine => self.combine(),
            Op::Math(op) => return self.math(op),
            Op::Grad(op) => return self.grad(op),
            Op::Rope(_)
            | Op::KvStore { .. }
            | Op::Attend(_)
            | Op::ShortConv(_)
            | Op::DeltaNet(_)
            | Op::TakeOutputs
            | Op::HostExperts { .. }
            | Op::LocalIds { .. }
            | Op::NormLinears { .. }
            | Op::RopeStore { .. }
            | Op::LinearAdd { .. }
            | Op::LinearGlu { .. }
            | Op::NormRouter { .. }
            | Op::LinearAct { .. }
            | Op::ExpertGlu { .. }
            | Op::ExpertAct { .. }
            | Op::ExpertDownAdd { .. } => return Err(self.refused()),
        }
        Ok(())
    }

    fn join_heads(&mut self, heads: usize) {
        let (ca, cb) = (self.cols(0), self.cols(1));
        let [p, q, n] = self.sizes([ca / heads, cb / heads, (ca + cb) / heads]);
        let [ca, cb] = self.sizes([ca, cb]);
        let first = format!("a[r * {ca} + col / {n} * {p} + min(col % {n}, {p} - 1u)]");
        let second = format!("b[r * {cb} + col / {n} * {q} + (max(col % {n}, {p}) - {p})]");
        self.each(0, self.inputs(), &format!("select({second}, {first}, col % {n} < {p})"));
    }

    fn combine(&mut self) {
        let cols = self.out_cols(0);
        let [n, k] = self.sizes([cols, self.cols(1)]);
        let body = format!(
            "let r = i / {n}; let col = i % {n}; var sum = 0.0;
    for (var j = 0u; j < {k}; j++) {{ sum += b[r * {k} + j] * a[(r * {k} + j) * {n} + col]; }}
    y[i] = sum;"
        );
        self.by_row(cols, self.inputs(), body);
    }

    fn norm(&mut self, n: &Norm) {
        let len = self.shape(n.weight)[0];
        let mut reads = vec![self.input(0), self.weight(n.weight)];
        reads.extend(n.bias.map(|b| self.weight(b)));
        let bias = if n.bias.is_some() { " + c[j]" } else { "" };
        let groups = self.out_cols(0) / len;
        let len = self.size(len);
        let body = format!(
            "let at = i * {len};
    {}
    for (var j = 0u; j < {len}; j++) {{ y[at + j] = (a[at + j] - centre) * scale * b[j]{bias}; }}",
            text::statistics(n, &len)
        );
        self.by_row(groups, reads, body);
    }
}
