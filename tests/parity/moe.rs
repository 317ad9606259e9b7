//! Cases of routing and experts: ties, k = all experts, one expert for all tokens, experts without a token.

use super::case::{Case, Maker};
use crate::support::{Target, load, run};
use moeray::{
    ir::{Activation, GroupScore, Groups, Linear, Norm, Op, Renormalise, Router, Score},
    quant::DType,
};

const STEPS: [(usize, usize, usize); 6] = [(1, 0, 1), (2, 0, 1), (3, 0, 0), (8, 0, 8), (9, 0, 1), (65, 0, 1)];

fn router(experts: usize, used: usize) -> Router {
    Router::new(experts, used, Score::Softmax)
}

/// A router by itself: its case, with a random selection bias where there is one.
fn routing(name: String, mut r: Router, biased: bool) -> Case {
    let mut m = Maker::new(r.experts as u64);
    if biased {
        r.selection_bias = Some(m.weight(&[r.experts], DType::F32));
    }
    let logits = m.input(r.logits());
    let made = m.b.add(Op::Router(r), &[logits]).unwrap();
    let named = [("router_ids_0", made[0]), ("router_weights_0", made[1])];
    m.finish(format!("router/{name}: {r}"), &named, &STEPS)
}

/// As `routing`, with factors of experts.
fn scaled(name: &str, mut r: Router, biased: bool) -> Case {
    let mut m = Maker::new(r.experts as u64 + 1);
    if biased {
        r.selection_bias = Some(m.weight(&[r.experts], DType::F32));
    }
    r.expert_scale = Some(m.near_one(r.experts));
    let logits = m.input(r.experts);
    let made = m.b.add(Op::Router(r), &[logits]).unwrap();
    let named = [("router_ids_0", made[0]), ("router_weights_0", made[1])];
    m.finish(format!("router/{name}: {r}"), &named, &STEPS)
}

fn groups(count: usize, used: usize, score: GroupScore) -> Option<Groups> {
    Some(Groups { count, used, score })
}

