//! The integration tests, one binary, grouped by what they need.

mod alarms;
mod files;
mod generate;
mod goldens;
mod parity;
mod quant;
mod quant_gpu;
mod sampler;
mod support;
