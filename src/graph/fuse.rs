//! The fusions: patterns of primitive nodes replaced by one larger op, which fast backends run in one dispatch or sweep.
//!
//! A rule looks at one node (the last of its pattern), follows its operands back through values that nobody else uses,
//! and says which nodes it consumes and what stands for them. Rules run one after the other over the whole graph; the
//! nodes are then put in order again. Nothing here changes what is computed.

use crate::ir::{Grad, Graph, Linear, Math, Node, Norm, NormKind, Op, Rope, ValueId, WeightId};

/// The same computation in fewer, larger ops: see the second half of [`Op`].
pub fn fuse(graph: &Graph) -> Graph {
    let rules: [Rule; 9] = [
        expert_glu,
        expert_act,
        expert_down_add,
        linear_glu,
        linear_act,
        linear_add,
        rope_store,
        norm_router,
        norm_linears,
    ];
    let mut g = graph.clone();
    for rule in rules {
        g = apply(&g, rule);
    }
    g
}

/// The same training in fewer ops, behind differentiation: sums over slots are made by the products of experts in front of them.
pub(super) fn fuse_training(graph: &Graph) -> Graph {
    apply(graph, expert_sum)
}

type Rule = fn(&View<'_>, usize) -> Option<Fusion>;

/// What a rule found: the nodes that vanish, and the one that stands for them, in the place of the first of them.
struct Fusion {
    consumed: Vec<usize>,
    node: Node,
}

/// A graph with its uses counted.
struct View<'a> {
    g: &'a Graph,
    maker: Vec<Option<usize>>,
    uses: Vec<Vec<usize>>,
    is_output: Vec<bool>,
}

impl<'a> View<'a> {
    fn new(g: &'a Graph) -> Self {
        let mut v = View {
            g,
            maker: vec![None; g.values.len()],
            uses: vec![vec![]; g.values.len()],
            is_output: vec![false; g.values.len()],
        };
        for (i, n) in g.nodes.iter().enumerate() {
            n.inputs.iter().for_each(|x| v.uses[x.0 as usize].push(i));
            n.outputs.iter().for_each(|x| v.maker[x.0 as usize] = Some(i));
        }
        g.outputs.iter().for_each(|(_, x)| v.is_output[x.0 as usize] = true);
        v
    }

    fn node(&self, i: usize) -> &'a Node {
        &self.g.nodes[i]
    }

    fn maker(&self, v: ValueId) -> Option<usize> {
        self.maker[v.0 as usize]
    }

    /// The maker of `v`, where nobody but one node uses `v`: it may vanish into that node.
    fn sole(&self, v: ValueId) -> Option<usize> {
        let i = v.0 as usize;
        if self.uses[i].len() == 1 && !self.is_output[i] { self.maker[i] } else { None }
    }

    fn fusion(&self, consumed: Vec<usize>, op: Op, inputs: Vec<ValueId>, outputs: Vec<ValueId>) -> Option<Fusion> {
        let layer = self.node(consumed[0]).layer;
        Some(Fusion { consumed, node: Node { op, inputs, outputs, layer } })
    }
}

/// Applies one rule wherever its patterns do not overlap.
fn apply(g: &Graph, rule: Rule) -> Graph {
    let view = View::new(g);
    let mut gone = vec![false; g.nodes.len()];
    let mut stands_at: Vec<Option<Node>> = vec![None; g.nodes.len()];
    for i in 0..g.nodes.len() {
        let Some(f) = rule(&view, i) else { continue };
        if f.consumed.iter().any(|c| gone[*c]) {
            continue;
        }
        f.consumed.iter().for_each(|c| gone[*c] = true);
        stands_at[f.consumed[0]] = Some(f.node);
    }
    let nodes = (g.nodes.iter().enumerate())
        .filter_map(|(i, n)| stands_at[i].take().or_else(|| (!gone[i]).then(|| n.clone())))
        .collect();
    let mut out = Graph { nodes, ..g.clone() };
    order(&mut out);
    out
}

