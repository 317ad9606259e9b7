//! Optimizers against the formulas of PyTorch's documentation, in f64 and element by element.

use moeray::train::{Algorithm, Moments, Optimizer, OptimizerOptions, Parameter, Rule, Slot, Unused, data::normal};

const EXPERTS: usize = 3;

fn parameters() -> Vec<Parameter> {
    vec![
        Parameter::new("blk.0.attn_q.weight", &[5, 7]),
        Parameter::new("blk.0.attn_norm.weight", &[7]),
        Parameter::of_experts("blk.0.ffn_up_exps.weight", &[EXPERTS, 4, 6]),
        Parameter::new("token_embd.weight", &[300, 128]),
    ]
}

fn numbers(stream: u32, n: usize, scale: f32) -> Vec<f32> {
    (0..n).map(|i| normal(3, stream, i as u32) * scale).collect()
}

struct Run {
    weights: Vec<Vec<f32>>,
    optimizer: Optimizer,
}

/// `steps` steps with hash numbers as gradients; `used` says for step and expert whether it has tokens.
fn run(options: OptimizerOptions, steps: u32, threads: usize, used: impl Fn(u32, usize) -> bool) -> Run {
    let parameters = parameters();
    let none = Default::default();
    let rules = parameters.iter().map(|p| Rule::of(p, &options, &none)).collect();
    let mut optimizer = Optimizer::new(options, &parameters, rules).unwrap();
    let mut weights: Vec<Vec<f32>> =
        parameters.iter().enumerate().map(|(i, p)| numbers(i as u32, p.len(), 0.5)).collect();
    for s in 0..steps {
        for (i, p) in parameters.iter().enumerate() {
            let gradients = gradients(s, i, p, &used);
            let flags: Vec<bool> = (0..EXPERTS).map(|e| used(s, e)).collect();
            let slot =
                Slot { weights: &mut weights[i], gradients: &gradients, used: if p.slices > 1 { &flags } else { &[] } };
            optimizer.step(i, slot, rate(s), 0.5, threads).unwrap();
        }
    }
    Run { weights, optimizer }
}

fn rate(s: u32) -> f64 {
    1e-2 / f64::from(s + 1).sqrt()
}

fn gradients(s: u32, i: usize, p: &Parameter, used: impl Fn(u32, usize) -> bool) -> Vec<f32> {
    let mut g = numbers(100 + 10 * s + i as u32, p.len(), 0.1 * (i + 1) as f32);
    if p.slices > 1 {
        let each = p.len() / EXPERTS;
        (0..EXPERTS).filter(|e| !used(s, *e)).for_each(|e| g[e * each..(e + 1) * each].fill(0.0));
    }
    g
}

/// The slices of a parameter: first weight, rows, columns (1 row for vectors).
fn slices(p: &Parameter) -> Vec<(usize, usize, usize)> {
    let each = p.len() / p.slices;
    let cols = *p.shape.last().unwrap();
    (0..p.slices).map(|s| (s * each, each / cols, cols)).collect()
}

/// Runs the same steps by `step(w, g, state, t, decay)` on each slice in f64, and compares.
fn compare(
    name: &str,
    options: OptimizerOptions,
    step: impl Fn(&mut [f64], &[f64], &mut Vec<f64>, i32, f64, f64, [usize; 2]),
) {
    let used = |s: u32, e: usize| e != 1 || s % 3 == 1;
    let got = run(options, 12, 1, used);
    for (i, p) in parameters().iter().enumerate() {
        let mut w: Vec<f64> = numbers(i as u32, p.len(), 0.5).into_iter().map(f64::from).collect();
        let decay = if i == 1 { 0.0 } else { options.weight_decay };
        for (e, (at, rows, cols)) in slices(p).into_iter().enumerate() {
            let (mut state, mut t) = (vec![], 0);
            for s in (0..12).filter(|s| p.slices == 1 || used(*s, e)) {
                t += 1;
                let g: Vec<f64> =
                    gradients(s, i, p, used)[at..at + rows * cols].iter().map(|g| f64::from(*g) * 0.5).collect();
                step(&mut w[at..at + rows * cols], &g, &mut state, t, rate(s), decay, [rows, cols]);
            }
        }
        for (j, (got, want)) in got.weights[i].iter().zip(&w).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(error < 2e-6, "{name}, {}, weight {j}: {got} instead of {want}", p.name);
        }
    }
}

