//! Moeray runs Mixture-of-Experts transformers on any GPU that wgpu reaches (Vulkan, Metal, DX12), and on the CPU
//! where there is no GPU.
//!
//! # Where to start
//!
//! | wish | where |
//! |---|---|
//! | text from a prompt, streamed | [`session::Model::open`], [`session::Session`], [`generate::generate`]: the example below |
//! | a conversation with the model's own template | [`chat::Chat`] |
//! | a generation that is stopped, polled in slices, sent to a thread, or an asynchronous stream | [`CancelToken`], [`generate::Generation`] |
//! | several texts at once | [`session::Batch`] |
//! | logits, hidden states, vectors of texts | [`session::Session::prefill`], [`session::Session::hidden_states`], [`session::Session::embedding`] |
//! | which experts a text takes | [`session::Session::record_routing`], [`routing`] |
//! | a GPU of one's own choice, or the host's own device | [`session::BackendChoice`], `gpu::Gpu::adopt` |
//! | what a model will need before it is loaded | [`session::MemoryNeeds::of`]; where, weights by kind: [`session::MemoryPlan::of`] |
//! | a model larger than the GPU's memory: its experts on the processor, or in slots | [`session::Experts`], [`session::ExpertPlacement`] |
//! | a model to try without a file | `session::Model::demo` (feature `demo-model`) |
//!
//! The repository's `examples/` has a program for each of the usual wishes.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `gpu` | yes | GPUs through wgpu; without it models run on the CPU, and neither wgpu nor naga is built |
//! | `cli` | yes | the program `moeray`; a library's user leaves it out |
//! | `demo-model` | yes | the built-in model of 6.5 MB, `session::Model::demo` |
//! | `grammar` | yes | output that follows a JSON schema, a regular expression, a grammar, or calls of tools: `generate::Grammar` |
//! | `train` | yes | training and adapters: [`train`] |
//! | `serve` | yes | the server behind `moeray serve`; a library's user leaves it out |
//! | `pull` | no | downloads of models: `hub::PullOptions::pull` |
//! | `mpi` | no | the program's processes that share the experts of a model, on one host or several, started by `mpirun` |
//! | `stream` | no | `generate::Generation::into_stream`, a stream for asynchronous programs |
//!
//! # Defaults
//!
//! A model goes to the best real GPU, else to the CPU with a thread for each core. A session has 2048 positions, micro-batches of 512
//! tokens, and keys and values in half precision ([`session::SessionOptions`]); a generation has at most 256 tokens
//! ([`generate::GenerateOptions`]), chosen at a temperature of 0.8 from the best 40 with top-p 0.95 and min-p 0.05, with the seed 0
//! ([`generate::SamplerOptions`]). A text gets the tokens before it that its vocabulary wants ([`tokenizer::EncodeOptions`]).
//!
//! Mesa's layer for desktops writes to standard error on Linux where `XDG_RUNTIME_DIR` is not set; a program without a desktop
//! silences it by `NODEVICE_SELECT=1` in its environment before the first device is looked for.
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
//!              runner ─→ n sequences: rows in, logits or chosen tokens out; begin and poll, slices, save, restore, fork
//!              session ─→ views of it: one sequence, several
//!              generate ─→ sampler, stop rules, streaming     chat ─→ conversations
//!              tokenizer ─→ text     tools ─→ calls in answers     grammar ─→ masks of tokens
//!              train ─→ new weights     serve ─→ many clients over HTTP         cli on top
//! ```
//!
//! The modules stand in reading order. An application needs few of them: [`session`] (a [`session::Model`] and its sequences),
//! [`generate`], [`chat`], [`tokenizer`], [`routing`], and [`gpu`] or [`cpu`] to say where it runs; `train` makes new
//! weights. The others are the engine's rooms: they are not part of the interface and change from version to version.
//!
//! # Promises that hold everywhere
//!
//! 1. Routing never visits the host: router, top-k, counting, sorting and dispatch sizes stay on the GPU. The exceptions are
//!    asked for by name: experts that the host computes ([`session::Experts`]), experts that processes share, and the borders of layers
//!    that are split over devices ([`session::BackendChoice::Split`]).
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
//! 9. Nothing is forgotten in silence: a new op, format, storage or constant that a place does not know is a compile error or an
//!    error with a name. What Rust and WGSL share is written once.
//! 10. The core never blocks its host: every wait is bounded and has a form that polls, work comes in slices, and a host's
//!     device stays the host's.
//!
//! # Threads
//!
//! Several threads may share a [`session::Model`], a [`gpu::Gpu`], a [`tokenizer::Tokenizer`], a [`generate::CancelToken`] and
//! an [`Error`] (`Send` and `Sync`). One thread at a time uses a [`session::Session`], a [`session::Batch`] or a
//! [`generate::Generation`]; it may hand them to another (`Send`, not `Sync`).
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

