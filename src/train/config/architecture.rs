//! `[architecture]`: the shape of a model from nothing.

use crate::{
    error::{Error, Result},
    model::MINI_MIXTRAL,
};
use serde::{Deserialize, Serialize};

/// `[architecture]`: a model from nothing, in the keys of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchitectureConfig {
    /// `qwen2_moe`, `qwen3_moe`, `olmoe`, `mixtral`, or `mini_mixtral`: the transformer of tutorials, which has the keys from `norm` on
    /// besides and is written as a folder (`export = ["safetensors"]`).
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
    /// What norms divide by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm: Option<NormName>,
    /// How weights are made of a router's logits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterName>,
    /// Width of a hidden layer in the router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_hidden: Option<usize>,
    /// What follows it: `relu` where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_activation: Option<ActivationName>,
    /// Whether routers have biases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_bias: Option<bool>,
    /// Whether experts have a gate: `w2(act(w1 x) · w3 x)`, as where it is not said, and not `w2(act(w1 x))`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_gated: Option<bool>,
    /// The experts' activation: `silu` where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_activation: Option<ActivationName>,
    /// Whether experts have biases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_bias: Option<bool>,
    /// Shared experts, each as wide as a routed one, without a gate of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_shared_experts: Option<usize>,
}

/// `norm` of `[architecture]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormName {
    /// The root of the mean square.
    Rms,
    /// The standard deviation, after the mean is taken away; with biases.
    Layer,
}

/// `router` of `[architecture]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterName {
    /// A softmax over the k largest logits.
    TopK,
    /// The k largest of a softmax over all, as they are.
    SoftmaxTopK,
    /// These through a second softmax.
    SoftmaxTopKSoftmax,
}

/// An activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ActivationName {
    Silu,
    Relu,
    Gelu,
    GeluTanh,
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

/// Layers of a model, and experts of a layer, at most.
const MOST_LAYERS: usize = 1024;
const MOST_EXPERTS: usize = 4096;

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
            ("shared_expert_intermediate_size", self.shared_expert_intermediate_size.max(1)),
        ] {
            if n == 0 || n > 1 << 24 {
                return bad(format!("{key} is {n}; a number from 1 to {} is expected", 1 << 24));
            }
        }
        for (key, n, most) in [
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_experts", self.num_experts, MOST_EXPERTS),
        ] {
            if n > most {
                return bad(format!("{key} is {n}; a number from 1 to {most} is expected"));
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
        let head_dim = self.head_dim.unwrap_or(h / q);
        if head_dim % 2 != 0 {
            return bad(format!(
                "heads have {head_dim} columns; rotary positions turn pairs, so an even number is expected"
            ));
        }
        self.check_numbers()?;
        self.check_parts()
    }

    /// Refuses numbers with which no model computes.
    fn check_numbers(&self) -> Result<()> {
        for (key, x, least, most) in [
            ("initializer_range", self.initializer_range, f32::MIN_POSITIVE, 1e3),
            ("rms_norm_eps", self.rms_norm_eps, f32::MIN_POSITIVE, 1.0),
            ("rope_theta", self.rope_theta, 1.0, 1e12),
        ] {
            if !(least..=most).contains(&x) {
                let from = if least < 1.0 { "above 0".to_owned() } else { format!("from {least}") };
                return Err(Error::Invalid(format!(
                    "architecture: {key} is {x}; a number {from} and up to {most} is expected"
                )));
            }
        }
        Ok(())
    }

    /// The number of weights that are matrices, about, with a vocabulary of so many tokens.
    pub fn weights(&self, vocab: usize) -> u128 {
        let product = |sizes: &[usize]| sizes.iter().map(|n| *n as u128).product::<u128>();
        let (h, i) = (self.hidden_size, self.moe_intermediate_size);
        let head_dim = self.head_dim.unwrap_or(h / self.num_attention_heads.max(1));
        let attention = product(&[2, h, head_dim, self.num_attention_heads + self.num_key_value_heads]);
        let parts = if self.expert_gated == Some(false) { 2 } else { 3 };
        let units = self.num_experts + self.num_shared_experts.unwrap_or(0);
        let experts = product(&[parts, units, h, i]) + product(&[3, h, self.shared_expert_intermediate_size]);
        let router = match self.router_hidden {
            Some(n) => product(&[n, h + self.num_experts]),
            None => product(&[self.num_experts, h]),
        };
        product(&[2, vocab, h]) + self.num_hidden_layers as u128 * (attention + experts + router)
    }

    /// Whether it is the transformer of tutorials.
    pub fn is_mini_mixtral(&self) -> bool {
        self.model_type == MINI_MIXTRAL
    }

    /// Refuses parts that the model type has not.
    fn check_parts(&self) -> Result<()> {
        let bad = |what: String| Err(Error::Invalid(format!("architecture: {what}")));
        if self.is_mini_mixtral() {
            if self.tie_word_embeddings {
                return bad(format!("tie_word_embeddings: {MINI_MIXTRAL} has an output matrix of its own"));
            }
            if self.shared_expert_intermediate_size > 0 {
                return bad(format!(
                    "shared_expert_intermediate_size is of qwen2_moe; num_shared_experts says how many {MINI_MIXTRAL} has"
                ));
            }
            if self.router_activation.is_some() && self.router_hidden.is_none() {
                return bad("router_activation needs router_hidden".into());
            }
            let counts = [("router_hidden", self.router_hidden), ("num_shared_experts", self.num_shared_experts)];
            return match counts.into_iter().find_map(|(key, n)| Some((key, n.filter(|n| *n == 0 || *n > 1 << 16)?))) {
                Some((key, n)) => bad(format!("{key} is {n}; a number from 1 to {} is expected, or none", 1 << 16)),
                None => Ok(()),
            };
        }
        let own = [
            ("norm", self.norm.is_some()),
            ("router", self.router.is_some()),
            ("router_hidden", self.router_hidden.is_some()),
            ("router_activation", self.router_activation.is_some()),
            ("router_bias", self.router_bias.is_some()),
            ("expert_gated", self.expert_gated.is_some()),
            ("expert_activation", self.expert_activation.is_some()),
            ("expert_bias", self.expert_bias.is_some()),
            ("num_shared_experts", self.num_shared_experts.is_some()),
        ];
        match own.iter().find(|(_, said)| *said) {
            Some((key, _)) => bad(format!("{key}: {} has no such part; {MINI_MIXTRAL} has it", self.model_type)),
            None => Ok(()),
        }
    }
}
