//! Text that knows where each of its lines is from, and what the linker does to it line by line.

use super::{Variant, fragment::Fragment, numbers};
use crate::error::{Error, Result};

/// A line of a shader's text.
#[derive(Clone, Debug)]
pub struct Line {
    /// The text, without the end of the line.
    pub text: String,
    /// Which of [`Lines::files`] it is from.
    pub file: usize,
    /// Its number in that file, from 1.
    pub number: u32,
}

/// Lines, and the files that they are from.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// The lines in order.
    pub lines: Vec<Line>,
    /// Names of the files.
    pub files: Vec<String>,
}

impl Lines {
    /// Adds a text, each line of which is changed by `change`.
    pub fn add(&mut self, file: &str, text: &str, change: impl Fn(&str) -> String) {
        let file = match self.files.iter().position(|f| f == file) {
            Some(i) => i,
            None => {
                self.files.push(file.to_string());
                self.files.len() - 1
            }
        };
        let line = |(number, text): (u32, &str)| Line { text: change(text), file, number };
        self.lines.extend((1..).zip(text.lines()).map(line));
    }

    /// Adds a fragment as it is.
    pub fn push(&mut self, fragment: &Fragment) {
        self.add(fragment.file, fragment.text, str::to_string);
    }

    /// File and number of a line.
    pub fn origin(&self, line: &Line) -> String {
        format!("{}:{}", self.files[line.file], line.number)
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Replaces `from` where an identifier starts with it.
pub fn replace_prefix(text: &str, from: &str, to: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        out.push_str(&rest[..at]);
        let starts = !out.ends_with(is_word);
        out.push_str(if starts { to } else { from });
        rest = &rest[at + from.len()..];
    }
    out.push_str(rest);
    out
}

/// Replaces the whole word `from`.
fn replace_word(text: &str, from: &str, to: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        let end = at + from.len();
        out.push_str(&rest[..at]);
        let whole = !out.ends_with(is_word) && !rest[end..].starts_with(is_word);
        out.push_str(if whole { to } else { from });
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// The code of a line, without a comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// The words of a line's code that are written like constants: capitals, digits and `_`, two at least. (A single letter is
/// a role of WGSL's cooperative matrices.)
pub fn constants(line: &str) -> impl Iterator<Item = &str> {
    let words = code(line).split(|c| !is_word(c));
    words
        .filter(|w| w.len() > 1 && w.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter(|w| w.chars().all(|c| !c.is_ascii_lowercase()))
}

/// The constant that a line declares.
pub fn declared(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("const ")?.split(|c| !is_word(c)).next()
}

/// Writes out loops and decides branches that say so in their heads; see [`super::link`].
pub struct Heads<'a> {
    /// Gives the numbers.
    pub variant: &'a Variant,
    /// Gives the names of files, for messages.
    pub files: &'a [String],
}

impl Heads<'_> {
    fn wrong<T>(&self, line: &Line, what: &str) -> Result<T> {
        let (file, kernel) = (&self.files[line.file], self.variant.kernel.name);
        Err(Error::Unsupported(format!("{file}:{}: {what} (kernel {kernel})", line.number)))
    }

    /// A literal such as `8u`, a number of the variant, or one that Rust and WGSL share.
    fn value(&self, word: &str, line: &Line) -> Result<u32> {
        let literal = word.strip_suffix('u').and_then(|n| n.parse().ok());
        match literal.or_else(|| self.variant.number(word)).or_else(|| numbers::named(word)) {
            Some(value) => Ok(value),
            None => self.wrong(line, &format!("{word} is not a number that the kernel declares")),
        }
    }

    /// The line that closes the block whose head is line `head`: a `}` or `} else {` of the same indentation.
    fn end(&self, lines: &[Line], head: usize) -> Result<usize> {
        let indent = |l: &Line| l.text.len() - l.text.trim_start().len();
        let closes = |l: &Line| matches!(l.text.trim(), "}" | "} else {") && indent(l) == indent(&lines[head]);
        match (head + 1..lines.len()).find(|j| closes(&lines[*j])) {
            Some(end) => Ok(end),
            None => self.wrong(&lines[head], "no line closes this block"),
        }
    }

    /// Writes out every loop whose head is a line of the form `for (var i = 0u; i < COUNT; i++) { // unroll`. The loop ends
    /// at the `}` line of the same indentation.
    pub fn unroll(&self, lines: &[Line]) -> Result<Vec<Line>> {
        let mut out = Vec::with_capacity(lines.len());
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            let Some(head) = line.text.trim().strip_suffix("// unroll") else {
                out.push(line.clone());
                at += 1;
                continue;
            };
            let Some((variable, bound)) = loop_head(head) else {
                return self.wrong(line, "the head of this loop is not understood");
            };
            let (count, end) = (self.value(bound, line)?, self.end(lines, at)?);
            let body = self.unroll(&lines[at + 1..end])?;
            for i in 0..count {
                let literal = format!("{i}u");
                out.push(Line { text: "{".into(), ..line.clone() });
                let written = |l: &Line| Line { text: replace_word(&l.text, variable, &literal), ..l.clone() };
                out.extend(body.iter().map(written));
                out.push(Line { text: "}".into(), ..lines[end].clone() });
            }
            at = end + 1;
        }
        Ok(out)
    }

    /// Decides every `if (A == B) { // static` with or without an `} else {`: the branch that is not taken disappears.
    pub fn decide(&self, lines: &[Line]) -> Result<Vec<Line>> {
        let mut out = Vec::with_capacity(lines.len());
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            let Some(head) = line.text.trim().strip_suffix("// static") else {
                out.push(line.clone());
                at += 1;
                continue;
            };
            let Some((a, b)) = branch_head(head) else {
                return self.wrong(line, "the head of this branch is not understood");
            };
            let truth = self.value(a, line)? == self.value(b, line)?;
            let middle = self.end(lines, at)?;
            let has_else = lines[middle].text.trim() == "} else {";
            let end = if has_else { self.end(lines, middle)? } else { middle };
            let taken = match (truth, has_else) {
                (true, _) => &lines[at + 1..middle],
                (false, true) => &lines[middle + 1..end],
                (false, false) => &[][..],
            };
            out.push(Line { text: "{".into(), ..line.clone() });
            out.extend(self.decide(taken)?);
            out.push(Line { text: "}".into(), ..lines[end].clone() });
            at = end + 1;
        }
        Ok(out)
    }
}

/// Variable and bound of `for (var i = 0u; i < COUNT; i++) {`.
fn loop_head(head: &str) -> Option<(&str, &str)> {
    let head = head.trim().strip_suffix('{')?.trim().strip_prefix("for (var ")?;
    let (variable, rest) = head.split_once(" = 0u;")?;
    let rest = rest.trim().strip_prefix(variable)?.trim().strip_prefix('<')?;
    let (bound, step) = rest.split_once(';')?;
    let step = step.trim().strip_suffix(')')?.strip_prefix(variable)?;
    (step == "++").then_some((variable, bound.trim()))
}

/// Both sides of `if (A == B) {`.
fn branch_head(head: &str) -> Option<(&str, &str)> {
    head.trim().strip_suffix('{')?.trim().strip_prefix("if (")?.strip_suffix(')')?.split_once(" == ")
}
