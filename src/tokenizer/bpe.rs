//! Byte-level BPE (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019): a text's UTF-8 bytes,
//! merged pair by pair within the pieces of the pre-tokenizer.
//!
//! The vocabulary spells bytes as printable characters, GPT-2's alphabet: the printable Latin-1 bytes stand for
//! themselves, the others for U+0100 and up in order.

use super::{
    pretok::PreTokenizer,
    vocab::{Kind, Vocab, bad, byte_of},
};
use crate::error::Result;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::OnceLock,
};

/// The character of GPT-2's alphabet for each byte.
pub(crate) fn alphabet() -> &'static [char; 256] {
    static TABLE: OnceLock<[char; 256]> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut next = 0x100;
        std::array::from_fn(|b| {
            if matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
                return char::from(b as u8);
            }
            next += 1;
            char::from_u32(next - 1).unwrap_or('\u{fffd}')
        })
    })
}

/// The byte of a character of GPT-2's alphabet.
pub(crate) fn byte_of_char(c: char) -> Option<u8> {
    static TABLE: OnceLock<HashMap<char, u8>> = OnceLock::new();
    TABLE.get_or_init(|| alphabet().iter().zip(0..=255).map(|(c, b)| (*c, b)).collect()).get(&c).copied()
}

/// A merge: its rank (lower ranks are applied first), and the token that it makes.
#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// The merges of a byte-level BPE and its pre-tokenizer.
pub(crate) struct Bpe {
    pre: &'static PreTokenizer,
    /// The token of each single byte. Some vocabularies have no token for bytes that no UTF-8 text contains.
    bytes: Vec<Option<u32>>,
    merges: HashMap<(u32, u32), Merge>,
}

/// A token of a piece that is being merged. The tokens of a piece are a doubly linked list in an array.
struct Symbol {
    /// `None` for a byte that has no token.
    id: Option<u32>,
    prev: usize,
    next: usize,
    alive: bool,
}

const END: usize = usize::MAX;

impl Bpe {
    /// Reads the merges, each "left right".
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] for a merge that has no two sides, or names or makes a text that is no token.
    pub(crate) fn new(vocab: &Vocab, merges: &[String], pre: &'static PreTokenizer) -> Result<Self> {
        let find = |text: &str, merge: &str, i: usize| {
            vocab.by_text.get(text).copied().ok_or_else(|| {
                bad(format!("merge {i}, {merge:?}, needs the token {text:?}, which the vocabulary lacks"))
            })
        };
        let mut table = HashMap::with_capacity(merges.len());
        for (i, merge) in merges.iter().enumerate() {
            let sides = merge.split_once(' ').filter(|(l, r)| !l.is_empty() && !r.is_empty());
            let Some((left, right)) = sides else {
                return Err(bad(format!("merge {i}, {merge:?}, is not two texts with a blank between")));
            };
            let key = (find(left, merge, i)?, find(right, merge, i)?);
            let id = find(&format!("{left}{right}"), merge, i)?;
            // The first of equal merges counts.
            table.entry(key).or_insert(Merge { rank: i as u32, id });
        }
        let bytes = alphabet().iter().map(|c| vocab.ordinary(c.encode_utf8(&mut [0; 4]))).collect();
        Ok(Bpe { pre, bytes, merges: table })
    }

    /// Appends the tokens of ordinary text. Bytes without a token are dropped, as in llama.cpp.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut spelled = String::new();
        let mut symbols = Vec::new();
        self.pre.split(text, |piece| {
            if self.pre.ignore_merges {
                spelled.clear();
                spelled.extend(piece.bytes().map(|b| alphabet()[b as usize]));
                if let Some(id) = vocab.ordinary(&spelled) {
                    out.push(id);
                    return;
                }
            }
            self.merge(piece, &mut symbols, out);
        });
    }

    /// Merges one piece: always the pair of the lowest rank, the leftmost of equals. A heap of candidates makes that
    /// n log n in the length of the piece.
    fn merge(&self, piece: &str, symbols: &mut Vec<Symbol>, out: &mut Vec<u32>) {
        symbols.clear();
        let n = piece.len();
        symbols.extend(piece.bytes().enumerate().map(|(i, b)| Symbol {
            id: self.bytes[b as usize],
            prev: i.checked_sub(1).unwrap_or(END),
            next: if i + 1 < n { i + 1 } else { END },
            alive: true,
        }));
        let mut heap = BinaryHeap::new();
        let push = |heap: &mut BinaryHeap<_>, symbols: &[Symbol], left: usize| {
            let Some(l) = symbols.get(left) else { return };
            let Some(r) = symbols.get(l.next) else { return };
            if let (Some(a), Some(b)) = (l.id, r.id)
                && let Some(m) = self.merges.get(&(a, b))
            {
                heap.push(Reverse((m.rank, left, a, b, m.id)));
            }
        };
        for left in 0..n.saturating_sub(1) {
            push(&mut heap, symbols, left);
        }
        while let Some(Reverse((_, left, a, b, id))) = heap.pop() {
            let right = symbols[left].next;
            // Stale where either side has merged with something else since.
            if !symbols[left].alive || symbols[left].id != Some(a) || symbols.get(right).and_then(|s| s.id) != Some(b) {
                continue;
            }
            let after = symbols[right].next;
            symbols[right].alive = false;
            symbols[left].id = Some(id);
            symbols[left].next = after;
            if let Some(s) = symbols.get_mut(after) {
                s.prev = left;
            }
            push(&mut heap, symbols, symbols[left].prev);
            push(&mut heap, symbols, left);
        }
        out.extend(symbols.iter().filter(|s| s.alive).filter_map(|s| s.id));
    }
}

/// Appends the bytes that a token's characters stand for; a character that stands for none is itself.
pub(crate) fn unspelled(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        match byte_of_char(c) {
            Some(b) => out.push(b),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Appends the bytes that token `id` stands for.
pub(crate) fn piece(vocab: &Vocab, id: u32, out: &mut Vec<u8>) {
    let (Some(text), Some(kind)) = (vocab.text(id), vocab.kind(id)) else { return };
    match kind {
        Kind::Normal => unspelled(text, out),
        Kind::Control | Kind::Unknown | Kind::UserDefined => out.extend_from_slice(text.as_bytes()),
        Kind::Byte => out.extend(byte_of(text)),
        Kind::Unused => {}
    }
}
