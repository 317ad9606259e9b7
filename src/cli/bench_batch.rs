//! `moeray bench --sequences`: generations side by side.

use super::{args::ContextArgs, failure::Outcome, load};
use crate::{
    batch::{Batch, RunnerOptions},
    sampler::Rng,
    session::Model,
};
use std::time::{Duration, Instant};

/// Random tokens: they spread over the experts as text does, and need no tokenizer.
pub fn random_ids(random: &mut Rng, n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|_| (random.next_u64() % vocab.max(1) as u64) as u32).collect()
}

/// Sequences of one length that get a token each in every step.
pub struct SideBySide {
    batch: Batch,
    depth: usize,
}

impl SideBySide {
    /// Fills the contexts of `sequences` sequences with `depth` random tokens each.
    pub fn new(
        model: &Model,
        sequences: usize,
        depth: usize,
        generate: usize,
        args: &ContextArgs,
        random: &mut Rng,
    ) -> Outcome<Self> {
        let rows = sequences.max((args.ubatch_size as usize).min(depth));
        let options = RunnerOptions { ctx: depth + generate, sequences, ubatch: rows, kv: load::kv(args) };
        let mut batch = Batch::new(model, options)?;
        for s in 0..sequences {
            for piece in random_ids(random, depth, model.vocab()).chunks(rows) {
                batch.step(&[(s, piece)])?;
            }
            // Recurrent states can only go back to where they were kept.
            batch.snapshot(s)?;
        }
        Ok(SideBySide { batch, depth })
    }

    /// The time of `n` steps.
    pub fn steps(&mut self, n: usize, random: &mut Rng) -> Outcome<Duration> {
        let sequences = self.batch.sequences();
        (0..sequences).for_each(|s| self.batch.truncate(s, self.depth));
        let tokens = random_ids(random, n * sequences, self.batch.model().vocab());
        let start = Instant::now();
        for step in tokens.chunks(sequences) {
            let feed: Vec<(usize, &[u32])> = step.chunks(1).enumerate().collect();
            self.batch.step(&feed)?;
        }
        Ok(start.elapsed())
    }
}
