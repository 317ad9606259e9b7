//! What generation stands on: something that feeds and chooses tokens, and something that makes text of them.

use crate::{
    error::Result,
    sampler::Sampling,
    session::{Budget, Session, Status},
    tokenizer::DecodeStream,
};

/// What generation needs of a model's state: a session, or a stand-in for tests.
pub trait Decoder {
    /// Sets how tokens are chosen from here on.
    ///
    /// # Errors
    /// What the session says.
    fn set_sampler(&mut self, sampling: &Sampling<'_>) -> Result<()>;

    /// Queues tokens behind the context, and a choice after the last.
    ///
    /// # Errors
    /// What the session says.
    fn begin_choice(&mut self, ids: &[u32], random: u64) -> Result<()>;

    /// Queues a step of the token that was or will be chosen last, and another choice after it.
    ///
    /// # Errors
    /// What the session says.
    fn begin_next(&mut self, random: u64) -> Result<()>;

    /// Does at most one slice, without blocking. [`Status::Done`]: the oldest choice is made.
    ///
    /// # Errors
    /// What the session says; what is queued is dropped.
    fn poll(&mut self, budget: Budget) -> Result<Status>;

    /// Blocks until the device has done what [`Status::Waiting`] stands for.
    ///
    /// # Errors
    /// What the session says.
    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    /// The choice that `poll` said to be made.
    ///
    /// # Errors
    /// Where no token could be chosen.
    fn chosen(&self) -> Result<u32>;

    /// Choices that were asked for and are not made.
    fn choices_queued(&self) -> usize;

    /// How many choices are worth queueing.
    fn depth(&self) -> usize {
        1
    }

    /// Drops what is queued.
    fn cancel(&mut self);

    /// Tokens in the context so far.
    fn position(&self) -> usize;

    /// Tokens in the context once all that is queued is done.
    fn position_queued(&self) -> usize;

    /// Tokens that the context holds at most.
    fn capacity(&self) -> usize;
}

/// Incremental detokenisation: what generation needs of a tokenizer.
pub trait TextStream: Send {
    /// The text that became complete with this token; empty in the middle of a UTF-8 sequence.
    fn push(&mut self, id: u32) -> String;

    /// The text of a control token that `push` leaves out: stop strings may name it.
    fn hidden(&self, _id: u32) -> Option<String> {
        None
    }

    /// Whether bytes are held back that are no complete text yet.
    fn is_pending(&self) -> bool {
        false
    }

    /// Nothing follows what was pushed: the text of what was held back.
    fn flush(&mut self) -> String {
        String::new()
    }
}

impl Decoder for Session {
    fn set_sampler(&mut self, sampling: &Sampling<'_>) -> Result<()> {
        Session::set_sampler(self, sampling).map(|_| ())
    }

    fn begin_choice(&mut self, ids: &[u32], random: u64) -> Result<()> {
        Session::begin_choice(self, ids, random)
    }

    fn begin_next(&mut self, random: u64) -> Result<()> {
        Session::begin_next(self, random)
    }

    fn poll(&mut self, budget: Budget) -> Result<Status> {
        Session::poll(self, budget)
    }

    fn wait(&mut self) -> Result<()> {
        Session::wait(self)
    }

    fn chosen(&self) -> Result<u32> {
        Session::chosen(self)
    }

    fn choices_queued(&self) -> usize {
        Session::choices_queued(self)
    }

    fn depth(&self) -> usize {
        Session::depth(self)
    }

    fn cancel(&mut self) {
        Session::cancel(self);
    }

    fn position(&self) -> usize {
        Session::position(self)
    }

    fn position_queued(&self) -> usize {
        Session::position_queued(self)
    }

    fn capacity(&self) -> usize {
        self.ctx()
    }
}

impl TextStream for DecodeStream {
    fn push(&mut self, id: u32) -> String {
        DecodeStream::push(self, id)
    }

    fn hidden(&self, id: u32) -> Option<String> {
        DecodeStream::hidden(self, id)
    }

    fn is_pending(&self) -> bool {
        DecodeStream::is_pending(self)
    }

    fn flush(&mut self) -> String {
        DecodeStream::flush(self)
    }
}