/// Puts nodes after the makers of their operands, else as they stood.
fn order(g: &mut Graph) {
    let view = View::new(g);
    let mut state = vec![0u8; g.nodes.len()];
    let mut sorted = Vec::with_capacity(g.nodes.len());
    for start in 0..g.nodes.len() {
        let mut stack = vec![start];
        while let Some(&i) = stack.last() {
            if state[i] == 2 {
                stack.pop();
                continue;
            }
            let waits = view.node(i).inputs.iter().filter_map(|v| view.maker(*v)).filter(|m| state[*m] == 0);
            let waits: Vec<usize> = waits.collect();
            if state[i] == 0 && !waits.is_empty() {
                state[i] = 1;
                stack.extend(waits);
            } else {
                state[i] = 2;
                sorted.push(i);
                stack.pop();
            }
        }
    }
    g.nodes = sorted.into_iter().map(|i| g.nodes[i].clone()).collect();
}

/// The two halves of a gated unit, where both come from `half` nodes that nobody else uses.
fn gate_and_up<T>(v: &View<'_>, i: usize, half: impl Fn(&Node) -> Option<T>) -> Option<(usize, usize, T, T)> {
    let [g, u] = v.node(i).inputs[..] else { return None };
    let (gi, ui) = (v.sole(g)?, v.sole(u)?);
    Some((gi, ui, half(v.node(gi))?, half(v.node(ui))?))
}

fn expert_glu(v: &View<'_>, i: usize) -> Option<Fusion> {
    let Op::Glu(act) = v.node(i).op else { return None };
    let (gi, ui, (gate, inputs), (up, same)) = gate_and_up(v, i, expert_linear)?;
    if inputs != same || !one_row_a_token(v, &gate, inputs[0]) || gate.bias.is_some() != up.bias.is_some() {
        return None;
    }
    v.fusion(vec![i, gi, ui], Op::ExpertGlu { gate, up, act }, inputs, v.node(i).outputs.clone())
}

fn expert_linear(n: &Node) -> Option<(Linear, Vec<ValueId>)> {
    match n.op {
        Op::ExpertLinear(l) => Some((l, n.inputs.clone())),
        _ => None,
    }
}

/// Whether x has one row for all slots: what the fused first halves of experts are defined on.
fn one_row_a_token(v: &View<'_>, l: &Linear, x: ValueId) -> bool {
    v.g.weight(l.weight).shape.last() == Some(&v.g.cols(x))
}

fn expert_act(v: &View<'_>, i: usize) -> Option<Fusion> {
    let Op::Act(act) = v.node(i).op else { return None };
    let ei = v.sole(v.node(i).inputs[0])?;
    let (linear, inputs) = expert_linear(v.node(ei))?;
    if !one_row_a_token(v, &linear, inputs[0]) {
        return None;
    }
    v.fusion(vec![i, ei], Op::ExpertAct { linear, act }, inputs, v.node(i).outputs.clone())
}

fn expert_sum(v: &View<'_>, i: usize) -> Option<Fusion> {
    let Op::Math(Math::SumSlots { .. }) = v.node(i).op else { return None };
    let made = v.sole(v.node(i).inputs[0])?;
    let (weight, transposed) = match v.node(made).op {
        Op::ExpertLinear(Linear { weight, bias: None }) => (weight, false),
        Op::Grad(Grad::ExpertInput { weight }) => (weight, true),
        _ => return None,
    };
    let op = Op::Math(Math::ExpertSum { weight, transposed });
    v.fusion(vec![i, made], op, v.node(made).inputs.clone(), v.node(i).outputs.clone())
}

fn linear_act(v: &View<'_>, i: usize) -> Option<Fusion> {
    let Op::Act(act) = v.node(i).op else { return None };
    let li = v.sole(v.node(i).inputs[0])?;
    let Op::Linear(linear) = v.node(li).op else { return None };
    let inputs = v.node(li).inputs.clone();
    v.fusion(vec![i, li], Op::LinearAct { linear, act }, inputs, v.node(i).outputs.clone())
}

