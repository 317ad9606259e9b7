//! Whole training runs against PyTorch's in double precision: the loop of shared experts, and the small transformer with AdamW,
//! warm-up, clipping and a balancing loss. Data and first weights come from an integer hash, so no file holds them.

use super::{
    build,
    case::{Case, Stored},
    folder,
};
use moeray::{
    backend::{
        cpu::{self, Options},
        reference::{self, Precision},
        training::Training,
    },
    graph::TrainProgram,
};
use serde_json::json;

fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

fn word(seed: u32, stream: u32, n: u32) -> u32 {
    mix(n.wrapping_mul(0x9e37_79b1) ^ mix(stream ^ mix(seed.wrapping_add(0x9e37_79b9))))
}

/// Nearly normal numbers.
fn normal(seed: u32, stream: u32, i: u32) -> f64 {
    let half = |w: u32| (w & 0xffff) + (w >> 16);
    let sum: u32 = (0..6).map(|j| half(word(seed, stream, i.wrapping_mul(6).wrapping_add(j)))).sum();
    (f64::from(sum) - 393_210.0) / 65_536.0
}

fn below(seed: u32, stream: u32, n: u32, m: u32) -> u32 {
    ((u64::from(word(seed, stream, n)) * u64::from(m)) >> 32) as u32
}

#[test]
fn train_goldens_hash_has_its_known_answers() {
    assert_eq!([mix(0), mix(1), mix(0xdead_beef)], [0, 1_753_845_952, 3_861_431_939]);
    assert_eq!(word(101, 16, 1_000_000), 2_623_053_125);
    assert_eq!(normal(101, 17, 12_345) * 65_536.0, -19_341.0);
    assert_eq!([below(0, 1, 0, 97), below(0, 1, 1, 4), below(0, 1, 2, 4)], [75, 0, 3]);
}

/// A run's case, with its first weights and the inputs of step 0; `None` where the folder lacks it.
fn run_of(name: &str) -> Option<Case> {
    let path = folder().join(name);
    let mut case = path.is_dir().then(|| Case::read(&path))?;
    let seed = case.record["seed"].as_u64().unwrap() as u32;
    let hyper = case.record["hyper"].as_object_mut().unwrap();
    if let Some(heads) = hyper.get("heads").and_then(|h| h.as_u64()) {
        let dim = hyper["dim"].as_u64().unwrap();
        hyper.insert("head_dim".into(), json!(dim / heads));
        hyper.insert("balance_weight".into(), hyper["aux_weight"].clone());
        hyper.insert("z_weight".into(), json!(0.0));
    }
    let weights = case.record["weights"].as_object().unwrap().clone();
    for (i, (weight, shape)) in weights.iter().enumerate() {
        let shape: Vec<usize> = shape.as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        let scale = match (shape.len(), weight.as_str()) {
            (_, "tok_embeddings.weight") => 1.0,
            (1, _) if name == "f17_adamw" => 0.0,
            (1, _) => 0.0625,
            _ => 0.125,
        };
        let n: usize = shape.iter().product();
        let one = |e| if scale == 0.0 { 1.0 } else { normal(seed, 16 + i as u32, e) * scale };
        let values: Vec<f64> = (0..n as u32).map(one).collect();
        if let Some(stored) = case.tensors.get(weight) {
            assert_eq!(stored.values, values, "{name}: {weight} is not what the hash makes");
        }
        case.tensors.insert(weight.clone(), Stored { shape, values });
    }
    inputs(&mut case, 0);
    Some(case)
}

/// Sets the inputs of a step.
fn inputs(case: &mut Case, step: u32) {
    let seed = case.record["seed"].as_u64().unwrap() as u32;
    let (batch, length) = (case.usize("batch"), case.usize("sequence"));
    if case.name == "f06_loop" {
        let shape = vec![batch, length, case.usize("hidden")];
        let n: usize = shape.iter().product();
        for (input, stream) in [("in.x", 1), ("in.target", 2)] {
            let values = (0..n as u32).map(|e| normal(seed, stream, step * n as u32 + e)).collect();
            case.tensors.insert(input.into(), Stored { shape: shape.clone(), values });
        }
        return;
    }
    let vocab = case.usize("vocab") as u32;
    let mut values = vec![];
    for b in 0..batch {
        let mut id = 0;
        for t in 0..length {
            let n = step * (batch * length) as u32 + (b * length + t) as u32;
            id = if t == 0 { below(seed, 1, n, vocab) } else { (5 * id + 17 + below(seed, 1, n, 4)) % vocab };
            values.push(f64::from(id));
        }
    }
    case.tensors.insert("in.ids".into(), Stored { shape: vec![batch, length], values });
}

