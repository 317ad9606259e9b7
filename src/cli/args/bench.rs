//! `moeray bench`.

use super::{BackendName, ContextArgs, DeviceArgs, Format, LoraArgs, ModelArgs};
use clap::Args;
use std::path::PathBuf;

const BENCH_EXAMPLES: &str = "\
Examples:
  moeray bench model.gguf                          prompt of 512 tokens, generation of 128
  moeray bench model.gguf -p 128,512 -n 64 -r 3 --backend cpu,wgpu -o md
  moeray bench --synthetic qwen3-30b-a3b --type Q4_K_M --layers 4
  moeray bench --synthetic moe-1b-a400m --type Q8_0 --write model.gguf

A row ppN is the speed of a prompt of N tokens, tgN of generating N tokens,
ppP+tgN of both together.";

/// `moeray bench`.
#[derive(Args, Debug)]
#[command(after_help = BENCH_EXAMPLES)]
pub struct BenchArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Adapters.
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Measure a model of this shape with random weights
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "positional"])]
    pub synthetic: Option<String>,
    /// Weight type or mix of the synthetic model [default: Q4_K_M; MXFP4 for gpt-oss, as it is published]
    #[arg(long = "type", value_name = "TYPE", requires = "synthetic")]
    pub weight_type: Option<String>,
    /// Layers of the synthetic model [default: as many as the real one has]
    #[arg(long, value_name = "N", requires = "synthetic", value_parser = clap::value_parser!(u32).range(1..))]
    pub layers: Option<u32>,
    /// Write the synthetic model to a GGUF file, for other programs to be measured on, and measure nothing
    #[arg(long, value_name = "FILE", requires = "synthetic")]
    pub write: Option<PathBuf>,
    /// Lengths of prompts, 0 for none
    #[arg(short = 'p', long, value_name = "N,...", value_delimiter = ',', default_value = "512")]
    pub n_prompt: Vec<u32>,
    /// Lengths of generations, 0 for none
    #[arg(short = 'n', long, value_name = "N,...", value_delimiter = ',', default_value = "128")]
    pub n_gen: Vec<u32>,
    /// A prompt of P tokens and a generation of N behind it in one test, of each of --sequences: prompts one after the other, then all side by
    /// side (may be given several times)
    #[arg(long, value_name = "P,N", value_parser = prompt_gen)]
    pub prompt_gen: Vec<(u32, u32)>,
    /// Tokens that are in the context before each test
    #[arg(short = 'd', long, value_name = "N,...", value_delimiter = ',', default_value = "0")]
    pub n_depth: Vec<u32>,
    /// Sequences that generate side by side, a token of each in every step; their tokens are counted together
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub sequences: Vec<u32>,
    /// Feed the tokens of this text (- reads standard input), which a router sends where it sends real prompts, instead of random ones;
    /// each sequence from a place of its own
    #[arg(long, value_name = "FILE", conflicts_with = "synthetic")]
    pub text: Option<PathBuf>,
    /// Repetitions of each test
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub repetitions: u32,
    /// Form of the output
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub output: Format,
    /// No run before the measured ones
    #[arg(long)]
    pub no_warmup: bool,
    /// Time, bytes and bandwidth of every kernel of the GPU, or op of the CPU, too: from runs of their own
    #[arg(long)]
    pub profile: bool,
    /// Backends to measure, in this order [default: the one that run would take]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', help_heading = "Where to run")]
    pub backend: Vec<BackendName>,
    /// Sizes.
    #[command(flatten)]
    pub context: ContextArgs,
    /// Device and threads.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `P,N` of `--prompt-gen`.
fn prompt_gen(word: &str) -> Result<(u32, u32), String> {
    let numbers: Option<Vec<u32>> = word.split(',').map(|n| n.trim().parse().ok().filter(|n| *n > 0)).collect();
    match numbers.as_deref() {
        Some([prompt, generate]) => Ok((*prompt, *generate)),
        _ => Err("two numbers above 0, such as 512,128".into()),
    }
}
