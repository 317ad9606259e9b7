//! Mixtures of experts on rows of numbers, as they were before language models and as tutorials begin with them: see [`Mixture`].

use super::{
    data::{normal, short},
    learner::Slot,
    optimizer::{Algorithm, Optimizer, OptimizerOptions, Rule},
    parameter::Parameter,
};
use crate::{
    backend::{
        self,
        training::{Feed, Named, Training},
    },
    error::{Error, Result},
    file::Tensor,
    graph::{
        Builder, LOSS, Program, TrainProgram,
        formula::{
            ExpertNet, competitive, dense_experts, gates_of, mean_square, mean_square_z, routed_experts,
            switch_balance, top_k,
        },
    },
    ir::{Activation, Linear, Op, Router, Score, ValueId, WeightId},
};
use std::collections::BTreeMap;

/// What a [`Mixture`] is trained for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MixtureLoss {
    /// The mean square of what the weighted sum of the experts misses: experts work together.
    #[default]
    MeanSquare,
    /// `−ln Σᵢ pᵢ exp(−|y − Eᵢ(x)|² / 2)`, averaged over rows, with p the router's softmax over all experts: experts compete for rows, and
    /// each learns those that it is best at (Jacobs, Jordan, Nowlan and Hinton 1991, *Adaptive mixtures of local experts*).
    Competitive,
}

/// What a [`Mixture`] is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct MixtureOptions {
    /// Numbers of a row that goes in.
    pub inputs: usize,
    /// Numbers of a row that comes out.
    pub outputs: usize,
    /// Experts, E.
    pub experts: usize,
    /// Experts that a row uses, k: the largest logits, weighted by a softmax over these. All of them make a dense mixture.
    pub used: usize,
    /// Numbers between an expert's two matrices, behind a ReLU; 0: an expert is one matrix. Both have biases.
    pub hidden: usize,
    /// Further experts that every row uses, with the weight 1.
    pub shared: usize,
    /// What it is trained for.
    pub loss: MixtureLoss,
    /// The weight of a loss of balance: `E · Σⱼₑ load[j, e] · mean p[e]`, of first and second choices.
    pub balance: f64,
    /// The weight of the mean of the router's squared logits.
    pub z: f64,
    /// Adam's learning rate.
    pub learning_rate: f64,
    /// The seed of the first weights: matrices are normal numbers of the deviation `1/√in`, biases are 0.
    pub seed: u64,
}

impl Default for MixtureOptions {
    fn default() -> Self {
        MixtureOptions {
            inputs: 1,
            outputs: 1,
            experts: 2,
            used: 2,
            hidden: 0,
            shared: 0,
            loss: MixtureLoss::MeanSquare,
            balance: 0.0,
            z: 0.0,
            learning_rate: 0.01,
            seed: 0,
        }
    }
}

/// A router and experts on rows of numbers, trained by Adam on the CPU.
///
/// Two experts that are straight lines, and compete for the rows of `4 |x|`: each takes one side.
///
/// ```
/// use moeray::train::{Mixture, MixtureLoss, MixtureOptions};
///
/// # fn main() -> moeray::Result<()> {
/// let mut mixture = Mixture::new(MixtureOptions {
///     loss: MixtureLoss::Competitive,
///     learning_rate: 0.1,
///     ..MixtureOptions::default()
/// })?;
/// let x: Vec<f32> = (0..64).map(|i| i as f32 / 16.0 - 2.0).collect();
/// let y: Vec<f32> = x.iter().map(|x| 4.0 * x.abs()).collect();
/// let first = mixture.step(&x, &y)?;
/// let mut last = first;
/// for _ in 0..200 {
///     last = mixture.step(&x, &y)?;
/// }
/// assert!(last < first);
/// let gates = mixture.gates(&[-1.5, 1.5])?; // [rows, experts]
/// println!("{gates:?}: {:?}", mixture.predict(&[-1.5, 1.5])?);
/// # Ok(())
/// # }
/// ```
pub struct Mixture {
    options: MixtureOptions,
    training: Box<dyn Training>,
    optimizer: Optimizer,
}

