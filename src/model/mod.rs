//! Models: metadata into hyperparameters, a weight list and a graph. One file per architecture, on shared blocks.
//!
//! In the order of the data: `params` reads hyperparameters by a family's facts (`facts`, `gguf`); `families` has a file an
//! architecture, which makes a [`Decoder`] of them; `graph` puts a decoder's layers together of `blocks`, whose weights
//! `loader` finds; `export` writes the same model as GGUF or as a Hugging Face folder.
//!
//! To add an architecture: a file in `families` with its [`Architecture`], a line in its registry, and a golden under
//! `tests/data/goldens`.
//!
//! Deliberately absent: quantisation, backends' devices.

mod adapter;
mod architecture;
mod blocks;
mod build;
mod common;
mod decoder;
mod expert_weights;
mod export;
mod facts;
mod families;
mod gguf;
mod graph;
mod loader;
mod names;
mod optional;
mod options;
mod params;
mod pooling;
mod rope;
mod rope_params;
mod sizes;
mod stored;
mod summary;
mod tensors;

pub use adapter::{
    AdapterFile, AdapterForm, adapted, merged, read as read_adapter, write_adapter_gguf, write_adapter_peft,
};
pub use architecture::{Architecture, Routing};
pub use build::{Definition, build};
pub use decoder::{
    AttentionSpec, Bias, ConvSpec, Decoder, DeltaSpec, Ffn, Glu, LatentSpec, LayerNorms, LayerSpec, Mixer, Moe,
    Multipliers, NormOver, NormSpec, Position, QkNorm, Shared, Span,
};
pub use export::{
    check_hugging_face, has_tensor_of, readable, set_group_router, to_gguf, trainable, with_weights, write_folder,
    write_hugging_face,
};
pub use facts::{Absent, Config};
pub use families::{MINI_MIXTRAL, REGISTRY};
pub use gguf::GgufForm;
pub use names::{ExpertLayout, Names};
pub use options::Options;
pub use params::Params;
pub use pooling::{Pooling, pooling};
pub use rope::{Llama3, Long, RopeSpec, Scaling, Yarn};
pub use summary::{LayerSummary, layers};
