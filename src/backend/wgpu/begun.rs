//! A step between `begin` and its results, and the ubatches that it is cut into.

use crate::{
    backend::runner::{ExecutorStep, Row, StateMove, Token, find_input},
    error::Result,
    plan::{InputBuffer, Schedule},
};

/// Rows of a step that a schedule takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ubatch {
    /// First row of the step.
    pub first: usize,
    /// T.
    pub rows: usize,
    /// O: the last rows, from which something is wanted.
    pub outputs: usize,
}

impl Ubatch {
    /// The row behind the last.
    pub fn end(&self) -> usize {
        self.first + self.rows
    }

    /// The first row from which something is wanted.
    pub fn first_output(&self) -> usize {
        self.end() - self.outputs
    }
}

/// How far a step has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StepProgress {
    /// First row of the ubatch that is being submitted.
    pub row: usize,
    /// Dispatches of this ubatch that were submitted.
    pub dispatches: usize,
    /// Regions of this ubatch that the host has computed.
    pub host_calls: usize,
    /// Whether the device waits for the host's next region.
    pub on_host: bool,
    /// Workgroups in y of the next dispatch that were submitted, where it is cut.
    pub blocks: u32,
    /// Whether any part of the step was submitted.
    pub started: bool,
    /// Readbacks of the step that did not come back yet.
    pub reading: usize,
}

/// A step that was begun: copies of everything that is needed to run it. Used again for other steps.
#[derive(Debug, Default)]
pub(super) struct Begun {
    pub rows: Vec<Row>,
    /// O of the whole step.
    pub outputs: usize,
    pub moves: Vec<(usize, StateMove)>,
    /// Rows with masks, in order.
    masked: Vec<usize>,
    mask_words: Vec<u32>,
    /// Values of the plan's inputs, rows padded as the plan has them.
    pub inputs: Vec<Vec<f32>>,
    pub trace: bool,
    pub progress: StepProgress,
    /// Sequences whose recurrent states the step has moved on, with the slots where they stood before.
    pub moved: Vec<(usize, u32)>,
}

impl Begun {
    /// Copies a step.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for an input that is missing or has another size.
    pub fn fill(&mut self, step: &ExecutorStep<'_>, inputs: &[InputBuffer]) -> Result<()> {
        self.inputs.resize_with(inputs.len(), Vec::new);
        for (place, to) in inputs.iter().zip(&mut self.inputs) {
            let values = find_input(step.inputs, &place.name, step.rows.len(), place.cols)?;
            to.clear();
            for row in values.chunks(place.cols.max(1)) {
                to.extend_from_slice(row);
                to.resize(to.len() + place.stride - place.cols, 0.0);
            }
        }
        self.rows.clear();
        self.rows.extend_from_slice(step.rows);
        self.moves.clear();
        self.moves.extend_from_slice(step.moves);
        self.masked.clear();
        self.mask_words.clear();
        for mask in step.masks {
            self.masked.push(mask.row);
            self.mask_words.extend_from_slice(mask.allowed);
        }
        (self.outputs, self.trace, self.progress) = (step.outputs, step.trace, StepProgress::default());
        self.moved.clear();
        Ok(())
    }

    /// Whether all of it was submitted.
    pub fn is_submitted(&self) -> bool {
        self.progress.row == self.rows.len()
    }

    /// The ubatch that begins at row `first`: as many rows as the schedule of many takes, and as it has outputs, with at most
    /// `choices` choices, and only one a sequence: the second looks at the tokens that the first has chosen.
    pub fn ubatch(&self, first: usize, most: &Schedule, choices: usize) -> Ubatch {
        let (total, o) = (self.rows.len(), self.outputs);
        let first_output = (total - o).max(first);
        let mut rows = (total - first).min(most.max_tokens);
        let wanted = |rows: usize| (first + rows).saturating_sub(first_output);
        if wanted(rows) > most.max_outputs {
            rows = first_output - first + most.max_outputs;
        }
        let mut chosen = 0;
        for at in first_output..first + rows {
            let row = &self.rows[at];
            if row.choose.is_none() {
                continue;
            }
            let again = self.rows[first_output..at].iter().any(|r| r.choose.is_some() && r.sequence == row.sequence);
            if again || chosen == choices {
                rows = at - first;
                break;
            }
            chosen += 1;
        }
        Ubatch { first, rows, outputs: wanted(rows) }
    }

    /// The mask of a row.
    pub fn mask(&self, row: usize) -> Option<&[u32]> {
        let at = self.masked.binary_search(&row).ok()?;
        let words = self.mask_words.len() / self.masked.len();
        Some(&self.mask_words[at * words..(at + 1) * words])
    }

    /// Rows of an ubatch that choose, by their numbers in the step.
    pub fn choosing(&self, u: Ubatch) -> impl Iterator<Item = usize> + '_ {
        (u.first_output()..u.end()).filter(|i| self.rows[*i].choose.is_some())
    }
}

/// The id of a row, where it is known to the host.
pub(super) fn id_of(row: &Row) -> Option<u32> {
    match row.token {
        Token::Id(id) => Some(id),
        Token::Last => None,
    }
}
