//! Choosing a token here, from logits, where the runner cannot: penalties by number of occurrences, and log-probabilities.

use super::job::Job;
use crate::{
    backend::runner::Chosen,
    sampler::{Chooser, Rules},
};
use std::collections::HashMap;

/// The changing part of a job's rules.
#[derive(Debug, Default)]
pub struct Counts {
    /// How often each token occurs in the answer.
    counts: HashMap<u32, u32>,
    /// Bias and penalties together.
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
        *self.counts.entry(id).or_default() += 1;
        self.bias.clear();
        self.bias.extend_from_slice(&job.bias);
        for (id, n) in &self.counts {
            let penalty = -job.presence_penalty - job.frequency_penalty * *n as f32;
            match self.bias.iter_mut().find(|b| b.0 == *id) {
                Some(b) => b.1 += penalty,
                None => self.bias.push((*id, penalty)),
            }
        }
    }

    /// A token of logits, by the job's rules.
    pub fn choose(
        &self,
        chooser: &mut Chooser,
        logits: &[f32],
        (job, forbidden): (&Job, &[u32]),
        mask: Option<&[u32]>,
        random: u64,
    ) -> Chosen {
        if logits.is_empty() || logits.iter().map(|l| usize::from(!l.is_finite())).sum::<usize>() > 0 {
            return Chosen::NotFinite;
        }
        let rules = Rules { options: &job.sampler, forbidden, bias: &self.bias, mask, recent: &self.recent };
        chooser.choose(logits, &rules, random).map_or(Chosen::NothingAllowed, Chosen::Token)
    }
}
