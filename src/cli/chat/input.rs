//! A person's messages: typed with a line editor, or read from a pipe.

use super::{
    super::{
        failure::{Failure, Outcome, say},
        shaders,
    },
    command,
};
use rustyline::{
    Config, Context, Editor, Helper,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};
use std::{
    borrow::Cow,
    io::{self, BufRead, BufReader, Read, Write},
    path::PathBuf,
};

/// The mark around a message of several lines.
const BLOCK: &str = "\"\"\"";

const MOST_HISTORY: usize = 1000;

/// Where messages come from.
pub struct Input {
    editor: Option<Editor<Keys, FileHistory>>,
    history: Option<PathBuf>,
    /// Whether somebody is asked for the next message.
    asks: bool,
    /// Whether a message ends at an empty line only.
    multiline: bool,
    /// Where lines come from that nobody types.
    lines: Box<dyn BufRead>,
    /// Whether all of it may be one message: nothing of it was looked at.
    whole: bool,
}

impl Input {
    /// From a terminal with a line editor and a history that is kept, or from standard input: line by line, or as a whole.
    pub fn new(terminal: bool, colour: bool, by_line: bool) -> Self {
        let lines = Box::new(BufReader::new(io::stdin()));
        let mut input = Input { editor: None, history: None, asks: false, multiline: false, lines, whole: !by_line };
        if !terminal {
            return input;
        }
        input.asks = true;
        let config = Config::builder().max_history_size(MOST_HISTORY).map(|c| c.bracketed_paste(true).build());
        // Where the terminal cannot do it, lines are read as they come.
        input.editor = config.and_then(Editor::with_config).inspect_err(|e| tracing::info!("no line editor: {e}")).ok();
        input.history = shaders::path("chat-history");
        if let Some(editor) = &mut input.editor {
            editor.set_helper(Some(Keys { multiline: false, colour }));
            if let Some(path) = &input.history {
                // None yet at the first time.
                let _ = editor.load_history(path);
            }
        }
        input
    }

    /// Turns on or off that a message ends at an empty line only; gives how it is now.
    pub fn toggle_multiline(&mut self) -> bool {
        self.multiline = !self.multiline;
        if let Some(keys) = self.editor.as_mut().and_then(Editor::helper_mut) {
            keys.multiline = self.multiline;
        }
        self.multiline
    }

    /// The next message; `None` at the end of the input.
    pub fn message(&mut self) -> Outcome<Option<String>> {
        let text = match &mut self.editor {
            Some(editor) => match edit(editor)? {
                Some(text) => text,
                None => return Ok(None),
            },
            None => match self.lines()? {
                Some(text) => text,
                None => return Ok(None),
            },
        };
        if let Some(editor) = &mut self.editor
            && !text.trim().is_empty()
        {
            // A history that cannot be kept is no reason to end a conversation.
            let _ = editor.add_history_entry(&text);
            if let Some(path) = &self.history {
                let _ = path.parent().map(std::fs::create_dir_all);
                let _ = editor.append_history(path);
            }
        }
        Ok(Some(unwrapped(&text, self.multiline)))
    }

    /// Lines until a message is complete.
    fn lines(&mut self) -> Outcome<Option<String>> {
        let unreadable = |e: io::Error| Failure::new(format!("cannot read standard input: {e}"));
        if std::mem::take(&mut self.whole) {
            let mut all = String::new();
            self.lines.read_to_string(&mut all).map_err(unreadable)?;
            if !all.lines().any(command::is_known) {
                return Ok((!all.trim().is_empty()).then(|| all.trim_end_matches(['\n', '\r']).to_owned()));
            }
            // A conversation in a file, with commands in it.
            self.lines = Box::new(io::Cursor::new(all));
        }
        let mut text = String::new();
        loop {
            if self.asks {
                io::stdout().write_all(if text.is_empty() { b"> " } else { b"... " })?;
                io::stdout().flush()?;
            }
            let mut line = String::new();
            if self.lines.read_line(&mut line).map_err(unreadable)? == 0 {
                return Ok((!text.is_empty()).then_some(text));
            }
            text.push_str(line.trim_end_matches(['\n', '\r']));
            if is_complete(&text, self.multiline) {
                return Ok(Some(text));
            }
            text.push('\n');
        }
    }
}

/// A message from the editor.
fn edit(editor: &mut Editor<Keys, FileHistory>) -> Outcome<Option<String>> {
    loop {
        match editor.readline("> ") {
            Ok(text) => return Ok(Some(text)),
            Err(ReadlineError::Interrupted) => say(format_args!("(/quit or Ctrl-D ends)")),
            Err(ReadlineError::Eof) => return Ok(None),
            // The window changed its size, or something else woke the terminal.
            Err(ReadlineError::Signal(_)) => {}
            Err(e) => return Err(Failure::new(format!("cannot read the terminal: {e}"))),
        }
    }
}

/// Whether a message has no more lines to come.
fn is_complete(text: &str, multiline: bool) -> bool {
    if let Some(inside) = text.trim_start().strip_prefix(BLOCK) {
        return inside.trim_end().ends_with(BLOCK);
    }
    if multiline && !command::is_one(text) {
        return text.is_empty() || text.ends_with('\n');
    }
    !text.ends_with('\\')
}

/// The message without what only said where it ends.
fn unwrapped(text: &str, multiline: bool) -> String {
    let block = text.trim();
    if let Some(inside) = block.strip_prefix(BLOCK).and_then(|b| b.strip_suffix(BLOCK)) {
        return inside.trim_matches('\n').to_owned();
    }
    let text = text.replace("\r\n", "\n");
    if multiline { text.trim_end_matches('\n').to_owned() } else { text.replace("\\\n", "\n") }
}

/// What the editor asks of this program.
struct Keys {
    multiline: bool,
    colour: bool,
}

impl Helper for Keys {}

impl Hinter for Keys {
    type Hint = String;
}

impl Highlighter for Keys {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        if self.colour { Cow::Owned(format!("\x1b[1;36m{prompt}\x1b[0m")) } else { Cow::Borrowed(prompt) }
    }
}

impl Validator for Keys {
    fn validate(&self, ctx: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let complete = is_complete(ctx.input(), self.multiline);
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Completer for Keys {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _ctx: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..pos];
        let fits = |name: &&str| typed.starts_with('/') && name.starts_with(typed);
        Ok((0, command::names().filter(fits).map(|name| format!("{name} ")).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::{is_complete, unwrapped};

    #[test]
    fn messages_of_several_lines() {
        assert!(is_complete("hello", false) && is_complete("", false));
        assert!(!is_complete("hello\\", false) && is_complete("hello\\\nthere", false));
        assert_eq!(unwrapped("hello\\\nthere", false), "hello\nthere");
        assert!(
            !is_complete("\"\"\"one", false)
                && !is_complete("\"\"\"", false)
                && is_complete("\"\"\"one\ntwo\"\"\"", false)
        );
        assert_eq!(unwrapped("\"\"\"\none\n\ntwo\n\"\"\"", false), "one\n\ntwo");
        assert!(!is_complete("one", true) && !is_complete("one\ntwo", true) && is_complete("one\ntwo\n", true));
        assert!(is_complete("/multiline", true), "commands are of one line");
        assert_eq!(unwrapped("one\ntwo\n", true), "one\ntwo");
    }
}
