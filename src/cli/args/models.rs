//! `moeray list`, `pull` and `rm`: models by name.

use clap::Args;

/// `moeray list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Where each lies, too
    #[arg(long)]
    pub paths: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

const PULL_EXAMPLES: &str = "\
Examples:
  moeray pull unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M     then: moeray run unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M
  moeray pull ggml-org/gpt-oss-20b-GGUF             the only GGUF of a repository, or its Q4_K_M
  moeray pull allenai/OLMoE-1B-7B-0924              a repository of safetensors

What is interrupted goes on where it was. HF_TOKEN (or `hf auth login`) opens repositories that ask for it, HF_ENDPOINT names
another hub, HF_HOME or HF_HUB_CACHE another cache. The path of the model is written to standard output.";

/// `moeray pull`.
#[derive(Args, Debug)]
#[command(after_help = PULL_EXAMPLES)]
pub struct PullArgs {
    /// owner/repo, or owner/repo:QUANT for one of several GGUFs
    #[arg(value_name = "NAME")]
    pub name: String,
    /// A branch, a tag or a commit
    #[arg(long, value_name = "REVISION", default_value = "main")]
    pub revision: String,
}

/// `moeray rm`.
#[derive(Args, Debug)]
pub struct RmArgs {
    /// The model, as `moeray list` names it
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
}