// The program and the tests use all of the rooms; what only they use is no dead code.
#![cfg_attr(not(feature = "internals"), allow(dead_code, unused_imports))]

mod error;
mod cancel;
mod memory;
mod threads;
#[cfg(not(feature = "internals"))]
mod quant;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod quant;
#[cfg(not(feature = "internals"))]
mod file;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod file;
pub mod tokenizer;
#[cfg(not(feature = "internals"))]
mod tools;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod tools;
#[cfg(all(feature = "grammar", not(feature = "internals")))]
mod grammar;
#[cfg(all(feature = "grammar", feature = "internals"))]
#[doc(hidden)]
pub mod grammar;
#[cfg(not(feature = "internals"))]
mod ir;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod ir;
#[cfg(not(feature = "internals"))]
mod ops;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod ops;
#[cfg(not(feature = "internals"))]
mod graph;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod graph;
#[cfg(not(feature = "internals"))]
mod model;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod model;
#[cfg(all(feature = "gpu", not(feature = "internals")))]
mod kernels;
#[cfg(all(feature = "gpu", feature = "internals"))]
#[doc(hidden)]
pub mod kernels;
#[cfg(all(feature = "gpu", not(feature = "internals")))]
mod plan;
#[cfg(all(feature = "gpu", feature = "internals"))]
#[doc(hidden)]
pub mod plan;
#[cfg(not(feature = "internals"))]
mod backend;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod backend;
pub mod hub;
pub mod routing;
pub mod session;
mod sampler;
pub mod generate;
pub mod chat;
#[cfg(feature = "train")]
pub mod train;
#[cfg(all(feature = "serve", not(feature = "internals")))]
mod serve;
#[cfg(all(feature = "serve", feature = "internals"))]
#[doc(hidden)]
pub mod serve;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;

pub use backend::Progress;
pub use cancel::CancelToken;
pub use error::{Error, Result};
pub use quant::KvType;

/// GPUs: the devices that there are, how one is opened, and how programs run on it.
#[cfg(feature = "gpu")]
pub mod gpu {
    /// The wgpu whose devices can be adopted: a host must use this version.
    pub use ::wgpu;

    /// Devices that are smaller than the one that is there, and what was measured on one, for tests.
    #[doc(hidden)]
    pub use crate::backend::wgpu::{ForcedLimits, Measured};
    pub use crate::{
        backend::wgpu::{DeviceCallbacks, DeviceInfo, Gpu, Options, Requirements, RunOptions, ShaderCache, Tuning},
        kernels::{Reduction, Tiles},
    };
}

/// The CPU: threads, instruction sets, and the precision of activations.
pub mod cpu {
    /// For benchmarks of the program.
    #[doc(hidden)]
    pub use crate::backend::cpu::measure_bandwidth;
    pub use crate::{
        backend::cpu::{Options, SimdLevel},
        ops::linear::Activations,
    };
}

/// A low-rank adapter (LoRA) of a model.
pub use model::AdapterFile;
/// What a model gives beyond its logits.
pub use model::Options as ModelOptions;

/// The README's code, compiled by the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
