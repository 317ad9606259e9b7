//! Models: metadata into hyperparameters, a weight list and a graph. One file per architecture, on shared blocks.
//!
//! To add an architecture: a file with its [`Architecture`] (how to read its [`Decoder`] from the parameters, and how
//! Hugging Face calls its tensors), a line in [`REGISTRY`], and a golden under `tests/data/goldens`.
//!
//! Deliberately absent: quantisation, backends' devices.

mod blocks;
mod decoder;
mod deepseek;
mod deepseek_moe;
mod dots1;
mod ernie4_5_moe;
mod expert_weights;
mod export;
mod export_deepseek;
mod export_gemma4;

mod export_llama4;
mod export_recurrent;
mod gemma4;
mod glm4_moe;
mod gpt_oss;
mod granite_moe;
mod hunyuan_moe;
mod lfm2_moe;
mod llama;
mod llama4;
mod loader;
mod minimax_m2;
mod mla;
mod mini_mixtral;
mod names;
mod olmoe;
mod optional;
mod params;
mod phi_moe;
mod qwen2_moe;
mod qwen3_moe;
mod qwen3_next;
mod recurrent;
mod rope;
mod stored;
mod summary;

pub use decoder::{Decoder, FullLayers, Multipliers, QkNorm, Shared};
pub use expert_weights::ExpertLayout;
pub use export::to_gguf;
pub use mla::Latent;
pub use names::Names;
pub use params::Params;
pub use recurrent::{Delta, Mixer};
pub use summary::{LayerSummary, layers};

use crate::{
    error::{Error, Result},
    file::Checkpoint,
    graph::Program,
};

/// An entry of the registry.
pub struct Architecture {
    /// For people: `Mixtral`, `Qwen3-MoE`.
    pub title: &'static str,
    /// `general.architecture` in GGUF files; `None` where llama.cpp has no such architecture.
    pub gguf: Option<&'static str>,
    /// `model_type` in `config.json`.
    pub hf: Option<&'static str>,
    /// Reads the hyperparameters.
    pub decoder: fn(&Params<'_>) -> Result<Decoder>,
    /// Tensor names outside GGUF.
    pub names: Names,
}

/// Every architecture that can be run, in the order of the README's table.
pub static REGISTRY: &[&Architecture] = &[
    &llama::LLAMA,
    &llama::MISTRAL,
    &llama::MIXTRAL,
    &llama4::LLAMA4,
    &qwen2_moe::QWEN2_MOE,
    &qwen3_moe::QWEN3_MOE,
    &qwen3_next::QWEN3_NEXT,
    &qwen3_next::QWEN3_5_MOE,
    &lfm2_moe::LFM2_MOE,
    &olmoe::OLMOE,
    &gpt_oss::GPT_OSS,
    &phi_moe::PHI_MOE,
    &granite_moe::GRANITE_MOE,
    &granite_moe::GRANITE_MOE_SHARED,
    &deepseek::DEEPSEEK_V2,
    &deepseek::DEEPSEEK_V3,
    &deepseek::KIMI_K2,
    &ernie4_5_moe::ERNIE4_5_MOE,
    &gemma4::GEMMA4,
    &glm4_moe::GLM4_MOE,
    &dots1::DOTS1,
    &minimax_m2::MINIMAX_M2,
    &hunyuan_moe::HUNYUAN_MOE,
    &mini_mixtral::MINI_MIXTRAL,
];

/// What to build beyond the logits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Make `router_ids_<layer>` and `router_weights_<layer>` outputs of the graph.
    pub trace_router: bool,
    /// Round the rotary frequencies to BF16. PyTorch code that casts a whole model with `.to(torch.bfloat16)` casts them
    /// too, and everything computed from such a model afterwards, in float32 as well, has them rounded: for comparing with
    /// logits that were made so. Models loaded by `from_pretrained` keep them in float32, as the default here does.
    pub bf16_rope: bool,
}

/// A model ready for a backend.
#[derive(Clone, Debug)]
pub struct Definition {
    /// For people: `Qwen3-MoE`.
    pub title: &'static str,
    /// The architecture's name in the file.
    pub arch: String,
    /// Its sizes and switches.
    pub decoder: Decoder,
    /// Parts of the file that the text model does without, and that were left out: `vision tower (312 tensors)`.
    pub skipped: Vec<String>,
    /// Graph and weights.
    pub program: Program,
}

/// Reads a checkpoint's hyperparameters, finds its weights, and builds its graph.
///
/// # Errors
/// [`Error::Unsupported`] for an architecture or a switch that is not known here; [`Error::Model`] where hyperparameters or
/// tensors are missing or contradict each other.
pub fn build(ckpt: &Checkpoint, options: &Options) -> Result<Definition> {
    let params = Params::new(ckpt)?;
    let arch = find(&params)?;
    stored::check(ckpt)?;
    let mut decoder = (arch.decoder)(&params)?;
    if params.is_gguf() {
        decoder.find_dense_layers(|name| ckpt.info(name).is_some());
    }
    decoder.check()?;
    let loader = loader::Loader::new(ckpt, &arch.names);
    let (graph, weights, skipped) = blocks::graph(&decoder, &params, loader, options)?;
    let program = Program::new(graph, weights)?;
    for part in &skipped {
        tracing::warn!("left out, because the text model does without it: {part}");
    }
    Ok(Definition { title: arch.title, arch: params.arch, decoder, skipped, program })
}

/// Architectures whose attention is sparse, by their names in either container: run as dense ones they would give wrong numbers
/// beyond the length of the choice.
const SPARSE: &[&str] = &["deepseek_v32", "deepseek32", "glm_moe_dsa", "glm-dsa"];

fn find(p: &Params<'_>) -> Result<&'static Architecture> {
    if SPARSE.contains(&p.arch.as_str()) {
        let what = "has sparse attention (an indexer chooses the positions that a query sees), which is not known here";
        return Err(Error::Unsupported(format!("architecture `{}` {what}", p.arch)));
    }
    let name = |a: &Architecture| if p.is_gguf() { a.gguf } else { a.hf };
    REGISTRY.iter().copied().find(|a| name(a) == Some(&p.arch)).ok_or_else(|| {
        let mut known: Vec<&str> = REGISTRY.iter().filter_map(|a| name(a)).collect();
        known.dedup();
        Error::Unsupported(format!("architecture `{}`; known are {}", p.arch, known.join(", ")))
    })
}
