//! From a graph to nodes: the decisions that the layout of the weights depends on, made once a model.

use super::{Elementwise, Epilogue, KernelGraph, KernelNode, KernelOp, Route};
use crate::{
    error::{Error, Result},
    ir::{Graph, Linear, Node, Norm, Op, Router, Type, ValueId, WeightId},
    plan::limits::padded,
    quant::DType,
};

/// Most rows of a matrix that is stacked under a router's.
const MOST_SIBLING_ROWS: usize = 32;

/// The nodes of a graph whose weights have these formats.
///
/// # Errors
/// [`Error::Graph`] where there is not one format for each weight.
pub(in crate::plan) fn from_graph(graph: &Graph, dtypes: &[DType]) -> Result<KernelGraph> {
    if dtypes.len() != graph.weights.len() {
        return Err(Error::Graph(format!("{} formats of {} weights", dtypes.len(), graph.weights.len())));
    }
    let out = KernelGraph {
        values: graph.values.clone(),
        pack_of: vec![None; graph.values.len()],
        weight_names: graph.weights.iter().map(|w| w.name.clone()).collect(),
        ..KernelGraph::default()
    };
    let siblings = siblings(graph, dtypes);
    let mut is_sibling = vec![false; graph.nodes.len()];
    siblings.iter().flatten().for_each(|i| is_sibling[*i] = true);
    let mut b = Translation { graph, dtypes, out, inputs: 0 };
    for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| !is_sibling[*i]) {
        b.node(node, siblings[i].map(|s| &graph.nodes[s]))?;
    }
    b.out.check(graph)?;
    Ok(b.out)
}

/// Of each node that is a `norm_router`, the small `linear` on the same normalised value, in the same format as the router's
/// matrix: the gate of a shared expert. Its rows are stacked under the router's, which saves a dispatch.
fn siblings(graph: &Graph, dtypes: &[DType]) -> Vec<Option<usize>> {
    // Of each value that a `norm_router` normalises, the router's node and its matrix.
    let mut routers: Vec<Option<(usize, Linear)>> = vec![None; graph.values.len()];
    for (i, n) in graph.nodes.iter().enumerate() {
        if let Op::NormRouter { linear, .. } = &n.op {
            routers[n.outputs[0].0 as usize] = Some((i, *linear));
        }
    }
    let mut found = vec![None; graph.nodes.len()];
    for (i, n) in graph.nodes.iter().enumerate() {
        let Op::Linear(own) = &n.op else { continue };
        let Some((router, linear)) = routers[n.inputs[0].0 as usize] else { continue };
        let rows = |w: WeightId| graph.weight(w).rows();
        let one_format = dtypes[own.weight.0 as usize] == dtypes[linear.weight.0 as usize];
        // A single number is read as such; of several, kernels read four at a time.
        let aligned = rows(linear.weight).is_multiple_of(4) || rows(own.weight) == 1;
        if one_format && aligned && rows(own.weight) <= MOST_SIBLING_ROWS {
            found[router] = found[router].or(Some(i));
        }
    }
    found
}

/// The parts of a `norm_linears` by matrix, each in order: those of one format are stacked. A part whose rows are no multiple
/// of 4 ends its matrix, so that every part's columns start at a multiple of 4.
fn stacks(graph: &Graph, dtypes: &[DType], parts: &[Linear]) -> Vec<Vec<usize>> {
    let dtype = |i: usize| dtypes[parts[i].weight.0 as usize];
    let mut out: Vec<Vec<usize>> = Vec::new();
    for i in 0..parts.len() {
        let fits = |s: &&mut Vec<usize>| {
            dtype(s[0]) == dtype(i) && s.iter().all(|j| graph.weight(parts[*j].weight).rows().is_multiple_of(4))
        };
        match out.iter_mut().find(fits) {
            Some(s) => s.push(i),
            None => out.push(vec![i]),
        }
    }
    out
}

