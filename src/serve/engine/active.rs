//! A job that has a sequence: what it has come to.

use super::{
    choose::Counts,
    job::{Event, Finished, Job, Timings},
};
use crate::{
    backend::runner::Chosen,
    error::{Error, Result},
    generate::{FinishReason, Logprobs, Piece, StopFilter},
    sampler::{Chooser, Rng, Sampling},
    serve::metrics::Metrics,
    session::Pooled,
    tokenizer::{DecodeStream, Tokenizer},
};
use std::time::Instant;

/// Rows of a step from which logits of a prompt are wanted, of one job: they come to the host.
const LOGITS_AT_ONCE: usize = 64;

/// See the [module](self).
#[derive(Debug)]
pub struct Active {
    pub job: Job,
    /// Tokens of the prompt in the sequence.
    pub fed: usize,
    /// How many of them were there before.
    pub cached: usize,
    /// The token that was chosen last and is fed next.
    pub last: u32,
    pub generated: usize,
    /// Whether tokens are chosen here, from logits.
    pub on_host: bool,
    text: Stream,
    held: StopFilter,
    counts: Counts,
    random: Rng,
    /// Tokens that are never chosen.
    forbidden: Vec<u32>,
    /// Tokens that end the answer.
    ends: Vec<u32>,
    prompt_logprobs: Vec<Option<Logprobs>>,
    started: Instant,
    first: Option<Instant>,
    latest: Instant,
}

struct Stream(DecodeStream);

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DecodeStream")
    }
}

impl Active {
    /// A job in a sequence that holds `cached` tokens of its prompt.
    pub fn new(job: Job, tokenizer: &Tokenizer, cached: usize) -> Self {
        let now = Instant::now();
        let penalties = job.presence_penalty != 0.0 || job.frequency_penalty != 0.0;
        let eos = tokenizer.eos_ids();
        let (forbidden, ends) = if job.ignore_eos { (eos.to_vec(), vec![]) } else { (vec![], eos.to_vec()) };
        let prompt_logprobs = if job.prompt_logprobs { vec![None] } else { vec![] };
        Active {
            fed: cached,
            cached,
            last: 0,
            generated: 0,
            on_host: penalties || job.logprobs.is_some(),
            text: Stream(tokenizer.stream()),
            held: StopFilter::new(job.stop.clone()),
            counts: Counts::new(&job),
            random: Rng::new(job.sampler.seed),
            forbidden,
            ends,
            prompt_logprobs,
            started: now,
            first: None,
            latest: now,
            job,
        }
    }

