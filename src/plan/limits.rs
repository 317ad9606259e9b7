//! What fits a binding of a device, and how rows are padded.

use super::Caps;
use crate::error::{Error, Result};

/// Columns rounded up to what every kernel can read as `vec4`.
pub(super) fn padded(cols: usize) -> usize {
    cols.next_multiple_of(4)
}

/// Checks that a buffer fits: the bytes that it gets.
pub(super) fn fits(caps: &Caps, bytes: u64, what: &str, help: &str) -> Result<u64> {
    let limit = caps.max_binding.min(caps.max_buffer);
    if bytes > limit {
        return Err(Error::Device(format!("{what} takes {bytes} bytes, the device binds {limit} at a time; {help}")));
    }
    Ok(bytes.max(16))
}
