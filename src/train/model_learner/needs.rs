//! What a model's steps take.

use super::ModelLearner;
use crate::{
    error::{Error, Result},
    memory,
    train::{config::BackendConfig, forecast::Forecast},
};

impl ModelLearner {
    /// What a micro-batch of so many rows takes, beside an optimizer's state of so many bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an operation without a gradient.
    pub fn forecast(&self, rows: usize, optimizer: u64) -> Result<Forecast> {
        let program = self.differentiated(&self.chosen)?;
        Ok(Forecast::new(&program, rows, optimizer))
    }

    /// Refuses steps that this machine has no memory for, where an allocation would end the program. A device says so by itself.
    pub(super) fn check_memory(&self) -> Result<()> {
        if self.backend == BackendConfig::Wgpu {
            return Ok(());
        }
        let f = self.forecast(self.rows, 0)?;
        // Frozen weights stay in their file.
        let needed = f.bytes() - f.frozen;
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        match memory::total() {
            Some(all) if needed > all => Err(Error::Invalid(format!(
                "a micro-batch of {} rows takes {:.1} GiB (values {:.1}, weights and gradients {:.1}), and this machine has {:.1}: a \
                 smaller micro_batch_size with more gradient_accumulation_steps, recompute = \"layer\", freeze, or [lora] help",
                self.rows,
                gib(needed),
                gib(f.values),
                gib(f.weights + f.gradients),
                gib(all)
            ))),
            Some(_) | None => Ok(()),
        }
    }
}
