//! From a checkpoint to a graph with its weights.

use super::{
    architecture::Architecture, decoder::Decoder, families::REGISTRY, graph, loader::Loader, options::Options,
    params::Params, stored,
};
use crate::{
    error::{Error, Result},
    file::Checkpoint,
    graph::Program,
};

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
    let definition = quietly(ckpt, options)?;
    for part in &definition.skipped {
        tracing::warn!("left out, because the text model does without it: {part}");
    }
    Ok(definition)
}

/// As [`build`], without a word: for what is looked at and not run.
///
/// # Errors
/// As [`build`].
pub(super) fn quietly(ckpt: &Checkpoint, options: &Options) -> Result<Definition> {
    let params = Params::new(ckpt)?;
    let arch = find(&params)?;
    let params = params.of(&arch.config, arch.gguf);
    stored::check(ckpt)?;
    let decoder = (arch.decoder)(&params)?;
    decoder.check()?;
    let loader = Loader::new(ckpt, &arch.names, params.tensors_read());
    let (graph, weights, skipped) = graph::graph(&decoder, loader, options)?;
    let program = Program::new(graph, weights)?;
    Ok(Definition { title: arch.title, arch: params.arch, decoder, skipped, program })
}

/// Architectures whose attention is sparse, by their names in either container: run as dense ones they would give wrong numbers
/// beyond the length of the choice.
const SPARSE: &[&str] = &["deepseek_v32", "deepseek32", "glm_moe_dsa", "glm-dsa"];

/// The entry of the registry that a file belongs to.
///
/// # Errors
/// [`Error::Unsupported`] where there is none.
pub(super) fn find(p: &Params<'_>) -> Result<&'static Architecture> {
    if SPARSE.contains(&p.arch.as_str()) {
        let what = "has sparse attention (an indexer chooses the positions that a query sees), which is not known here";
        return Err(Error::Unsupported(format!("architecture `{}` {what}", p.arch)));
    }
    let name = |a: &Architecture| if p.is_gguf() { a.gguf.arch } else { a.hf };
    // A multimodal config whose text model has no type of its own.
    let text = |a: &Architecture| !p.is_gguf() && a.hf.strip_suffix("_text") == Some(&p.arch);
    REGISTRY.iter().copied().find(|a| name(a) == p.arch || text(a)).ok_or_else(|| {
        let mut known: Vec<&str> = REGISTRY.iter().map(|a| name(a)).collect();
        known.dedup();
        Error::Unsupported(format!("architecture `{}`; known are {}", p.arch, known.join(", ")))
    })
}
