//! The engine: a thread that owns a runner and feeds it the rows of many jobs.
//!
//! [`Engine::submit`] puts jobs into a bounded queue; what becomes of them comes back through a channel, event by event. Nothing
//! here is asynchronous: the thread blocks only while there is nothing to do. A job whose receiver is gone is dropped, in the
//! queue, between two steps, and within a step where nobody else takes part in it.
//!
//! Deliberately absent: HTTP, JSON, chat templates.

mod active;
mod admit;
mod choose;
mod experts;
mod job;
mod layout;
mod orders;
mod placing;
mod slot;
mod status;
mod worker;

pub use experts::{ExpertLoad, LayerLoad};
pub use job::{Constraint, Done, Event, Finished, Job, OrderKind, Timings};
pub use status::{SlotStatus, Status};

use super::metrics::Metrics;
use crate::{
    backend::runner::RunnerOptions,
    error::{Error, Result},
    session::Model,
};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use tokio::sync::oneshot;

/// Size of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences, the context of each, rows of a step, storage of keys and values.
    pub runner: RunnerOptions,
    /// Jobs that may wait for a sequence.
    pub queue: usize,
    /// Microseconds that a step may take in which nobody generates.
    pub step_micros: u64,
    /// Bytes of host memory for texts that left their sequences ([`super::prefix`]); 0 keeps none.
    pub prefix_bytes: u64,
}

/// Why jobs were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As many wait as may; seconds after which to try again.
    Full(u64),
    /// The server ends.
    Closing,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    inbox: Mutex<Option<mpsc::Sender<job::Message>>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// What the thread and its clients both see.
#[derive(Debug)]
struct Shared {
    metrics: Arc<Metrics>,
    status: Mutex<Status>,
    experts: experts::Experts,
}

impl Engine {
    /// Makes the runner and starts the thread.
    ///
    /// # Errors
    /// As [`crate::session::Batch::new`]; [`Error::Tokenizer`] for a model without a tokenizer; [`Error::Device`] where the system
    /// gives no thread.
    pub fn start(model: &Model, options: EngineOptions, metrics: Arc<Metrics>) -> Result<Engine> {
        model.require_tokenizer()?;
        let runner = model.loaded().runner(options.runner)?;
        let status = Status::new(options.runner.sequences, runner.memory_bytes());
        let experts = experts::Experts::new(&model.definition().program.graph);
        let shared = Arc::new(Shared { metrics, status: Mutex::new(status), experts });
        let (inbox, jobs) = mpsc::channel();
        let mut worker = worker::Worker::new(model.clone(), runner, options, shared.clone(), jobs);
        let thread = std::thread::Builder::new().name("moeray engine".into()).spawn(move || worker.run());
        let thread = thread.map_err(|e| Error::Device(format!("no thread for the engine: {e}")))?;
        Ok(Engine { options, inbox: Mutex::new(Some(inbox)), shared, thread: Mutex::new(Some(thread)) })
    }

    /// The options it was started with.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Positions of each sequence.
    pub fn ctx(&self) -> usize {
        self.options.runner.ctx
    }

    /// Queues the jobs of one request, all or none.
    ///
    /// # Errors
    /// Where the queue is full, or the engine ends.
    pub fn submit(&self, jobs: Vec<Job>) -> Result<(), Refused> {
        let metrics = &self.shared.metrics;
        let n = jobs.len();
        let most = self.options.runner.sequences + self.options.queue;
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inbox) = inbox.as_ref() else { return Err(Refused::Closing) };
        if metrics.jobs() >= most {
            metrics.refused();
            return Err(Refused::Full(metrics.wait_estimate(self.options.runner.sequences)));
        }
        metrics.submitted(n);
        inbox.send(job::Message::Jobs(jobs)).map_err(|_| {
            metrics.ended(n);
            Refused::Closing
        })
    }

    /// Saves, restores or empties a sequence between two steps; what becomes of it comes through the receiver, which fails where the
    /// engine ends.
    ///
    /// # Errors
    /// Where the engine ends.
    pub fn order(&self, sequence: usize, kind: OrderKind) -> Result<oneshot::Receiver<crate::Result<Done>>, Refused> {
        let (reply, done) = oneshot::channel();
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inbox) = inbox.as_ref() else { return Err(Refused::Closing) };
        let order = job::Order { sequence, kind, reply };
        inbox.send(job::Message::Order(order)).map_err(|_| Refused::Closing)?;
        Ok(done)
    }

    /// What the sequences do.
    pub fn status(&self) -> Status {
        self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often experts were chosen by the last tokens that were looked at; `None` for a model without experts, or loaded without
    /// [`crate::model::Options::trace_router`]. Steps are counted for some seconds after each call.
    pub fn experts(&self) -> Option<ExpertLoad> {
        self.shared.experts.look()
    }

    /// Takes no more jobs; the thread ends once those that it has are done.
    pub fn close(&self) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Whether the thread still runs: it ends by itself only after [`Engine::close`], or where no runner can be made any more.
    pub fn is_alive(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|t| !t.is_finished())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread has panicked");
        }
    }
}
