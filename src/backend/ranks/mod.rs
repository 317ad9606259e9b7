//! Several processes that share the routed experts of a model: expert parallelism.
//!
//! Every process (a rank, in MPI's word) has a block of neighbouring experts of each layer and all the rest of the model; what its graph is,
//! `graph::split_for_rank` says. Rank 0 leads: its runners say each step to the others (`lead`), which do the same (`follow`), and only
//! rank 0 has logits, chooses tokens and prints. In the middle of a layer the ranks exchange what their experts have made of their slots, and
//! each sums all of them in the order of the slots (`exchange`): the same bits as one process makes of them, however many ranks there are.
//!
//! [`Ranks`] is what is needed of a network: `threads` does it within one process, `processes` (feature `mpi`) by MPI between processes and hosts.
//! Everything else is the same above both. [`World`] is one of them with what has to be agreed on, and counts.
//!
//! Deliberately absent: models, devices (a rank runs on whatever its backend is), tokens' text.

mod exchange;
mod follow;
mod lead;
mod message;
#[cfg(feature = "mpi")]
mod processes;
mod threads;
mod world;

pub use exchange::{MOST_GATHERED, exchange};
pub use follow::follow;
pub use lead::lead;
#[cfg(feature = "mpi")]
pub use processes::processes;
pub use threads::threads;
pub use world::{Counts, Joining, World};

use super::runner::{ExecutorStep, OwnedStep};
use crate::error::Result;

/// What ranks do together. Every rank calls the same methods in the same order; words are 4 bytes, as they are.
///
/// # Errors
/// All methods give [`crate::Error::Network`] where a rank is gone or does not answer: the ranks are then of no more use.
pub trait Ranks: Send + Sync {
    /// What connects them, for the closing line of a run.
    fn name(&self) -> &'static str;

    /// The number of this one, from 0 on.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Gives everybody's words to everybody, in the order of ranks; rank r has `counts[r]` of them. `all` is replaced.
    ///
    /// # Errors
    /// See the trait.
    fn all_gather(&self, own: &[u32], counts: &[usize], all: &mut Vec<u32>) -> Result<()>;

    /// Gives `send_counts[r]` words of `send` to each rank r, and takes `counts[r]` words from it, in the order of ranks. `received` is
    /// replaced.
    ///
    /// # Errors
    /// See the trait.
    fn all_to_all(&self, send: &[u32], send_counts: &[usize], counts: &[usize], received: &mut Vec<u32>) -> Result<()>;

    /// Gives rank 0's words to everybody. The others wait for them as long as rank 0 lives.
    ///
    /// # Errors
    /// See the trait.
    fn broadcast(&self, words: &mut Vec<u32>) -> Result<()>;

    /// Leaves: together with the others, who do so, too; or where something has gone wrong, without a word.
    ///
    /// # Errors
    /// See the trait.
    fn leave(&self, together: bool) -> Result<()>;
}

/// A step as an executor takes it; on ranks steps have no named inputs.
fn as_step(step: &OwnedStep) -> ExecutorStep<'_> {
    let OwnedStep { rows, outputs, moves, trace, .. } = step;
    ExecutorStep { rows, outputs: *outputs, moves, masks: &[], inputs: &[], trace: *trace }
}

/// Bytes as words, the last of which is filled with zeros.
fn words_of(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks(4).map(|c| {
        let mut word = [0; 4];
        word[..c.len()].copy_from_slice(c);
        u32::from_le_bytes(word)
    })
}

/// The first `n` bytes of words; fewer where there are not as many.
fn bytes_of(words: &[u32], n: usize) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).take(n).collect()
}
