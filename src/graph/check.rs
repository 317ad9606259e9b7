//! The checker (under construction).
use crate::{error::Result, ir::Graph};

/// Checks a graph.
///
/// # Errors
/// [`crate::Error::Graph`].
pub fn check(_graph: &Graph) -> Result<()> {
    Ok(())
}
