//! What can be seen of an engine from outside, renewed after every step.

/// A sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotStatus {
    /// Whether a job has it.
    pub busy: bool,
    /// Whether that job still reads its prompt.
    pub reading: bool,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens in the cache.
    pub tokens: usize,
    /// Tokens generated.
    pub generated: usize,
}

/// All sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// By number.
    pub slots: Vec<SlotStatus>,
    /// Bytes of KV caches, recurrent states and scratch.
    pub memory_bytes: u64,
}

impl Status {
    /// Of an engine that did nothing yet.
    pub fn new(sequences: usize, memory_bytes: u64) -> Self {
        Status { slots: vec![SlotStatus::default(); sequences], memory_bytes }
    }
}
