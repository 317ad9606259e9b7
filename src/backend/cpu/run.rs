//! A step: the nodes of the fused graph in order, each on buffers that exist before the first token.

mod linears;
mod positions;
mod routed;
mod simple;

use super::{
    Model,
    act::Acts,
    attend::attend,
    buffer::{Aligned, Out},
    cache::Cache,
    experts::{self, Groups, Matrices, Reads},
    layout::Place,
    products::{self, Env, Finish, each_output, each_row},
    recurrent,
    route::choose,
    rows::{Act, AddScaled, Glu, LayerNorm, NormInPlace, RmsNorm, RopeTable},
    weight::{Input, Scratches, Weight, room},
};
use crate::{
    backend::{
        KernelTime, Output, Runner, RunnerOptions, Step, check_cache_memory, check_step,
        state::{Move, Standing},
    },
    error::{Error, Result},
    ir::{Activation, Linear, Node, Norm, NormKind, Op, Rope, Router, Rows, ValueId, WeightId},
    ops::{elementwise::sigmoid, linear::Activations},
};
use linears::norm_rows;
use std::{
    mem::take,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// The state of one sequence.
pub struct CpuRunner {
    pub(super) model: Arc<Model>,
    pub(super) options: RunnerOptions,
    pub(super) state: State,
    pub(super) standing: Standing,
}

/// All memory of a runner.
pub(super) struct State {
    numbers: Vec<Aligned<f32>>,
    ids: Vec<Vec<u32>>,
    pub(super) caches: Vec<Cache>,
    /// Recurrent states, and the copy that `keep_states` made.
    states: Vec<Aligned<f32>>,
    kept: Vec<Aligned<f32>>,
    ropes: Vec<RopeTable>,
    scratch: Scratches,
    every: Vec<u32>,
    acts: Acts,
    /// The value whose numbers are in `acts`, and the length of their rows.
    acts_of: Option<(ValueId, usize)>,
    normed: Aligned<f32>,
    logits: Vec<f32>,
    pub(super) groups: Groups,
    partial: Vec<f32>,
    /// Output buffers of the node that runs, out of `numbers` meanwhile.
    taken: Vec<Aligned<f32>>,
}

/// What follows a product.
#[derive(Clone, Copy)]
enum Then {
    /// Nothing.
    Nothing,
    /// An activation.
    Act(Activation),
    /// A factor, a sigmoid gate, a residual.
    Add { residual: ValueId, gate: Option<ValueId>, factor: f32 },
}

/// What is the same for all nodes of a step.
#[derive(Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) model: &'a Model,
    pub(super) step: Step<'a>,
}

impl CpuRunner {
    /// Allocates.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a context or chunk of 0; [`Error::Device`] where a cache is too large to address.
    pub fn new(model: Arc<Model>, options: RunnerOptions) -> Result<Self> {
        check_cache_memory(&model.graph, &options, options.kv)?;
        let chunk = options.chunk.min(options.ctx);
        let rows = |r: Rows| if r == Rows::Tokens { chunk } else { 1 };
        let (mut numbers, mut ids) = (vec![], vec![]);
        for b in &model.layout.buffers {
            let len = rows(b.rows).saturating_mul(b.cols);
            numbers.push(Aligned::zeroed(if b.ids { 0 } else { len }));
            ids.push(if b.ids { vec![0; len] } else { vec![] });
        }
        let mut caches = vec![];
        for d in &model.graph.caches {
            let too_large = || Error::Device(format!("a context of {} positions of {d:?} is too large", options.ctx));
            caches.push(Cache::new(d, options.ctx, options.kv).ok_or_else(too_large)?);
        }
        let mut ropes: Vec<RopeTable> = vec![];
        for node in &model.graph.nodes {
            if let Op::Rope(r) | Op::RopeStore { rope: r, .. } = &node.op
                && !ropes.iter().any(|t| t.is_of(r))
            {
                ropes.push(RopeTable::new(r, chunk, options.ctx));
            }
        }
        let state = State {
            numbers,
            ids,
            caches,
            states: states(&model.graph),
            kept: states(&model.graph),
            ropes,
            scratch: Scratches::new(model.pool.threads()),
            every: (0..chunk as u32).collect(),
            acts: Acts::default(),
            acts_of: None,
            normed: Aligned::default(),
            logits: vec![],
            groups: Groups::default(),
            partial: vec![],
            taken: vec![],
        };
        let standing = Standing::new(&model.graph);
        Ok(CpuRunner { model, options, state, standing })
    }
}

impl Runner for CpuRunner {
    fn step(&mut self, step: Step<'_>, out: &mut Vec<Output>) -> Result<()> {
        check_step(&step, &self.options)?;
        let model = self.model.clone();
        let frame = Frame { model: &model, step };
        match self.standing.begin(step.past)? {
            Move::Stay => {}
            Move::Clear => self.state.states.iter_mut().for_each(|s| s.fill(0.0)),
            Move::Restore => copy_states(&self.state.kept, &mut self.state.states),
        }
        self.state.begin(frame);
        for node in &model.graph.nodes {
            self.state.run(frame, node)?;
        }
        out.resize_with(model.graph.outputs.len(), Output::default);
        for (o, (_, v)) in out.iter_mut().zip(&model.graph.outputs) {
            self.state.output(frame, *v, o);
        }
        self.standing.done(step.past + step.tokens.len());
        Ok(())
    }

