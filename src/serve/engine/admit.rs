//! Jobs come to sequences, and texts go from sequences to the prefix cache and back.

use super::{
    active::Active,
    job::{Event, Job},
    placing::{Place, Placing, WORTH, place},
    slot::Slot,
    worker::Worker,
};
use crate::{
    backend::runner::PAGE,
    error::{Error, Result},
    generate::FinishReason,
    serve::prefix::{State, common},
};
use std::time::Instant;

/// Where the beginning of a job's prompt is.
enum Source {
    /// In a sequence, itself as a rule: so many tokens.
    Sequence(usize, usize),
    /// In the prefix cache: so many tokens.
    Store(usize),
}

impl Worker {
    /// Gives sequences to waiting jobs: to those first whose clients have the fewest, in the order in which they came.
    pub(super) fn admit(&mut self) {
        self.release_pins();
        let mut held = vec![];
        while self.slots.iter().any(|s| s.active.is_none()) {
            held.resize(self.waiting.len(), false);
            let running = |client: u64| {
                self.slots.iter().filter(|s| s.active.as_ref().is_some_and(|a| a.job.client == client)).count()
            };
            let embeds = |job: &Job| job.pooled.is_some();
            let embedding = self.slots.iter().filter(|s| s.active.as_ref().is_some_and(|a| embeds(&a.job))).count();
            // Vectors, of which people ask for thousands at a time, leave a sequence to those who generate.
            let may_embed = embedding == 0 || embedding + 1 < self.slots.len();
            let next = (0..self.waiting.len())
                .filter(|i| !held[*i] && (may_embed || !embeds(&self.waiting[*i])))
                .min_by_key(|i| (running(self.waiting[*i].client), embeds(&self.waiting[*i])));
            let Some(next) = next else { return };
            let places: Vec<Place<'_>> = self.slots.iter().map(Slot::place).collect();
            let job = &self.waiting[next];
            // What is read anew in any case takes the place that will be missed least.
            let prompt = if job.reads_all() { [].into() } else { job.prompt.clone() };
            let resume = |s: usize, n: usize| self.runner.resume_at(s, n).max(self.slots[s].checkpoint_before(n));
            let stored = self.store.resume_at(&prompt, prompt.len().saturating_sub(1));
            let (sequence, source) = match place(&places, &prompt, stored, resume) {
                Placing::Wait => {
                    held[next] = true;
                    continue;
                }
                Placing::Take { sequence, from, keep } => {
                    let keep = if job.reads_all() { 0 } else { keep };
                    (sequence, Source::Sequence(from, keep))
                }
                Placing::Fetch { sequence, keep } => (sequence, Source::Store(keep)),
            };
            let Some(job) = self.waiting.remove(next) else { return };
            held.remove(next);
            self.start(job, sequence, &source);
        }
    }

    /// Nodes of the prefix cache may go once the jobs that began with them have ended.
    fn release_pins(&mut self) {
        for slot in self.slots.iter_mut().filter(|s| s.active.is_none()) {
            slot.pin.take().into_iter().for_each(|pin| self.store.unpin(pin));
        }
    }

    /// Gives a job its sequence.
    fn start(&mut self, job: Job, sequence: usize, source: &Source) {
        self.clock += 1;
        // A copy that fails costs time, nothing else.
        let keep = self.bring(&job.prompt, sequence, source).unwrap_or_else(|e| {
            tracing::warn!("a prefix could not be used again: {e}");
            self.slots[sequence].replace(vec![], vec![]);
            0
        });
        self.runner.truncate(sequence, keep);
        self.slots[sequence].used = self.clock;
        let metrics = &self.shared.metrics;
        metrics.queue.observe(job.arrived.elapsed().as_secs_f64());
        let Some(tokenizer) = &self.tokenizer else {
            metrics.finished(FinishReason::Failed, 0.0);
            return job.send(Event::Failed(Error::Tokenizer("this model has no tokenizer".into())));
        };
        if self.recurrent {
            self.slots[sequence].set_borders(&job.prompt, |id| tokenizer.is_special(id));
        }
        let active = Active::new(job, tokenizer, keep);
        metrics.prompt(active.job.prompt.len(), keep);
        active.job.send(Event::Started { cached: keep });
        let set = self.runner.set_sampler(sequence, &active.sampling());
        match set {
            Ok(_) => self.slots[sequence].active = Some(active),
            Err(e) => active.fail(e, metrics),
        }
    }

