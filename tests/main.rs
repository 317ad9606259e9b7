//! The integration tests, one binary, grouped by what they need.

mod alloc;
mod files;
mod kernels;
mod quant;
mod quant_gpu;
// mod alarms;
// mod goldens;
// mod parity;
// mod support;
mod quant_mix;
mod quantize;
