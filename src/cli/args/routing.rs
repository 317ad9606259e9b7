//! `moeray routing`: recorded routing, looked at again.

use crate::routing::{Policy, Slots};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Whose slot a missing expert takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// That of the expert whose last use is longest ago
    Lru,
    /// That of the expert that was used least; counts are halved every 256 tokens
    LfuAged,
    /// That of the expert whose last use is longest ago, but none of the half of the slots with the experts that were used most
    #[value(name = "pinned+lru")]
    PinnedLru,
    /// That of the expert whose next use is farthest away: the best that any cache could do
    Belady,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Policy {
        match name {
            PolicyName::Lru => Policy::Lru,
            PolicyName::LfuAged => Policy::LfuAged,
            PolicyName::PinnedLru => Policy::PinnedLru,
            PolicyName::Belady => Policy::Belady,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  moeray run model.gguf -f story.txt -n 1 --routing-json trace.json      records a text
  moeray routing --simulate trace.json --slots 25%,50% -m model.gguf     hits, and bytes a token

Record real text: random tokens use all experts alike, which no text does.";

/// `moeray routing`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct SimulateArgs {
    /// A record of routing, which run --routing-json has written
    #[arg(long, value_name = "FILE", required = true)]
    pub simulate: PathBuf,
    /// Slots for the experts of each layer: a number, or a part of the experts
    #[arg(long, value_name = "N|P%,...", value_delimiter = ',', default_value = "25%,50%")]
    pub slots: Vec<Slots>,
    /// Whose slot a missing expert takes
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "lru,lfu-aged,pinned+lru,belady")]
    pub policy: Vec<PolicyName>,
    /// The model that was recorded: its experts' bytes are shown too
    #[arg(short, long, value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// The figures of every layer, not only of all together
    #[arg(long)]
    pub layers: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}
