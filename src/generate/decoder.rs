//! What generation stands on: something that feeds and chooses tokens, and something that makes text of them.

use crate::{
    error::Result,
    sampler::Sampling,
    session::{Budget, Session, Status},
    tokenizer::DecodeStream,
};
use std::{
    ops::{Deref, DerefMut},
    task::Waker,
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

    /// Queues tokens behind the context, the last one's logits being wanted: [`Decoder::last_logits`] once they are done.
    ///
    /// # Errors
    /// What the session says.
    fn begin_logits(&mut self, ids: &[u32]) -> Result<()>;

    /// The logits `[V]` that [`Decoder::begin_logits`] asked for.
    fn last_logits(&self) -> &[f32];

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

    /// Has `waker` called when the device has done what [`Status::Waiting`] stands for; `false` where nobody will.
    fn wake(&mut self, _waker: &Waker) -> bool {
        false
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

    fn begin_logits(&mut self, ids: &[u32]) -> Result<()> {
        Session::begin_prefill(self, ids)
    }

    fn last_logits(&self) -> &[f32] {
        Session::last_logits(self)
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

    fn wake(&mut self, waker: &Waker) -> bool {
        Session::wake(self, waker)
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

/// A decoder that is lent.
impl<D: Decoder + ?Sized> Decoder for &mut D {
    fn set_sampler(&mut self, sampling: &Sampling<'_>) -> Result<()> {
        (**self).set_sampler(sampling)
    }

    fn begin_choice(&mut self, ids: &[u32], random: u64) -> Result<()> {
        (**self).begin_choice(ids, random)
    }

    fn begin_logits(&mut self, ids: &[u32]) -> Result<()> {
        (**self).begin_logits(ids)
    }

    fn last_logits(&self) -> &[f32] {
        (**self).last_logits()
    }

    fn begin_next(&mut self, random: u64) -> Result<()> {
        (**self).begin_next(random)
    }

    fn poll(&mut self, budget: Budget) -> Result<Status> {
        (**self).poll(budget)
    }

    fn wait(&mut self) -> Result<()> {
        (**self).wait()
    }

    fn wake(&mut self, waker: &Waker) -> bool {
        (**self).wake(waker)
    }

    fn chosen(&self) -> Result<u32> {
        (**self).chosen()
    }

    fn choices_queued(&self) -> usize {
        (**self).choices_queued()
    }

    fn depth(&self) -> usize {
        (**self).depth()
    }

    fn cancel(&mut self) {
        (**self).cancel();
    }

    fn position(&self) -> usize {
        (**self).position()
    }

    fn position_queued(&self) -> usize {
        (**self).position_queued()
    }

    fn capacity(&self) -> usize {
        (**self).capacity()
    }
}

/// A decoder in a generation: what is queued beyond what the caller took is forgotten when it goes.
pub(super) struct Held<D: Decoder>(Option<D>);

impl<D: Decoder> Held<D> {
    pub fn new(decoder: D) -> Self {
        Held(Some(decoder))
    }

    pub fn release(mut self) -> D {
        self.cancel();
        match self.0.take() {
            Some(decoder) => decoder,
            None => unreachable!("only this consuming method takes it"),
        }
    }
}

impl<D: Decoder> Deref for Held<D> {
    type Target = D;

    fn deref(&self) -> &D {
        match &self.0 {
            Some(decoder) => decoder,
            None => unreachable!("only `release` takes it, which consumes this"),
        }
    }
}

impl<D: Decoder> DerefMut for Held<D> {
    fn deref_mut(&mut self) -> &mut D {
        match &mut self.0 {
            Some(decoder) => decoder,
            None => unreachable!("only `release` takes it, which consumes this"),
        }
    }
}

impl<D: Decoder> Drop for Held<D> {
    fn drop(&mut self) {
        if let Some(decoder) = &mut self.0 {
            decoder.cancel();
        }
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
