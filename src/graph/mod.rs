//! Graphs: building, checking, rewriting.
//!
//! Deliberately absent: devices, the bytes of weights (a [`Program`] only carries them).

mod build;
mod check;
mod fuse;
mod program;

pub use build::Builder;
pub use check::check;
pub use fuse::fuse;
pub use program::Program;
