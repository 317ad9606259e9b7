//! A loop of 100 Adam steps on a layer of routed and shared experts, against PyTorch's curve in f64
//! (`tests/data/train/f06_loop`): the layer's gradients are written out here, the steps are the optimizer's.
//!
//! E experts and S shared ones are linear with bias; p = softmax(gate x), the k largest divided by their sum; the loss is the mean
//! square plus 0.01 · (balance + 0.001 · mean of the squared logits), where the balance is E · Σⱼₑ load[j, e] · mean p[e] with the
//! loads of first and second choice apart.

use moeray::train::{Algorithm, Optimizer, OptimizerOptions, Parameter, Rule, Slot, data::normal};
use safetensors::SafeTensors;
use serde_json::Value as Json;
use std::collections::BTreeMap;

const H: usize = 32;
const N: usize = 32 * 16;
const E: usize = 4;
const SHARED: usize = 2;

type Weights = BTreeMap<String, Vec<f32>>;

fn name(kind: &str, i: usize, part: &str) -> String {
    match kind {
        "gate" => format!("moe_model.router.gate.{part}"),
        "expert" => format!("moe_model.experts.{i}.linear.{part}"),
        _ => format!("shared_experts.{i}.linear.{part}"),
    }
}

/// W x + b of every row, f64.
fn linear(w: &Weights, kind: &str, i: usize, x: &[f64], out: usize) -> Vec<f64> {
    let (m, b) = (&w[&name(kind, i, "weight")], &w[&name(kind, i, "bias")]);
    let m: Vec<f64> = m.iter().map(|v| f64::from(*v)).collect();
    let mut y = Vec::with_capacity(N * out);
    for row in x.chunks(H) {
        for (m, b) in m.chunks(H).zip(b) {
            y.push(f64::from(*b) + m.iter().zip(row).map(|(a, b)| a * b).sum::<f64>());
        }
    }
    y
}

/// Adds dyᵀ x and the sum of dy.
fn back(g: &mut Weights, kind: &str, i: usize, x: &[f64], dy: &[f64], out: usize) {
    let (mut m, mut b) = (vec![0.0f64; out * H], vec![0.0f64; out]);
    for (x, dy) in x.chunks(H).zip(dy.chunks(out)).filter(|(_, dy)| dy.iter().any(|d| *d != 0.0)) {
        for ((m, b), d) in m.chunks_mut(H).zip(&mut b).zip(dy) {
            *b += d;
            m.iter_mut().zip(x).for_each(|(m, x)| *m += d * x);
        }
    }
    g.insert(name(kind, i, "weight"), m.into_iter().map(|v| v as f32).collect());
    g.insert(name(kind, i, "bias"), b.into_iter().map(|v| v as f32).collect());
}

