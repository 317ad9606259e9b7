//! The integration tests, one binary, grouped by what they need.
mod generate;
mod sampler;