fn linear_glu(v: &View<'_>, i: usize) -> Option<Fusion> {
    let Op::Glu(act) = v.node(i).op else { return None };
    let half = |n: &Node| match n.op {
        Op::Linear(Linear { weight, bias: None }) => Some((weight, n.inputs.clone())),
        _ => None,
    };
    let (gi, ui, (gate, inputs), (up, same)) = gate_and_up(v, i, half)?;
    if inputs != same {
        return None;
    }
    v.fusion(vec![i, gi, ui], Op::LinearGlu { gate, up, act }, inputs, v.node(i).outputs.clone())
}

/// Follows a value back through a `scale` that nobody else uses: the factor, what was scaled, and the node.
fn scaled(v: &View<'_>, y: ValueId) -> (f32, ValueId, Vec<usize>) {
    match v.sole(y).map(|i| (i, &v.node(i).op, &v.node(i).inputs[..])) {
        Some((i, Op::Scale(factor), [x])) => (*factor, *x, vec![i]),
        _ => (1.0, y, vec![]),
    }
}

fn expert_down_add(v: &View<'_>, i: usize) -> Option<Fusion> {
    let Op::Add = v.node(i).op else { return None };
    let [residual, y] = v.node(i).inputs[..] else { return None };
    let (factor, y, scaled) = scaled(v, y);
    let ci = v.sole(y)?;
    let (Op::ExpertCombine, [slots, weights]) = (&v.node(ci).op, &v.node(ci).inputs[..]) else { return None };
    let ei = v.sole(*slots)?;
    let (Op::ExpertLinear(linear), [h, ids]) = (&v.node(ei).op, &v.node(ei).inputs[..]) else { return None };
    // One row of h a slot: what the fused op is defined on (with one slot the two forms are the same).
    if v.g.cols(*h) != v.g.cols(*ids) * v.g.weight(linear.weight).shape[2] {
        return None;
    }
    let op = Op::ExpertDownAdd { linear: *linear, factor };
    let consumed = [vec![i, ci, ei], scaled].concat();
    v.fusion(consumed, op, vec![*h, *ids, *weights, residual], v.node(i).outputs.clone())
}

fn linear_add(v: &View<'_>, i: usize) -> Option<Fusion> {
    let Op::Add = v.node(i).op else { return None };
    let [residual, y] = v.node(i).inputs[..] else { return None };
    let (factor, y, scaled) = scaled(v, y);
    let yi = v.sole(y)?;
    let outputs = v.node(i).outputs.clone();
    let consumed = |nodes: &[usize]| [nodes, &scaled].concat();
    match (&v.node(yi).op, &v.node(yi).inputs[..]) {
        (Op::Linear(l), [x]) => {
            let op = Op::LinearAdd { linear: *l, gated: false, factor };
            v.fusion(consumed(&[i, yi]), op, vec![*x, residual], outputs)
        }
        (Op::SigmoidGate, [inner, gate]) => {
            let li = v.sole(*inner)?;
            let (Op::Linear(l), [x]) = (&v.node(li).op, &v.node(li).inputs[..]) else { return None };
            let op = Op::LinearAdd { linear: *l, gated: true, factor };
            v.fusion(consumed(&[i, yi, li]), op, vec![*x, residual, *gate], outputs)
        }
        _ => None,
    }
}

/// What a rotated value was made of.
struct Rotated {
    rope: Rope,
    norm: Option<Norm>,
    qk_norm_after_rope: bool,
    /// What was projected.
    from: ValueId,
    nodes: Vec<usize>,
}

