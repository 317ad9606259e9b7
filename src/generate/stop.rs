//! Stop strings.

use super::Piece;
use std::collections::VecDeque;

/// Holds pieces back while their text may be the beginning of a stop string.
#[derive(Debug)]
pub(super) struct StopFilter {
    stop: Vec<String>,
    pub(super) pieces: VecDeque<Piece>,
    /// How many of `pieces`, from the front, may go.
    ready: usize,
    /// The joined text of the pieces that may not.
    text: String,
}

impl StopFilter {
    pub fn new(stop: Vec<String>) -> Self {
        StopFilter { stop, pieces: VecDeque::new(), ready: 0, text: String::new() }
    }

    pub fn pop(&mut self) -> Option<Piece> {
        self.ready = self.ready.checked_sub(1)?;
        self.pieces.pop_front()
    }

    /// Takes a piece; gives the index of the stop string that it completes.
    pub fn push(&mut self, piece: Piece) -> Option<usize> {
        self.text.push_str(&piece.text);
        self.pieces.push_back(piece);
        if let Some((at, stop)) = self.find() {
            self.cut(at);
            return Some(stop);
        }
        let safe = self.text.len() - self.longest_beginning();
        let mut end = 0;
        for piece in self.pieces.iter().skip(self.ready) {
            if end + piece.text.len() > safe {
                break;
            }
            end += piece.text.len();
            self.ready += 1;
        }
        self.text.drain(..end);
        None
    }

    /// Nothing follows, so what was held back is no stop string.
    pub fn release(&mut self) {
        self.ready = self.pieces.len();
    }

    /// The first stop string in the held text.
    fn find(&self) -> Option<(usize, usize)> {
        self.stop.iter().enumerate().filter_map(|(i, s)| Some((self.text.find(s.as_str())?, i))).min()
    }

    /// Drops the held text from byte `at` on; what is before it may go.
    fn cut(&mut self, at: usize) {
        let mut start = 0;
        let mut keep = self.ready;
        for piece in self.pieces.iter_mut().skip(self.ready) {
            if start >= at {
                break;
            }
            let len = piece.text.len();
            piece.text.truncate(at - start);
            start += len;
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
