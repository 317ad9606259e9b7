//! Gradients: every rule against differences of the loss, what must be refused, and comparators that must notice known mistakes.

pub mod alarms;
mod backends;
mod gpu;
mod gpu_alarms;
pub mod net;
mod model;
mod ops;
mod recompute;
mod refused;
mod router_noise;
mod routers;
