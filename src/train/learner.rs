//! What a model is to the trainer: named parameters, and micro-batches that give losses and gradients.

use super::parameter::Parameter;
use crate::{
    backend::training::{Moments, ParameterStep},
    error::Result,
};

/// Rows of some sequences, one below the other. Every row is a token that predicts another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// The tokens, `[N]`.
    pub ids: Vec<u32>,
    /// The token that each row should predict, `[N]`.
    pub targets: Vec<u32>,
    /// The position of each row in its text, `[N]`.
    pub positions: Vec<u32>,
    /// The row at which the text of each row begins, `[N]`: a row sees the rows from there to itself.
    pub starts: Vec<u32>,
    /// The weight of each row in the loss, `[N]`; 0 for what is not to be learnt.
    pub weights: Vec<f32>,
    /// Which rows are padding, `[N]`, and count for nothing; empty where none is.
    pub padding: Vec<bool>,
    /// What the weighted sum of the rows' losses is multiplied with: one over the weights of the whole batch, so that
    /// micro-batches add up to the mean over all of its tokens.
    pub scale: f64,
    /// The part of the whole batch's rows without padding that are in this micro-batch: what losses that are means over rows (of
    /// routers) are multiplied with.
    pub share: f64,
    /// The step of the optimizer, from 0: with `seed` and `number` the key of all random numbers.
    pub step: u64,
    /// The number of the micro-batch in its step.
    pub number: u32,
    /// The seed of the run.
    pub seed: u64,
    /// How many experts a token uses, where a schedule says so.
    pub top_k: Option<u32>,
}

impl MicroBatch {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// The number of rows that are no padding.
    pub fn counted(&self) -> usize {
        self.rows() - self.padding.iter().filter(|p| **p).count()
    }
}

/// One term of the loss.
#[derive(Clone, Debug, PartialEq)]
pub struct LossTerm {
    /// Its name: `cross_entropy`, `balance`, `z`.
    pub name: &'static str,
    /// Its value, with the micro-batch's scale or share applied and without its own weight: the values of all micro-batches
    /// of a step add up to the value that is reported.
    pub value: f64,
    /// Its weight in the total.
    pub weight: f64,
}

/// How many tokens each expert of a layer took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertLoad {
    /// The layer.
    pub layer: u32,
    /// Tokens of each expert, dropped ones left out.
    pub tokens: Vec<u64>,
    /// Pairs of token and expert that found no place under a capacity.
    pub dropped: u64,
}

/// What a micro-batch gives beside its gradients.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The terms of the loss; the first is the one that evaluation is about.
    pub terms: Vec<LossTerm>,
    /// Loads of the layers with experts.
    pub loads: Vec<ExpertLoad>,
}

impl Outcome {
    /// The total of all terms.
    pub fn total(&self) -> f64 {
        self.terms.iter().map(|t| t.weight * t.value).sum()
    }

    /// Adds another micro-batch of the same step.
    pub fn add(&mut self, other: &Outcome) {
        if self.terms.is_empty() && self.loads.is_empty() {
            *self = other.clone();
            return;
        }
        for term in &other.terms {
            match self.terms.iter_mut().find(|t| t.name == term.name) {
                Some(t) => t.value += term.value,
                None => self.terms.push(term.clone()),
            }
        }
        for load in &other.loads {
            match self.loads.iter_mut().find(|l| l.layer == load.layer) {
                Some(l) => {
                    l.dropped += load.dropped;
                    l.tokens.iter_mut().zip(&load.tokens).for_each(|(a, b)| *a += b);
                }
                None => self.loads.push(load.clone()),
            }
        }
    }
}

/// The weights and gradients of one parameter, in the host's memory.
pub struct Slot<'a> {
    /// The weights.
    pub weights: &'a mut [f32],
    /// Their gradients, as many.
    pub gradients: &'a [f32],
    /// For each slice whether anything in the step used it; empty where everything was used.
    pub used: &'a [bool],
}

/// What [`Learner::each`] calls: the index of a parameter among [`Learner::parameters`], and its numbers.
pub type Visit<'a> = &'a mut dyn FnMut(usize, Slot<'_>) -> Result<()>;

/// A learner whose backend takes an optimizer's steps by itself, so that weights, gradients and moments stay on a device.
/// Its parameters are those that are trained, in an order that does not change.
pub trait DeviceLearner {
    /// For each parameter that is trained: its index, and for each of its slices whether anything in the step used it; empty where
    /// everything was used.
    fn used(&mut self) -> Vec<(usize, Vec<bool>)>;

    /// The sum of squares of all gradients.
    ///
    /// # Errors
    /// What the backend says.
    fn square_sum(&mut self) -> Result<f64>;

    /// Whether the device has the moments; otherwise they are to be given before the next step.
    fn has_moments(&self) -> bool;

    /// Gives the moments that there are so far; `steps` say how steps will look.
    ///
    /// # Errors
    /// What the backend says.
    fn give_moments(&mut self, steps: &[ParameterStep], moments: &[[&[f32]; 2]]) -> Result<()>;

    /// Takes a step.
    ///
    /// # Errors
    /// What the backend says.
    fn update(&mut self, steps: &[ParameterStep]) -> Result<()>;

    /// The moments as they stand, of the nth parameter of [`DeviceLearner::used`].
    ///
    /// # Errors
    /// What the backend says.
    fn moments(&mut self, n: usize) -> Result<Moments>;
}

/// A model that learns.
pub trait Learner {
    /// What can be trained, in an order that does not change.
    fn parameters(&self) -> &[Parameter];

    /// Tokens of the vocabulary: ids of batches are below.
    fn vocab(&self) -> usize;

    /// The longest text that the model takes, in tokens.
    fn context(&self) -> usize;

    /// What tells the model from which this one goes on apart from others: a run goes on with the one it began with. `None` where
    /// there is nothing to tell.
    fn origin(&self) -> Option<String> {
        None
    }

    /// Says which parameters will be trained, in the order of [`Learner::parameters`]. Called once, before all that follows.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] that names an operation without a gradient on the way to one of them.
    fn choose(&mut self, trained: &[bool]) -> Result<()>;

    /// Runs a micro-batch forwards and backwards, and adds its gradients to those that are there.
    ///
    /// # Errors
    /// What the backend says.
    fn accumulate(&mut self, batch: &MicroBatch) -> Result<Outcome>;

    /// Runs a micro-batch forwards: losses without noise, dropout and gradients.
    ///
    /// # Errors
    /// What the backend says.
    fn evaluate(&mut self, batch: &MicroBatch) -> Result<Outcome>;

    /// Hands out every parameter that is trained, in order. Weights may be changed; gradients may not.
    ///
    /// # Errors
    /// What `visit` returns, and what the backend says.
    fn each(&mut self, visit: Visit<'_>) -> Result<()>;

    /// The learner as one whose backend takes steps by itself, where it is such a one; otherwise [`Learner::each`] gives an
    /// optimizer what it needs.
    fn device(&mut self) -> Option<&mut dyn DeviceLearner> {
        None
    }

    /// Called behind the update of a step that was not skipped, before gradients are set to zero: for what changes without a
    /// gradient.
    ///
    /// # Errors
    /// What the backend says.
    fn stepped(&mut self) -> Result<()> {
        Ok(())
    }

    /// Sets all gradients to zero: behind every step.
    ///
    /// # Errors
    /// What the backend says.
    fn clear(&mut self) -> Result<()>;
}