impl Mixture {
    /// A mixture before its first step.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes and weights that make none: the message names the option.
    pub fn new(options: MixtureOptions) -> Result<Mixture> {
        check(&options)?;
        let program = TrainProgram::new(&Net::program(&options)?, &|_| true, &[])?;
        // A few rows of a few numbers: threads would wait for each other.
        let cpu = backend::cpu::Options { threads: Some(1), ..Default::default() };
        let training = backend::cpu::train(program, &cpu)?;
        let parameters: Vec<Parameter> =
            training.parameters().iter().map(|p| Parameter::new(&p.name, &p.shape)).collect();
        let adam = Algorithm::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, decoupled: false };
        let how = OptimizerOptions { algorithm: adam, ..OptimizerOptions::default() };
        let rules = parameters.iter().map(|p| Rule::of(p, &how, &Default::default())).collect();
        Ok(Mixture { optimizer: Optimizer::new(how, &parameters, rules)?, options, training })
    }

    /// Takes a step on rows `x` `[rows, inputs]` and what should come out of them, `y` `[rows, outputs]`; gives the loss before it, with
    /// balance and z.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other numbers than rows have; [`Error::Model`] where the loss is no number: the weights stay.
    pub fn step(&mut self, x: &[f32], y: &[f32]) -> Result<f64> {
        let feed = self.feed(x, Some(y))?;
        let loss = value(&self.training.micro(&feed)?, LOSS)?.first().copied().unwrap_or(f64::NAN);
        if !loss.is_finite() {
            self.training.clear()?;
            return Err(Error::Model(format!("the mixture's loss is {loss}: a lower learning_rate helps")));
        }
        let (optimizer, rate) = (&mut self.optimizer, self.options.learning_rate);
        self.training.each(&mut |slot| {
            let own = Slot { weights: slot.weight, gradients: slot.gradient, used: &[] };
            optimizer.step(slot.index, own, rate, 1.0, 1)
        })?;
        self.training.clear()?;
        Ok(loss)
    }

    /// What comes out of rows `x` `[rows, inputs]`: `[rows, outputs]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other numbers than rows have.
    pub fn predict(&mut self, x: &[f32]) -> Result<Vec<f32>> {
        self.see(x, PREDICTION)
    }

    /// The weight of every expert for rows `x` `[rows, inputs]`: `[rows, experts]`, 0 for those that a row does not use.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other numbers than rows have.
    pub fn gates(&mut self, x: &[f32]) -> Result<Vec<f32>> {
        self.see(x, GATES)
    }

    /// The weights by the names of their tensors (`router.weight`, `experts.bias`), row-major; those of all experts lie in one tensor.
    ///
    /// # Errors
    /// What the backend says.
    pub fn weights(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let names: Vec<String> = self.training.parameters().iter().map(|p| p.name.clone()).collect();
        let read = |(i, name)| Ok((name, self.training.read(i)?.into_iter().map(|v| v as f32).collect()));
        names.into_iter().enumerate().map(read).collect()
    }

    /// The shape of a tensor, outermost dimension first: `[out, in]`, of experts `[experts, out, in]`. `None` where there is no such one.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.training.parameters().iter().find(|p| p.name == name).map(|p| &p.shape[..])
    }

    /// Sets a tensor of [`Mixture::weights`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is none, with those that are, and for another number of weights.
    pub fn set(&mut self, name: &str, numbers: &[f32]) -> Result<()> {
        let Some(at) = self.training.parameters().iter().position(|p| p.name == name) else {
            let known: Vec<&str> = self.training.parameters().iter().map(|p| p.name.as_str()).collect();
            return Err(Error::Invalid(format!("the mixture has no weights {name:?}, but {}", known.join(", "))));
        };
        self.training.write(at, &numbers.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>())
    }

    fn see(&mut self, x: &[f32], what: &str) -> Result<Vec<f32>> {
        let feed = self.feed(x, None)?;
        Ok(value(&self.training.evaluate(&feed)?, what)?.iter().map(|v| *v as f32).collect())
    }

    fn feed(&self, x: &[f32], y: Option<&[f32]>) -> Result<Feed> {
        let MixtureOptions { inputs, outputs, .. } = self.options;
        let rows = x.len() / inputs;
        if rows == 0 || x.len() % inputs != 0 {
            return Err(Error::Invalid(format!("{} numbers for rows of {inputs} inputs", x.len())));
        }
        if let Some(n) = y.map(<[f32]>::len).filter(|n| *n != rows * outputs) {
            return Err(Error::Invalid(format!("{n} numbers for {rows} rows of {outputs} outputs")));
        }
        let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
        let mut feed = Feed { rows, ..Feed::default() };
        feed.set(X, wide(x));
        feed.set(Y, y.map_or_else(|| vec![0.0; rows * outputs], wide));
        Ok(feed)
    }
}

