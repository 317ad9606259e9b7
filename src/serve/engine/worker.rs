//! The engine's thread: takes jobs in, lays out steps, hands results out.

use super::{
    EngineOptions, Shared,
    job::{Event, Job, Message},
    layout::lay_out,
    slot::{MOST, Slot},
};
use crate::{
    backend::runner::{Budget, PAGE, Page, Runner, Status, Step},
    error::{Error, Result},
    generate::FinishReason,
    sampler::Chooser,
    serve::{
        prefix::{Shape, Tree},
        schedule::{Allowance, Fairness, Limits, Need, Pace, Prompts, Share, Waiting},
    },
    session::Model,
    tokenizer::Tokenizer,
};
use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, mpsc},
    time::Instant,
};

/// Steps that are expected to take longer are done in slices of so many microseconds, between which clients are looked after.
const SLICE: u64 = 25_000;
/// See the [module](self).
pub struct Worker {
    pub(super) model: Model,
    pub(super) tokenizer: Option<Tokenizer>,
    pub(super) runner: Runner,
    pub(super) options: EngineOptions,
    pub(super) shared: Arc<Shared>,
    inbox: mpsc::Receiver<Message>,
    pub(super) waiting: VecDeque<Job>,
    pub(super) slots: Vec<Slot>,
    /// Whether the model has recurrent states.
    pub(super) recurrent: bool,
    /// Texts that left their sequences.
    pub(super) store: Tree<Page>,
    fairness: Fairness,
    pace: Pace,
    allowance: Allowance,
    chooser: Chooser,
    pub(super) clock: u64,
}

impl Worker {
    pub fn new(
        model: Model,
        runner: Runner,
        options: EngineOptions,
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<Message>,
    ) -> Self {
        let recurrent = !model.definition().program.graph.states.is_empty();
        let budget = usize::try_from(options.prefix_bytes).unwrap_or(usize::MAX);
        let shape = Shape { page: PAGE, page_bytes: runner.page_bytes(), stateful: recurrent, budget };
        let slots = std::iter::repeat_with(Slot::default).take(options.runner.sequences).collect();
        Worker {
            tokenizer: model.tokenizer().cloned(),
            recurrent,
            store: Tree::new(shape),
            model,
            runner,
            options,
            shared,
            inbox,
            waiting: VecDeque::new(),
            slots,
            fairness: Fairness::default(),
            pace: Pace::default(),
            allowance: Allowance::default(),
            chooser: Chooser::default(),
            clock: 0,
        }
    }

    /// Works until nobody can send jobs any more and all are done.
    pub fn run(&mut self) {
        while self.take_in() {
            self.drop_abandoned();
            self.admit();
            if let Err(e) = self.step()
                && !self.start_again(&e)
            {
                return;
            }
            self.publish();
        }
    }

    fn is_busy(&self) -> bool {
        self.slots.iter().any(|s| s.active.is_some())
    }

    /// Takes jobs from the inbox; waits for them where there is nothing to do. `false`: there will be none.
    fn take_in(&mut self) -> bool {
        if !self.is_busy() && self.waiting.is_empty() {
            match self.inbox.recv() {
                Ok(message) => self.take_message(message),
                Err(mpsc::RecvError) => return false,
            }
        }
        while let Ok(message) = self.inbox.try_recv() {
            self.take_message(message);
        }
        true
    }

    fn take_message(&mut self, message: Message) {
        match message {
            Message::Jobs(jobs) => self.waiting.extend(jobs),
            Message::Order(order) => self.follow(order),
        }
    }

    /// Lets go of jobs whose clients are gone.
    fn drop_abandoned(&mut self) {
        let metrics = &self.shared.metrics;
        self.waiting.retain(|job| {
            let gone = job.is_abandoned();
            if gone {
                metrics.finished(FinishReason::Cancelled, job.arrived.elapsed().as_secs_f64());
            }
            !gone
        });
        for slot in &mut self.slots {
            if let Some(active) = slot.active.take_if(|a| a.job.is_abandoned()) {
                metrics.finished(FinishReason::Cancelled, active.job.arrived.elapsed().as_secs_f64());
            }
        }
    }