/// Adam with the numbers of a run.
struct Adam {
    beta: [f64; 2],
    decay: f64,
    clip: Option<f64>,
    m: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
}

impl Adam {
    fn step(&mut self, training: &mut dyn Training, step: i32, lr: f64) -> f64 {
        let n = training.parameters().len();
        let gradients: Vec<Vec<f64>> = (0..n).map(|i| training.gradient(i).unwrap()).collect();
        let norm = gradients.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let clip = self.clip.map_or(1.0, |c| (c / (norm + 1e-6)).min(1.0));
        let corrected = self.beta.map(|b| 1.0 - b.powi(step + 1));
        self.m.resize(n, vec![]);
        self.v.resize(n, vec![]);
        for (i, g) in gradients.iter().enumerate() {
            let decays = training.parameters()[i].shape.len() > 1;
            let mut w = training.read(i).unwrap();
            self.m[i].resize(w.len(), 0.0);
            self.v[i].resize(w.len(), 0.0);
            for (e, w) in w.iter_mut().enumerate() {
                let g = g[e] * clip;
                let (m, v) = (&mut self.m[i][e], &mut self.v[i][e]);
                *m = self.beta[0] * *m + (1.0 - self.beta[0]) * g;
                *v = self.beta[1] * *v + (1.0 - self.beta[1]) * g * g;
                *w *= 1.0 - if decays { lr * self.decay } else { 0.0 };
                *w -= lr * (*m / corrected[0]) / ((*v / corrected[1]).sqrt() + 1e-8);
            }
            training.write(i, &w).unwrap();
        }
        training.clear().unwrap();
        norm
    }
}

/// Runs a case and gives the largest difference of any term at any step from the stored curve.
fn follow(mut case: Case, backend: &dyn Fn(TrainProgram) -> Box<dyn Training>) -> f64 {
    let adamw = case.name == "f17_adamw";
    let hyper = |case: &Case, key: &str| case.f64(key);
    let mut adam = Adam { beta: [0.9, 0.999], decay: 0.0, clip: None, m: vec![], v: vec![] };
    if adamw {
        adam.beta = [hyper(&case, "beta1"), hyper(&case, "beta2")];
        adam.decay = hyper(&case, "weight_decay");
        adam.clip = Some(hyper(&case, "max_grad_norm"));
    }
    let mut training = backend(build(&case).finish("total").0.unwrap());
    let (steps, mut worst) = (case.usize("steps"), 0f64);
    for step in 0..steps {
        inputs(&mut case, step as u32);
        let feed = build(&case).finish("total").2;
        let made = training.micro(&feed).unwrap();
        let lr = if adamw { warm_cosine(&case, step, steps) } else { case.f64("lr") };
        let norm = adam.step(&mut *training, step as i32, lr);
        for term in case.below("curve.") {
            let found = match term.as_str() {
                "grad_norm" => norm,
                "lr" => lr,
                term => made.iter().find(|n| n.name == format!("loss.{term}")).unwrap().values[0],
            };
            worst = worst.max((found - case.tensor(&format!("curve.{term}")).values[step]).abs());
        }
    }
    worst
}

fn warm_cosine(case: &Case, step: usize, steps: usize) -> f64 {
    let (warm, peak, floor) = (case.usize("warmup_steps"), case.f64("peak_lr"), case.f64("min_lr_ratio"));
    if step < warm {
        return peak * (step + 1) as f64 / warm as f64;
    }
    let part = (step - warm) as f64 / (steps - warm) as f64;
    peak * (floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * part).cos()))
}

fn held(name: &str, limit: f64, backend: &dyn Fn(TrainProgram) -> Box<dyn Training>) {
    let Some(case) = run_of(name) else { return };
    let worst = follow(case, backend);
    assert!(worst <= limit, "{name} is off by {worst:.1e}");
}

#[test]
fn train_goldens_curve_of_shared_experts() {
    held("f06_loop", 1e-9, &|p| reference::train(p, Precision::F64).unwrap());
    held("f06_loop", 1e-4, &|p| cpu::train(p, &Options::default()).unwrap());
}

#[test]
fn train_goldens_curve_of_shared_experts_wgpu() {
    let Some(gpu) = crate::support::gpu() else { return };
    held("f06_loop", 1e-4, &|p| moeray::backend::wgpu::train(&gpu, p).unwrap());
}

#[test]
fn train_goldens_curve_of_the_transformer_wgpu() {
    let Some(gpu) = crate::support::gpu() else { return };
    held("f17_adamw", 1e-4, &|p| moeray::backend::wgpu::train(&gpu, p).unwrap());
}

#[test]
fn train_goldens_curve_of_the_transformer() {
    held("f17_adamw", 1e-4, &|p| cpu::train(p, &Options::default()).unwrap());
}
