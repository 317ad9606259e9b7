//! Verbs that make new weights.

pub mod finetune;
mod live;
pub mod merge;
#[allow(clippy::module_inception)]
pub mod train;
pub mod upcycle;
