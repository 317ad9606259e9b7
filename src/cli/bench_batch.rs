//! `moeray bench --sequences`: generations side by side, and prompts in front of them.

use super::{args::ContextArgs, bench_tokens::Source, failure::Outcome, load};
use crate::session::{Batch, Model, RunnerOptions};
use std::time::{Duration, Instant};

/// Sequences of one length that get a token each in every step.
pub struct SideBySide {
    batch: Batch,
    depth: usize,
    /// Tokens of a sequence that are read at once.
    rows: usize,
}

impl SideBySide {
    /// Fills the contexts of `sequences` sequences with `depth` tokens each; there is room for prompts and generations of so many.
    pub fn new(
        model: &Model,
        sequences: usize,
        [depth, prompt, generate]: [usize; 3],
        args: &ContextArgs,
        source: &mut Source,
    ) -> Outcome<Self> {
        let rows = sequences.max((args.ubatch_size as usize).min(depth.max(prompt)));
        let options = RunnerOptions { ctx: depth + prompt + generate, sequences, ubatch: rows, kv: load::kv(args) };
        let mut one = SideBySide { batch: Batch::new(model, options)?, depth, rows };
        for s in 0..sequences {
            one.read(s, &source.of_sequence((s, sequences), 0, depth, model.vocab()))?;
            // Recurrent states can only go back to where they were kept.
            one.batch.snapshot(s)?;
        }
        Ok(one)
    }

    /// A sequence reads these.
    fn read(&mut self, sequence: usize, tokens: &[u32]) -> Outcome {
        for piece in tokens.chunks(self.rows) {
            self.batch.step(&[(sequence, piece)])?;
        }
        Ok(())
    }

    /// The time of prompts of so many tokens, one after the other, and of so many steps of all sequences.
    pub fn steps(&mut self, [prompt, generate]: [usize; 2], source: &mut Source) -> Outcome<Duration> {
        let sequences = self.batch.sequences();
        (0..sequences).for_each(|s| self.batch.truncate(s, self.depth));
        let vocab = self.batch.model().vocab();
        let of = |s| source.of_sequence((s, sequences), self.depth, prompt + generate, vocab);
        let tokens: Vec<Vec<u32>> = (0..sequences).map(of).collect();
        let start = Instant::now();
        for (s, tokens) in tokens.iter().enumerate() {
            self.read(s, &tokens[..prompt])?;
        }
        for i in prompt..prompt + generate {
            let feed: Vec<(usize, &[u32])> = tokens.iter().map(|t| &t[i..=i]).enumerate().collect();
            self.batch.step(&feed)?;
        }
        Ok(start.elapsed())
    }
}
