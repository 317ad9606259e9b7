//! The integration tests, one binary, grouped by what they need.

mod alloc;
mod cpu;
mod files;
mod quant;
mod quant_gpu;
// mod alarms;
// mod goldens;
// mod parity;
// mod support;