pub fn routers() -> Vec<Case> {
    use Renormalise::{No, Sum, SumAtLeast, SumPlus};
    const SCORES: [Score; 4] = [Score::Softmax, Score::SoftmaxOfSelected, Score::Sigmoid, Score::SqrtSoftplus];
    let mut cases = vec![];
    for (i, (experts, used)) in [(1, 1), (4, 2), (8, 8), (60, 4), (128, 8), (512, 10)].into_iter().enumerate() {
        for (j, score) in SCORES.into_iter().enumerate() {
            let renormalise = [No, Sum, SumPlus(0.25), SumAtLeast(0.9)][(i + j) % 4];
            cases.push(routing(
                "plain".into(),
                Router { renormalise, scale: 1.5, ..Router::new(experts, used, score) },
                false,
            ));
        }
    }
    // Factors of experts, alone, beside a selection bias, beside groups that count scores, and behind other weights.
    let softmax = Router { renormalise: Sum, ..Router::new(128, 8, Score::Softmax) };
    cases.push(scaled("factors", softmax, false));
    cases.push(scaled("factors and biases", Router { scale: 1.5, ..Router::new(60, 6, Score::Sigmoid) }, true));
    let grouped = Router { groups: groups(8, 4, GroupScore::TopTwo), ..Router::new(64, 4, Score::Sigmoid) };
    cases.push(scaled("factors and groups", grouped, false));
    cases.push(scaled(
        "factors",
        Router { renormalise: Renormalise::Softmax, ..Router::new(8, 2, Score::Softmax) },
        false,
    ));
    let mixer = Score::SparseMixer { threshold: 0.02 };
    cases.push(scaled("factors", Router::new(16, 2, mixer), false));
    // A selection bias, k = all experts among them.
    for (experts, used, score) in
        [(4, 4, Score::Softmax), (60, 4, Score::Softmax), (60, 6, Score::Sigmoid), (160, 6, Score::SqrtSoftplus)]
    {
        for renormalise in [No, SumAtLeast(1e-12), SumPlus(1e-20)] {
            let r = Router { renormalise, scale: 2.5, ..Router::new(experts, used, score) };
            cases.push(routing("biased".into(), r, true));
        }
    }
    // Groups: by the best expert and by the top two, groups of one expert, all groups, exactly as many experts as wanted.
    for (experts, used, g, score, biased) in [
        (64, 6, groups(8, 3, GroupScore::Max), Score::Softmax, false),
        (64, 6, groups(8, 3, GroupScore::Max), Score::SoftmaxOfSelected, false),
        (12, 4, groups(12, 5, GroupScore::Max), Score::Softmax, false),
        (256, 8, groups(8, 4, GroupScore::TopTwo), Score::Sigmoid, true),
        (60, 5, groups(4, 4, GroupScore::TopTwo), Score::Sigmoid, true),
        (12, 4, groups(6, 2, GroupScore::TopTwo), Score::Sigmoid, true),
        (12, 4, groups(6, 2, GroupScore::TopTwo), Score::Softmax, false),
        (12, 3, groups(1, 1, GroupScore::TopTwo), Score::Sigmoid, true),
        (96, 4, groups(4, 2, GroupScore::Max), Score::SqrtSoftplus, true),
    ] {
        for renormalise in [No, SumPlus(1e-20)] {
            let r = Router { groups: g, renormalise, scale: 2.5, ..Router::new(experts, used, score) };
            cases.push(routing("groups".into(), r, biased));
        }
    }
    // A router over groups: one group and all, one expert of each and all, groups of one expert, more than a workgroup.
    for (experts, used, count, of_groups) in [
        (8, 4, 4, 2),
        (8, 2, 4, 2),
        (8, 2, 4, 1),
        (8, 8, 4, 4),
        (6, 2, 6, 2),
        (12, 9, 4, 3),
        (60, 6, 5, 3),
        (256, 8, 8, 4),
        (3, 2, 1, 1),
    ] {
        let groups = groups(count, of_groups, GroupScore::Own);
        let r = Router { groups, scale: 1.5, ..Router::new(experts, used, Score::SoftmaxOfSelected) };
        cases.push(routing(format!("a router over {count} groups"), r, false));
    }
    for (experts, used, score) in [(16, 4, Score::Softmax), (5, 5, Score::Sigmoid), (100, 8, Score::SqrtSoftplus)] {
        let r = Router { renormalise: Renormalise::Softmax, scale: 1.5, ..Router::new(experts, used, score) };
        cases.push(routing("second softmax".into(), r, false));
    }
    for (experts, used, threshold) in [(16, 2, 0.02), (8, 2, 0.5), (9, 9, 0.3), (100, 3, 1.5), (1, 1, 0.02)] {
        cases.push(routing("sparsemixer".into(), Router::new(experts, used, Score::SparseMixer { threshold }), false));
    }
    cases.extend(special_logits());
    cases
}

/// Ties (the lower id wins, the lower group wins), both zeros, and logits far beyond what an exponential takes.
fn special_logits() -> Vec<Case> {
    let plain = router(12, 5);
    let grouped = Router { groups: groups(4, 2, GroupScore::TopTwo), ..Router::new(12, 5, Score::Sigmoid) };
    let best = Router { groups: groups(4, 2, GroupScore::Max), ..plain };
    type Logit = fn(usize, f32) -> f32;
    let logits: [(&str, Logit); 5] = [
        ("all equal", |_, _| 0.0),
        ("equal in threes", |i, _| (i % 3) as f32),
        ("zeros of both signs", |i, _| if i % 2 == 0 { -0.0 } else { 0.0 }),
        ("huge", |i, x| 1e30 * (x + i as f32)),
        ("far apart", |i, _| 300.0 * (i as f32 - 6.0)),
    ];
    let mut cases = vec![];
    for (name, logit) in logits {
        for r in [plain, grouped, best, Router { score: Score::SqrtSoftplus, renormalise: Renormalise::Sum, ..plain }] {
            let mut case = routing(name.into(), r, false);
            for (_, _, inputs) in &mut case.steps {
                inputs[0].1.iter_mut().enumerate().for_each(|(i, x)| *x = logit(i % 12, *x));
            }
            cases.push(case);
        }
    }
    cases
}

