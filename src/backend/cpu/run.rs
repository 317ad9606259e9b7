//! Runs a step: the nodes of the fused graph in order, on buffers that were allocated before the first token.

mod linears;
mod positions;
mod routed;
mod simple;

use super::{
    Model,
    act::Acts,
    attend,
    buffer::{Aligned, Out},
    experts::{self, ExpertInput, ExpertMatrix, SlotsByExpert},
    layout::Place,
    matmul::{self, Epilogue},
    parallel::{Env, each_output, each_row},
    recurrent,
    router::choose,
    row_ops::{Act, AddScaled, Glu, LayerNorm, NormInPlace, RmsNorm, RopeTable},
    sequence::{Rows as StepRows, Segment, Sequence},
    weight::{Input, ScratchPool, Weight, ensure_len},
};
use crate::{
    backend::{
        Output,
        host::{HostResult, HostRows, HostRunner},
    },
    error::{Error, Result},
    ir::{Activation, Linear, Node, Norm, NormKind, Op, Rope, Router, Rows, StateId, ValueId, WeightId},
    ops::{elementwise::sigmoid, linear::Activations},
};
use linears::norm_rows;
use std::{
    mem::take,
    sync::atomic::{AtomicBool, Ordering},
};

/// All memory of a runner: the values of a step, its sequences, and scratch memory.
pub(super) struct State {
    floats: Vec<Aligned<f32>>,
    ids: Vec<Vec<u32>>,
    pub(super) sequences: Vec<Sequence>,
    ropes: Vec<RopeTable>,
    scratch: ScratchPool,
    all_tokens: Vec<u32>,
    acts: Acts,
    /// The value whose quants are in `acts`, and the columns of its rows.
    acts_of: Option<(ValueId, usize)>,
    normed: Aligned<f32>,
    logits: Vec<f32>,
    pub(super) slots_by_expert: SlotsByExpert,
    /// Who computes the experts that are not here.
    pub(super) host: Option<Box<dyn HostRunner>>,
    attention: attend::Scratch,
    /// The output buffers of the running node, which are taken out of `floats` meanwhile.
    taken: Vec<Aligned<f32>>,
}

/// What follows a matrix product: the [`Epilogue`] with values of the graph in place of slices.
#[derive(Clone, Copy)]
enum EpilogueValues {
    /// Nothing.
    Nothing,
    /// An activation.
    Act(Activation),
    /// A factor, an optional sigmoid gate, and a residual, as in [`Epilogue::Add`].
    Add { residual: ValueId, gate: Option<ValueId>, factor: f32 },
}

/// Gives the rows of the i-th input of a node that belong to one segment.
type SegmentInput<'i, 'x> = &'i dyn Fn(usize) -> &'x [f32];

/// What all nodes of a step share.
#[derive(Clone, Copy)]
pub(super) struct StepContext<'a> {
    pub(super) model: &'a Model,
    pub(super) step: StepRows<'a>,
    /// The rows of the step by sequence, and their positions.
    pub(super) segments: &'a [Segment],
}

impl StepContext<'_> {
    fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.step.tokens.len(),
            Rows::Outputs => self.step.outputs,
            Rows::Fixed(n) => n,
        }
    }

    fn place(&self, v: ValueId) -> Place {
        self.model.layout.places[v.0 as usize]
    }

    /// The number of rows of a value in this step.
    pub(super) fn rows_of(&self, v: ValueId) -> usize {
        self.rows(self.place(v).rows)
    }

    /// How a value is rounded before it is multiplied with quantised weights.
    fn activations(&self, v: ValueId) -> Activations {
        self.model.activations.of(self.place(v).rows)
    }

    pub(super) fn weight(&self, w: WeightId) -> &Weight {
        &self.model.weights[w.0 as usize]
    }

    fn vector(&self, w: WeightId) -> &[f32] {
        &self.model.vectors[w.0 as usize]
    }
}

