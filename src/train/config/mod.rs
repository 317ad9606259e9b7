//! A training run as a TOML file: keys as axolotl and Hugging Face name them.
//!
//! Unknown keys are errors with the key that was meant. `key=value` words on the command line override the file
//! (`optimizer.x` reaches into tables, `datasets.0.path` into lists).

mod architecture;
mod keys;
mod lora;
mod make;
mod names;
mod router;

pub use architecture::{ActivationName, ArchitectureConfig, NormName, RouterName};
pub use lora::LoraConfig;
pub use make::warmup_steps;
pub use names::{
    BackendConfig, DatasetConfig, DatasetType, ExcessName, ExportName, LogName, MomentsName, OptimizerName,
    RecomputeName, SchedulerName, TailName, UnusedName,
};
pub use router::{DropName, NoiseName, RouterConfig, SecondName, VarianceName};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// A training run. Every key has the name that it has in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// The model to go on from: a GGUF file or a Hugging Face folder.
    #[serde(alias = "model_name_or_path", alias = "model")]
    pub base_model: Option<PathBuf>,
    /// A model from nothing, in the place of `base_model`.
    pub architecture: Option<ArchitectureConfig>,
    /// What keeps the experts' loads even.
    pub router: RouterConfig,
    /// Low-rank adapters, in the place of all weights.
    pub lora: Option<LoraConfig>,
    /// A model file or folder whose tokenizer is taken, where the base model has none.
    pub tokenizer: Option<PathBuf>,
    /// Where checkpoints and logs go.
    pub output_dir: PathBuf,
    /// What is trained on.
    pub datasets: Vec<DatasetConfig>,
    /// What is evaluated on.
    pub test_datasets: Vec<DatasetConfig>,
    /// The part of the data (0 to 1) that is held back for evaluation, where there are no `test_datasets`.
    pub val_set_size: f64,
    /// Rows of a sequence: tokens that predict another.
    #[serde(alias = "max_seq_length")]
    pub sequence_len: usize,
    /// Whether short texts share a sequence.
    pub sample_packing: bool,
    /// Sequences that begin anywhere in the tokens of all texts, as nanoGPT has them.
    pub random_windows: bool,
    /// Whether the order of texts is random.
    #[serde(alias = "shuffle_merged_datasets")]
    pub shuffle: bool,
    /// Samples longer than a sequence: `raise`, `drop` or `truncate`.
    pub excess_length_strategy: ExcessName,
    /// Sequences of a micro-batch.
    #[serde(alias = "per_device_train_batch_size")]
    pub micro_batch_size: usize,
    /// Micro-batches of a step.
    pub gradient_accumulation_steps: usize,
    /// Sequences of a micro-batch of evaluation; as many as of training where it is 0.
    #[serde(alias = "per_device_eval_batch_size")]
    pub eval_batch_size: usize,
    /// Steps; where it is 0 `num_epochs` says how many.
    pub max_steps: u64,
    /// How often the data is seen.
    #[serde(alias = "num_train_epochs")]
    pub num_epochs: f64,
    /// The optimizer.
    #[serde(alias = "optim")]
    pub optimizer: OptimizerName,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// How the learning rate falls.
    #[serde(alias = "lr_scheduler_type")]
    pub lr_scheduler: SchedulerName,
    /// Steps over which the learning rate rises.
    pub warmup_steps: u64,
    /// The same as a part of all steps.
    pub warmup_ratio: f64,
    /// The least learning rate, as a part of the largest.
    #[serde(alias = "cosine_min_lr_ratio")]
    pub min_lr_ratio: f64,
    /// Whether the rate falls from the first step, beneath the warm-up.
    pub lr_decay_from_start: bool,
    /// The part of all steps in which `wsd` falls.
    pub wsd_decay_ratio: f64,
    /// How `wsd` falls: `1-sqrt`, `linear` or `cosine`.
    pub wsd_decay_type: TailName,
    /// β₁.
    pub adam_beta1: f64,
    /// β₂.
    pub adam_beta2: f64,
    /// ε.
    pub adam_epsilon: f64,
    /// Momentum of SGD.
    pub momentum: f64,
    /// Nesterov's.
    pub nesterov: bool,
    /// Weight decay.
    pub weight_decay: f64,
    /// Weight decay of norms, biases and other vectors, too.
    pub decay_norms: bool,
    /// How Adam keeps moments of experts: `full`, `factored_second`, `factored_only`.
    pub expert_moments: MomentsName,
    /// Experts without tokens: `skip` (no gradient) or `decay` (a gradient of zero).
    pub unused_experts: UnusedName,
    /// The largest norm of the gradients; 0 for no limit.
    #[serde(alias = "gradient_clipping")]
    pub max_grad_norm: f64,
    /// Parameters that stay: roles (`router`, `experts`, `shared`, `attention`, `dense`, `norms`, `embedding`, `output`) and
    /// patterns of names (`blk.0.*`).
    pub freeze: Vec<String>,
    /// Parameters that are trained; all others stay.
    #[serde(alias = "unfrozen_parameters")]
    pub train_only: Vec<String>,
    /// `[[epoch, k], …]`: how many experts a token uses from an epoch on; the model that is written uses the last number.
    pub top_k_schedule: Vec<[u32; 2]>,
    /// Dropout between the matrices of an expert.
    pub expert_dropout: f64,
    /// Dropout of what an expert gives.
    pub expert_output_dropout: f64,
    /// What is computed again in backward instead of kept: `none`, `experts`, `layer`.
    pub recompute: RecomputeName,
    /// The seed of everything random.
    pub seed: u64,
    /// Steps between evaluations; 0 for none but the last.
    pub eval_steps: u64,
    /// Micro-batches of an evaluation; 0 for all.
    pub eval_max_batches: usize,
    /// Evaluations without a better loss before the run ends; 0 for never.
    pub early_stopping_patience: u32,
    /// Steps between checkpoints; 0 for the last alone.
    pub save_steps: u64,
    /// Checkpoints that are kept; 0 for all. The best by evaluation stays beside them.
    pub save_total_limit: usize,
    /// `auto`: go on from the newest checkpoint of `output_dir`; `never`: begin anew; or a checkpoint's folder.
    #[serde(alias = "resume_from_checkpoint", deserialize_with = "names::resume")]
    pub resume: String,
    /// Steps without a finite loss and gradient, one behind the other, after which the run ends.
    pub max_skipped_steps: u32,
    /// What the model is written as at the end: `gguf` (`model.gguf`), `safetensors` (a Hugging Face folder, `model`).
    pub export: Vec<ExportName>,
    /// What is written: `csv`, `jsonl`, `tensorboard`, `svg`.
    pub log: Vec<LogName>,
    /// Steps between lines of the log.
    pub logging_steps: u64,
    /// Where gradients are computed: `cpu`, `wgpu` (a GPU), or `reference` (slow, for comparisons).
    pub backend: BackendConfig,
    /// Which GPU: a number or a part of the name of one that `moeray devices` lists; the best real one where it is not said.
    #[serde(deserialize_with = "names::device")]
    pub device: Option<String>,
    /// Threads; all cores where it is 0.
    pub threads: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            base_model: None,
            architecture: None,
            router: RouterConfig::default(),
            lora: None,
            tokenizer: None,
            output_dir: PathBuf::from("out"),
            datasets: vec![],
            test_datasets: vec![],
            val_set_size: 0.0,
            sequence_len: 512,
            sample_packing: true,
            random_windows: false,
            shuffle: true,
            excess_length_strategy: ExcessName::Raise,
            micro_batch_size: 1,
            gradient_accumulation_steps: 1,
            eval_batch_size: 0,
            max_steps: 0,
            num_epochs: 1.0,
            optimizer: OptimizerName::AdamW,
            learning_rate: 1e-3,
            lr_scheduler: SchedulerName::Cosine,
            warmup_steps: 0,
            warmup_ratio: 0.0,
            min_lr_ratio: 0.0,
            lr_decay_from_start: false,
            wsd_decay_ratio: 0.2,
            wsd_decay_type: TailName::OneMinusSqrt,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.0,
            decay_norms: false,
            expert_moments: MomentsName::Full,
            unused_experts: UnusedName::Skip,
            max_grad_norm: 1.0,
            freeze: vec![],
            train_only: vec![],
            top_k_schedule: vec![],
            expert_dropout: 0.0,
            expert_output_dropout: 0.0,
            recompute: RecomputeName::None,
            seed: 42,
            eval_steps: 0,
            eval_max_batches: 0,
            early_stopping_patience: 0,
            save_steps: 0,
            save_total_limit: 2,
            resume: "auto".into(),
            max_skipped_steps: 10,
            export: vec![ExportName::Gguf],
            log: vec![LogName::Csv, LogName::Jsonl, LogName::Tensorboard, LogName::Svg],
            logging_steps: 1,
            backend: BackendConfig::Cpu,
            device: None,
            threads: 0,
        }
    }
}