/// Follows a rotated value back to what was projected, through an optional norm before or after the rotation.
fn rotated(v: &View<'_>, x: ValueId) -> Option<Rotated> {
    let norm = |i: usize| match v.node(i).op {
        Op::RmsNorm(n) if n.kind == NormKind::Rms && n.bias.is_none() => Some(n),
        _ => None,
    };
    let last = v.sole(x)?;
    let (ri, after) = match norm(last) {
        Some(n) => (v.sole(v.node(last).inputs[0])?, Some(n)),
        None => (last, None),
    };
    let Op::Rope(rope) = &v.node(ri).op else { return None };
    let (rope, from) = (rope.clone(), v.node(ri).inputs[0]);
    if after.is_some() {
        return Some(Rotated { rope, norm: after, qk_norm_after_rope: true, from, nodes: vec![ri, last] });
    }
    if let Some(ni) = v.sole(from)
        && let Some(n) = norm(ni)
    {
        let from = v.node(ni).inputs[0];
        return Some(Rotated { rope, norm: Some(n), qk_norm_after_rope: false, from, nodes: vec![ri, ni] });
    }
    Some(Rotated { rope, norm: None, qk_norm_after_rope: false, from, nodes: vec![ri] })
}

fn rope_store(v: &View<'_>, i: usize) -> Option<Fusion> {
    let Op::Attend(a) = v.node(i).op else { return None };
    let [q, stored] = v.node(i).inputs[..] else { return None };
    let si = v.sole(stored)?;
    let (Op::KvStore { cache }, [k, value]) = (&v.node(si).op, &v.node(si).inputs[..]) else { return None };
    let (q_made, k_made) = (rotated(v, q)?, rotated(v, *k)?);
    let orders_differ =
        q_made.norm.is_some() && k_made.norm.is_some() && q_made.qk_norm_after_rope != k_made.qk_norm_after_rope;
    if q_made.rope != k_made.rope || *cache != a.cache || orders_differ {
        return None;
    }
    // The attention itself stays: the fused node takes the store's place.
    let consumed = [vec![si], q_made.nodes, k_made.nodes].concat();
    let qk_norm_after_rope = q_made.qk_norm_after_rope || k_made.qk_norm_after_rope;
    let (q_norm, k_norm) = (q_made.norm, k_made.norm);
    let op = Op::RopeStore { q_norm, k_norm, rope: q_made.rope, qk_norm_after_rope, cache: *cache };
    v.fusion(consumed, op, vec![q_made.from, k_made.from, *value], vec![q, stored])
}

fn norm_router(v: &View<'_>, i: usize) -> Option<Fusion> {
    let Op::Router(router) = v.node(i).op else { return None };
    let li = v.sole(v.node(i).inputs[0])?;
    let Op::Linear(linear) = v.node(li).op else { return None };
    let normed = v.node(li).inputs[0];
    let ni = v.maker(normed)?;
    let Op::RmsNorm(norm) = v.node(ni).op else { return None };
    let outputs = [vec![normed], v.node(i).outputs.clone()].concat();
    v.fusion(vec![i, li, ni], Op::NormRouter { norm, linear, router }, v.node(ni).inputs.clone(), outputs)
}

fn norm_linears(v: &View<'_>, i: usize) -> Option<Fusion> {
    let Op::RmsNorm(norm) = v.node(i).op else { return None };
    let normed = v.node(i).outputs[0];
    let whole_row = |w: WeightId| v.g.weight(w).shape.first() == Some(&v.g.cols(normed));
    let users = &v.uses[normed.0 as usize];
    if v.is_output[normed.0 as usize] || users.is_empty() || !whole_row(norm.weight) {
        return None;
    }
    let (mut parts, mut outputs) = (vec![], vec![]);
    for u in users {
        let Op::Linear(l) = v.node(*u).op else { return None };
        parts.push(l);
        outputs.push(v.node(*u).outputs[0]);
    }
    let consumed = std::iter::once(i).chain(users.iter().copied()).collect();
    let op = Op::NormLinears { norm: Some(norm), parts };
    v.fusion(consumed, op, v.node(i).inputs.clone(), outputs)
}
