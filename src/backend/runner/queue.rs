//! Steps between `begin` and their results.

use super::{
    executor::StateMove,
    sequence::Sequence,
    step::{Mask, Row, Step},
};
use crate::error::{Error, Result};

/// A step that was checked and copied.
#[derive(Debug, Default)]
pub(super) struct Queued {
    pub rows: Vec<Row>,
    /// O: the last rows, from which something is wanted.
    pub outputs: usize,
    pub spans: Vec<Span>,
    pub moves: Vec<(usize, StateMove)>,
    /// Rows with masks, in order.
    masked: Vec<usize>,
    /// Their masks, one after the other.
    mask_words: Vec<u32>,
    inputs: Vec<(String, Vec<f32>)>,
    pub trace: bool,
}

impl Queued {
    /// Copies a step whose size was checked.
    ///
    /// # Errors
    /// [`Error::Invalid`] for rows of a sequence that do not follow each other.
    pub fn fill(&mut self, step: &Step<'_>, outputs: usize) -> Result<()> {
        spans(step.rows, &mut self.spans)?;
        self.rows.clear();
        self.rows.extend_from_slice(step.rows);
        (self.outputs, self.trace) = (outputs, step.trace);
        self.moves.clear();
        self.masked.clear();
        self.mask_words.clear();
        for mask in step.masks {
            self.masked.push(mask.row);
            self.mask_words.extend_from_slice(mask.allowed);
        }
        self.inputs.clear();
        self.inputs.extend(step.inputs.iter().map(|(name, data)| ((*name).into(), data.to_vec())));
        Ok(())
    }

    /// The mask of a row.
    pub fn mask(&self, row: usize) -> Option<&[u32]> {
        let at = self.masked.iter().position(|r| *r == row)?;
        let words = self.mask_words.len() / self.masked.len();
        Some(&self.mask_words[at * words..(at + 1) * words])
    }

    /// All masks; allocates nothing where there are none.
    pub fn masks(&self) -> Vec<Mask<'_>> {
        let words = self.mask_words.len().checked_div(self.masked.len()).unwrap_or(0).max(1);
        self.masked
            .iter()
            .zip(self.mask_words.chunks(words))
            .map(|(row, allowed)| Mask { row: *row, allowed })
            .collect()
    }

    /// The named inputs; allocates nothing where there are none.
    pub fn inputs(&self) -> Vec<(&str, &[f32])> {
        self.inputs.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect()
    }

    /// Whether a row of a sequence chooses a token.
    pub fn chooses(&self, sequence: usize) -> bool {
        self.rows.iter().any(|r| r.sequence == sequence && r.choose.is_some())
    }
}

/// Sequences of a step with their first positions and the ends of their rows, in `to`.
///
/// # Errors
/// [`Error::Invalid`] for rows of a sequence that do not follow each other.
pub(super) fn spans(rows: &[Row], to: &mut Vec<Span>) -> Result<()> {
    to.clear();
    for row in rows {
        match to.iter_mut().find(|s| s.sequence == row.sequence) {
            Some(s) if s.end == row.position => s.end += 1,
            Some(_) => {
                return Err(Error::Invalid(format!("rows of sequence {} do not follow each other", row.sequence)));
            }
            None => {
                let (sequence, first) = (row.sequence, row.position);
                to.push(Span { sequence, first, end: first + 1, before: Sequence::new(false, false) });
            }
        }
    }
    Ok(())
}

/// The positions of a sequence that a step writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub sequence: usize,
    pub first: usize,
    pub end: usize,
    /// Where the sequence stood before the step.
    pub before: Sequence,
}
