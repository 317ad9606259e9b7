//! What rank 0 says to the others, as words.

use super::{bytes_of, words_of};
use crate::{
    backend::runner::{OwnedStep, Row, RunnerOptions, StateCopy, StateMove, Token},
    error::{Error, Result},
    quant::KvType,
};
use std::ops::Range;

/// What the others are to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Command {
    /// Nothing more.
    End,
    /// Make an executor of this number.
    Executor(u32, RunnerOptions),
    /// Forget one.
    Drop(u32),
    /// Run a step.
    Step(u32, OwnedStep),
    /// Copy keys and values of the first `positions` positions.
    CopyPrefix(u32, [usize; 3]),
    /// Copy recurrent states.
    CopyStates(u32, [StateCopy; 2]),
    /// Put back keys, values and states of a sequence.
    Write(u32, WrittenSequence),
}

/// Bytes of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WrittenSequence {
    pub sequence: usize,
    pub positions: Range<usize>,
    pub states: bool,
    pub bytes: Vec<u8>,
}

/// Appends numbers.
struct Writer<'a>(&'a mut Vec<u32>);

impl Writer<'_> {
    fn size(&mut self, n: usize) {
        self.0.extend([n as u32, (n as u64 >> 32) as u32]);
    }

    fn copy(&mut self, c: StateCopy) {
        self.size(c.sequence);
        self.0.push(u32::from(c.snapshot));
    }
}

/// Takes numbers from the front.
struct Reader<'a>(&'a [u32]);

impl Reader<'_> {
    fn word(&mut self) -> Result<u32> {
        let (word, rest) =
            self.0.split_first().ok_or_else(|| Error::Network("what rank 0 says is cut short".into()))?;
        self.0 = rest;
        Ok(*word)
    }

    fn size(&mut self) -> Result<usize> {
        let (low, high) = (self.word()?, self.word()?);
        usize::try_from(u64::from(low) | u64::from(high) << 32).map_err(|_| strange())
    }

    /// A number of things that take a word at least.
    fn count(&mut self) -> Result<usize> {
        let n = self.size()?;
        if n <= self.0.len() { Ok(n) } else { Err(strange()) }
    }

    fn copy(&mut self) -> Result<StateCopy> {
        Ok(StateCopy { sequence: self.size()?, snapshot: self.word()? != 0 })
    }
}

fn strange() -> Error {
    Error::Network("rank 0 says what this version does not know".into())
}

impl Command {
    /// As words, which replace those of `out`. Of a step's rows go tokens and positions: the others read nothing back.
    pub fn encode(&self, out: &mut Vec<u32>) {
        out.clear();
        let mut w = Writer(out);
        match self {
            Command::End => w.0.push(0),
            Command::Executor(id, o) => {
                w.0.extend([1, *id]);
                [o.ctx, o.sequences, o.ubatch].into_iter().for_each(|n| w.size(n));
                w.0.push(match o.kv {
                    KvType::F16 => 0,
                    KvType::F32 => 1,
                    KvType::Q8_0 => 2,
                });
            }
            Command::Drop(id) => w.0.extend([2, *id]),
            Command::Step(id, step) => encode_step(step, *id, &mut w),
            Command::CopyPrefix(id, numbers) => {
                w.0.extend([4, *id]);
                numbers.iter().for_each(|n| w.size(*n));
            }
            Command::CopyStates(id, copies) => {
                w.0.extend([5, *id]);
                copies.iter().for_each(|c| w.copy(*c));
            }
            Command::Write(id, s) => {
                w.0.extend([6, *id, u32::from(s.states)]);
                [s.sequence, s.positions.start, s.positions.end, s.bytes.len()].into_iter().for_each(|n| w.size(n));
                w.0.extend(words_of(&s.bytes));
            }
        }
    }

