//! Generation: sampler, stop rules, streaming. An iterator of pieces of text over a session.
//!
//! A [`Generation`] feeds the prompt, then samples and feeds one token at a time, and yields each as soon as it is sure
//! that its text belongs to the answer: text that may be the beginning of a stop string is held back until it is known to
//! be something else. It ends exactly at an end-of-generation token, a stop string, the wanted number of tokens, the
//! end of the context, or a cancellation; [`Generation::finish_reason`] says which.
//!
//! Deliberately absent: kernels, terminals.

use crate::{
    error::{Error, Result},
    sampler::{Sampler, SamplerOptions},
    session::{Sampling, Session},
    tokenizer::{DecodeStream, Tokenizer},
};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// A flag that stops a generation from another thread or a signal handler. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everything that holds this token to stop at the next step boundary.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error where somebody asked.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Makes the token usable for the next generation.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// What generation needs of a model's state: a session, or a stand-in for tests.
pub trait Decoder {
    /// Appends tokens to the context and gives the logits `[V]` after the last. Looks at `cancel` between chunks.
    ///
    /// # Errors
    /// [`Error::Cancelled`], and what the session says.
    fn prefill(&mut self, ids: &[u32], cancel: &CancelToken) -> Result<&[f32]>;

    /// Appends one token and gives the logits `[V]` after it.
    ///
    /// # Errors
    /// What the session says.
    fn decode(&mut self, id: u32) -> Result<&[f32]>;

    /// Tokens in the context so far.
    fn position(&self) -> usize;

    /// Tokens that the context holds at most.
    fn capacity(&self) -> usize;

    /// The session, where the tokens may be chosen by its backend.
    fn session(&mut self) -> Option<&mut Session> {
        None
    }
}

/// Incremental detokenisation: what generation needs of a tokenizer.
pub trait TextStream: Send {
    /// The text that became complete with this token; empty in the middle of a UTF-8 sequence.
    fn push(&mut self, id: u32) -> String;
}

impl Decoder for Session {
    fn prefill(&mut self, ids: &[u32], cancel: &CancelToken) -> Result<&[f32]> {
        let (needed, capacity) = (Session::position(self).saturating_add(ids.len()), self.ctx());
        if needed > capacity {
            return Err(Error::ContextFull { needed, capacity });
        }
        let chunk = self.chunk().max(1);
        let (before, last) = ids.split_at(ids.len().saturating_sub(1) / chunk * chunk);
        for part in before.chunks(chunk) {
            cancel.check()?;
            Session::prefill(self, part)?;
        }
        cancel.check()?;
        Session::prefill(self, last)
    }

    fn decode(&mut self, id: u32) -> Result<&[f32]> {
        Session::decode(self, id)
    }

    fn position(&self) -> usize {
        Session::position(self)
    }

    fn capacity(&self) -> usize {
        self.ctx()
    }

    fn session(&mut self) -> Option<&mut Session> {
        Some(self)
    }
}

impl TextStream for DecodeStream {
    fn push(&mut self, id: u32) -> String {
        DecodeStream::push(self, id)
    }
}

/// What to generate and when to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens.
    pub max_tokens: usize,
    /// Texts that end the generation and are not part of it.
    pub stop: Vec<String>,
    /// Never choose an end-of-generation token.
    pub ignore_eos: bool,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// Tokens that are already in the context, for the repetition penalty.
    pub history: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 256,
            stop: Vec::new(),
            ignore_eos: false,
            sampler: SamplerOptions::default(),
            history: Vec::new(),
        }
    }
}

/// One token of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The token.
    pub id: u32,
    /// Its text: empty without a tokenizer, and for a token in the middle of a UTF-8 sequence. The texts of all pieces,
    /// joined, are the answer, without an unfinished UTF-8 sequence at its end.
    pub text: String,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose this end-of-generation token.
    EndOfText(u32),
    /// The stop string with this index appeared.
    StopString(usize),
    /// As many tokens as were asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The caller cancelled.
    Cancelled,
    /// An error, which the iterator yielded.
    Failed,
}

impl FinishReason {
    /// One word: `eos`, `stop`, `length`, `context`, `cancelled`, `error`.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::EndOfText(_) => "eos",
            FinishReason::StopString(_) => "stop",
            FinishReason::MaxTokens => "length",
            FinishReason::ContextFull => "context",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Failed => "error",
        }
    }
}

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

