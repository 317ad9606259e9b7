//! Routers by themselves.

use super::case::Made;
use moeray::{
    graph::formula::{self, Choice, Variance},
    ir::{Activation, Op, Renormalise, Router, Score, ValueId},
};

/// Softmax over the k largest logits, with gates, ids and counts as outputs.
pub fn selected(m: &mut Made, logits: ValueId) -> Choice {
    let (experts, used) = (m.case.usize("experts"), m.case.usize("top_k"));
    formula::top_k(&mut m.b, logits, Router::new(experts, used, Score::SoftmaxOfSelected)).unwrap()
}

pub fn gates(m: &mut Made) {
    let (x, experts) = (m.input("x"), m.case.usize("experts"));
    let logits =
        if m.case.has("noise") { noisy(m, "topkroute_linear", "noise_linear", x) } else { m.product("linear", x) };
    let choice = selected(m, logits);
    let gates = formula::gates_of(&mut m.b, choice, experts).unwrap();
    m.output("router_output", gates);
    m.output("ids", choice.ids);
    m.counts(choice.ids, experts);
}

/// The noisy logits of F9.
pub fn noisy(m: &mut Made, clean: &str, scale: &str, x: ValueId) -> ValueId {
    let noise = m.input("noise");
    let (clean, scale) = (m.product(clean, x), m.product(scale, x));
    formula::noisy_logits(&mut m.b, clean, scale, noise, (1.0, 0.0)).unwrap().logits
}

pub fn sparsely_gated(m: &mut Made) {
    let (x, noise, experts, used) = (m.input("x"), m.input("noise"), m.case.usize("experts"), m.case.usize("top_k"));
    let layer = m.case.hyper_opt("width").is_some();
    let stem = if layer { "gate." } else { "" };
    let (clean, scale) = (m.product(&format!("{stem}w_gate"), x), m.product(&format!("{stem}w_noise"), x));
    let eps = m.case.hyper_opt("noise_epsilon").map_or(0.0, |v| v.as_f64().unwrap());
    let noisy = formula::noisy_logits(&mut m.b, clean, scale, noise, (1.0, eps)).unwrap();
    let choice = selected(m, noisy.logits);
    let gates = formula::gates_of(&mut m.b, choice, experts).unwrap();
    let importance = m.b.sum_rows(gates).unwrap();
    let load = formula::smooth_load(&mut m.b, [clean, noisy.logits, noisy.std], used, None).unwrap();
    m.output("gates", gates);
    m.output("ids", choice.ids);
    m.output("importance", importance);
    m.output("load", load);
    m.counts(choice.ids, experts);
    let sample = m.case.hyper_opt("cv2").is_some_and(|v| v == "sample");
    let kind = if sample { Variance::Sample } else { Variance::Population };
    let eps = m.case.hyper_opt("cv2_epsilon").map_or(0.0, |v| v.as_f64().unwrap());
    let of_importance = formula::coefficient_of_variation(&mut m.b, importance, kind, eps).unwrap();
    let of_load = formula::coefficient_of_variation(&mut m.b, load, kind, eps).unwrap();
    m.loss("importance", of_importance);
    m.loss("load", of_load);
    let mut terms = vec![];
    if layer {
        let net = super::layers::relu_net(m, "experts.{}");
        let y = formula::routed_experts(&mut m.b, net, x, choice).unwrap();
        m.output("y", y);
        if m.case.has("target") {
            let target = m.input("target");
            let mse = formula::mean_square(&mut m.b, y, target).unwrap();
            m.loss("mse", mse);
            terms.push((1.0, mse));
        }
    }
    if m.case.hyper_opt("importance_weight").is_some() {
        terms.extend([(m.case.f64("importance_weight"), of_importance), (m.case.f64("load_weight"), of_load)]);
        let total = m.b.weighted_sum(&terms).unwrap();
        m.loss("total", total);
    }
}

pub fn token_router(m: &mut Made) {
    let (x, noise) = (m.input("x"), m.input("noise"));
    let (weight, bias) = (m.transposed("weight"), Some(m.weight("bias")));
    let eval = m.b.one(Op::Linear(moeray::ir::Linear { weight, bias }), &[x]).unwrap();
    let noise = m.b.scaled(noise, m.case.f64("noise")).unwrap();
    let logits = m.b.plus(eval, noise).unwrap();
    m.output("logits", logits);
    m.output("logits_eval", eval);
}

pub fn three_gates(m: &mut Made) {
    let x = m.input("x");
    let clean = if m.case.tensors.contains_key("mlp.0.weight") {
        let h = m.product("mlp.0", x);
        let h = m.b.one(Op::Act(Activation::Relu), &[h]).unwrap();
        m.product("mlp.2", h)
    } else {
        m.product("gate_proj", x)
    };
    let mut logits = clean;
    if m.case.has("noise") {
        let (noise, scale) = (m.input("noise"), m.product("noise_layer", x));
        let factor = m.case.f64("noise_stddev");
        logits = formula::noisy_logits(&mut m.b, clean, scale, noise, (factor, 0.0)).unwrap().logits;
        let eval = selected(m, clean);
        m.output("weights_eval", eval.weights);
        m.output("ids_eval", eval.ids);
    }
    let choice = selected(m, logits);
    m.output("weights", choice.weights);
    m.output("ids", choice.ids);
    m.output("logits", clean);
    m.counts(choice.ids, m.case.usize("experts"));
}

pub fn biased(m: &mut Made) {
    let (x, experts, used) = (m.input("x"), m.case.usize("experts"), m.case.usize("top_k"));
    let logits = m.product("gate", x);
    let bias = m.weight("in.bias");
    let plain = Router { renormalise: Renormalise::SumPlus(1e-20), ..Router::new(experts, used, Score::Sigmoid) };
    let choice = formula::top_k(&mut m.b, logits, Router { selection_bias: Some(bias), ..plain }).unwrap();
    let unbiased = formula::top_k(&mut m.b, logits, plain).unwrap();
    let scores = m.b.apply(moeray::ir::Function::Sigmoid, logits).unwrap();
    m.output("scores", scores);
    m.output("ids", choice.ids);
    m.output("ids_unbiased", unbiased.ids);
    m.output("weights", choice.weights);
    m.counts(choice.ids, experts);
}
