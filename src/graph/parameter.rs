//! What is trained.

use crate::ir::WeightId;

/// A weight that is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the graph.
    pub name: String,
    /// Row-major shape: `[out, in]`, `[experts, out, in]`, or `[n]`.
    pub shape: Vec<usize>,
    /// Where the graph declares it.
    pub weight: WeightId,
}

impl Parameter {
    /// Numbers.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
