//! Steps: queued, handed to the executor, polled, cancelled.

use super::{
    Budget, ExecutorStep, KernelTime, QUEUE, Results, Row, Runner, Status, Step, StepFuture, Token,
    queue::{Queued, Span},
};
use crate::error::{Error, Result};

impl Runner {
    /// Checks a step and queues it; everything of it is copied. Nothing runs before [`Runner::poll`].
    ///
    /// # Errors
    /// [`Error::ContextFull`]; [`Error::Invalid`] for a step without rows or with more than [`RunnerOptions::ubatch`], a
    /// sequence, id, mask or input that is not there, rows out of order, a skipped position, a position where recurrent
    /// states are not known, a choice without rules, a full queue; [`Error::Device`]. Everything is as before then.
    pub fn begin(&mut self, step: &Step<'_>) -> Result<()> {
        if self.queue.len() == QUEUE {
            return Err(Error::Invalid(format!("{QUEUE} steps are queued: take a result first")));
        }
        let outputs = self.check(step)?;
        let mut queued = self.spare.pop().unwrap_or_default();
        queued.fill(step, outputs)?;
        if let Err(e) = self.advance(&mut queued) {
            self.spare.push(queued);
            return Err(e);
        }
        self.queue.push_back(queued);
        if let Err(e) = self.hand_over() {
            self.undo_newest(false);
            return Err(e);
        }
        Ok(())
    }

    /// Does at most one slice of the queued steps and never blocks. After [`Status::Done`] the oldest step's results are
    /// [`Runner::results`].
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Model`]. All queued steps are cancelled then.
    pub fn poll(&mut self, budget: Budget) -> Result<Status> {
        if self.queue.is_empty() {
            return Ok(Status::Idle);
        }
        let done = self.hand_over().and_then(|()| self.executor.poll(budget, &mut self.results));
        if done.is_err() {
            self.cancel();
        }
        if let Ok(Status::Done) = done {
            self.finish_oldest();
        }
        done
    }

    /// The results of the step that [`Runner::poll`] said to be done, until a later one is.
    pub fn results(&self) -> &Results {
        &self.results
    }

    /// The oldest step as a future, a slice within `budget` a poll.
    pub fn finish(&mut self, budget: Budget) -> StepFuture<'_> {
        StepFuture::new(self, budget)
    }

    /// Arranges that the waker is woken when [`Runner::poll`] can do more after [`Status::Waiting`]; `false` where nobody would,
    /// and the caller polls again.
    pub fn wake(&mut self, waker: &std::task::Waker) -> bool {
        self.executor.wake(waker)
    }

    /// Blocks until the oldest step is done; gives its results.
    ///
    /// # Errors
    /// As [`Runner::poll`]; [`Error::Invalid`] where no step is queued.
    pub fn take(&mut self) -> Result<&Results> {
        loop {
            match self.poll(Budget::UNLIMITED)? {
                Status::Done => return Ok(&self.results),
                Status::Idle => return Err(Error::Invalid("no step is queued".into())),
                Status::Pending => {}
                Status::Waiting => self.wait()?,
            }
        }
    }

    /// Blocks until the device has done what [`Status::Waiting`] stands for, within a bound.
    ///
    /// # Errors
    /// As [`Runner::poll`].
    pub fn wait(&mut self) -> Result<()> {
        let done = self.executor.wait();
        if done.is_err() {
            self.cancel();
        }
        done
    }

    /// Queues a step, blocks until it is done, and gives its results.
    ///
    /// # Errors
    /// As [`Runner::begin`] and [`Runner::poll`]; [`Error::Invalid`] while other steps are queued.
    pub fn step(&mut self, step: &Step<'_>) -> Result<&Results> {
        self.check_idle(0)?;
        self.begin(step)?;
        self.take()
    }

    /// Drops all steps whose results were not taken, at any slice. Sequences hold what they held before these steps, without
    /// what those had begun to overwrite; recurrent states that may have moved are unknown from then on.
    pub fn cancel(&mut self) {
        let touched = if self.begun > 0 { self.executor.cancel() } else { 0 };
        self.begun = 0;
        while !self.queue.is_empty() {
            self.undo_newest(self.queue.len() <= touched);
        }
    }

    /// Runs a step with a clock around every kernel, slower and without its results; `None` where the backend has no such
    /// clock. Recurrent states of its sequences are unknown afterwards.
    ///
    /// # Errors
    /// As [`Runner::step`]; [`Error::Unsupported`] where the device cannot.
    pub fn profile(&mut self, step: &Step<'_>) -> Result<Option<Vec<KernelTime>>> {
        self.check_idle(0)?;
        let outputs = self.check(step)?;
        for row in step.rows {
            self.sequences[row.sequence].truncate(row.position);
            self.sequences[row.sequence].lose_states();
        }
        self.rows.clear();
        let id = |r: &Row| if r.token == Token::Last { Token::Id(0) } else { r.token };
        self.rows.extend(step.rows.iter().map(|r| host_row(Row { token: id(r), ..*r })));
        let (rows, inputs, trace) = (&self.rows[..], step.inputs, step.trace);
        self.executor.profile(&ExecutorStep { rows, outputs, moves: &[], masks: &[], inputs, trace })
    }

    /// Moves the sequences of a step on, all or none.
    fn advance(&mut self, step: &mut Queued) -> Result<()> {
        for i in 0..step.spans.len() {
            let Span { sequence, first, end, .. } = step.spans[i];
            step.spans[i].before = self.sequences[sequence];
            match self.sequences[sequence].advance(first, end) {
                Ok(None) => {}
                Ok(Some(moving)) => step.moves.push((sequence, moving)),
                Err(e) => {
                    step.spans[..i].iter().for_each(|s| self.sequences[s.sequence] = s.before);
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Takes the newest step out of the queue and its sequences back to before it; `touched` where it may have run.
    fn undo_newest(&mut self, touched: bool) {
        let Some(step) = self.queue.pop_back() else { return };
        for span in &step.spans {
            let s = &mut self.sequences[span.sequence];
            *s = span.before;
            if touched {
                s.truncate(span.first);
                s.lose_states();
            }
        }
        self.spare.push(step);
    }

    /// Hands the executor as many steps as it takes.
    fn hand_over(&mut self) -> Result<()> {
        while self.begun < self.queue.len().min(self.executor.depth()) {
            let step = &self.queue[self.begun];
            let by_host = |r: &Row| !self.samplers[r.sequence].on_device;
            // The host knows a token that it chooses only when the steps before are done.
            if self.begun > 0 && step.rows.iter().any(|r| r.token == Token::Last && by_host(r)) {
                return Ok(());
            }
            self.rows.clear();
            for row in &step.rows {
                let sampler = &self.samplers[row.sequence];
                self.rows.push(match row.token {
                    _ if sampler.on_device => *row,
                    // A choice that failed was reported; what follows from it has no meaning.
                    Token::Last => host_row(Row { token: Token::Id(sampler.last.unwrap_or(0)), ..*row }),
                    Token::Id(_) => host_row(*row),
                });
            }
            let mut masks = step.masks();
            masks.retain(|m| self.rows[m.row].choose.is_some());
            let (rows, inputs) = (&self.rows[..], step.inputs());
            let (outputs, moves, trace) = (step.outputs, &step.moves[..], step.trace);
            self.executor.begin(&ExecutorStep { rows, outputs, moves, masks: &masks, inputs: &inputs, trace })?;
            self.begun += 1;
        }
        Ok(())
    }
}

/// A row whose token the host chooses, as the executor sees it.
fn host_row(row: Row) -> Row {
    Row { logits: row.wants(), choose: None, ..row }
}
