//! Loaded models: weights in place on a backend, shared by sessions and batches.

use super::{LoadOptions, place, ranked};
use crate::{
    backend::{self, Loaded, Progress, Roofline, ranks::World},
    error::{Error, Result},
    file::{self, Checkpoint},
    model::{self, Decoder, Definition, Pooling},
    tokenizer::Tokenizer,
};
use std::{path::Path, sync::Arc};

/// The built-in demo model: a GGUF of 6.5 MB with its tokenizer, trained on Shakespeare's works. See [`Model::demo`].
#[cfg(feature = "demo-model")]
pub static DEMO_MODEL: &[u8] = include_bytes!("../../demo/bard-q4_k_m.gguf");

/// The graph and weights of a checkpoint, with the adapters that are asked for.
fn define(ckpt: &Checkpoint, options: &LoadOptions) -> Result<Definition> {
    if options.adapters.is_empty() {
        return model::build(ckpt, &options.model);
    }
    // A GGUF adapter has GGUF's names and order of rows.
    let mut gguf = false;
    for f in &options.adapters {
        gguf |= f.is_gguf()?;
    }
    let ckpt = if gguf { model::to_gguf(ckpt)? } else { ckpt.clone() };
    model::adapted(model::build(&ckpt, &options.model)?, &ckpt, &options.adapters)
}

/// A model in place. Cheap to clone; clones share the weights.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    definition: Definition,
    loaded: Box<dyn Loaded>,
    tokenizer: Option<Tokenizer>,
    /// Why there is no tokenizer, for who asks for it.
    no_tokenizer: String,
    /// The place of the logits among the graph's outputs, and their columns, V.
    logits: (usize, usize),
    /// How the file wants hidden states pooled, or why that is not known.
    pooling: std::result::Result<Option<Pooling>, String>,
}

impl Model {
    /// Loads a `.gguf` file (or a shard of several) or a folder of safetensors to the best GPU, or the CPU where there is none.
    ///
    /// # Errors
    /// Any of [`Error`]: what is wrong with the file, the model, or the device.
    pub fn open(path: impl AsRef<Path>) -> Result<Model> {
        Self::load(path.as_ref(), &LoadOptions::default(), &mut |_| {})
    }

    /// Loads a `.gguf` file (or a shard of several) or a folder of safetensors. `progress` hears how far it has come.
    ///
    /// # Errors
    /// Any of [`Error`]: what is wrong with the file, the model, or the device.
    pub fn load(path: &Path, options: &LoadOptions, progress: &mut dyn FnMut(Progress)) -> Result<Model> {
        Self::from_checkpoint(&file::open(path)?, options, progress)
    }

    /// Loads a GGUF that is in memory.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_bytes(bytes: Vec<u8>, options: &LoadOptions, progress: &mut dyn FnMut(Progress)) -> Result<Model> {
        Self::from_checkpoint(&file::open_bytes(file::Bytes::from_vec(bytes))?, options, progress)
    }

    /// Loads the built-in demo model: 10 million weights that write verse in Shakespeare's manner, for first steps and tests.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Cancelled`].
    #[cfg(feature = "demo-model")]
    pub fn demo(options: &LoadOptions, progress: &mut dyn FnMut(Progress)) -> Result<Model> {
        Self::from_checkpoint(&file::open_bytes(file::Bytes::from_static(DEMO_MODEL))?, options, progress)
    }

    /// Loads an opened checkpoint.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_checkpoint(
        ckpt: &Checkpoint,
        options: &LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Model> {
        let definition = define(ckpt, options);
        let definition = match &options.world {
            Some(world) => world.agree(definition)?,
            None => definition?,
        };
        let mut heard = |p| {
            progress(p);
            options.cancel.check()
        };
        let loaded = match &options.world {
            Some(world) => ranked::load(&definition.program, options, world, &mut heard)?,
            None => place::load(&definition.program, options, &mut heard)?,
        };
        let (tokenizer, no_tokenizer) = match Tokenizer::from_checkpoint(ckpt) {
            Ok(t) => (Some(t), String::new()),
            Err(e) => {
                tracing::info!("no tokenizer: {e}");
                let why = if let Error::Tokenizer(why) = e { why } else { e.to_string() };
                (None, why)
            }
        };
        let logits = logits(&definition)?;
        let pooling = model::pooling(ckpt, &definition.arch).map_err(|e| match e {
            Error::Unsupported(why) => why,
            other => other.to_string(),
        });
        Ok(Model { inner: Arc::new(Inner { definition, loaded, tokenizer, no_tokenizer, logits, pooling }) })
    }

    /// The tokenizer, where the file has one that is understood.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.inner.tokenizer.as_ref()
    }

    /// The tokenizer, or why there is none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with the reason.
    pub fn require_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer().ok_or_else(|| Error::Tokenizer(self.inner.no_tokenizer.clone()))
    }

    /// Sizes and switches.
    pub fn hyper(&self) -> &Decoder {
        &self.inner.definition.decoder
    }

    /// The architecture, graph and weights.
    pub fn definition(&self) -> &Definition {
        &self.inner.definition
    }

    /// The backend and device.
    pub fn describe(&self) -> String {
        self.inner.loaded.describe()
    }

    /// Bytes of weights that the backend holds beside the file.
    pub fn weight_bytes(&self) -> u64 {
        self.inner.loaded.weight_bytes()
    }

    /// Measures what the device could do at best; `None` for backends without a device.
    ///
    /// # Errors
    /// [`Error::Device`].
    #[doc(hidden)]
    pub fn roofline(&self) -> Result<Option<Roofline>> {
        self.inner.loaded.roofline()
    }

    /// How the file wants the hidden states of a text pooled to one vector; `None` where it does not say, as files of language
    /// models do not.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a way that is not known here, such as that of rerankers.
    pub fn pooling(&self) -> Result<Option<Pooling>> {
        self.inner.pooling.clone().map_err(Error::Unsupported)
    }

    /// What the backend made of it: what makes runners.
    pub(crate) fn loaded(&self) -> &dyn Loaded {
        &*self.inner.loaded
    }

    /// Does what rank 0 says with this rank's part of the model, until all that was made of it there is gone.
    ///
    /// # Errors
    /// [`Error::Network`] where a rank is gone; whatever a step comes to here.
    #[doc(hidden)]
    pub fn follow(&self, world: &World) -> Result<()> {
        backend::ranks::follow(&*self.inner.loaded, world)
    }

    /// Logits a position, V.
    pub fn vocab(&self) -> usize {
        self.inner.logits.1
    }

    /// The place of the logits among the graph's outputs.
    pub(crate) fn logits_output(&self) -> usize {
        self.inner.logits.0
    }
}

fn logits(d: &Definition) -> Result<(usize, usize)> {
    let graph = &d.program.graph;
    let at = graph.outputs.iter().position(|(n, _)| n == "logits");
    let at = at.ok_or_else(|| Error::Graph("the graph gives no logits".into()))?;
    Ok((at, graph.cols(graph.outputs[at].1)))
}
