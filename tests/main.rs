//! The integration tests, one binary, grouped by what they need.

mod alarms;
mod alloc;
mod arrows;
#[cfg(all(feature = "cli", feature = "demo-model"))]
mod cli;
mod files;
mod generate;
mod goldens;
mod kernels;
mod parity;
mod quant;
mod quant_gpu;
mod quant_mix;
mod quantize;
mod sampler;
mod support;
mod tokenizer;
