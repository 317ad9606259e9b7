//! Slots for recurrent states: each sequence has three, so that a step writes beside what it reads.
//!
//! A step reads the states of a sequence in one slot and leaves them in another. So the last step can be undone by going back to
//! the slot that it read, and a snapshot is no more than a slot that is not written while it is wanted.

use crate::{backend::runner::StateMove, plan::STATE_SLOTS};

/// Where the states of all sequences are. Slots are counted through all sequences, [`STATE_SLOTS`] each.
#[derive(Clone, Debug)]
pub(super) struct StateSlots {
    /// Whether the graph has states at all.
    has: bool,
    live: Vec<u32>,
    snapshot: Vec<Option<u32>>,
}

impl StateSlots {
    pub fn new(sequences: usize, has: bool) -> Self {
        let live = (0..sequences).map(|s| (s * STATE_SLOTS) as u32).collect();
        StateSlots { has, live, snapshot: vec![None; sequences] }
    }

    /// Whether the graph has recurrent states.
    pub fn exist(&self) -> bool {
        self.has
    }

    /// The slot of a sequence's states as they stand.
    pub fn live(&self, sequence: usize) -> u32 {
        self.live[sequence]
    }

    /// The slot of a sequence's snapshot.
    pub fn snapshot(&self, sequence: usize) -> Option<u32> {
        self.snapshot[sequence]
    }

    /// A slot of a sequence that holds nothing of use.
    pub fn free(&self, sequence: usize) -> u32 {
        let first = (sequence * STATE_SLOTS) as u32;
        let used = |slot: &u32| *slot == self.live[sequence] || Some(*slot) == self.snapshot[sequence];
        // Two of three are in use at most.
        (first..first + STATE_SLOTS as u32).find(|slot| !used(slot)).unwrap_or(first)
    }

    /// A step begins to move the states of a sequence: where it reads them (`None`: they are zeros), and where it leaves them,
    /// which is where they stand from now on.
    pub fn step(&mut self, sequence: usize, moving: Option<StateMove>) -> (Option<u32>, u32) {
        let from = match moving {
            None => Some(self.live[sequence]),
            Some(StateMove::Clear) => None,
            Some(StateMove::Restore) => self.snapshot[sequence],
        };
        let to = self.free(sequence);
        self.live[sequence] = to;
        (from, to)
    }

    /// The states stand in this slot.
    pub fn set_live(&mut self, sequence: usize, slot: u32) {
        self.live[sequence] = slot;
    }

    /// The states as they stand become the snapshot. Nothing is copied.
    pub fn keep(&mut self, sequence: usize) {
        self.snapshot[sequence] = Some(self.live[sequence]);
    }

    /// A slot becomes the snapshot.
    pub fn set_snapshot(&mut self, sequence: usize, slot: u32) {
        self.snapshot[sequence] = Some(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a step reads, what the step before left, and a snapshot are never written.
    #[test]
    fn steps_write_beside_what_is_needed() {
        let mut s = StateSlots::new(2, true);
        assert_eq!(s.step(1, Some(StateMove::Clear)).0, None);
        for i in 0..20 {
            let before = s.live(1);
            let moving = (i % 7 == 6).then_some(StateMove::Restore);
            let (from, to) = s.step(1, moving);
            assert!(from == Some(before) || moving.is_some());
            assert!(to != before && Some(to) != s.snapshot(1) && (3..6).contains(&to));
            if i % 5 == 2 {
                s.keep(1);
                assert_eq!(s.snapshot(1), Some(to));
            }
        }
        assert_eq!(s.live(0), 0);
    }
}
