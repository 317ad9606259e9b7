//! The tokens that `moeray bench` feeds.

use super::failure::{Failure, Outcome};
use crate::{sampler::Rng, session::Model};

/// Where they come from.
pub enum Source {
    /// Anywhere in the vocabulary. A router spreads them over more experts than it does a text's.
    Random(Rng),
    /// This text, again and again.
    Text(Vec<u32>),
}

impl Source {
    /// The tokens of `text`, or random ones, the same for each source.
    pub fn new(text: Option<&str>, model: &Model) -> Outcome<Self> {
        let Some(text) = text else { return Ok(Source::Random(Rng::new(1))) };
        if text.trim().is_empty() {
            return Err(Failure::new("--text: there is no text in the file"));
        }
        Ok(Source::Text(model.require_tokenizer()?.encode(text, Default::default())?))
    }

    /// `n` tokens of the first of so many sequences, behind the first `from`.
    pub fn tokens(&mut self, from: usize, n: usize, vocab: usize) -> Vec<u32> {
        self.of_sequence((0, 1), from, n, vocab)
    }

    /// `n` tokens of a sequence (its number, of how many), behind its first `from`. Sequences begin at places of their own in a
    /// text, evenly apart.
    pub fn of_sequence(&mut self, (i, all): (usize, usize), from: usize, n: usize, vocab: usize) -> Vec<u32> {
        match self {
            Source::Random(random) => (0..n).map(|_| (random.next_u64() % vocab.max(1) as u64) as u32).collect(),
            Source::Text(ids) => ids.iter().copied().cycle().skip(i * ids.len() / all + from).take(n).collect(),
        }
    }
}
