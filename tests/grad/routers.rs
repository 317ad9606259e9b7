//! Rules of routers, slots and experts.

use super::net::Net;
use moeray::{
    graph::formula::{self, ExpertNet},
    ir::{Activation, Capacity, GroupScore, Groups, Keep, Linear, Math, Op, Renormalise, Router, Score, ValueId},
};

const ROWS: [usize; 6] = [1, 2, 3, 5, 7, 13];

/// Logits `[rows, experts]` no two of which in a row are close, so that no difference crosses a choice.
pub fn apart(n: &mut Net, experts: usize) -> ValueId {
    let rows = n.feed.rows;
    let mut values = vec![];
    for _ in 0..rows {
        let mut order: Vec<usize> = (0..experts).collect();
        for i in (1..experts).rev() {
            order.swap(i, n.rng.below(i + 1));
        }
        let noise: Vec<f64> = (0..experts).map(|_| f64::from(n.range(0.0, 0.1))).collect();
        values.extend(order.iter().zip(noise).map(|(r, e)| 0.4 * *r as f64 - 0.2 * experts as f64 + e));
    }
    n.input_of(experts, values)
}

#[test]
pub fn gradient_of_routers() {
    let scores = [Score::Softmax, Score::SoftmaxOfSelected, Score::Sigmoid, Score::SqrtSoftplus];
    let renormalised = [
        Renormalise::No,
        Renormalise::Sum,
        Renormalise::SumPlus(0.5),
        Renormalise::SumAtLeast(1.2),
        Renormalise::Softmax,
    ];
    for score in scores {
        for renormalise in renormalised {
            for (i, (rows, used)) in [(1, 1), (2, 2), (5, 5), (7, 3), (13, 1), (3, 4)].into_iter().enumerate() {
                let mut n = Net::new(rows, 40 + i as u64);
                let logits = apart(&mut n, 5);
                let router = Router { renormalise, scale: 1.5, ..Router::new(5, used, score) };
                let choice = formula::top_k(&mut n.b, logits, router).unwrap();
                n.enters(choice.weights);
                n.check(&format!("{score:?}, {renormalise:?}, {used} of 5, {rows} rows"), &[]);
            }
        }
    }
}

#[test]
pub fn gradient_of_routers_with_bias_groups_and_factors() {
    for (i, rows) in ROWS.into_iter().enumerate() {
        let mut n = Net::new(rows, 60 + i as u64);
        let logits = apart(&mut n, 8);
        let (bias, factors) = (n.weight("bias", &[8]), n.weight("factors", &[8]));
        let router = Router {
            selection_bias: Some(bias),
            expert_scale: Some(factors),
            groups: Some(Groups { count: 4, used: 2, score: GroupScore::TopTwo }),
            renormalise: Renormalise::Sum,
            ..Router::new(8, 3, Score::Sigmoid)
        };
        let choice = formula::top_k(&mut n.b, logits, router).unwrap();
        n.enters(choice.weights);
        n.check(&format!("groups, {rows} rows"), &["bias", "factors"]);
    }
}

#[test]
pub fn gradient_of_routers_over_groups() {
    for (i, rows) in ROWS.into_iter().enumerate() {
        for (used, of_groups) in [(4, 2), (2, 2), (2, 1), (8, 4)] {
            let mut n = Net::new(rows, 80 + i as u64);
            let logits = apart(&mut n, 8 + 4);
            let groups = Some(Groups { count: 4, used: of_groups, score: GroupScore::Own });
            let router = Router { groups, scale: 1.5, ..Router::new(8, used, Score::SoftmaxOfSelected) };
            let choice = formula::top_k(&mut n.b, logits, router).unwrap();
            n.enters(choice.weights);
            n.check(&format!("over groups, {used} of {of_groups} groups, {rows} rows"), &[]);
        }
    }
}

/// Ids `[rows, used]` with an expert (0) that all rows use and one (the last) that none does.
fn skewed(rows: usize, used: usize, experts: usize) -> Vec<u32> {
    let one = |r: usize, j: usize| if j == 0 { 0 } else { 1 + ((r + j) % (experts - 2).max(1)) as u32 };
    (0..rows).flat_map(|r| (0..used).map(move |j| one(r, j))).collect()
}

