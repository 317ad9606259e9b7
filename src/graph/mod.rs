//! Graphs: building, checking, rewriting.
//!
//! Deliberately absent: devices, bytes.

mod build;
mod check;
mod fuse;

pub use build::Builder;
pub use check::check;
pub use fuse::fuse;
