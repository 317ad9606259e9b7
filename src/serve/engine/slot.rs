//! A sequence of the runner as the engine sees it: the text in its cache, the job that has it, and copies of recurrent states.
//!
//! A KV cache goes back to any position by forgetting. Recurrent states go back only to where a copy of them was kept: every
//! [`APART`] tokens, and where messages begin, since conversations are edited, regenerated and continued there.

use super::{active::Active, placing::Place, status::SlotStatus};
use crate::serve::{
    prefix::{Pin, State},
    schedule::{Need, Waiting},
};
use std::sync::Arc;

/// Tokens between two copies of states.
pub const APART: usize = 256;
/// Copies of states closer to each other are not worth it.
const CLOSE: usize = 8;
/// Copies that a sequence has at most.
pub const MOST: usize = 32;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Slot {
    /// The tokens that its cache holds.
    pub text: Vec<u32>,
    /// The job that has it.
    pub active: Option<Active>,
    /// When a job had it last, counted in jobs; 0 where nobody will come back for its text.
    pub used: u64,
    /// Where its job began in the prefix cache.
    pub pin: Option<Pin>,
    /// Recurrent states after so many tokens, ascending; none where the model has none.
    checkpoints: Vec<State>,
    /// Where messages begin in the prompt that is being read.
    borders: Vec<usize>,
}

impl Slot {
    pub fn place(&self) -> Place<'_> {
        let reading = self.active.as_ref().filter(|a| a.unread() > 0);
        let coming = reading.map(|a| &a.job.prompt[..]);
        Place { text: &self.text, coming, busy: self.active.is_some(), used: self.used }
    }

    /// What it waits for; with `stops`, a piece of a prompt ends where states are to be kept.
    pub fn waiting(&self, sequence: usize, stops: bool) -> Option<Waiting> {
        let active = self.active.as_ref()?;
        let at = self.text.len();
        let need = match active.unread_at_once() {
            0 => Need::Next,
            n if stops => Need::Prompt(n.min(self.next_checkpoint(at) - at)),
            n => Need::Prompt(n),
        };
        Some(Waiting { sequence, client: active.job.client, need })
    }

    pub fn status(&self) -> SlotStatus {
        let tokens = self.text.len();
        match &self.active {
            None => SlotStatus { tokens, ..SlotStatus::default() },
            Some(a) => SlotStatus {
                busy: true,
                reading: a.unread() > 0,
                prompt: a.job.prompt.len(),
                tokens,
                generated: a.generated,
            },
        }
    }

    /// Notes where messages begin in a prompt: at control tokens behind ordinary ones.
    pub fn set_borders(&mut self, prompt: &[u32], is_special: impl Fn(u32) -> bool) {
        self.borders.clear();
        let special: Vec<bool> = prompt.iter().map(|id| is_special(*id)).collect();
        self.borders.extend((1..prompt.len()).filter(|i| special[*i] && !special[i - 1]));
    }

    /// The first position behind `at` at which states are to be kept.
    fn next_checkpoint(&self, at: usize) -> usize {
        let even = (at / APART + 1) * APART;
        let last = self.checkpoints.last().map_or(0, |c| c.0);
        let border = self.borders.iter().copied().find(|b| *b > at && *b >= last + CLOSE);
        border.map_or(even, |b| b.min(even))
    }

    /// Whether states are to be kept at the end of the text.
    pub fn wants_checkpoint(&self) -> bool {
        let at = self.text.len();
        let known = self.checkpoints.last().is_some_and(|c| c.0 == at);
        at > 0 && !known && (at % APART == 0 || self.borders.binary_search(&at).is_ok())
    }

    /// Keeps states after the text so far, in all no more than `most`.
    pub fn keep(&mut self, states: Arc<[u8]>, most: usize) {
        let at = self.text.len();
        self.checkpoints.retain(|c| c.0 < at);
        if self.checkpoints.len() >= most {
            // The last ones matter most to conversations: of the older half every second goes.
            let mut i = 0;
            let half = self.checkpoints.len() / 2;
            self.checkpoints.retain(|_| {
                i += 1;
                i > half || i % 2 == 0
            });
        }
        self.checkpoints.push((at, states));
    }

    /// The last position up to `n` with a copy of states.
    pub fn checkpoint_before(&self, n: usize) -> usize {
        self.checkpoints.iter().map(|c| c.0).filter(|at| *at <= n).max().unwrap_or(0)
    }

    /// The states after `n` tokens, where a copy was kept.
    pub fn checkpoint(&self, n: usize) -> Option<Arc<[u8]>> {
        self.checkpoints.iter().find(|c| c.0 == n).map(|c| c.1.clone())
    }

    /// Copies of states up to `n`.
    pub fn checkpoints(&self, n: usize) -> Vec<State> {
        self.checkpoints.iter().filter(|c| c.0 <= n).cloned().collect()
    }

    /// Another text takes its place.
    pub fn replace(&mut self, text: Vec<u32>, checkpoints: Vec<State>) {
        (self.text, self.checkpoints) = (text, checkpoints);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_kept_at_borders_and_every_so_often() {
        let mut slot = Slot::default();
        let prompt: Vec<u32> = (0..700).map(|i| if [1, 2, 60, 62, 500].contains(&i) { 9 } else { 1 }).collect();
        slot.set_borders(&prompt, |id| id == 9);
        let mut kept = vec![];
        while slot.text.len() < prompt.len() {
            let at = slot.text.len();
            let next = slot.next_checkpoint(at).min(prompt.len());
            slot.text.extend_from_slice(&prompt[at..next]);
            if slot.wants_checkpoint() {
                slot.keep([0].into(), MOST);
                kept.push(slot.text.len());
            }
        }
        assert_eq!(kept, [60, 256, 500, 512]);
        assert_eq!((slot.checkpoint_before(499), slot.checkpoint_before(59)), (256, 0));
        assert!(slot.checkpoint(500).is_some() && slot.checkpoint(499).is_none());
    }

    #[test]
    fn old_copies_thin_out() {
        let mut slot = Slot::default();
        for i in 1..100 {
            slot.text = vec![0; i * APART];
            slot.keep([].into(), MOST);
            assert!(slot.checkpoints.len() <= MOST);
        }
        let all: Vec<usize> = slot.checkpoints.iter().map(|c| c.0 / APART).collect();
        assert!(all.windows(2).all(|w| w[0] < w[1]) && all.ends_with(&[96, 97, 98, 99]), "{all:?}");
    }
}
