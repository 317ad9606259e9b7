//! The opened device: its handle and queue, the errors that it reports, buffers, and waits with a bound.

use super::DeviceCallbacks;
use crate::{
    error::{Error, Result},
    plan::Caps,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Locks, whatever happened to another thread that held the lock: the data are plain values.
pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Longest time in which a device may finish nothing at all before a wait for it gives up. One submission on a software device
/// can take minutes: a submission holds at most [`super::RunOptions::max_work`].
const WITHOUT_PROGRESS: Duration = Duration::from_secs(600);

/// How long one wait lasts before the errors are looked at again, and other threads may poll.
const PATIENCE: Duration = Duration::from_millis(2);

/// Looks at a shared device that follow each other at once, before the waiting thread begins to sleep between them.
const LOOKS: u32 = 64;

/// How long it sleeps then: a fraction of what a token takes.
const NAP: Duration = Duration::from_micros(50);

/// Work that was handed to the queue.
#[derive(Clone, Debug)]
pub(super) struct Submission {
    index: wgpu::SubmissionIndex,
    /// Set by the queue once the work is done. Only on devices that others poll too.
    done: Option<Arc<AtomicBool>>,
}

/// Errors that the device reported. Shared with the callbacks that wgpu calls.
#[derive(Debug, Default)]
pub(super) struct Errors {
    lost: Mutex<Option<String>>,
    other: Mutex<Option<String>>,
}

impl Errors {
    /// The error that was reported, if any. The loss of a device stays.
    pub fn take(&self) -> Result<()> {
        if let Some(why) = lock(&self.lost).as_ref() {
            return Err(Error::Device(format!("lost: {why}; open it again and load the model anew")));
        }
        lock(&self.other).take().map_or(Ok(()), |e| Err(Error::Device(e)))
    }

    /// Marks the device as lost; the first reason stays.
    pub fn lost(&self, why: String) {
        lock(&self.lost).get_or_insert(why);
    }

    /// Whether the device was marked as lost.
    pub fn is_lost(&self) -> bool {
        lock(&self.lost).is_some()
    }

    /// Lets wgpu report the device's loss and errors here. wgpu has one place for each of the two callbacks: whatever stood there
    /// before is replaced.
    pub fn install(self: &Arc<Self>, device: &wgpu::Device) {
        let (lost, other) = (self.clone(), self.clone());
        device.set_device_lost_callback(move |reason, what| lost.lost(format!("{reason:?} {what}")));
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            lock(&other.other).get_or_insert_with(|| e.to_string());
        }));
    }
}

/// What was asked of a device so far, for tests that hold it to limits.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub submissions: AtomicU64,
    /// Of training.
    pub dispatches: AtomicU64,
    /// Bytes read back while the host waits.
    pub read: AtomicU64,
}

/// A device and its queue. Everything that is loaded through it shares it.
pub(super) struct Device {
    pub raw: wgpu::Device,
    pub queue: wgpu::Queue,
    pub caps: Caps,
    pub errors: Arc<Errors>,
    /// Name and system, for messages.
    pub name: String,
    /// Whether errors outside scopes reach [`Device::errors`]. Where the host of an adopted device keeps the callbacks they do
    /// not: what is written and submitted runs within scopes, see [`Device::catching`].
    pub hears_errors: bool,
    /// Whether the host of an adopted device polls it and submits to it as well.
    shared: bool,
    /// Held while the device is polled. A wait of wgpu that times out panics where another thread's poll finishes the queue in the
    /// same moment, so polls take turns.
    polling: Arc<Mutex<()>>,
    /// Waits and mappings that were answered: a device that answers others is alive.
    answered: AtomicU64,
    pub traffic: Traffic,
}

impl Device {
    /// A device of our own, whose errors reach it; or a host's, with what the two agreed on.
    pub fn new(
        raw: wgpu::Device,
        queue: wgpu::Queue,
        caps: Caps,
        name: String,
        adopted: Option<DeviceCallbacks>,
    ) -> Self {
        let (errors, polling, answered, traffic) = Default::default();
        let hears_errors = adopted.is_none_or(|c| c == DeviceCallbacks::HandedOver);
        let shared = adopted.is_some();
        let device = Device { raw, queue, caps, errors, name, hears_errors, shared, polling, answered, traffic };
        if hears_errors {
            device.errors.install(&device.raw);
        }
        device
    }

    /// The same device, of which more is known.
    pub fn with_caps(&self, caps: Caps) -> Self {
        Device {
            raw: self.raw.clone(),
            queue: self.queue.clone(),
            caps,
            errors: self.errors.clone(),
            name: self.name.clone(),
            hears_errors: self.hears_errors,
            shared: self.shared,
            polling: self.polling.clone(),
            answered: AtomicU64::default(),
            traffic: Traffic::default(),
        }
    }

