//! What may be said about training and what it makes.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Adapters.
#[derive(Args, Clone, Debug, Default)]
pub struct LoraArgs {
    /// A low-rank adapter to run the model with: a GGUF of llama.cpp's, or a PEFT folder, and how strongly it counts [default:
    /// 1] (may be given several times)
    #[arg(long, value_name = "FILE[=SCALE]")]
    pub lora: Vec<String>,
}

const MERGE_EXAMPLES: &str = "\
Examples:
  moeray merge model-f16.gguf --lora adapter.gguf -o merged.gguf
  moeray merge model-q4_k_m.gguf --lora adapter/ -o merged.gguf --type F16
  moeray quantize merged.gguf merged-q4_k_m.gguf --type Q4_K_M";

/// `moeray merge`.
#[derive(Args, Debug)]
#[command(after_help = MERGE_EXAMPLES)]
pub struct MergeArgs {
    /// Which model.
    #[command(flatten)]
    pub model: super::ModelArgs,
    /// A low-rank adapter to merge into it: a GGUF of llama.cpp's, or a PEFT folder, and how strongly it counts [default: 1]
    /// (may be given several times)
    #[arg(long, value_name = "FILE[=SCALE]", required = true)]
    pub lora: Vec<String>,
    /// The GGUF file to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Type of the weights that change [default: the type they have, where that is a float]
    #[arg(long = "type", value_name = "TYPE")]
    pub weight_type: Option<String>,
    /// Let changed weights keep a quantised type, which rounds them once more
    #[arg(long, conflicts_with = "weight_type")]
    pub allow_requantize: bool,
    /// Write over an existing file
    #[arg(long)]
    pub force: bool,
}

const UPCYCLE_EXAMPLES: &str = "\
Examples:
  moeray upcycle smollm2-135m-f16.gguf smollm2-moe.gguf --experts 4 --used 2
  moeray upcycle llama-hf/ llama-moe.gguf --experts 8 --noise 0.01 --seed 7

Every expert begins as a copy of the dense network, and the chosen experts' weights sum to 1: without --noise the new model
computes what the dense one does, until training tells the experts apart.";

/// How the router begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GateName {
    /// Random numbers: tokens spread over all experts
    #[default]
    Random,
    /// Each expert prefers what is like its own prompts (--prompts)
    Hidden,
}

/// `moeray upcycle`.
#[derive(Args, Debug)]
#[command(after_help = UPCYCLE_EXAMPLES)]
pub struct UpcycleArgs {
    /// The dense model: a .gguf file or a folder with config.json and *.safetensors
    pub input: PathBuf,
    /// The GGUF file to write
    pub output: PathBuf,
    /// Experts of each layer
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=1024))]
    pub experts: u32,
    /// Experts that a token uses
    #[arg(long, value_name = "K", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub used: u32,
    /// How the router begins
    #[arg(long, value_name = "HOW", default_value = "random")]
    pub gate: GateName,
    /// A JSON file with a list of prompts for every expert: [["def main():", ...], ["Dear Sir", ...], ...]
    #[arg(long, value_name = "FILE", required_if_eq("gate", "hidden"))]
    pub prompts: Option<PathBuf>,
    /// Noise on every expert but the first, in parts of the weights' standard deviation; needs a model of float weights
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub noise: f32,
    /// The seed of the router and the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Write over an existing file
    #[arg(long)]
    pub force: bool,
}

/// Where a model is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TrainBackendName {
    /// This processor, fast
    Cpu,
    /// A GPU
    Wgpu,
    /// This processor, slow and obvious: what the others are tested against
    Reference,
}

/// Where a model is trained.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Where to train")]
pub struct TrainPlaceArgs {
    /// Backend [default: cpu]
    #[arg(long, value_name = "NAME")]
    pub backend: Option<TrainBackendName>,
    /// Number or part of the name of a GPU, as `moeray devices` lists them; chooses the backend wgpu
    #[arg(long, value_name = "N|NAME")]
    pub device: Option<String>,
}

const TRAIN_EXAMPLES: &str = "\
Examples:
  moeray train run.toml
  moeray train run.toml learning_rate=3e-4 output_dir=runs/b
  moeray train run.toml --backend wgpu        on the best GPU
  moeray train run.toml --dry-run             what it takes: memory, arithmetic, time