/// Not-a-number among the logits: every backend still chooses k different experts, and the same ones.
pub fn not_a_number(target: Target) {
    let base = router(12, 5);
    let of_groups = Router { groups: groups(4, 2, GroupScore::TopTwo), ..Router::new(12, 5, Score::Sigmoid) };
    for (r, biased) in
        [(base, false), (Router { score: Score::Sigmoid, ..base }, true), (base, true), (of_groups, true)]
    {
        let mut case = routing("not-a-number".into(), r, biased);
        for (t, (_, _, inputs)) in case.steps.iter_mut().enumerate() {
            let bad = |(i, x): (usize, &mut f32)| {
                if (i / 12 + t) % 4 != 0 && (i * 7 + t) % 3 == 0 {
                    *x = f32::NAN
                }
            };
            inputs[0].1.iter_mut().enumerate().for_each(bad);
        }
        let Some(loaded) = load(target, &case.program) else { return };
        let want = run(&*load(Target::Reference, &case.program).unwrap(), case.kv, &case.steps);
        let got = run(&*loaded, case.kv, &case.steps);
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(got[0].u32, want[0].u32, "{} on {target:?}", case.name);
            for ids in got[0].u32.chunks(5) {
                assert!(
                    ids.iter().enumerate().all(|(i, e)| *e < 12 && !ids[..i].contains(e)),
                    "{}: {ids:?}",
                    case.name
                );
            }
        }
    }
}

/// One token with these logits through the reference.
fn route(logits: &[f32], r: Router, bias: Option<&[f32]>) -> (Vec<u32>, Vec<f32>) {
    let mut m = Maker::new(1);
    let selection_bias = bias.map(|b| m.given(&[b.len()], DType::F32, b));
    let x = m.input(logits.len());
    let made = m.b.add(Op::Router(Router { selection_bias, ..r }), &[x]).unwrap();
    let mut case = m.finish("by hand", &[("router_ids_0", made[0]), ("router_weights_0", made[1])], &[(1, 0, 1)]);
    case.steps[0].2[0].1 = logits.to_vec();
    let mut out = run(&*load(Target::Reference, &case.program).unwrap(), case.kv, &case.steps).remove(0);
    (std::mem::take(&mut out[0].u32), std::mem::take(&mut out[1].f32))
}

pub fn by_hand() {
    let close = |got: &[f32], want: &[f64]| {
        assert_eq!(got.len(), want.len());
        got.iter()
            .zip(want)
            .for_each(|(g, w)| assert!((f64::from(*g) - w).abs() < 1e-6 * w.abs(), "{got:?}, {want:?}"));
    };
    let s = |x: f64| 1.0 / (1.0 + (-x).exp());
    // Three groups of two. By top two: 3+0, 2+2, -1-1; by best: the first.
    let logits = [3.0, 0.0, 2.0, 2.0, -1.0, -1.0];
    let deepseek = |used_groups, score| Router {
        groups: groups(3, used_groups, score),
        renormalise: Renormalise::SumPlus(0.5),
        scale: 2.0,
        ..Router::new(6, 2, Score::Sigmoid)
    };
    let (ids, weights) = route(&logits, deepseek(1, GroupScore::TopTwo), None);
    assert_eq!(ids, [2, 3]);
    close(&weights, &[2.0 * s(2.0) / (2.0 * s(2.0) + 0.5); 2]);
    let (ids, _) = route(&logits, deepseek(1, GroupScore::Max), None);
    assert_eq!(ids, [0, 1]);
    // A bias lifts the last group and within it the second expert; the weights do not see it.
    let bias = [0.0, 0.0, 0.0, 0.0, 1.0, 2.0];
    let (ids, weights) = route(&logits, deepseek(1, GroupScore::TopTwo), Some(&bias));
    assert_eq!(ids, [5, 4]);
    close(&weights, &[2.0 * s(-1.0) / (2.0 * s(-1.0) + 0.5); 2]);
    // A softmax with a floor under the sum: the two worst experts are chosen.
    let ernie = Router { renormalise: Renormalise::SumAtLeast(0.5), ..Router::new(6, 2, Score::Softmax) };
    let (ids, weights) = route(&logits, ernie, Some(&bias));
    assert_eq!(ids, [5, 4]);
    let all: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    close(&weights, &[(-1f64).exp() / all / 0.5; 2]);
    // Each chosen expert's own factor, last of all.
    let mut m = Maker::new(1);
    let expert_scale = Some(m.given(&[3], DType::F32, &[5.0, 7.0, 11.0]));
    let x = m.input(3);
    let made = m.b.add(Op::Router(Router { expert_scale, ..router(3, 2) }), &[x]).unwrap();
    let mut case = m.finish("factors", &[("router_ids_0", made[0]), ("router_weights_0", made[1])], &[(1, 0, 1)]);
    case.steps[0].2[0].1 = vec![0.0, (3f32).ln(), (4f32).ln()];
    let out = run(&*load(Target::Reference, &case.program).unwrap(), case.kv, &case.steps).remove(0);
    assert_eq!(out[0].u32, [2, 1]);
    close(&out[1].f32, &[4.0 / 8.0 * 11.0, 3.0 / 8.0 * 7.0]);
    let plain = Router { renormalise: Renormalise::No, ..Router::new(6, 2, Score::SqrtSoftplus) };
    let (ids, weights) = route(&logits, plain, None);
    assert_eq!(ids, [0, 2]);
    close(&weights, &[(3f64.exp() + 1.0).ln().sqrt(), (2f64.exp() + 1.0).ln().sqrt()]);
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
    /// Whether the experts have biases.
    expert_bias: bool,
    act: Activation,
    /// Whether experts are gated units.
    gated: bool,
    /// Factor on what is added to the residual.
    factor: f32,
    /// Whether the routers' weights go on the experts' inputs.
    scaled_inputs: bool,
}

