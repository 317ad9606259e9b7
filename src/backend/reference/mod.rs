//! The oracle: walks the graph as it stands and evaluates every op's reference code. Slow and obvious.
//!
//! Weights are dequantised a row at a time; sums are in f64. Fused ops are evaluated as the primitives that they stand for.
//!
//! Deliberately absent: SIMD, threads, unsafe, the memory planner.

use super::{
    KvType, Loaded, Output, Program, Runner, RunnerOptions, Step, check_cache_memory, check_step,
    state::{Move, Standing},
};
use crate::{
    error::{Error, Result},
    ir::{Graph, Linear, Node, Norm, Op, Rope, Rows, Type, ValueId, WeightId},
    ops::{
        Array, Weights, attend, delta_net, elementwise, embed, experts, heads,
        linear::{self, Activations},
        rms_norm, rope, router, short_conv,
    },
};

/// Makes the reference backend of a program.
///
/// # Errors
/// None today; a result for symmetry with the other backends.
pub fn load(program: Program) -> Result<Box<dyn Loaded>> {
    load_with(program, Activations::F32)
}

/// The same with a choice of how activations meet quantised weights: the oracle of backends that round them.
///
/// # Errors
/// As [`load`].
pub fn load_with(program: Program, activations: Activations) -> Result<Box<dyn Loaded>> {
    Ok(Box::new(Reference { program, activations }))
}

struct Reference {
    program: Program,
    activations: Activations,
}

impl Loaded for Reference {
    fn describe(&self) -> String {
        "reference".into()
    }

    fn runner(&self, options: RunnerOptions) -> Result<Box<dyn Runner>> {
        check_cache_memory(&self.program.graph, &options, KvType::F32)?;
        let cache = |d: &crate::ir::CacheDecl| attend::Cache {
            k: Array::zeros(options.ctx, d.kv_heads * d.k_dim),
            v: Array::zeros(options.ctx, d.kv_heads * d.stored_v_dim()),
        };
        let caches = self.program.graph.caches.iter().map(cache).collect();
        let states: Vec<Vec<f32>> = self.program.graph.states.iter().map(|s| vec![0.0; s.len]).collect();
        let standing = Standing::new(&self.program.graph);
        let (program, activations, kept) = (self.program.clone(), self.activations, states.clone());
        Ok(Box::new(Walker { program, activations, options, caches, states, kept, standing }))
    }

    fn weight_bytes(&self) -> u64 {
        0
    }
}

struct Walker {
    program: Program,
    activations: Activations,
    options: RunnerOptions,
    caches: Vec<attend::Cache>,
    states: Vec<Vec<f32>>,
    /// What `keep_states` kept.
    kept: Vec<Vec<f32>>,
    standing: Standing,
}

/// A value while a step runs.
#[derive(Clone, Debug)]
enum Value {
    Numbers(Array),
    Ids(Vec<u32>),
    Nothing,
}

impl Runner for Walker {
    fn step(&mut self, step: Step<'_>, out: &mut Vec<Output>) -> Result<()> {
        check_step(&step, &self.options)?;
        match self.standing.begin(step.past)? {
            Move::Stay => {}
            Move::Clear => self.states.iter_mut().for_each(|s| s.fill(0.0)),
            Move::Restore => self.states.clone_from(&self.kept),
        }
        let program = self.program.clone();
        let graph = &program.graph;
        let mut values = vec![Value::Nothing; graph.values.len()];
        for node in &graph.nodes {
            let made = self.eval(node, &values, &step)?;
            for (v, x) in node.outputs.iter().zip(made) {
                values[v.0 as usize] = x;
            }
        }
        out.clear();
        out.extend(graph.outputs.iter().map(|(_, v)| output(graph, *v, &values, &step)));
        self.standing.done(step.past + step.tokens.len());
        Ok(())
    }

    fn resume_at(&self, past: usize) -> usize {
        self.standing.resume_at(past)
    }