A run that was interrupted goes on from its last checkpoint with the same command.";

/// `moeray train`.
#[derive(Args, Debug)]
#[command(after_help = TRAIN_EXAMPLES)]
pub struct TrainArgs {
    /// The configuration: TOML with the keys of axolotl and Hugging Face
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    /// Keys that override the file: learning_rate=1e-4, datasets.0.path=b.jsonl
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Where.
    #[command(flatten)]
    pub place: TrainPlaceArgs,
    /// Say what would be trained and what it takes, and train nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `--optimizer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OptimizerArg {
    /// AdamW
    #[default]
    Adamw,
    /// Stochastic gradient descent with momentum
    Sgd,
}

/// `--recompute`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RecomputeArg {
    /// Nothing: fastest, and most memory
    None,
    /// What is inside of experts
    Experts,
    /// All but what lies between layers: least memory
    #[default]
    Layer,
}

const FINETUNE_EXAMPLES: &str = "\
Examples:
  moeray finetune -m model-q4_k_m.gguf -f chats.jsonl -o adapter.gguf
  moeray finetune -m model.gguf -f book.txt -o adapter/ --lora-r 8 --lora-targets attention,router
  moeray run model-q4_k_m.gguf --lora adapter.gguf -p \"Once\"

JSON lines hold `text`, `messages`, or `prompt` and `completion`; of the last two only answers are learnt. The model's file
is only read. -o FILE.gguf writes llama.cpp's form, another name a PEFT folder.";

/// `moeray finetune`.
#[derive(Args, Debug)]
#[command(after_help = FINETUNE_EXAMPLES)]
pub struct FinetuneArgs {
    /// The model: a .gguf file, quantised or not, or a folder with config.json and *.safetensors
    #[arg(short, long, value_name = "MODEL")]
    pub model: PathBuf,
    /// What is learnt: text, JSON lines, token files, folders (may be given several times)
    #[arg(short = 'f', long, alias = "file", value_name = "FILE", required = true)]
    pub data: Vec<PathBuf>,
    /// The adapter to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Rank of the adapter
    #[arg(long, value_name = "R", default_value_t = 16)]
    pub lora_r: usize,
    /// Its factor is alpha / r
    #[arg(long, value_name = "A", default_value_t = 32.0)]
    pub lora_alpha: f32,
    /// What gets it: attention, experts, shared, dense (these by default), router, output, or patterns of names
    #[arg(long, value_name = "WHAT,...", value_delimiter = ',')]
    pub lora_targets: Option<Vec<String>>,
    /// Largest learning rate
    #[arg(long, alias = "lr", value_name = "X", default_value_t = 2e-4)]
    pub learning_rate: f64,
    /// Least learning rate, at the end
    #[arg(long, alias = "lr-min", value_name = "X", default_value_t = 0.0)]
    pub learning_rate_min: f64,
    /// Weight decay
    #[arg(long, alias = "wd", value_name = "X", default_value_t = 0.0)]
    pub weight_decay: f64,
    /// How often the data is seen
    #[arg(long, value_name = "N", default_value_t = 2.0)]
    pub epochs: f64,
    /// Steps, in the place of epochs
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub steps: u64,
    /// The part of the data that is held back for evaluation
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub val_split: f64,
    /// The optimizer
    #[arg(long, value_name = "NAME", default_value = "adamw")]
    pub optimizer: OptimizerArg,
    /// Sequences of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub micro_batch_size: usize,
    /// Micro-batches of a step
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub accumulate: usize,
    /// Tokens of a sequence [default: 512, or the model's context]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,
    /// What is computed again on the way back, in place of being kept; the result is the same
    #[arg(long, value_name = "WHAT", default_value = "layer")]
    pub recompute: RecomputeArg,
    /// The seed of everything random
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Where checkpoints and logs go [default: beside the adapter, its name with .run]
    #[arg(long, value_name = "FOLDER")]
    pub work: Option<PathBuf>,
    /// Threads [default: one for each core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Where.
    #[command(flatten)]
    pub place: TrainPlaceArgs,
    /// Say what would be trained and what it takes, and train nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Write over an existing adapter
    #[arg(long)]
    pub force: bool,
}
