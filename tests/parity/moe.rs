//! Cases of routing and experts: ties, k = all experts, one expert for all tokens, experts without a token.

use super::case::{Case, Maker};
use moeray::{
    ir::{Activation, Linear, Norm, Op, Router, Score},
    quant::DType,
};

const STEPS: [(usize, usize, usize); 6] = [(1, 0, 1), (2, 0, 1), (3, 0, 0), (8, 0, 8), (9, 0, 1), (65, 0, 1)];

fn router(experts: usize, used: usize) -> Router {
    Router { experts, used, score: Score::Softmax, renormalise: false, scale: 1.0 }
}

pub fn routers() -> Vec<Case> {
    let mut cases = vec![];
    for (experts, used) in [(1, 1), (4, 2), (8, 8), (60, 4), (128, 8), (512, 10)] {
        for score in [Score::Softmax, Score::SoftmaxOfSelected, Score::Sigmoid] {
            let mut m = Maker::new(experts as u64);
            let logits = m.input(experts);
            let r = Router { score, renormalise: used % 4 == 0, scale: 1.5, ..router(experts, used) };
            let made = m.b.add(Op::Router(r), &[logits]).unwrap();
            let named = [("router_ids_0", made[0]), ("router_weights_0", made[1])];
            cases.push(m.finish(format!("router/top {used} of {experts}, {score:?}"), &named, &STEPS));
        }
    }
    // Ties: logits that are all equal, and equal in groups. The lower id wins.
    for groups in [1, 3] {
        let mut m = Maker::new(groups);
        let logits = m.input(12);
        let made = m.b.add(Op::Router(router(12, 5)), &[logits]).unwrap();
        let named = [("router_ids_0", made[0]), ("router_weights_0", made[1])];
        let mut case = m.finish(format!("router/ties in {groups} groups"), &named, &STEPS);
        for (_, _, inputs) in &mut case.steps {
            inputs[0].1.iter_mut().enumerate().for_each(|(i, x)| *x = (i as u64 % groups) as f32);
        }
        cases.push(case);
    }
    cases
}

/// A whole Mixture-of-Experts block. `bias` is added to the router's logits: a large one sends all tokens to few experts.
struct Block {
    name: String,
    hidden: usize,
    width: usize,
    router: Router,
    types: [DType; 3],
    bias: Option<Vec<f32>>,
    /// Width of a shared expert.
    shared: Option<usize>,
}

fn block(b: Block) -> Case {
    let (h, i, e) = (b.hidden, b.width, b.router.experts);
    let mut m = Maker::new(e as u64 * 7 + i as u64);
    let x = m.input(h);
    let norm = Norm { weight: m.near_one(h), eps: 1e-6 };
    let normed = m.one(Op::RmsNorm(norm), &[x]);
    let weight = m.weight(&[e, h], DType::F32);
    let bias = b.bias.as_ref().map(|v| m.given(&[e], DType::F32, v));
    let logits = m.one(Op::Linear(Linear { weight, bias }), &[normed]);
    let made = m.b.add(Op::Router(b.router), &[logits]).unwrap();
    let expert = |m: &mut Maker, shape: [usize; 3], d: DType| Op::ExpertLinear { weight: m.weight(&shape, d) };
    let (gate, up) = (expert(&mut m, [e, i, h], b.types[0]), expert(&mut m, [e, i, h], b.types[1]));
    let down = expert(&mut m, [e, h, i], b.types[2]);
    let (g, u) = (m.one(gate, &[normed, made[0]]), m.one(up, &[normed, made[0]]));
    let a = m.one(Op::Glu(Activation::Silu), &[g, u]);
    let y = m.one(down, &[a, made[0]]);
    let y = m.one(Op::ExpertCombine, &[y, made[1]]);
    let mut y = m.one(Op::Add, &[x, y]);
    if let Some(s) = b.shared {
        let lin = |m: &mut Maker, n: usize, k: usize, d: DType, x| {
            let weight = m.weight(&[n, k], d);
            m.one(Op::Linear(Linear { weight, bias: None }), &[x])
        };
        let (g, u) = (lin(&mut m, s, h, b.types[0], normed), lin(&mut m, s, h, b.types[1], normed));
        let a = m.one(Op::Glu(Activation::Silu), &[g, u]);
        let s = lin(&mut m, h, s, b.types[2], a);
        let gate = lin(&mut m, 1, h, DType::F32, normed);
        let s = m.one(Op::SigmoidGate, &[s, gate]);
        y = m.one(Op::Add, &[y, s]);
    }
    let named = [("router_ids_0", made[0]), ("router_weights_0", made[1]), ("y0", y)];
    m.finish(b.name, &named, &STEPS)
}

pub fn blocks() -> Vec<Case> {
    let base = |name: &str| Block {
        name: format!("moe/{name}"),
        hidden: 64,
        width: 48,
        router: router(8, 2),
        types: [DType::F32; 3],
        bias: None,
        shared: None,
    };
    let mut one_expert = vec![0.0; 8];
    one_expert[5] = 1e4;
    one_expert[2] = 5e3;
    let mut cases = vec![
        block(base("plain")),
        block(Block { shared: Some(48), ..base("shared expert") }),
        block(Block { shared: Some(112), router: router(6, 3), ..base("wide shared expert") }),
        block(Block { shared: Some(20), router: router(9, 2), ..base("narrow shared expert") }),
        block(Block { router: router(8, 8), ..base("all experts") }),
        block(Block { router: router(8, 1), ..base("top 1") }),
        block(Block { router: router(1, 1), ..base("one expert") }),
        block(Block { router: Router { renormalise: true, ..router(100, 6) }, ..base("100 experts") }),
        block(Block { bias: Some(one_expert), ..base("all tokens to two experts") }),
        block(Block { types: [DType::F32, DType::BF16, DType::F16], ..base("mixed floats") }),
    ];
    let quantised = |dtype: DType, types: [DType; 3]| {
        block(Block {
            hidden: 256,
            width: 256,
            types,
            shared: (dtype == DType::Q4K).then_some(512),
            ..base(&types.map(|t| t.to_string()).join(" "))
        })
    };
    cases.extend(DType::ALL.into_iter().filter(|d| !d.is_float()).map(|d| quantised(d, [d; 3])));
    cases.push(quantised(DType::Q4K, [DType::Q4K, DType::Q4K, DType::Q6K]));
    cases.push(quantised(DType::Q4_0, [DType::Q4_0, DType::Q4_1, DType::Q8_0]));
    cases
}

/// Experts by themselves, one input a token and one a slot: the forms that no fusion takes.
pub fn expert_linear() -> Vec<Case> {
    let mut cases = vec![];
    for (dtype, per_slot) in [(DType::F32, false), (DType::F32, true), (DType::Q8_0, false), (DType::Q6K, true)] {
        let mut m = Maker::new(5);
        let logits = m.input(6);
        let made = m.b.add(Op::Router(router(6, 3)), &[logits]).unwrap();
        let x = m.input(if per_slot { 3 * 256 } else { 256 });
        let weight = m.weight(&[6, 34, 256], dtype);
        let y = m.one(Op::ExpertLinear { weight }, &[x, made[0]]);
        let z = m.one(Op::ExpertCombine, &[y, made[1]]);
        cases.push(m.finish(format!("expert_linear/{dtype} per slot {per_slot}"), &[("y0", y), ("y1", z)], &STEPS));
    }
    cases
}
