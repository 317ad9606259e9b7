//! Cases of the dense ops. Sizes: 1, 2, 3, one less and one more than tiles, primes; inputs with outliers.

use super::case::{Case, Maker};
use crate::support::{Target, load, run};
use moeray::{
    ir::{Activation, Linear, Norm, NormKind, Op},
    quant::DType,
};

/// Token counts that a step may have: alone, few (small batches), around a tile, many. Outputs as in a last chunk.
const STEPS: [(usize, usize, usize); 6] = [(1, 0, 1), (2, 0, 1), (3, 0, 0), (9, 0, 9), (17, 0, 2), (70, 0, 1)];

pub fn embed() -> Vec<Case> {
    DType::ALL
        .into_iter()
        .map(|dtype| {
            let mut m = Maker::new(dtype as u64);
            let table = m.weight(&[37, 256], dtype);
            m.vocab(37);
            let ids = m.one(Op::Tokens, &[]);
            let x = m.one(Op::Embed { table, scale: 1.5 }, &[ids]);
            // The reference rounds nothing here, and neither may the others: quantised or not.
            let mut case = m.finish(format!("embed/{dtype}"), &[("y0", x)], &STEPS);
            case.quantised = false;
            case
        })
        .collect()
}

pub fn linear() -> Vec<Case> {
    let mut cases = vec![];
    for dtype in DType::ALL {
        for (i, (n, k)) in [(1, 256), (3, 512), (67, 768)].into_iter().enumerate() {
            let mut m = Maker::new(100 + i as u64);
            let x = m.input(k);
            let weight = m.weight(&[n, k], dtype);
            let bias = (i == 1).then(|| m.weight(&[n], DType::F32));
            let y = m.one(Op::Linear(Linear { weight, bias }), &[x]);
            cases.push(m.finish(format!("linear/{dtype} [{n}, {k}]"), &[("y0", y)], &STEPS));
        }
    }
    // Row lengths that are no whole number of 32: float weights only.
    for (dtype, n, k) in [(DType::F32, 5, 4), (DType::F32, 31, 20), (DType::F16, 33, 48), (DType::BF16, 130, 176)] {
        let mut m = Maker::new(n as u64);
        let x = m.input(k);
        let weight = m.weight(&[n, k], dtype);
        let y = m.one(Op::Linear(Linear { weight, bias: None }), &[x]);
        cases.push(m.finish(format!("linear/{dtype} [{n}, {k}]"), &[("y0", y)], &STEPS));
    }
    cases
}

/// A product of 20 rows, one of which holds an infinity, one a number so large that no half holds it, one what is no number.
pub fn not_finite(target: Target) {
    let mut m = Maker::new(3);
    let x = m.input(256);
    let weight = m.weight(&[70, 256], DType::Q8_0);
    let y = m.one(Op::Linear(Linear { weight, bias: None }), &[x]);
    let mut case = m.finish("not finite", &[("y0", y)], &[(20, 0, 20)]);
    let input = &mut case.steps[0].2[0].1;
    (input[3 * 256 + 17], input[5 * 256 + 255], input[19 * 256]) = (f32::INFINITY, 3e30, f32::NAN);
    let Some(loaded) = load(target, &case.program) else { return };
    let out = run(&*loaded, case.kv, &case.steps).swap_remove(0).swap_remove(0);
    for (r, row) in out.f32.chunks(70).enumerate() {
        let finite = row.iter().filter(|v| v.is_finite()).count();
        assert_eq!(finite, if r == 3 || r == 19 { 0 } else { 70 }, "{target:?}, row {r}: {row:?}");
    }
}