/// Inputs and outputs of the graph.
const X: &str = "x";
const Y: &str = "y";
const PREDICTION: &str = "prediction";
const GATES: &str = "gates";

fn value<'a>(results: &'a [Named], name: &str) -> Result<&'a [f64]> {
    let found = results.iter().find(|r| r.name == name);
    found.map(|r| &r.values[..]).ok_or_else(|| Error::Graph(format!("a mixture without `{name}`")))
}

/// Weights of a mixture at most: a GiB, four times with gradients and moments.
const MOST_WEIGHTS: u128 = 1 << 28;

fn check(o: &MixtureOptions) -> Result<()> {
    let bad = |what: String| Err(Error::Invalid(format!("mixture: {what}")));
    let sizes = [("inputs", o.inputs), ("outputs", o.outputs), ("experts", o.experts), ("used", o.used)];
    if let Some((key, n)) = sizes.into_iter().find(|(_, n)| *n == 0 || *n > 1 << 20) {
        return bad(format!("{key} is {n}; a number from 1 to {} is expected", 1 << 20));
    }
    if let Some((key, n)) = [("hidden", o.hidden), ("shared", o.shared)].into_iter().find(|(_, n)| *n > 1 << 20) {
        return bad(format!("{key} is {n}; a number up to {} is expected", 1 << 20));
    }
    let units = (o.experts + o.shared) as u128;
    let (inputs, outputs, hidden) = (o.inputs as u128, o.outputs as u128, o.hidden as u128);
    let each = if hidden == 0 { inputs * outputs } else { hidden * (inputs + outputs) };
    let weights = units * (each + hidden + outputs) + o.experts as u128 * inputs;
    if weights > MOST_WEIGHTS {
        return bad(format!("{weights} weights of experts and router; at most {MOST_WEIGHTS} are expected"));
    }
    if o.used > o.experts {
        return bad(format!("used is {}, and there are {} experts", o.used, o.experts));
    }
    if o.loss == MixtureLoss::Competitive && (o.used < o.experts || o.shared > 0) {
        return bad(format!(
            "all experts compete for every row: used is {} of {}, and shared {}; all and none are expected",
            o.used, o.experts, o.shared
        ));
    }
    for (key, w) in [("balance", o.balance), ("z", o.z)] {
        if !(w >= 0.0 && w.is_finite()) {
            return bad(format!("{key} is {w}; a number from 0 is expected"));
        }
    }
    if !(o.learning_rate > 0.0 && o.learning_rate.is_finite()) {
        return bad(format!("learning_rate is {}; a number above 0 is expected", o.learning_rate));
    }
    Ok(())
}

/// A graph under way, with its first weights.
struct Net {
    b: Builder,
    weights: Vec<Tensor>,
    seed: u64,
}

