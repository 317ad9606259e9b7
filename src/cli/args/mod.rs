//! What a person may say: the arguments, parsed into plain structs. Nothing here looks at a file or a device.

mod bench;
mod generation;
mod models;
mod place;
mod routing;
#[cfg(feature = "serve")]
mod serve;
mod train;

pub use bench::BenchArgs;
#[cfg(feature = "grammar")]
pub use generation::FormArgs;
pub use generation::{RoutingArgs, SampleArgs, ShowRouting, StopArgs};
pub use models::{ListArgs, PullArgs, RmArgs};
pub use place::{
    ActivationsName, BackendName, ContextArgs, DeviceArgs, KvName, PlaceArgs, ReductionName, SimdName, SlotCount,
    SlotPolicy, TilesName, Vram,
};
pub use routing::SimulateArgs;
#[cfg(feature = "serve")]
pub use serve::{MetricsStyle, PoolingName, ServeArgs};
pub use train::{
    FinetuneArgs, GateName, LoraArgs, MergeArgs, OptimizerArg, RecomputeArg, TrainArgs, TrainBackendName,
    TrainPlaceArgs, UpcycleArgs,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  moeray run -p \"ROMEO:\"                      the built-in demo model writes
  moeray run model.gguf -p \"Once upon\" -n 200
  moeray chat qwen3-30b-a3b-q4_k_m.gguf       talk to an instruction-tuned model
  moeray bench --synthetic olmoe-1b-7b        speed of a model that is not on this disk
  moeray devices                              which GPU would be used, and why

Every verb has its own help: moeray run --help";

/// Runs Mixture-of-Experts language models on any GPU that Vulkan, Metal or DX12 reaches, and on the CPU.
#[derive(Debug, Parser)]
#[command(name = "moeray", version, after_help = EXAMPLES, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    /// More messages on stderr (-vv for still more); RUST_LOG overrides it
    #[arg(short, long, global = true, display_order = 997, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// No progress bars and no closing lines
    #[arg(short, long, global = true, display_order = 998)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Continue a prompt
    Run(RunArgs),
    /// Talk to a model in the terminal, with its own chat template
    Chat(ChatArgs),
    /// Answer clients over HTTP: the APIs of OpenAI, many clients at once
    #[cfg(feature = "serve")]
    Serve(ServeArgs),
    /// Measure speed, in the manner of llama-bench
    Bench(BenchArgs),
    /// Perplexity of a text, and KL divergence from another model or from saved logits
    Perplexity(PerplexityArgs),
    /// Write the logits of every position (and the router's choices) to a safetensors file
    Logits(LogitsArgs),
    /// Show what is in a model: metadata, tensors, hyperparameters, graph, plan, memory
    Inspect(InspectArgs),
    /// Say how often a cache of experts would have hit on a recorded text
    Routing(SimulateArgs),
    /// List the models that other tools have downloaded, with the names to run them by
    List(ListArgs),
    /// Download a model of huggingface.co into its cache, where other tools find it too
    Pull(PullArgs),
    /// Remove a model from Hugging Face's cache
    Rm(RmArgs),
    /// List the GPUs, what they offer, and which would be chosen
    Devices(DevicesArgs),
    /// Convert a model to another weight type, written as GGUF
    Quantize(QuantizeArgs),
    /// Write the completions of a shell to standard output: what the Tab key offers
    Completions(CompletionsArgs),
    /// Write the manual page of the program, or of a verb, to standard output
    #[command(hide = true)]
    Man(ManArgs),
    /// Train a model as a configuration file says
    Train(TrainArgs),
    /// Train a low-rank adapter (LoRA) of a model, quantised or not
    Finetune(FinetuneArgs),
    /// Merge low-rank adapters (LoRA) into their model
    Merge(MergeArgs),
    /// Make a Mixture-of-Experts model of a dense one, to be trained on
    Upcycle(UpcycleArgs),
}

/// Which model.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// A .gguf file (of a split one, any part), a folder with config.json and *.safetensors, or the name of a model that another
    /// tool has downloaded (owner/repo:Q4_K_M, see `moeray list`); without it, the built-in demo model
    #[arg(value_name = "MODEL")]
    pub positional: Option<PathBuf>,
    /// MODEL as an option
    #[arg(short, long, value_name = "MODEL", conflicts_with = "positional", hide_short_help = true)]
    pub model: Option<PathBuf>,
}

impl ModelArgs {
    /// The path that was named either way.
    pub fn path(&self) -> Option<&PathBuf> {
        self.positional.as_ref().or(self.model.as_ref())
    }
}

const RUN_EXAMPLES: &str = "\
Examples:
  moeray run -p \"ROMEO:\" -n 120 --seed 1
  moeray run model.gguf -p \"One\" -p \"Two\"         two prompts, one after the other
  moeray run model.gguf -f story.txt --temp 0
  echo \"To be, or\" | moeray run model.gguf -f -
  moeray run model.gguf -p \"Q: 2+2?\\nA:\" -e --stop \"\\n\"
  moeray run model.gguf -f story.txt -n 1 --routing-svg load.svg   which experts a text takes

