//! Saving, restoring and forking the beginnings of sequences.

use super::{
    Runner, StateCopy,
    saved::{self, HEADER, Header},
};
use crate::error::{Error, Result};

impl Runner {
    /// The first `n` positions of a sequence as bytes, with the recurrent states after them: what [`Runner::restore`] takes.
    ///
    /// # Errors
    /// [`Error::Invalid`] while steps are queued, for a sequence that is not there or shorter, or where recurrent states are
    /// not known after `n` tokens (see [`Runner::resume_at`]); [`Error::Device`].
    pub fn save(&mut self, sequence: usize, n: usize) -> Result<Vec<u8>> {
        self.check_idle(sequence)?;
        let states = self.sequences[sequence].states_at(sequence, n)?;
        let mut bytes = Vec::with_capacity(HEADER + self.executor.sequence_bytes(n, states.is_some()));
        bytes.resize(HEADER, 0);
        self.executor.read_sequence(sequence, 0..n, states, &mut bytes)?;
        Header { states: states.is_some(), positions: n as u64, ..self.header() }.write(&mut bytes);
        Ok(bytes)
    }

    /// Puts a saved sequence in place of what a sequence holds; gives its number of tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`] while steps are queued, for a sequence that is not there, or bytes that are damaged or belong to
    /// another model, KV type or backend; [`Error::ContextFull`]; the sequence is as before then. [`Error::Device`].
    pub fn restore(&mut self, sequence: usize, bytes: &[u8]) -> Result<usize> {
        self.check_idle(sequence)?;
        let own = self.header();
        let header = Header::read(bytes, &own)?;
        let n = usize::try_from(header.positions).unwrap_or(usize::MAX);
        if n > self.options.ctx {
            return Err(Error::ContextFull { needed: n, capacity: self.options.ctx });
        }
        let states = !self.graph.program.graph.states.is_empty() && n > 0;
        let wanted = HEADER + self.executor.sequence_bytes(n, states);
        if header.states != states || bytes.len() != wanted {
            return Err(Error::Invalid(format!(
                "a saved sequence of {n} tokens takes {wanted} bytes, not {}",
                bytes.len()
            )));
        }
        self.sequences[sequence].replace(0);
        self.executor.write_sequence(sequence, 0..n, states, &bytes[HEADER..])?;
        self.sequences[sequence].replace(n);
        Ok(n)
    }

    /// Puts the first `n` positions of a sequence in place of what another one holds.
    ///
    /// # Errors
    /// As [`Runner::save`], and [`Error::Invalid`] for a sequence onto itself.
    pub fn fork(&mut self, from: usize, to: usize, n: usize) -> Result<()> {
        self.check_idle(from)?;
        self.check_sequence(to)?;
        if from == to {
            return Err(Error::Invalid(format!("sequence {from} is forked onto itself")));
        }
        let states = self.sequences[from].states_at(from, n)?;
        self.sequences[to].replace(0);
        self.executor.copy_prefix(from, to, n)?;
        if let Some(states) = states {
            self.executor.copy_states(states, StateCopy::live(to))?;
        }
        self.sequences[to].replace(n);
        Ok(())
    }

    /// The first `n` positions of a sequence in place of what another one holds, with recurrent states that
    /// [`Runner::copy_of_states`] gave after these tokens.
    ///
    /// # Errors
    /// As [`Runner::fork`], and [`Error::Invalid`] for states of another size.
    pub fn fork_with_states(&mut self, from: usize, to: usize, n: usize, states: &[u8]) -> Result<()> {
        self.check_idle(from)?;
        self.check_sequence(to)?;
        if from == to || n > self.sequences[from].len() {
            let len = self.sequences[from].len();
            return Err(Error::Invalid(format!(
                "{n} positions of sequence {from}, which has {len}, for sequence {to}"
            )));
        }
        self.check_states(states)?;
        self.sequences[to].replace(0);
        self.executor.copy_prefix(from, to, n)?;
        self.executor.write_sequence(to, 0..0, true, states)?;
        self.sequences[to].replace(n);
        Ok(())
    }

    /// A sequence's recurrent states as they stand, for [`Runner::put_states`]; `None` where the graph has none, or they are not
    /// known at the end of the text.
    ///
    /// # Errors
    /// [`Error::Invalid`] while steps are queued, or for a sequence that is not there; [`Error::Device`].
    pub fn copy_of_states(&mut self, sequence: usize) -> Result<Option<Vec<u8>>> {
        self.check_idle(sequence)?;
        let s = &self.sequences[sequence];
        let Ok(Some(states)) = s.states_at(sequence, s.len()) else { return Ok(None) };
        let mut bytes = Vec::with_capacity(self.executor.sequence_bytes(0, true));
        self.executor.read_sequence(sequence, 0..0, Some(states), &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Takes a sequence back to its first `n` tokens, with recurrent states that [`Runner::copy_of_states`] gave after them.
    ///
    /// # Errors
    /// [`Error::Invalid`] while steps are queued, for a sequence that is not there or shorter, or states of another size;
    /// [`Error::Device`].
    pub fn put_states(&mut self, sequence: usize, n: usize, states: &[u8]) -> Result<()> {
        self.check_idle(sequence)?;
        let len = self.sequences[sequence].len();
        if n > len {
            return Err(Error::Invalid(format!("{n} positions of a sequence of {len}")));
        }
        self.check_states(states)?;
        self.sequences[sequence].replace(0);
        self.executor.write_sequence(sequence, 0..0, true, states)?;
        self.sequences[sequence].replace(n);
        Ok(())
    }

    pub(super) fn check_states(&self, states: &[u8]) -> Result<()> {
        let wanted = self.executor.sequence_bytes(0, true);
        if states.len() == wanted && wanted > 0 {
            return Ok(());
        }
        Err(Error::Invalid(format!("recurrent states take {wanted} bytes, not {}", states.len())))
    }

    /// The header of this runner's sequences, but for their length.
    fn header(&self) -> Header {
        let (program, ctx) = (&self.graph.program, self.options.ctx);
        let fingerprint = *self.graph.fingerprint.get_or_init(|| saved::fingerprint(program, ctx));
        let layout = Header::layout(self.executor.layout());
        Header { layout, kv: self.options.kv, states: false, positions: 0, fingerprint }
    }
}
