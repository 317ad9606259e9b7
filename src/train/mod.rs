//! Training: data and a configuration into new weights.
//!
//! In the order of the data: `learner` says what a model is to the trainer (named parameters, and a micro-batch that gives
//! losses and gradients); `select` chooses parameters by name; [`data`] makes batches of files; `schedule`, `clip` and
//! `optimizer` make a step of gradients; [`metrics`] tell people and programs how it goes; `checkpoint` keeps what is needed to
//! go on; [`Trainer`] is the loop, and [`config`] what a person says about it. `upcycle` makes experts of dense networks, to be
//! trained on.
//!
//! Everything here is deterministic: equal configuration, data and seed give equal weights, whatever the number of threads.
//!
//! Deliberately absent: kernels and derivatives (`backend`, `graph`).

// Between a trainer and what computes:
//
// 1. A graph ends in outputs `loss` `[1, 1]` (what is differentiated), `loss.<term>` and whatever else is to be seen at every
//    step. It is built with `crate::graph::Builder`; routers, balancing losses and layers of the literature are functions
//    on a builder, and a model's own graph (`model::build`) is rewritten for training by a function of `crate::graph`.
// 2. A backend makes a `Training` of the program and the set of weights to train:
//    `backend::reference::train(program, trained, …)`, `backend::cpu::train(…)`. What has no gradient is refused there, by name.
// 3. A step is: for each micro-batch `Training::micro` (adds to the gradients, returns the named losses), then
//    `Training::each` once to read gradients for the norm and once for the update in place, then `Training::clear`.
//
// Names of a feed: `tokens` of a model's graph are `Feed::tokens`; `targets` and `starts` are ids; `weights` `[T, 1]` says how
// much each row counts, and the scalar `normaliser` `[1, 1]` multiplies the summed cross entropy (1 / weights of the whole batch);
// the scalar `share` multiplies terms that are means over the micro-batch (its share of the batch).

mod adapters;
mod checkpoint;
mod clip;
pub mod config;
pub mod data;
mod forecast;
mod graphs;
mod learner;
pub mod metrics;
mod model_learner;
mod optimizer;
mod schedule;
mod scratch;
mod select;
mod trainer;
mod upcycle;

pub use crate::backend::training::{ParameterStep, SliceStep, Update};
pub use adapters::new_adapters;
pub use checkpoint::{Checkpoints, Resumed, TrainState};
pub use clip::{Norm, clip_factor, gradient_norm, square_sum};
pub use forecast::Forecast;
pub use learner::{DeviceLearner, ExpertLoad, Learner, LossTerm, MicroBatch, Outcome, Parameter, Slot, Visit};
pub use model_learner::ModelLearner;
pub use optimizer::{Algorithm, Moments, Optimizer, OptimizerOptions, Rule, Saved, Unused};
pub use schedule::{Decay, Schedule, Tail};
pub use scratch::from_scratch;
pub use select::{Role, Selection};
pub use trainer::{Event, Finished, Trainer};
pub use upcycle::{Gate, UpcycleOptions, upcycle, upcycle_to};
