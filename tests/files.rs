//! Files: what is read, what is refused and how, and that nothing panics or over-allocates on the way.

// Helper functions of tests may unwrap as the tests themselves do.
#![allow(clippy::unwrap_used)]

pub mod build;
mod fuzz;
mod hostile;
mod read;
mod synth;
mod write;

use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}
