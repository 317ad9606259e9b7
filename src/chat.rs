//! Conversations: a chat template, a history, and a session that keeps what both turns have in common.
//!
//! A [`Chat`] is the conversation; [`Chat::ask`] adds a person's message and runs the model's answer as a [`Turn`], which
//! tells thinking from content and puts the answer into the history when it ends. Only what the session does not hold yet is
//! fed.
//!
//! Tools: the model is told of [`Tool`]s by [`RenderOptions`], and a [`ToolReader`] tells the calls in its answer from the text,
//! in the [`ToolSyntax`] of its family.
//!
//! Deliberately absent: terminals, clocks.

pub use crate::tools::{AnswerDelta, CallDelta, Tool, ToolCall, ToolReader, ToolSyntax};
use crate::{
    error::{Error, Result},
    generate::{CancelToken, FinishReason, GenerateOptions, Generation, Piece, Polled, Stats, generate},
    sampler::SamplerOptions,
    session::{Budget, Session},
    tokenizer::{AnswerReader, Message, Prompt, RenderOptions, Segment, Tokenizer},
};
use std::collections::VecDeque;

/// A conversation.
#[derive(Clone, Debug, Default)]
pub struct Chat {
    /// The messages so far. A system message is the first.
    pub messages: Vec<Message>,
    /// What templates are rendered with: date, tools, `enable_thinking`. A generation prompt is added always.
    pub render: RenderOptions,
    /// Whether marks of the chat format in messages (`<|im_end|>`) become control tokens; off, they are text.
    pub parse_special: bool,
}

impl Chat {
    /// A conversation without messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the system message, or takes it away.
    pub fn set_system(&mut self, text: Option<&str>) {
        if self.system().is_some() {
            self.messages.remove(0);
        }
        if let Some(text) = text {
            self.messages.insert(0, Message::new("system", text));
        }
    }

    /// The system message.
    pub fn system(&self) -> Option<&str> {
        self.messages.first().filter(|m| m.role == "system").map(|m| m.content.as_str())
    }

    /// Forgets all but the system message.
    pub fn reset(&mut self) {
        self.messages.truncate(usize::from(self.system().is_some()));
    }

    /// Takes back the last message of the person and what came after it; gives that message.
    pub fn undo(&mut self) -> Option<Message> {
        let last = self.messages.iter().rposition(|m| m.role == "user")?;
        self.messages.drain(last..).next()
    }

    /// The prompt of the next answer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the model has no chat template, or it refuses the conversation: with a word on the system
    /// message where the template would take the conversation without.
    pub fn prompt(&self, tokenizer: &Tokenizer) -> Result<Prompt> {
        let Some(template) = tokenizer.chat_template()? else {
            return Err(Error::Tokenizer("this model has no chat template".into()));
        };
        let options = RenderOptions { add_generation_prompt: true, ..self.render.clone() };
        let mut prompt = template.prompt(&self.messages, &options).map_err(|e| {
            let refuses = self.system().is_some() && template.prompt(&self.messages[1..], &options).is_ok();
            if refuses { Error::SystemMessage(e.to_string()) } else { e }
        })?;
        if self.parse_special {
            prompt.foreign.clear();
        }
        Ok(prompt)
    }

    /// Adds a message of the person and starts the model's answer. `options.history` is set here; the seed differs from turn to
    /// turn. Where it fails the message is taken back.
    ///
    /// # Errors
    /// As [`Chat::prompt`]; [`Error::ContextFull`] where the conversation does not fit; as [`generate`].
    pub fn ask<'a>(
        &'a mut self,
        session: &'a mut Session,
        text: &str,
        options: GenerateOptions,
        cancel: CancelToken,
    ) -> Result<Turn<'a>> {
        self.messages.push(Message::new("user", text));
        let before = self.messages.len() - 1;
        match self.start(session, options, cancel) {
            Ok((generation, reader)) => {
                let (reader, prompt) = (Some(reader), generation.tokens().len());
                Ok(Turn { chat: self, generation, reader, ready: VecDeque::new(), before, prompt, failed: false })
            }
            Err(e) => {
                self.messages.truncate(before);
                Err(e)
            }
        }
    }

    fn start<'s>(
        &self,
        session: &'s mut Session,
        options: GenerateOptions,
        cancel: CancelToken,
    ) -> Result<(Generation<&'s mut Session>, AnswerReader)> {
        let model = session.model().clone();
        let tokenizer = model.require_tokenizer()?;
        let prompt = self.prompt(tokenizer)?;
        let ids = tokenizer.encode_prompt(&prompt)?;
        if ids.len() > session.ctx() {
            return Err(Error::ContextFull { needed: ids.len(), capacity: session.ctx() });
        }
        let known = keep(session.tokens(), &ids);
        tracing::info!("{known} of {} tokens are in the cache", ids.len());
        session.truncate(known);
        let sampler = SamplerOptions {
            // Another answer to the same question in another turn, and the same conversation for the same seed.
            seed: options.sampler.seed.wrapping_add(self.messages.len() as u64),
            ..options.sampler
        };
        let options = GenerateOptions { history: ids[..known].to_vec(), sampler, ..options };
        let generation = generate(session, Some(tokenizer), &ids[known..], options, cancel)?;
        Ok((generation, AnswerReader::new(tokenizer, &prompt)))
    }
}