impl State {
    /// Allocates the memory for steps of up to `ubatch` rows, and for sequences of `ctx` positions.
    pub(super) fn new(model: &Model, ubatch: usize, ctx: usize, sequences: Vec<Sequence>) -> Self {
        let (mut floats, mut ids) = (vec![], vec![]);
        for b in &model.layout.buffers {
            let rows = match b.rows {
                Rows::Tokens => ubatch,
                Rows::Outputs => 1,
                Rows::Fixed(n) => n,
            };
            let len = b.cols.saturating_mul(rows);
            floats.push(Aligned::zeroed(if b.ids { 0 } else { len }));
            ids.push(if b.ids { vec![0; len] } else { vec![] });
        }
        let mut ropes: Vec<RopeTable> = vec![];
        for node in &model.graph.nodes {
            if let Op::Rope(r) | Op::RopeStore { rope: r, .. } = &node.op
                && !ropes.iter().any(|t| t.is_of(r))
            {
                ropes.push(RopeTable::new(r, ubatch, ctx));
            }
        }
        State {
            floats,
            ids,
            sequences,
            ropes,
            scratch: ScratchPool::new(model.pool.threads()),
            all_tokens: (0..ubatch as u32).collect(),
            acts: Acts::default(),
            acts_of: None,
            normed: Aligned::default(),
            logits: vec![],
            slots_by_expert: SlotsByExpert::default(),
            host: None,
            attention: attend::Scratch::default(),
            taken: vec![],
        }
    }