fn block(b: Block) -> Case {
    let (h, i, e) = (b.hidden, b.width, b.router.experts);
    let mut m = Maker::new(e as u64 * 7 + i as u64);
    let x = m.input(h);
    let norm = Norm::rms(m.near_one(h), 1e-6);
    let normed = m.one(Op::RmsNorm(norm), &[x]);
    let weight = m.weight(&[e, h], DType::F32);
    let bias = b.bias.as_ref().map(|v| m.given(&[e], DType::F32, v));
    let logits = m.one(Op::Linear(Linear { weight, bias }), &[normed]);
    let mut router = b.router;
    // In the blocks, a router with groups has a selection bias too.
    if router.groups.is_some() {
        router.selection_bias = Some(m.weight(&[e], DType::F32));
    }
    let made = m.b.add(Op::Router(router), &[logits]).unwrap();
    let expert = |m: &mut Maker, shape: [usize; 3], d: DType| {
        let weight = m.weight(&shape, d);
        let bias = b.expert_bias.then(|| m.weight(&shape[..2], DType::F32));
        Op::ExpertLinear(Linear { weight, bias })
    };
    let (gate, up) = (expert(&mut m, [e, i, h], b.types[0]), expert(&mut m, [e, i, h], b.types[1]));
    let down = expert(&mut m, [e, h, i], b.types[2]);
    let (input, weights) = if b.scaled_inputs {
        let scaled_inputs = m.b.add(Op::ScaleExpertInputs, &[normed, made[1]]).unwrap();
        (scaled_inputs[0], scaled_inputs[1])
    } else {
        (normed, made[1])
    };
    let g = m.one(gate, &[input, made[0]]);
    let a = if b.gated {
        let u = m.one(up, &[input, made[0]]);
        m.one(Op::Glu(b.act), &[g, u])
    } else {
        m.one(Op::Act(b.act), &[g])
    };
    let y = m.one(down, &[a, made[0]]);
    let mut y = m.one(Op::ExpertCombine, &[y, weights]);
    if b.factor != 1.0 {
        y = m.one(Op::Scale(b.factor), &[y]);
    }
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
        expert_bias: false,
        act: Activation::Silu,
        gated: true,
        factor: 1.0,
        scaled_inputs: false,
    };
    let mut one_expert = vec![0.0; 8];
    one_expert[5] = 1e4;
    one_expert[2] = 5e3;
    let mut cases = vec![
        block(base("plain")),
        block(Block { shared: Some(48), ..base("shared expert") }),
        block(Block { router: router(8, 8), ..base("all experts") }),
        block(Block { router: router(8, 1), ..base("top 1") }),
        block(Block { router: router(1, 1), ..base("one expert") }),
        block(Block { router: Router { renormalise: Renormalise::Sum, ..router(100, 6) }, ..base("100 experts") }),
        block(Block {
            shared: Some(48),
            router: Router {
                groups: groups(4, 2, GroupScore::TopTwo),
                renormalise: Renormalise::SumPlus(1e-20),
                scale: 2.5,
                ..Router::new(16, 4, Score::Sigmoid)
            },
            ..base("groups and selection bias")
        }),
        block(Block { bias: Some(one_expert), ..base("all tokens to two experts") }),
        block(Block { types: [DType::F32, DType::BF16, DType::F16], ..base("mixed floats") }),
    ];
    // Experts as other families have them: biases, GPT-OSS's unit, a factor before the residual, no gate.
    let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    cases.extend([
        block(Block { expert_bias: true, act: clamped, router: router(20, 3), ..base("biases, clamped") }),
        block(Block { factor: 0.22, ..base("factor") }),
        block(Block { expert_bias: true, gated: false, act: Activation::Gelu, ..base("no gate, GELU, biases") }),
        block(Block { gated: false, act: Activation::Relu, factor: 0.5, ..base("no gate, ReLU") }),
        block(Block {
            hidden: 256,
            width: 256,
            types: [DType::MXFP4; 3],
            expert_bias: true,
            act: clamped,
            ..base("mxfp4, biases, clamped")
        }),
    ]);
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
    // Choices that the first product with the experts makes, and shared experts that ride with the routed ones or may not.
    let sigmoid = Router { renormalise: Renormalise::Sum, scale: 2.5, ..Router::new(130, 5, Score::Sigmoid) };
    let selected = Router::new(12, 5, Score::SoftmaxOfSelected);
    cases.extend([
        block(Block { router: sigmoid, ..base("sigmoid") }),
        block(Block { shared: Some(48), router: selected, ..base("softmax of the selected") }),
        block(Block { shared: Some(112), router: router(6, 3), ..base("wide shared expert") }),
        block(Block { shared: Some(20), router: router(9, 2), ..base("narrow shared expert") }),
        block(Block { shared: Some(48), factor: 0.5, ..base("shared expert, factor") }),
        block(Block { shared: Some(48), expert_bias: true, ..base("shared expert, biases") }),
        block(Block {
            scaled_inputs: true,
            router: Router::new(9, 1, Score::Sigmoid),
            shared: Some(48),
            ..base("weights on the inputs")
        }),
        block(Block {
            hidden: 256,
            width: 256,
            types: [DType::Q4K, DType::Q4K, DType::Q6K],
            scaled_inputs: true,
            ..base("weights on the inputs of two, quantised")
        }),
    ]);
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
        let bias = per_slot.then(|| m.weight(&[6, 34], DType::F32));
        let y = m.one(Op::ExpertLinear(Linear { weight, bias }), &[x, made[0]]);
        let z = m.one(Op::ExpertCombine, &[y, made[1]]);
        cases.push(m.finish(format!("expert_linear/{dtype} per slot {per_slot}"), &[("y0", y), ("y1", z)], &STEPS));
    }
    cases
}

/// The numbers of the experts that are here, of all and of a part: the first, the last, those between. Compared as pairs with weights.
pub fn local_ids() -> Vec<Case> {
    let case = |(heads, first, count): (usize, u32, u32)| {
        let mut m = Maker::new(7);
        let ids = m.one(Op::HeadIds { heads }, &[]);
        let local = m.one(Op::LocalIds { first, count }, &[ids]);
        let x = m.input(heads);
        let weights = m.one(Op::Scale(2.0), &[x]);
        let named = [("router_ids_0", local), ("router_weights_0", weights)];
        m.finish(format!("local_ids/{count} of {heads} from {first}"), &named, &STEPS)
    };
    [(1, 0, 1), (9, 3, 4), (8, 0, 3), (70, 64, 6)].into_iter().map(case).collect()
}
