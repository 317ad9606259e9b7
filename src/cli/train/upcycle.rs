//! `moeray upcycle`: experts of dense networks.

use super::apart;
use crate::{
    cli::{
        args::{GateName, UpcycleArgs},
        failure::{Failure, Outcome, say},
        known,
        output::check_place,
        units,
    },
    file::{self, Checkpoint, TensorSpec},
    tokenizer::{EncodeOptions, Tokenizer},
    train::{Gate, UpcycleOptions},
};
use std::{fs::File, io::Read, path::Path};

/// Runs the verb.
pub fn upcycle(args: &UpcycleArgs, quiet: bool) -> Outcome {
    if args.output.exists() && !args.force {
        return Err(Failure::new(format!("{} exists already", args.output.display())).hint("--force writes over it"));
    }
    if args.used > args.experts {
        return Err(Failure::new(format!(
            "--used {} of --experts {}: a token cannot use more than there are",
            args.used, args.experts
        )));
    }
    known::path(&args.input)?;
    apart(&args.output, &[&args.input])?;
    check_place("OUTPUT", &args.output)?;
    let dense = file::open(&args.input)?;
    known::model(&args.input, &dense)?;
    let gate = match (args.gate, &args.prompts) {
        (GateName::Hidden, Some(path)) => Gate::Hidden(prompts(path, &dense)?),
        (GateName::Hidden, None) => return Err(Failure::new("--gate hidden needs --prompts FILE")),
        (GateName::Random, Some(_)) => return Err(Failure::new("--prompts are for --gate hidden")),
        (GateName::Random, None) => Gate::Random,
    };
    let options = UpcycleOptions {
        experts: args.experts as usize,
        used: args.used as usize,
        gate,
        noise: args.noise,
        seed: args.seed,
    };
    let specs = options.write(&dense, &args.output)?;
    if !quiet {
        let bytes: usize = specs.iter().filter_map(TensorSpec::byte_len).sum();
        let weights: usize = specs.iter().map(|s| s.shape.iter().product::<usize>()).sum();
        say(format_args!(
            "{}: {} experts, {} used, {:.1} million weights, {}",
            args.output.display(),
            args.experts,
            args.used,
            weights as f64 / 1e6,
            units::bytes(bytes as u64)
        ));
    }
    Ok(())
}

/// Bytes of prompts at most.
const MOST_BYTES: u64 = 64 << 20;

/// The prompts of each expert as tokens.
fn prompts(path: &Path, dense: &Checkpoint) -> Outcome<Vec<Vec<Vec<u32>>>> {
    let io = |e: std::io::Error| Failure::io("read", path, &e);
    let mut text = vec![];
    // A device has no end.
    File::open(path).map_err(io)?.take(MOST_BYTES + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(Failure::new(format!("--prompts: {} is larger than {} MiB", path.display(), MOST_BYTES >> 20)));
    }
    let bad = |e: serde_json::Error| {
        Failure::new(format!("--prompts: {} is no list of lists of texts: {e}", path.display()))
            .hint("such as [[\"def main():\", \"fn main() {\"], [\"Dear Sir,\"]]: a list for each expert")
    };
    let texts: Vec<Vec<String>> = serde_json::from_slice(&text).map_err(bad)?;
    let tokenizer = Tokenizer::from_checkpoint(dense)?;
    let encode = |t: &String| Ok(tokenizer.encode(t, EncodeOptions::default())?);
    texts.iter().map(|of| of.iter().map(encode).collect()).collect()
}