    /// From words.
    ///
    /// # Errors
    /// [`Error::Network`] for what is no command.
    pub fn decode(words: &[u32]) -> Result<Command> {
        let mut r = Reader(words);
        Ok(match r.word()? {
            0 => Command::End,
            1 => {
                let (id, ctx, sequences, ubatch) = (r.word()?, r.size()?, r.size()?, r.size()?);
                let kv = match r.word()? {
                    0 => KvType::F16,
                    1 => KvType::F32,
                    2 => KvType::Q8_0,
                    _ => return Err(strange()),
                };
                Command::Executor(id, RunnerOptions { ctx, sequences, ubatch, kv })
            }
            2 => Command::Drop(r.word()?),
            3 => Command::Step(r.word()?, decode_step(&mut r)?),
            4 => Command::CopyPrefix(r.word()?, [r.size()?, r.size()?, r.size()?]),
            5 => Command::CopyStates(r.word()?, [r.copy()?, r.copy()?]),
            6 => {
                let (id, states) = (r.word()?, r.word()? != 0);
                let (sequence, positions, len) = (r.size()?, r.size()?..r.size()?, r.size()?);
                let bytes = bytes_of(r.0, len);
                if bytes.len() != len {
                    return Err(strange());
                }
                Command::Write(id, WrittenSequence { sequence, positions, states, bytes })
            }
            _ => return Err(strange()),
        })
    }
}

/// A step's rows, without what rank 0 alone wants of it.
fn encode_step(step: &OwnedStep, id: u32, w: &mut Writer<'_>) {
    w.0.extend([3, id]);
    w.size(step.outputs);
    w.size(step.moves.len());
    for (sequence, moved) in &step.moves {
        w.size(*sequence);
        w.0.push(match moved {
            StateMove::Clear => 0,
            StateMove::Restore => 1,
        });
    }
    w.size(step.rows.len());
    for row in &step.rows {
        let Token::Id(token) = row.token else { continue };
        w.0.push(token);
        w.size(row.sequence);
        w.size(row.position);
    }
}

fn decode_step(r: &mut Reader<'_>) -> Result<OwnedStep> {
    // As many outputs as on rank 0, so that the step is cut into the same pieces.
    let mut step = OwnedStep { outputs: r.size()?, ..OwnedStep::default() };
    for _ in 0..r.count()? {
        let sequence = r.size()?;
        step.moves.push((
            sequence,
            match r.word()? {
                0 => StateMove::Clear,
                1 => StateMove::Restore,
                _ => return Err(strange()),
            },
        ));
    }
    for _ in 0..r.count()? {
        let token = r.word()?;
        let (sequence, position) = (r.size()?, r.size()?);
        step.rows.push(Row::fed(token, sequence, position));
    }
    if step.outputs > step.rows.len() { Err(strange()) } else { Ok(step) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_back() {
        let rows = vec![Row::fed(7, 0, 41), Row::fed(9, 2, 3)];
        let moves = vec![(2, StateMove::Restore), (0, StateMove::Clear)];
        let step = OwnedStep { rows, outputs: 1, moves, ..OwnedStep::default() };
        let options = RunnerOptions { ctx: 1 << 33, sequences: 3, ubatch: 512, kv: KvType::Q8_0 };
        let written = WrittenSequence { sequence: 1, positions: 256..300, states: true, bytes: vec![1, 2, 3, 4, 5] };
        let all = [
            Command::End,
            Command::Executor(3, options),
            Command::Drop(3),
            Command::Step(3, step),
            Command::CopyPrefix(3, [0, 1, 300]),
            Command::CopyStates(3, [StateCopy::live(1), StateCopy::snapshot(2)]),
            Command::Write(3, written),
        ];
        let mut words = vec![];
        for command in all {
            command.encode(&mut words);
            assert_eq!(Command::decode(&words).ok(), Some(command.clone()));
            // Whatever is cut off is noticed, or is another command; nothing panics.
            for n in 0..words.len() {
                assert_ne!(Command::decode(&words[..n]).ok(), Some(command.clone()));
            }
        }
        assert!(Command::decode(&[99]).is_err() && Command::decode(&[3, 0, u32::MAX, u32::MAX]).is_err());
    }
}
