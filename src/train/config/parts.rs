//! Tables of a configuration: the model's shape, adapters.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// `[architecture]`: a model from nothing, in the keys of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchitectureConfig {
    /// `qwen2_moe`, `qwen3_moe`, `olmoe` or `mixtral`.
    pub model_type: String,
    /// Hidden size.
    pub hidden_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Heads of keys and values.
    pub num_key_value_heads: usize,
    /// Columns of a head; the hidden size over the heads where it is not said.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Experts of a layer.
    #[serde(alias = "num_local_experts")]
    pub num_experts: usize,
    /// Experts that a token uses.
    pub num_experts_per_tok: usize,
    /// Intermediate size of an expert.
    #[serde(alias = "intermediate_size")]
    pub moe_intermediate_size: usize,
    /// Intermediate size of the shared expert; 0 for none.
    #[serde(default)]
    pub shared_expert_intermediate_size: usize,
    /// Tokens of the vocabulary; the tokenizer's where it is not said.
    #[serde(default)]
    pub vocab_size: Option<usize>,
    /// Whether the output matrix is the embedding table.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// The longest text, in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "theta")]
    pub rope_theta: f32,
    /// Epsilon of the norms.
    #[serde(default = "eps")]
    pub rms_norm_eps: f32,
    /// Standard deviation of the first weights.
    #[serde(default = "range")]
    pub initializer_range: f32,
}

fn theta() -> f32 {
    10_000.0
}

fn eps() -> f32 {
    1e-6
}

fn range() -> f32 {
    0.02
}

impl ArchitectureConfig {
    /// Refuses sizes that contradict each other.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the key.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Invalid(format!("architecture: {what}")));
        for (key, n) in [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("num_experts", self.num_experts),
            ("num_experts_per_tok", self.num_experts_per_tok),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("head_dim", self.head_dim.unwrap_or(1)),
            ("vocab_size", self.vocab_size.unwrap_or(1)),
        ] {
            if n == 0 || n > 1 << 24 {
                return bad(format!("{key} is {n}; a number from 1 to {} is expected", 1 << 24));
            }
        }
        let (e, k) = (self.num_experts, self.num_experts_per_tok);
        if k > e {
            return bad(format!("num_experts_per_tok is {k}, and there are {e} experts"));
        }
        let (q, kv, h) = (self.num_attention_heads, self.num_key_value_heads, self.hidden_size);
        if q % kv != 0 {
            return bad(format!("{q} query heads on {kv} heads of keys: one must divide the other"));
        }
        if self.head_dim.is_none() && h % q != 0 {
            return bad(format!("hidden_size {h} is no multiple of {q} heads; head_dim says how wide they are"));
        }
        if !(self.initializer_range > 0.0 && self.initializer_range.is_finite()) {
            return bad(format!("initializer_range is {}; a number above 0 is expected", self.initializer_range));
        }
        Ok(())
    }
}

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
