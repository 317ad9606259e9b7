//! What the readers of calls have in common: they take characters one by one, so that it cannot matter where a text was cut.

use super::sink::Sink;

/// What a character behind an opening mark came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is more to come.
    More,
    /// The calls end with this character.
    Done,
    /// The calls had ended before this character.
    Before,
    /// This is no call.
    No,
}

/// Reads what stands behind an opening mark.
pub(super) trait Grammar: std::fmt::Debug + Send {
    /// Takes a character.
    fn push(&mut self, c: char, sink: &mut Sink) -> Verdict;
}

/// What a character did to a literal that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Literal {
    /// It may become one.
    More,
    /// It is the one with this index.
    Found(usize),
    /// It is none.
    No,
}

/// Adds a character to what may become one of `options`.
pub(super) fn literal(read: &mut String, c: char, options: &[&str]) -> Literal {
    read.push(c);
    if let Some(i) = options.iter().position(|o| o == read) {
        read.clear();
        return Literal::Found(i);
    }
    if options.iter().any(|o| o.starts_with(read.as_str())) { Literal::More } else { Literal::No }
}

/// Length of the longest end of `text` that `mark` begins with.
pub(super) fn beginning(text: &str, mark: &str) -> usize {
    let fits = |n: &usize| mark.is_char_boundary(*n) && text.as_bytes().ends_with(&mark.as_bytes()[..*n]);
    (1..mark.len().min(text.len() + 1)).rev().find(fits).unwrap_or(0)
}

/// Text up to a mark: gives each part as soon as it cannot belong to the mark.
#[derive(Clone, Debug, Default)]
pub(super) struct Until {
    held: String,
}

impl Until {
    /// Takes a character; `true` where it ends the mark.
    pub fn push(&mut self, c: char, mark: &str, out: &mut String) -> bool {
        self.held.push(c);
        if self.held.ends_with(mark) {
            self.held.truncate(self.held.len() - mark.len());
            out.push_str(&self.held);
            self.held.clear();
            return true;
        }
        let rest = self.held.split_off(self.held.len() - beginning(&self.held, mark));
        out.push_str(&self.held);
        self.held = rest;
        false
    }
}
