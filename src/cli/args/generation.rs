//! How tokens are chosen, when a generation ends, and what is shown of its routing.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// How tokens are chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling", allow_negative_numbers = true)]
pub struct SampleArgs {
    /// Seed: the same seed gives the same text on the same device and settings [default: the clock]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Temperature; 0 always takes the best token
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    pub temp: f32,
    /// Choose among the best N tokens; 0 for all
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub top_k: usize,
    /// Choose among the tokens that make up this probability; 1 for all
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    pub top_p: f32,
    /// Drop tokens below this part of the best token's probability; 0 for none
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    pub min_p: f32,
    /// Penalty on tokens that were used lately; 1 for none
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// How many of the last tokens the penalty looks at
    #[arg(long, value_name = "N", default_value_t = 64, hide_short_help = true)]
    pub repeat_last_n: usize,
}

/// When a generation ends.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Stopping")]
pub struct StopArgs {
    /// End before this text (may be given several times)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on where the model would end
    #[arg(long)]
    pub ignore_eos: bool,
    /// Read \n, \t, \r, \" and \\ in --prompt, --system and --stop as the characters they stand for
    #[arg(short, long)]
    pub escape: bool,
}

/// The form of the text.
#[cfg(feature = "grammar")]
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Form")]
#[group(multiple = false, conflicts_with = "ignore_eos")]
pub struct FormArgs {
    /// JSON that this schema allows: a file, or the schema itself
    #[arg(long, value_name = "SCHEMA")]
    pub json_schema: Option<String>,
    /// A text of the Lark grammar in this file, which begins with the rule `start`
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
    /// A text that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true)]
    pub regex: Option<String>,
}

/// Looking at routing.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Routing")]
pub struct RoutingArgs {
    /// After the text, print how evenly the experts were used; =tokens: and before that, which experts each token took in each
    /// layer, with their weights
    #[arg(long, value_name = "WHAT", num_args = 0..=1, require_equals = true, default_missing_value = "summary")]
    pub show_routing: Option<ShowRouting>,
    /// Write the same as JSON
    #[arg(long, value_name = "FILE")]
    pub routing_json: Option<PathBuf>,
    /// Draw how often each expert was taken, layers by experts, as an SVG picture (all prompts together)
    #[arg(long, value_name = "FILE")]
    pub routing_svg: Option<PathBuf>,
    /// Write a page with that picture, with one of the experts that go together and one of the load along the text
    #[arg(long, value_name = "FILE")]
    pub routing_html: Option<PathBuf>,
}

/// What of the routing is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShowRouting {
    /// A line a layer
    Summary,
    /// And a line a token and layer
    Tokens,
}

impl RoutingArgs {
    /// Whether the model must give its routers' choices.
    pub fn wanted(&self) -> bool {
        let files = [&self.routing_json, &self.routing_svg, &self.routing_html];
        self.show_routing.is_some() || files.iter().any(|f| f.is_some())
    }
}
