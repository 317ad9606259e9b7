//! Where the recurrent states of a runner stand: they know one position, and one more that was kept.

use crate::error::{Error, Result};

/// What must happen to the states before a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing: they stand where the step begins.
    Stay,
    /// They become zeros: the step begins a sequence.
    Clear,
    /// What was kept comes back.
    Restore,
}

/// Positions of a runner's states. Unlike a KV cache, a recurrent state cannot go back by forgetting: it is overwritten by
/// each token.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// Whether the graph has states at all.
    has: bool,
    /// Tokens that the states have taken in; `None` after a step that failed half way.
    at: Option<usize>,
    /// The same of the kept copy.
    kept: Option<usize>,
}

impl Standing {
    /// At the beginning of a sequence.
    pub fn new(graph: &crate::ir::Graph) -> Self {
        Standing { has: !graph.states.is_empty(), at: None, kept: None }
    }

    /// The largest position up to `past` at which a step may begin.
    pub fn resume_at(&self, past: usize) -> usize {
        if !self.has {
            return past;
        }
        [self.at, self.kept].into_iter().flatten().filter(|p| *p <= past).max().unwrap_or(0)
    }

    /// Begins a step at `past`. Until [`Standing::done`] the states count as lost.
    ///
    /// # Errors
    /// [`Error::Invalid`] where they are neither there nor were kept there.
    pub fn begin(&mut self, past: usize) -> Result<Move> {
        if !self.has {
            return Ok(Move::Stay);
        }
        let found = match past {
            _ if self.at == Some(past) => Move::Stay,
            0 => Move::Clear,
            _ if self.kept == Some(past) => Move::Restore,
            _ => {
                let at = self.at.map_or("nowhere".into(), |p| format!("after {p} tokens"));
                return Err(Error::Invalid(format!(
                    "a step after {past} tokens on recurrent states that stand {at}: they cannot go back there; begin \
                     after {} and feed the tokens between again",
                    self.resume_at(past)
                )));
            }
        };
        self.at = None;
        Ok(found)
    }

    /// A step has moved the states to `position`.
    pub fn done(&mut self, position: usize) {
        self.at = Some(position);
    }

    /// The states were overwritten with what belongs to no sequence.
    pub fn lose(&mut self) {
        self.at = None;
    }

    /// Whether there is anything to keep; the states as they are count as kept.
    pub fn keep(&mut self) -> bool {
        if !self.has || self.at.is_none() || self.at == self.kept {
            return false;
        }
        self.kept = self.at;
        true
    }
}
