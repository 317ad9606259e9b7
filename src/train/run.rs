//! A run as its configuration says: what is opened before it, its logs, and what it leaves behind.

use super::{
    config::{ExportName, LogName, TrainConfig},
    data::{self, Corpus},
    forecast::Forecast,
    learner::Learner,
    metrics::{CsvLog, EventLog, JsonLog, Pictures},
    model_learner::ModelLearner,
    places::{apart, check_places},
    scratch::from_scratch,
    trainer::Trainer,
    whole::write_model,
};
use crate::{
    error::{Error, Result},
    file::{self, Checkpoint, Format, Tensor, Value},
    graph::{GROUP_ROUTER, NOISE_ROUTER},
    model::{self, AdapterForm},
    tokenizer::Tokenizer,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

impl Trainer<ModelLearner> {
    /// A run as the configuration says, from its beginning or from its last checkpoint: the model that it goes on from, or that it
    /// makes from nothing, and its data.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the key for what does not fit together; [`Error::Unsupported`] where the model has an operation
    /// without a gradient; errors of reading models and data.
    pub fn open(config: TrainConfig) -> Result<Self> {
        possible(&config)?;
        let learner = ModelLearner::of(base(&config)?, &config)?;
        Self::of(learner, config)
    }

    /// [`Trainer::open`] on a device that is open already; `backend` of the configuration says `wgpu`.
    ///
    /// # Errors
    /// As [`Trainer::open`].
    #[cfg(feature = "gpu")]
    pub fn open_on(config: TrainConfig, gpu: crate::backend::wgpu::Gpu) -> Result<Self> {
        possible(&config)?;
        let mut learner = ModelLearner::of(base(&config)?, &config)?;
        learner.use_gpu(gpu);
        Self::of(learner, config)
    }

    fn of(learner: ModelLearner, config: TrainConfig) -> Result<Self> {
        writable(&config, learner.base()?)?;
        let (train, eval) = corpora(&config, &learner)?;
        let mut trainer = Trainer::new(learner, config, train, eval)?;
        own_tensors(&mut trainer)?;
        Ok(trainer)
    }

    /// What a micro-batch takes: memory and arithmetic.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an operation without a gradient.
    pub fn forecast(&mut self) -> Result<Forecast> {
        let (rows, state) = (self.rows(), self.optimizer().state_bytes());
        self.learner().forecast(rows, state)
    }

    /// Writes the model with its new weights into `output_dir`: as `export` of the configuration says, or `adapter.gguf` where
    /// adapters are trained. Gives the files and folders.
    ///
    /// # Errors
    /// [`Error::Write`]: nothing is left half-written.
    pub fn export(&mut self) -> Result<Vec<PathBuf>> {
        let dir = self.config().output_dir.clone();
        if self.config().lora.is_some() {
            let path = dir.join("adapter.gguf");
            self.write_adapter(&path)?;
            return Ok(vec![path]);
        }
        let new = self.trained()?;
        let config = self.config();
        let write = |export: &ExportName| match (export, new.format()) {
            (ExportName::Gguf, _) => gguf(&model::to_gguf(&new)?, dir.join("model.gguf")),
            (ExportName::Safetensors, Format::Gguf) => hugging_face(config, &new, dir.join("model")),
            (ExportName::Safetensors, Format::SafeTensors) => {
                let path = dir.join("model");
                model::write_folder(&path, &new)?;
                Ok(path)
            }
        };
        config.export.iter().map(write).collect()
    }

    /// Writes the adapters that were trained: llama.cpp's form where `path` ends in `.gguf`, else a folder as PEFT has it.
    ///
    /// # Errors
    /// [`Error::Write`]; [`Error::Invalid`] where whole weights are trained.
    pub fn write_adapter(&mut self, path: &Path) -> Result<()> {
        let Some(alpha) = self.config().lora.as_ref().map(|l| l.alpha) else {
            return Err(Error::Invalid("no adapters were trained, but whole weights".into()));
        };
        if let Some(read) = &self.config().base_model {
            apart(path, read)?;
        }
        let pairs = self.learner().trained_adapters()?;
        let base = self.learner().base()?;
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            let arch = base.meta().str("general.architecture").unwrap_or_default();
            return model::write_adapter_gguf(path, arch, alpha, &pairs);
        }
        let definition = model::build(base, &model::Options::default())?;
        model::write_adapter_peft(path, &definition, base, alpha, &pairs, AdapterForm::default())
    }

    /// The model with its new weights, under the names that it has in training.
    fn trained(&mut self) -> Result<Checkpoint> {
        let used = self.top_k();
        let groups = self.config().router.groups.map(|n| [n, self.config().router.groups_used.unwrap_or(1)]);
        let mut trained = self.learner().trained()?;
        let over_groups = with_group_routers(self.learner(), &mut trained)?;
        let base = self.learner().base()?;
        if base.format() == Format::SafeTensors {
            return model::with_weights(base, &trained, used, groups);
        }
        // In the shape that the file has: sizes of 1 may be left out there. Routers' matrices may have got rows for groups.
        let new = |(name, old): (&str, &Tensor)| {
            let t = match trained.get(name) {
                None => old.clone(),
                Some(t) if over_groups.iter().any(|n| n == name) => t.clone(),
                Some(t) => t.reshaped(old.shape().to_vec())?,
            };
            Ok((name.to_owned(), t))
        };
        let tensors = base.tensors().map(new).collect::<Result<Vec<_>>>()?;
        let mut meta = base.meta().clone();
        let arch = meta.str("general.architecture").unwrap_or_default().to_owned();
        if let Some(groups) = groups {
            model::set_group_router(&mut meta, &arch, groups);
        }
        if let Some(used) = used {
            meta.set(format!("{arch}.expert_used_count"), Value::U32(used));
        }
        let new = Checkpoint::from_parts(meta, tensors)?;
        model::readable(&new)?;
        Ok(new)
    }
}

