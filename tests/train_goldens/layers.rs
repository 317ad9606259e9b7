//! Expert networks and layers of experts.

use super::{case::Made, routers};
use moeray::{
    graph::formula::{self, ExpertNet, Hierarchy, Variance},
    ir::{Activation, Function, Op, Renormalise, Router, Score},
};

/// `wo ReLU(wi x)` without biases.
pub fn relu_net(m: &mut Made, stem: &str) -> ExpertNet {
    let experts = m.case.usize("experts");
    let (up, down) = (m.experts(&format!("{stem}.wi"), experts), m.experts(&format!("{stem}.wo"), experts));
    ExpertNet::Mlp { up, act: Activation::Relu, down }
}

pub fn shared(m: &mut Made) {
    let (x, experts, used) = (m.input("x"), m.case.usize("experts"), m.case.usize("top_k"));
    let logits = m.product("moe_model.router.gate", x);
    let router = Router { renormalise: Renormalise::Sum, ..Router::new(experts, used, Score::Softmax) };
    let choice = formula::top_k(&mut m.b, logits, router).unwrap();
    let net = ExpertNet::Linear(m.experts("moe_model.experts.{}.linear", experts));
    let mut y = formula::routed_experts(&mut m.b, net, x, choice).unwrap();
    for s in 0..m.case.usize("shared") {
        let own = m.product(&format!("shared_experts.{s}.linear"), x);
        y = m.b.one(Op::Add, &[y, own]).unwrap();
    }
    m.output("y", y);
    m.output("router_logits", logits);
    m.output("ids", choice.ids);
    m.counts(choice.ids, experts);
    if m.case.has("target") {
        let target = m.input("target");
        let mse = formula::mean_square(&mut m.b, y, target).unwrap();
        let balance = formula::switch_balance(&mut m.b, logits, None).unwrap();
        let z = formula::mean_square_z(&mut m.b, logits, None).unwrap();
        let aux = m.b.weighted_sum(&[(1.0, balance), (m.case.f64("z_weight"), z)]).unwrap();
        let total = m.b.weighted_sum(&[(1.0, mse), (m.case.f64("aux_weight"), aux)]).unwrap();
        [("mse", mse), ("balance", balance), ("z", z), ("aux", aux), ("total", total)]
            .into_iter()
            .for_each(|(n, v)| m.loss(n, v));
    }
}

pub fn relu_expert(m: &mut Made) {
    let x = m.input("x");
    let stem = if m.case.tensors.contains_key("net.0.weight") {
        ["net.0", "net.2"]
    } else {
        ["feedforward.0", "feedforward.3"]
    };
    let between = stem[0] == "feedforward.0";
    let h = m.product(stem[0], x);
    let mut h = m.b.one(Op::Act(Activation::Relu), &[h]).unwrap();
    if between {
        h = dropped(m, h);
    }
    let mut y = m.product(stem[1], h);
    if m.case.has("keep") && !between {
        y = dropped(m, y);
    }
    m.output("y", y);
}

/// Dropout with the mask of the case.
fn dropped(m: &mut Made, x: moeray::ir::ValueId) -> moeray::ir::ValueId {
    let keep = m.input("keep");
    let kept = m.b.times(x, keep).unwrap();
    m.b.scaled(kept, 1.0 / (1.0 - m.case.f64("dropout"))).unwrap()
}

/// The layer of a sparse mixture (F10) on `x`, whose weights' names begin with `stem`.
pub fn sparse_of(m: &mut Made, stem: &str, x: moeray::ir::ValueId) -> moeray::ir::ValueId {
    let experts = m.case.usize("experts");
    let [clean, scale] = ["topkroute_linear", "noise_linear"].map(|n| format!("{stem}router.{n}"));
    let logits = routers::noisy(m, &clean, &scale, x);
    let choice = routers::selected(m, logits);
    let up = m.experts(&format!("{stem}experts.{{}}.net.0"), experts);
    let down = m.experts(&format!("{stem}experts.{{}}.net.2"), experts);
    m.output("ids", choice.ids);
    m.counts(choice.ids, experts);
    let net = ExpertNet::Mlp { up, act: Activation::Relu, down };
    formula::routed_experts(&mut m.b, net, x, choice).unwrap()
}

pub fn sparse(m: &mut Made) {
    let x = m.input("x");
    let y = sparse_of(m, "", x);
    m.output("y", y);
}

pub fn swiglu(m: &mut Made) {
    let x = m.input("x");
    let (g, u) = (m.product("w1", x), m.product("w3", x));
    let h = m.b.one(Op::Glu(Activation::Silu), &[g, u]).unwrap();
    let y = m.product("w2", h);
    m.output("y", y);
}

/// The layer of F16, with its router's input and its experts', whose weights' names begin with `stem`: the result, logits and ids.
pub fn gated_of(
    m: &mut Made,
    stem: &str,
    [routed, x]: [moeray::ir::ValueId; 2],
) -> (moeray::ir::ValueId, moeray::ir::ValueId, formula::Choice) {
    let experts = m.case.usize("experts");
    let logits = m.product(&format!("{stem}gate"), routed);
    let choice = routers::selected(m, logits);
    let [gate, down, up] = ["w1", "w2", "w3"].map(|n| m.experts(&format!("{stem}experts.{{}}.{n}"), experts));
    let net = ExpertNet::Gated { gate, up, act: Activation::Silu, down };
    let y = formula::routed_experts(&mut m.b, net, x, choice).unwrap();
    (y, logits, choice)
}

