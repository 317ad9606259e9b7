//! A position in the bytes of a GGUF file: numbers, strings and counts, each checked against what is left.

use super::bytes::Bytes;
use crate::error::{Error, Result};
use std::borrow::Cow;

/// A reader's position in the bytes of a file.
pub(super) struct Cursor<'a> {
    /// Its name in messages.
    pub file: &'a str,
    pub bytes: &'a Bytes,
    pub all: &'a [u8],
    pub pos: usize,
}

impl<'a> Cursor<'a> {
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::format(self.file, what)
    }

    pub fn left(&self) -> usize {
        self.all.len() - self.pos
    }

    /// The next `n` bytes; `what` names them for the error.
    pub fn take(&mut self, n: u64, what: impl FnOnce() -> String) -> Result<&'a [u8]> {
        match usize::try_from(n).ok().filter(|n| *n <= self.left()) {
            Some(n) => {
                let s = &self.all[self.pos..self.pos + n];
                self.pos += n;
                Ok(s)
            }
            None => Err(self.error(format!(
                "{} at byte {} needs {n} bytes, but the file ends at byte {} (truncated, or a corrupt length)",
                what(),
                self.pos,
                self.all.len()
            ))),
        }
    }

    pub fn u32(&mut self, what: impl FnOnce() -> String) -> Result<u32> {
        let b = self.take(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub fn u64(&mut self, what: impl FnOnce() -> String) -> Result<u64> {
        let b = self.take(8, what)?;
        Ok(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    /// A length-prefixed string, without zeros behind it: some writers pad with them, and C's strings end there.
    pub fn raw_string(&mut self, what: impl Fn() -> String) -> Result<&'a [u8]> {
        let n = self.u64(|| format!("the length of {}", what()))?;
        self.take(n, &what).map(unpadded)
    }

    /// A length-prefixed UTF-8 string.
    pub fn string(&mut self, what: impl Fn() -> String) -> Result<&'a str> {
        let at = self.pos + 8;
        let b = self.raw_string(&what)?;
        std::str::from_utf8(b).map_err(|e| {
            self.error(format!("{} at byte {at} is not valid UTF-8 (byte {})", what(), at + e.valid_up_to()))
        })
    }

    /// A string of the metadata: one that the tokenizer or a template is made of must be UTF-8, since another text would give other
    /// tokens in silence; others describe, and what is no UTF-8 in them becomes U+FFFD.
    pub fn text(&mut self, key: &str, what: impl Fn() -> String) -> Result<Cow<'a, str>> {
        match key.starts_with("tokenizer.") {
            true => self.string(what).map(Cow::Borrowed),
            false => self.raw_string(what).map(String::from_utf8_lossy),
        }
    }

    /// A count of things that take at least `min` bytes each.
    pub fn count(&self, n: u64, min: usize, what: impl FnOnce() -> String) -> Result<usize> {
        let most = self.left() / min;
        match usize::try_from(n).ok().filter(|n| *n <= most) {
            Some(n) => Ok(n),
            None => Err(self.error(format!(
                "{} says {n} at byte {}, but the {} bytes left hold at most {most} (truncated, or a corrupt count)",
                what(),
                self.pos,
                self.left()
            ))),
        }
    }
}

/// Bytes without zeros at their end; zeros alone stay.
fn unpadded(b: &[u8]) -> &[u8] {
    match b.iter().rposition(|b| *b != 0) {
        Some(last) => &b[..=last],
        None => b,
    }
}
