//! The thread pool: persistent workers that spin for a short time after a job and then sleep.
//!
//! A job is a number of independent items. Each worker gets a contiguous range of them (memory is then read in order, as
//! hardware prefetchers like it), and idle workers steal from the ranges of others. Where a job can compute neighbouring items
//! in one call, a worker takes half of what is left of a range at a time: few calls, and small ones at the end, when workers
//! wait for each other. The calling thread works too, as worker 0. Which worker computes an item never changes the item's
//! result, so results do not depend on the number of threads.
//!
//! Jobs of several callers run one after the other, in the order of their arrival (a ticket lock), so two sessions on one pool
//! make progress side by side and never use more threads than the pool has. A worker that is late (asleep, or not scheduled by
//! the system) holds nobody up: a job closes when all its items are taken, and its caller waits only for workers that joined.

use crate::error::{Error, Result};
use std::{
    cell::{Cell, UnsafeCell},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a worker spins for the next job before it sleeps: longer than the serial code between two jobs of a token.
const SPIN: Duration = Duration::from_micros(60);

/// The function that a job calls with the worker's number and a range of items.
type Work<'a> = dyn Fn(usize, Range<usize>) + Sync + 'a;

/// The fields of `PoolState::state`: the number of workers that are in the job (`ACTIVE`), whether workers may still join it
/// (`OPEN`), and the job's number (the bits from `NUMBER` on).
const ACTIVE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const NUMBER: u64 = 1 << 17;

thread_local! {
    /// Whether this thread is running an item: a job that is started inside an item runs on the spot.
    static WORKING: Cell<bool> = const { Cell::new(false) };
}

/// The range of items of one worker, aligned so that no two ranges share a cache line.
#[repr(align(128))]
struct ItemRange {
    next: AtomicUsize,
    end: AtomicUsize,
}

/// A job: the function to call, and the most items that one call takes.
#[derive(Clone, Copy)]
struct Job<'a> {
    work: &'a Work<'a>,
    max_items: usize,
}

struct PoolState {
    state: AtomicU64,
    job: UnsafeCell<Option<Job<'static>>>,
    ranges: Box<[ItemRange]>,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    condvar: Condvar,
}

// SAFETY: `job` is written only by the caller that holds the ticket lock, while no worker is in a job (`ACTIVE` is 0 and `OPEN` is
// clear), and read only by workers that joined through a successful compare-exchange on `state`, which orders the accesses.
unsafe impl Sync for PoolState {}
// SAFETY: the only field that is not `Send` by itself is the job reference; what it refers to is `Sync`.
unsafe impl Send for PoolState {}

/// A ticket lock: callers are served in the order in which they ask.
#[derive(Default)]
struct TicketLock {
    /// The next ticket number to hand out, and the number that is being served.
    state: Mutex<(u64, u64)>,
    condvar: Condvar,
}

impl TicketLock {
    fn take(&self) -> Ticket<'_> {
        let mut s = lock_unpoisoned(&self.state);
        let mine = s.0;
        s.0 += 1;
        while s.1 != mine {
            s = self.condvar.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        Ticket(self)
    }
}

struct Ticket<'a>(&'a TicketLock);

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut s = lock_unpoisoned(&self.0.state);
        s.1 += 1;
        if s.0 != s.1 {
            self.0.condvar.notify_all();
        }
    }
}

