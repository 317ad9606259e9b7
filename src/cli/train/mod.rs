//! Verbs that make new weights.

pub mod finetune;
mod live;
pub mod merge;
#[allow(clippy::module_inception)]
pub mod train;
pub mod upcycle;

use super::failure::{Failure, Outcome};
use std::path::Path;

/// Refuses to write over what is read, whatever else may be written over.
fn apart(output: &Path, read: &[&Path]) -> Outcome {
    let Ok(real) = output.canonicalize() else { return Ok(()) };
    match read.iter().any(|r| r.canonicalize().is_ok_and(|r| r == real)) {
        true => Err(Failure::new(format!("{} is what is read", output.display()))
            .hint("give the output another name: what is read stays as it is")),
        false => Ok(()),
    }
}