/// Bytes of a configuration at most.
const MOST_BYTES: u64 = 4 << 20;

impl TrainConfig {
    /// Reads a TOML file, with `key=value` words over it.
    ///
    /// # Errors
    /// [`Error::Io`]; as [`TrainConfig::parse`].
    pub fn read(path: &Path, overrides: &[String]) -> Result<TrainConfig> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let name = path.display().to_string();
        let mut bytes = vec![];
        // A device or a model in the place of a configuration may have no end.
        File::open(path).map_err(io)?.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > MOST_BYTES {
            let what = format!("is no configuration: it is larger than {} MiB", MOST_BYTES >> 20);
            return Err(Error::format(&*name, what));
        }
        let text = String::from_utf8(bytes).map_err(|_| Error::format(&*name, "is not UTF-8 text"))?;
        TrainConfig::parse(&name, &text, overrides)
    }

    /// Reads a configuration from a text; `name` names it in errors.
    ///
    /// # Errors
    /// [`Error::Format`] with the line for what is no TOML, for an unknown key (and which was meant), and for a value of the wrong
    /// type; [`Error::Invalid`] for values out of range.
    pub fn parse(name: &str, text: &str, overrides: &[String]) -> Result<TrainConfig> {
        let config = keys::read(name, text, overrides)?;
        config.check()?;
        Ok(config)
    }
}
