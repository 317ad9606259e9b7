//! An answer on standard output: words wrapped and thinking told apart in a terminal, plain text elsewhere.

use crate::{
    cli::failure::{DIM, Outcome, PLAIN, colours},
    tokenizer::AnswerPart,
};
use console::{Term, measure_text_width};
use std::io::{self, IsTerminal, Write};

/// Standard output.
pub struct Screen {
    terminal: bool,
    colour: bool,
    /// Columns that are taken in the line.
    column: usize,
    /// The word that is not written yet, because more of it may come.
    word: String,
    /// What was written last.
    part: Option<AnswerPart>,
}

impl Screen {
    /// A screen.
    pub fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        Screen { terminal, colour: colours(terminal), column: 0, word: String::new(), part: None }
    }

    /// Whether a person sees it.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether it may have colours.
    pub fn colour(&self) -> bool {
        self.colour
    }

    /// Columns of the terminal, less one: a full line would break by itself.
    fn width(&self) -> usize {
        let (_, columns) = Term::stdout().size_checked().unwrap_or((24, 80));
        usize::from(columns).saturating_sub(1).max(10)
    }

    /// Writes a piece of an answer.
    pub fn write(&mut self, part: AnswerPart, text: &str) -> Outcome {
        if self.part.is_some_and(|before| before != part) {
            self.change()?;
        }
        if self.part != Some(part) && part != AnswerPart::Content && self.colour {
            self.raw(DIM)?;
        }
        self.part = Some(part);
        if self.terminal {
            self.wrapped(text)?
        } else {
            self.raw(text)?
        }
        Ok(io::stdout().flush()?)
    }

    /// From one part of an answer to another: an empty line between.
    fn change(&mut self) -> Outcome {
        self.put_word()?;
        if self.colour {
            self.raw(PLAIN)?;
        }
        self.raw(if self.column > 0 || !self.terminal { "\n\n" } else { "\n" })?;
        self.column = 0;
        Ok(())
    }

    /// Ends the answer, and its last line where that is open.
    pub fn end_line(&mut self) -> Outcome {
        self.put_word()?;
        if self.colour && self.part.is_some_and(|p| p != AnswerPart::Content) {
            self.raw(PLAIN)?;
        }
        if self.column > 0 || self.part.is_none() {
            self.raw("\n")?;
        }
        (self.part, self.column) = (None, 0);
        Ok(io::stdout().flush()?)
    }

    fn raw(&mut self, text: &str) -> Outcome {
        io::stdout().write_all(text.as_bytes())?;
        if !self.terminal && !text.is_empty() {
            // All that counts elsewhere is whether a line is open.
            self.column = usize::from(!text.ends_with('\n'));
        }
        Ok(())
    }

    /// Text of which words that do not fit the line go to the next.
    fn wrapped(&mut self, text: &str) -> Outcome {
        for c in text.chars() {
            match c {
                '\n' => {
                    self.put_word()?;
                    self.raw("\n")?;
                    self.column = 0;
                }
                ' ' | '\t' => {
                    self.put_word()?;
                    if self.column < self.width() {
                        let blanks = if c == '\t' { 8 - self.column % 8 } else { 1 };
                        self.raw(if c == '\t' { "\t" } else { " " })?;
                        self.column += blanks;
                    }
                }
                // Nothing that a model writes commands the terminal.
                c if c.is_control() => {}
                c => {
                    self.word.push(c);
                    // Scripts without blanks break anywhere, and a word as long as a line has to.
                    let wide = measure_text_width(c.encode_utf8(&mut [0; 4])) > 1;
                    if wide || self.word.len() > 400 {
                        self.put_word()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn put_word(&mut self) -> Outcome {
        let word = std::mem::take(&mut self.word);
        if word.is_empty() {
            return Ok(());
        }
        let (length, width) = (measure_text_width(&word), self.width());
        if self.column > 0 && self.column + length > width {
            self.raw("\n")?;
            self.column = 0;
        }
        self.raw(&word)?;
        self.column = (self.column + length) % (width + 1);
        Ok(())
    }
}