/// A running generation; see the [module](self). After the end, the session holds prompt and answer without the last
/// sampled token, and can go on.
pub struct Generation<'a, D: Decoder + ?Sized> {
    decoder: &'a mut D,
    text: Option<Box<dyn TextStream + 'a>>,
    eos: &'a [u32],
    options: GenerateOptions,
    sampler: Sampler,
    cancel: CancelToken,
    /// History, prompt, answer: what the repetition penalty looks at.
    tokens: Vec<u32>,
    prompt: std::ops::Range<usize>,
    held: StopFilter,
    finish: Option<FinishReason>,
    stats: Stats,
    /// Whether the backend chooses the tokens; known after the first.
    ahead: bool,
}

/// Steps that are queued while the host waits for the oldest of them: the device always has the next one at hand.
const QUEUED: usize = 2;

/// Starts a generation that appends `prompt` to what the session holds. Without a tokenizer the pieces carry ids only and
/// nothing but their number ends it.
///
/// # Errors
/// As [`generate_with`].
pub fn generate<'a>(
    session: &'a mut Session,
    tokenizer: Option<&'a Tokenizer>,
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
    eos: &'a [u32],
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
    let held = StopFilter::new(options.stop.clone());
    let stats = Stats::default();
    Ok(Generation {
        decoder,
        text,
        eos,
        options,
        sampler,
        cancel,
        tokens,
        prompt,
        held,
        finish: None,
        stats,
        ahead: false,
    })
}

impl<D: Decoder + ?Sized> Generation<'_, D> {
    /// Why it ended; `None` while it runs.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish.filter(|_| self.held.pieces.is_empty())
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// History, prompt and every token sampled so far, an end-of-generation token not included. The session's context
    /// is a prefix of it.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Feeds the prompt or the last token, and samples the next.
    fn step(&mut self) -> Result<u32> {
        let start = Instant::now();
        if self.stats.prompt_tokens == 0 {
            self.ahead = self.begin_ahead()?;
        }
        if self.ahead {
            return self.step_ahead(start);
        }
        if self.stats.prompt_tokens == 0 {
            let prompt = &self.tokens[self.prompt.clone()];
            let logits = self.decoder.prefill(prompt, &self.cancel)?;
            self.stats.prompt_time = start.elapsed();
            self.stats.prompt_tokens = prompt.len();
            let id = self.sampler.sample(logits, &self.tokens)?;
            self.stats.time_to_first_token = start.elapsed();
            Ok(id)
        } else {
            let last = self.tokens[self.tokens.len() - 1];
            let logits = self.decoder.decode(last)?;
            let id = self.sampler.sample(logits, &self.tokens)?;
            self.stats.decode_steps += 1;
            self.stats.generation_time += start.elapsed();
            Ok(id)
        }
    }

    /// Asks the backend to choose the tokens; `false` where it does not.
    fn begin_ahead(&mut self) -> Result<bool> {
        let Some(session) = self.decoder.session() else { return Ok(false) };
        let o = self.sampler.options();
        let sampling = Sampling {
            temperature: o.temperature,
            top_k: o.top_k,
            top_p: o.top_p,
            min_p: o.min_p,
            repeat_penalty: o.repeat_penalty,
            repeat_last_n: o.repeat_last_n,
            forbidden: self.sampler.forbidden(),
        };
        session.pick_begin(&sampling, &self.tokens)
    }

    /// The next token as the backend chose it: queues the prompt, then steps on tokens that the host does not know yet, and
    /// takes the oldest. No more steps are queued than can be wanted.
    fn step_ahead(&mut self, start: Instant) -> Result<u32> {
        let first = self.stats.prompt_tokens == 0;
        let (capacity, generated) = (self.decoder.capacity(), self.stats.generated_tokens);
        let prompt = self.tokens[self.prompt.clone()].len();
        let Some(session) = self.decoder.session() else { return Err(Error::Invalid("the session went away".into())) };
        if first {
            let draw = (self.sampler.next_random() >> 32) as u32;
            session.pick_feed(&self.tokens[self.prompt.clone()], draw, || self.cancel.check())?;
        }
        while session.pick_pending() < QUEUED
            && generated + session.pick_pending() < self.options.max_tokens
            && session.pick_queued() < capacity
        {
            session.pick_advance((self.sampler.next_random() >> 32) as u32)?;
        }
        let id = session.pick_take()?;
        if first {
            self.stats.prompt_tokens = prompt;
            self.stats.prompt_time = start.elapsed();
            self.stats.time_to_first_token = start.elapsed();
        } else {
            self.stats.decode_steps += 1;
            self.stats.generation_time += start.elapsed();
        }
        Ok(id)
    }

    /// Samples one token into the filter, or ends.
    fn advance(&mut self) -> Result<()> {
        let started = self.stats.prompt_tokens > 0;
        if self.stats.generated_tokens >= self.options.max_tokens {
            return self.end(FinishReason::MaxTokens);
        }
        if self.cancel.is_cancelled() {
            return self.end(FinishReason::Cancelled);
        }
        if started && self.decoder.position() >= self.decoder.capacity() {
            return self.end(FinishReason::ContextFull);
        }
        let id = match self.step() {
            Err(Error::Cancelled) => return self.end(FinishReason::Cancelled),
            other => other?,
        };
        if self.eos.contains(&id) {
            return self.end(FinishReason::EndOfText(id));
        }
        self.stats.generated_tokens += 1;
        self.tokens.push(id);
        let text = self.text.as_mut().map_or_else(String::new, |t| t.push(id));
        if let Some(stop) = self.held.push(Piece { id, text }) {
            self.finish = Some(FinishReason::StopString(stop));
            self.stop_ahead();
        }
        Ok(())
    }

    /// Forgets the steps that were queued beyond the end.
    fn stop_ahead(&mut self) {
        if let Some(session) = self.decoder.session().filter(|_| self.ahead) {
            session.pick_discard();
        }
    }

    fn end(&mut self, reason: FinishReason) -> Result<()> {
        self.finish = Some(reason);
        self.stop_ahead();
        self.held.release();
        Ok(())
    }
}

