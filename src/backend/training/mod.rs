//! What trains: the trait that every backend's training executor answers to.
//!
//! A [`Training`] is made of a [`crate::graph::TrainProgram`]: a program whose graph has an output `loss` `[1, 1]`, differentiated by
//! the weights that are trained. It holds the weights that it trains as owned numbers, one gradient for each, and whatever backward needs. One
//! [`Training::micro`] runs forward and backward over the rows of a micro-batch and *adds* to the gradients, in a fixed order;
//! [`Training::each`] hands weights and gradients to an optimizer, and [`Training::clear`] sets the gradients to zero. Nothing is averaged here: a loss
//! that counts tokens is normalised by scalars that the caller feeds (the tokens of the whole batch, not of the micro-batch).
//!
//! Deliberately absent: optimizers, schedules, data.

mod update;
pub mod walk;

pub use update::{Moments, OnDevice, ParameterStep, SliceStep, Update};

pub use crate::{graph::Parameter, ops::train::Feed};

use crate::error::Result;

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

    /// The program's graph of evaluation, or else its forward nodes: their outputs; gradients stay as they are.
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

    /// Lets go of memory that is kept for the next micro-batch; one may come all the same.
    fn rest(&mut self) {}

    /// The backend as one that takes an optimizer's steps by itself, where it is such a one.
    fn device(&mut self) -> Option<&mut dyn OnDevice> {
        None
    }

    /// A parameter's gradient so far.
    ///
    /// # Errors
    /// Those of a device.
    fn gradient(&mut self, parameter: usize) -> Result<Vec<f64>>;
}
