//! Jinja2 as chat templates use it: the language of Jinja 3.1 on Python's values, in the sandbox and with the settings of
//! Hugging Face transformers (`trim_blocks`, `lstrip_blocks`, loop controls, `{% generation %}`, its `tojson`).
//!
//! Why not a library: templates are written against Python. They format with `%`, print lists and floats as Python does, call
//! the methods of Python's strings, and take `varargs`; the template engines in Rust have another language of values, in which
//! these cannot be added from outside. And a prompt must know which of its text the template wrote and which came in with the
//! conversation ([`text`]), so that a person's words never become control tokens.
//!
//! Reading order: `lexer` (text and tags), `ast`, `parser`, `text` and `value` (Python's values), `number` (how Python writes
//! numbers), `operator`, `format` (`%` and `str.format`), `method`, `filter`, `sequence` (filters over sequences), `check`
//! (the tests behind `is`), `global`, `names`, `nesting` (of both, the parser and a run), `run` (what a run may spend), `scope` and `eval`.
//!
//! Sources: Jinja 3.1.6 (`lexer.py`, `parser.py`, `runtime.py`, `filters.py`, `tests.py`, `sandbox.py`), Python 3.11's
//! documentation of `str`, `json.dumps` and `strftime`, transformers 5.24 `utils/chat_template_utils.py`.
//!
//! Deliberately absent: other templates (`include`, `extends`, `import`), HTML escaping by default, files, clocks.

mod ast;
mod check;
mod eval;
mod filter;
mod format;
mod global;
mod json;
mod lexer;
mod method;
mod names;
mod nesting;
mod number;
mod operator;
mod parser;
mod run;
mod scope;
mod sequence;
mod strftime;
mod text;
mod value;

pub use strftime::DateTime;
pub(super) use {eval::render, run::Limits, text::Text, value::Value};

/// A parsed template.
#[derive(Clone, Debug)]
pub(super) struct Template {
    body: std::sync::Arc<[ast::Statement]>,
}

impl Template {
    /// Parses a template.
    pub fn parse(source: &str) -> Result<Template, Fault> {
        Ok(Template { body: parser::parse(source)?.into() })
    }
}

/// What stops a template: the line where it stands, and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    /// From 1; 0 while it is not known yet.
    pub line: u32,
    /// The reason, in Python's words where Python has some.
    pub what: String,
}

impl Fault {
    fn new(what: impl Into<String>) -> Fault {
        Fault { line: 0, what: what.into() }
    }

    /// The same at this line, unless an inner place is known.
    fn at(mut self, line: u32) -> Fault {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

/// A value, or what stops the template.
type Outcome<T> = Result<T, Fault>;

/// A fault of the template's author.
fn fault<T>(what: impl Into<String>) -> Outcome<T> {
    Err(Fault::new(what))
}
