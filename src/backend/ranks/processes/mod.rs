//! Ranks that are processes which MPI has started (`mpirun -n 4 ...`), on one host or several.
//!
//! Nothing here blocks for ever. Collectives are begun and looked at again and again, and a thread of every rank gives the others a sign of
//! life five times a second, on a communicator of its own: where none comes for 3 seconds, whoever waits gets an error, though MPI itself
//! might wait for ever. (`mpirun` ends all ranks as soon as it sees one die; launchers that do not, and hosts that vanish, are why this is
//! here.) A rank that computes for long is no silent one.
//!
//! The raw functions of the crate are called, because its safe ones give no error codes.

mod beats;

use super::Ranks;
use crate::error::{Error, Result};
use beats::{Beats, Pulse, receive_beats};
use mpi::{Threading, environment::Universe, ffi};
use std::{
    ffi::c_int,
    mem::MaybeUninit,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a rank may give no sign of life.
pub const SILENCE: Duration = Duration::from_secs(3);

/// How long a rank waits for another where MPI does not let several threads call it, so that there are no signs of life.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long somebody who was told to stop waits for what would let it stop in order.
const GRACE: Duration = Duration::from_millis(400);

/// Words of the first part of a broadcast: most are no longer.
const HEAD: usize = 64;

/// A communicator: a handle that MPI made, valid until MPI is left.
#[derive(Clone, Copy)]
struct Comm(ffi::MPI_Comm);

// SAFETY: a handle of MPI, which was asked to be called from several threads, may be used by any of them; where it refused, only one does.
unsafe impl Send for Comm {}
// SAFETY: as above.
unsafe impl Sync for Comm {}

struct Mpi {
    comm: Comm,
    beats: Comm,
    rank: usize,
    size: usize,
    buffers: Mutex<Buffers>,
    pulse: Arc<Pulse>,
    /// Whether the program was told to stop.
    stopped: fn() -> bool,
    held: Mutex<Held>,
}

/// What ends with the ranks.
struct Held {
    universe: Option<Universe>,
    thread: Option<JoinHandle<()>>,
}

/// What a collective under way reads and writes.
#[derive(Default)]
struct Buffers {
    send: Vec<u32>,
    receive: Vec<u32>,
    send_counts: Vec<c_int>,
    send_from: Vec<c_int>,
    counts: Vec<c_int>,
    from: Vec<c_int>,
}

/// Meets the ranks that MPI has started. `stopped` says whether the program was told to stop, by a signal as a rule.
///
/// # Errors
/// [`Error::Network`] where MPI was begun already, or refuses.
pub fn processes(stopped: fn() -> bool) -> Result<Box<dyn Ranks>> {
    let (universe, level) = mpi::initialize_with_threading(Threading::Multiple)
        .ok_or_else(|| Error::Network("MPI was begun by somebody else in this process".into()))?;
    let (comm, beats) = (duplicate()?, duplicate()?);
    let (mut rank, mut size) = (0, 0);
    // SAFETY: the communicator is valid, and the numbers are where the pointers say.
    let codes = unsafe { [ffi::MPI_Comm_rank(comm.0, &mut rank), ffi::MPI_Comm_size(comm.0, &mut size)] };
    codes.into_iter().try_for_each(|code| checked(code, "ranks"))?;
    let (rank, size) = (rank as usize, size as usize);
    let pulse = Arc::new(Pulse::default());
    let thread = if level == Threading::Multiple && size > 1 {
        pulse.beats.store(true, Ordering::Relaxed);
        let own = pulse.clone();
        let heart = std::thread::Builder::new().name("signs of life".into());
        let started = heart.spawn(move || Beats::new(beats, rank, size, own).run());
        Some(started.map_err(|e| Error::Network(format!("no thread for signs of life: {e}")))?)
    } else {
        None
    };
    let held = Mutex::new(Held { universe: Some(universe), thread });
    Ok(Box::new(Mpi { comm, beats, rank, size, buffers: Mutex::default(), pulse, stopped, held }))
}

/// An error where MPI's code says so.
fn checked(code: c_int, what: &str) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::Network(format!("MPI: {what}: error {code}"))) }
}