/// Mean square, balance, z, and all gradients.
fn step(w: &Weights, x: &[f64], target: &[f64]) -> ([f64; 3], Weights) {
    let logits = linear(w, "gate", 0, x, E);
    let outs: Vec<Vec<f64>> = (0..E).map(|e| linear(w, "expert", e, x, H)).collect();
    let shared: Vec<Vec<f64>> = (0..SHARED).map(|s| linear(w, "shared", s, x, H)).collect();
    let (mut p, mut chosen, mut load, mut mean) = (vec![0.0; N * E], vec![], [0.0; E], [0.0; E]);
    for n in 0..N {
        let l = &logits[n * E..(n + 1) * E];
        let most = l.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = l.iter().map(|v| (v - most).exp()).sum();
        (0..E).for_each(|e| p[n * E + e] = (l[e] - most).exp() / sum);
        let mut order: Vec<usize> = (0..E).collect();
        order.sort_by(|a, b| l[*b].total_cmp(&l[*a]));
        for e in &order[..2] {
            load[*e] += 1.0 / N as f64;
        }
        (0..E).for_each(|e| mean[e] += p[n * E + e] / N as f64);
        chosen.push([order[0], order[1]]);
    }
    let balance = E as f64 * (0..E).map(|e| load[e] * mean[e]).sum::<f64>();
    let z = logits.iter().map(|l| l * l).sum::<f64>() / (N * E) as f64;
    let (mut mse, mut dy, mut dlogits) = (0.0, vec![0.0; N * H], vec![0.0; N * E]);
    let mut dout = vec![vec![0.0; N * H]; E];
    for n in 0..N {
        let c = chosen[n];
        let (a, b) = (p[n * E + c[0]], p[n * E + c[1]]);
        let g = [a / (a + b), b / (a + b)];
        let mut dg = [0.0; 2];
        for h in n * H..(n + 1) * H {
            let y = g[0] * outs[c[0]][h] + g[1] * outs[c[1]][h] + shared.iter().map(|s| s[h]).sum::<f64>();
            let d = y - target[h];
            mse += d * d / (N * H) as f64;
            dy[h] = 2.0 * d / (N * H) as f64;
            for j in 0..2 {
                dout[c[j]][h] = g[j] * dy[h];
                dg[j] += dy[h] * outs[c[j]][h];
            }
        }
        let mut dp = [0.0; E];
        (0..E).for_each(|e| dp[e] = 0.01 * E as f64 * load[e] / N as f64);
        let inner = g[0] * dg[0] + g[1] * dg[1];
        (0..2).for_each(|j| dp[c[j]] += (dg[j] - inner) / (a + b));
        let through: f64 = (0..E).map(|e| dp[e] * p[n * E + e]).sum();
        for e in 0..E {
            let i = n * E + e;
            dlogits[i] = p[i] * (dp[e] - through) + 0.01 * 0.001 * 2.0 * logits[i] / (N * E) as f64;
        }
    }
    let mut g = Weights::new();
    back(&mut g, "gate", 0, x, &dlogits, E);
    (0..E).for_each(|e| back(&mut g, "expert", e, x, &dout[e], H));
    (0..SHARED).for_each(|s| back(&mut g, "shared", s, x, &dy, H));
    ([mse, balance, z], g)
}

fn f64s(file: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let bytes = file.tensor(name).unwrap().data().to_vec();
    bytes.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let bytes = file.tensor(name).unwrap().data().to_vec();
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn a_hundred_steps_follow_pytorch() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/train/f06_loop");
    let case: Json = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder.join("data.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shapes = case["weights"].as_object().unwrap();
    let seed = case["seed"].as_u64().unwrap() as u32;
    let parameters: Vec<Parameter> = shapes
        .iter()
        .map(|(n, s)| {
            Parameter::new(n, &s.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect::<Vec<_>>())
        })
        .collect();
    let mut w: Weights = parameters.iter().map(|p| (p.name.clone(), f32s(&file, &p.name))).collect();
    let options = OptimizerOptions {
        algorithm: Algorithm::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, decoupled: false },
        ..Default::default()
    };
    let rules = parameters.iter().map(|p| Rule::of(p, &options, &Default::default())).collect();
    let mut optimizer = Optimizer::new(options, &parameters, rules).unwrap();
    let curves = ["mse", "balance", "z"].map(|t| f64s(&file, &format!("curve.{t}")));
    let steps = curves[0].len();
    assert_eq!(steps, 100);
    let mut worst = 0.0f64;
    for s in 0..steps {
        let stream = |t: u32| (0..N * H).map(move |i| f64::from(normal(seed, t, (s * N * H + i) as u32)));
        let (x, target): (Vec<f64>, Vec<f64>) = (stream(1).collect(), stream(2).collect());
        let (terms, g) = step(&w, &x, &target);
        for ((got, want), term) in terms.iter().zip(&curves).zip(["mse", "balance", "z"]) {
            let error = (got - want[s]).abs();
            worst = worst.max(error);
            assert!(error < 1e-4, "step {s}: {term} is {got} instead of {}", want[s]);
        }
        for (i, p) in parameters.iter().enumerate() {
            let weights = w.get_mut(&p.name).unwrap();
            let slot = Slot { weights, gradients: &g[&p.name], used: &[] };
            optimizer.step(i, slot, case["hyper"]["lr"].as_f64().unwrap(), 1.0, 1).unwrap();
        }
    }
    println!("shared experts, 100 steps: the largest difference from PyTorch's curve is {worst:.1e}");
    for p in &parameters {
        let want = f32s(&file, &format!("final.{}", p.name));
        let d = crate::support::compare::diff(&w[&p.name], &want);
        assert!(d.nmse < 1e-6, "{}: {d:?}", p.name);
    }
}