/// How many of the cached tokens can stay: the common beginning, without the last token, whose logits are needed.
fn keep(cached: &[u32], wanted: &[u32]) -> usize {
    let common = cached.iter().zip(wanted).take_while(|(a, b)| a == b).count();
    common.min(wanted.len().saturating_sub(1))
}

/// What a call of [`Turn::poll`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnState {
    /// Some more of the answer.
    Segment(Segment),
    /// A slice was done, and there is more to do at once.
    Pending,
    /// The device is at work; the host may do something else.
    Waiting,
    /// The answer has ended.
    Finished,
}

/// A running answer: an iterator of its segments. At its end the answer is in the history; where it fails or is dropped
/// before, the person's message is taken back.
pub struct Turn<'a> {
    chat: &'a mut Chat,
    generation: Generation<&'a mut Session>,
    /// `None` once the answer is in the history.
    reader: Option<AnswerReader>,
    ready: VecDeque<Segment>,
    /// Messages before the person's.
    before: usize,
    /// Tokens of the prompt, those that were in the session before included.
    prompt: usize,
    failed: bool,
}

impl Turn<'_> {
    /// Why it ended; `None` while it runs.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.generation.finish_reason()
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.generation.stats()
    }

    /// Tokens in the context, and how many it holds.
    pub fn context(&self) -> (usize, usize) {
        self.generation.context()
    }

    /// Tokens of the conversation that are read, and all that there are to read before the answer.
    pub fn prompt_progress(&self) -> (usize, usize) {
        (self.generation.context().0.min(self.prompt), self.prompt)
    }

    /// The answer, once it has ended.
    pub fn message(&self) -> Option<&Message> {
        if self.reader.is_none() && !self.failed { self.chat.messages.last() } else { None }
    }

    /// What a blocking caller polls with.
    pub(crate) fn blocking_slice(&self) -> Budget {
        self.generation.blocking_slice()
    }

    /// Does at most one slice of the work and never blocks.
    ///
    /// # Errors
    /// What the session says. The answer has failed then.
    pub fn poll(&mut self, budget: Budget) -> Result<TurnState> {
        loop {
            if let Some(segment) = self.ready.pop_front() {
                return Ok(TurnState::Segment(segment));
            }
            if self.reader.is_none() {
                return Ok(TurnState::Finished);
            }
            match self.generation.poll(budget).map_err(|e| self.fail(e))? {
                Polled::Piece(piece) => self.take(&piece),
                Polled::Finished => self.finish(),
                Polled::Pending => return Ok(TurnState::Pending),
                Polled::Waiting => return Ok(TurnState::Waiting),
            }
        }
    }

    /// Blocks until the device has done what [`TurnState::Waiting`] stands for.
    ///
    /// # Errors
    /// As [`Turn::poll`].
    pub fn wait(&mut self) -> Result<()> {
        self.generation.wait().map_err(|e| self.fail(e))
    }

    fn fail(&mut self, e: Error) -> Error {
        (self.failed, self.reader) = (true, None);
        self.chat.messages.truncate(self.before);
        e
    }

    fn take(&mut self, piece: &Piece) {
        if let Some(reader) = &mut self.reader {
            self.ready.extend(reader.push(piece.id, &piece.text));
        }
    }

    fn finish(&mut self) {
        if let Some(mut reader) = self.reader.take() {
            self.ready.extend(reader.finish());
            self.chat.messages.push(reader.message());
        }
    }
}

impl Iterator for Turn<'_> {
    type Item = Result<Segment>;

    fn next(&mut self) -> Option<Result<Segment>> {
        loop {
            match self.poll(self.blocking_slice()) {
                Ok(TurnState::Segment(segment)) => return Some(Ok(segment)),
                Ok(TurnState::Finished) => return None,
                Ok(TurnState::Pending) => {}
                Ok(TurnState::Waiting) => {
                    if let Err(e) = self.wait() {
                        return Some(Err(e));
                    }
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.reader.is_some() {
            self.chat.messages.truncate(self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::keep;

    #[test]
    fn the_common_beginning_stays_but_for_the_last_token() {
        assert_eq!(keep(&[], &[1, 2]), 0);
        assert_eq!(keep(&[1, 2, 3], &[1, 2, 4, 5]), 2);
        assert_eq!(keep(&[1, 2, 3], &[1, 2, 3, 4]), 3);
        assert_eq!(keep(&[1, 2, 3], &[1, 2, 3]), 2);
        assert_eq!(keep(&[1, 2, 3], &[1]), 0);
    }
}