/// A communicator of all ranks whose errors come back instead of ending the process.
fn duplicate() -> Result<Comm> {
    let mut comm = MaybeUninit::<ffi::MPI_Comm>::uninit();
    // SAFETY: MPI was begun; the handle is written where the pointer says.
    checked(unsafe { ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, comm.as_mut_ptr()) }, "a communicator")?;
    // SAFETY: the call above succeeded, so the handle was written.
    let comm = unsafe { comm.assume_init() };
    // SAFETY: the handle is valid, and the handler is one of MPI's own.
    checked(unsafe { ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN) }, "errors that come back")?;
    Ok(Comm(comm))
}

/// A length as MPI counts.
fn int(n: usize) -> Result<c_int> {
    c_int::try_from(n).map_err(|_| Error::Network(format!("{n} words are more than MPI counts in one message")))
}

/// Counts and where each begins, as MPI wants them.
fn places(counts: &[usize], to: &mut Vec<c_int>, from: &mut Vec<c_int>) -> Result<usize> {
    to.clear();
    from.clear();
    let mut at = 0;
    for n in counts {
        to.push(int(*n)?);
        from.push(int(at)?);
        at += n;
    }
    int(at)?;
    Ok(at)
}

impl Mpi {
    fn buffers(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a collective that was begun, and whose memory is in `buffers`.
    fn finish(
        &self,
        code: c_int,
        request: MaybeUninit<ffi::MPI_Request>,
        buffers: &mut Buffers,
        idle: bool,
    ) -> Result<()> {
        checked(code, "a message")?;
        // SAFETY: the call that begins a collective has written the request where it succeeded.
        let done = self.wait(unsafe { request.assume_init() }, idle);
        if done.is_err() {
            // MPI may still write to it: the memory is given up.
            std::mem::forget(std::mem::take(buffers));
        }
        done
    }

    /// Waits for a request; `idle`: as long as it takes, for there may be nothing to do for now.
    fn wait(&self, mut request: ffi::MPI_Request, idle: bool) -> Result<()> {
        let (clock, mut told, mut looks) = (Instant::now(), None, 0u32);
        loop {
            let mut done = 0;
            // SAFETY: the request is one that was begun and is not done; the flag is where the pointer says.
            checked(unsafe { ffi::MPI_Test(&mut request, &mut done, ffi::RSMPI_STATUS_IGNORE) }, "a message")?;
            if done != 0 {
                return Ok(());
            }
            looks = looks.wrapping_add(1);
            // Other ranks may want this core.
            std::thread::yield_now();
            if !looks.is_multiple_of(64) {
                continue;
            }
            let waited = clock.elapsed();
            self.check(waited, idle)?;
            if (self.stopped)() && told.get_or_insert_with(Instant::now).elapsed() > GRACE {
                return Err(Error::Network(
                    "told to stop while waiting for the other ranks: one of them may be gone, of which mpirun then says more".into(),
                ));
            }
            match waited.as_millis() {
                0..5 => {}
                5..200 => std::thread::sleep(Duration::from_micros(30)),
                _ => std::thread::sleep(Duration::from_micros(if idle { 500 } else { 50 })),
            }
        }
    }

    fn check(&self, waited: Duration, idle: bool) -> Result<()> {
        match self.pulse.lost.load(Ordering::Relaxed) {
            0 if !idle && waited > PATIENCE && !self.pulse.beats.load(Ordering::Relaxed) => {
                Err(Error::Network(format!("no answer of the other ranks for {} s", PATIENCE.as_secs())))
            }
            0 => Ok(()),
            lost => Err(Error::Network(format!(
                "rank {} has given no sign of life for {} s: its process or its host is gone",
                lost - 1,
                SILENCE.as_secs()
            ))),
        }
    }

    /// Rank 0's `n` words of `buffers.receive` to everybody.
    fn spread(&self, buffers: &mut Buffers, n: usize, idle: bool) -> Result<()> {
        let n = int(n)?;
        let mut request = MaybeUninit::uninit();
        // SAFETY: the buffer has so many words and stays where it is until the request is done; see `finish`.
        let code = unsafe {
            ffi::MPI_Ibcast(
                buffers.receive.as_mut_ptr().cast(),
                n,
                ffi::RSMPI_UINT32_T,
                0,
                self.comm.0,
                request.as_mut_ptr(),
            )
        };
        self.finish(code, request, buffers, idle)
    }

    fn barrier(&self) -> Result<()> {
        let mut request = MaybeUninit::uninit();
        // SAFETY: the communicator is valid; the request is written where the pointer says.
        let code = unsafe { ffi::MPI_Ibarrier(self.comm.0, request.as_mut_ptr()) };
        self.finish(code, request, &mut Buffers::default(), false)
    }
}

impl Ranks for Mpi {
    fn name(&self) -> &'static str {
        "MPI"
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, own: &[u32], counts: &[usize], all: &mut Vec<u32>) -> Result<()> {
        let mut guard = self.buffers();
        let b = &mut *guard;
        b.send.clear();
        b.send.extend_from_slice(own);
        let total = places(counts, &mut b.counts, &mut b.from)?;
        b.receive.resize(total, 0);
        let (n, mut request) = (int(own.len())?, MaybeUninit::uninit());
        // SAFETY: the buffers have as many words as their counts say, and they and the counts stay where they are until the request is
        // done; see `finish`.
        let code = unsafe {
            ffi::MPI_Iallgatherv(
                b.send.as_ptr().cast(),
                n,
                ffi::RSMPI_UINT32_T,
                b.receive.as_mut_ptr().cast(),
                b.counts.as_ptr(),
                b.from.as_ptr(),
                ffi::RSMPI_UINT32_T,
                self.comm.0,
                request.as_mut_ptr(),
            )
        };
        self.finish(code, request, b, false)?;
        std::mem::swap(all, &mut b.receive);
        Ok(())
    }