    /// Makes a buffer of `bytes` bytes, rounded up to whole words, at least 16.
    pub fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        if bytes > self.caps.max_buffer {
            let most = self.caps.max_buffer;
            return Err(Error::Device(format!(
                "{label} takes {bytes} bytes, a buffer of {} at most {most}",
                self.name
            )));
        }
        let size = bytes.max(16).next_multiple_of(4);
        let made = self.scoped(|d| {
            d.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
        });
        made.map_err(|e| {
            Error::Device(format!("{label} ({bytes} bytes): {e}; a smaller model, context or micro-batch helps"))
        })
    }

    /// Runs something that creates or submits, and gives what the device has against it.
    pub fn scoped<T>(&self, f: impl FnOnce(&wgpu::Device) -> T) -> Result<T, String> {
        let filters = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
        let [a, b, c] = filters.map(|f| self.raw.push_error_scope(f));
        let made = f(&self.raw);
        // Scopes are popped in reverse order.
        let errors = [c, b, a].map(|s| pollster::block_on(s.pop()));
        match errors.into_iter().flatten().next() {
            None => Ok(made),
            Some(e) => Err(e.to_string()),
        }
    }

    /// Runs something that writes, encodes or submits. Where the host of an adopted device keeps the callbacks, its errors are
    /// caught here, for this thread; otherwise [`Errors::take`] brings them.
    pub fn catching<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.hears_errors {
            return f();
        }
        let result = self.scoped(|_| f());
        // A loss is the better reason.
        self.errors.take()?;
        result.map_err(Error::Device)?
    }

    /// Waits for a submission, not much longer than `patience`; whether it is done.
    ///
    /// On a device of our own that is a wait of wgpu with a bound: polls take turns. A host that polls the same device or submits to
    /// it takes no turns, and a bounded wait of wgpu panics where another thread empties the queue while it gives up. There the
    /// queue says itself what is done, and polls do not wait.
    fn poll_for(&self, submission: &Submission, patience: Duration) -> Result<bool> {
        let Some(done) = &submission.done else {
            return self.poll(wgpu::PollType::Wait {
                submission_index: Some(submission.index.clone()),
                timeout: Some(patience),
            });
        };
        let begin = Instant::now();
        for look in 0.. {
            if !done.load(Ordering::Acquire) {
                self.poll(wgpu::PollType::Poll)?;
            }
            if done.load(Ordering::Acquire) {
                return Ok(true);
            }
            if begin.elapsed() >= patience {
                break;
            }
            if look < LOOKS { std::thread::yield_now() } else { std::thread::sleep(NAP) }
        }
        Ok(false)
    }

    /// One poll; `false` where it waits and its time was over.
    fn poll(&self, poll: wgpu::PollType) -> Result<bool> {
        let _turn = lock(&self.polling);
        // Where the driver reports the device's loss to the poll itself, wgpu panics: its poll has no error for that.
        let polled = catch_unwind(AssertUnwindSafe(|| self.raw.poll(poll)));
        self.errors.take()?;
        match polled {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(wgpu::PollError::Timeout)) => Ok(false),
            Ok(Err(e)) => Err(Error::Device(format!("{} does not answer: {e}", self.name))),
            Err(_) => {
                self.errors.lost("the driver failed while it was waited for".into());
                self.errors.take().map(|()| false)
            }
        }
    }

    /// Lets wgpu call the callbacks of what is done. On an adopted device these are the host's too.
    pub fn poll_once(&self) -> Result<()> {
        self.poll(wgpu::PollType::Poll).map(drop)
    }

    /// Submits. wgpu tidies up behind a submission as it does in a poll, so the two take turns.
    pub fn submit(&self, commands: impl IntoIterator<Item = wgpu::CommandBuffer>) -> Submission {
        let _turn = lock(&self.polling);
        self.traffic.submissions.fetch_add(1, Ordering::Relaxed);
        let index = self.queue.submit(commands);
        let done = self.shared.then(|| {
            let done = Arc::<AtomicBool>::default();
            let set = done.clone();
            self.queue.on_submitted_work_done(move || set.store(true, Ordering::Release));
            done
        });
        Submission { index, done }
    }

    /// Whether a submission is done. Does not block.
    pub fn is_done(&self, submission: &Submission) -> Result<bool> {
        let done = self.poll_for(submission, Duration::ZERO)?;
        if done {
            self.progress();
        }
        Ok(done)
    }

    /// Waits for what was submitted before this call.
    pub fn wait_idle(&self, what: &str) -> Result<()> {
        self.wait(&self.submit([]), what)
    }

    /// Waits for a submission. `what` says in messages what is waited for.
    ///
    /// # Errors
    /// [`Error::Device`] for a loss or an error of the device, and where it finishes nothing at all for
    /// [`WITHOUT_PROGRESS`].
    pub fn wait(&self, submission: &Submission, what: &str) -> Result<()> {
        let mut bound = self.bound();
        while !self.poll_for(submission, PATIENCE)? {
            bound.check(self, what)?;
        }
        self.progress();
        Ok(())
    }

    /// Something that was waited for has come.
    pub fn progress(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// The bound of a wait that begins now.
    pub fn bound(&self) -> Bound {
        Bound { since: Instant::now(), answered: self.answered.load(Ordering::Relaxed), limit: WITHOUT_PROGRESS }
    }
}

/// The end of a device's patience: a span of time without any progress.
pub(super) struct Bound {
    since: Instant,
    answered: u64,
    pub limit: Duration,
}

impl Bound {
    /// # Errors
    /// [`Error::Device`] where nothing came for too long.
    pub fn check(&mut self, device: &Device, what: &str) -> Result<()> {
        let answered = device.answered.load(Ordering::Relaxed);
        if answered != self.answered {
            (self.answered, self.since) = (answered, Instant::now());
        }
        if self.since.elapsed() <= self.limit {
            return Ok(());
        }
        let seconds = self.limit.as_secs();
        Err(Error::Device(format!("{} finished nothing for {seconds} seconds; waited for {what}", device.name)))
    }
}