    fn keep_states(&mut self) -> Result<()> {
        if self.standing.keep() {
            self.kept.clone_from(&self.states);
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        let caches: usize = self.caches.iter().map(|c| c.k.data.len() + c.v.data.len()).sum();
        let states: usize = self.states.iter().map(|s| 2 * s.len()).sum();
        4 * (caches + states) as u64
    }
}

fn output(graph: &Graph, v: ValueId, values: &[Value], step: &Step<'_>) -> Output {
    let (rows, cols) = match graph.ty(v) {
        Type::F32(Rows::Outputs, c) | Type::U32(Rows::Outputs, c) => (step.outputs, c),
        Type::F32(Rows::Tokens, c) | Type::U32(Rows::Tokens, c) => (step.tokens.len(), c),
        Type::Cache(_) => (0, 0),
    };
    match values[v.0 as usize].clone() {
        Value::Numbers(a) => Output { rows, cols, f32: a.data, u32: vec![] },
        Value::Ids(ids) => Output { rows, cols, f32: vec![], u32: ids },
        Value::Nothing => Output { rows, cols, ..Output::default() },
    }
}

impl Walker {
    fn eval(&mut self, node: &Node, values: &[Value], step: &Step<'_>) -> Result<Vec<Value>> {
        let program = self.program.clone();
        let rows = program.graph.ty(node.outputs[0]).dims().map_or(Rows::Tokens, |(rows, _)| rows);
        let w = Weights { tensors: &program.weights, activations: self.activations.of(rows) };
        // `graph::check` has made sure that operands are what the op wants.
        let nums = |i: usize| match &values[node.inputs[i].0 as usize] {
            Value::Numbers(a) => a,
            Value::Ids(_) | Value::Nothing => unreachable!("checked graph"),
        };
        let ids = |i: usize| match &values[node.inputs[i].0 as usize] {
            Value::Ids(a) => a.as_slice(),
            Value::Numbers(_) | Value::Nothing => unreachable!("checked graph"),
        };
        let plain = |x: &Array, weight: WeightId| linear::eval(x, &Linear { weight, bias: None }, w);
        let made = match &node.op {
            Op::Tokens => return Ok(vec![Value::Ids(step.tokens.to_vec())]),
            Op::Input { name, cols } => input(step, name, *cols)?,
            Op::Embed { table, scale } => {
                let vocab = w.tensor(*table).rows();
                check_ids(ids(0), vocab)?;
                embed::eval(ids(0), *table, *scale, w)
            }
            Op::RmsNorm(n) => rms_norm::eval(nums(0), n, w),
            Op::Linear(l) => linear::eval(nums(0), l, w),
            Op::Rope(r) => rope::eval(nums(0), &r.for_context(self.options.ctx), step.past),
            Op::HeadIds { heads: n } => return Ok(vec![Value::Ids(heads::eval_ids(step.tokens.len(), *n))]),
            Op::JoinHeads { heads: n } => heads::eval_join(nums(0), nums(1), *n),
            Op::KvStore { cache } => {
                let v = (node.inputs.len() > 1).then(|| nums(1));
                self.store(nums(0), v, cache.0, step);
                return Ok(vec![Value::Nothing]);
            }
            Op::Attend(a) => {
                let i = a.cache.0 as usize;
                attend::eval(nums(0), a, step.past, &program.graph.caches[i], &self.caches[i], w)
            }
            Op::ShortConv(c) => short_conv::eval(nums(0), c, &mut self.states[c.state.0 as usize], w),
            Op::DeltaNet(d) => delta_net::eval(nums(0), nums(1), nums(2), d, &mut self.states[d.state.0 as usize], w),
            Op::Add => elementwise::add(nums(0), nums(1)),
            Op::Scale(f) => elementwise::scale(nums(0), *f),
            Op::Glu(act) => elementwise::glu(nums(0), nums(1), *act),
            Op::Act(act) => elementwise::act(nums(0), *act),
            Op::SigmoidGate => elementwise::sigmoid_gate(nums(0), nums(1)),
            Op::Router(r) => return Ok(routed(nums(0), r, w).to_vec()),
            Op::WeighInputs => return Ok(experts::eval_weigh(nums(0), nums(1)).map(Value::Numbers).to_vec()),
            Op::ExpertLinear(l) => experts::eval_linear(nums(0), ids(1), l, w),
            Op::ExpertCombine => experts::eval_combine(nums(0), nums(1)),
            Op::TakeOutputs => elementwise::take_outputs(nums(0), step.outputs),
            Op::NormLinears { norm, parts } => {
                let x = normed(nums(0), norm.as_ref(), w);
                return Ok(parts.iter().map(|l| Value::Numbers(linear::eval(&x, l, w))).collect());
            }
            Op::RopeStore { q_norm, k_norm, rope, norm_last, cache } => {
                let rope = rope.for_context(self.options.ctx);
                let rotated =
                    |x: &Array, n: &Option<Norm>| norm_and_rope(x, n.as_ref(), &rope, *norm_last, step.past, w);
                let (q, k) = (rotated(nums(0), q_norm), rotated(nums(1), k_norm));
                self.store(&k, Some(nums(2)), cache.0, step);
                return Ok(vec![Value::Numbers(q), Value::Nothing]);
            }
            Op::LinearAdd { linear: l, gated, factor } => {
                let y = linear::eval(nums(0), l, w);
                let y = if *gated { elementwise::sigmoid_gate(&y, nums(2)) } else { y };
                elementwise::add(nums(1), &elementwise::scale(&y, *factor))
            }
            Op::LinearGlu { gate, up, act } => elementwise::glu(&plain(nums(0), *gate), &plain(nums(0), *up), *act),
            Op::NormRouter { norm, linear: l, router } => {
                let x = rms_norm::eval(nums(0), norm, w);
                let [ids, weights] = routed(&linear::eval(&x, l, w), router, w);
                return Ok(vec![Value::Numbers(x), ids, weights]);
            }
            Op::ExpertGlu { gate, up, act } => {
                let half = |l: &Linear| experts::eval_linear(nums(0), ids(1), l, w);
                elementwise::glu(&half(gate), &half(up), *act)
            }
            Op::LinearAct { linear: l, act } => elementwise::act(&linear::eval(nums(0), l, w), *act),
            Op::ExpertAct { linear: l, act } => elementwise::act(&experts::eval_linear(nums(0), ids(1), l, w), *act),
            Op::ExpertDownAdd { linear: l, factor } => {
                let y = experts::eval_combine(&experts::eval_linear(nums(0), ids(1), l, w), nums(2));
                elementwise::add(nums(3), &elementwise::scale(&y, *factor))
            }
        };
        Ok(vec![Value::Numbers(made)])
    }

