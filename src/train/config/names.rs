//! Words of a configuration, and what a data set is.

use crate::train::data::Kind;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::path::PathBuf;

/// A data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// A file or a folder.
    pub path: PathBuf,
    /// `text`, `json`, `u16` or `u32`; where it is not said, the file's ending tells.
    #[serde(default)]
    pub ds_type: Option<DatasetType>,
    /// Learn prompts and questions, too.
    #[serde(default)]
    pub train_on_inputs: bool,
    /// Put the token that ends a text behind every text.
    #[serde(default = "yes")]
    pub add_eos: bool,
}

fn yes() -> bool {
    true
}

/// What the files of a data set hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum DatasetType {
    Text,
    Json,
    U16,
    U32,
}

impl DatasetType {
    /// The kind of file.
    pub fn kind(self) -> Kind {
        match self {
            DatasetType::Text => Kind::Text,
            DatasetType::Json => Kind::JsonLines,
            DatasetType::U16 => Kind::TokensU16,
            DatasetType::U32 => Kind::TokensU32,
        }
    }
}

/// Samples longer than a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ExcessName {
    #[default]
    Raise,
    Drop,
    Truncate,
}

/// `optimizer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum OptimizerName {
    #[default]
    #[serde(alias = "adamw_torch")]
    AdamW,
    Adam,
    Sgd,
    Adafactor,
}

/// `lr_scheduler`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum SchedulerName {
    #[default]
    Cosine,
    Linear,
    #[serde(alias = "constant_with_warmup")]
    Constant,
    #[serde(alias = "warmup_stable_decay")]
    Wsd,
}

/// `wsd_decay_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum TailName {
    #[serde(rename = "linear")]
    Linear,
    #[serde(rename = "cosine")]
    Cosine,
    #[default]
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// `expert_moments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum MomentsName {
    #[default]
    Full,
    FactoredSecond,
    FactoredOnly,
}

/// `unused_experts`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum UnusedName {
    #[default]
    Skip,
    Decay,
}

/// An entry of `log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LogName {
    Csv,
    Jsonl,
    Tensorboard,
    Svg,
}

/// `backend`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum BackendConfig {
    #[default]
    Cpu,
    Wgpu,
    Reference,
}

/// An entry of `export`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ExportName {
    Gguf,
    Safetensors,
}

/// `recompute`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum RecomputeName {
    #[default]
    None,
    Experts,
    Layer,
}

/// A value that a person may write as a text, a number or a truth value.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Number(u64),
    Truth(bool),
}

/// `device`: a part of a name, or a number.
pub(super) fn device<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    let written = Option::<Written>::deserialize(d);
    match written.map_err(|_| D::Error::custom("device is a number of `moeray devices`, or a part of a name there"))? {
        None => Ok(None),
        Some(Written::Text(name)) => Ok(Some(name)),
        Some(Written::Number(n)) => Ok(Some(n.to_string())),
        Some(Written::Truth(_)) => {
            Err(D::Error::custom("device is a number of `moeray devices`, or a part of a name there"))
        }
    }
}

/// `resume`: `auto`, `never` or a folder; Hugging Face's truth values are understood.
pub(super) fn resume<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    const WHAT: &str = "resume is \"auto\", \"never\", or the folder of a checkpoint";
    match Written::deserialize(d).map_err(|_| D::Error::custom(WHAT))? {
        Written::Text(word) => Ok(word),
        Written::Truth(true) => Ok("auto".into()),
        Written::Truth(false) => Ok("never".into()),
        Written::Number(_) => Err(D::Error::custom(WHAT)),
    }
}
