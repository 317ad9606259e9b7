//! What describes an architecture: one value a family, in the family's own file.

use super::{decoder::Decoder, facts::Config, gguf::GgufForm, names::Names, params::Params};
use crate::error::Result;

/// An entry of the registry.
pub struct Architecture {
    /// For people: `Mixtral`, `Qwen3-MoE`.
    pub title: &'static str,
    /// Its form as GGUF. Families whose files llama.cpp gives one name share it; the first of them in the registry reads such files.
    pub gguf: &'static GgufForm,
    /// `model_type` in `config.json`.
    pub hf: &'static str,
    /// What its config class says of the keys in `config.json`.
    pub config: Config,
    /// Tensor names outside GGUF.
    pub names: Names,
    /// Reads the hyperparameters.
    pub decoder: fn(&Params<'_>) -> Result<Decoder>,
    /// How it routes; `None` for a dense model.
    pub routing: Option<Routing>,
}

/// How a family routes, in words (`ops/router.rs` says what they mean).
#[derive(Clone, Copy, Debug)]
pub struct Routing {
    /// How logits become scores.
    pub score: &'static str,
    /// Whether a bias is added for the choice.
    pub selection_bias: &'static str,
    /// Whether the choice is limited to groups, and how they are scored.
    pub groups: &'static str,
    /// What the chosen weights are divided by.
    pub divided_by: &'static str,
    /// Factor on the weights.
    pub scale: &'static str,
    /// Where it is defined; in `typewriter` a file of Hugging Face transformers.
    pub source: &'static str,
}

impl Routing {
    /// All of it in one phrase.
    pub fn words(&self) -> String {
        let mut words = self.score.to_string();
        let mut add = |before: &str, text: &str, behind: &str| {
            if !text.is_empty() {
                words += &format!(", {before}{text}{behind}");
            }
        };
        match self.selection_bias {
            "yes" => add("", "selection bias", ""),
            when => add("selection bias ", when, ""),
        }
        add("groups by ", self.groups, "");
        add("divided by ", Some(self.divided_by).filter(|d| *d != "no").unwrap_or(""), "");
        add("times ", Some(self.scale).filter(|s| *s != "1").unwrap_or(""), "");
        words
    }

    /// A softmax over all experts, without anything else.
    pub(super) const SOFTMAX: Routing =
        Routing { score: "softmax", selection_bias: "", groups: "", divided_by: "", scale: "1", source: "" };
}
