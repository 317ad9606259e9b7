//! Optimizers: gradients into new weights.
//!
//! Their steps are PyTorch's (`torch.optim.AdamW`, `Adam`, `SGD`, `Adafactor`), operation by operation in single precision, so
//! that runs can be compared. Two things are this page's own. Slices of a parameter (the experts of one tensor) count as
//! parameters of their own, as they are in code that has a module an expert: each has its own number of steps, and one that no
//! token used has no gradient, as PyTorch's `None` ([`Unused::Skip`]). And Adam can keep its second moments factored, as Shazeer
//! et al. 2017 (appendix D) did for experts: the means of squared gradients of each row R and column C stand for the matrix
//! R Cᵀ / mean(R).
//!
//! A weight is computed from its own numbers and from sums in a fixed order: any number of threads gives the same bits.

mod adafactor;
mod device;
mod elementwise;
mod factored;
mod state;

pub use state::Saved;

use super::{
    learner::Slot,
    parameter::{Parameter, Role},
    select::Selection,
};
use crate::{
    error::{Error, Result},
    threads,
};
use adafactor::AdafactorStep;
use elementwise::{AdamStep, SgdStep};
use factored::FactoredStep;
use state::State;

/// Weights that one task of a thread changes.
const PIECE: usize = 1 << 15;

/// Which optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// Adam (Kingma and Ba 2015).
    Adam {
        /// How much of the first moment stays.
        beta1: f64,
        /// How much of the second moment stays.
        beta2: f64,
        /// What is added to the root of the second moment.
        eps: f64,
        /// Weight decay apart from the gradient: AdamW (Loshchilov and Hutter 2019). Otherwise it is added to the gradient.
        decoupled: bool,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// How much of the last step stays; 0 for none.
        momentum: f64,
        /// Nesterov's momentum.
        nesterov: bool,
    },
    /// Adafactor (Shazeer and Stern 2018) with the rate given, as PyTorch has it: no first moment, factored second moments, steps
    /// relative to the size of the weights.
    Adafactor {
        /// The exponent with which the second moments' memory grows: −0.8.
        beta2_decay: f64,
        /// The least root mean square of weights that steps are relative to: 1e-3.
        eps: f64,
        /// The largest root mean square of a step before the rate: 1.
        clip_threshold: f64,
    },
}

impl Default for Algorithm {
    fn default() -> Self {
        Algorithm::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, decoupled: true }
    }
}

/// How Adam keeps its moments of a parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Moments {
    /// Two numbers a weight.
    #[default]
    Full,
    /// The first moment a weight, the second a row and a column.
    FactoredSecond,
    /// No first moment (β₁ = 0), and the second a row and a column: Shazeer et al. 2017.
    FactoredOnly,
}

/// What becomes of a slice that no token of a step used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unused {
    /// Weights, moments and the number of steps stay: as PyTorch treats a gradient of `None`.
    #[default]
    Skip,
    /// A gradient of zero: moments fade, and momentum and weight decay go on.
    Decay,
}

/// What an optimizer is made with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OptimizerOptions {
    /// Which optimizer.
    pub algorithm: Algorithm,
    /// Weight decay, for all parameters but norms, biases and other vectors.
    pub weight_decay: f64,
    /// Weight decay for those, too.
    pub decay_norms: bool,
    /// How Adam keeps the moments of experts.
    pub expert_moments: Moments,
    /// What becomes of experts without tokens.
    pub unused: Unused,
}

/// What holds for one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Whether it is trained.
    pub trained: bool,
    /// What the learning rate is multiplied with.
    pub rate: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// How Adam keeps its moments.
    pub moments: Moments,
}

impl Rule {
    /// The rule of a parameter: frozen where `frozen` matches.
    pub fn of(p: &Parameter, options: &OptimizerOptions, frozen: &Selection) -> Rule {
        let role = Role::of(&p.name);
        let matrix = p.slice_shape().len() > 1;
        let decays = options.decay_norms || (matrix && role != Role::Norms && !p.name.ends_with(".bias"));
        let moments = if role == Role::Experts && matrix { options.expert_moments } else { Moments::Full };
        Rule {
            trained: !frozen.matches(&p.name),
            rate: 1.0,
            weight_decay: if decays { options.weight_decay } else { 0.0 },
            moments,
        }
    }
}

/// An optimizer with its state.
#[derive(Clone, Debug)]
pub struct Optimizer {
    options: OptimizerOptions,
    parameters: Vec<Parameter>,
    rules: Vec<Rule>,
    states: Vec<State>,
}

