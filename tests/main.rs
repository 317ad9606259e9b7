//! The integration tests, one binary, grouped by what they need.

mod files;
mod kernels;
mod quant;
// mod alarms;
// mod parity;
// mod support;
