//! Steps on the reference: the sequences of a step one after the other, each through all nodes.

use super::{Scope, Value};
use crate::{
    backend::{
        Output, Program, check_cache_memory,
        runner::{
            Budget, Executor, ExecutorStep, ExpertSlotUse, PAGE, Results, RunnerOptions, StateCopy, StateMove, Status,
            Token, find_input,
        },
    },
    error::{Error, Result},
    ir::{CacheDecl, Graph, Op, RESIDUAL, Rows, Type, ValueId},
    ops::{Array, attend, linear::Activations},
    quant::KvType,
};
use std::ops::Range;

/// See [`Executor`].
pub(super) struct ReferenceExecutor {
    program: Program,
    activations: Activations,
    options: RunnerOptions,
    sequences: Vec<Sequence>,
    step: Option<BegunStep>,
}

/// The memory of a sequence.
struct Sequence {
    caches: Vec<attend::Cache>,
    states: Vec<Vec<f32>>,
    snapshot: Vec<Vec<f32>>,
}

/// The rows of one sequence in a step.
#[derive(Debug)]
pub(super) struct Part {
    sequence: usize,
    /// Which rows of the step they are.
    rows: Vec<usize>,
    pub tokens: Vec<u32>,
    /// Position of the first.
    pub past: usize,
    /// How many of the last have outputs.
    pub outputs: usize,
    pub inputs: Vec<(String, Vec<f32>)>,
    /// The results: the graph's outputs.
    results: Vec<Value>,
}

struct BegunStep {
    parts: Vec<Part>,
    moves: Vec<(usize, StateMove)>,
    tokens: usize,
    outputs: usize,
    trace: bool,
    /// The rows whose hidden states are wanted, in order.
    hidden: Vec<usize>,
    /// The part and the node that come next.
    next: (usize, usize),
    /// Whether any of it has run.
    started: bool,
    values: Vec<Value>,
}

impl ReferenceExecutor {
    /// Allocates.
    ///
    /// # Errors
    /// As [`check_cache_memory`].
    pub fn new(program: Program, activations: Activations, options: RunnerOptions) -> Result<Self> {
        let g = &program.graph;
        check_cache_memory(g, &options, KvType::F32)?;
        let cache = |d: &CacheDecl| attend::Cache {
            k: Array::zeros(options.ctx, d.kv_heads * d.k_dim),
            v: Array::zeros(options.ctx, d.kv_heads * d.stored_v_dim()),
        };
        let states: Vec<Vec<f32>> = g.states.iter().map(|s| vec![0.0; s.len]).collect();
        let sequence = || Sequence {
            caches: g.caches.iter().map(cache).collect(),
            states: states.clone(),
            snapshot: states.clone(),
        };
        let sequences = std::iter::repeat_with(sequence).take(options.sequences).collect();
        Ok(ReferenceExecutor { program, activations, options, sequences, step: None })
    }

    /// The rows of a step by sequence.
    fn parts(&self, step: &ExecutorStep<'_>) -> Result<Vec<Part>> {
        let mut parts: Vec<Part> = vec![];
        for (i, row) in step.rows.iter().enumerate() {
            let at = parts.iter().position(|p| p.sequence == row.sequence).unwrap_or_else(|| {
                let (sequence, past) = (row.sequence, row.position);
                let (rows, tokens, inputs, results) = Default::default();
                parts.push(Part { sequence, rows, tokens, past, outputs: 0, inputs, results });
                parts.len() - 1
            });
            let Token::Id(id) = row.token else {
                return Err(Error::Invalid("the reference is told which tokens it is fed".into()));
            };
            parts[at].rows.push(i);
            parts[at].tokens.push(id);
            parts[at].outputs += usize::from(i >= step.rows.len() - step.outputs);
        }
        for node in &self.program.graph.nodes {
            let Op::Input { name, cols } = &node.op else { continue };
            let data = find_input(step.inputs, name, step.rows.len(), *cols)?;
            for part in &mut parts {
                let rows = part.rows.iter().flat_map(|r| &data[r * cols..(r + 1) * cols]);
                part.inputs.push((name.clone(), rows.copied().collect()));
            }
        }
        Ok(parts)
    }
}

