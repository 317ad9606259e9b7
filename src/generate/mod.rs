//! Generation: sampler, stop rules, streaming. An iterator of pieces of text over a session.
//!
//! A [`Generation`] feeds the prompt, then chooses and feeds one token at a time, and yields each as soon as it is sure
//! that its text belongs to the answer: text that may be the beginning of a stop string is held back until it is known to
//! be something else. It ends exactly at an end-of-generation token, a stop string, the wanted number of tokens, the
//! end of the context, or a cancellation; [`Generation::finish_reason`] says which. As an iterator it blocks;
//! [`Generation::poll`] does a slice of the work and never does.
//!
//! Deliberately absent: kernels, terminals.

mod decoder;
mod options;
mod stats;
mod stop;

pub use crate::cancel::CancelToken;
pub use decoder::{Decoder, TextStream};
pub use options::{FinishReason, GenerateOptions, Piece};
pub use stats::Stats;

use crate::{
    error::{Error, Result},
    sampler::{Sampler, Sampling},
    session::{Budget, Session, Status},
    tokenizer::Tokenizer,
};
use std::time::{Duration, Instant};
use stop::StopFilter;

/// What a call of [`Generation::poll`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Polled {
    /// The next piece of the answer.
    Piece(Piece),
    /// A slice was done, and there is more to do at once.
    Pending,
    /// The device is at work; the host may do something else.
    Waiting,
    /// The answer has ended.
    Finished,
}

/// A running generation; see the [module](self). After the end, the session holds prompt and answer without the last
/// chosen token, and can go on.
pub struct Generation<'a, D: Decoder + ?Sized> {
    decoder: &'a mut D,
    text: Option<Box<dyn TextStream + 'a>>,
    eos: Vec<u32>,
    options: GenerateOptions,
    sampler: Sampler,
    cancel: CancelToken,
    /// History, prompt, answer: what the repetition penalty looks at.
    tokens: Vec<u32>,
    prompt: std::ops::Range<usize>,
    held: StopFilter,
    finish: Option<FinishReason>,
    stats: Stats,
    /// Whether the prompt was queued.
    started: bool,
    /// Whether a token was asked for that did not come yet.
    asked: bool,
    /// Time spent on that token.
    busy: Duration,
}

/// What the iterator does at a time on backends that compute on the host, before it looks for a cancellation.
const BLOCKING_SLICE: Budget = Budget { dispatches: usize::MAX, micros: 20_000 };

/// Starts a generation that appends `prompt` to what the session holds. Without a tokenizer the pieces carry ids only and
/// nothing but their number ends it.
///
/// # Errors
/// As [`generate_with`].
pub fn generate<'a>(
    session: &'a mut Session,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    options: GenerateOptions,
    cancel: CancelToken,
) -> Result<Generation<'a, Session>> {
    let text = tokenizer.map(|t| Box::new(t.stream()) as Box<dyn TextStream>);
    let eos = tokenizer.map_or(&[][..], Tokenizer::eos_ids);
    generate_with(session, text, eos, prompt, options, cancel)
}

/// Starts a generation that appends `prompt` to what `decoder` holds. Nothing runs before the first piece is asked for.
/// `eos` are the tokens that end a text; without `text` the pieces carry ids only.
///
/// # Errors
/// [`Error::Invalid`] for an empty prompt, an empty stop string, stop strings without a tokenizer, or a sampling option out
/// of range; [`Error::ContextFull`] where the prompt does not fit.
pub fn generate_with<'a, D: Decoder + ?Sized>(
    decoder: &'a mut D,
    text: Option<Box<dyn TextStream + 'a>>,
    eos: &[u32],
    prompt: &[u32],
    options: GenerateOptions,
    cancel: CancelToken,
) -> Result<Generation<'a, D>> {
    if prompt.is_empty() {
        return Err(Error::Invalid("the prompt is empty: a model needs at least one token to start from".into()));
    }
    if options.stop.iter().any(String::is_empty) {
        return Err(Error::Invalid("a stop string is empty".into()));
    }
    if !options.stop.is_empty() && text.is_none() {
        return Err(Error::Invalid("stop strings need a tokenizer, and this model has none".into()));
    }
    let (needed, capacity) = (decoder.position().saturating_add(prompt.len()), decoder.capacity());
    if needed > capacity {
        return Err(Error::ContextFull { needed, capacity });
    }
    let mut sampler = Sampler::new(options.sampler)?;
    if options.ignore_eos {
        sampler.forbid(eos);
    }
    let mut tokens = options.history.clone();
    let prompt = tokens.len()..{
        tokens.extend_from_slice(prompt);
        tokens.len()
    };
    Ok(Generation {
        decoder,
        text,
        eos: eos.to_vec(),
        held: StopFilter::new(options.stop.clone()),
        options,
        sampler,
        cancel,
        tokens,
        prompt,
        finish: None,
        stats: Stats::default(),
        started: false,
        asked: false,
        busy: Duration::ZERO,
    })
}

