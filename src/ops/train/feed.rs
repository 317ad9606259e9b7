//! What a micro-batch is made of.

use crate::ops::random::Draw;

/// The data of one micro-batch. What the graph reads and is not here is an error that names it.
#[derive(Clone, Debug, Default)]
pub struct Feed {
    /// Rows, T: tokens of all sequences of the micro-batch, one behind the other.
    pub rows: usize,
    /// Token ids `[T]`, where the graph reads tokens.
    pub tokens: Vec<u32>,
    /// u32 inputs by name, row-major `[T, cols]`: `targets`, and `starts` (for each row the row where its sequence begins, so
    /// that attention and positions stay within it).
    pub ids: Vec<(String, Vec<u32>)>,
    /// Numbers by name, row-major: `[T, cols]` for inputs with a row a token, `[rows, cols]` for inputs of a fixed size, such
    /// as the scalars that normalise a loss.
    pub numbers: Vec<(String, Vec<f64>)>,
    /// Key of the counter-based random numbers of dropout and noise: the seed of the run.
    pub seed: u64,
    /// The step, a part of the counter.
    pub step: u32,
    /// The micro-batch within the step, a part of the counter.
    pub micro: u32,
}

impl Feed {
    /// Numbers by name.
    ///
    /// # Errors
    /// A sentence that says what is missing or how many there should be.
    pub fn get(&self, name: &str, len: usize) -> Result<&[f64], String> {
        let found = self.numbers.iter().find(|(n, _)| n == name).ok_or_else(|| format!("input {name} is missing"))?;
        if found.1.len() == len {
            Ok(&found.1)
        } else {
            Err(format!("input {name} has {} numbers, not {len}", found.1.len()))
        }
    }

    /// Ids by name.
    ///
    /// # Errors
    /// As [`Feed::get`].
    pub fn get_ids(&self, name: &str, len: usize) -> Result<&[u32], String> {
        let found = self.ids.iter().find(|(n, _)| n == name).ok_or_else(|| format!("input {name} is missing"))?;
        if found.1.len() == len {
            Ok(&found.1)
        } else {
            Err(format!("input {name} has {} ids, not {len}", found.1.len()))
        }
    }

    /// Where random numbers are drawn.
    pub fn draw(&self) -> Draw {
        Draw { seed: self.seed, step: self.step, micro: self.micro }
    }

    /// Sets numbers, in place of those that have this name already.
    pub fn set(&mut self, name: &str, values: Vec<f64>) {
        self.numbers.retain(|(n, _)| n != name);
        self.numbers.push((name.into(), values));
    }

    /// Sets ids, in place of those that have this name already.
    pub fn set_ids(&mut self, name: &str, values: Vec<u32>) {
        self.ids.retain(|(n, _)| n != name);
        self.ids.push((name.into(), values));
    }
}