impl<L: Learner> Trainer<L> {
    /// Makes `output_dir`, takes away what an interrupted run left half-written there, and opens the logs that `log` of the
    /// configuration names; before the run.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn open_logs(&mut self) -> Result<()> {
        self.prepare_folder()?;
        let (dir, step) = (self.config().output_dir.clone(), self.state().step);
        let mut opened = vec![];
        for log in self.config().log.clone() {
            // Two writers of one file would mix their lines.
            if opened.contains(&log) {
                continue;
            }
            opened.push(log);
            match log {
                LogName::Csv => self.log(Box::new(CsvLog::open(&dir.join("log.csv"), step)?)),
                LogName::Jsonl => self.log(Box::new(JsonLog::open(&dir.join("log.jsonl"), step)?)),
                LogName::Tensorboard => self.log(Box::new(EventLog::create(&dir.join("tensorboard"), step)?)),
                LogName::Svg => self.log(Box::new(Pictures::open(&dir, step))),
            }
        }
        Ok(())
    }
}

/// Refuses what no model is needed to refuse.
fn possible(config: &TrainConfig) -> Result<()> {
    config.check()?;
    check_places(config)
}

/// The model to begin with, under GGUF names.
fn base(config: &TrainConfig) -> Result<Checkpoint> {
    let bad = |what: &str| Err(Error::Invalid(what.into()));
    match (&config.base_model, &config.architecture, &config.tokenizer) {
        // Adapters are of a model under GGUF names.
        (Some(path), None, _) if config.lora.is_some() => {
            let helps = "without [lora] all weights are trained, and freeze leaves some";
            model::to_gguf(&file::open(path)?).map_err(|e| match e {
                Error::Unsupported(what) => Error::Unsupported(format!("[lora]: {what}; {helps}")),
                other => other,
            })
        }
        (Some(path), None, _) => model::trainable(&file::open(path)?),
        (None, Some(architecture), Some(tokenizer)) => from_scratch(architecture, &file::open(tokenizer)?, config.seed),
        (None, Some(_), None) => {
            bad("a model from nothing needs a tokenizer: tokenizer = \"MODEL\" takes that of another model")
        }
        (None, None, _) => bad(
            "there is nothing to train: base_model = \"MODEL\" goes on from a model, [architecture] makes one from nothing",
        ),
        (Some(_), Some(_), _) => bad("base_model and architecture: one of them"),
    }
}

/// Refuses a run whose result could not be written, before its first step.
fn writable(config: &TrainConfig, base: &Checkpoint) -> Result<()> {
    if config.lora.is_some() {
        // Adapters are all that is written.
        return Ok(());
    }
    let grouped = config.router.groups.is_some() && base.format() == Format::Gguf;
    if grouped && config.export.contains(&ExportName::Safetensors) {
        return Err(Error::Invalid(
            "export = [\"safetensors\"]: no published checkpoint has a router over groups; export = [\"gguf\"] writes a file that this \
             program runs, and the model type mini_mixtral is a folder"
                .into(),
        ));
    }
    let named = |key: &str, e: Error, helps: &str| Error::Invalid(format!("export = [{key:?}]: {e}; {helps}"));
    for export in &config.export {
        match (export, base.format()) {
            (ExportName::Gguf, Format::Gguf) | (ExportName::Safetensors, Format::SafeTensors) => {}
            (ExportName::Gguf, Format::SafeTensors) => {
                let helps = "export = [\"safetensors\"] writes a folder that this program runs";
                model::to_gguf(base).map_err(|e| named("gguf", e, helps))?;
            }
            (ExportName::Safetensors, Format::Gguf) => {
                let helps = "export = [\"gguf\"] writes a file that this program runs";
                let source = source(config)?;
                model::check_hugging_face(base, source.as_ref()).map_err(|e| named("safetensors", e, helps))?;
            }
        }
    }
    Ok(())
}