impl BegunStep {
    /// Runs the node that comes next.
    fn run_node(&mut self, e: (&Program, Activations, &RunnerOptions), sequences: &mut [Sequence]) -> Result<()> {
        let (program, activations, options) = e;
        let (graph, (at, node)) = (&program.graph, self.next);
        self.started = true;
        let part = &self.parts[at];
        let s = &mut sequences[part.sequence];
        if node == 0 {
            self.values = vec![Value::Nothing; graph.values.len()];
            match self.moves.iter().find(|m| m.0 == part.sequence) {
                Some((_, StateMove::Clear)) => s.states.iter_mut().for_each(|s| s.fill(0.0)),
                Some((_, StateMove::Restore)) => s.states.clone_from(&s.snapshot),
                None => {}
            }
        }
        let (caches, states) = (&mut s.caches[..], &mut s.states[..]);
        let (ctx, kv) = (options.ctx, options.kv);
        let mut scope = Scope { program, activations, ctx, kv, part, caches, states };
        let node_made = &graph.nodes[node];
        let made = scope.eval(node_made, &self.values)?;
        for (v, x) in node_made.outputs.iter().zip(made) {
            self.values[v.0 as usize] = x;
        }
        self.next = (at, node + 1);
        if node + 1 == graph.nodes.len() {
            let results = graph.outputs.iter().map(|(_, v)| self.values[v.0 as usize].clone()).collect();
            self.parts[at].results = results;
            self.next = (at + 1, 0);
        }
        Ok(())
    }

    /// An output of all sequences, in the order of the step's rows.
    fn output(&self, graph: &Graph, i: usize, v: ValueId) -> Output {
        let (of_tokens, cols) = match graph.ty(v) {
            Type::F32(rows, cols) | Type::U32(rows, cols) => (rows == Rows::Tokens, cols),
            Type::Cache(_) | Type::Grad(_) => return Output::default(),
        };
        let is_residual = graph.outputs[i].0 == RESIDUAL;
        let given = if is_residual { !self.hidden.is_empty() } else { self.trace };
        if of_tokens && !given {
            return Output { cols, ..Output::default() };
        }
        // Rows of the step before the first that has this output.
        let skipped = if of_tokens { 0 } else { self.tokens - self.outputs };
        let mut out = Output { rows: self.tokens - skipped, cols, ..Output::default() };
        for part in &self.parts {
            let rows = part.rows.iter().filter(|r| **r >= skipped).map(|r| r - skipped);
            match &part.results[i] {
                Value::Numbers(a) => scatter(&a.data, rows, cols, out.rows, &mut out.f32),
                Value::Ids(ids) => scatter(ids, rows, cols, out.rows, &mut out.u32),
                Value::Nothing => {}
            }
        }
        if is_residual {
            out.f32 = self.hidden.iter().flat_map(|r| &out.f32[r * cols..(r + 1) * cols]).copied().collect();
            out.rows = self.hidden.len();
        }
        out
    }
}

/// Copies rows of `from` to where they belong among `all` rows of `to`.
fn scatter<T: Copy + Default>(from: &[T], rows: impl Iterator<Item = usize>, cols: usize, all: usize, to: &mut Vec<T>) {
    to.resize(all * cols, T::default());
    for (from, row) in from.chunks(cols.max(1)).zip(rows) {
        to[row * cols..(row + 1) * cols].copy_from_slice(from);
    }
}

impl Executor for ReferenceExecutor {
    fn begin(&mut self, step: &ExecutorStep<'_>) -> Result<()> {
        if self.step.is_some() {
            return Err(Error::Invalid("a step is begun before the last is done".into()));
        }
        let (parts, moves) = (self.parts(step)?, step.moves.to_vec());
        let (tokens, outputs, trace) = (step.rows.len(), step.outputs, step.trace);
        let hidden = (0..tokens).filter(|i| step.rows[*i].hidden).collect();
        self.step = Some(BegunStep {
            parts,
            moves,
            tokens,
            outputs,
            trace,
            hidden,
            next: (0, 0),
            started: false,
            values: vec![],
        });
        Ok(())
    }