    fn resume_at(&self, past: usize) -> usize {
        self.standing.resume_at(past)
    }

    fn keep_states(&mut self) -> Result<()> {
        if self.standing.keep() {
            copy_states(&self.state.states, &mut self.state.kept);
        }
        Ok(())
    }

    fn profile(&mut self, step: Step<'_>) -> Result<Option<Vec<KernelTime>>> {
        self.profile_step(step).map(Some)
    }

    fn memory_bytes(&self) -> u64 {
        let s = &self.state;
        let caches: u64 = s.caches.iter().map(Cache::bytes).sum();
        let numbers: u64 = s.numbers.iter().chain(&s.states).chain(&s.kept).map(Aligned::bytes).sum();
        let ids: u64 = s.ids.iter().map(|v| 4 * v.capacity() as u64).sum();
        let ropes: u64 = s.ropes.iter().map(RopeTable::bytes).sum();
        let small = 4 * (s.every.capacity() + s.logits.capacity() + s.partial.capacity()) as u64;
        caches
            + numbers
            + ids
            + ropes
            + small
            + s.scratch.bytes()
            + s.acts.bytes()
            + s.normed.bytes()
            + s.groups.bytes()
    }
}

impl Frame<'_> {
    fn rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.step.tokens.len(),
            Rows::Outputs => self.step.outputs,
        }
    }

    fn place(&self, v: ValueId) -> Place {
        self.model.layout.places[v.0 as usize]
    }

    /// Rows of a value in this step.
    pub(super) fn rows_of(&self, v: ValueId) -> usize {
        self.rows(self.place(v).rows)
    }

    /// How a value meets quantised weights.
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
    /// Prepares for a step: buffers of outputs grow to the rows asked for.
    pub(super) fn begin(&mut self, f: Frame<'_>) {
        for (i, b) in f.model.layout.buffers.iter().enumerate() {
            let len = f.rows(b.rows).saturating_mul(b.cols);
            if !b.ids {
                self.numbers[i].grow(len);
            } else if self.ids[i].len() < len {
                self.ids[i].resize(len, 0);
            }
        }
        self.acts_of = None;
    }

    fn output(&self, f: Frame<'_>, v: ValueId, out: &mut Output) {
        let place = f.place(v);
        (out.rows, out.cols) = (f.rows(place.rows), place.cols);
        out.f32.clear();
        out.u32.clear();
        if f.model.layout.buffers[place.buffer].ids {
            out.u32.extend_from_slice(self.ids_of(f, v));
        } else {
            out.f32.extend_from_slice(self.numbers_of(f, v));
        }
    }

    fn numbers_of(&self, f: Frame<'_>, v: ValueId) -> &[f32] {
        let p = f.place(v);
        &self.numbers[p.buffer][..f.rows(p.rows) * p.cols]
    }

    fn ids_of(&self, f: Frame<'_>, v: ValueId) -> &[u32] {
        let p = f.place(v);
        &self.ids[p.buffer][..f.rows(p.rows) * p.cols]
    }

    fn env<'a>(&'a self, f: Frame<'a>) -> Env<'a> {
        env(f, &self.scratch, &self.every)
    }

    /// Runs one node: takes its output buffers out, so that inputs and outputs can be borrowed side by side.
    pub(super) fn run(&mut self, f: Frame<'_>, node: &Node) -> Result<()> {
        let mut outs = take(&mut self.taken);
        for v in &node.outputs {
            let is_data = f.model.graph.ty(*v).dims().is_some();
            let numbers = is_data && !f.model.layout.buffers[f.place(*v).buffer].ids;
            outs.push(if numbers { take(&mut self.numbers[f.place(*v).buffer]) } else { Aligned::default() });
        }
        let done = self.eval(f, node, &mut outs);
        for (v, out) in node.outputs.iter().zip(outs.drain(..)) {
            let is_data = f.model.graph.ty(*v).dims().is_some();
            if is_data && !f.model.layout.buffers[f.place(*v).buffer].ids {
                self.numbers[f.place(*v).buffer] = out;
            }
            if self.acts_of.is_some_and(|(of, _)| is_data && f.place(of).buffer == f.place(*v).buffer && of != *v) {
                self.acts_of = None;
            }
        }
        self.taken = outs;
        done
    }

    fn eval(&mut self, f: Frame<'_>, node: &Node, outs: &mut [Aligned<f32>]) -> Result<()> {
        let ins = &node.inputs;
        match &node.op {
            Op::Tokens => {
                let p = f.place(node.outputs[0]);
                self.ids[p.buffer][..f.step.tokens.len()].copy_from_slice(f.step.tokens);
            }
            Op::Input { name, cols } => outs[0][..f.step.tokens.len() * cols].copy_from_slice(input(f, name, *cols)?),
            Op::Embed { table, scale } => self.embed(f, ins[0], *table, *scale, &mut outs[0])?,
            Op::RmsNorm(n) => {
                let x = self.numbers_of(f, ins[0]);
                norm_rows(self.env(f), f, x, n, f.place(ins[0]).cols, &mut outs[0])?;
            }
            Op::Linear(l) => self.linears(f, ins[0], None, std::slice::from_ref(l), outs, Then::Nothing)?,
            Op::NormLinears { norm, parts } => {
                self.linears(f, ins[0], norm.as_ref(), parts, outs, Then::Nothing)?;
            }
            Op::LinearAdd { linear, gated, factor } => {
                let add = Then::Add { residual: ins[1], gate: gated.then(|| ins[2]), factor: *factor };
                self.linears(f, ins[0], None, std::slice::from_ref(linear), outs, add)?;
            }
            Op::LinearAct { linear, act } => {
                self.linears(f, ins[0], None, std::slice::from_ref(linear), outs, Then::Act(*act))?;
            }
            Op::LinearGlu { gate, up, act } => {
                let t = f.rows_of(ins[0]);
                self.quantise(f, ins[0], &[*gate, *up])?;
                let x = Input { floats: self.numbers_of(f, ins[0]), acts: &self.acts };
                products::linear_glu(self.env(f), x, t, f.weight(*gate), f.weight(*up), *act, &mut outs[0])?;
            }
            Op::Rope(r) => self.turn(f, ins[0], None, r, false, &mut outs[0])?,
            Op::HeadIds { heads } => {
                let p = f.place(node.outputs[0]);
                let ids = &mut self.ids[p.buffer][..f.step.tokens.len() * heads];
                ids.iter_mut().enumerate().for_each(|(i, id)| *id = (i % heads) as u32);
            }
            Op::KvStore { cache } => self.store(f, ins[0], None, ins.get(1).copied(), cache.0)?,
            Op::RopeStore { .. } => self.rope_store(f, node, &mut outs[0])?,
            Op::Attend(a) => {
                let mut partial = take(&mut self.partial);
                let (q, t) = (self.numbers_of(f, ins[0]), f.rows_of(ins[0]));
                let cache = &self.caches[a.cache.0 as usize];
                let done = attend(self.env(f), a, cache, q, t, f.step.past, &mut partial, &mut outs[0]);
                self.partial = partial;
                done?;
            }
            Op::ShortConv(_) | Op::DeltaNet(_) => self.recurrent(f, node, &mut outs[0])?,
            Op::WeighInputs => {
                let (x, weights) = (self.numbers_of(f, ins[0]), self.numbers_of(f, ins[1]));
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
            op if op.is_routed() => self.routed(f, node, outs)?,
            _ => self.simple(f, node, &mut outs[0])?,
        }
        Ok(())
    }
}

