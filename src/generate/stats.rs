//! How long a generation took.

use std::time::Duration;

/// Counts and times of a generation so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time to feed them.
    pub prompt_time: Duration,
    /// From the first request to the first sampled token.
    pub time_to_first_token: Duration,
    /// Tokens sampled, one that ended the text not included.
    pub generated_tokens: usize,
    /// Tokens fed back: the steps that `generation_time` measures.
    pub decode_steps: usize,
    /// Time of these steps, sampling included, the caller's own time not.
    pub generation_time: Duration,
}

impl Stats {
    /// Prompt tokens a second; `None` before there are any.
    pub fn prompt_speed(&self) -> Option<f64> {
        rate(self.prompt_tokens, self.prompt_time)
    }

    /// Generated tokens a second, the first (which the prompt's step gave) not counted; `None` below two tokens.
    pub fn generation_speed(&self) -> Option<f64> {
        rate(self.decode_steps, self.generation_time)
    }
}

fn rate(n: usize, t: Duration) -> Option<f64> {
    (n > 0 && !t.is_zero()).then(|| n as f64 / t.as_secs_f64())
}
