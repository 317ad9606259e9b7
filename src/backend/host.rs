//! Experts that a device leaves to its host, as the device sees them.
//!
//! A backend that computes on the processor implements these; a backend with a device calls them between two parts of a step.

use crate::error::Result;

/// Weights of experts in the host's memory, shared by runners.
pub trait HostExperts: Send + Sync {
    /// Who computes: for the closing line of a run.
    fn describe(&self) -> String;

    /// Bytes that the weights occupy beside the file.
    fn weight_bytes(&self) -> u64;

    /// Memory for steps of up to `rows` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where it is short.
    fn runner(&self, rows: usize) -> Result<Box<dyn HostRunner>>;
}

/// Computes the experts of a step, a layer at a time.
pub trait HostRunner: Send {
    /// Computes region `region` of the split graph for `rows` tokens from its inputs, in their order, into `out`, `[rows, stride]`.
    ///
    /// # Errors
    /// [`crate::Error::Graph`] for a region or an input that is not there; [`crate::Error::Invalid`] for an expert that is not there.
    fn run(&mut self, region: usize, rows: usize, inputs: &[HostRows<'_>], out: HostResult<'_>) -> Result<()>;

    /// Bytes of its memory.
    fn bytes(&self) -> u64;
}

/// Rows of numbers or ids, 4 bytes each, as a device has them.
#[derive(Clone, Copy, Debug)]
pub struct HostRows<'a> {
    /// From the first row's first word on.
    pub words: &'a [u32],
    /// Words from row to row.
    pub stride: usize,
}

/// Where results go.
#[derive(Debug)]
pub struct HostResult<'a> {
    /// `[rows, stride]`; what lies behind a row's columns stays as it is.
    pub words: &'a mut [f32],
    /// Numbers from row to row.
    pub stride: usize,
}
