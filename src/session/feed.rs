//! Feeding a session: tokens cut into micro-batches, and steps queued ahead, one slice at a time.

use super::{Budget, Chosen, Error, Result, Row, Session, Status, Step, Token};
use crate::backend::runner::not_finite;
use crate::sampler::Sampling;
use std::{collections::VecDeque, task::Poll};

/// What is wanted of tokens that are fed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Want {
    /// The place in the context alone.
    #[default]
    Nothing,
    /// Logits after the last.
    LastLogits,
    /// Logits after each.
    AllLogits,
    /// The hidden state of each.
    Hidden,
    /// A token chosen after the last, with this random word.
    Choice(u64),
}

/// What a session still has to feed, and what of it is on its way.
#[derive(Debug, Default)]
pub(super) struct Feed {
    /// The tokens, of which the first `at` are queued or done.
    tokens: Vec<u32>,
    at: usize,
    want: Want,
    /// Where the next step of earlier tokens begins that have to be fed again; the session's position where none.
    again: Option<usize>,
    /// Position of the first of `tokens`.
    pub first: usize,
    /// Random words of steps on tokens that the host does not know yet.
    ahead: VecDeque<u64>,
    /// Steps on their way, the oldest first.
    steps: VecDeque<Queued>,
    /// Rows of the step that is being made.
    rows: Vec<Row>,
    /// Positions once all that is asked for is done.
    pub end: usize,
    /// The choice of the step that was done last.
    chosen: Option<Chosen>,
}

/// A step on its way.
#[derive(Clone, Copy, Debug)]
enum Queued {
    /// Tokens of the text, fed again.
    Again,
    /// This many of the tokens to be fed, behind those before.
    Fed(usize),
    /// The token that was chosen last.
    Ahead,
}

impl Feed {
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.at = 0;
        (self.again, self.want) = (None, Want::Nothing);
        self.ahead.clear();
        self.steps.clear();
        self.chosen = None;
    }

    /// Whether everything that was asked for is done.
    fn is_done(&self) -> bool {
        self.steps.is_empty() && self.at == self.tokens.len() && self.again.is_none() && self.ahead.is_empty()
    }
}

/// What never blocks.
impl Session {
    /// Queues tokens whose last one's logits are wanted: [`Session::last_logits`] after [`Status::Done`].
    ///
    /// # Errors
    /// As [`Session::prefill`]; [`Error::Invalid`] while other work is queued.
    pub fn begin_prefill(&mut self, tokens: &[u32]) -> Result<()> {
        self.begin(tokens, Want::LastLogits)
    }

    /// Queues tokens after the last of which a token is chosen, with this random word ([`crate::sampler::Sampler::next_random`]).
    ///
    /// # Errors
    /// As [`Session::begin_prefill`]; [`Error::Invalid`] before [`Session::set_sampler`].
    pub fn begin_choice(&mut self, tokens: &[u32], random: u64) -> Result<()> {
        self.begin(tokens, Want::Choice(random))
    }

    /// Sets how tokens are chosen from here on; gives whether the backend chooses them, not the host from logits.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options out of range, or while work is queued; [`Error::Device`].
    pub fn set_sampler(&mut self, sampling: &Sampling<'_>) -> Result<bool> {
        self.runner.set_sampler(0, sampling)
    }

    /// Queues a step of the token that was chosen last, or will be by what is queued, and another choice after it.
    ///
    /// # Errors
    /// [`Error::ContextFull`]; [`Error::Invalid`] where no choice was asked for before.
    pub fn begin_next(&mut self, random: u64) -> Result<()> {
        if self.feed.end >= self.options.ctx {
            return Err(Error::ContextFull { needed: self.feed.end + 1, capacity: self.options.ctx });
        }
        if !matches!(self.feed.want, Want::Choice(_)) {
            return Err(Error::Invalid("no token was chosen that could be fed".into()));
        }
        self.feed.ahead.push_back(random);
        self.feed.end += 1;
        Ok(())
    }

    /// Choices that were asked for and not taken.
    pub fn choices_queued(&self) -> usize {
        let chooses = matches!(self.feed.want, Want::Choice(_));
        let of_prompt = chooses && (self.feed.at < self.feed.tokens.len() || self.has_prompt_on_its_way());
        let ahead = self.feed.steps.iter().filter(|s| matches!(s, Queued::Ahead)).count();
        usize::from(of_prompt) + ahead + self.feed.ahead.len()
    }

