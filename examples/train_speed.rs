//! How fast training is, and where a step's time goes:
//! `cargo run --release --example train_speed -- [rounds] [threads] [cpu, or part of a GPU's name]`.
//!
//! Medians of rounds in which all measurements take turns, on random tokens; the model is the demo model's architecture.
//! `demo/bench/train.py` runs it in turn with PyTorch.
//!
//! - `step`: a step of the demo model's 4096 tokens, with its rate by the products of its matrices.
//! - `product`: the rate of products of [4096, 256] by [256, 256] in the same training backend.
//! - `routed`: forwards and backwards through layers of experts, over dense ones of the same active products: 8 experts of which a token
//!   takes 2, 64 of which it takes 8, and the first with all tokens at the same two experts. On the CPU.
//! - `optimizer`: the norm of the gradients, clipping and AdamW, over the step.

#![allow(clippy::print_stdout)]

#[cfg(feature = "gpu")]
use moeray::backend::wgpu::{self, Gpu};
use moeray::{
    Result,
    backend::{Program, cpu, training::Training},
    file::{self, Tensor},
    graph::{Builder, LOSS, TrainProgram, formula},
    ir::{Activation, Function, Linear, Math, Norm, NormKind, Op, Router, Score, ValueId},
    model,
    ops::train::Feed,
    train::{
        Forecast, Learner, MicroBatch, ModelLearner, Optimizer, OptimizerOptions, Selection, TrainConfig, clip_factor,
        gradient_norm,
    },
};
use std::time::Instant;

/// Rows of a layer's measurement: as many as a step has.
const ROWS: usize = 4096;
const HIDDEN: usize = 256;
/// Layers and products of a measurement, so that what is around them is little.
const LAYERS: usize = 4;
const PRODUCTS: usize = 16;

/// Numbers that differ, of the usual size of weights.
fn numbers(shape: &[usize], seed: u32) -> Result<Tensor> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32 - 0.5) * 0.1
    };
    Tensor::from_f32(shape.to_vec(), (0..shape.iter().product()).map(|_| next()).collect())
}

/// Where to train.
#[derive(Clone)]
enum Place {
    Cpu {
        threads: usize,
    },
    #[cfg(feature = "gpu")]
    Wgpu(Gpu),
}

impl Place {
    /// The processor, or the first GPU whose name has this in it.
    fn named(name: &str, threads: usize) -> Result<Place> {
        match name {
            "cpu" => Ok(Place::Cpu { threads }),
            #[cfg(not(feature = "gpu"))]
            other => Err(moeray::Error::Unsupported(format!("{other}: this build has no GPU backend"))),
            #[cfg(feature = "gpu")]
            device => {
                let options = wgpu::Options { device: Some(device.into()), ..Default::default() };
                Gpu::open(&options).map(Place::Wgpu)
            }
        }
    }

    fn train(&self, program: TrainProgram) -> Result<Box<dyn Training>> {
        match self {
            Place::Cpu { threads } => {
                cpu::train(program, &cpu::Options { threads: Some(*threads), ..Default::default() })
            }
            #[cfg(feature = "gpu")]
            Place::Wgpu(gpu) => wgpu::train(gpu, program),
        }
    }
}

/// A graph under construction with its weights.
struct Net {
    b: Builder,
    tensors: Vec<Tensor>,
}

impl Net {
    fn linear(&mut self, shape: &[usize]) -> Result<Linear> {
        let n = self.tensors.len();
        self.tensors.push(numbers(shape, n as u32 + 1)?);
        Ok(Linear { weight: self.b.weight(format!("w{n}"), shape), bias: None })
    }

    /// Rows of a table.
    fn begin() -> Result<(Net, ValueId)> {
        let mut net = Net { b: Builder::new(), tensors: vec![] };
        let table = net.linear(&[ROWS, HIDDEN])?.weight;
        let tokens = net.b.one(Op::Tokens, &[])?;
        let x = net.b.one(Op::Embed { table, scale: 1.0 }, &[tokens])?;
        Ok((net, x))
    }

    /// Its training with the mean of squares as loss.
    fn training(mut self, x: ValueId, place: &Place) -> Result<Box<dyn Training>> {
        let squares = self.b.apply(Function::Square, x)?;
        let loss = self.b.mean_all(squares)?;
        self.b.output(LOSS, loss);
        let program = TrainProgram::new(&Program::new(self.b.finish(), self.tensors)?, &|_| true, &[])?;
        place.train(program)
    }

