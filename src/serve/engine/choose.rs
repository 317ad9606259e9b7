//! Choosing a token here, from logits, where the runner cannot: penalties by number of occurrences, and log-probabilities.

use super::job::Job;
use crate::{
    backend::runner::Chosen,
    sampler::{self, Chooser, Rules, SamplerOptions},
};
use std::collections::HashMap;

/// The changing part of a job's rules.
#[derive(Debug, Default)]
pub struct Counts {
    /// How often each token occurs in the answer, and where it stands in `bias`.
    counts: HashMap<u32, (u32, usize)>,
    /// Bias and penalties together: those of the job first, then tokens in the order in which they came.
    bias: Vec<(u32, f32)>,
    /// Prompt and answer, for the repetition penalty.
    recent: Vec<u32>,
}

impl Counts {
    /// Of a job that has generated nothing.
    pub fn new(job: &Job) -> Self {
        let window = if job.sampler.repeat_penalty == 1.0 { 0 } else { job.sampler.repeat_last_n };
        let first = job.prompt.len() - window.min(job.prompt.len());
        Counts { counts: HashMap::new(), bias: job.bias.clone(), recent: job.prompt[first..].to_vec() }
    }

    /// Takes in a token of the answer.
    pub fn push(&mut self, id: u32, job: &Job) {
        if job.sampler.repeat_penalty != 1.0 {
            self.recent.push(id);
        }
        if job.presence_penalty == 0.0 && job.frequency_penalty == 0.0 {
            return;
        }
        let bias = &mut self.bias;
        let (count, at) = self.counts.entry(id).or_insert_with(|| {
            let known = bias.iter().position(|b| b.0 == id);
            let at = known.unwrap_or_else(|| {
                bias.push((id, 0.0));
                bias.len() - 1
            });
            (0, at)
        });
        *count += 1;
        let own = job.bias.get(*at).map_or(0.0, |b| b.1);
        bias[*at].1 = own - job.presence_penalty - job.frequency_penalty * *count as f32;
    }

    /// A token of logits, by the job's rules.
    pub fn choose(
        &self,
        chooser: &mut Chooser,
        logits: &[f32],
        (options, forbidden): (&SamplerOptions, &[u32]),
        mask: Option<&[u32]>,
        random: u64,
    ) -> Chosen {
        if !sampler::all_finite(logits) {
            return Chosen::NotFinite;
        }
        let rules = Rules { options, forbidden, bias: &self.bias, mask, recent: &self.recent };
        chooser.choose(logits, &rules, random).map_or(Chosen::NothingAllowed, Chosen::Token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// OpenAI's formula: logit + bias - count · frequency - (count > 0) · presence.
    #[test]
    fn penalties_are_those_of_the_formula() {
        let (events, _gone) = tokio::sync::mpsc::unbounded_channel();
        let job = Job {
            index: 0,
            arrived: std::time::Instant::now(),
            client: 0,
            prompt: [1u32, 2].into(),
            max_tokens: 9,
            sampler: SamplerOptions::default(),
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            bias: vec![(7, 3.0), (8, -1.0)],
            stop: vec![],
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: false,
            constraint: None,
            pooled: None,
            events,
        };
        let mut counts = Counts::new(&job);
        // The prompt does not count; 7 has a bias of its own, 4 and 9 have none.
        for id in [4, 7, 4, 9, 4, 7] {
            counts.push(id, &job);
        }
        let mut bias = counts.bias.clone();
        bias.sort_by_key(|b| b.0);
        assert_eq!(bias, [(4, -0.5 - 0.75), (7, 3.0 - 0.5 - 0.5), (8, -1.0), (9, -0.5 - 0.25)]);
    }
}
