//! `moeray bench --sequences`: generations side by side.

use super::{args::ContextArgs, bench_tokens::Source, failure::Outcome, load};
use crate::session::{Batch, Model, RunnerOptions};
use std::time::{Duration, Instant};

/// Sequences of one length that get a token each in every step.
pub struct SideBySide {
    batch: Batch,
    depth: usize,
}

impl SideBySide {
    /// Fills the contexts of `sequences` sequences with `depth` tokens each.
    pub fn new(
        model: &Model,
        sequences: usize,
        depth: usize,
        generate: usize,
        args: &ContextArgs,
        source: &mut Source,
    ) -> Outcome<Self> {
        let rows = sequences.max((args.ubatch_size as usize).min(depth));
        let options = RunnerOptions { ctx: depth + generate, sequences, ubatch: rows, kv: load::kv(args) };
        let mut batch = Batch::new(model, options)?;
        for s in 0..sequences {
            for piece in source.of_sequence((s, sequences), 0, depth, model.vocab()).chunks(rows) {
                batch.step(&[(s, piece)])?;
            }
            // Recurrent states can only go back to where they were kept.
            batch.snapshot(s)?;
        }
        Ok(SideBySide { batch, depth })
    }

    /// The time of `n` steps.
    pub fn steps(&mut self, n: usize, source: &mut Source) -> Outcome<Duration> {
        let sequences = self.batch.sequences();
        (0..sequences).for_each(|s| self.batch.truncate(s, self.depth));
        let vocab = self.batch.model().vocab();
        let of = |s| source.of_sequence((s, sequences), self.depth, n, vocab);
        let tokens: Vec<Vec<u32>> = (0..sequences).map(of).collect();
        let start = Instant::now();
        for i in 0..n {
            let feed: Vec<(usize, &[u32])> = tokens.iter().map(|t| &t[i..=i]).enumerate().collect();
            self.batch.step(&feed)?;
        }
        Ok(start.elapsed())
    }
}