#[test]
pub fn gradient_of_experts() {
    for (i, (rows, used)) in [(1, 1), (2, 3), (3, 2), (5, 1), (7, 2), (13, 3)].into_iter().enumerate() {
        let experts = 5;
        let mut n = Net::new(rows, 80 + i as u64);
        let linear = |n: &mut Net, name: &str, out: usize, inp: usize| Linear {
            weight: n.weight(name, &[experts, out, inp]),
            bias: Some(n.weight(&format!("{name}.bias"), &[experts, out])),
        };
        let (x, weights) = (n.input(3), n.input(used));
        let ids = n.ids("ids", used, skewed(rows, used, experts));
        let (gate, up, down) = (linear(&mut n, "gate", 4, 3), linear(&mut n, "up", 4, 3), linear(&mut n, "down", 3, 4));
        let net = ExpertNet::Gated { gate, up, act: Activation::Silu, down };
        let choice = formula::Choice { ids, weights };
        let y = formula::routed_experts(&mut n.b, net, x, choice).unwrap();
        n.enters(y);
        let scaled = n.b.add(Op::ScaleExpertInputs, &[x, weights]).unwrap();
        let z = n.b.one(Op::ExpertLinear(gate), &[scaled[0], ids]).unwrap();
        let z = n.b.one(Op::ExpertCombine, &[z, scaled[1]]).unwrap();
        n.enters(z);
        let all = formula::dense_experts(&mut n.b, ExpertNet::Linear(up), x, experts).unwrap();
        n.enters(all);
        n.check(&format!("experts, {used} slots, {rows} rows"), &[]);
    }
}

/// Experts without biases, narrower inside than outside: their units are weighed, and slots have no results of their own. Some tokens choose
/// an expert twice.
#[test]
pub fn gradient_of_experts_that_are_summed() {
    for (i, (rows, used, experts)) in [(1, 2, 3), (5, 3, 2), (7, 2, 4), (13, 4, 6)].into_iter().enumerate() {
        let mut n = Net::new(rows, 100 + i as u64);
        let linear = |n: &mut Net, name: &str, out: usize, inp: usize| Linear {
            weight: n.weight(name, &[experts, out, inp]),
            bias: None,
        };
        let (x, weights) = (n.input(5), n.input(used));
        let ids = n.ids("ids", used, skewed(rows, used, experts));
        let twice =
            n.ids("twice", used, (0..rows * used).map(|s| ((s / used + s % used / 2) % experts) as u32).collect());
        let (gate, up, down) = (linear(&mut n, "gate", 3, 5), linear(&mut n, "up", 3, 5), linear(&mut n, "down", 5, 3));
        let nets = [
            ExpertNet::Gated { gate, up, act: Activation::Silu, down },
            ExpertNet::Mlp { up, act: Activation::Silu, down },
        ];
        for (net, ids) in nets.into_iter().zip([ids, twice]) {
            let y = formula::routed_experts(&mut n.b, net, x, formula::Choice { ids, weights }).unwrap();
            n.enters(y);
        }
        n.check(&format!("summed experts, {used} slots, {rows} rows"), &[]);
    }
}

#[test]
pub fn gradient_of_slots() {
    for (i, rows) in ROWS.into_iter().enumerate() {
        let mut n = Net::new(rows, 120 + i as u64);
        let (x, y, w) = (n.input(6), n.input(2), n.input(3));
        let logits = apart(&mut n, 6);
        let ids = n.b.math(Math::TopK { used: 3, groups: 1 }, &[logits]).unwrap();
        let grouped = n.b.math(Math::TopK { used: 2, groups: 2 }, &[logits]).unwrap();
        let made = [
            n.b.math(Math::GatherSlots, &[x, ids]),
            n.b.math(Math::GatherSlots, &[logits, grouped]),
            n.b.math(Math::ScatterSlots { experts: 6 }, &[w, ids]),
            n.b.math(Math::RepeatSlots { slots: 3 }, &[y]),
            n.b.math(Math::SumSlots { slots: 3 }, &[x]),
            n.b.math(Math::ScaleSlots { shared: true }, &[y, w]),
            n.b.math(Math::ScaleSlots { shared: false }, &[x, w]),
            n.b.math(Math::SlotDots { slots: 3 }, &[x, y]),
            n.b.math(Math::SlotDots { slots: 3 }, &[x, x]),
            n.b.math(Math::Columns { first: 1, count: 4 }, &[x]),
            n.b.math(Math::PadColumns { before: 2, after: 1 }, &[w]),
        ];
        made.into_iter().for_each(|v| n.enters(v.unwrap()));
        n.check(&format!("slots, {rows} rows"), &[]);
    }
}

#[test]
pub fn gradient_of_capacity_and_balances() {
    for (i, rows) in ROWS.into_iter().enumerate() {
        let mut n = Net::new(rows, 140 + i as u64);
        let logits = apart(&mut n, 4);
        let c = Capacity { experts: 4, factor: 0.6, least: 1, keep: Keep::Position };
        let placed = formula::top_k_capacity(&mut n.b, logits, 2, c, true).unwrap();
        n.enters(placed.weights);
        let two = formula::top_two_capacity(&mut n.b, logits, c, formula::Form::Survivors(None)).unwrap();
        n.enters(two.weights);
        let terms = [
            formula::switch_balance(&mut n.b, logits, None),
            formula::mean_square_z(&mut n.b, logits, None),
            formula::log_sum_exp_z(&mut n.b, &[logits], None),
            formula::layers_balance(&mut n.b, &[logits, placed.probs], 2, None),
            formula::gshard_balance(&mut n.b, placed.probs, 4.0, None),
        ];
        terms.into_iter().for_each(|t| n.enters(t.unwrap()));
        n.check(&format!("capacity and balances, {rows} rows"), &[]);
    }
}