struct Translation<'a> {
    graph: &'a Graph,
    dtypes: &'a [DType],
    out: KernelGraph,
    /// Inputs of the caller so far.
    inputs: u32,
}

impl Translation<'_> {
    fn push(&mut self, of: &Node, op: KernelOp, inputs: &[ValueId], outputs: &[ValueId]) {
        let (inputs, outputs) = (inputs.to_vec(), outputs.to_vec());
        self.out.nodes.push(KernelNode { op, inputs, outputs, part_of: of.op.name(), layer: of.layer });
    }

    /// Adds what a node of the graph becomes. `sibling` is the `linear` whose rows are stacked under this router's.
    fn node(&mut self, n: &Node, sibling: Option<&Node>) -> Result<()> {
        let plain = |parts: &Linear, epilogue: Epilogue| KernelOp::Linear {
            parts: vec![*parts],
            norm: None,
            keep_normed: false,
            epilogue,
        };
        let op = match &n.op {
            Op::Tokens => KernelOp::Tokens,
            Op::Input { .. } => {
                self.inputs += 1;
                KernelOp::Input(self.inputs - 1)
            }
            Op::Embed { table, scale } => KernelOp::Embed { table: *table, scale: *scale },
            Op::RmsNorm(norm) => KernelOp::Norm(*norm),
            Op::Add => KernelOp::Elementwise(Elementwise::Add),
            Op::Scale(factor) => KernelOp::Elementwise(Elementwise::Scale(*factor)),
            Op::Glu(act) => KernelOp::Elementwise(Elementwise::Glu(*act)),
            Op::Act(act) => KernelOp::Elementwise(Elementwise::Act(*act)),
            Op::SigmoidGate => KernelOp::Elementwise(Elementwise::SigmoidGate),
            Op::Math(_) | Op::Grad(_) => {
                return Err(Error::Unsupported(format!("{} is an op of training", n.op.name())));
            }
            Op::TakeOutputs => KernelOp::Elementwise(Elementwise::TakeOutputs),
            Op::ScaleExpertInputs => return self.scale_expert_inputs(n),
            Op::HeadIds { heads } => KernelOp::HeadIds { heads: *heads },
            Op::LocalIds { first, count } => KernelOp::LocalIds { first: *first, count: *count },
            Op::JoinHeads { heads } => KernelOp::JoinHeads { heads: *heads },
            Op::Rope(rope) => KernelOp::Rope(rope.clone()),
            Op::KvStore { cache } => KernelOp::KvStore { cache: *cache },
            Op::RopeStore { q_norm, k_norm, rope, qk_norm_after_rope, cache } => KernelOp::RopeStore {
                norms: [*q_norm, *k_norm],
                rope: rope.clone(),
                qk_norm_after_rope: *qk_norm_after_rope,
                cache: *cache,
            },
            Op::Attend(a) => KernelOp::Attend(*a),
            Op::ShortConv(c) => KernelOp::ShortConv(*c),
            Op::DeltaNet(d) => KernelOp::DeltaNet(*d),
            Op::Linear(l) => plain(l, Epilogue::NONE),
            Op::LinearAdd { linear, gated, factor } => {
                plain(linear, Epilogue { gated: *gated, factor: *factor, residual: true, ..Epilogue::NONE })
            }
            Op::LinearAct { linear, act } => plain(linear, Epilogue { act: Some(*act), ..Epilogue::NONE }),
            Op::NormLinears { norm, parts } => return self.norm_linears(n, *norm, parts),
            Op::LinearGlu { gate, up, act } => KernelOp::LinearGlu { gate: *gate, up: *up, act: *act, norm: None },
            Op::Router(r) => KernelOp::Router(*r),
            Op::NormRouter { norm, linear, router } => return self.norm_router(n, (norm, linear, router), sibling),
            Op::ExpertLinear(l) => KernelOp::ExpertLinear { linear: *l, act: None, route: Route::Slots },
            Op::ExpertAct { linear, act } => {
                KernelOp::ExpertLinear { linear: *linear, act: Some(*act), route: Route::Slots }
            }
            Op::ExpertGlu { gate, up, act } => {
                let route = Route::Slots;
                KernelOp::ExpertGlu { gate: *gate, up: *up, act: *act, route, shared: None, choose: None }
            }
            Op::ExpertDownAdd { linear, factor } => {
                KernelOp::ExpertDown { linear: *linear, factor: *factor, shared: None }
            }
            Op::ExpertCombine => KernelOp::ExpertCombine { residual: None },
            Op::HostExperts { region, .. } => KernelOp::HostExperts { region: *region },
        };
        self.push(n, op, &n.inputs, &n.outputs);
        Ok(())
    }

    /// Ones lie behind the scaled inputs, in the same rows.
    fn scale_expert_inputs(&mut self, n: &Node) -> Result<()> {
        let (rows, cols) = self.out.dims(n.outputs[0])?;
        self.out.pack(rows, &[(n.outputs[0], 0), (n.outputs[1], cols)]);
        self.push(n, KernelOp::ScaleExpertInputs, &n.inputs, &n.outputs);
        Ok(())
    }

    /// All parts lie side by side in one row, those of one matrix together.
    fn norm_linears(&mut self, n: &Node, norm: Option<Norm>, parts: &[Linear]) -> Result<()> {
        let stacks = stacks(self.graph, self.dtypes, parts);
        let (mut columns, mut end) = (vec![], 0);
        for stack in &stacks {
            for i in stack {
                columns.push((n.outputs[*i], end));
                end += self.out.cols(n.outputs[*i]);
            }
            end = padded(end);
        }
        let (rows, _) = self.out.dims(n.outputs[0])?;
        self.out.pack(rows, &columns);
        let part = |stack: &Vec<usize>| stack.iter().map(|i| parts[*i]).collect::<Vec<Linear>>();
        let outputs = |stack: &Vec<usize>| stack.iter().map(|i| n.outputs[*i]).collect::<Vec<ValueId>>();
        let mut rest = &stacks[..];
        if let [first, second, others @ ..] = rest {
            let op = KernelOp::LinearPair { parts: [part(first), part(second)], norm };
            self.push(n, op, &n.inputs, &[outputs(first), outputs(second)].concat());
            rest = others;
        }
        for stack in rest {
            let op = KernelOp::Linear { parts: part(stack), norm, keep_normed: false, epilogue: Epilogue::NONE };
            self.push(n, op, &n.inputs, &outputs(stack));
        }
        Ok(())
    }

    /// The router's matrix with its sibling's and the normalised x behind their results; then the router.
    fn norm_router(
        &mut self,
        n: &Node,
        (norm, linear, router): (&Norm, &Linear, &Router),
        sibling: Option<&Node>,
    ) -> Result<()> {
        let [normed, ids, weights] = [n.outputs[0], n.outputs[1], n.outputs[2]];
        let (rows, _) = self.out.dims(normed)?;
        let logits = self.out.value(Type::F32(rows, router.logits()));
        let (mut parts, mut columns, mut end) = (vec![*linear], vec![(logits, 0)], router.logits());
        if let Some(Node { op: Op::Linear(own), outputs, .. }) = sibling {
            parts.push(*own);
            columns.push((outputs[0], end));
            end += self.out.cols(outputs[0]);
        }
        columns.push((normed, padded(end)));
        self.out.pack(rows, &columns);
        let outputs: Vec<ValueId> = columns.iter().map(|c| c.0).collect();
        let op = KernelOp::Linear { parts, norm: Some(*norm), keep_normed: true, epilogue: Epilogue::NONE };
        self.push(n, op, &n.inputs, &outputs);
        self.push(n, KernelOp::Router(*router), &[logits], &[ids, weights]);
        Ok(())
    }
}
