//! `moeray serve`.

use super::{ContextArgs, LoraArgs, PlaceArgs};
use clap::{Args, ValueEnum};
use std::{net::IpAddr, path::PathBuf};

const EXAMPLES: &str = "\
Examples:
  moeray serve model.gguf                              http://127.0.0.1:8080/v1 for any OpenAI client
  moeray serve model.gguf --sequences 8 --ctx 8192     eight conversations at once, 8192 tokens each
  moeray serve --models-dir ~/models --models-idle 600 models by the names of their files, loaded when asked for
  moeray serve model.gguf --host 0.0.0.0 --api-key-file keys.txt
  curl http://127.0.0.1:8080/v1/completions -H 'content-type: application/json' \\
       -d '{\"model\": \"demo\", \"prompt\": \"ROMEO:\"}'     with the built-in demo model

The APIs: /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/embeddings, /v1/models; /health, /metrics,
/props, /slots, /tokenize, /detokenize, /apply-template; a chat page at /. Ctrl-C or SIGTERM lets running answers finish, a second one does not.";

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| *x > 0.0 && x.is_finite());
    number.ok_or_else(|| "must be a number above 0".into())
}

/// Which names metrics have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MetricsStyle {
    /// moeray_...
    Moeray,
    /// llamacpp:..., for dashboards made for llama-server
    #[value(name = "llamacpp")]
    LlamaCpp,
}

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PoolingName {
    /// That of the last token
    Last,
    /// Their mean
    Mean,
    /// That of the first token
    Cls,
}

/// `moeray serve`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// The models: .gguf files (of split ones, any part), folders with config.json and *.safetensors, or names of models that
    /// another tool has downloaded (owner/repo:Q4_K_M, see `moeray list`); without any, the built-in demo model. One is loaded at
    /// once; several are loaded when they are asked for first
    #[arg(value_name = "MODEL")]
    pub positional: Vec<PathBuf>,
    /// MODEL as an option (may be given several times)
    #[arg(short, long, value_name = "MODEL", conflicts_with = "positional", hide_short_help = true)]
    pub model: Vec<PathBuf>,
    /// Serve the models of this folder too, by the names of their files; they are loaded when they are asked for first
    #[arg(long, value_name = "FOLDER")]
    pub models_dir: Option<PathBuf>,
    /// Memory that loaded models may take together in GiB: for another one the one goes that was idle longest [default: what
    /// their device has free at the start]
    #[arg(long, value_name = "GIB", value_parser = positive)]
    pub models_memory: Option<f64>,
    /// Seconds without requests after which a model goes, where there are several [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub models_idle: Option<u64>,
    /// Adapters, where there is one model.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Address to listen on; others than this computer reach only an address of the network, such as 0.0.0.0
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,
    /// Texts that are read and generated side by side
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub sequences: u32,
    /// Context of each of them in tokens [default: what the model was made for, at most 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub ctx: Option<u32>,
    /// Requests that may wait; one more is refused with status 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub queue: u32,
    /// Host memory for the texts of earlier requests in MiB, so that none is read twice; 0 keeps only those that still are in a
    /// sequence [default: a quarter of what is free at the start, at most 8192]
    #[arg(long, value_name = "MIB")]
    pub cache_ram: Option<u32>,
    /// A folder in which POST /slots/ID?action=save and restore keep the texts of sequences; without it they do not
    #[arg(long, value_name = "FOLDER")]
    pub slot_save_path: Option<PathBuf>,
    /// A key of which clients must send one (may be given several times; other users of this computer can see it:
    /// --api-key-file hides it)
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// A file with keys, one a line
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// A Jinja chat template in place of the model's
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// The model's name for clients, where there is one [default: the file's without .gguf]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Let web pages of this origin ask, such as `https://example.com` (may be given several times; * for all)
    #[arg(long, value_name = "ORIGIN")]
    pub cors: Vec<String>,
    /// How hidden states become the vectors of /v1/embeddings [default: what the model says, else last]
    #[arg(long, value_name = "KIND")]
    pub pooling: Option<PoolingName>,
    /// Names of metrics
    #[arg(long, value_name = "STYLE", default_value = "moeray")]
    pub metrics_style: MetricsStyle,
    /// Seconds that running answers have when the server is told to end
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub grace: u64,
    /// Where to run.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Sizes.
    #[command(flatten)]
    pub context: ContextArgs,
}