    /// The memory held, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let sequences: u64 = self.sequences.iter().map(Sequence::bytes).sum();
        let floats: u64 = self.floats.iter().map(Aligned::bytes).sum();
        let ids: u64 = self.ids.iter().map(|v| 4 * v.capacity() as u64).sum();
        let ropes: u64 = self.ropes.iter().map(RopeTable::bytes).sum();
        let small = 4 * (self.all_tokens.capacity() + self.logits.capacity()) as u64 + self.attention.bytes();
        let scratch = self.scratch.bytes() + self.acts.bytes() + self.normed.bytes() + self.slots_by_expert.bytes();
        let host = self.host.as_ref().map_or(0, |h| h.bytes());
        sequences + floats + ids + ropes + small + scratch + host
    }

    /// Prepares for a step: grows the buffers of values that have a row for each output.
    pub(super) fn begin(&mut self, f: StepContext<'_>) {
        for (i, b) in f.model.layout.buffers.iter().enumerate() {
            let len = f.rows(b.rows).saturating_mul(b.cols);
            if !b.ids {
                self.floats[i].grow(len);
            } else if self.ids[i].len() < len {
                self.ids[i].resize(len, 0);
            }
        }
        self.acts_of = None;
        self.ropes.iter_mut().for_each(RopeTable::forget);
    }

    /// Copies the outputs of a step to `out`.
    pub(super) fn outputs(&self, f: StepContext<'_>, out: &mut Vec<Output>) {
        out.resize_with(f.model.graph.outputs.len(), Output::default);
        for (i, (o, (_, v))) in out.iter_mut().zip(&f.model.graph.outputs).enumerate() {
            if f.model.residual == Some(i) {
                self.residual(f, *v, o);
            } else {
                self.output(f, *v, o);
            }
        }
    }

    /// What the last layer left of the rows whose hidden states are wanted.
    fn residual(&self, f: StepContext<'_>, v: ValueId, out: &mut Output) {
        let (cols, rows) = (f.place(v).cols, f.step.hidden);
        (out.rows, out.cols) = (rows.len(), cols);
        out.u32.clear();
        out.f32.clear();
        rows.iter().for_each(|r| out.f32.extend_from_slice(&self.floats_of(f, v)[r * cols..(r + 1) * cols]));
    }

    fn output(&self, f: StepContext<'_>, v: ValueId, out: &mut Output) {
        let place = f.place(v);
        (out.rows, out.cols) = (f.rows(place.rows), place.cols);
        out.f32.clear();
        out.u32.clear();
        if place.rows == Rows::Tokens && !f.step.trace {
            out.rows = 0;
            return;
        }
        if f.model.layout.buffers[place.buffer].ids {
            out.u32.extend_from_slice(self.ids_of(f, v));
        } else {
            out.f32.extend_from_slice(self.floats_of(f, v));
        }
    }

    fn floats_of(&self, f: StepContext<'_>, v: ValueId) -> &[f32] {
        let p = f.place(v);
        &self.floats[p.buffer][..f.rows(p.rows) * p.cols]
    }

    fn ids_of(&self, f: StepContext<'_>, v: ValueId) -> &[u32] {
        let p = f.place(v);
        &self.ids[p.buffer][..f.rows(p.rows) * p.cols]
    }

    /// Fills a value with rows that lie `stride` words apart; `None` where they do not suffice.
    pub(super) fn put(&mut self, f: StepContext<'_>, v: ValueId, words: &[u32], stride: usize) -> Option<()> {
        let place = f.place(v);
        let rows = f.rows(place.rows);
        for r in 0..rows {
            let (from, to) = (words.get(r * stride..r * stride + place.cols)?, r * place.cols..(r + 1) * place.cols);
            match f.model.layout.buffers[place.buffer].ids {
                true => self.ids[place.buffer].get_mut(to)?.copy_from_slice(from),
                false => self.floats[place.buffer].get_mut(to)?.copy_from_slice(bytemuck::cast_slice(from)),
            }
        }
        Some(())
    }

    /// Fills a value with zeros.
    pub(super) fn clear(&mut self, f: StepContext<'_>, v: ValueId) {
        let place = f.place(v);
        let len = f.rows(place.rows) * place.cols;
        self.floats[place.buffer][..len].fill(0.0);
    }

    /// Copies a value's rows to rows that lie `stride` numbers apart; `None` where there is no room.
    pub(super) fn copy_rows(&self, f: StepContext<'_>, v: ValueId, to: &mut [f32], stride: usize) -> Option<()> {
        let cols = f.place(v).cols;
        for (r, row) in self.floats_of(f, v).chunks_exact(cols.max(1)).enumerate() {
            to.get_mut(r * stride..r * stride + cols)?.copy_from_slice(row);
        }
        Some(())
    }

    fn env<'a>(&'a self, f: StepContext<'a>) -> Env<'a> {
        env(f, &self.scratch, &self.all_tokens)
    }

    /// Runs one node. Its output buffers are taken out of `self` meanwhile, so that inputs and outputs can be borrowed together.
    pub(super) fn run(&mut self, f: StepContext<'_>, node: &Node) -> Result<()> {
        let mut outs = take(&mut self.taken);
        for v in &node.outputs {
            let is_data = f.model.graph.ty(*v).dims().is_some();
            let numbers = is_data && !f.model.layout.buffers[f.place(*v).buffer].ids;
            outs.push(if numbers { take(&mut self.floats[f.place(*v).buffer]) } else { Aligned::default() });
        }
        let done = self.eval(f, node, &mut outs);
        for (v, out) in node.outputs.iter().zip(outs.drain(..)) {
            let is_data = f.model.graph.ty(*v).dims().is_some();
            if is_data && !f.model.layout.buffers[f.place(*v).buffer].ids {
                self.floats[f.place(*v).buffer] = out;
            }
            if self.acts_of.is_some_and(|(of, _)| is_data && f.place(of).buffer == f.place(*v).buffer && of != *v) {
                self.acts_of = None;
            }
        }
        self.taken = outs;
        done
    }

    fn eval(&mut self, f: StepContext<'_>, node: &Node, outs: &mut [Aligned<f32>]) -> Result<()> {
        let ins = &node.inputs;
        match &node.op {
            Op::Tokens => {
                let p = f.place(node.outputs[0]);
                self.ids[p.buffer][..f.step.tokens.len()].copy_from_slice(f.step.tokens);
            }
            Op::Input { name, cols } => outs[0][..f.step.tokens.len() * cols].copy_from_slice(input(f, name)?),
            Op::Embed { table, scale } => self.embed(f, ins[0], *table, *scale, &mut outs[0])?,
            Op::RmsNorm(n) => {
                let x = self.floats_of(f, ins[0]);
                norm_rows(self.env(f), f, x, n, f.place(ins[0]).cols, &mut outs[0])?;
            }
            Op::Linear(l) => self.linears(f, ins[0], None, std::slice::from_ref(l), outs, EpilogueValues::Nothing)?,
            Op::NormLinears { norm, parts } => {
                self.linears(f, ins[0], norm.as_ref(), parts, outs, EpilogueValues::Nothing)?;
            }
            Op::LinearAdd { linear, gated, factor } => {
                let add = EpilogueValues::Add { residual: ins[1], gate: gated.then(|| ins[2]), factor: *factor };
                self.linears(f, ins[0], None, std::slice::from_ref(linear), outs, add)?;
            }
            Op::LinearAct { linear, act } => {
                self.linears(f, ins[0], None, std::slice::from_ref(linear), outs, EpilogueValues::Act(*act))?;
            }
            Op::LinearGlu { gate, up, act } => {
                let t = f.rows_of(ins[0]);
                self.quantise(f, ins[0], &[*gate, *up])?;
                let x = Input { floats: self.floats_of(f, ins[0]), acts: &self.acts };
                matmul::linear_glu(self.env(f), x, t, f.weight(*gate), f.weight(*up), *act, &mut outs[0])?;
            }
            Op::Rope(r) => self.norm_and_rope(f, ins[0], None, r, false, &mut outs[0])?,
            Op::HeadIds { heads } => {
                let p = f.place(node.outputs[0]);
                let ids = &mut self.ids[p.buffer][..f.step.tokens.len() * heads];
                ids.iter_mut().enumerate().for_each(|(i, id)| *id = (i % heads) as u32);
            }
            Op::KvStore { cache } => self.store(f, ins[0], None, ins.get(1).copied(), cache.0)?,
            Op::RopeStore { .. } => self.rope_store(f, node, &mut outs[0])?,
            Op::Attend(a) => {
                let mut scratch = take(&mut self.attention);
                let job = attend::Job { a, sequences: &self.sequences, segments: f.segments };
                let done = job.run(self.env(f), self.floats_of(f, ins[0]), &mut scratch, &mut outs[0]);
                self.attention = scratch;
                done?;
            }
            Op::ShortConv(c) => self.recurrent(f, node, c.state, &mut outs[0], |env, input, state, out| {
                recurrent::short_conv(env, c, input(0), state, out)
            })?,
            Op::DeltaNet(d) => self.recurrent(f, node, d.state, &mut outs[0], |env, input, state, out| {
                recurrent::delta_net(env, d, [0, 1, 2].map(input), state, out)
            })?,
            Op::ScaleExpertInputs => {
                let (x, weights) = (self.floats_of(f, ins[0]), self.floats_of(f, ins[1]));
                let (n, k) = (f.place(ins[0]).cols, f.place(ins[1]).cols);
                each_output(self.env(f), x.len() / n, n, &mut outs[0], k * n, &|r, y| {
                    let row = &x[r * n..(r + 1) * n];
                    for (slot, w) in y.chunks_exact_mut(n).zip(&weights[r * k..(r + 1) * k]) {
                        slot.iter_mut().zip(row).for_each(|(y, x)| *y = w * x);
                    }
                })?;
                outs[1][..weights.len()].fill(1.0);
            }
            Op::Router(r) => self.route(f, node, r, outs, None)?,
            Op::NormRouter { norm, linear, router } => self.route(f, node, router, outs, Some((norm, linear)))?,
            Op::ExpertLinear(_) | Op::ExpertAct { .. } | Op::ExpertGlu { .. } | Op::ExpertDownAdd { .. } => {
                self.routed(f, node, outs)?;
            }
            Op::Add
            | Op::Scale(_)
            | Op::Glu(_)
            | Op::Act(_)
            | Op::SigmoidGate
            | Op::JoinHeads { .. }
            | Op::ExpertCombine
            | Op::Math(_)
            | Op::Grad(_)
            | Op::TakeOutputs => self.simple(f, node, &mut outs[0])?,
            Op::LocalIds { first, count } => self.local_ids(f, ins[0], node.outputs[0], *first, *count),
            Op::HostExperts { region, cols } => self.elsewhere(f, ins, *region as usize, &mut outs[0], *cols)?,
        }
        Ok(())
    }
}

