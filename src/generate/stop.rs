//! Stop strings.

use super::Piece;
use std::{collections::VecDeque, ops::Range};

/// A piece, and what stop strings find of it.
#[derive(Debug)]
struct Held {
    piece: Piece,
    /// The text of a control token, which nobody sees, behind the piece's own.
    mark: String,
}

/// Holds pieces back while their text may be the beginning of a stop string, or lacks the end of a character.
#[derive(Debug)]
pub(crate) struct StopFilter {
    stop: Vec<String>,
    pieces: VecDeque<Held>,
    /// How many of `pieces`, from the front, may go.
    ready: usize,
    /// The joined text of the pieces that may not, with control tokens.
    text: String,
}

impl StopFilter {
    pub fn new(stop: Vec<String>) -> Self {
        StopFilter { stop, pieces: VecDeque::new(), ready: 0, text: String::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub fn pop(&mut self) -> Option<Piece> {
        self.ready = self.ready.checked_sub(1)?;
        self.pieces.pop_front().map(|h| h.piece)
    }

    /// Takes a piece, the text of its control token, and whether bytes of it are still to come as text; gives the index of
    /// the stop string that it completes.
    pub fn push(&mut self, piece: Piece, mark: String, pending: bool) -> Option<usize> {
        self.text.push_str(&piece.text);
        self.text.push_str(&mark);
        self.pieces.push_back(Held { piece, mark });
        if let Some((at, stop)) = self.find() {
            self.cut(at);
            return Some(stop);
        }
        let safe = self.text.len() - self.longest_beginning();
        let last = self.pieces.len() - usize::from(pending);
        let mut end = 0;
        while self.ready < last {
            let held = &self.pieces[self.ready];
            let length = held.piece.text.len() + held.mark.len();
            if end + length > safe {
                break;
            }
            end += length;
            self.ready += 1;
        }
        self.text.drain(..end);
        None
    }

    /// Gives the last piece, whose bytes were pending, the text that they come to.
    pub fn complete(&mut self, text: &str) {
        if let Some(held) = self.pieces.back_mut().filter(|_| !text.is_empty()) {
            held.piece.text.push_str(text);
            self.text.push_str(text);
        }
    }

    /// Nothing follows, so what was held back is no stop string.
    pub fn release(&mut self) {
        self.ready = self.pieces.len();
    }

    /// Where the texts of control tokens lie in the held text.
    fn marks(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let mut marks = vec![];
        for held in self.pieces.iter().skip(self.ready) {
            start += held.piece.text.len();
            if !held.mark.is_empty() {
                marks.push(start..start + held.mark.len());
            }
            start += held.mark.len();
        }
        marks
    }

    /// The first stop string in the held text: its place and its index. A control token is found as a whole or not at all.
    fn find(&self) -> Option<(usize, usize)> {
        let marks = self.marks();
        let whole = |found: &Range<usize>| {
            let apart = |m: &Range<usize>| m.end <= found.start || found.end <= m.start;
            marks.iter().all(|m| apart(m) || found.start <= m.start && m.end <= found.end)
        };
        let first = |stop: &String| {
            let mut from = 0;
            while let Some(at) = self.text[from..].find(stop.as_str()).map(|at| from + at) {
                if whole(&(at..at + stop.len())) {
                    return Some(at);
                }
                from = at + self.text[at..].chars().next().map_or(1, char::len_utf8);
            }
            None
        };
        self.stop.iter().enumerate().filter_map(|(i, stop)| Some((first(stop)?, i))).min()
    }

    /// Drops the held text from byte `at` on; what is before it may go.
    fn cut(&mut self, at: usize) {
        let mut start = 0;
        let mut keep = self.ready;
        for held in self.pieces.iter_mut().skip(self.ready) {
            if start >= at {
                break;
            }
            let length = held.piece.text.len();
            held.piece.text.truncate(at - start);
            start += length + held.mark.len();
            keep += 1;
        }
        self.pieces.truncate(keep);
        self.ready = keep;
        self.text.clear();
    }

    /// Length of the longest end of the held text that a stop string begins with.
    fn longest_beginning(&self) -> usize {
        let longest = |s: &String| {
            (1..s.len().min(self.text.len() + 1))
                .rev()
                .find(|&n| s.is_char_boundary(n) && self.text.as_bytes().ends_with(&s.as_bytes()[..n]))
        };
        self.stop.iter().filter_map(longest).max().unwrap_or(0)
    }
}
