//! The integration tests, one binary, grouped by what they need.

// The package on the registry has this file alone: the tests and their data stay in the repository, where the crate depends on itself
// with this feature.
#![cfg(feature = "internals")]
// clippy.toml allows unwrap in test functions; this is for the functions that they share. Tests say what they measure.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod adopt;
mod alarms;
mod alloc;
mod api;
mod arrows;
mod batch;
mod chat;
#[cfg(all(feature = "cli", feature = "demo-model"))]
mod cli;
#[cfg(all(feature = "cli", feature = "demo-model"))]
mod cli_chat;
mod config_facts;
mod cpu;
mod experts;
mod export;
mod export_families;
mod export_hugging_face;
mod export_vocab;
mod files;
mod forms;
mod fuzz;
mod generate;
mod goldens;
mod grad;
mod gpu;
mod gpu_faults;
mod isa;
#[cfg(feature = "grammar")]
mod grammar;
mod hidden;
mod hub;
mod kernels;
mod load;
mod optional_parts;
mod parity;
mod gpu_sampler;
mod plan;
mod plan_sizes;
mod plan_tables;
mod proven;
mod public_api;
#[cfg(feature = "pull")]
mod pull;
mod quant;
mod quant_gpu;
mod quant_mix;
mod quantize;
mod readme;
mod recurrent;
mod routing;
mod runner;
mod sampler;
#[cfg(feature = "serve")]
mod serve;
mod support;
mod tokenizer;
#[cfg(feature = "train")]
mod train;
mod train_goldens;
mod variants;