impl<D: Decoder + ?Sized> Generation<'_, D> {
    /// Why it ended; `None` while it runs.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish.filter(|_| self.held.is_empty())
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// History, prompt and every token chosen so far, an end-of-generation token not included. The session's context
    /// is a prefix of it.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens in the context, and how many it holds.
    pub fn context(&self) -> (usize, usize) {
        (self.decoder.position(), self.decoder.capacity())
    }

    /// Blocks until the device has done what [`Polled::Waiting`] stands for.
    ///
    /// # Errors
    /// As [`Generation::poll`].
    pub fn wait(&mut self) -> Result<()> {
        let start = Instant::now();
        let waited = self.decoder.wait();
        self.busy += start.elapsed();
        waited.map_err(|e| self.fail(e))
    }

    /// What a blocking caller polls with: where a device computes, steps are queued as a whole.
    pub(crate) fn blocking_slice(&self) -> Budget {
        if self.decoder.depth() > 1 { Budget::UNLIMITED } else { BLOCKING_SLICE }
    }

    /// Does at most one slice of the work and never blocks.
    ///
    /// # Errors
    /// What the session says; the generation is over then, but for pieces that were held back.
    pub fn poll(&mut self, budget: Budget) -> Result<Polled> {
        loop {
            if let Some(piece) = self.held.pop() {
                return Ok(Polled::Piece(piece));
            }
            if self.finish.is_some() {
                return Ok(Polled::Finished);
            }
            match self.advance(budget) {
                Ok(Status::Done) => {}
                Ok(Status::Waiting) => return Ok(Polled::Waiting),
                Ok(Status::Pending) => return Ok(Polled::Pending),
                Ok(Status::Idle) => return Err(self.fail(Error::Invalid("the session dropped the prompt".into()))),
                Err(e) => return Err(self.fail(e)),
            }
        }
    }

    /// An error ends the generation. What was held back comes after it: the caller may want it.
    fn fail(&mut self, e: Error) -> Error {
        self.finish = Some(FinishReason::Failed);
        self.decoder.cancel();
        self.release();
        e
    }

    /// A slice towards the next token. `Done`: it went into the filter, or the end has come.
    fn advance(&mut self, budget: Budget) -> Result<Status> {
        if self.stats.generated_tokens >= self.options.max_tokens {
            return Ok(self.end(FinishReason::MaxTokens));
        }
        if self.cancel.is_cancelled() {
            return Ok(self.end(FinishReason::Cancelled));
        }
        if !self.asked {
            if self.started && self.decoder.position() >= self.decoder.capacity() {
                return Ok(self.end(FinishReason::ContextFull));
            }
            self.busy = Duration::ZERO;
        }
        let start = Instant::now();
        if !self.asked {
            self.ask()?;
        }
        let status = self.decoder.poll(budget)?;
        self.busy += start.elapsed();
        if status == Status::Done {
            self.asked = false;
            let id = self.decoder.chosen()?;
            self.count();
            self.accept(id);
        }
        Ok(status)
    }

    /// Queues the prompt, then steps on tokens that the host does not know yet; no more than can be wanted.
    fn ask(&mut self) -> Result<()> {
        if !self.started {
            let (options, forbidden) = (*self.sampler.options(), self.sampler.forbidden());
            let sampling = Sampling { options, forbidden, recent: &self.tokens, ..Sampling::default() };
            self.decoder.set_sampler(&sampling)?;
            let random = self.sampler.next_random();
            self.decoder.begin_choice(&self.tokens[self.prompt.clone()], random)?;
            self.started = true;
        }
        while self.decoder.choices_queued() < self.decoder.depth()
            && self.stats.generated_tokens + self.decoder.choices_queued() < self.options.max_tokens
            && self.decoder.position_queued() < self.decoder.capacity()
        {
            self.decoder.begin_next(self.sampler.next_random())?;
        }
        self.asked = true;
        Ok(())
    }

    /// A token came.
    fn count(&mut self) {
        let s = &mut self.stats;
        if s.prompt_tokens == 0 {
            s.prompt_tokens = self.prompt.len();
            (s.prompt_time, s.time_to_first_token) = (self.busy, self.busy);
        } else {
            s.decode_steps += 1;
            s.generation_time += self.busy;
        }
    }

    /// Puts a token into the filter, or ends.
    fn accept(&mut self, id: u32) {
        if self.eos.contains(&id) {
            self.end(FinishReason::EndOfText(id));
            return;
        }
        self.stats.generated_tokens += 1;
        self.tokens.push(id);
        let (mut text, mut mark, mut pending) = (String::new(), String::new(), false);
        if let Some(stream) = &mut self.text {
            match stream.hidden(id) {
                Some(hidden) => {
                    // No character goes across a control token.
                    self.held.complete(&stream.flush());
                    mark = hidden;
                }
                None => text = stream.push(id),
            }
            pending = stream.is_pending();
        }
        if let Some(stop) = self.held.push(Piece { id, text }, mark, pending) {
            self.finish = Some(FinishReason::StopString(stop));
            self.decoder.cancel();
        }
    }

    fn end(&mut self, reason: FinishReason) -> Status {
        self.finish = Some(reason);
        // Steps that were queued beyond the end are forgotten.
        self.decoder.cancel();
        self.release();
        Status::Done
    }

    /// Nothing follows: what was held back is neither a stop string nor the beginning of a character.
    fn release(&mut self) {
        if let Some(stream) = &mut self.text {
            self.held.complete(&stream.flush());
        }
        self.held.release();
    }
}

impl<D: Decoder + ?Sized> Iterator for Generation<'_, D> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        loop {
            match self.poll(self.blocking_slice()) {
                Ok(Polled::Piece(piece)) => return Some(Ok(piece)),
                Ok(Polled::Finished) => return None,
                Ok(Polled::Pending) => {}
                Ok(Polled::Waiting) => {
                    if let Err(e) = self.wait() {
                        return Some(Err(e));
                    }
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

impl<D: Decoder + ?Sized> Drop for Generation<'_, D> {
    /// What is queued beyond what the caller took is forgotten.
    fn drop(&mut self) {
        if self.finish.is_none() {
            self.decoder.cancel();
        }
    }
}