impl State {
    /// The ops on recurrent states, which leave their place while they are written.
    fn recurrent(&mut self, f: Frame<'_>, node: &Node, out: &mut [f32]) -> Result<()> {
        let at = match &node.op {
            Op::ShortConv(c) => c.state.0 as usize,
            Op::DeltaNet(d) => d.state.0 as usize,
            op => return Err(Error::Graph(format!("{} has no state", op.name()))),
        };
        let mut state = take(&mut self.states[at]);
        let input = |i: usize| self.numbers_of(f, node.inputs[i]);
        let done = match &node.op {
            Op::ShortConv(c) => recurrent::short_conv(self.env(f), c, input(0), &mut state, out),
            Op::DeltaNet(d) => recurrent::delta_net(self.env(f), d, [0, 1, 2].map(input), &mut state, out),
            _ => Ok(()),
        };
        self.states[at] = state;
        done
    }
}

fn states(graph: &crate::ir::Graph) -> Vec<Aligned<f32>> {
    graph.states.iter().map(|s| Aligned::zeroed(s.len)).collect()
}

fn copy_states(from: &[Aligned<f32>], to: &mut [Aligned<f32>]) {
    from.iter().zip(to).for_each(|(a, b)| b.copy_from_slice(a));
}

fn env<'a>(f: Frame<'a>, scratch: &'a Scratches, every: &'a [u32]) -> Env<'a> {
    let m = f.model;
    Env { pool: &m.pool, tier: m.tier, scratch, weights: &m.weights, vectors: &m.vectors, every }
}

/// The numbers of a named input.
fn input<'a>(f: Frame<'a>, name: &str, cols: usize) -> Result<&'a [f32]> {
    let rows = f.step.tokens.len();
    match f.step.inputs.iter().find(|(n, _)| *n == name) {
        Some((_, data)) if data.len() == rows * cols => Ok(data),
        Some((_, data)) => Err(Error::Invalid(format!("input {name}: {} numbers for [{rows}, {cols}]", data.len()))),
        None => Err(Error::Invalid(format!("input {name} is missing"))),
    }
}