    /// Brings a sequence to hold the beginning of a prompt; gives its number of tokens.
    fn bring(&mut self, prompt: &[u32], sequence: usize, source: &Source) -> Result<usize> {
        match *source {
            Source::Sequence(from, keep) => {
                if from != sequence || self.slots[sequence].text.len() - keep >= WORTH {
                    self.park(sequence);
                }
                self.put(sequence, from, keep)?;
                let text = self.slots[from].text[..keep].to_vec();
                let checkpoints = self.slots[from].checkpoints(keep);
                self.slots[from].used = self.clock;
                self.slots[sequence].replace(text, checkpoints);
                Ok(keep)
            }
            Source::Store(keep) => {
                // Pages that the sequence has already are not copied.
                let stay = common(&self.slots[sequence].text, prompt).min(keep) / PAGE;
                let Some(taken) = self.store.take(prompt, keep, stay) else {
                    return Err(Error::Invalid("the prefix cache has lost a text".into()));
                };
                self.slots[sequence].pin = Some(taken.pin);
                self.park(sequence);
                let begin = Instant::now();
                let states = taken.states.last().map(|s| &s.1[..]);
                self.runner.write_pages(sequence, stay, &taken.pages, keep, states)?;
                self.shared.metrics.copied_from_store(begin.elapsed().as_secs_f64());
                self.slots[sequence].replace(prompt[..keep].to_vec(), taken.states);
                Ok(keep)
            }
        }
    }

    /// Brings a sequence to hold the first `keep` tokens of another one, or of its own.
    fn put(&mut self, sequence: usize, from: usize, keep: usize) -> Result<()> {
        let known = self.runner.resume_at(from, keep) == keep;
        let states = if known { None } else { self.slots[from].checkpoint(keep) };
        if from != sequence {
            let begin = Instant::now();
            match states {
                None => self.runner.fork(from, sequence, keep)?,
                Some(states) => self.runner.fork_with_states(from, sequence, keep, &states)?,
            }
            self.shared.metrics.copied_from_sequence(begin.elapsed().as_secs_f64());
            return Ok(());
        }
        match states {
            None => Ok(()),
            Some(states) => self.runner.put_states(sequence, keep, &states),
        }
    }

    /// Takes a sequence's text into the prefix cache before another one takes its place.
    pub(super) fn park(&mut self, sequence: usize) {
        // Only whole pages can be read, and the last one of a context may be none.
        let n = self.slots[sequence].text.len().min(self.options.runner.ctx / PAGE * PAGE);
        if self.slots[sequence].used == 0
            || n < WORTH
            || self.store.shape().budget == 0
            || self.is_elsewhere(sequence, n)
        {
            return;
        }
        let states = self.states_of(sequence, n);
        let (slots, runner) = (&self.slots, &mut self.runner);
        let begin = Instant::now();
        let added = self.store.insert(&slots[sequence].text[..n], &states, |pages| runner.read_pages(sequence, pages));
        match added {
            Ok(0) => {}
            Ok(_) => self.shared.metrics.copied_to_store(begin.elapsed().as_secs_f64()),
            Err(e) => tracing::warn!("a text could not be kept: {e}"),
        }
        self.shared.metrics.store(self.store.bytes(), self.store.evicted());
    }

    /// Whether another sequence can go on from all but a few of the first `n` tokens of this one.
    fn is_elsewhere(&self, sequence: usize, n: usize) -> bool {
        let text = &self.slots[sequence].text[..n];
        let others = (0..self.slots.len()).filter(|s| *s != sequence && self.slots[*s].used > 0);
        others.map(|s| (s, common(&self.slots[s].text, text))).any(|(s, same)| {
            let at = self.runner.resume_at(s, same).max(self.slots[s].checkpoint_before(same));
            at + WORTH > n
        })
    }

    /// Recurrent states behind some of the first `n` tokens of a sequence.
    fn states_of(&mut self, sequence: usize, n: usize) -> Vec<State> {
        if !self.recurrent {
            return vec![];
        }
        let mut states = self.slots[sequence].checkpoints(n);
        let last = states.last().map_or(0, |s| s.0);
        if self.slots[sequence].text.len() == n && last < n {
            match self.runner.copy_of_states(sequence) {
                Ok(live) => states.extend(live.map(|live| (n, live.into()))),
                Err(e) => tracing::warn!("recurrent states could not be kept: {e}"),
            }
        }
        states
    }
}