run continues the text as it is; for questions to an instruction-tuned model use: moeray chat";

/// `moeray run`.
#[derive(Args, Debug)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Adapters.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// A prompt (may be given several times; - reads standard input)
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Vec<String>,
    /// A file with a prompt (may be given several times; - reads standard input)
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Most tokens to generate
    #[arg(short = 'n', long = "tokens", value_name = "N", default_value_t = 256)]
    pub tokens: usize,
    /// Context: prompt and generated tokens together [default: what the prompt and -n need, at most what the model was
    /// made for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,
    /// Take the prompt as it is: no beginning-of-text token before it, special tokens in it are plain text
    #[arg(long)]
    pub raw: bool,
    /// Print only what the model writes, not the prompt before it
    #[arg(long)]
    pub no_echo: bool,
    /// One JSON object a prompt: prompt, text, ids, finish reason, speed (with --show-routing, the routing too)
    #[arg(long)]
    pub json: bool,
    /// Looking at routing.
    #[command(flatten)]
    pub routing: RoutingArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sample: SampleArgs,
    /// When to end.
    #[command(flatten)]
    pub stop: StopArgs,
    /// The form of the text.
    #[cfg(feature = "grammar")]
    #[command(flatten)]
    pub form: FormArgs,
    /// Sizes.
    #[command(flatten)]
    pub context: ContextArgs,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
}

const CHAT_EXAMPLES: &str = "\
Examples:
  moeray chat model.gguf --system \"You answer in one sentence.\"
  moeray chat model.gguf \"Why is the sky blue?\"           one answer, then the end
  moeray chat model.gguf \"Summarise this:\" -f text.txt
  git diff | moeray chat model.gguf \"Review this:\" -f -
  moeray chat model.gguf < question.txt                   standard input is one message
  printf 'Hi!\\nWho are you?\\n' | moeray chat model.gguf -q   a message a line

In a chat: /help lists the commands, /quit or Ctrl-D ends it, Ctrl-C stops an answer. Several lines are one message when they
are pasted, between lines of \"\"\", or where a line ends in a backslash.";

/// Whether thinking is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ThinkingName {
    /// Above the answer
    Show,
    /// Not at all
    Hide,
}

/// `moeray chat`.
#[derive(Args, Debug)]
#[command(after_help = CHAT_EXAMPLES)]
pub struct ChatArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Adapters.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// A message: its answer is all that is written
    #[arg(value_name = "MESSAGE", conflicts_with = "prompt")]
    pub message: Option<String>,
    /// The same as an option (- reads standard input)
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// A file that is the message, or goes behind it (- reads standard input as a whole)
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Standard input that is no terminal is a message a line, not one message; so it is with -q, and where a line is a command
    #[arg(long)]
    pub each_line: bool,
    /// The system message
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// A file with the system message (- reads standard input)
    #[arg(long, value_name = "FILE", conflicts_with = "system")]
    pub system_file: Option<PathBuf>,
    /// Show what the model thinks before it answers [default: in a terminal]
    #[arg(long, value_name = "WHEN")]
    pub thinking: Option<ThinkingName>,
    /// Marks of the chat format in messages (`<|im_end|>`) become control tokens; otherwise they are text
    #[arg(long)]
    pub parse_special: bool,
    /// Most tokens of an answer [default: until the model ends, or the context does]
    #[arg(short = 'n', long = "tokens", value_name = "N")]
    pub tokens: Option<usize>,
    /// Context: the whole conversation in tokens [default: what the model was made for, at most 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sample: SampleArgs,
    /// When to end.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Sizes.
    #[command(flatten)]
    pub context: ContextArgs,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns, for reading
    Table,
    /// A Markdown table
    Md,
    /// One JSON array
    Json,
    /// A JSON object a line
    Jsonl,
    /// Comma-separated values
    Csv,
}

const PERPLEXITY_EXAMPLES: &str = "\
Examples:
  moeray perplexity model.gguf -f wiki.test.txt
  moeray perplexity q4.gguf -f text.txt --base-model f16.gguf       how far q4 is from f16
  moeray perplexity f16.gguf -f text.txt --save-logits base.safetensors
  moeray perplexity q4.gguf --kl-base base.safetensors              the same in two steps

The text is cut into windows of --ctx tokens; the second half of each is scored, as llama.cpp's llama-perplexity does.";

