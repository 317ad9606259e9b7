//! What trains: the trait that every backend's training executor answers to.
//!
//! A [`Training`] is made of a [`super::Program`] whose graph has an output `loss` `[1, 1]`, and of the names of the weights that
//! are trained. It holds the weights that it trains as owned numbers, one gradient for each, and whatever backward needs. One
//! [`Training::micro`] runs forward and backward over the rows of a micro-batch and *adds* to the gradients, in a fixed order;
//! [`Training::each`] hands weights and gradients to an optimizer, and [`Training::clear`] sets the gradients to zero. Nothing is averaged here: a loss
//! that counts tokens is normalised by scalars that the caller feeds (the tokens of the whole batch, not of the micro-batch).
//!
//! Deliberately absent: optimizers, schedules, data.

use crate::{error::Result, ir::WeightId};

/// A weight that is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the graph.
    pub name: String,
    /// Row-major shape: `[out, in]`, `[experts, out, in]`, or `[n]`.
    pub shape: Vec<usize>,
    /// Where the graph declares it.
    pub weight: WeightId,
}

impl Parameter {
    /// Numbers.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The data of one micro-batch. What the graph reads and is not here is an error that names it.
#[derive(Clone, Debug, Default)]
pub struct Feed {
    /// Rows, T: tokens of all sequences of the micro-batch, one behind the other.
    pub rows: usize,
    /// Token ids `[T]`, where the graph reads tokens.
    pub tokens: Vec<u32>,
    /// u32 inputs by name, row-major `[T, cols]`: `targets`, and `starts` (for each row the row where its sequence begins, so
    /// that attention and positions stay within it).
    pub ids: Vec<(String, Vec<u32>)>,
    /// Numbers by name, row-major: `[T, cols]` for inputs with a row a token, `[rows, cols]` for inputs of a fixed size, such
    /// as the scalars that normalise a loss.
    pub numbers: Vec<(String, Vec<f64>)>,
    /// Key of the counter-based random numbers of dropout and noise: the seed of the run.
    pub seed: u64,
    /// The step, a part of the counter.
    pub step: u32,
    /// The micro-batch within the step, a part of the counter.
    pub micro: u32,
}

impl Feed {
    /// Sets numbers, in place of those that have this name already.
    pub fn set(&mut self, name: &str, values: Vec<f64>) {
        self.numbers.retain(|(n, _)| n != name);
        self.numbers.push((name.into(), values));
    }

    /// Sets ids, in place of those that have this name already.
    pub fn set_ids(&mut self, name: &str, values: Vec<u32>) {
        self.ids.retain(|(n, _)| n != name);
        self.ids.push((name.into(), values));
    }
}

/// A named result of a micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Named {
    /// As the graph names its output: `loss`, `loss.<term>`, `tokens_per_expert_<layer>`, or a gradient of an input,
    /// `grad.<input>`.
    pub name: String,
    /// Columns of a row.
    pub cols: usize,
    /// Row-major; ids as numbers.
    pub values: Vec<f64>,
}

/// A weight and its gradient, as an optimizer sees them; both row-major, of the parameter's shape.
#[derive(Debug)]
pub struct Slot<'a> {
    /// Which one: an index into [`Training::parameters`].
    pub index: usize,
    /// The parameter.
    pub parameter: &'a Parameter,
    /// The weight, to be changed in place.
    pub weight: &'a mut [f32],
    /// The sum of the gradients of all micro-batches since the last update.
    pub gradient: &'a mut [f32],
}

/// A model in training on a backend.
pub trait Training: Send {
    /// `reference`, `cpu` or `wgpu`, with the device where there is one.
    fn describe(&self) -> String;

    /// The weights that are trained, in the order of the graph's declarations.
    fn parameters(&self) -> &[Parameter];

    /// Forward and backward over a micro-batch: adds to the gradients and gives the graph's outputs.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for missing or badly sized inputs and for ids out of range, before anything is added.
    fn micro(&mut self, feed: &Feed) -> Result<Vec<Named>>;

    /// Forward only: the graph's outputs; gradients stay as they are.
    ///
    /// # Errors
    /// As [`Training::micro`].
    fn evaluate(&mut self, feed: &Feed) -> Result<Vec<Named>>;

    /// Calls `each` for every parameter in order.
    ///
    /// # Errors
    /// Those of `each`, and of a device.
    fn each(&mut self, each: &mut dyn FnMut(Slot<'_>) -> Result<()>) -> Result<()>;

    /// Sets all gradients to zero: after an update, and when a step is skipped.
    ///
    /// # Errors
    /// Those of a device.
    fn clear(&mut self) -> Result<()>;

    /// A parameter's numbers.
    ///
    /// # Errors
    /// Those of a device.
    fn read(&mut self, parameter: usize) -> Result<Vec<f64>>;

    /// Overwrites a parameter.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for another length.
    fn write(&mut self, parameter: usize, values: &[f64]) -> Result<()>;

    /// A parameter's gradient so far.
    ///
    /// # Errors
    /// Those of a device.
    fn gradient(&mut self, parameter: usize) -> Result<Vec<f64>>;
}
