//! What a model's steps take.

use super::ModelLearner;
use crate::{
    error::{Error, Result},
    graph::TrainProgram,
    memory,
    train::{
        config::{BackendConfig, TrainConfig},
        forecast::{Forecast, evaluation},
    },
};

/// Rows of a micro-batch, of training and of evaluation.
pub(super) fn rows(config: &TrainConfig) -> [usize; 2] {
    let sequences = |n: usize| n.saturating_mul(config.sequence_len);
    let evaluated = config.val_set_size > 0.0 || !config.test_datasets.is_empty();
    let at_once = if config.eval_batch_size > 0 { config.eval_batch_size } else { config.micro_batch_size };
    [sequences(config.micro_batch_size), if evaluated { sequences(at_once) } else { 0 }]
}

impl ModelLearner {
    /// What a micro-batch of so many rows takes, beside an optimizer's state of so many bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an operation without a gradient.
    pub fn forecast(&self, rows: usize, optimizer: u64) -> Result<Forecast> {
        Ok(self.forecast_of(&self.differentiated(&self.chosen)?, rows, optimizer))
    }

    fn forecast_of(&self, program: &TrainProgram, rows: usize, optimizer: u64) -> Forecast {
        let forecast = Forecast::new(program, rows, optimizer);
        // Those of adapters are let go of once the backend has its own.
        Forecast { first: if self.adapters.is_empty() { forecast.first } else { 0 }, ..forecast }
    }

    /// Refuses steps and evaluations that this machine has no memory for, where an allocation would end the program. A device says
    /// so by itself.
    pub(super) fn check_memory(&self) -> Result<()> {
        if self.backend == BackendConfig::Wgpu {
            return Ok(());
        }
        let program = self.differentiated(&self.chosen)?;
        let [rows, evaluated] = self.rows;
        let step = self.forecast_of(&program, rows, 0);
        // Frozen weights stay in their file.
        fits(
            &step,
            rows,
            "micro_batch_size with more gradient_accumulation_steps, recompute = \"layer\", freeze, or [lora] help",
        )?;
        let evaluation = Forecast { values: evaluation(&program, evaluated), ..step };
        fits(&evaluation, evaluated, "eval_batch_size helps")
    }
}

/// Refuses what this machine has no memory for; `helps` comes behind "a smaller".
fn fits(f: &Forecast, rows: usize, helps: &str) -> Result<()> {
    let needed = f.bytes() - f.frozen;
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    match memory::total() {
        Some(all) if needed > all => Err(Error::Invalid(format!(
            "a micro-batch of {rows} rows takes {:.1} GiB (values {:.1}, weights and gradients {:.1}), and this machine has {:.1}: a \
             smaller {helps}",
            gib(needed),
            gib(f.values),
            gib(f.weights + f.gradients),
            gib(all)
        ))),
        Some(_) | None => Ok(()),
    }
}
