//! Files: hostile bytes into named tensors and metadata.
//!
//! Two containers are read, GGUF (one file or several shards, `gguf.rs`) and a Hugging Face folder of safetensors
//! (`safetensors.rs`); both become a [`Checkpoint`]. Every length and offset is checked against the bytes that are
//! there before anything is allocated for it.
//!
//! Deliberately absent: architecture names, GPU types, dequantisation.

mod bytes;
mod tensor;

pub use bytes::Bytes;
pub use tensor::Tensor;