    /// A layer: norm, gated units of `width` or experts `[count, used]` of that width, residual.
    fn layer(&mut self, x: ValueId, width: usize, experts: Option<[usize; 2]>, skewed: bool) -> Result<ValueId> {
        let weight = self.linear(&[HIDDEN])?.weight;
        let norm = Norm { weight, bias: None, eps: 1e-6, kind: NormKind::Rms };
        let y = self.b.one(Op::RmsNorm(norm), &[x])?;
        let y = match experts {
            None => {
                let [gate, up] = [self.linear(&[width, HIDDEN])?, self.linear(&[width, HIDDEN])?];
                let down = self.linear(&[HIDDEN, width])?;
                let [gate, up] = [self.b.one(Op::Linear(gate), &[y])?, self.b.one(Op::Linear(up), &[y])?];
                let units = self.b.one(Op::Glu(Activation::Silu), &[gate, up])?;
                self.b.one(Op::Linear(down), &[units])?
            }
            Some([count, used]) => {
                let router = self.linear(&[count, HIDDEN])?;
                let mut logits = self.b.one(Op::Linear(router), &[y])?;
                if skewed {
                    let most = self.b.math(Math::Constant { value: 100.0, cols: used }, &[])?;
                    let most = self.b.math(Math::PadColumns { before: 0, after: count - used }, &[most])?;
                    logits = self.b.plus(logits, most)?;
                }
                let choice = formula::top_k(&mut self.b, logits, Router::new(count, used, Score::SoftmaxOfSelected))?;
                let [gate, up] = [self.linear(&[count, width, HIDDEN])?, self.linear(&[count, width, HIDDEN])?];
                let down = self.linear(&[count, HIDDEN, width])?;
                let net = formula::ExpertNet::Gated { gate, up, act: Activation::Silu, down };
                formula::routed_experts(&mut self.b, net, y, choice)?
            }
        };
        self.b.plus(x, y)
    }
}

/// Layers of one kind in training.
fn layers(width: usize, experts: Option<[usize; 2]>, skewed: bool, place: &Place) -> Result<Box<dyn Training>> {
    let (mut net, mut x) = Net::begin()?;
    for _ in 0..LAYERS {
        x = net.layer(x, width, experts, skewed)?;
    }
    net.training(x, place)
}

fn feed(rows: usize) -> Feed {
    Feed { rows, tokens: (0..rows).map(|i| (i % ROWS) as u32).collect(), ..Feed::default() }
}

fn seconds(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    run()?;
    Ok(begun.elapsed().as_secs_f64())
}