fn adam(decoupled: bool) -> Algorithm {
    Algorithm::Adam { beta1: 0.9, beta2: 0.99, eps: 1e-6, decoupled }
}

#[test]
fn adam_and_adamw() {
    for decoupled in [true, false] {
        let options = OptimizerOptions { algorithm: adam(decoupled), weight_decay: 0.1, ..Default::default() };
        compare(if decoupled { "adamw" } else { "adam" }, options, |w, g, state, t, lr, decay, _| {
            state.resize(2 * w.len(), 0.0);
            let n = w.len();
            for i in 0..n {
                let g = if decoupled { g[i] } else { g[i] + decay * w[i] };
                if decoupled {
                    w[i] -= lr * decay * w[i];
                }
                state[i] = 0.9 * state[i] + 0.1 * g;
                state[n + i] = 0.99 * state[n + i] + 0.01 * g * g;
                let (m, v) = (state[i] / (1.0 - 0.9f64.powi(t)), state[n + i] / (1.0 - 0.99f64.powi(t)));
                w[i] -= lr * m / (v.sqrt() + 1e-6);
            }
        });
    }
}

#[test]
fn a_bias_correction_off_by_one_is_seen() {
    // The alarm of the comparison above: steps counted from 0 or 2 differ by far more than its tolerance.
    let (g, lr) = (0.05f64, 1e-2);
    let first = |t: i32| {
        let (m, v) = (0.1 * g / (1.0 - 0.9f64.powi(t)), 0.01 * g * g / (1.0 - 0.99f64.powi(t)));
        lr * m / (v.sqrt() + 1e-6)
    };
    assert!((first(1) - first(2)).abs() > 1e-3);
}

#[test]
fn sgd_with_momentum() {
    for nesterov in [false, true] {
        let algorithm = Algorithm::Sgd { momentum: 0.8, nesterov };
        let options = OptimizerOptions { algorithm, weight_decay: 0.05, ..Default::default() };
        compare("sgd", options, |w, g, state, t, lr, decay, _| {
            state.resize(w.len(), 0.0);
            for i in 0..w.len() {
                let g = g[i] + decay * w[i];
                state[i] = if t == 1 { g } else { 0.8 * state[i] + g };
                w[i] -= lr * if nesterov { g + 0.8 * state[i] } else { state[i] };
            }
        });
    }
    let plain = OptimizerOptions { algorithm: Algorithm::Sgd { momentum: 0.0, nesterov: false }, ..Default::default() };
    compare("plain sgd", plain, |w, g, _, _, lr, _, _| w.iter_mut().zip(g).for_each(|(w, g)| *w -= lr * g));
}

#[test]
fn adafactor_as_pytorch_has_it() {
    let algorithm = Algorithm::Adafactor { beta2_decay: -0.8, eps: 1e-3, clip_threshold: 1.0 };
    let options = OptimizerOptions { algorithm, weight_decay: 0.1, ..Default::default() };
    compare("adafactor", options, |w, g, state, t, lr, decay, [rows, cols]| {
        let (n, eps1) = (w.len(), f64::from(f32::EPSILON));
        state.resize(n + rows + cols, 0.0);
        let lerp = f64::from(t).powf(-0.8);
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let alpha = (norm(w) / (n as f64).sqrt()).max(1e-3) * lr.min(1.0 / f64::from(t).sqrt());
        w.iter_mut().for_each(|w| *w *= 1.0 - lr * decay);
        let mut variance = vec![0.0; n];
        if rows > 1 {
            let (row, col) = state[n..].split_at_mut(rows);
            for r in 0..rows {
                let mean = g[r * cols..(r + 1) * cols].iter().map(|g| g * g).sum::<f64>() / cols as f64;
                row[r] += lerp * (mean - row[r]);
            }
            for c in 0..cols {
                let mean = (0..rows).map(|r| g[r * cols + c].powi(2)).sum::<f64>() / rows as f64;
                col[c] += lerp * (mean - col[c]);
            }
            let mean = (row.iter().sum::<f64>() / rows as f64).max(eps1);
            (0..n).for_each(|i| variance[i] = row[i / cols] * col[i % cols] / mean);
        } else {
            (0..n).for_each(|i| state[i] += lerp * (g[i] * g[i] - state[i]));
            variance.copy_from_slice(&state[..n]);
        }
        let update: Vec<f64> = (0..n).map(|i| g[i] / variance[i].max(eps1 * eps1).sqrt()).collect();
        let denominator = (norm(&update) / (n as f64).sqrt()).max(1.0);
        (0..n).for_each(|i| w[i] -= alpha / denominator * update[i]);
    });
}

