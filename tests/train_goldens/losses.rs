//! Losses by themselves.

use super::case::Made;
use moeray::{
    graph::formula,
    ir::{Math, Op, Router, Score},
};

pub fn mean_square(m: &mut Made) {
    let (x, target) = (m.input("x"), m.input("target"));
    let mse = formula::mean_square(&mut m.b, x, target).unwrap();
    m.loss("mse", mse);
    m.loss("total", mse);
}

pub fn switch(m: &mut Made) {
    let logits = m.input("logits");
    let balance = formula::switch_balance(&mut m.b, logits, None).unwrap();
    let z = formula::mean_square_z(&mut m.b, logits, None).unwrap();
    let total = m.b.weighted_sum(&[(1.0, balance), (m.case.f64("z_weight"), z)]).unwrap();
    m.loss("balance", balance);
    m.loss("z", z);
    m.loss("total", total);
}

pub fn cross_entropy(m: &mut Made) {
    let logits = m.input("logits");
    let targets = m.case.tensor("in.targets").values.iter().map(|v| *v as u32).collect();
    let targets = m.ids("targets", targets);
    let weights = m.input_of("weight", 1);
    let total = formula::cross_entropy(&mut m.b, logits, targets, weights, None).unwrap();
    let nll = m.b.add(Op::Math(Math::CrossEntropy), &[logits, targets]).unwrap()[0];
    m.output("nll", nll);
    m.loss("total", total);
}

pub fn competitive(m: &mut Made) {
    let (x, target, experts) = (m.input("x"), m.input("target"), m.case.usize("experts"));
    let logits = m.product("gate", x);
    let net = formula::ExpertNet::Linear(m.experts("experts.{}", experts));
    let results = formula::dense_experts(&mut m.b, net, x, experts).unwrap();
    let made = formula::competitive(&mut m.b, logits, results, target).unwrap();
    let p = m.b.softmax(logits).unwrap();
    // The responsibility of an expert: its part of the likelihood.
    let targets = m.b.math(Math::RepeatSlots { slots: experts }, &[target]).unwrap();
    let d = m.b.minus(targets, results).unwrap();
    let distance = m.b.math(Math::SlotDots { slots: experts }, &[d, d]).unwrap();
    let half = m.b.scaled(distance, -0.5).unwrap();
    let joint = m.b.plus(logits, half).unwrap();
    let responsibility = m.b.softmax(joint).unwrap();
    m.output("p", p);
    m.output("experts", results);
    m.output("responsibility", responsibility);
    m.output("loss_of_row", made.rows);
    m.loss("total", made.mean);
}

pub fn usage(m: &mut Made) {
    let x = m.input("x");
    let gates = if m.case.tensors.contains_key("gate.weight") {
        let logits = m.product("gate", x);
        m.b.softmax(logits).unwrap()
    } else {
        let (experts, used) = (m.case.usize("experts"), m.case.usize("top_k"));
        let logits = m.product("linear", x);
        let router = Router::new(experts, used, Score::SoftmaxOfSelected);
        let choice = formula::top_k(&mut m.b, logits, router).unwrap();
        m.output("ids", choice.ids);
        m.counts(choice.ids, experts);
        formula::gates_of(&mut m.b, choice, experts).unwrap()
    };
    let total = formula::usage_balance(&mut m.b, gates, None).unwrap();
    m.output("router_probs", gates);
    m.loss("total", total);
}

pub fn log_sum_exp(m: &mut Made) {
    let logits = m.input("logits");
    let lse = m.b.math(Math::LogSumExp, &[logits]).unwrap();
    let z = formula::log_sum_exp_z(&mut m.b, &[logits], None).unwrap();
    let over_k = m.b.scaled(z, 0.5).unwrap();
    m.output("logsumexp", lse);
    m.loss("z", z);
    m.loss("z_over_k", over_k);
    m.loss("total", z);
}

pub fn layers(m: &mut Made) {
    let (count, used) = (m.case.usize("layers"), m.case.usize("top_k"));
    let logits: Vec<_> = (0..count).map(|n| m.input(&format!("logits.{n}"))).collect();
    if m.case.name.starts_with("f32") {
        let per_layer = formula::mean_of_layers_balance(&mut m.b, &logits, used, None).unwrap();
        let over_k = m.b.scaled(per_layer, 1.0 / used as f64).unwrap();
        let mut each = None;
        for (n, l) in logits.iter().enumerate() {
            let own = formula::layers_balance(&mut m.b, &[*l], used, None).unwrap();
            let padded = m.b.math(Math::PadColumns { before: n, after: count - n - 1 }, &[own]).unwrap();
            each = Some(each.map_or(padded, |e| m.b.plus(e, padded).unwrap()));
        }
        m.output("layers", each.unwrap());
        m.loss("per_layer", per_layer);
        m.loss("per_layer_over_k", over_k);
        m.loss("total", over_k);
        return;
    }
    let mask = m.case.has("attention_mask").then(|| m.input_of("attention_mask", 1));
    let rows = mask.map(|mask| formula::Counted::new(&mut m.b, mask).unwrap());
    let total = formula::layers_balance(&mut m.b, &logits, used, rows).unwrap();
    m.loss("total", total);
}
