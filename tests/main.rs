//! The integration tests, one binary, grouped by what they need.

mod quant;
mod quant_gpu;
mod quant_mix;
mod quantize;
