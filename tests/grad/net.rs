//! A small graph around an op, and the differences of its loss.
//!
//! Inputs pass an affine map before the op, and the op's results a square, uneven coefficients and a factor behind it: a rule that
//! drops what comes from above, or that works in the last place only, is found.

use crate::support::rng::Rng;
use moeray::{
    backend::{
        Program, cpu,
        reference::{self, Precision},
        training::Training,
        wgpu,
    },
    file::Tensor,
    graph::{Builder, LOSS, TrainProgram},
    ir::{Function, Math, Op, ValueId, WeightId},
    ops::train::Feed,
};

/// What [`Net::check`] compares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Against {
    /// The reference in f64 with differences.
    Differences,
    /// The CPU with the reference.
    Cpu,
    /// The GPU with the reference.
    Gpu,
}

thread_local! {
    /// What this thread's checks compare.
    static AGAINST: std::cell::Cell<Against> = const { std::cell::Cell::new(Against::Differences) };
}

/// Runs checks that compare something else than differences.
pub fn against(what: Against, checks: impl FnOnce()) {
    AGAINST.set(what);
    checks();
    AGAINST.set(Against::Differences);
}

/// A graph under construction, with its weights and its micro-batch.
pub struct Net {
    pub b: Builder,
    pub feed: Feed,
    pub tensors: Vec<Tensor>,
    pub rng: Rng,
    pub inputs: Vec<String>,
    terms: Vec<(f64, ValueId)>,
}

impl Net {
    pub fn new(rows: usize, seed: u64) -> Net {
        let feed = Feed { rows, seed, step: 3, ..Feed::default() };
        Net { b: Builder::new(), feed, tensors: vec![], rng: Rng(seed), inputs: vec![], terms: vec![] }
    }

    /// A number between two.
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.rng.next_u64() as f64 / u64::MAX as f64) as f32
    }

    pub fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.range(-1.5, 1.5)).collect()
    }

    /// A trained weight.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> WeightId {
        let values = self.numbers(shape.iter().product());
        self.tensor(name, Tensor::from_f32(shape.to_vec(), values).unwrap())
    }

    /// A weight with given numbers.
    pub fn tensor(&mut self, name: &str, t: Tensor) -> WeightId {
        let w = self.b.weight(name, t.shape());
        self.tensors.push(t);
        w
    }

    /// An input whose gradient is wanted, behind an affine map.
    pub fn input(&mut self, cols: usize) -> ValueId {
        let values = self.numbers(self.feed.rows * cols).into_iter().map(f64::from).collect();
        self.input_of(cols, values)
    }

    /// The same with given numbers.
    pub fn input_of(&mut self, cols: usize, values: Vec<f64>) -> ValueId {
        let name = format!("x{}", self.inputs.len());
        self.feed.set(&name, values);
        let x = self.b.one(Op::Input { name: name.clone(), cols }, &[]).unwrap();
        self.inputs.push(name);
        self.b.math(Math::Affine { factor: 1.25, shift: 0.125 }, &[x]).unwrap()
    }

    /// Ids that the caller gives.
    pub fn ids(&mut self, name: &str, cols: usize, ids: Vec<u32>) -> ValueId {
        self.feed.set_ids(name, ids);
        self.b.math(Math::Ids { name: name.into(), cols }, &[]).unwrap()
    }

    /// Lets a result enter the loss, with a square and uneven coefficients.
    pub fn enters(&mut self, y: ValueId) {
        let cols = self.b.graph().cols(y);
        let fixed = matches!(self.b.graph().ty(y).dims(), Some((moeray::ir::Rows::Fixed(_), _)));
        let rows = if fixed { 1 } else { self.feed.rows };
        let name = format!("up{}", self.terms.len());
        let up = self.numbers(rows * cols).into_iter().map(f64::from).collect();
        self.feed.set(&name, up);
        let up = match fixed {
            true => self.b.math(Math::Numbers { name, rows, cols }, &[]).unwrap(),
            false => self.b.one(Op::Input { name, cols }, &[]).unwrap(),
        };
        let square = self.b.apply(Function::Square, y).unwrap();
        let square = self.b.scaled(square, 0.25).unwrap();
        let sum = self.b.plus(y, square).unwrap();
        let product = self.b.times(sum, up).unwrap();
        let all = self.b.sum_all(product).unwrap();
        self.terms.push((0.7 + 0.1 * self.terms.len() as f64, all));
    }

    /// The program with its loss.
    pub fn program(mut self) -> (Program, Feed, Vec<String>) {
        let loss = self.b.weighted_sum(&self.terms).unwrap();
        self.b.output(LOSS, loss);
        (Program::new(self.b.finish(), self.tensors).unwrap(), self.feed, self.inputs)
    }

    /// The program differentiated by all of its weights but those that `frozen` names, and by all inputs.
    pub fn trained(self, frozen: &[&str]) -> (TrainProgram, Feed) {
        let (program, feed, inputs) = self.program();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        (TrainProgram::new(&program, &|n| !frozen.contains(&n), &inputs).unwrap(), feed)
    }

    /// Compares the gradients of all weights but the frozen ones, and of all inputs, with differences.
    pub fn check(self, what: &str, frozen: &[&str]) {
        let (program, feed) = self.trained(frozen);
        let held = |mut training: Box<dyn Training>| {
            let mut oracle = reference::train(program.clone(), Precision::F64).unwrap();
            let (error, name) = worst(&results(&mut *training, &feed), &results(&mut *oracle, &feed));
            assert!(error <= 1e-10, "{what}: {name} is off by an NMSE of {error:.1e}");
        };
        match AGAINST.get() {
            Against::Differences => {}
            Against::Cpu => return held(cpu::train(program.clone(), &cpu::Options::default()).unwrap()),
            Against::Gpu => {
                let gpu = crate::support::gpu().unwrap();
                return held(wgpu::train(&gpu, program.clone()).unwrap());
            }
        }
        let mut training = reference::train(program, Precision::F64).unwrap();
        let error = differences(&mut *training, &feed);
        assert!(error <= 1e-6, "{what}: gradients are off by {error:.1e} of the largest");
    }
}