/// Fused forms around matrices: norm in front, residual behind, sigmoid gate, gated unit; parts of mixed types.
pub fn linear_fused() -> Vec<Case> {
    let mut cases = vec![];
    for (q, v) in
        [(DType::F32, DType::F32), (DType::Q4K, DType::Q6K), (DType::Q8_0, DType::Q8_0), (DType::BF16, DType::Q4_0)]
    {
        let mut m = Maker::new(7);
        let x = m.input(256);
        let norm = Norm::rms(m.near_one(256), 1e-5);
        let normed = m.one(Op::RmsNorm(norm), &[x]);
        let mut outputs = vec![];
        for (n, dtype, biased) in [(96, q, true), (33, q, false), (40, v, true)] {
            let weight = m.weight(&[n, 256], dtype);
            let bias = biased.then(|| m.weight(&[n], DType::F32));
            outputs.push(m.one(Op::Linear(Linear { weight, bias }), &[normed]));
        }
        let named: Vec<(&str, _)> = ["y0", "y1", "y2"].into_iter().zip(outputs).collect();
        cases.push(m.finish(format!("norm_linears/{q} {v}"), &named, &STEPS));

        let mut m = Maker::new(8);
        let x = m.input(256);
        let (gate, up) = (m.weight(&[512, 256], q), m.weight(&[512, 256], v));
        let (down, gate_inp) = (m.weight(&[256, 512], q), m.weight(&[1, 256], DType::F32));
        let plain = |weight| Op::Linear(Linear { weight, bias: None });
        let (g, u) = (m.one(plain(gate), &[x]), m.one(plain(up), &[x]));
        let h = m.one(Op::Glu(Activation::Silu), &[g, u]);
        let y = m.one(plain(down), &[h]);
        let s = m.one(plain(gate_inp), &[x]);
        let y = m.one(Op::SigmoidGate, &[y, s]);
        let y = m.one(Op::Add, &[x, y]);
        let bias = m.weight(&[100], DType::F32);
        let weight = m.weight(&[100, 256], v);
        let z = m.one(Op::Linear(Linear { weight, bias: Some(bias) }), &[y]);
        let r = m.input(100);
        let z = m.one(Op::Add, &[r, z]);
        let weight = m.weight(&[100, 256], q);
        let s = m.one(Op::Linear(Linear { weight, bias: Some(bias) }), &[y]);
        let s = m.one(Op::Scale(0.22), &[s]);
        let s = m.one(Op::Add, &[z, s]);
        let weight = m.weight(&[60, 256], q);
        let bias = m.weight(&[60], DType::F32);
        let a = m.one(Op::Linear(Linear { weight, bias: Some(bias) }), &[y]);
        let a = m.one(Op::Act(Activation::Gelu), &[a]);
        cases.push(m.finish(format!("linear_add/{q} {v}"), &[("y0", y), ("y1", s), ("y2", a)], &STEPS));
    }
    cases
}

pub fn elementwise() -> Vec<Case> {
    let mut cases = vec![];
    for n in [1, 4, 33, 260] {
        let mut m = Maker::new(n as u64);
        let (a, b, g) = (m.input(n), m.input(n), m.input(1));
        let mut made = vec![m.one(Op::Add, &[a, b]), m.one(Op::Scale(-0.75), &[a]), m.one(Op::SigmoidGate, &[b, g])];
        for act in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            made.push(m.one(Op::Glu(act), &[a, b]));
        }
        made.push(m.one(Op::Glu(Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 }), &[a, b]));
        made.push(m.one(Op::Act(Activation::Gelu), &[a]));
        made.push(m.one(Op::Act(Activation::Relu), &[b]));
        made.push(m.one(Op::Act(Activation::Tanh), &[b]));
        let names = ["y0", "y1", "y2", "y3", "y4", "y5", "y6", "y7", "y8", "y9", "y10"];
        let named: Vec<(&str, _)> = names.into_iter().zip(made).collect();
        cases.push(m.finish(format!("elementwise/{n}"), &named, &STEPS));
        let mut m = Maker::new(n as u64);
        let x = m.input(n);
        let y = m.one(Op::TakeOutputs, &[x]);
        cases.push(m.finish(format!("take_outputs/{n}"), &[("y0", y)], &STEPS));
    }
    cases
}

pub fn rms_norm() -> Vec<Case> {
    let sizes = [(4, 4), (48, 48), (260, 260), (64, 16), (96, 32), (2048, 2048)];
    let case = |(cols, n): (usize, usize)| {
        let mut m = Maker::new(cols as u64);
        let x = m.input(cols);
        let norm = Norm::rms(m.near_one(n), 1e-6);
        let y = m.one(Op::RmsNorm(norm), &[x]);
        // A second user keeps the norm from vanishing into a fused op.
        m.finish(format!("rms_norm/{cols} in groups of {n}"), &[("y0", y)], &STEPS)
    };
    let mut cases: Vec<Case> = sizes.into_iter().map(case).collect();
    // Layer norms, with bias and without, alone and before matrices; a root-mean-square norm with a bias.
    for (cols, kind, biased) in [
        (4, NormKind::Layer, true),
        (260, NormKind::Layer, false),
        (96, NormKind::Rms, true),
        (2048, NormKind::Layer, true),
    ] {
        let mut m = Maker::new(cols as u64 + 1);
        let x = m.input(cols);
        let weight = m.near_one(cols);
        let bias = biased.then(|| m.weight(&[cols], DType::F32));
        let y = m.one(Op::RmsNorm(Norm { kind, weight, bias, eps: 1e-5 }), &[x]);
        let x = m.input(cols);
        let normed = m.one(Op::RmsNorm(Norm { kind, weight, bias, eps: 1e-5 }), &[x]);
        let weight = m.weight(&[20, cols], DType::F32);
        let z = m.one(Op::Linear(Linear { weight, bias: None }), &[normed]);
        cases.push(m.finish(format!("layer_norm/{cols}, {kind:?}, bias {biased}"), &[("y0", y), ("y1", z)], &STEPS));
    }
    cases
}