#[test]
fn experts_with_factored_moments() {
    for moments in [Moments::FactoredSecond, Moments::FactoredOnly] {
        let options = OptimizerOptions { algorithm: adam(true), expert_moments: moments, ..Default::default() };
        compare("factored", options, |w, g, state, t, lr, _, [rows, cols]| {
            let n = w.len();
            let expert = [rows, cols] == [4, 6];
            let beta1: f64 = if expert && moments == Moments::FactoredOnly { 0.0 } else { 0.9 };
            state.resize(2 * n + rows + cols, 0.0);
            let correction = 1.0 - 0.99f64.powi(t);
            let mut v = vec![0.0; n];
            if expert {
                for r in 0..rows {
                    let mean = g[r * cols..(r + 1) * cols].iter().map(|g| g * g).sum::<f64>() / cols as f64;
                    state[2 * n + r] = 0.99 * state[2 * n + r] + 0.01 * mean;
                }
                for c in 0..cols {
                    let mean = (0..rows).map(|r| g[r * cols + c].powi(2)).sum::<f64>() / rows as f64;
                    state[2 * n + rows + c] = 0.99 * state[2 * n + rows + c] + 0.01 * mean;
                }
                let mean = state[2 * n..2 * n + rows].iter().sum::<f64>() / rows as f64;
                (0..n).for_each(|i| v[i] = state[2 * n + i / cols] * state[2 * n + rows + i % cols] / mean);
            } else {
                (0..n).for_each(|i| state[n + i] = 0.99 * state[n + i] + 0.01 * g[i] * g[i]);
                v.copy_from_slice(&state[n..2 * n]);
            }
            for i in 0..n {
                state[i] = beta1 * state[i] + (1.0 - beta1) * g[i];
                w[i] -= lr * state[i] / (1.0 - beta1.powi(t)) / ((v[i] / correction).sqrt() + 1e-6);
            }
        });
    }
}

#[test]
fn factored_moments_are_exact_where_the_squares_are_a_product() {
    // Squared gradients of rank 1 lose nothing.
    let p = [Parameter::of_experts("blk.0.ffn_up_exps.weight", &[1, 3, 5])];
    let step = |moments| {
        let options = OptimizerOptions { algorithm: adam(true), expert_moments: moments, ..Default::default() };
        let mut o = Optimizer::new(options, &p, vec![Rule::of(&p[0], &options, &Default::default())]).unwrap();
        let mut w = vec![0.0f32; 15];
        for s in 1..6u32 {
            let g: Vec<f32> = (0..15).map(|i| 0.1 * (1 + i / 5) as f32 * (2 + i % 5) as f32 * s as f32).collect();
            o.step(0, Slot { weights: &mut w, gradients: &g, used: &[] }, 1e-2, 1.0, 1).unwrap();
        }
        (w, o.state_bytes())
    };
    let ((full, all), (factored, few)) = (step(Moments::Full), step(Moments::FactoredSecond));
    assert!(full.iter().zip(&factored).all(|(a, b)| (a - b).abs() < 1e-6), "{full:?} {factored:?}");
    assert_eq!((all, few, step(Moments::FactoredOnly).1), (4 * 30, 4 * (15 + 3 + 5), 4 * 8));
}