    /// Keeps copies of recurrent states where they may be wanted again.
    fn checkpoint(&mut self, shares: &[Share]) {
        // In sequences they take no more than half of what the prefix cache may.
        let each = self.store.shape().budget / (2 * self.slots.len().max(1));
        let most = (each / self.runner.state_bytes().max(1)).clamp(2, MOST);
        for share in shares {
            if !self.slots[share.sequence].wants_checkpoint() {
                continue;
            }
            match self.runner.copy_of_states(share.sequence) {
                Ok(Some(states)) => self.slots[share.sequence].keep(states.into(), most),
                Ok(None) => {}
                Err(e) => tracing::warn!("recurrent states could not be kept: {e}"),
            }
        }
    }

    /// One step of rows, where there are any.
    fn step(&mut self) -> Result<()> {
        let mut waiting: Vec<Waiting> =
            self.slots.iter().enumerate().filter_map(|(i, s)| s.waiting(i, self.recurrent)).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let generating = waiting.iter().filter(|w| w.need == Need::Next).count();
        let prompts = Prompts::of(self.slots.iter().filter_map(|s| s.active.as_ref()?.prompt()));
        let limits = self.limits(generating, prompts);
        if generating > 0 && self.allowance.waits(limits.prompt_rows, prompts) {
            waiting.retain(|w| w.need == Need::Next);
        }
        let shares = self.fairness.schedule(&waiting, limits);
        let prompt_rows = shares.iter().map(|s| s.rows).sum::<usize>() - generating.min(shares.len());
        let laid_out = lay_out(&mut self.slots, &shares, &self.shared.metrics);
        let Some(layout) = laid_out else { return Ok(()) };
        let begin = Instant::now();
        let trace = self.shared.experts.are_wanted();
        self.runner.begin(&Step { rows: &layout.rows, masks: &layout.masks(), trace, ..Step::default() })?;
        if !self.finish_step(&shares, generating, prompt_rows)? {
            return Ok(());
        }
        let seconds = begin.elapsed().as_secs_f64();
        let alone = self.pace.predict(generating, 0);
        self.pace.learn(generating, prompt_rows, 1e6 * seconds);
        if let Some(alone) = alone.filter(|_| generating > 0) {
            let longer = if prompt_rows > 0 { 1e6 * seconds - alone } else { 0.0 };
            self.allowance.spend(alone, generating, prompts, longer);
        }
        self.shared.metrics.step(seconds, generating, prompt_rows);
        if trace {
            self.shared.experts.count(&self.runner.results().outputs);
        }
        self.take_results(&shares);
        if self.recurrent {
            self.checkpoint(&shares);
        }
        Ok(())
    }

    /// What the next step may take beside so many sequences that generate, where prompts wait.
    fn limits(&self, generating: usize, prompts: Prompts) -> Limits {
        let rows = self.options.runner.ubatch;
        let micros = match self.pace.predict(generating, 0) {
            Some(alone) if generating > 0 => self.allowance.of_step(alone, generating, prompts),
            _ => self.options.step_micros as f64,
        };
        let most = rows.saturating_sub(generating);
        Limits { rows, prompt_rows: self.pace.prompt_rows(generating, micros, most) }
    }

