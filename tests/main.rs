//! The integration tests, one binary, grouped by what they need.

mod alloc;
mod arrows;
mod files;
mod generate;
mod quant;
mod quant_gpu;
mod sampler;
// mod alarms;
// mod goldens;
// mod parity;
// mod support;