    /// How the runner is to choose tokens of this job.
    pub fn sampling(&self) -> Sampling<'_> {
        Sampling {
            options: self.job.sampler,
            forbidden: &self.forbidden,
            bias: &self.job.bias,
            recent: &self.job.prompt,
            masked: self.job.constraint.is_some(),
            on_host: false,
        }
    }

    /// Tokens of the prompt that are to be read.
    pub fn unread(&self) -> usize {
        self.job.prompt.len() - self.fed
    }

    /// The same, no more than this job should have in one step.
    pub fn unread_at_once(&self) -> usize {
        if self.job.prompt_logprobs { self.unread().min(LOGITS_AT_ONCE) } else { self.unread() }
    }

    /// Tokens that are not in the sequence yet where there are any, and how many were not there at the beginning.
    pub fn prompt(&self) -> Option<(usize, usize)> {
        let (left, whole) = (self.unread(), self.job.prompt.len() - self.cached);
        (left > 0).then_some((left, whole))
    }

    /// The random word of the next choice.
    pub fn next_random(&mut self) -> u64 {
        if self.job.sampler.temperature == 0.0 { 0 } else { self.random.next_u64() }
    }

    /// The tokens that a grammar allows next.
    ///
    /// # Errors
    /// What the grammar says.
    pub fn allowed(&mut self) -> Result<Option<&[u32]>> {
        match &mut self.job.constraint {
            Some(c) => c.allowed(),
            None => Ok(None),
        }
    }

    /// Takes the hidden states that the last rows of the prompt left.
    pub fn take_hidden<'a>(&mut self, rows: impl Iterator<Item = &'a [f32]>) {
        if let Some(pooled) = &mut self.job.pooled {
            rows.for_each(|row| pooled.push(row));
        }
    }

    /// Takes the logits after a token of the prompt, where they are asked for.
    pub fn take_prompt_logits(&mut self, position: usize, logits: &[f32]) {
        if let Some(next) = self.job.prompt.get(position + 1) {
            self.prompt_logprobs.push(Some(Logprobs::of(logits, *next, self.job.logprobs.unwrap_or(0))));
        }
    }

    /// Chooses from logits.
    ///
    /// # Errors
    /// Where no token can be chosen.
    pub fn choose(&mut self, chooser: &mut Chooser, logits: Option<&[f32]>) -> Result<(u32, Option<Logprobs>)> {
        let logits = logits.ok_or_else(|| Error::Model("the runner gave no logits".into()))?;
        let random = self.next_random();
        let mask = match &mut self.job.constraint {
            Some(c) => c.allowed()?,
            None => None,
        };
        let chosen = self.counts.choose(chooser, logits, (&self.job.sampler, &self.forbidden[..]), mask, random);
        let id = chosen.token()?;
        Ok((id, self.job.logprobs.map(|n| Logprobs::of(logits, id, n))))
    }

    /// A token that the runner chose.
    ///
    /// # Errors
    /// Where none could be chosen.
    pub fn chosen(&self, chosen: Option<&Chosen>) -> Result<u32> {
        chosen.copied().ok_or_else(|| Error::Model("the runner gave no choice".into()))?.token()
    }

    /// Takes in a chosen token, the sequence holding `held` tokens of `ctx`. Gives why it is the last, where it is.
    ///
    /// # Errors
    /// What a grammar says.
    pub fn take(
        &mut self,
        (id, logprobs): (u32, Option<Logprobs>),
        (held, ctx): (usize, usize),
        metrics: &Metrics,
    ) -> Result<Option<FinishReason>> {
        self.note_time(metrics);
        if self.job.max_tokens == 0 {
            return Ok(Some(FinishReason::MaxTokens));
        }
        if self.ends.contains(&id) {
            return Ok(Some(FinishReason::EndOfText(id)));
        }
        self.generated += 1;
        metrics.generated(1);
        self.last = id;
        self.counts.push(id, &self.job);
        if let Some(stop) = self.put(id, logprobs) {
            return Ok(Some(FinishReason::StopString(stop)));
        }
        if let Some(c) = &mut self.job.constraint {
            c.accept(id)?;
            if c.is_complete() {
                return Ok(Some(FinishReason::EndOfText(id)));
            }
        }
        let full = (held >= ctx).then_some(FinishReason::ContextFull);
        let enough = (self.generated >= self.job.max_tokens).then_some(FinishReason::MaxTokens);
        Ok(enough.or(full))
    }

    fn note_time(&mut self, metrics: &Metrics) {
        let now = Instant::now();
        if self.first.is_none() {
            self.first = Some(now);
            metrics.first_token.observe((now - self.job.arrived).as_secs_f64());
            if self.job.prompt_logprobs {
                self.job.send(Event::Prompt(std::mem::take(&mut self.prompt_logprobs)));
            }
        } else {
            metrics.inter_token.observe((now - self.latest).as_secs_f64());
        }
        self.latest = now;
    }

    /// Puts a token's text into the filter of stop strings, and sends what is sure.
    fn put(&mut self, id: u32, logprobs: Option<Logprobs>) -> Option<usize> {
        let (mut text, mut mark) = (String::new(), String::new());
        let stream = &mut self.text.0;
        match stream.hidden(id) {
            Some(hidden) => {
                // No character goes across a control token.
                self.held.complete(&stream.flush());
                mark = hidden;
            }
            None => text = stream.push(id),
        }
        let pending = stream.is_pending();
        let stop = self.held.push(Piece { id, text, logprobs }, mark, pending);
        self.send_ready();
        stop
    }

    fn send_ready(&mut self) {
        while let Some(piece) = self.held.pop() {
            self.job.send(Event::Piece(piece));
        }
    }

    /// The end: sends what was held back, and how it ended.
    pub fn finish(mut self, reason: FinishReason, metrics: &Metrics) {
        if !matches!(reason, FinishReason::StopString(_)) {
            self.held.complete(&self.text.0.flush());
            self.held.release();
        }
        self.send_ready();
        let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
        let first = self.first.unwrap_or(self.latest);
        let timings = Timings {
            queued: seconds(self.job.arrived, self.started),
            prompt: seconds(self.started, first),
            generation: seconds(first, self.latest),
        };
        metrics.finished(reason, self.job.arrived.elapsed().as_secs_f64());
        let (generated, cached) = (self.generated, self.cached);
        self.job.send(Event::Finished(Finished { reason, generated, cached, timings }));
    }

    /// The end of a job that asked for a vector.
    pub fn finish_embedding(mut self, metrics: &Metrics) {
        match self.job.pooled.take().map(Pooled::finish) {
            Some(Ok(vector)) => {
                metrics.embedded(self.job.arrived.elapsed().as_secs_f64());
                self.job.send(Event::Embedding(vector));
            }
            Some(Err(e)) => self.fail(e, metrics),
            None => self.fail(Error::Model("no vector was asked for".into()), metrics),
        }
    }

    /// It cannot go on.
    pub fn fail(self, e: Error, metrics: &Metrics) {
        metrics.finished(FinishReason::Failed, self.job.arrived.elapsed().as_secs_f64());
        self.job.send(Event::Failed(e));
    }
}