    fn all_to_all(&self, send: &[u32], send_counts: &[usize], counts: &[usize], received: &mut Vec<u32>) -> Result<()> {
        let mut guard = self.buffers();
        let b = &mut *guard;
        b.send.clear();
        b.send.extend_from_slice(send);
        if places(send_counts, &mut b.send_counts, &mut b.send_from)? != send.len() {
            return Err(Error::Graph("words for ranks that are not there".into()));
        }
        let total = places(counts, &mut b.counts, &mut b.from)?;
        b.receive.resize(total, 0);
        let mut request = MaybeUninit::uninit();
        // SAFETY: as in `all_gather`.
        let code = unsafe {
            ffi::MPI_Ialltoallv(
                b.send.as_ptr().cast(),
                b.send_counts.as_ptr(),
                b.send_from.as_ptr(),
                ffi::RSMPI_UINT32_T,
                b.receive.as_mut_ptr().cast(),
                b.counts.as_ptr(),
                b.from.as_ptr(),
                ffi::RSMPI_UINT32_T,
                self.comm.0,
                request.as_mut_ptr(),
            )
        };
        self.finish(code, request, b, false)?;
        std::mem::swap(received, &mut b.receive);
        Ok(())
    }

    fn broadcast(&self, words: &mut Vec<u32>) -> Result<()> {
        let mut guard = self.buffers();
        let b = &mut *guard;
        b.receive.clear();
        if self.rank == 0 {
            b.receive.push(int(words.len())? as u32);
            b.receive.extend(words.iter().take(HEAD - 1));
        }
        b.receive.resize(HEAD, 0);
        self.spread(b, HEAD, true)?;
        let len = b.receive[0] as usize;
        let front = len.min(HEAD - 1);
        if self.rank > 0 {
            words.clear();
            words.extend_from_slice(&b.receive[1..1 + front]);
        }
        if len > front {
            b.receive.clear();
            if self.rank == 0 {
                b.receive.extend_from_slice(&words[front..]);
            }
            b.receive.resize(len - front, 0);
            self.spread(b, len - front, false)?;
            if self.rank > 0 {
                words.extend_from_slice(&b.receive);
            }
        }
        Ok(())
    }

    fn leave(&self, together: bool) -> Result<()> {
        // Signs of life go on until all are here.
        let here = if together { self.barrier() } else { Ok(()) };
        self.pulse.stop.store(true, Ordering::Relaxed);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = held.thread.take() {
            _ = thread.join();
        }
        let Some(universe) = held.universe.take() else { return here };
        let settled = here.and_then(|()| if together { self.barrier() } else { Ok(()) });
        if together && settled.is_ok() {
            receive_beats(self.beats, |_| {});
            // Ends MPI, which waits for all ranks: they are there.
            drop(universe);
        } else {
            // To end MPI in order would wait for ranks that do not come.
            std::mem::forget(universe);
        }
        settled
    }
}
