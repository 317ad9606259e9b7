//! What an operator orders beside jobs: a sequence saved, restored, emptied.
//!
//! A saved sequence is its tokens, copies of its recurrent states, and what [`crate::backend::runner::Runner::save`] gives. All numbers
//! are little-endian: magic (8 bytes), tokens (u32), copies of states (u32), checksum of what follows up to the runner's bytes,
//! which have their own (u64); the tokens (u32 each); positions of the states (u32 each); the states; the runner's bytes.

use super::{
    job::{Done, Order, OrderKind},
    slot::{MOST, Slot},
    worker::Worker,
};
use crate::{
    backend::runner::checksum,
    error::{Error, Result},
    serve::prefix::State,
};

const MAGIC: [u8; 8] = *b"MORYTXT1";
const HEADER: usize = 24;

impl Worker {
    /// Does what an order says.
    pub(super) fn follow(&mut self, order: Order) {
        let Order { sequence, kind, reply } = order;
        let done = match self.slots.get(sequence) {
            None => Err(Error::Invalid(format!("there is no slot {sequence}: {} slots from 0 on", self.slots.len()))),
            Some(slot) if slot.active.is_some() && kind != OrderKind::Save => {
                Err(Error::Invalid(format!("slot {sequence} is in use: try again when it is idle")))
            }
            Some(_) => match kind {
                OrderKind::Save => self.save(sequence),
                OrderKind::Restore(bytes) => self.restore(sequence, &bytes),
                OrderKind::Erase => {
                    let tokens = self.slots[sequence].text.len();
                    self.forget(sequence);
                    Ok(Done { tokens, bytes: vec![] })
                }
            },
        };
        // Who no longer waits does not hear of it.
        let _ = reply.send(done);
    }

    fn forget(&mut self, sequence: usize) {
        self.slots[sequence].replace(vec![], vec![]);
        self.runner.truncate(sequence, 0);
    }

    fn save(&mut self, sequence: usize) -> Result<Done> {
        let slot = &self.slots[sequence];
        let n = self.runner.resume_at(sequence, slot.text.len());
        if n == 0 {
            return Err(Error::Invalid(format!("slot {sequence} holds no text that could be saved")));
        }
        let mut bytes = head(&slot.text[..n], &slot.checkpoints(n));
        bytes.extend(self.runner.save(sequence, n)?);
        Ok(Done { tokens: n, bytes })
    }

    fn restore(&mut self, sequence: usize, bytes: &[u8]) -> Result<Done> {
        let saved = Saved::read(bytes, self.runner.state_bytes())?;
        let vocab = self.model.vocab();
        if let Some(id) = saved.text.iter().find(|id| **id as usize >= vocab) {
            return Err(Error::Invalid(format!(
                "a saved slot belongs to another model: it has a token {id} of {vocab}"
            )));
        }
        self.clock += 1;
        self.park(sequence);
        let restored = self.runner.restore(sequence, saved.runner);
        let n = match restored {
            Ok(n) if n == saved.text.len() => n,
            Ok(_) => {
                self.forget(sequence);
                return Err(Error::Invalid("a saved slot is damaged: it has more tokens or less than it holds".into()));
            }
            Err(e) => {
                // Bytes that are refused change nothing; what a device did not take is lost.
                if self.runner.len(sequence) != self.slots[sequence].text.len() {
                    self.forget(sequence);
                }
                return Err(e);
            }
        };
        let slot: &mut Slot = &mut self.slots[sequence];
        slot.replace(saved.text, saved.states);
        slot.used = self.clock;
        Ok(Done { tokens: n, bytes: vec![] })
    }
}

/// What precedes the runner's bytes.
fn head(text: &[u32], states: &[State]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    // Contexts are counted in u32 everywhere.
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend((states.len() as u32).to_le_bytes());
    bytes.extend([0; 8]);
    text.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
    states.iter().for_each(|s| bytes.extend((s.0 as u32).to_le_bytes()));
    states.iter().for_each(|s| bytes.extend_from_slice(&s.1));
    let sum = checksum(&bytes[HEADER..]);
    bytes[16..24].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// A saved sequence.
struct Saved<'a> {
    text: Vec<u32>,
    states: Vec<State>,
    runner: &'a [u8],
}

impl<'a> Saved<'a> {
    /// Reads what [`head`] wrote, of a model whose states have so many bytes.
    fn read(bytes: &'a [u8], state_bytes: usize) -> Result<Saved<'a>> {
        let invalid = |what: &str| Error::Invalid(format!("a saved slot {what}"));
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i])) as usize;
        if bytes.len() < HEADER || bytes[..8] != MAGIC {
            return Err(invalid("begins otherwise than this file does"));
        }
        let (tokens, states) = (u32_at(8), u32_at(12));
        if states > MOST || (states > 0 && state_bytes == 0) {
            return Err(invalid("belongs to another model"));
        }
        let length = states.checked_mul(4 + state_bytes).and_then(|n| n.checked_add(tokens.checked_mul(4)?));
        let body = length.and_then(|n| bytes[HEADER..].split_at_checked(n));
        let (body, runner) = body.ok_or_else(|| invalid("is cut off"))?;
        let sum = u64::from_le_bytes(std::array::from_fn(|i| bytes[16 + i]));
        if sum != checksum(body) {
            return Err(invalid("is damaged: its checksum is not that of its bytes"));
        }
        let words = |bytes: &[u8]| -> Vec<u32> {
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        };
        let (text, rest) = body.split_at(4 * tokens);
        let (at, rest) = rest.split_at(4 * states);
        let at: Vec<usize> = words(at).into_iter().map(|n| n as usize).collect();
        if at.windows(2).any(|w| w[0] >= w[1]) || at.iter().any(|n| *n == 0 || *n > tokens) {
            return Err(invalid("is damaged: its states stand at places that cannot be"));
        }
        let states = at.into_iter().zip(rest.chunks_exact(state_bytes.max(1))).map(|(n, s)| (n, s.into())).collect();
        Ok(Saved { text: words(text), states, runner })
    }
}
