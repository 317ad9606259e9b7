//! `[lora]`: adapters.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[lora]`: low-rank adapters, in the place of all weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// The rank.
    #[serde(alias = "lora_r")]
    pub r: usize,
    /// The factor of what is added is alpha / r.
    #[serde(alias = "lora_alpha")]
    pub alpha: f32,
    /// What gets adapters: roles and patterns of names; where it is not said attention, experts, shared experts and dense networks,
    /// as far as the model has them.
    #[serde(alias = "lora_target_modules")]
    pub targets: Option<Vec<String>>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig { r: 16, alpha: 32.0, targets: None }
    }
}

impl LoraConfig {
    /// Refuses ranks and factors that are none.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the key.
    pub fn check(&self) -> Result<()> {
        if self.r == 0 || self.r > 1024 {
            return Err(Error::Invalid(format!("lora: r is {}; a number from 1 to 1024 is expected", self.r)));
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(Error::Invalid(format!("lora: alpha is {}; a number above 0 is expected", self.alpha)));
        }
        if self.targets.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::Invalid("lora: targets is empty: nothing would be trained".into()));
        }
        Ok(())
    }
}
