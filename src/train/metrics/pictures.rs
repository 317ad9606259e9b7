//! The pictures of a run in its folder, drawn anew at every checkpoint.

use super::{EvalRecord, Log, StepRecord, load_svg, loss_svg, read_log};
use crate::error::Result;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// `loss.svg` and `load.svg`.
pub struct Pictures {
    folder: PathBuf,
    steps: Vec<StepRecord>,
    evals: Vec<EvalRecord>,
    /// Whether something was recorded since they were drawn.
    stale: bool,
}

impl Pictures {
    /// Pictures in `folder`; those of a run that goes on behind `step` begin with what its `log.jsonl` has.
    pub fn open(folder: &Path, step: u64) -> Pictures {
        let text =
            if step > 0 { fs::read_to_string(folder.join("log.jsonl")).unwrap_or_default() } else { String::new() };
        let (steps, evals) = read_log(&text, step);
        Pictures { folder: folder.to_owned(), steps, evals, stale: false }
    }

    fn draw(&self) -> io::Result<()> {
        fs::write(self.folder.join("loss.svg"), loss_svg("Loss by step", &self.steps, &self.evals))?;
        let load = load_svg("Load of the experts", &self.steps);
        load.map_or(Ok(()), |svg| fs::write(self.folder.join("load.svg"), svg))
    }
}

impl Log for Pictures {
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.steps.push(record.clone());
        self.stale = true;
        Ok(())
    }

    fn evaluation(&mut self, record: &EvalRecord) -> Result<()> {
        self.evals.push(record.clone());
        self.stale = true;
        Ok(())
    }

    /// A picture that cannot be drawn is a warning: it must not cost the checkpoint or the model that come behind it.
    fn flush(&mut self) -> Result<()> {
        if self.stale
            && let Err(e) = self.draw()
        {
            tracing::warn!("the pictures in {} were not drawn: {e}", self.folder.display());
        }
        self.stale = false;
        Ok(())
    }
}