impl Optimizer {
    /// An optimizer of these parameters, before its first step; `rules` has one for each.
    ///
    /// # Errors
    /// [`Error::Invalid`] for numbers out of range, and where nothing is trained.
    pub fn new(options: OptimizerOptions, parameters: &[Parameter], rules: Vec<Rule>) -> Result<Self> {
        options.check()?;
        if rules.len() != parameters.len() {
            return Err(Error::Invalid(format!("{} rules for {} parameters", rules.len(), parameters.len())));
        }
        if !rules.iter().any(|r| r.trained) {
            return Err(Error::Invalid("every parameter is frozen: nothing would be trained".into()));
        }
        let states = parameters.iter().zip(&rules).map(|(p, r)| State::new(&options.algorithm, p, r)).collect();
        Ok(Optimizer { options, parameters: parameters.to_vec(), rules, states })
    }

    /// Which parameters are trained.
    pub fn trained(&self) -> Vec<bool> {
        self.rules.iter().map(|r| r.trained).collect()
    }

    /// The rules, in the order of the parameters.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The size of the state, in bytes.
    pub fn state_bytes(&self) -> u64 {
        self.states.iter().map(State::bytes).sum()
    }

    /// One step of parameter `index`: new weights from gradients, each multiplied with `factor` first (of clipping).
    ///
    /// # Errors
    /// [`Error::Invalid`] where the slot is not that of the parameter; [`Error::Device`] where a thread ended early.
    pub fn step(&mut self, index: usize, slot: Slot<'_>, rate: f64, factor: f64, threads: usize) -> Result<()> {
        let (Some(p), Some(rule), Some(state)) =
            (self.parameters.get(index), self.rules.get(index), self.states.get_mut(index))
        else {
            return Err(Error::Invalid(format!("there is no parameter {index}")));
        };
        let used = slot.used.is_empty() || slot.used.len() == p.slices;
        if slot.weights.len() != p.len() || slot.gradients.len() != p.len() || !used {
            return Err(Error::Invalid(format!("weights or gradients of another size than {} has", p.name)));
        }
        if !rule.trained {
            return Ok(());
        }
        let mut tasks = Vec::new();
        let step = Step { options: &self.options, rule, rate: rate * rule.rate, factor: factor as f32 };
        step.tasks(p, state, slot, &mut tasks);
        let threads = threads.min(tasks.len()).max(1);
        threads::for_each(
            threads,
            tasks.into_iter(),
            || (),
            |(), task| {
                task.run();
                Ok(())
            },
        )
    }

    /// The state's tensors and counts, for a checkpoint.
    pub fn save(&self) -> Saved<'_> {
        state::save(&self.parameters, &self.states)
    }

    /// Takes the state of a checkpoint: `tensor` gives the numbers of a name of [`Optimizer::save`].
    ///
    /// # Errors
    /// What `tensor` returns; [`Error::Invalid`] for counts or sizes that are not those of the parameters.
    pub fn load(
        &mut self,
        steps: &[(String, Vec<u64>)],
        tensor: &mut dyn FnMut(&str, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        state::load(&self.parameters, &mut self.states, steps, tensor)
    }
}

impl OptimizerOptions {
    /// Numbers that make a step impossible are refused before the first.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the key.
    pub fn check(&self) -> Result<()> {
        let bad =
            |key: &str, value: f64, range: &str| Err(Error::Invalid(format!("{key} is {value}; {range} is expected")));
        let beta = |key: &str, b: f64| {
            if (0.0..1.0).contains(&b) { Ok(()) } else { bad(key, b, "a number from 0 to below 1") }
        };
        let least = |key: &str, v: f64| if v >= 0.0 && v.is_finite() { Ok(()) } else { bad(key, v, "a number from 0") };
        least("weight_decay", self.weight_decay)?;
        match self.algorithm {
            Algorithm::Adam { beta1, beta2, eps, .. } => {
                beta("adam_beta1", beta1)?;
                beta("adam_beta2", beta2)?;
                // A weight without gradients so far has no second moment either: 0 / 0 where it is 0 in single precision.
                let above = eps as f32 > 0.0 && (eps as f32).is_finite();
                let what = format!("adam_epsilon is {eps:e}; a number above 0 in single precision is expected");
                if above { Ok(()) } else { Err(Error::Invalid(what)) }
            }
            Algorithm::Sgd { momentum, nesterov } => {
                beta("momentum", momentum)?;
                if nesterov && momentum == 0.0 {
                    return Err(Error::Invalid("nesterov needs a momentum".into()));
                }
                Ok(())
            }
            Algorithm::Adafactor { beta2_decay, eps, clip_threshold } => {
                least("adafactor_eps", eps)?;
                if beta2_decay > 0.0 || !beta2_decay.is_finite() {
                    return bad("adafactor_beta2_decay", beta2_decay, "a number to 0");
                }
                if clip_threshold > 0.0 { Ok(()) } else { bad("adafactor_clip", clip_threshold, "a number above 0") }
            }
        }
    }
}

