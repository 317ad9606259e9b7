//! The integration tests, one binary, grouped by what they need.

mod files;
mod generate;
mod sampler;
// mod alarms;
// mod parity;
// mod support;
