//! One error type for the library. Every variant names the thing that is wrong and, where something would help, what.

use std::path::PathBuf;

/// What went wrong. The text of every variant is meant for a person: it names the file, tensor, key or device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open or read something.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The operating system refused to make or write something.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file's bytes do not follow its format: truncated, a length beyond the end, an impossible count.
    #[error("{file}: {what}")]
    Format {
        /// The file's name, or its format where it has no name.
        file: String,
        /// What is wrong and where.
        what: String,
    },
    /// A valid file that asks for something this version cannot compute. Says what would help.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// A model that contradicts itself or lacks something: a missing tensor, a wrong shape, NaN weights.
    #[error("model: {0}")]
    Model(String),
    /// A graph that breaks the rules of its language (`src/ir`): an error of the model code, caught before anything runs.
    #[error("graph: {0}")]
    Graph(String),
    /// Tokenisation, detokenisation or a chat template failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A model's chat template refuses the system message; the conversation without it would do.
    #[error("the model's chat template takes no system message: {0}")]
    SystemMessage(String),
    /// An argument of the caller is out of range: a token id, a sampling parameter, an empty prompt.
    #[error("{0}")]
    Invalid(String),
    /// The prompt and what was generated do not fit the context.
    #[error("the context is full: {needed} tokens do not fit {capacity}; ask for a longer context or a shorter prompt")]
    ContextFull {
        /// Positions that were asked for.
        needed: usize,
        /// Positions that the session has.
        capacity: usize,
    },
    /// No adapter, a device that is too small, a lost device, out of device memory, a watchdog reset.
    #[error("device: {0}")]
    Device(String),
    /// The network, or who answers at its other end: no connection, a refusal, a download that breaks off again and again.
    #[error("network: {0}")]
    Network(String),
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A format error of `file`.
    pub fn format(file: impl Into<String>, what: impl Into<String>) -> Self {
        Error::Format { file: file.into(), what: what.into() }
    }
}
