//! What goes into a runner and what comes out: steps of rows, budgets, results.

use crate::error::{Error, Result};

/// Where a row's token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// This id.
    Id(u32),
    /// The token that was chosen last for the row's sequence, by a step that may still be queued.
    Last,
}

/// One row of a step: a token of a sequence at a position, and what is wanted after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The token that is fed.
    pub token: Token,
    /// The sequence, below [`super::RunnerOptions::sequences`].
    pub sequence: usize,
    /// The position in the sequence, in tokens. What the sequence holds from there on is forgotten.
    pub position: usize,
    /// Whether the logits after this row are read back.
    pub logits: bool,
    /// Whether a token is chosen after this row, with which random word (unused at temperature 0).
    pub choose: Option<u64>,
    /// Whether the hidden state of this row is read back.
    pub hidden: bool,
}

impl Row {
    /// A row from which nothing is wanted but its place in the context.
    pub fn fed(token: u32, sequence: usize, position: usize) -> Self {
        Row { token: Token::Id(token), sequence, position, logits: false, choose: None, hidden: false }
    }

    /// Whether anything is computed after this row beyond the last layer: logits, or a token.
    pub fn wants(&self) -> bool {
        self.logits || self.choose.is_some()
    }
}

/// The tokens that a row may choose, for grammars.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The row, which has [`Row::choose`].
    pub row: usize,
    /// Bit `t % 32` of word `t / 32` is set where token t may be chosen: ⌈V / 32⌉ words.
    pub allowed: &'a [u32],
}

impl Mask<'_> {
    /// Words of a mask over `vocab` tokens.
    pub fn words(vocab: usize) -> usize {
        vocab.div_ceil(32)
    }
}

/// Named inputs of a step: the f32 values of `Op::Input` nodes, row-major `[T, cols]`.
pub type Inputs<'a> = &'a [(&'a str, &'a [f32])];

/// Rows that are computed together, so that each weight is read once for all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step<'a> {
    /// T rows, 1 ..= [`super::RunnerOptions::ubatch`]. The rows of a sequence ascend by one position, with rows of other sequences
    /// between them or not. The rows from which something is wanted (logits or a token) come last.
    pub rows: &'a [Row],
    /// The masks of rows that choose, in the order of the rows; a row without a mask chooses among all tokens.
    pub masks: &'a [Mask<'a>],
    /// Named inputs, where the graph has any.
    pub inputs: Inputs<'a>,
    /// Whether outputs with a row for every token (traced experts) are read back.
    pub trace: bool,
}

/// What a row's choice came to. One row that fails does not spoil the others of its step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// This token.
    Token(u32),
    /// All tokens were forbidden, or had logits of minus infinity.
    NothingAllowed,
    /// The logits held NaN or infinity: damaged weights, or an overflow.
    NotFinite,
}

impl Chosen {
    /// The token.
    ///
    /// # Errors
    /// [`Error::Invalid`] where none was allowed; [`Error::Model`] where the logits were not finite.
    pub fn token(self) -> Result<u32> {
        match self {
            Chosen::Token(id) => Ok(id),
            Chosen::NothingAllowed => Err(Error::Invalid("no token to choose from: all are forbidden".into())),
            Chosen::NotFinite => Err(not_finite("the logits hold")),
        }
    }
}

/// The error of `what`, logits that are not finite.
pub(crate) fn not_finite(what: &str) -> Error {
    Error::Model(format!("{what} NaN or infinity: the weights are damaged, or numbers overflow"))
}

/// One named result of a step, row-major `[rows, cols]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// Rows: T or O, as the value's type says.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// f32 results; empty for ids.
    pub f32: Vec<f32>,
    /// u32 results (expert ids); empty for numbers.
    pub u32: Vec<u32>,
}

/// The results of a step. Their vectors are used again for the next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Results {
    /// The graph's outputs in the order of `graph.outputs`. Outputs after the last rows (logits) have a row for each row of
    /// the step with [`Row::logits`]; outputs for every token have T rows where [`Step::trace`] was set, else none;
    /// [`crate::ir::RESIDUAL`] has none, for it becomes `hidden`.
    pub outputs: Vec<Output>,
    /// Hidden states after the final norm, row-major `[n, H]`: one for each row of the step with [`Row::hidden`], in the order of
    /// the rows.
    pub hidden: Vec<f32>,
    /// Sequence and position of each of them.
    pub hidden_of: Vec<(usize, usize)>,
    /// One choice for each row of the step with [`Row::choose`], in the order of the rows.
    pub tokens: Vec<Chosen>,
}

/// How much one call of `poll` may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Dispatches of a GPU, nodes of the graph on the CPU; at least one is done.
    pub dispatches: usize,
    /// Estimated time of the slice in microseconds; the dispatch or node that exceeds it is the slice's last.
    pub micros: u64,
}

impl Budget {
    /// No limit: a step is one slice, and steps that are queued behind it are submitted while it runs.
    pub const UNLIMITED: Budget = Budget { dispatches: usize::MAX, micros: u64::MAX };

    /// At most this many dispatches or nodes.
    pub fn dispatches(n: usize) -> Self {
        Budget { dispatches: n, ..Budget::UNLIMITED }
    }

    /// About this many microseconds.
    pub fn micros(n: u64) -> Self {
        Budget { micros: n, ..Budget::UNLIMITED }
    }

    /// Whether there is no limit.
    pub fn is_unlimited(self) -> bool {
        self == Budget::UNLIMITED
    }
}

/// What a call of `poll` came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No step is queued.
    Idle,
    /// A slice was done, and there is more to do at once.
    Pending,
    /// Everything that may be submitted is: the device is at work, and the host may do something else.
    Waiting,
    /// The oldest step is done and its results are there.
    Done,
}
