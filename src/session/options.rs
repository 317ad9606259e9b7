//! How a model is loaded: where to, with what.

use super::ExpertPlacement;
use crate::{
    backend::{self, ranks::World},
    cancel::CancelToken,
    model::{self, AdapterFile},
};

use std::sync::Arc;

/// Where a model runs.
#[derive(Clone, Debug, Default)]
pub enum BackendChoice {
    /// The best real GPU; the CPU where there is none or where the model does not fit it, or where the crate was built without
    /// the feature `gpu`. A software Vulkan device is never chosen.
    #[default]
    Auto,
    /// The same with these options for the GPU, and these for the CPU where it remains.
    #[cfg(feature = "gpu")]
    Prefer(backend::wgpu::Options, backend::cpu::Options),
    /// A GPU that is open already: a host's own device ([`crate::gpu::Gpu::adopt`]), or one that several models share.
    #[cfg(feature = "gpu")]
    Gpu(backend::wgpu::Gpu),
    /// A GPU through wgpu.
    #[cfg(feature = "gpu")]
    Wgpu(backend::wgpu::Options),
    /// The CPU.
    Cpu(backend::cpu::Options),
    /// The layers in ranges that follow each other, each on a place of its own with its share of them: several GPUs, or GPUs and the
    /// CPU, for models that fit none of them. Keys and values of a layer lie where the layer is, the embedding in the first place and
    /// the output in the last; hidden states go from one to the next through the host.
    Split(Vec<(BackendChoice, u32)>),
    /// The oracle: slow.
    Reference,
}

/// How to load a model.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Where it runs.
    pub backend: BackendChoice,
    /// What the graph gives beyond logits.
    pub model: model::Options,
    /// Low-rank adapters (LoRA) that the model runs with: llama.cpp's GGUF files and PEFT's folders. The weights of the model
    /// itself stay as they are.
    pub adapters: Vec<AdapterFile>,
    /// Which routed experts the processor computes where the model is on a GPU.
    pub experts: Experts,
    /// The other processes that share the routed experts.
    #[doc(hidden)]
    pub world: Option<Arc<World>>,
    /// Stops the load, from another thread or from within the progress callback: it then gives [`crate::Error::Cancelled`].
    pub cancel: CancelToken,
}

/// The processor's part of a model that is on a GPU.
#[derive(Clone, Debug, Default)]
pub struct Experts {
    /// Which experts it computes.
    pub placement: ExpertPlacement,
    /// How it does, unless [`BackendChoice::Prefer`] says so.
    pub cpu: backend::cpu::Options,
}
