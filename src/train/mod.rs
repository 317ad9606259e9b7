//! Training: data and a configuration into new weights.
//!
//! ```no_run
//! use moeray::{CancelToken, train::{Event, TrainConfig, Trainer}};
//!
//! # fn main() -> moeray::Result<()> {
//! let text = r#"
//!     base_model = "model.gguf"
//!     datasets = [{ path = "texts/" }]
//!     lora = { r = 16 }
//! "#;
//! let mut trainer = Trainer::open(TrainConfig::parse("run.toml", text, &[])?)?;
//! trainer.open_logs()?;
//! trainer.run(&CancelToken::new(), &mut |event| {
//!     if let Event::Step(step) = event {
//!         println!("{}: {:.4}", step.step, step.loss);
//!     }
//! })?;
//! trainer.export()?;
//! # Ok(())
//! # }
//! ```
//!
//! In the order of the data: `learner` says what a model is to the trainer (named parameters, and a micro-batch that gives
//! losses and gradients); `select` chooses parameters by name; `data` makes batches of files; `schedule`, `clip` and
//! `optimizer` make a step of gradients; `metrics` tell people and programs how it goes; `checkpoint` keeps what is needed to
//! go on; [`Trainer`] is the loop, `run` what is around it, and [`TrainConfig`] what a person says about it. `upcycle` makes experts of dense networks, to be
//! trained on. [`Mixture`] is a router and experts on rows of numbers, without a language model.
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
// the scalar `share` multiplies terms that are means over the micro-batch (its share of the batch); `counted` `[T, 1]` is 0 for
// padding, which routers' terms and loads leave out.

mod adapters;
mod checkpoint;
mod clip;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod data;
mod forecast;
mod graphs;
mod lasting;
mod learner;
#[doc(hidden)]
pub mod metrics;
mod mixture;
mod model_learner;
mod optimizer;
mod parameter;
mod places;
mod run;
mod schedule;
mod scratch;
mod select;
mod trainer;
mod upcycle;
mod whole;

pub use config::TrainConfig;
pub use forecast::Forecast;
pub use learner::{ExpertLoad, LossTerm};
pub use metrics::{EvalRecord, StepRecord};
pub use mixture::{Mixture, MixtureLoss, MixtureOptions};
pub use trainer::{Event, Finished, Trainer};
pub use upcycle::{Gate, UpcycleOptions};

// What the trainer is made of: for the program and the tests, and no part of the interface that versions promise.
#[doc(hidden)]
pub use {
    crate::backend::training::{ParameterStep, SliceStep, Update},
    adapters::new_adapters,
    checkpoint::{Checkpoints, Resumed, TrainState},
    clip::{Norm, clip_factor, gradient_norm, square_sum},
    learner::{DeviceLearner, Learner, MicroBatch, Outcome, Slot, Visit},
    model_learner::ModelLearner,
    optimizer::{Algorithm, Moments, Optimizer, OptimizerOptions, Rule, Saved, Unused},
    parameter::{Parameter, Role},
    schedule::{Decay, Schedule, Tail},
    scratch::from_scratch,
    select::Selection,
    upcycle::upcycle,
};
