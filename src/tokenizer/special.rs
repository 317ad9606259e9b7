//! Special tokens in a text: they are cut out before anything else looks at it.

use super::vocab::{Kind, Vocab};
use std::{collections::HashMap, ops::Range};

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part<'t> {
    /// Ordinary text, never empty.
    Text(&'t str),
    /// A special token.
    Token(u32),
}

/// One special token.
struct Special {
    id: u32,
    text: String,
    /// Whether the token is found only where the caller asks for special tokens, as control and unknown tokens are.
    on_request: bool,
    /// Whether white space after the token is dropped.
    rstrip: bool,
}

/// The special tokens of a vocabulary, longest first.
pub(crate) struct Specials {
    list: Vec<Special>,
    /// A trie over the tokens' bytes, so that one pass over a text tells which of them occur in it at all.
    edges: HashMap<(u32, u8), u32>,
    /// For each node of the trie the index in `list` of the token that ends there.
    ends: Vec<Option<usize>>,
}

impl Specials {
    /// The control, unknown and user-defined tokens of `vocab`. `name` is the model's (`general.name`).
    pub(crate) fn new(vocab: &Vocab, name: &str) -> Self {
        let name = name.to_lowercase();
        let phi3 = name.contains("phi-3") || name.contains("phi3");
        let mut list: Vec<Special> = vocab
            .texts
            .iter()
            .zip(&vocab.kinds)
            .enumerate()
            .filter(|(_, (text, kind))| {
                !text.is_empty() && matches!(kind, Kind::Control | Kind::Unknown | Kind::UserDefined)
            })
            .map(|(id, (text, kind))| Special {
                id: id as u32,
                text: text.clone(),
                on_request: *kind != Kind::UserDefined,
                rstrip: phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&text.as_str()),
            })
            .collect();
        list.sort_by_key(|s| std::cmp::Reverse(s.text.len()));
        let mut specials = Specials { list, edges: HashMap::new(), ends: vec![None] };
        for i in 0..specials.list.len() {
            specials.insert(i);
        }
        specials
    }

    fn insert(&mut self, index: usize) {
        let mut node = 0u32;
        for byte in self.list[index].text.bytes() {
            let next = self.ends.len() as u32;
            let child = *self.edges.entry((node, byte)).or_insert(next);
            if child == next {
                self.ends.push(None);
            }
            node = child;
        }
        // Of several with one text the first.
        self.ends[node as usize].get_or_insert(index);
    }

    /// Indices of the tokens that occur in `text`, longest first.
    fn present(&self, text: &str) -> Vec<usize> {
        let bytes = text.as_bytes();
        let mut found = vec![false; self.list.len()];
        for start in 0..bytes.len() {
            let mut node = 0;
            for byte in &bytes[start..] {
                match self.edges.get(&(node, *byte)) {
                    Some(next) => node = *next,
                    None => break,
                }
                if let Some(i) = self.ends[node as usize] {
                    found[i] = true;
                }
            }
        }
        (0..self.list.len()).filter(|i| found[*i]).collect()
    }

    /// Cuts `text` at its special tokens: at all occurrences of the longest token first, then within what is left at those
    /// of the next (the order of llama.cpp). Control and unknown tokens count only with `parse_special`, and not where they
    /// touch one of the byte ranges `foreign` (ascending).
    pub(crate) fn split<'t>(&self, text: &'t str, foreign: &[Range<usize>], parse_special: bool) -> Vec<Part<'t>> {
        let start = text.as_ptr() as usize;
        let mut parts = if text.is_empty() { vec![] } else { vec![Part::Text(text)] };
        for special in self.present(text).into_iter().map(|i| &self.list[i]) {
            if special.on_request && !parse_special {
                continue;
            }
            let mut next = Vec::with_capacity(parts.len());
            for part in parts {
                match part {
                    Part::Text(t) => {
                        let foreign = if special.on_request { foreign } else { &[] };
                        cut(special, t, (t.as_ptr() as usize - start, foreign), &mut next);
                    }
                    token => next.push(token),
                }
            }
            parts = next;
        }
        parts
    }
}

/// Whether a byte range shares a byte with one of `ranges` (ascending).
pub(crate) fn touches(ranges: &[Range<usize>], range: Range<usize>) -> bool {
    let i = ranges.partition_point(|r| r.end <= range.start);
    ranges.get(i).is_some_and(|r| r.start < range.end)
}

/// Cuts `text`, which begins at byte `start` of the whole, at a token that does not touch a foreign range.
fn cut<'t>(
    special: &Special,
    mut text: &'t str,
    (mut start, foreign): (usize, &[Range<usize>]),
    out: &mut Vec<Part<'t>>,
) {
    let length = special.text.len();
    let mut from = 0;
    while let Some(found) = text[from..].find(&special.text) {
        let at = from + found;
        if touches(foreign, start + at..start + at + length) {
            from = at + text[at..].chars().next().map_or(1, char::len_utf8);
            continue;
        }
        if at > 0 {
            out.push(Part::Text(&text[..at]));
        }
        out.push(Part::Token(special.id));
        let mut rest = &text[at + length..];
        if special.rstrip {
            rest = rest.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
        }
        start += text.len() - rest.len();
        (text, from) = (rest, 0);
    }
    if !text.is_empty() {
        out.push(Part::Text(text));
    }
}