    fn is_recurrent(&self) -> bool {
        !self.model.definition().program.graph.states.is_empty()
    }

    fn has_prompt_on_its_way(&self) -> bool {
        self.feed.steps.iter().any(|s| matches!(s, Queued::Fed(_)))
    }

    /// Tokens in the context once all that is queued is done.
    pub fn position_queued(&self) -> usize {
        self.feed.end.max(self.position())
    }

    /// How many choices are worth queueing: see `Runner::depth`.
    pub fn depth(&self) -> usize {
        self.runner.depth()
    }

    /// Does at most one slice of what is queued, and never blocks. [`Status::Done`]: the tokens are fed and the logits there, or the
    /// next choice is.
    ///
    /// # Errors
    /// As [`Session::prefill`]. What is queued is dropped then.
    pub fn poll(&mut self, budget: Budget) -> Result<Status> {
        self.step(budget)
    }

    /// Blocks until the device has done what [`Status::Waiting`] stands for, within a bound.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn wait(&mut self) -> Result<()> {
        self.runner.wait().inspect_err(|_| self.feed.clear())
    }

    /// Has `waker` called when [`Session::poll`] can do more after [`Status::Waiting`]; `false` where nobody will, and the caller
    /// polls again.
    pub fn wake(&mut self, waker: &std::task::Waker) -> bool {
        self.runner.wake(waker)
    }

    /// The next result as a future, a slice within `budget` a poll: for any executor, or none.
    pub fn result(&mut self, budget: Budget) -> impl Future<Output = Result<()>> + '_ {
        std::future::poll_fn(move |cx| match self.poll(budget) {
            Err(e) => Poll::Ready(Err(e)),
            Ok(Status::Done) => Poll::Ready(Ok(())),
            Ok(Status::Idle) => Poll::Ready(Err(Error::Invalid("nothing is queued".into()))),
            Ok(Status::Waiting) if self.runner.wake(cx.waker()) => Poll::Pending,
            Ok(Status::Pending | Status::Waiting) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        })
    }

    /// The logits of the last token, `[V]`, after [`Session::begin_prefill`] is done.
    pub fn last_logits(&self) -> &[f32] {
        self.runner.results().outputs.get(self.model.logits_output()).map_or(&[], |o| &o.f32)
    }

    /// The choice of the step that [`Session::poll`] said to be done.
    ///
    /// # Errors
    /// As [`Chosen::token`]; [`Error::Invalid`] where the step chose none.
    pub fn chosen(&self) -> Result<u32> {
        self.feed.chosen.ok_or_else(|| Error::Invalid("no token was chosen".into()))?.token()
    }

    /// Blocks until the next result.
    pub(super) fn finish(&mut self) -> Result<()> {
        loop {
            match self.step(Budget::UNLIMITED)? {
                Status::Done => return Ok(()),
                Status::Idle => return Err(Error::Invalid("nothing is queued".into())),
                Status::Pending => {}
                Status::Waiting => self.wait()?,
            }
        }
    }

    /// Brings recurrent states to the session's position.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.begin_work(&[], Want::Nothing)?;
        if self.feed.is_done() { Ok(()) } else { self.finish() }
    }

    pub(super) fn begin(&mut self, tokens: &[u32], want: Want) -> Result<()> {
        self.check(tokens)?;
        self.begin_work(tokens, want)
    }

    fn begin_work(&mut self, tokens: &[u32], want: Want) -> Result<()> {
        if !self.feed.is_done() {
            return Err(Error::Invalid("other tokens are queued: take their results or cancel them first".into()));
        }
        self.feed.clear();
        let position = self.position();
        let resume = self.runner.resume_at(0, position);
        if resume < position {
            tracing::info!("feeding {} tokens again: recurrent states cannot go back", position - resume);
            self.feed.again = Some(resume);
        }
        self.feed.tokens.extend_from_slice(tokens);
        (self.feed.first, self.feed.end, self.feed.want) = (position, position + tokens.len(), want);
        Ok(())
    }

    /// One slice; `Done` where the result that was asked for is there.
    pub(super) fn step(&mut self, budget: Budget) -> Result<Status> {
        if self.feed.is_done() {
            return Ok(Status::Idle);
        }
        self.slice(budget).inspect_err(|_| self.cancel())
    }

    fn slice(&mut self, budget: Budget) -> Result<Status> {
        while self.runner.queued() < self.runner.depth() && self.queue_next()? {}
        let status = self.runner.poll(budget)?;
        if status != Status::Done {
            return Ok(status);
        }
        let Some(step) = self.feed.steps.pop_front() else { return Ok(Status::Pending) };
        let before = std::mem::replace(&mut self.feed.chosen, self.runner.results().tokens.first().copied());
        let is_result = match step {
            Queued::Again => self.feed.is_done(),
            Queued::Fed(rows) => {
                self.fed(rows)?;
                self.feed.at == self.feed.tokens.len() && !self.has_prompt_on_its_way()
            }
            Queued::Ahead => {
                // A choice that failed has fed token 0.
                self.text.push(if let Some(Chosen::Token(id)) = before { id } else { 0 });
                self.record()?;
                true
            }
        };
        Ok(if is_result { Status::Done } else { Status::Pending })
    }

    /// Tokens of the text went through.
    fn fed(&mut self, rows: usize) -> Result<()> {
        let at = self.position() - self.feed.first;
        self.text.extend_from_slice(&self.feed.tokens[at..at + rows]);
        self.record()?;
        let Some(logits) = self.runner.results().outputs.get(self.model.logits_output()) else { return Ok(()) };
        // Damaged block scales and overflows end up here: better an error than a wrong number.
        if logits.f32.iter().any(|x| !x.is_finite()) {
            return Err(not_finite(&format!("the logits after {} tokens hold", self.position())));
        }
        // The end of a prompt is where conversations go back to.
        let is_prompt = self.feed.tokens.len() > 1 && self.feed.at == self.feed.tokens.len();
        if is_prompt && self.runner.queued() == 0 {
            self.runner.snapshot(0)?;
        }
        Ok(())
    }

    fn record(&mut self) -> Result<()> {
        match &mut self.routing {
            Some(trace) => trace.push(&self.runner.results().outputs),
            None => Ok(()),
        }
    }

    /// Queues the step that comes next; `false` where there is none.
    fn queue_next(&mut self) -> Result<bool> {
        // The end of a prompt is kept before anything moves its recurrent states on.
        let hold_back = self.has_prompt_on_its_way() && self.feed.tokens.len() > 1 && self.is_recurrent();
        let (feed, ubatch) = (&mut self.feed, self.options.ubatch);
        feed.rows.clear();
        let mut trace = self.routing.is_some();
        let queued = if let Some(from) = feed.again {
            let end = (from + ubatch).min(self.text.len());
            feed.rows.extend((from..end).map(|p| Row::fed(self.text[p], 0, p)));
            feed.again = (end < self.text.len()).then_some(end);
            trace = false;
            Queued::Again
        } else if feed.at < feed.tokens.len() {
            let end = (feed.at + ubatch).min(feed.tokens.len());
            feed.rows.extend((feed.at..end).map(|i| Row::fed(feed.tokens[i], 0, feed.first + i)));
            let is_last = end == feed.tokens.len();
            match feed.want {
                Want::AllLogits => feed.rows.iter_mut().for_each(|r| r.logits = true),
                Want::Hidden => feed.rows.iter_mut().for_each(|r| r.hidden = true),
                Want::LastLogits if is_last => {
                    feed.rows.iter_mut().skip(end - feed.at - 1).for_each(|r| r.logits = true)
                }
                Want::Choice(random) if is_last => {
                    feed.rows.iter_mut().skip(end - feed.at - 1).for_each(|r| r.choose = Some(random));
                }
                Want::Nothing | Want::LastLogits | Want::Choice(_) => {}
            }
            trace |= feed.want == Want::AllLogits;
            let rows = end - feed.at;
            feed.at = end;
            Queued::Fed(rows)
        } else if hold_back {
            return Ok(false);
        } else if let Some(random) = feed.ahead.pop_front() {
            let position = self.runner.len(0);
            feed.rows.push(Row { token: Token::Last, choose: Some(random), ..Row::fed(0, 0, position) });
            Queued::Ahead
        } else {
            return Ok(false);
        };
        self.runner.begin(&Step { rows: &self.feed.rows, trace, ..Step::default() })?;
        self.feed.steps.push_back(queued);
        Ok(true)
    }
}
