//! Data: files into texts of token ids, texts into sequences of rows, sequences into batches.
//!
//! - [`Source`]: where a data set is, and what it holds.
//! - [`Corpus`]: the tokens of all texts, and which of them are to be learnt. Files are read by `files` (text, token files) and
//!   `samples` (JSON lines: `text`, `messages`, `prompt` and `completion`).
//! - [`Packing`]: the rows of an epoch. Texts that are shorter than a sequence share one; attention and positions begin anew with
//!   each text.
//! - [`Feed`]: batches in order, from a [`Cursor`] that a checkpoint keeps.

mod corpus;
mod feed;
mod files;
mod hash;
mod packing;
mod samples;
mod source;

pub use corpus::{Corpus, Excess, Text};
pub use feed::{Batch, Cursor, Feed, FeedOptions};
pub use files::read;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub use hash::below;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub use hash::normal;
#[cfg(not(feature = "internals"))]
pub(crate) use hash::normal;
pub(crate) use hash::{Digest, short};
pub use packing::{Packing, PackingOptions};
pub use source::{Kind, Source};
