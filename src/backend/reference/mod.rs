//! The oracle: walks the graph as it stands and evaluates every op's reference code. Slow and obvious.
//!
//! Weights are dequantised a row at a time; sums are in f64. Fused ops are evaluated as the primitives that they stand for.
//!
//! Deliberately absent: SIMD, threads, unsafe, the memory planner.

mod executor;
mod training;

use super::{
    Loaded, Program,
    runner::{Executor, RunnerOptions},
};
use crate::{
    error::{Error, Result},
    graph::inference_only,
    ir::{Linear, Node, Norm, Op, Rope, Rows, WeightId},
    ops::{
        Array, Weights, attend, delta_net, elementwise, embed, experts, heads,
        linear::{self, Activations},
        rms_norm, rope, router, short_conv,
    },
    quant::KvType,
};
use executor::{Part, ReferenceExecutor};
pub use training::{Precision, train};

/// Makes the reference backend of a program.
///
/// # Errors
/// [`Error::Unsupported`] for a graph of training.
pub fn load(program: Program) -> Result<Box<dyn Loaded>> {
    load_with(program, Activations::F32)
}

/// The same with a choice of how activations meet quantised weights: the oracle of backends that round them.
///
/// # Errors
/// As [`load`].
pub fn load_with(program: Program, activations: Activations) -> Result<Box<dyn Loaded>> {
    inference_only(&program.graph)?;
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

    fn program(&self) -> &Program {
        &self.program
    }

    fn executor(&self, options: RunnerOptions) -> Result<Box<dyn Executor>> {
        Ok(Box::new(ReferenceExecutor::new(self.program.clone(), self.activations, options)?))
    }

    fn weight_bytes(&self) -> u64 {
        0
    }
}

/// What evaluating a node needs beside the values before it.
struct Scope<'a> {
    program: &'a Program,
    activations: Activations,
    /// Positions of the context, on which rotations depend.
    ctx: usize,
    kv: KvType,
    /// The rows of one sequence.
    part: &'a Part,
    caches: &'a mut [attend::Cache],
    states: &'a mut [Vec<f32>],
}

/// A value while a step runs.
#[derive(Clone, Debug)]
enum Value {
    Numbers(Array),
    Ids(Vec<u32>),
    Nothing,
}

impl Scope<'_> {
    fn eval(&mut self, node: &Node, values: &[Value]) -> Result<Vec<Value>> {
        let (program, step) = (self.program, self.part);
        let rows = program.graph.ty(node.outputs[0]).dims().map_or(Rows::Tokens, |(rows, _)| rows);
        let w = Weights { tensors: &program.weights, activations: self.activations.of(rows), owned: &[] };
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
            Op::Rope(r) => rope::eval(nums(0), &r.for_context(self.ctx), step.past),
            Op::HeadIds { heads: n } => return Ok(vec![Value::Ids(heads::eval_ids(step.tokens.len(), *n))]),
            Op::JoinHeads { heads: n } => heads::eval_join(nums(0), nums(1), *n),
            Op::KvStore { cache } => {
                let v = (node.inputs.len() > 1).then(|| nums(1));
                self.store(nums(0), v, cache.0);
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
            Op::ScaleExpertInputs => {
                return Ok(experts::eval_scale_inputs(nums(0), nums(1)).map(Value::Numbers).to_vec());
            }
            Op::ExpertLinear(l) => experts::eval_linear(nums(0), ids(1), l, w),
            Op::ExpertCombine => experts::eval_combine(nums(0), nums(1)),
            Op::TakeOutputs => elementwise::take_outputs(nums(0), step.outputs),
            Op::Math(_) | Op::Grad(_) => return Err(Error::Graph(format!("{} in an inference graph", node.op.name()))),
            Op::LocalIds { first, count } => {
                return Ok(vec![Value::Ids(experts::eval_local(ids(0), *first, *count))]);
            }
            Op::HostExperts { .. } => {
                return Err(Error::Graph("experts of the host in a graph that is not split".into()));
            }
            Op::NormLinears { norm, parts } => {
                let x = normed(nums(0), norm.as_ref(), w);
                return Ok(parts.iter().map(|l| Value::Numbers(linear::eval(&x, l, w))).collect());
            }
            Op::RopeStore { q_norm, k_norm, rope, qk_norm_after_rope, cache } => {
                let rope = rope.for_context(self.ctx);
                let rotated = |x: &Array, n: &Option<Norm>| {
                    norm_and_rope(x, n.as_ref(), &rope, *qk_norm_after_rope, step.past, w)
                };
                let (q, k) = (rotated(nums(0), q_norm), rotated(nums(1), k_norm));
                self.store(&k, Some(nums(2)), cache.0);
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

    fn store(&mut self, k: &Array, v: Option<&Array>, cache: u32) {
        let decl = &self.program.graph.caches[cache as usize];
        let kv = self.kv;
        attend::eval_store(k, v, self.part.past, decl, &mut self.caches[cache as usize], |head| kv.round(head));
    }
}

fn routed(logits: &Array, r: &crate::ir::Router, w: Weights<'_>) -> [Value; 2] {
    let (ids, weights) = router::eval(logits, r, w);
    [Value::Ids(ids), Value::Numbers(weights)]
}

fn normed(x: &Array, n: Option<&Norm>, w: Weights<'_>) -> Array {
    n.map_or_else(|| x.clone(), |n| rms_norm::eval(x, n, w))
}

fn norm_and_rope(
    x: &Array,
    n: Option<&Norm>,
    r: &Rope,
    qk_norm_after_rope: bool,
    past: usize,
    w: Weights<'_>,
) -> Array {
    if qk_norm_after_rope { normed(&rope::eval(x, r, past), n, w) } else { rope::eval(&normed(x, n, w), r, past) }
}

fn input(part: &Part, name: &str, cols: usize) -> Result<Array> {
    let found = part.inputs.iter().find(|(n, _)| n == name);
    let (_, data) = found.ok_or_else(|| Error::Invalid(format!("input {name} is missing")))?;
    Ok(Array { rows: part.tokens.len(), cols, data: data.clone() })
}

fn check_ids(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        Some(id) => Err(Error::Invalid(format!("token id {id} is not below the vocabulary's {vocab}"))),
        None => Ok(()),
    }
}
