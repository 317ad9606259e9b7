//! Signs of life: a thread of every rank gives them to the others and hears theirs.

use super::{Comm, SILENCE, checked, int};
use crate::error::Result;
use mpi::ffi;
use std::{
    mem::MaybeUninit,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// How often a rank gives one.
const BEAT: Duration = Duration::from_millis(200);

/// Signs of life.
#[derive(Default)]
pub(super) struct Pulse {
    pub stop: AtomicBool,
    /// Whether there are any.
    pub beats: AtomicBool,
    /// A silent rank and one; 0: none.
    pub lost: AtomicUsize,
}

/// The thread that gives and hears signs of life.
pub(super) struct Beats {
    comm: Comm,
    rank: usize,
    size: usize,
    pulse: Arc<Pulse>,
    /// The last sign to each rank, while it is on its way.
    sent: Vec<Option<ffi::MPI_Request>>,
    /// When a sign of each rank was last heard.
    heard: Vec<Instant>,
}

/// What a sign of life says: nothing.
static SIGN: u8 = 0;

impl Beats {
    pub fn new(comm: Comm, rank: usize, size: usize, pulse: Arc<Pulse>) -> Self {
        Beats { comm, rank, size, pulse, sent: (0..size).map(|_| None).collect(), heard: vec![Instant::now(); size] }
    }

    pub fn run(mut self) {
        while !self.pulse.stop.load(Ordering::Relaxed) {
            let (own, mut lost) = (self.rank, None);
            for rank in (0..self.size).filter(|r| *r != own) {
                if self.send(rank).is_err() || self.heard[rank].elapsed() > SILENCE {
                    lost = Some(rank);
                }
            }
            let heard = &mut self.heard;
            receive_beats(self.comm, |rank| {
                if let Some(at) = heard.get_mut(rank) {
                    *at = Instant::now();
                }
            });
            // What was heard just now counts: the process itself may have slept.
            if let Some(rank) = lost.filter(|r| self.heard[*r].elapsed() > BEAT) {
                self.pulse.lost.store(rank + 1, Ordering::Relaxed);
            }
            std::thread::sleep(BEAT);
        }
    }

    /// Gives a rank a sign, unless the last one is still on its way.
    fn send(&mut self, rank: usize) -> Result<()> {
        if let Some(request) = &mut self.sent[rank] {
            let mut done = 0;
            // SAFETY: the request is one that was begun and is not done.
            checked(unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) }, "a sign of life")?;
            if done == 0 {
                return Ok(());
            }
        }
        let (to, mut request) = (int(rank)?, MaybeUninit::uninit());
        let what = (&raw const SIGN).cast();
        // SAFETY: the byte is a static; the request is written where the pointer says.
        let code = unsafe { ffi::MPI_Isend(what, 1, ffi::RSMPI_UINT8_T, to, 0, self.comm.0, request.as_mut_ptr()) };
        checked(code, "a sign of life")?;
        // SAFETY: the call above has written the request.
        self.sent[rank] = Some(unsafe { request.assume_init() });
        Ok(())
    }
}

/// Hears what has come, by rank.
pub(super) fn receive_beats(comm: Comm, mut heard: impl FnMut(usize)) {
    loop {
        let (mut there, mut status) = (0, MaybeUninit::<ffi::MPI_Status>::uninit());
        // SAFETY: the communicator is valid; flag and status are where the pointers say.
        let code = unsafe { ffi::MPI_Iprobe(ffi::RSMPI_ANY_SOURCE, 0, comm.0, &mut there, status.as_mut_ptr()) };
        if code != 0 || there == 0 {
            return;
        }
        // SAFETY: the flag says that the status was written.
        let from = unsafe { status.assume_init() }.MPI_SOURCE;
        let mut byte = 0u8;
        // SAFETY: a message of one byte is there, and the byte is where the pointer says.
        let code = unsafe {
            let to = (&raw mut byte).cast();
            ffi::MPI_Recv(to, 1, ffi::RSMPI_UINT8_T, from, 0, comm.0, ffi::RSMPI_STATUS_IGNORE)
        };
        if code != 0 {
            return;
        }
        if let Ok(rank) = usize::try_from(from) {
            heard(rank);
        }
    }
}