impl State {
    /// Runs an op on a recurrent state: calls `work` for every segment with the segment's rows of each input, its sequence's
    /// state, and its rows of the output. The sequences leave `self` meanwhile, because their states are written while the
    /// inputs are read.
    fn recurrent(
        &mut self,
        f: StepContext<'_>,
        node: &Node,
        state: StateId,
        out: &mut [f32],
        work: impl Fn(Env<'_>, SegmentInput<'_, '_>, &mut [f32], &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let mut sequences = take(&mut self.sequences);
        let done = f.segments.iter().try_for_each(|s| {
            let state = &mut sequences[s.sequence].states[state.0 as usize];
            let input = |i: usize| s.of(self.floats_of(f, node.inputs[i]), f.place(node.inputs[i]).cols);
            work(self.env(f), &input, state, s.of_mut(out, f.place(node.outputs[0]).cols))
        });
        self.sequences = sequences;
        done
    }
}

fn env<'a>(f: StepContext<'a>, scratch: &'a ScratchPool, all_tokens: &'a [u32]) -> Env<'a> {
    let m = f.model;
    Env { pool: &m.pool, simd_level: m.simd_level, scratch, weights: &m.weights, vectors: &m.vectors, all_tokens }
}

/// The f32 values of a named input, whose number was checked when the step began.
fn input<'a>(f: StepContext<'a>, name: &str) -> Result<&'a [f32]> {
    let found = f.step.inputs.iter().find(|(n, _)| n == name);
    found.map(|(_, data)| &data[..]).ok_or_else(|| Error::Invalid(format!("input {name} is missing")))
}
