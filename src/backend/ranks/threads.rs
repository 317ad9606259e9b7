//! Ranks that are threads of one process: everything that several processes do, without a network. For tests, and for measuring what the
//! network itself takes.

use super::Ranks;
use crate::error::{Error, Result};
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long one waits for another.
const BOUND: Duration = Duration::from_secs(60);

/// So many ranks, each to be handed to a thread.
pub fn threads(size: usize) -> Vec<Box<dyn Ranks>> {
    let state = State { boxes: vec![VecDeque::new(); size * size], gone: vec![false; size] };
    let post = Arc::new(Post { state: Mutex::new(state), sent: Condvar::new() });
    (0..size).map(|rank| Box::new(Thread { post: post.clone(), rank, size }) as Box<dyn Ranks>).collect()
}

/// What is on its way.
struct Post {
    state: Mutex<State>,
    sent: Condvar,
}

struct State {
    /// By receiver and sender.
    boxes: Vec<VecDeque<Vec<u32>>>,
    gone: Vec<bool>,
}

impl Post {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Thread {
    post: Arc<Post>,
    rank: usize,
    size: usize,
}

impl Thread {
    fn send(&self, to: usize, words: &[u32]) {
        self.post.lock().boxes[to * self.size + self.rank].push_back(words.to_vec());
        self.post.sent.notify_all();
    }

    fn receive(&self, from: usize, bounded: bool) -> Result<Vec<u32>> {
        let mut state = self.post.lock();
        loop {
            if let Some(words) = state.boxes[self.rank * self.size + from].pop_front() {
                return Ok(words);
            }
            if state.gone[from] {
                return Err(Error::Network(format!("rank {from} is gone")));
            }
            let (guard, late) = self.post.sent.wait_timeout(state, BOUND).unwrap_or_else(PoisonError::into_inner);
            if late.timed_out() && bounded {
                return Err(Error::Network(format!("rank {from} has not answered for {} s", BOUND.as_secs())));
            }
            state = guard;
        }
    }

    /// What comes from all ranks, so many words from each.
    fn receive_all(&self, counts: &[usize], all: &mut Vec<u32>) -> Result<()> {
        all.clear();
        for (from, count) in counts.iter().enumerate() {
            let words = self.receive(from, true)?;
            if words.len() != *count {
                let got = words.len();
                return Err(Error::Network(format!("rank {from} has sent {got} words in place of {count}")));
            }
            all.extend_from_slice(&words);
        }
        Ok(())
    }
}

impl Ranks for Thread {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, own: &[u32], counts: &[usize], all: &mut Vec<u32>) -> Result<()> {
        (0..self.size).for_each(|to| self.send(to, own));
        self.receive_all(counts, all)
    }

    fn all_to_all(&self, send: &[u32], send_counts: &[usize], counts: &[usize], received: &mut Vec<u32>) -> Result<()> {
        let mut at = 0;
        for (to, count) in send_counts.iter().enumerate() {
            self.send(to, &send[at..at + count]);
            at += count;
        }
        self.receive_all(counts, received)
    }

    fn broadcast(&self, words: &mut Vec<u32>) -> Result<()> {
        if self.rank == 0 {
            (1..self.size).for_each(|to| self.send(to, words));
        } else {
            *words = self.receive(0, false)?;
        }
        Ok(())
    }

    fn leave(&self, _together: bool) -> Result<()> {
        Ok(())
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.post.lock().gone[self.rank] = true;
        self.post.sent.notify_all();
    }
}