    /// Polls until the step is done; `false` where all of its clients went away meanwhile.
    fn finish_step(&mut self, shares: &[Share], generating: usize, prompt_rows: usize) -> Result<bool> {
        let expected = self.pace.predict(generating, prompt_rows);
        let short = expected.is_some_and(|t| t < 2.0 * SLICE as f64);
        let budget = if short { Budget::UNLIMITED } else { Budget::micros(SLICE) };
        loop {
            match self.runner.poll(budget)? {
                Status::Done => return Ok(true),
                Status::Idle => return Err(Error::Invalid("the runner dropped a step".into())),
                Status::Waiting => self.runner.wait()?,
                Status::Pending => {
                    let gone = |s: &Share| {
                        let active = &self.slots[s.sequence].active;
                        active.as_ref().is_none_or(|a| a.job.is_abandoned())
                    };
                    if shares.iter().all(gone) {
                        self.runner.cancel();
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Hands the results of a step to its jobs.
    fn take_results(&mut self, shares: &[Share]) {
        let ctx = self.options.runner.ctx;
        let (cols, hidden) = (self.model.vocab(), self.model.hyper().hidden.max(1));
        let results = self.runner.results();
        let logits = results.outputs.get(self.model.logits_output()).map_or(&[][..], |o| &o.f32);
        let mut logits = logits.chunks_exact(cols.max(1));
        let mut tokens = results.tokens.iter();
        for share in shares {
            let slot = &mut self.slots[share.sequence];
            let Some(mut active) = slot.active.take() else { continue };
            let reading = active.unread() > 0;
            let first = slot.text.len();
            if reading {
                slot.text.extend_from_slice(&active.job.prompt[active.fed..active.fed + share.rows]);
                active.fed += share.rows;
            } else {
                slot.text.push(active.last);
            }
            let prompt_logits = active.job.prompt_logprobs && reading;
            let ends = active.unread() == 0;
            if active.job.pooled.is_some() {
                let of = |(at, row): (&(usize, usize), _)| (at.0 == share.sequence).then_some(row);
                active.take_hidden(results.hidden_of.iter().zip(results.hidden.chunks_exact(hidden)).filter_map(of));
                if ends {
                    // The next one may have the place: no conversation goes on from there.
                    slot.used = 0;
                    active.finish_embedding(&self.shared.metrics);
                } else {
                    slot.active = Some(active);
                }
                continue;
            }
            let mut last = None;
            if prompt_logits {
                for position in first..slot.text.len() {
                    last = logits.next();
                    last.into_iter().for_each(|row| active.take_prompt_logits(position, row));
                }
            } else if ends && active.on_host {
                last = logits.next();
            }
            if !ends {
                slot.active = Some(active);
                continue;
            }
            let chosen = match active.on_host || prompt_logits {
                true => active.choose(&mut self.chooser, last),
                false => active.chosen(tokens.next()).map(|id| (id, None)),
            };
            let metrics = &self.shared.metrics;
            match chosen.and_then(|c| active.take(c, (slot.text.len(), ctx), metrics)) {
                Ok(None) => slot.active = Some(active),
                Ok(Some(reason)) => active.finish(reason, metrics),
                Err(e) => active.fail(e, metrics),
            }
        }
    }

    /// After an error of the device: all jobs of the step fail, and a new runner is made. `false` where there is none.
    fn start_again(&mut self, e: &Error) -> bool {
        tracing::error!("a step failed: {e}");
        self.runner.cancel();
        let metrics = &self.shared.metrics;
        for slot in &mut self.slots {
            slot.replace(vec![], vec![]);
            slot.active.take().into_iter().for_each(|a| a.fail(Error::Device(e.to_string()), metrics));
        }
        match self.model.loaded().runner(self.options.runner) {
            Ok(runner) => {
                self.runner = runner;
                true
            }
            Err(e) => {
                tracing::error!("no new runner: {e}");
                self.fail_all(&e.to_string());
                false
            }
        }
    }

    /// Ends every job with an error, those that have just come too.
    fn fail_all(&mut self, why: &str) {
        while let Ok(message) = self.inbox.try_recv() {
            // An order whose sender is dropped says so by itself.
            if let Message::Jobs(jobs) = message {
                self.waiting.extend(jobs);
            }
        }
        let metrics = &self.shared.metrics;
        for active in self.slots.iter_mut().filter_map(|s| s.active.take()) {
            active.fail(Error::Device(why.into()), metrics);
        }
        for job in self.waiting.drain(..) {
            metrics.finished(FinishReason::Failed, job.arrived.elapsed().as_secs_f64());
            job.send(Event::Failed(Error::Device(why.into())));
        }
    }

    /// Shows what the sequences do.
    fn publish(&self) {
        let mut status = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.slots.iter_mut().zip(&self.slots).for_each(|(to, slot)| *to = slot.status());
        let running = status.slots.iter().filter(|s| s.busy).count();
        let tokens = status.slots.iter().map(|s| s.tokens).sum();
        let capacity = self.slots.len() * self.options.runner.ctx;
        self.shared.metrics.state(running, tokens, capacity);
    }
}

/// However the thread ends, nobody waits for an answer that does not come, and no job is counted as running for ever.
impl Drop for Worker {
    fn drop(&mut self) {
        self.fail_all("the engine has ended");
    }
}