impl<D: Decoder + ?Sized> Iterator for Generation<'_, D> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        loop {
            if let Some(piece) = self.held.pop() {
                return Some(Ok(piece));
            }
            if self.finish.is_some() {
                return None;
            }
            if let Err(e) = self.advance() {
                // What was held back comes after the error: the caller may want it.
                self.finish = Some(FinishReason::Failed);
                self.held.release();
                return Some(Err(e));
            }
        }
    }
}

/// Holds pieces back while their text may be the beginning of a stop string.
#[derive(Debug)]
struct StopFilter {
    stop: Vec<String>,
    pieces: VecDeque<Piece>,
    /// How many of `pieces`, from the front, may go.
    ready: usize,
    /// The joined text of the pieces that may not.
    text: String,
}

impl StopFilter {
    fn new(stop: Vec<String>) -> Self {
        StopFilter { stop, pieces: VecDeque::new(), ready: 0, text: String::new() }
    }

    fn pop(&mut self) -> Option<Piece> {
        self.ready = self.ready.checked_sub(1)?;
        self.pieces.pop_front()
    }

    /// Takes a piece; gives the index of the stop string that it completes.
    fn push(&mut self, piece: Piece) -> Option<usize> {
        self.text.push_str(&piece.text);
        self.pieces.push_back(piece);
        if let Some((at, stop)) = self.find() {
            self.cut(at);
            return Some(stop);
        }
        let safe = self.text.len() - self.longest_beginning();
        let mut end = 0;
        for piece in self.pieces.iter().skip(self.ready) {
            if end + piece.text.len() > safe {
                break;
            }
            end += piece.text.len();
            self.ready += 1;
        }
        self.text.drain(..end);
        None
    }

    /// Nothing follows, so what was held back is no stop string.
    fn release(&mut self) {
        self.ready = self.pieces.len();
    }

    /// The first stop string in the held text.
    fn find(&self) -> Option<(usize, usize)> {
        self.stop.iter().enumerate().filter_map(|(i, s)| Some((self.text.find(s.as_str())?, i))).min()
    }

    /// Drops the held text from byte `at` on; what is before it may go.
    fn cut(&mut self, at: usize) {
        let mut start = 0;
        let mut keep = self.ready;
        for piece in self.pieces.iter_mut().skip(self.ready) {
            if start >= at {
                break;
            }
            let len = piece.text.len();
            piece.text.truncate(at - start);
            start += len;
            keep += 1;
        }
        self.pieces.truncate(keep);
        self.ready = keep;
        self.text.clear();
    }

    /// Length of the longest end of the held text that a stop string begins with.
    fn longest_beginning(&self) -> usize {
        let longest = |s: &String| {
            (1..s.len().min(self.text.len() + 1))
                .rev()
                .find(|&n| s.is_char_boundary(n) && self.text.as_bytes().ends_with(&s.as_bytes()[..n]))
        };
        self.stop.iter().filter_map(longest).max().unwrap_or(0)
    }
}
