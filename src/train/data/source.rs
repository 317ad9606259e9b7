//! What a data set is: where its files are, what they hold, and what is learnt of them.

use super::corpus::Excess;
use std::path::PathBuf;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text, UTF-8.
    Text,
    /// A JSON object a line.
    JsonLines,
    /// 16-bit token ids, little-endian: nanoGPT's `.bin`, llm.c's.
    TokensU16,
    /// 32-bit token ids, little-endian.
    TokensU32,
}

/// A file or folder of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Where it is; of a folder, every file below whose ending is known.
    pub path: PathBuf,
    /// What it holds; where it is not said, the ending tells.
    pub kind: Option<Kind>,
    /// Learn prompts and questions, too, and not answers alone.
    pub train_on_inputs: bool,
    /// Put the token that ends a text behind every text.
    pub add_eos: bool,
    /// What becomes of samples that are too long.
    pub excess: Excess,
}

impl Source {
    /// A source of this path, in the usual way.
    pub fn new(path: impl Into<PathBuf>) -> Source {
        Source { path: path.into(), kind: None, train_on_inputs: false, add_eos: true, excess: Excess::Raise }
    }
}