/// `moeray perplexity`.
#[derive(Args, Debug)]
#[command(after_help = PERPLEXITY_EXAMPLES)]
pub struct PerplexityArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Adapters.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// The text, UTF-8 (- reads standard input)
    #[arg(short, long, value_name = "FILE", required_unless_present = "kl_base")]
    pub file: Option<PathBuf>,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..))]
    pub ctx: u32,
    /// Score at most this many windows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub windows: Option<u32>,
    /// Compare with this model's distributions
    #[arg(long, value_name = "MODEL", conflicts_with = "kl_base")]
    pub base_model: Option<PathBuf>,
    /// Compare with the logits in this file, which --save-logits wrote; brings its own text and windows
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "save_logits"])]
    pub kl_base: Option<PathBuf>,
    /// Write the logits of all scored positions to this file
    #[arg(long, value_name = "FILE")]
    pub save_logits: Option<PathBuf>,
    /// The result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Sizes.
    #[command(flatten)]
    pub context: ContextArgs,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
}

const LOGITS_EXAMPLES: &str = "\
Examples:
  moeray logits model.gguf -p \"ROMEO:\" -o romeo.safetensors
  moeray logits model/ --ids 5,6,7 --router --backend reference -o out.safetensors

The file holds `logits` f32 [T, V] and `ids` u32 [T], and with --router for every MoE layer `router_ids_<layer>` u32 [T, k]
and `router_weights_<layer>` f32 [T, k].";

/// `moeray logits`.
#[derive(Args, Debug)]
#[command(after_help = LOGITS_EXAMPLES)]
pub struct LogitsArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Adapters.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// A prompt (- reads standard input)
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, required_unless_present_any = ["ids", "file"])]
    pub prompt: Option<String>,
    /// A file with a prompt (- reads standard input)
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// Token ids instead of text
    #[arg(long, value_name = "N,...", value_delimiter = ',', conflicts_with_all = ["prompt", "file"])]
    pub ids: Vec<u32>,
    /// No beginning-of-text token, special tokens in the text are plain text
    #[arg(long)]
    pub raw: bool,
    /// Each MoE layer's chosen experts and their weights too
    #[arg(long)]
    pub router: bool,
    /// Where to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Sizes.
    #[command(flatten)]
    pub context: ContextArgs,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `moeray inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Every tensor: name, type, shape, bytes
    #[arg(long)]
    pub tensors: bool,
    /// What the file says about the model: GGUF's metadata, or config.json
    #[arg(long)]
    pub metadata: bool,
    /// The graph: one line an operation
    #[arg(long)]
    pub graph: bool,
    /// The GPU plan of a generated token and of a prompt: dispatches, barriers, bytes
    #[arg(long)]
    pub plan: bool,
    /// What it takes where, before anything is loaded: weights by kind, keys and values, scratch, and how fast memory lets it be. Runs
    /// where `run` would with the same options, --vram and --cpu-moe among them
    #[arg(long)]
    pub memory: bool,
    /// The labels of the shaders that the GPU plan runs
    #[arg(long)]
    pub shaders: bool,
    /// The text of the shader with this label, each line with its place in its file
    #[arg(long, value_name = "LABEL")]
    pub shader: Option<String>,
    /// Everything as one JSON object
    #[arg(long)]
    pub json: bool,
    /// Context that the memory figures are for [default: what the model was made for, at most 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,
    /// Sizes.
    #[command(flatten)]
    pub context: ContextArgs,
    /// Where --memory, --plan, --shaders and --shader are for.
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// `moeray devices`.
#[derive(Args, Debug)]
pub struct DevicesArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

const QUANTIZE_EXAMPLES: &str = "\
Examples:
  moeray quantize model-f16.gguf model-q4_k_m.gguf --type Q4_K_M
  moeray quantize hf-folder/ model-q8_0.gguf --type Q8_0";

/// `moeray quantize`.
#[derive(Args, Debug)]
#[command(after_help = QUANTIZE_EXAMPLES)]
pub struct QuantizeArgs {
    /// The model to read
    pub input: PathBuf,
    /// The GGUF file to write
    pub output: PathBuf,
    /// Weight type (Q8_0, Q4_0, Q4_K, Q6_K, F16, ...) or mix (Q4_K_M, ...)
    #[arg(long = "type", value_name = "TYPE")]
    pub weight_type: String,
    /// Quantise weights that are quantised already, which rounds them twice
    #[arg(long)]
    pub allow_requantize: bool,
    /// Lay the matrices of each expert side by side, a tensor an expert, so that a model larger than memory reads an expert in one piece. The
    /// names are those of the first Mixtral files; other programs may not read them
    #[arg(long)]
    pub experts_together: bool,
    /// Write over an existing file
    #[arg(long)]
    pub force: bool,
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  moeray completions bash > ~/.local/share/bash-completion/completions/moeray
  moeray completions zsh > ~/.zfunc/_moeray                 (fpath=(~/.zfunc $fpath) before compinit)
  moeray completions fish > ~/.config/fish/completions/moeray.fish
  moeray completions powershell >> $PROFILE";

/// `moeray completions`.
#[derive(Args, Debug)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `moeray man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The verb; without it, the program as a whole
    pub verb: Option<String>,
}
