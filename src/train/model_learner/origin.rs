//! What tells a model file apart from others.

use crate::{file::Checkpoint, train::data::Digest};

/// Bytes of a tensor that are looked at, at its beginning and its end: a file may be larger than memory.
const LOOKED_AT: usize = 4096;

/// Of every tensor its name, type, shape, and the first and last bytes of its parts.
pub(super) fn of(model: &Checkpoint) -> String {
    let mut digest = Digest::default();
    for (name, t) in model.tensors() {
        digest.bytes(name.as_bytes());
        digest.bytes(t.dtype().layout().name.as_bytes());
        t.shape().iter().for_each(|n| digest.word(*n as u64));
        for part in t.parts() {
            digest.word(part.len() as u64);
            digest.bytes(&part[..part.len().min(LOOKED_AT)]);
            digest.bytes(&part[part.len().saturating_sub(LOOKED_AT)..]);
        }
    }
    digest.hex()
}
