//! Moeray runs Mixture-of-Experts transformers on any GPU that wgpu reaches (Vulkan, Metal, DX12), and on the CPU
//! where there is no GPU.
//!
//! # The way of the data
//!
//! ```text
//! bytes on disk ─ file ─→ named tensors + metadata
//!                 model ─→ hyperparameters, weights, and a graph (ops a paper would name)
//!                 graph ─→ checked, rewritten (fusions)
//!        ┌────────┴──────────────────────┐
//!   backend/reference, backend/cpu     kernels + plan ─→ backend/wgpu
//!   (walk the graph)                   (pipelines, bind groups, buffers, one list of dispatches)
//!        └────────┬──────────────────────┘
//!              session ─→ KV cache, position; prefill, decode
//!              generate ─→ sampler, stop rules, streaming
//!              tokenizer ─→ text         cli on top
//! ```
//!
//! The modules below stand in reading order.
//!
//! # Promises that hold everywhere
//!
//! 1. Routing never visits the host: router, top-k, counting, sorting and dispatch sizes stay on the GPU.
//! 2. One encoder, one compute pass, one submit per decoded token; pipelines, bind groups and buffers exist before the
//!    first token.
//! 3. The base path needs nothing beyond WebGPU's default limits.
//! 4. Accumulation is in f32; f16 is for storage.
//! 5. No wrong number in silence: metadata that changes the maths and is not understood is an error at load.
//! 6. The host application survives: the library does not panic on any file, prompt, size or device event, prints
//!    nothing (it uses `tracing`) and reads no environment variables.
//! 7. Same seed, same tokens, on the same device and settings.
//! 8. CPU work touches only the routed experts, and reads the weights in their quantised form: from the memory map, or from a
//!    copy that was packed once at load while the map was released.
//!
//! # Example
//!
//! ```rust,no_run
//! use moeray::generate::{CancelToken, GenerateOptions, generate};
//! use moeray::session::{LoadOptions, Model, Session, SessionOptions};
//!
//! fn main() -> moeray::Result<()> {
//!     let model = Model::load("model.gguf".as_ref(), &LoadOptions::default(), &mut |_| {})?;
//!     let tokenizer = model.require_tokenizer()?;
//!     let prompt = tokenizer.encode("ROMEO:", Default::default())?;
//!     let mut session = Session::new(&model, SessionOptions::default())?;
//!     let options = GenerateOptions { max_tokens: 64, ..Default::default() };
//!     for piece in generate(&mut session, Some(tokenizer), &prompt, options, CancelToken::default())? {
//!         print!("{}", piece?.text);
//!     }
//!     Ok(())
//! }
//! ```

pub mod error;
pub mod quant;
pub mod file;
pub mod tokenizer;
pub mod ir;
pub mod ops;
pub mod graph;
pub mod model;
pub mod kernels;
pub mod plan;
pub mod backend;
pub mod routing;
pub mod session;
pub mod batch;
pub mod sampler;
pub mod generate;
#[cfg(feature = "cli")]
pub mod cli;

pub use error::{Error, Result};

/// The README's code, compiled by the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