#[test]
fn threads_make_no_difference() {
    for algorithm in [adam(true), Algorithm::Adafactor { beta2_decay: -0.8, eps: 1e-3, clip_threshold: 1.0 }] {
        let options = OptimizerOptions { algorithm, weight_decay: 0.1, ..Default::default() };
        let [one, two, five] = [1, 2, 5].map(|threads| run(options, 4, threads, |_, _| true).weights);
        assert!(one == two && two == five, "{algorithm:?}");
    }
    let x = numbers(9, 100_003, 1.0);
    let sums = [1, 2, 5].map(|threads| moeray::train::square_sum(&x, threads).unwrap().to_bits());
    assert!(sums.iter().all(|s| *s == sums[0]));
    let want: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    assert!((f64::from_bits(sums[0]) - want).abs() < 1e-9 * want);
}

#[test]
fn an_expert_without_tokens_stays_or_fades() {
    let run = |unused| {
        let options = OptimizerOptions { algorithm: adam(true), weight_decay: 0.1, unused, ..Default::default() };
        let before = run(options, 3, 1, |_, _| true);
        let after = run(options, 5, 1, |s, e| s < 3 || e != 1);
        let steps = after.optimizer.save().steps[2].1.clone();
        (before.weights[2].clone(), after.weights[2].clone(), steps)
    };
    let (before, after, steps) = run(Unused::Skip);
    assert_eq!(before[24..48], after[24..48], "no gradient: nothing happens");
    assert_ne!(before[..24], after[..24]);
    assert_eq!(steps, [5, 3, 5]);
    let (before, after, steps) = run(Unused::Decay);
    assert_ne!(before[24..48], after[24..48], "momentum and decay go on");
    assert_eq!(steps, [5, 5, 5]);
}

#[test]
fn norms_and_biases_do_not_decay() {
    let options = OptimizerOptions { weight_decay: 0.1, ..Default::default() };
    let decay = |p: &Parameter, o: &OptimizerOptions| Rule::of(p, o, &Default::default()).weight_decay > 0.0;
    for (p, decays) in [
        (Parameter::new("blk.0.attn_q.weight", &[4, 4]), true),
        (Parameter::new("blk.0.attn_q.bias", &[4]), false),
        (Parameter::new("blk.0.attn_norm.weight", &[4]), false),
        (Parameter::of_experts("blk.0.ffn_up_exps.weight", &[2, 4, 4]), true),
        (Parameter::of_experts("blk.0.ffn_up_exps.bias", &[2, 4]), false),
        (Parameter::of_experts("blk.0.ffn_norm_exps.weight", &[2, 4]), false),
        (Parameter::new("token_embd.weight", &[9, 4]), true),
    ] {
        assert_eq!(decay(&p, &options), decays, "{}", p.name);
        assert!(decay(&p, &OptimizerOptions { decay_norms: true, ..options }), "{}", p.name);
    }
}

#[test]
fn impossible_numbers_are_named() {
    let p = parameters();
    for (options, word) in [
        (OptimizerOptions { weight_decay: -1.0, ..Default::default() }, "weight_decay"),
        (OptimizerOptions { weight_decay: f64::NAN, ..Default::default() }, "weight_decay"),
        (
            OptimizerOptions {
                algorithm: Algorithm::Adam { beta1: 1.0, beta2: 0.9, eps: 0.0, decoupled: true },
                ..Default::default()
            },
            "adam_beta1",
        ),
        (
            OptimizerOptions { algorithm: Algorithm::Sgd { momentum: 0.0, nesterov: true }, ..Default::default() },
            "nesterov",
        ),
    ] {
        let rules: Vec<Rule> = p.iter().map(|p| Rule::of(p, &options, &Default::default())).collect();
        let e = Optimizer::new(options, &p, rules).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    }
    let options = OptimizerOptions::default();
    let frozen = p.iter().map(|p| Rule { trained: false, ..Rule::of(p, &options, &Default::default()) }).collect();
    assert!(Optimizer::new(options, &p, frozen).unwrap_err().to_string().contains("frozen"));
}