/// Refuses to train weights that the file has only as parts of other tensors: what is learnt could not be written back.
fn own_tensors(trainer: &mut Trainer<ModelLearner>) -> Result<()> {
    let trained = trainer.optimizer().trained();
    let learner = trainer.learner();
    let base = learner.base()?;
    for p in learner.parameters().iter().zip(&trained).filter(|(_, t)| **t).map(|(p, _)| p) {
        // Noise before routers has a matrix of its own, which only checkpoints keep; routers over groups get rows of the routers'.
        let own = p.name.contains(".lora_") || [NOISE_ROUTER, GROUP_ROUTER].iter().any(|n| p.name.ends_with(n));
        if !own && !model::has_tensor_of(base, &p.name)? {
            return Err(Error::Invalid(format!(
                "{} is a part of another tensor of the file, and cannot be trained by itself: freeze = [...] leaves it, and [lora] \
                 trains an adapter of it",
                p.name
            )));
        }
    }
    Ok(())
}

/// What is trained on, and what is evaluated on.
fn corpora(config: &TrainConfig, learner: &ModelLearner) -> Result<(Corpus, Option<Corpus>)> {
    let tokenizer = match &config.tokenizer {
        Some(path) => Tokenizer::from_checkpoint(&file::open(path)?).map(Some)?,
        None => Tokenizer::from_checkpoint(learner.base()?).ok(),
    };
    let read = |sets| data::read(&config.sources(sets), tokenizer.as_ref(), learner.vocab(), config.sequence_len);
    let train = read(&config.datasets)?;
    if !config.test_datasets.is_empty() {
        return Ok((train, Some(read(&config.test_datasets)?)));
    }
    if config.val_set_size > 0.0 {
        let (train, held) = train.split(config.val_set_size, data::short(config.seed))?;
        return Ok((train, Some(held)));
    }
    Ok((train, None))
}

/// Puts the rows of routers over groups behind those of the experts, in one matrix, as files have it. Gives the names of what has more
/// rows now.
fn with_group_routers(learner: &ModelLearner, trained: &mut HashMap<String, Tensor>) -> Result<Vec<String>> {
    let mut changed = vec![];
    for (name, first) in learner.first_weights(GROUP_ROUTER) {
        let over = trained.remove(&name).unwrap_or(first);
        let layer = name.strip_suffix(GROUP_ROUTER).unwrap_or_default();
        let matrix = format!("{layer}ffn_gate_inp.weight");
        let bias = format!("{layer}ffn_gate_inp.bias");
        for (name, rows) in [(matrix, floats(&over)), (bias, vec![0.0; over.rows()])] {
            let first = || learner.first_weights(&name).into_iter().next().map(|(_, t)| t);
            let Some(own) = trained.get(&name).cloned().or_else(first) else { continue };
            let mut shape = own.shape().to_vec();
            if let Some(n) = shape.first_mut() {
                *n += over.rows();
            }
            trained.insert(name.clone(), Tensor::from_f32(shape, [floats(&own), rows].concat())?);
            changed.push(name);
        }
    }
    if !changed.is_empty() {
        tracing::warn!(
            "that there is a router over groups of experts is said in keys of this program's own (group_router_count): other engines do \
             not run the model"
        );
    }
    Ok(changed)
}

/// The numbers of a tensor of f32.
fn floats(t: &Tensor) -> Vec<f32> {
    let bytes = t.parts().iter().flat_map(|p| p.chunks_exact(4));
    bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn gguf(new: &Checkpoint, path: PathBuf) -> Result<PathBuf> {
    write_model(&path, new)?;
    Ok(path)
}

/// The model as a folder; with the configuration and tokenizer of the one that it came from, or the tokenizer's own folder.
fn hugging_face(config: &TrainConfig, new: &Checkpoint, path: PathBuf) -> Result<PathBuf> {
    model::write_hugging_face(&path, new, source(config)?.as_ref(), config.tokenizer.as_deref())?;
    Ok(path)
}

/// The Hugging Face folder that the model came from, where it came from one.
fn source(config: &TrainConfig) -> Result<Option<Checkpoint>> {
    match &config.base_model {
        Some(base) => Ok(Some(file::open(base)?).filter(|c| c.format() == Format::SafeTensors)),
        None => Ok(None),
    }
}
