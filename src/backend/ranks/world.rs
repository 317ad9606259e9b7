//! Ranks with what has to be agreed on before and while they work together, and counts of what they do.

use super::{Ranks, bytes_of, words_of};
use crate::error::{Error, Result};
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// See the module's description.
pub struct World {
    ranks: Box<dyn Ranks>,
    counts: Mutex<Counts>,
    /// Something went wrong in between: nobody knows any more who waits for what.
    apart: AtomicBool,
    /// All ranks have come to the same refusal.
    refused: AtomicBool,
}

/// What a rank has done together with the others.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Everybody's words to everybody.
    pub gathers: u64,
    /// Other words to each.
    pub exchanges: u64,
    /// Rank 0's words to everybody.
    pub broadcasts: u64,
    /// Bytes that this rank has received in the first two.
    pub received: u64,
    /// Seconds that this rank has spent in the first two, waiting for slower ranks included.
    pub seconds: f64,
}

/// What a rank brings: it must be the same on all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joining {
    /// A number that follows from the model's sizes, names, formats and some bytes of each weight.
    pub model: u64,
    /// How it is run, in words.
    pub options: String,
}

/// What one of several kinds of calls comes to.
enum Kind {
    Gather,
    Exchange,
    Broadcast,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

/// Words of what a rank brings, before its text: 1 where it comes with an error, the model's number, that of the options, bytes of the text.
const RECORD: usize = 6;

impl World {
    /// Of these ranks.
    pub fn new(ranks: Box<dyn Ranks>) -> World {
        let (apart, refused) = (AtomicBool::new(false), AtomicBool::new(false));
        World { ranks, counts: Mutex::default(), apart, refused }
    }

    /// The number of this rank.
    pub fn rank(&self) -> usize {
        self.ranks.rank()
    }

    /// How many ranks there are.
    pub fn size(&self) -> usize {
        self.ranks.size()
    }

    /// How many they are and what connects them, for the closing line of a run.
    pub fn describe(&self) -> String {
        format!("{} ranks ({})", self.size(), self.ranks.name())
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an error came in between, so that the ranks can do nothing more together.
    pub fn is_apart(&self) -> bool {
        self.apart.load(Ordering::Relaxed)
    }

    /// Whether all ranks have come to the same refusal, which need be said only once.
    pub fn has_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// See [`Ranks::all_gather`].
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn all_gather(&self, own: &[u32], counts: &[usize], all: &mut Vec<u32>) -> Result<()> {
        self.counted(Kind::Gather, counts, || self.ranks.all_gather(own, counts, all))
    }

    /// See [`Ranks::all_to_all`].
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn all_to_all(
        &self,
        send: &[u32],
        send_counts: &[usize],
        counts: &[usize],
        received: &mut Vec<u32>,
    ) -> Result<()> {
        self.counted(Kind::Exchange, counts, || self.ranks.all_to_all(send, send_counts, counts, received))
    }

    /// See [`Ranks::broadcast`].
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn broadcast(&self, words: &mut Vec<u32>) -> Result<()> {
        self.counted(Kind::Broadcast, &[], || self.ranks.broadcast(words))
    }

    fn counted(&self, kind: Kind, counts: &[usize], work: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.is_apart() {
            return Err(Error::Network("the ranks have parted after an error".into()));
        }
        let clock = Instant::now();
        let done = work();
        self.apart.fetch_or(done.is_err(), Ordering::Relaxed);
        let mut c = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.get(self.rank()).copied().unwrap_or(0);
        c.received += 4 * (counts.iter().sum::<usize>() - own) as u64;
        match kind {
            Kind::Gather => c.gathers += 1,
            Kind::Exchange => c.exchanges += 1,
            Kind::Broadcast => c.broadcasts += 1,
        }
        if !matches!(kind, Kind::Broadcast) {
            c.seconds += clock.elapsed().as_secs_f64();
        }
        done
    }

    /// Says that this rank can do no more together with the others, who find out when they wait for it.
    pub fn part(&self) {
        self.apart.store(true, Ordering::Relaxed);
    }

    /// Meets the others, who must bring the same.
    ///
    /// # Errors
    /// On the rank that comes with an error, that; on all others, and where ranks bring different things, [`Error::Invalid`] with who
    /// brings what. [`Error::Network`].
    pub fn join(&self, own: Result<Joining>) -> Result<()> {
        let (text, model) = match &own {
            Ok(j) => (j.options.clone(), j.model),
            Err(e) => (e.to_string(), 0),
        };
        let options = crate::backend::runner::checksum(text.as_bytes());
        let halves = |n: u64| [n as u32, (n >> 32) as u32];
        let [m, o] = [halves(model), halves(options)];
        let record = [u32::from(own.is_err()), m[0], m[1], o[0], o[1], text.len() as u32];
        let mut records = vec![];
        self.all_gather(&record, &vec![RECORD; self.size()], &mut records)?;
        let of = |r: usize| &records[r * RECORD..(r + 1) * RECORD];
        let failed = (0..self.size()).find(|r| of(*r)[0] != 0);
        let other = (0..self.size()).find(|r| of(*r)[..5] != of(0)[..5]);
        let Some(rank) = failed.or(other) else { return Ok(()) };
        let texts = self.texts(&text, (0..self.size()).map(|r| of(r)[5] as usize).collect())?;
        self.refused.store(true, Ordering::Relaxed);
        own?;
        Err(Error::Invalid(match () {
            () if failed.is_some() => format!("rank {rank}: {}", texts[rank]),
            () if of(rank)[1..3] != of(0)[1..3] => {
                format!("rank {rank} has another model than rank 0: names, sizes, formats or bytes of weights differ")
            }
            () => format!("rank {rank} runs otherwise than rank 0: {} there, {} here", texts[rank], texts[0]),
        }))
    }

    /// Everybody's texts, of so many bytes.
    fn texts(&self, own: &str, bytes: Vec<usize>) -> Result<Vec<String>> {
        let counts: Vec<usize> = bytes.iter().map(|n| n.div_ceil(4)).collect();
        let mut all = vec![];
        let own: Vec<u32> = words_of(own.as_bytes()).collect();
        self.all_gather(&own, &counts, &mut all)?;
        let mut rest = &all[..];
        let text = |(count, n): (&usize, &usize)| {
            let (front, behind) = rest.split_at(*count);
            rest = behind;
            String::from_utf8_lossy(&bytes_of(front, *n)).into_owned()
        };
        Ok(counts.iter().zip(&bytes).map(text).collect())
    }

    /// Goes on only where all ranks can.
    ///
    /// # Errors
    /// As [`World::join`].
    pub fn agree<T>(&self, own: Result<T>) -> Result<T> {
        self.meet(own.map(|made| (made, Joining { model: 0, options: String::new() })))
    }

    /// Goes on with what was made where all ranks can, and bring the same.
    ///
    /// # Errors
    /// As [`World::join`].
    pub fn meet<T>(&self, own: Result<(T, Joining)>) -> Result<T> {
        match own {
            Ok((made, joining)) => self.join(Ok(joining)).map(|()| made),
            Err(e) => {
                self.join(Err(e))?;
                Err(Error::Network("the ranks do not agree that one has failed".into()))
            }
        }
    }

    /// Leaves, together with the others unless an error came in between.
    ///
    /// # Errors
    /// [`Error::Network`].
    pub fn leave(&self) -> Result<()> {
        self.ranks.leave(!self.is_apart())
    }
}