fn median(x: &[f64]) -> f64 {
    let mut x = x.to_vec();
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// The demo model in training with its optimizer.
struct Bard {
    learner: ModelLearner,
    optimizer: Optimizer,
    batches: Vec<MicroBatch>,
    forecast: Forecast,
    threads: usize,
}

impl Bard {
    fn new(threads: usize, place: &Place) -> Result<Bard> {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/");
        let words = [format!("tokenizer={root}bard-q4_k_m.gguf"), "datasets.0.path=none".into()];
        let backend = if matches!(place, Place::Cpu { .. }) { "cpu" } else { "wgpu" };
        let words = [&words[..], &[format!("threads={threads}"), format!("backend={backend}")]].concat();
        let config = TrainConfig::read(format!("{root}bard.toml").as_ref(), &words)?;
        let demo = file::open(format!("{root}bard-q4_k_m.gguf").as_ref())?;
        let Some(architecture) = &config.architecture else {
            return Err(moeray::Error::Invalid("bard.toml has no architecture".into()));
        };
        let made = moeray::train::from_scratch(architecture, &demo, config.seed)?;
        let mut learner = ModelLearner::new(&model::build(&made, &model::Options::default())?, &config)?;
        let options: OptimizerOptions = config.optimizer_options();
        let none = Selection::default();
        let rules = learner.parameters().iter().map(|p| moeray::train::Rule::of(p, &options, &none)).collect();
        let optimizer = Optimizer::new(options, learner.parameters(), rules)?;
        #[cfg(feature = "gpu")]
        if let Place::Wgpu(gpu) = place {
            learner.use_gpu(gpu.clone());
        }
        learner.choose(&optimizer.trained())?;
        let (texts, len, parts) =
            (config.micro_batch_size, config.sequence_len + 1, config.gradient_accumulation_steps);
        let batch = |number: u32| {
            let rows = texts * len;
            let id = |i: usize| ((i as u32 + 977 * number).wrapping_mul(2_654_435_761) >> 20) % 4096;
            MicroBatch {
                ids: (0..rows).map(id).collect(),
                targets: (1..=rows).map(id).collect(),
                positions: (0..rows).map(|i| (i % len) as u32).collect(),
                starts: (0..rows).map(|i| (i / len * len) as u32).collect(),
                weights: vec![1.0; rows],
                scale: 1.0 / (rows * parts) as f64,
                share: 1.0 / parts as f64,
                number,
                seed: 1,
                ..MicroBatch::default()
            }
        };
        let forecast = learner.forecast(texts * len, optimizer.state_bytes())?;
        Ok(Bard { learner, optimizer, batches: (0..parts as u32).map(batch).collect(), forecast, threads })
    }

    /// Seconds of gradients, and of the rest of a step.
    fn step(&mut self) -> Result<[f64; 2]> {
        let gradients = seconds(|| self.batches.iter().try_for_each(|b| self.learner.accumulate(b).map(drop)))?;
        let rest = seconds(|| {
            let norm = gradient_norm(&mut self.learner, self.threads)?;
            self.optimizer.update(&mut self.learner, 1e-4, clip_factor(norm, 1.0), self.threads)
        })?;
        self.learner.clear()?;
        Ok([gradients, rest])
    }
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1).map(|w| w.parse::<usize>());
    let rounds = words.next().and_then(|w| w.ok()).unwrap_or(5).max(1);
    let threads = words.next().and_then(|w| w.ok()).unwrap_or(2).max(1);
    let place = Place::named(std::env::args().nth(3).as_deref().unwrap_or("cpu"), threads)?;
    let mut bard = Bard::new(threads, &place)?;
    let (mut net, mut x) = Net::begin()?;
    for _ in 0..PRODUCTS {
        let l = net.linear(&[HIDDEN, HIDDEN])?;
        x = net.b.one(Op::Linear(l), &[x])?;
    }
    let mut product = net.training(x, &place)?;
    // On devices in software they would take minutes.
    let mut kinds = match place {
        Place::Cpu { .. } => vec![
            layers(512, None, false, &place)?,
            layers(256, Some([8, 2]), false, &place)?,
            layers(256, Some([8, 2]), true, &place)?,
            layers(1024, None, false, &place)?,
            layers(128, Some([64, 8]), false, &place)?,
        ],
        #[cfg(feature = "gpu")]
        Place::Wgpu(_) => vec![],
    };
    let mut times: Vec<Vec<f64>> = vec![vec![]; 3 + kinds.len()];
    // The first round is not counted: memory is touched for the first time.
    for round in 0..=rounds {
        let [gradients, rest] = bard.step()?;
        let mut own = vec![gradients, rest, seconds(|| product.evaluate(&feed(ROWS)).map(drop))?];
        for training in &mut kinds {
            own.push(seconds(|| training.micro(&feed(ROWS)).map(drop))?);
        }
        if round > 0 {
            times.iter_mut().zip(own).for_each(|(all, t)| all.push(t));
        }
    }
    let m: Vec<f64> = times.iter().map(|t| median(t)).collect();
    let step = m[0] + m[1];
    let flops = bard.batches.len() as f64 * bard.forecast.flops;
    let rate = PRODUCTS as f64 * 2.0 * (ROWS * HIDDEN * HIDDEN) as f64 / m[2];
    let tokens = bard.batches.iter().map(|b| b.ids.len()).sum::<usize>() as f64;
    println!("step       {step:.3} s, {:.0} tokens/s, {:.0} GFLOP/s", tokens / step, flops / m[0] / 1e9);
    println!("product    {:.0} GFLOP/s; gradients reach {:.0} % of it", rate / 1e9, 100.0 * flops / m[0] / rate);
    if let [dense, routed, skewed, wide, many] = m[3..] {
        println!(
            "routed     8 experts, 2 used: {:.2} of dense; with all tokens at two: {:.2}",
            routed / dense,
            skewed / dense
        );
        println!("routed     64 experts, 8 used: {:.2} of dense", many / wide);
    }
    println!("optimizer  {:.1} % of a step", 100.0 * m[1] / step);
    Ok(())
}
