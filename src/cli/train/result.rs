//! What a run leaves behind beside its checkpoints: a model that runs, or an adapter.

use crate::{
    cli::failure::{Outcome, say},
    file::{Checkpoint, Tensor, TensorSpec, Value, write_gguf},
    model,
    train::{ModelLearner, config::TrainConfig},
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
}

/// Writes `model.gguf`, or `adapter.gguf`, into the output folder; gives its name.
pub fn write(made: &mut Made, quiet: bool) -> Outcome<PathBuf> {
    let path = match &made.config.lora {
        Some(lora) => {
            let path = made.config.output_dir.join("adapter.gguf");
            let arch = made.base.meta().str("general.architecture").unwrap_or_default().to_owned();
            model::write_adapter_gguf(&path, &arch, lora.alpha, &made.learner.trained_adapters()?)?;
            path
        }
        None => {
            let path = made.config.output_dir.join("model.gguf");
            let trained = made.learner.trained()?;
            let tensors =
                made.base.tensors().map(|(name, t)| (name.to_owned(), trained.get(name).unwrap_or(t).clone()));
            let mut meta = made.base.meta().clone();
            if let Some(used) = made.learner.experts_used() {
                let arch = meta.str("general.architecture").unwrap_or_default().to_owned();
                meta.set(format!("{arch}.expert_used_count"), Value::U32(used));
            }
            let new = Checkpoint::from_parts(meta, tensors.collect())?;
            model::readable(&new)?;
            let spec = |(name, t): (&str, &Tensor)| TensorSpec {
                name: name.into(),
                dtype: t.dtype(),
                shape: t.shape().to_vec(),
            };
            let specs: Vec<TensorSpec> = new.tensors().map(spec).collect();
            let tensors: Vec<&Tensor> = new.tensors().map(|(_, t)| t).collect();
            write_gguf(&path, new.meta(), &specs, &mut |i, sink| {
                tensors[i].parts().iter().try_for_each(|p| sink.write(p))
            })?;
            path
        }
    };
    if !quiet {
        say(format_args!("wrote {}", path.display()));
    }
    Ok(path)
}
