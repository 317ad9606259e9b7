//! The integration tests, one binary, grouped by what they need.

mod alarms;
mod alloc;
mod arrows;
mod cpu;
mod files;
mod goldens;
mod kernels;
mod parity;
mod quant;
mod quant_gpu;
mod quant_mix;
mod quantize;
mod support;
mod tokenizer;
