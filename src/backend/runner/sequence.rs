//! Where the sequences of a runner stand: how many positions hold their text, and which of those their recurrent states
//! have taken in.
//!
//! A KV cache goes back by forgetting. Recurrent states cannot: each token overwrites them. So they are known at one position,
//! and at one more where a snapshot was kept. A snapshot belongs to the text that led to it, and going back before its
//! position forgets that text: the snapshot goes with it.

use super::executor::{StateCopy, StateMove};
use crate::error::{Error, Result};

/// What a runner knows of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Positions that hold the text once all queued steps are done.
    len: usize,
    /// Whether the graph has recurrent states.
    recurrent: bool,
    /// Whether the graph keeps anything of a text: caches or states.
    keeps: bool,
    /// Tokens that the live states have taken in; `None` where that is unknown.
    live: Option<usize>,
    /// Tokens that the snapshot has taken in; at most `len`.
    snapshot: Option<usize>,
}

impl Sequence {
    /// An empty sequence, whose states hold anything.
    pub fn new(recurrent: bool, keeps: bool) -> Self {
        Sequence { len: 0, recurrent, keeps, live: None, snapshot: None }
    }

    /// Positions that hold the text once all queued steps are done.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Forgets the text from position `n` on.
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(n);
        self.live = self.live.filter(|p| *p <= self.len);
        self.snapshot = self.snapshot.filter(|p| *p <= self.len);
    }

    /// The largest position up to `n` at which the next row may come.
    pub fn resume_at(&self, n: usize) -> usize {
        let n = n.min(self.len);
        if !self.recurrent {
            return n;
        }
        [self.live, self.snapshot].into_iter().flatten().filter(|p| *p <= n).max().unwrap_or(0)
    }

    /// Rows come to positions `first .. end`: what was there is forgotten. Says how states get to `first`.
    ///
    /// # Errors
    /// [`Error::Invalid`] where positions before `first` are empty, or the states are not known at `first`; nothing changes
    /// then.
    pub fn advance(&mut self, first: usize, end: usize) -> Result<Option<StateMove>> {
        if self.keeps && first > self.len {
            return Err(Error::Invalid(format!(
                "a row at position {first} of a sequence of {} tokens: positions between are empty",
                self.len
            )));
        }
        let found = match first {
            _ if !self.recurrent || self.live == Some(first) => None,
            0 => Some(StateMove::Clear),
            _ if self.snapshot == Some(first) => Some(StateMove::Restore),
            _ => {
                let at = self.live.map_or("nowhere".into(), |p| format!("after {p} tokens"));
                return Err(Error::Invalid(format!(
                    "a step after {first} tokens on recurrent states that stand {at}: they cannot go back there; begin \
                     after {} and feed the tokens between again",
                    self.resume_at(first)
                )));
            }
        };
        self.truncate(first);
        self.len = end;
        self.live = self.recurrent.then_some(end);
        Ok(found)
    }

    /// Steps after this state of the sequence were dropped, which may have moved its live states.
    pub fn lose_states(&mut self) {
        self.live = None;
    }

    /// Whether there are live states to keep, at another position than the snapshot's. They count as kept.
    pub fn keep(&mut self) -> bool {
        if self.live.is_none() || self.live == self.snapshot {
            return false;
        }
        self.snapshot = self.live;
        true
    }

    /// Which copy of the states of sequence `index`, this one, stands at `n`; `None` where the graph has no states.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the sequence is shorter, or its states are not known there.
    pub fn states_at(&self, index: usize, n: usize) -> Result<Option<StateCopy>> {
        if n > self.len {
            return Err(Error::Invalid(format!("{n} positions of a sequence of {}", self.len)));
        }
        match n {
            _ if !self.recurrent || n == 0 => Ok(None),
            _ if self.live == Some(n) => Ok(Some(StateCopy::live(index))),
            _ if self.snapshot == Some(n) => Ok(Some(StateCopy::snapshot(index))),
            _ => Err(Error::Invalid(format!(
                "recurrent states are not known after {n} tokens; the last place before it is {}",
                self.resume_at(n)
            ))),
        }
    }

    /// The sequence now holds another text of `n` tokens, live states included. Its own snapshot is forgotten.
    pub fn replace(&mut self, n: usize) {
        let live = (self.recurrent && n > 0).then_some(n);
        *self = Sequence { len: n, live, ..Sequence::new(self.recurrent, self.keeps) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The snapshot of an earlier text must not come back once that text is forgotten.
    #[test]
    fn a_snapshot_goes_with_its_text() {
        let mut s = Sequence::new(true, true);
        assert_eq!(s.advance(0, 12).unwrap(), Some(StateMove::Clear));
        assert!(s.keep() && !s.keep());
        s.truncate(0);
        assert_eq!(s.resume_at(12), 0);
        assert_eq!(s.advance(0, 14).unwrap(), Some(StateMove::Clear));
        assert_eq!((s.resume_at(14), s.resume_at(13), s.resume_at(12)), (14, 0, 0));
        assert!(s.advance(12, 13).is_err());
        // The same without a call of `truncate`: rows that come earlier forget as well.
        assert!(s.keep());
        s.advance(0, 3).unwrap();
        s.advance(3, 15).unwrap();
        assert!(s.advance(14, 15).is_err());
    }

    #[test]
    fn states_go_back_only_to_what_is_known() {
        let mut s = Sequence::new(true, true);
        assert!(s.advance(3, 5).is_err(), "a hole");
        s.advance(0, 9).unwrap();
        s.keep();
        assert_eq!(s.advance(9, 14).unwrap(), None);
        let before = s;
        assert!(s.advance(12, 13).is_err());
        assert_eq!(s, before);
        assert_eq!(s.states_at(1, 9).unwrap(), Some(StateCopy::snapshot(1)));
        assert_eq!(s.states_at(1, 14).unwrap(), Some(StateCopy::live(1)));
        assert!(s.states_at(1, 10).is_err() && s.states_at(1, 15).is_err());
        assert_eq!(s.advance(9, 10).unwrap(), Some(StateMove::Restore));
        s.lose_states();
        assert_eq!((s.resume_at(10), s.len()), (9, 10));
        s.replace(4);
        assert_eq!((s.len(), s.resume_at(4), s.resume_at(3)), (4, 4, 0));
    }

    #[test]
    fn without_states_any_position_will_do() {
        let mut s = Sequence::new(false, true);
        s.advance(0, 9).unwrap();
        assert_eq!(s.advance(4, 6).unwrap(), None);
        assert_eq!((s.len(), s.resume_at(9), s.resume_at(5)), (6, 6, 5));
        assert!(!s.keep() && s.advance(7, 8).is_err());
        assert_eq!(Sequence::new(false, false).advance(7, 8).unwrap(), None, "nothing is kept that could be missing");
        assert_eq!(s.states_at(0, 6).unwrap(), None);
    }
}
