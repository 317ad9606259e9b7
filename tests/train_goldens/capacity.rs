//! Routers with room for so many tokens an expert.

use super::case::Made;
use moeray::{
    graph::formula::{self, Choice, Form},
    ir::{Capacity, Keep, Math},
};

pub fn capacity(m: &mut Made) {
    let (x, target, experts) = (m.input("x"), m.input("target"), m.case.usize("experts"));
    let logits = m.product("wg", x);
    let top_two = m.case.hyper_opt("form").is_some();
    let largest = m.case.hyper_opt("drop").is_some_and(|v| v == "probability");
    let c = Capacity {
        experts,
        factor: m.case.f64("capacity_factor"),
        least: m.case.hyper_opt("min_capacity").map_or(1, |v| v.as_u64().unwrap() as usize),
        keep: if largest { Keep::Largest } else { Keep::Position },
    };
    let used = if top_two { 2 } else { m.case.usize("top_k") };
    assert_eq!(moeray::ops::capacity::slots(&c, m.feed.rows, used), m.case.usize("capacity"));
    let placed = if top_two {
        let form = if m.case.has("rnd") {
            Form::Paper(m.input_of("rnd", 1))
        } else {
            Form::Survivors(m.case.has("gumbel").then(|| m.input("gumbel")))
        };
        formula::top_two_capacity(&mut m.b, logits, c, form).unwrap()
    } else {
        let renormalise = m.case.hyper_opt("renormalise").unwrap().as_bool().unwrap();
        formula::top_k_capacity(&mut m.b, logits, used, c, renormalise).unwrap()
    };
    let choice = Choice { ids: placed.ids, weights: placed.weights };
    let combine = formula::gates_of(&mut m.b, choice, experts).unwrap();
    let net = super::layers::relu_net(m, "experts.{}");
    let y = formula::routed_experts(&mut m.b, net, x, choice).unwrap();
    let mse = formula::mean_square(&mut m.b, y, target).unwrap();
    let taken = m.b.apply(moeray::ir::Function::Step, combine).unwrap();
    let taken = m.b.sum_rows(taken).unwrap();
    m.output("y", y);
    m.output("combine", combine);
    m.output("ids", placed.ids);
    m.output("tokens_per_expert", taken);
    m.loss("mse", mse);
    let (name, aux) = if top_two {
        let first = m.b.math(Math::TopK { used: 1, groups: 1 }, &[placed.probs]).unwrap();
        let first = m.b.math(Math::MultiHot { experts }, &[first]).unwrap();
        let (first, mean) = (m.b.sum_rows(first).unwrap(), m.b.mean_rows(placed.probs).unwrap());
        m.output("logits", logits);
        m.output("places", placed.places);
        m.output("first_choices", first);
        m.output("mean_gates", mean);
        let e = experts as f64;
        let factor = if m.case.text("form") == "paper" { 1.0 / e } else { e };
        ("l_aux", formula::gshard_balance(&mut m.b, placed.probs, factor, None).unwrap())
    } else {
        m.output("kept", placed.keep);
        let balance = formula::layers_balance(&mut m.b, &[logits], used, None).unwrap();
        ("balance", m.b.scaled(balance, 1.0 / used as f64).unwrap())
    };
    m.loss(name, aux);
    let total = m.b.weighted_sum(&[(1.0, mse), (m.case.f64("aux_weight"), aux)]).unwrap();
    m.loss("total", total);
}