impl Net {
    /// The mixture's program.
    fn program(o: &MixtureOptions) -> Result<Program> {
        let mut net = Net { b: Builder::new(), weights: vec![], seed: o.seed };
        let x = net.b.one(Op::Input { name: X.into(), cols: o.inputs }, &[])?;
        let y = net.b.one(Op::Input { name: Y.into(), cols: o.outputs }, &[])?;
        let gate = net.linear("router", &[], [o.experts, o.inputs])?;
        let logits = net.b.one(Op::Linear(gate), &[x])?; // [T, E]
        let experts = net.experts(o)?;
        let mut results = None;
        let (mut prediction, gates) = if o.used == o.experts {
            let all = dense_experts(&mut net.b, experts, x, o.experts)?; // [T, E·outputs]
            let p = net.b.softmax(logits)?; // [T, E]
            results = Some(all);
            (net.b.one(Op::ExpertCombine, &[all, p])?, p)
        } else {
            let choice = top_k(&mut net.b, logits, Router::new(o.experts, o.used, Score::SoftmaxOfSelected))?;
            (routed_experts(&mut net.b, experts, x, choice)?, gates_of(&mut net.b, choice, o.experts)?)
        };
        for n in 0..o.shared {
            let own = net.shared(o, n, x)?;
            prediction = net.b.one(Op::Add, &[prediction, own])?; // [T, outputs]
        }
        let main = match (o.loss, results) {
            (MixtureLoss::Competitive, Some(all)) => competitive(&mut net.b, logits, all, y)?.mean,
            (MixtureLoss::Competitive, None) => {
                return Err(Error::Graph("experts that compete, and are not all computed".into()));
            }
            (MixtureLoss::MeanSquare, _) => mean_square(&mut net.b, prediction, y)?,
        };
        let mut terms = vec![(1.0, main)];
        if o.balance > 0.0 {
            terms.push((o.balance, switch_balance(&mut net.b, logits, None)?));
        }
        if o.z > 0.0 {
            terms.push((o.z, mean_square_z(&mut net.b, logits, None)?));
        }
        let loss = net.b.weighted_sum(&terms)?;
        net.b.output(PREDICTION, prediction);
        net.b.output(GATES, gates);
        net.b.output(LOSS, loss);
        Program::new(net.b.finish(), net.weights)
    }

    /// A matrix `[lead, out, in]` with a bias `[lead, out]`.
    fn linear(&mut self, stem: &str, lead: &[usize], [out, inp]: [usize; 2]) -> Result<Linear> {
        let deviation = 1.0 / (inp as f32).sqrt();
        let weight = self.tensor(format!("{stem}.weight"), &[lead, &[out, inp]].concat(), deviation)?;
        let bias = self.tensor(format!("{stem}.bias"), &[lead, &[out]].concat(), 0.0)?;
        Ok(Linear { weight, bias: Some(bias) })
    }

    fn tensor(&mut self, name: String, shape: &[usize], deviation: f32) -> Result<WeightId> {
        let stream = self.weights.len() as u32;
        let number = |i: usize| normal(short(self.seed), stream, i as u32) * deviation;
        let numbers = (0..shape.iter().product()).map(number).collect();
        self.weights.push(Tensor::from_f32(shape.to_vec(), numbers)?);
        Ok(self.b.weight(name, shape))
    }

    fn experts(&mut self, o: &MixtureOptions) -> Result<ExpertNet> {
        if o.hidden == 0 {
            return Ok(ExpertNet::Linear(self.linear("experts", &[o.experts], [o.outputs, o.inputs])?));
        }
        let up = self.linear("experts.up", &[o.experts], [o.hidden, o.inputs])?;
        let down = self.linear("experts.down", &[o.experts], [o.outputs, o.hidden])?;
        Ok(ExpertNet::Mlp { up, act: Activation::Relu, down })
    }

    /// What the n-th shared expert makes of x.
    fn shared(&mut self, o: &MixtureOptions, n: usize, x: ValueId) -> Result<ValueId> {
        if o.hidden == 0 {
            let own = self.linear(&format!("shared.{n}"), &[], [o.outputs, o.inputs])?;
            return self.b.one(Op::Linear(own), &[x]);
        }
        let up = self.linear(&format!("shared.{n}.up"), &[], [o.hidden, o.inputs])?;
        let down = self.linear(&format!("shared.{n}.down"), &[], [o.outputs, o.hidden])?;
        let h = self.b.one(Op::Linear(up), &[x])?;
        let h = self.b.one(Op::Act(Activation::Relu), &[h])?;
        self.b.one(Op::Linear(down), &[h])
    }
}
