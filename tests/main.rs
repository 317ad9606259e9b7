//! The integration tests, one binary, grouped by what they need.

mod files;
mod quant;
// mod alarms;
// mod parity;
// mod support;
