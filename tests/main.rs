//! The integration tests, one binary, grouped by what they need.
mod sampler;