/// What a micro-batch gives: outputs, and gradients by name.
pub fn results(training: &mut dyn Training, feed: &Feed) -> Vec<(String, Vec<f64>)> {
    let mut all: Vec<(String, Vec<f64>)> =
        training.micro(feed).unwrap().into_iter().map(|n| (n.name, n.values)).collect();
    for i in 0..training.parameters().len() {
        let name = training.parameters()[i].name.clone();
        all.push((name, training.gradient(i).unwrap()));
    }
    all
}

/// A result by name.
type Found = (String, Vec<f64>);

/// The largest normalised mean square error of any result.
pub fn worst(found: &[(String, Vec<f64>)], want: &[(String, Vec<f64>)]) -> (f64, String) {
    let error = |(f, w): (&Found, &Found)| {
        assert_eq!((&f.0, f.1.len()), (&w.0, w.1.len()));
        assert!(f.1.iter().all(|v| v.is_finite()), "{} has numbers that are not finite", f.0);
        // A loss is a sum of terms of both signs: it is held to 1 where they cancel.
        let least = if w.1.len() == 1 { 1.0 } else { 1e-12 };
        let size: f64 = w.1.iter().map(|v| v * v).sum::<f64>().max(least);
        (f.1.iter().zip(&w.1).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / size, w.0.clone())
    };
    found.iter().zip(want).map(error).fold((0.0, String::new()), |m, e| if e.0 > m.0 { e } else { m })
}

fn loss(training: &mut dyn Training, feed: &Feed) -> f64 {
    let made = training.evaluate(feed).unwrap();
    made.iter().find(|n| n.name == LOSS).unwrap().values[0]
}

/// The five-point difference of a function at 0.
fn five_points(h: f64, mut at: impl FnMut(f64) -> f64) -> f64 {
    let (one, two) = (at(h) - at(-h), at(2.0 * h) - at(-2.0 * h));
    (8.0 * one - two) / (12.0 * h)
}

/// The largest error of a gradient against differences, over the largest element of that gradient; every element of every
/// parameter and input.
pub fn differences(training: &mut dyn Training, feed: &Feed) -> f64 {
    training.clear().unwrap();
    let made = training.micro(feed).unwrap();
    let mut worst = 0f64;
    let mut judge = |found: &[f64], want: &[f64]| {
        // A gradient that is 0 throughout is held to the rounding of the loss.
        let largest = want.iter().chain(found).fold(1e-5f64, |m, v| m.max(v.abs()));
        worst = found.iter().zip(want).fold(worst, |w, (a, b)| w.max((a - b).abs() / largest));
    };
    const H: f64 = 1.0 / 512.0;
    for i in 0..training.parameters().len() {
        let (found, start) = (training.gradient(i).unwrap(), training.read(i).unwrap());
        let mut want = vec![];
        for e in 0..start.len() {
            want.push(five_points(H, |step| {
                let mut moved = start.clone();
                moved[e] += step;
                training.write(i, &moved).unwrap();
                loss(training, feed)
            }));
        }
        training.write(i, &start).unwrap();
        judge(&found, &want);
    }
    for named in made.iter().filter(|n| n.name.starts_with("grad.")) {
        let name = named.name.strip_prefix("grad.").unwrap();
        let start = feed.numbers.iter().find(|(n, _)| n == name).unwrap().1.clone();
        let mut feed = feed.clone();
        let mut want = vec![];
        for e in 0..start.len() {
            want.push(five_points(H, |step| {
                let mut moved = start.clone();
                moved[e] += step;
                feed.set(name, moved);
                loss(training, &feed)
            }));
        }
        judge(&named.values, &want);
    }
    worst
}

/// The same for some elements of each parameter, with steps so small that they cross no choice of a router.
pub fn differences_of_some(training: &mut dyn Training, feed: &Feed, each: usize) -> f64 {
    training.clear().unwrap();
    training.micro(feed).unwrap();
    let mut worst = 0f64;
    for i in 0..training.parameters().len() {
        let (found, start) = (training.gradient(i).unwrap(), training.read(i).unwrap());
        let largest = found.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
        for e in (0..start.len()).step_by((start.len() / each).max(1)) {
            let want = five_points(1e-3, |step| {
                let mut moved = start.clone();
                moved[e] += step;
                training.write(i, &moved).unwrap();
                loss(training, feed)
            });
            worst = worst.max((found[e] - want).abs() / largest);
        }
        training.write(i, &start).unwrap();
    }
    worst
}
