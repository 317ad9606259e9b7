//! Training: graphs with a loss, and what makes their weights better.
//!
//! # The interface between a trainer and what computes
//!
//! 1. A graph ends in outputs `loss` `[1, 1]` (what is differentiated), `loss.<term>` and whatever else is to be seen at every
//!    step. It is built with [`crate::graph::Builder`]; routers, balancing losses and layers of the literature are functions
//!    on a builder, and a model's own graph (`model::build`) is rewritten for training by a function of [`crate::graph`].
//! 2. [`crate::graph::TrainProgram`] differentiates the program by the weights to train: what has no gradient is refused there, by name.
//!    A backend makes a [`Training`] of it: `backend::reference::train(program, precision)`, and others as they come.
//! 3. A step is: for each micro-batch [`Training::micro`] (adds to the gradients, returns the named losses), then
//!    [`Training::each`] once to read gradients for the norm and once for the update in place, then [`Training::clear`].
//!
//! Names of a feed: `tokens` of a model's graph are [`Feed::tokens`]; `targets` and `starts` are ids; `weights` `[T, 1]` says how
//! much each row counts, and the scalar `normaliser` `[1, 1]` multiplies the summed cross entropy (1 / weights of the whole batch);
//! the scalar `share` multiplies terms that are means over the micro-batch (its share of the batch).
//!
//! Deliberately absent: kernels and formulas of derivatives, which are on the op pages.

pub use crate::backend::training::{Feed, Named, Parameter, Slot, Training};
