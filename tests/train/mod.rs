//! The trainer: optimizers, schedules, data, configurations, checkpoints, logs. The models here are small and have exact
//! gradients of their own, so that what fails is the trainer.

#[cfg(all(feature = "cli", feature = "demo-model"))]
mod bad_input;
mod balance;
mod bigram;
mod config;
mod data;
#[cfg(feature = "cli")]
mod folder;
#[cfg(all(feature = "cli", feature = "demo-model"))]
mod gpu;
#[cfg(all(feature = "cli", feature = "demo-model"))]
mod groups;
mod kill;
mod logs;
#[cfg(all(feature = "cli", feature = "demo-model"))]
mod lora;
#[cfg(all(feature = "cli", feature = "demo-model"))]
mod memory;
mod mixture;
#[cfg(all(feature = "cli", feature = "demo-model"))]
mod model;
mod optimizer;
mod padding;
mod resume;
mod routers;
mod schedule;
mod share_moe;
mod trainer;
#[cfg(all(feature = "cli", feature = "demo-model"))]
mod tutorial;
#[cfg(all(feature = "cli", feature = "demo-model"))]
mod upcycle;