    fn poll(&mut self, budget: Budget, out: &mut Results) -> Result<Status> {
        let Some(step) = &mut self.step else { return Ok(Status::Idle) };
        let clock = std::time::Instant::now();
        let mut done = 0;
        while step.next.0 < step.parts.len() {
            if done >= budget.dispatches.max(1) || (done > 0 && clock.elapsed().as_micros() >= budget.micros.into()) {
                return Ok(Status::Pending);
            }
            step.run_node((&self.program, self.activations, &self.options), &mut self.sequences)?;
            done += 1;
        }
        let graph = &self.program.graph;
        out.outputs.clear();
        out.outputs.extend(graph.outputs.iter().enumerate().map(|(i, (_, v))| step.output(graph, i, *v)));
        out.tokens.clear();
        self.step = None;
        Ok(Status::Done)
    }

    fn cancel(&mut self) -> usize {
        usize::from(self.step.take().is_some_and(|s| s.started))
    }

    fn copy_prefix(&mut self, from: usize, to: usize, positions: usize) -> Result<()> {
        let mut bytes = vec![];
        self.read_sequence(from, 0..positions, None, &mut bytes)?;
        self.write_sequence(to, 0..positions, false, &bytes)
    }

    fn copy_states(&mut self, from: StateCopy, to: StateCopy) -> Result<()> {
        let s = &self.sequences[from.sequence];
        let states = if from.snapshot { s.snapshot.clone() } else { s.states.clone() };
        let s = &mut self.sequences[to.sequence];
        *(if to.snapshot { &mut s.snapshot } else { &mut s.states }) = states;
        Ok(())
    }

    fn layout(&self) -> &'static str {
        "reference 1"
    }

    fn sequence_bytes(&self, positions: usize, states: bool) -> usize {
        let s = &self.sequences[0];
        let caches: usize = s.caches.iter().map(|c| positions * (c.k.cols + c.v.cols)).sum();
        let states: usize = if states { s.states.iter().map(Vec::len).sum() } else { 0 };
        4 * (caches + states)
    }

    fn page_parts(&mut self) -> Vec<usize> {
        let caches = self.sequences[0].caches.iter();
        caches.flat_map(|c| [c.k.cols, c.v.cols]).map(|cols| size_of::<f32>() * PAGE * cols).collect()
    }

    fn read_sequence(
        &mut self,
        sequence: usize,
        positions: Range<usize>,
        states: Option<StateCopy>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        for cache in &self.sequences[sequence].caches {
            for a in [&cache.k, &cache.v] {
                out.extend_from_slice(bytemuck::cast_slice(&a.data[positions.start * a.cols..positions.end * a.cols]));
            }
        }
        if let Some(copy) = states {
            let s = &self.sequences[copy.sequence];
            let states = if copy.snapshot { &s.snapshot } else { &s.states };
            states.iter().for_each(|s| out.extend_from_slice(bytemuck::cast_slice(s)));
        }
        Ok(())
    }

    fn write_sequence(
        &mut self,
        sequence: usize,
        positions: Range<usize>,
        states: bool,
        mut bytes: &[u8],
    ) -> Result<()> {
        let mut next = |to: &mut [f32]| {
            let (front, rest) = bytes.split_at(4 * to.len());
            bytemuck::cast_slice_mut(to).copy_from_slice(front);
            bytes = rest;
        };
        let s = &mut self.sequences[sequence];
        for cache in &mut s.caches {
            for a in [&mut cache.k, &mut cache.v] {
                next(&mut a.data[positions.start * a.cols..positions.end * a.cols]);
            }
        }
        if states {
            s.states.iter_mut().for_each(|s| next(s));
        }
        Ok(())
    }

    fn expert_slots(&mut self) -> Result<Vec<ExpertSlotUse>> {
        // All experts are in one memory here.
        Ok(vec![])
    }

    fn memory_bytes(&self) -> u64 {
        let floats = |s: &Sequence| -> usize {
            let caches: usize = s.caches.iter().map(|c| c.k.data.len() + c.v.data.len()).sum();
            caches + s.states.iter().map(|s| 2 * s.len()).sum::<usize>()
        };
        4 * self.sequences.iter().map(floats).sum::<usize>() as u64
    }
}
