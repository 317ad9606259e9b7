//! A step that outlives the call which begins it.

use super::{ExecutorStep, Row, StateMove, Token};
use crate::error::{Error, Result};

/// What was copied of a step, by executors that hand it on to others. Tokens that they feed are chosen by the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnedStep {
    /// See [`ExecutorStep::rows`].
    pub rows: Vec<Row>,
    /// See [`ExecutorStep::outputs`].
    pub outputs: usize,
    /// See [`ExecutorStep::moves`].
    pub moves: Vec<(usize, StateMove)>,
    /// See [`ExecutorStep::inputs`].
    pub inputs: Vec<(String, Vec<f32>)>,
    /// See [`ExecutorStep::trace`].
    pub trace: bool,
}

impl OwnedStep {
    /// Copies a step into memory that stays.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one that chooses tokens or feeds those that were chosen.
    pub fn fill(&mut self, step: &ExecutorStep<'_>) -> Result<()> {
        if step.rows.iter().any(|r| r.token == Token::Last || r.choose.is_some()) {
            return Err(Error::Invalid("several devices and ranks are told which tokens they are fed".into()));
        }
        self.rows.clear();
        self.rows.extend_from_slice(step.rows);
        self.moves.clear();
        self.moves.extend_from_slice(step.moves);
        self.inputs.clear();
        self.inputs.extend(step.inputs.iter().map(|(name, data)| ((*name).to_owned(), data.to_vec())));
        (self.outputs, self.trace) = (step.outputs, step.trace);
        Ok(())
    }
}