/// Locks a mutex even if another thread panicked while it held the lock: the data under this crate's locks stays valid then.
pub(super) fn lock_unpoisoned<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pool of worker threads. Dropping it ends them.
pub struct Pool {
    shared: Arc<PoolState>,
    callers: TicketLock,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts a pool in which `threads` threads compute, the calling thread included.
    ///
    /// # Errors
    /// [`Error::Invalid`] for none or more than 1024; [`Error::Device`] where the system refuses a thread.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 || threads > 1024 {
            return Err(Error::Invalid(format!("{threads} threads: give 1 to 1024")));
        }
        let shared = Arc::new(PoolState {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            ranges: (0..threads).map(|_| ItemRange { next: AtomicUsize::new(0), end: AtomicUsize::new(0) }).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            condvar: Condvar::new(),
        });
        let mut pool = Pool { shared, callers: TicketLock::default(), workers: Vec::with_capacity(threads - 1) };
        for w in 1..threads {
            let shared = pool.shared.clone();
            let made = std::thread::Builder::new().name(format!("moeray-{w}")).spawn(move || shared.serve(w));
            pool.workers.push(made.map_err(|e| Error::Device(format!("cannot start thread {w} of {threads}: {e}")))?);
        }
        Ok(pool)
    }

    /// The number of threads that compute, the calling thread included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(worker, item)` for every item of `0..items`, each once, and returns when all are done. No two calls at a
    /// time have the same worker number (below [`Pool::threads`]). A call from within an item runs on the spot, as worker 0.
    ///
    /// # Errors
    /// [`Error::Device`] where an item panicked; the other items may be left undone.
    pub fn run(&self, items: usize, work: &(dyn Fn(usize, usize) + Sync)) -> Result<()> {
        self.run_spans(items, 1, &|worker, items| work(worker, items.start))
    }

    /// The same as [`Pool::run`] for work that can compute up to `max_items` neighbouring items in one call: calls
    /// `work(worker, items)` for ranges that together are `0..items`.
    ///
    /// # Errors
    /// As [`Pool::run`].
    pub fn run_spans(&self, items: usize, max_items: usize, work: &Work<'_>) -> Result<()> {
        if items == 0 {
            return Ok(());
        }
        let max_items = max_items.max(1);
        if items == 1 || self.workers.is_empty() || WORKING.get() {
            let all = || (0..items).step_by(max_items).for_each(|i| work(0, i..items.min(i + max_items)));
            return catch_unwind(AssertUnwindSafe(all)).map_err(|_| broken());
        }
        let _ticket = self.callers.take();
        let s = &*self.shared;
        let n = s.ranges.len();
        for (w, run) in s.ranges.iter().enumerate() {
            run.next.store(items * w / n, Ordering::Relaxed);
            run.end.store(items * (w + 1) / n, Ordering::Relaxed);
        }
        s.panicked.store(false, Ordering::Relaxed);
        // SAFETY: only the lifetime changes, and the reference is dropped before `work` can be: this function returns only
        // after the job is closed and every worker that joined it has left.
        let job = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(Job { work, max_items }) };
        // SAFETY: this caller holds the ticket lock and no worker is in a job, see `PoolState`.
        unsafe { *s.job.get() = Some(job) };
        let number = (s.state.load(Ordering::Relaxed) & !(ACTIVE | OPEN)).wrapping_add(NUMBER);
        s.state.store(number | OPEN, Ordering::SeqCst);
        if s.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock_unpoisoned(&s.lock));
            s.condvar.notify_all();
        }
        s.work(0, job);
        s.state.fetch_and(!OPEN, Ordering::AcqRel);
        wait_until(|| s.state.load(Ordering::Acquire) & ACTIVE == 0);
        // SAFETY: as above; the job is closed and empty.
        unsafe { *s.job.get() = None };
        if s.panicked.load(Ordering::Acquire) { Err(broken()) } else { Ok(()) }
    }
}

fn broken() -> Error {
    Error::Device("a computation on the CPU panicked; this is a defect of the program".into())
}

/// Waits for `done`: spins first, then yields to other threads.
fn wait_until(done: impl Fn() -> bool) {
    let mut spins = 0u32;
    while !done() {
        spins = spins.saturating_add(1);
        if spins < 4096 { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

impl PoolState {
    /// Computes items until none is left: first those of the worker's own range, then those of the others.
    fn work(&self, worker: usize, job: Job<'_>) {
        WORKING.set(true);
        let n = self.ranges.len();
        let all = || {
            for run in (0..n).map(|i| &self.ranges[(worker + i) % n]) {
                let end = run.end.load(Ordering::Relaxed);
                while !self.panicked.load(Ordering::Relaxed) {
                    // Another worker may take items between these two lines; then this is not exactly half.
                    let left = end.saturating_sub(run.next.load(Ordering::Relaxed));
                    let take = (left / 2).clamp(1, job.max_items);
                    let first = run.next.fetch_add(take, Ordering::Relaxed);
                    if first >= end {
                        break;
                    }
                    (job.work)(worker, first..end.min(first + take));
                }
            }
        };
        if catch_unwind(AssertUnwindSafe(all)).is_err() {
            self.panicked.store(true, Ordering::Release);
        }
        WORKING.set(false);
    }

    /// The loop of a worker thread: joins one job after the other.
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        while let Some(state) = self.next_job(seen) {
            if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            seen = state & !(ACTIVE | OPEN);
            // SAFETY: this worker has joined the job, so its caller waits for it before it changes the cell or returns.
            if let Some(job) = unsafe { *self.job.get() } {
                self.work(worker, job);
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for an open job other than `seen`; `None` when the pool ends.
    fn next_job(&self, seen: u64) -> Option<u64> {
        let ready = || {
            let s = self.state.load(Ordering::SeqCst);
            (s & OPEN != 0 && s & !(ACTIVE | OPEN) != seen).then_some(s)
        };
        let start = Instant::now();
        loop {
            for _ in 0..128 {
                if let Some(s) = ready() {
                    return Some(s);
                }
                std::hint::spin_loop();
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        let mut guard = lock_unpoisoned(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            if self.stop.load(Ordering::SeqCst) {
                break None;
            }
            if let Some(s) = ready() {
                break Some(s);
            }
            guard = self.condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        found
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        drop(lock_unpoisoned(&self.shared.lock));
        self.shared.condvar.notify_all();
        for w in self.workers.drain(..) {
            // Workers catch the panics of their items, so `join` never reports one.
            drop(w.join());
        }
    }
}

/// The default number of threads: physical cores where the system tells them, else what it lets this process use at once.
pub fn default_threads() -> usize {
    let usable = std::thread::available_parallelism().map_or(1, |n| n.get());
    physical_cores().map_or(usable, |cores| cores.clamp(1, usable))
}

/// Distinct sets of hardware threads that share a core (Linux); `None` where that cannot be read.
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::BTreeSet::new();
    for cpu in 0..1024 {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        match std::fs::read_to_string(path) {
            Ok(list) => cores.insert(list),
            Err(_) => break,
        };
    }
    (!cores.is_empty()).then_some(cores.len())
}
