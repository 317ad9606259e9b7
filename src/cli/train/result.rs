//! What a run leaves behind beside its checkpoints: a model that runs, or an adapter.

use crate::{
    cli::failure::{Outcome, say},
    file::{self, Checkpoint, Format, Tensor, TensorSpec, Value, write_gguf},
    model,
    train::{
        ModelLearner,
        config::{ExportName, TrainConfig},
    },
};
use std::path::PathBuf;

/// What was made.
pub struct Made {
    /// The model as it was before, under GGUF names.
    pub base: Checkpoint,
    /// The model as it is now.
    pub learner: ModelLearner,
    /// The configuration.
    pub config: TrainConfig,
    /// Experts that a token took in the last step, where a schedule said so.
    pub experts_used: Option<u32>,
}

/// Writes the model, as `export` says, or `adapter.gguf` into the output folder.
pub fn write(made: &mut Made, quiet: bool) -> Outcome {
    let dir = made.config.output_dir.clone();
    let mut written = vec![];
    match &made.config.lora {
        Some(lora) => {
            let path = dir.join("adapter.gguf");
            let arch = made.base.meta().str("general.architecture").unwrap_or_default().to_owned();
            model::write_adapter_gguf(&path, &arch, lora.alpha, &made.learner.trained_adapters()?)?;
            written.push(path);
        }
        None => {
            let new = trained(made)?;
            for export in &made.config.export {
                let path = match export {
                    ExportName::Gguf => gguf(&new, dir.join("model.gguf"))?,
                    ExportName::Safetensors => hugging_face(made, &new, dir.join("model"))?,
                };
                written.push(path);
            }
        }
    }
    for path in written.iter().filter(|_| !quiet) {
        say(format_args!("wrote {}", path.display()));
    }
    Ok(())
}

/// The model with its new weights, under GGUF names.
fn trained(made: &mut Made) -> Outcome<Checkpoint> {
    let trained = made.learner.trained()?;
    // In the shape that the file has: sizes of 1 may be left out there.
    let new = |(name, old): (&str, &Tensor)| {
        let t = trained.get(name).map_or_else(|| Ok(old.clone()), |t| t.reshaped(old.shape().to_vec()))?;
        Ok((name.to_owned(), t))
    };
    let tensors = made.base.tensors().map(new).collect::<crate::Result<Vec<_>>>()?;
    let mut meta = made.base.meta().clone();
    if let Some(used) = made.experts_used {
        let arch = meta.str("general.architecture").unwrap_or_default().to_owned();
        meta.set(format!("{arch}.expert_used_count"), Value::U32(used));
    }
    let new = Checkpoint::from_parts(meta, tensors)?;
    model::readable(&new)?;
    Ok(new)
}

fn gguf(new: &Checkpoint, path: PathBuf) -> Outcome<PathBuf> {
    let spec =
        |(name, t): (&str, &Tensor)| TensorSpec { name: name.into(), dtype: t.dtype(), shape: t.shape().to_vec() };
    let specs: Vec<TensorSpec> = new.tensors().map(spec).collect();
    let tensors: Vec<&Tensor> = new.tensors().map(|(_, t)| t).collect();
    write_gguf(&path, new.meta(), &specs, &mut |i, sink| tensors[i].parts().iter().try_for_each(|p| sink.write(p)))?;
    Ok(path)
}

/// The model as a folder; with the configuration and tokenizer of the one that it came from, or the tokenizer's own folder.
fn hugging_face(made: &Made, new: &Checkpoint, path: PathBuf) -> Outcome<PathBuf> {
    let source = match &made.config.base_model {
        Some(base) => Some(file::open(base)?).filter(|c| c.format() == Format::SafeTensors),
        None => None,
    };
    model::write_hugging_face(&path, new, source.as_ref(), made.config.tokenizer.as_deref())?;
    Ok(path)
}
