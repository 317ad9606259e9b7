//! Generation: sampler, stop rules, streaming. An iterator of pieces of text over a session.
//!
//! A [`Generation`] feeds the prompt, then chooses and feeds one token at a time, and yields each as soon as it is sure
//! that its text belongs to the answer: text that may be the beginning of a stop string is held back until it is known to
//! be something else. It ends exactly at an end-of-generation token, a stop string, the wanted number of tokens, the
//! end of the context, or a cancellation; [`Generation::finish_reason`] says which. As an iterator it blocks;
//! [`Generation::poll`] does a slice of the work and never does.
//!
//! Text of a given form: `Grammar` says which, `GrammarEngine` compiles it, and its `Matcher` masks the tokens that may not come.
//!
//! Deliberately absent: kernels, terminals.

mod decoder;
mod logprobs;
mod options;
mod stats;
mod stop;
#[cfg(feature = "stream")]
mod stream;

#[doc(no_inline)]
pub use crate::cancel::CancelToken;
#[cfg(feature = "grammar")]
pub use crate::grammar::{Grammar, GrammarEngine, Matcher};
/// For the program and the tests.
#[doc(hidden)]
pub use crate::sampler::Rng;
pub use crate::sampler::{Sampler, SamplerOptions, Sampling};
pub use decoder::{Decoder, TextStream};
pub use logprobs::Logprobs;
pub use options::{FinishReason, GenerateOptions, Piece};
pub use stats::Stats;
#[cfg(feature = "stream")]
pub use stream::PieceStream;

use crate::{
    error::{Error, Result},
    session::{Budget, Status},
    tokenizer::Tokenizer,
};
use decoder::Held;
use std::time::{Duration, Instant};
pub(crate) use stop::StopFilter;

/// What a call of [`Generation::poll`] came to.
#[derive(Clone, Debug, PartialEq)]
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

/// Changes the logits `[V]` of the next token; the first argument are history, prompt and answer so far.
type LogitsHook = Box<dyn FnMut(&[u32], &mut [f32]) + Send>;

/// A running generation over a session that it borrows (`&mut Session`) or owns (`Session`: it can then be sent to another
/// thread or task); see the [module](self). After the end, the session holds prompt and answer without the last chosen
/// token, and can go on.
pub struct Generation<D: Decoder> {
    decoder: Held<D>,
    text: Option<Box<dyn TextStream>>,
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
    hook: Option<LogitsHook>,
    /// Logits that the hook changes and log-probabilities are made of.
    logits: Vec<f32>,
}

/// What the iterator does at a time on backends that compute on the host, before it looks for a cancellation.
const BLOCKING_SLICE: Budget = Budget { dispatches: usize::MAX, micros: 20_000 };

/// Starts a generation that appends `prompt` to what the session holds, which is lent (`&mut session`) or given. Without a
/// tokenizer the pieces carry ids only and nothing but their number ends it.
///
/// # Errors
/// As [`Generation::new`].
pub fn generate<D: Decoder>(
    session: D,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    options: GenerateOptions,
    cancel: CancelToken,
) -> Result<Generation<D>> {
    let text = tokenizer.map(|t| Box::new(t.stream()) as Box<dyn TextStream>);
    let eos = tokenizer.map_or(&[][..], Tokenizer::eos_ids);
    Generation::new(session, text, eos, prompt, options, cancel)
}

impl<D: Decoder> Generation<D> {
    /// Starts a generation that appends `prompt` to what `decoder` holds. Nothing runs before the first piece is asked for.
    /// `eos` are the tokens that end a text; without `text` the pieces carry ids only.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty prompt, an empty stop string, stop strings without a tokenizer, or a sampling option out
    /// of range; [`Error::ContextFull`] where the prompt does not fit.
    pub fn new(
        decoder: D,
        text: Option<Box<dyn TextStream>>,
        eos: &[u32],
        prompt: &[u32],
        options: GenerateOptions,
        cancel: CancelToken,
    ) -> Result<Self> {
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
        sampler.set_bias(&options.logit_bias);
        let mut tokens = options.history.clone();
        let prompt = tokens.len()..{
            tokens.extend_from_slice(prompt);
            tokens.len()
        };
        Ok(Generation {
            decoder: Held::new(decoder),
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
            hook: None,
            logits: vec![],
        })
    }

    /// Lets `hook` change the logits `[V]` before each token is chosen, minus infinity for one that must not come; its first
    /// argument are history, prompt and answer so far. The logits then come to the host for every token, which costs some
    /// speed on a GPU. To be called before the first piece is asked for.
    #[must_use]
    pub fn with_logits_hook(mut self, hook: impl FnMut(&[u32], &mut [f32]) + Send + 'static) -> Self {
        self.hook = Some(Box::new(hook));
        self
    }

    /// The generation as an asynchronous stream of its pieces.
    #[cfg(feature = "stream")]
    pub fn into_stream(self) -> PieceStream<D> {
        PieceStream::new(self)
    }

    /// Ends the generation; gives the session back, whose context holds what was fed.
    pub fn into_inner(self) -> D {
        self.decoder.release()
    }

    /// Whether the host chooses tokens, from logits that it sees.
    fn on_host(&self) -> bool {
        self.hook.is_some() || self.options.logprobs.is_some()
    }

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
            let (id, logprobs) = if self.on_host() { self.choose()? } else { (self.decoder.chosen()?, None) };
            self.count();
            self.accept(id, logprobs);
        }
        Ok(status)
    }

    /// Chooses a token from the logits that came.
    fn choose(&mut self) -> Result<(u32, Option<Logprobs>)> {
        self.logits.clear();
        self.logits.extend_from_slice(self.decoder.last_logits());
        if let Some(hook) = &mut self.hook {
            hook(&self.tokens, &mut self.logits);
        }
        let id = self.sampler.sample(&self.logits, &self.tokens)?;
        Ok((id, self.options.logprobs.map(|n| Logprobs::of(&self.logits, id, n))))
    }

    /// Queues the prompt, then steps on tokens that the host does not know yet; no more than can be wanted.
    fn ask(&mut self) -> Result<()> {
        if self.on_host() {
            let from = if self.started { self.tokens.len() - 1 } else { self.prompt.start };
            self.decoder.begin_logits(&self.tokens[from..])?;
            (self.started, self.asked) = (true, true);
            return Ok(());
        }
        if !self.started {
            let (options, forbidden, bias) = (*self.sampler.options(), self.sampler.forbidden(), self.sampler.bias());
            let sampling = Sampling { options, forbidden, bias, recent: &self.tokens, ..Sampling::default() };
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
    fn accept(&mut self, id: u32, logprobs: Option<Logprobs>) {
        if self.options.stop_tokens.contains(&id) {
            self.end(FinishReason::StopToken(id));
            return;
        }
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
        if let Some(stop) = self.held.push(Piece { id, text, logprobs }, mark, pending) {
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

impl<D: Decoder> Iterator for Generation<D> {
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