/// One parameter's part of a step.
struct Step<'o> {
    options: &'o OptimizerOptions,
    rule: &'o Rule,
    rate: f64,
    factor: f32,
}

impl Step<'_> {
    /// The tasks of a parameter: pieces of its slices.
    fn tasks<'a>(&self, p: &Parameter, state: &'a mut State, slot: Slot<'a>, tasks: &mut Vec<Task<'a>>) {
        let each = p.slice_len();
        let State { steps, first, second } = state;
        let mut first = first.chunks_mut(each.max(1));
        let mut second = second.slices(each, p.slices);
        let slices = slot.weights.chunks_mut(each.max(1)).zip(slot.gradients.chunks(each.max(1)));
        for (i, (weights, gradients)) in slices.enumerate() {
            let (first, second) = (first.next().unwrap_or_default(), second.next().unwrap_or(state::Part::None));
            if self.options.unused == Unused::Skip && slot.used.get(i) == Some(&false) {
                continue;
            }
            steps[i] += 1;
            self.slice(Slice { weights, gradients, first, second }, steps[i], tasks);
        }
    }

    fn slice<'a>(&self, s: Slice<'a>, t: u64, tasks: &mut Vec<Task<'a>>) {
        let decay = self.rule.weight_decay;
        match self.options.algorithm {
            Algorithm::Adam { beta1, beta2, eps, decoupled } => {
                let beta1 = if self.rule.moments == Moments::FactoredOnly { 0.0 } else { beta1 };
                let step = AdamStep::new([beta1, beta2, eps], t, self.rate, decay, decoupled, self.factor);
                match s.second {
                    state::Part::Factored { rows, cols } => {
                        let step = FactoredStep { adam: step, beta2, correction: 1.0 - beta2.powf(t as f64) };
                        tasks.push(Task::Factored { step, w: s.weights, g: s.gradients, m: s.first, rows, cols });
                    }
                    state::Part::Full(v) => {
                        let pieces =
                            s.weights.chunks_mut(PIECE).zip(s.gradients.chunks(PIECE)).zip(v.chunks_mut(PIECE));
                        let mut m = s.first.chunks_mut(PIECE);
                        for ((w, g), v) in pieces {
                            tasks.push(Task::Adam { step, w, g, m: m.next().unwrap_or_default(), v });
                        }
                    }
                    state::Part::None => {}
                }
            }
            Algorithm::Sgd { momentum, nesterov } => {
                let step = SgdStep::new(momentum, nesterov, self.rate, decay, self.factor);
                let mut m = s.first.chunks_mut(PIECE);
                for (w, g) in s.weights.chunks_mut(PIECE).zip(s.gradients.chunks(PIECE)) {
                    tasks.push(Task::Sgd { step, w, g, m: m.next().unwrap_or_default() });
                }
            }
            Algorithm::Adafactor { beta2_decay, eps, clip_threshold } => {
                let step = AdafactorStep {
                    forget: (t as f64).powf(beta2_decay),
                    rate: self.rate.min(1.0 / (t as f64).sqrt()),
                    keep: 1.0 - self.rate * decay,
                    eps,
                    clip: clip_threshold,
                    factor: self.factor,
                };
                tasks.push(Task::Adafactor { step, w: s.weights, g: s.gradients, second: s.second });
            }
        }
    }
}

/// A slice's numbers.
struct Slice<'a> {
    weights: &'a mut [f32],
    gradients: &'a [f32],
    first: &'a mut [f32],
    second: state::Part<'a>,
}

/// What one thread does at once.
enum Task<'a> {
    Adam {
        step: AdamStep,
        w: &'a mut [f32],
        g: &'a [f32],
        m: &'a mut [f32],
        v: &'a mut [f32],
    },
    Sgd {
        step: SgdStep,
        w: &'a mut [f32],
        g: &'a [f32],
        m: &'a mut [f32],
    },
    Factored {
        step: FactoredStep,
        w: &'a mut [f32],
        g: &'a [f32],
        m: &'a mut [f32],
        rows: &'a mut [f32],
        cols: &'a mut [f32],
    },
    Adafactor {
        step: AdafactorStep,
        w: &'a mut [f32],
        g: &'a [f32],
        second: state::Part<'a>,
    },
}

impl Task<'_> {
    fn run(self) {
        match self {
            Task::Adam { step, w, g, m, v } => step.run(w, g, m, v),
            Task::Sgd { step, w, g, m } => step.run(w, g, m),
            Task::Factored { step, w, g, m, rows, cols } => step.run(w, g, m, rows, cols),
            Task::Adafactor { step, w, g, second } => step.run(w, g, second),
        }
    }
}