    fn store(&mut self, k: &Array, v: Option<&Array>, cache: u32, step: &Step<'_>) {
        let decl = &self.program.graph.caches[cache as usize];
        let kv = self.options.kv;
        attend::eval_store(k, v, step.past, decl, &mut self.caches[cache as usize], |head| kv.round(head));
    }
}

fn routed(logits: &Array, r: &crate::ir::Router, w: Weights<'_>) -> [Value; 2] {
    let (ids, weights) = router::eval(logits, r, w);
    [Value::Ids(ids), Value::Numbers(weights)]
}

fn normed(x: &Array, n: Option<&Norm>, w: Weights<'_>) -> Array {
    n.map_or_else(|| x.clone(), |n| rms_norm::eval(x, n, w))
}

fn norm_and_rope(x: &Array, n: Option<&Norm>, r: &Rope, norm_last: bool, past: usize, w: Weights<'_>) -> Array {
    if norm_last { normed(&rope::eval(x, r, past), n, w) } else { rope::eval(&normed(x, n, w), r, past) }
}

fn input(step: &Step<'_>, name: &str, cols: usize) -> Result<Array> {
    let rows = step.tokens.len();
    match step.inputs.iter().find(|(n, _)| *n == name) {
        Some((_, data)) if data.len() == rows * cols => Ok(Array { rows, cols, data: data.to_vec() }),
        Some((_, data)) => Err(Error::Invalid(format!("input {name}: {} numbers for [{rows}, {cols}]", data.len()))),
        None => Err(Error::Invalid(format!("input {name} is missing"))),
    }
}

fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        Some(id) => Err(Error::Invalid(format!("token id {id} is not below the vocabulary's {vocab}"))),
        None => Ok(()),
    }
}