pub fn top_k_of_logits(m: &mut Made) {
    let x = m.input("x");
    let mut routed = x;
    if m.case.has("jitter") {
        let jitter = m.input("jitter");
        routed = m.b.times(x, jitter).unwrap();
    }
    let everywhere = m.case.name.ends_with("_all") && m.case.has("jitter");
    let (y, logits, choice) = gated_of(m, "", [routed, if everywhere { routed } else { x }]);
    m.output("y", y);
    if !m.case.has("jitter") {
        m.output("router_logits", logits);
    }
    m.output("ids", choice.ids);
    m.counts(choice.ids, m.case.usize("experts"));
}

pub fn gelu_experts(m: &mut Made) {
    let x = m.input("x");
    let experts = m.case.usize("experts");
    let logits = m.product("gate", x);
    if m.case.has("value") {
        return dense_gates(m, logits);
    }
    let used = m.case.usize("top_k");
    let twice = m.case.name.starts_with("f22");
    let (score, renormalise) =
        if twice { (Score::Softmax, Renormalise::Softmax) } else { (Score::SoftmaxOfSelected, Renormalise::No) };
    let choice = formula::top_k(&mut m.b, logits, Router { renormalise, ..Router::new(experts, used, score) }).unwrap();
    let (up, down) = (m.experts("experts.{}.0", experts), m.experts("experts.{}.2", experts));
    let net = ExpertNet::Mlp { up, act: Activation::Gelu, down };
    let y = formula::routed_experts(&mut m.b, net, x, choice).unwrap();
    m.output("y", y);
    m.output("ids", choice.ids);
    m.counts(choice.ids, experts);
    if m.case.has("target") {
        let target = m.input("target");
        let main = formula::mean_square(&mut m.b, y, target).unwrap();
        let gates = formula::gates_of(&mut m.b, choice, experts).unwrap();
        m.output("gate_probs", gates);
        with_usage(m, main, gates);
    }
}

fn with_usage(m: &mut Made, main: moeray::ir::ValueId, gates: moeray::ir::ValueId) {
    let aux = formula::usage_balance(&mut m.b, gates, None).unwrap();
    let total = m.b.weighted_sum(&[(1.0, main), (m.case.f64("aux_weight"), aux)]).unwrap();
    m.loss("main", main);
    m.loss("aux", aux);
    m.loss("total", total);
}

/// The usage loss on a dense softmax.
fn dense_gates(m: &mut Made, logits: moeray::ir::ValueId) {
    let (value, target) = (m.input("value"), m.input_of("target", 1));
    let p = m.b.softmax(logits).unwrap();
    let product = m.b.times(p, value).unwrap();
    let sum = m.b.sum_cols(product).unwrap();
    let main = formula::mean_square(&mut m.b, sum, target).unwrap();
    m.output("gate_probs", p);
    with_usage(m, main, p);
}

pub fn hierarchical(m: &mut Made) {
    let (x, target) = (m.input("x"), m.input("target"));
    let [groups, per_group, groups_used, experts_used] =
        ["groups", "per_group", "group_k", "expert_k"].map(|k| m.case.usize(k));
    let primary = m.product("primary", x);
    let weight = m.joined((0..groups).map(|g| format!("secondary.{g}.weight")).collect(), false);
    let secondary = m.b.one(Op::Linear(moeray::ir::Linear { weight, bias: None }), &[x]).unwrap();
    let sizes = Hierarchy { groups, per_group, groups_used, experts_used };
    let (gates, choice) = formula::hierarchical(&mut m.b, primary, secondary, sizes).unwrap();
    let all: Vec<String> = (0..groups).flat_map(|g| (0..per_group).map(move |e| format!("experts.{g}.{e}"))).collect();
    let [up, down] = ["wi", "wo"].map(|n| {
        let weight = m.joined(all.iter().map(|e| format!("{e}.{n}.weight")).collect(), true);
        moeray::ir::Linear { weight, bias: None }
    });
    let net = ExpertNet::Mlp { up, act: Activation::Relu, down };
    let y = formula::routed_experts(&mut m.b, net, x, choice).unwrap();
    let mse = formula::mean_square(&mut m.b, y, target).unwrap();
    let importance = m.b.sum_rows(gates).unwrap();
    let cv = formula::coefficient_of_variation(&mut m.b, importance, Variance::Population, 0.0).unwrap();
    let total = m.b.weighted_sum(&[(1.0, mse), (m.case.f64("importance_weight"), cv)]).unwrap();
    let group_ids = Router::new(groups, groups_used, Score::SoftmaxOfSelected);
    let group_ids = formula::top_k(&mut m.b, primary, group_ids).unwrap().ids;
    let taken = m.b.apply(Function::Step, gates).unwrap();
    let taken = m.b.sum_rows(taken).unwrap();
    m.output("y", y);
    m.output("gates", gates);
    m.output("group_ids", group_ids);
    m.output("tokens_per_expert", taken);
    m.loss("mse", mse);
    m.loss("importance", cv);
    m.loss("total", total);
}
