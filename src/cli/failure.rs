//! How a verb fails: a message for a person, its causes, a hint, and the exit status.

use super::launched;
use std::{
    fmt,
    io::{self, IsTerminal},
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

/// What went wrong, for a person.
#[derive(Debug)]
pub enum Failure {
    /// The reader of our output went away: no error to tell anybody.
    BrokenPipe,
    /// Interrupted by the person: exit 130, nothing to say.
    Interrupted,
    /// This process has done its part for another, which says how it went.
    Followed,
    /// `error: message`, with the causes below it.
    Said {
        /// The first line.
        message: String,
        /// What would help.
        hint: Option<String>,
    },
}

/// Whether a GPU was asked for, or would be taken.
static ON_GPU: AtomicBool = AtomicBool::new(true);

/// Says whether hints that lead from a GPU to the CPU are of use.
pub fn on_gpu(gpu: bool) {
    ON_GPU.store(gpu, Ordering::Relaxed);
}

/// A verb's result.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with a message.
    pub fn new(message: impl Into<String>) -> Self {
        Failure::Said { message: message.into(), hint: None }
    }

    /// What is said, for who passes it on.
    pub fn message(&self) -> String {
        match self {
            Failure::Said { message, .. } => message.clone(),
            Failure::BrokenPipe => "nobody reads its output".into(),
            Failure::Interrupted => "interrupted".into(),
            Failure::Followed => "done".into(),
        }
    }

    /// The same with a hint.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        match self {
            Failure::Said { message, .. } => Failure::Said { message, hint: Some(hint.into()) },
            other => other,
        }
    }

    /// A failure to read or write `path`.
    pub fn io(doing: &str, path: &Path, e: &io::Error) -> Self {
        Failure::new(format!("cannot {doing} {}: {e}", path.display()))
    }

    /// Prints it on stderr; gives the exit status.
    pub fn report(&self) -> ExitCode {
        match self {
            Failure::BrokenPipe => ExitCode::SUCCESS,
            Failure::Interrupted => ExitCode::from(130),
            Failure::Followed => ExitCode::SUCCESS,
            Failure::Said { .. } if launched::said_by_another() => ExitCode::FAILURE,
            Failure::Said { message, hint } => {
                match launched::follower() {
                    Some(rank) => say(format_args!("rank {rank}: error: {message}")),
                    None => say(format_args!("error: {message}")),
                }
                if let Some(hint) = hint {
                    say(format_args!("hint: {hint}"));
                }
                ExitCode::FAILURE
            }
        }
    }
}

/// A line on stderr; a closed stderr is nobody's problem.
pub fn say(line: fmt::Arguments<'_>) {
    use io::Write;
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// What makes the text behind it dim, and what ends that.
pub const DIM: &str = "\x1b[2m";
pub const PLAIN: &str = "\x1b[0m";

/// Whether text may have colours there: on a terminal, unless NO_COLOR is set (<https://no-color.org>).
pub fn colours(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// A line on stderr that stands behind others.
pub fn say_dim(text: &str) {
    match colours(io::stderr().is_terminal()) {
        true => say(format_args!("{DIM}{text}{PLAIN}")),
        false => say(format_args!("{text}")),
    }
}

/// The causes that the message does not already contain.
fn with_causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(c) = cause {
        let line = c.to_string();
        if !text.contains(&line) {
            text.push_str("\n  caused by: ");
            text.push_str(&line);
        }
        cause = c.source();
    }
    text
}

impl From<crate::Error> for Failure {
    fn from(e: crate::Error) -> Self {
        let failure = Failure::new(with_causes(&e));
        match &e {
            crate::Error::Cancelled => Failure::Interrupted,
            crate::Error::Device(what) if what.contains("shorter context") => {
                failure.hint("--ctx N asks for a shorter context, --kv q8_0 for a smaller cache")
            }
            crate::Error::Device(what) if what.contains("no GPU that can compute") => {
                failure.hint("--backend cpu needs no GPU; --device names a software device")
            }
            crate::Error::Device(_) if ON_GPU.load(Ordering::Relaxed) => {
                failure.hint("`moeray devices` lists what there is; --backend cpu needs no GPU")
            }
            crate::Error::Invalid(what) if what.contains("runs on the GPU as a whole") => {
                failure.hint("without --gpu-layers (-ngl) all of it is on the GPU; --backend cpu (-ngl 0) leaves all of it to the processor")
            }
            crate::Error::ContextFull { .. } => failure.hint("--ctx N makes room for more"),
            crate::Error::SystemMessage(_) => {
                failure.hint("leave out --system (or --system-file), and say it in the first message")
            }
            crate::Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                failure.hint("name a .gguf file or a folder with config.json and *.safetensors")
            }
            _ => failure,
        }
    }
}

/// Errors of writing to standard output.
impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::BrokenPipe {
            return Failure::BrokenPipe;
        }
        Failure::new(format!("cannot write to standard output: {e}"))
    }
}
