//! SentencePiece-style tokenisation as in Llama 2 and Mixtral: characters, merged pair by pair into the piece with the
//! highest score (Kudo and Richardson, "SentencePiece", 2018, its BPE mode), with bytes for what has no piece.

use super::{
    special::Part,
    vocab::{Kind, Vocab, bad, byte_of},
};
use crate::error::Result;
use std::collections::{BinaryHeap, HashMap};

/// The character that stands for a blank in the texts of tokens.
const BLANK: char = '▁';

/// Scores and bytes of a SentencePiece vocabulary.
pub(crate) struct Spm {
    scores: Vec<f32>,
    /// The token of each byte, for characters that have no token.
    bytes: Vec<Option<u32>>,
    pub(crate) space_prefix: bool,
    /// Blank-escaped texts that may be merged into: all but control and unknown tokens.
    pieces: HashMap<String, u32>,
}

struct Symbol {
    start: usize,
    /// 0 where it was merged into its left neighbour.
    len: usize,
    prev: usize,
    next: usize,
}

const END: usize = usize::MAX;

/// A pair that could merge. The heap yields the highest score first, the leftmost of equals.
struct Pair {
    score: f32,
    left: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl Spm {
    /// # Errors
    /// [`crate::Error::Tokenizer`] where there are no scores, fewer than tokens, or one of them is NaN.
    pub(crate) fn new(vocab: &Vocab, scores: Option<Vec<f32>>, space_prefix: bool) -> Result<Self> {
        let mut scores = scores.ok_or_else(|| bad("no tokenizer.ggml.scores, which a `llama` tokenizer needs"))?;
        if scores.len() < vocab.len() {
            return Err(bad(format!("{} scores for {} tokens (tokenizer.ggml.scores)", scores.len(), vocab.len())));
        }
        if let Some(id) = scores.iter().position(|s| s.is_nan()) {
            return Err(bad(format!("the score of token {id} is not a number")));
        }
        // Negative zero would sort below zero.
        scores.iter_mut().for_each(|s| *s += 0.0);
        let mut bytes = vec![None; 256];
        for (id, text) in vocab.texts.iter().enumerate() {
            if let Some(b) = byte_of(text) {
                bytes[b as usize] = Some(id as u32);
            }
        }
        for (b, slot) in bytes.iter_mut().enumerate().take(128).filter(|(_, slot)| slot.is_none()) {
            *slot = vocab.ordinary(char::from(b as u8).encode_utf8(&mut [0; 4]));
        }
        let pieces = vocab
            .by_text
            .iter()
            .filter(|(_, id)| !matches!(vocab.kind(**id), Some(Kind::Control | Kind::Unknown)))
            .map(|(text, id)| (text.clone(), *id))
            .collect();
        Ok(Spm { scores, bytes, space_prefix, pieces })
    }

    /// Appends the tokens of a text that is cut at its special tokens. With a space prefix, a blank goes before the
    /// first text and before text that follows a special token, as in llama.cpp.
    pub(crate) fn encode(&self, vocab: &Vocab, parts: &[Part], out: &mut Vec<u32>) {
        let mut after_special = true;
        for part in parts {
            match part {
                Part::Token(id) => {
                    out.push(*id);
                    after_special = true;
                }
                Part::Text(text) => {
                    let mut escaped = String::with_capacity(text.len() + 3);
                    if self.space_prefix && after_special {
                        escaped.push(BLANK);
                    }
                    escaped.extend(text.chars().map(|c| if c == ' ' { BLANK } else { c }));
                    self.merge(vocab, &escaped, out);
                    after_special = false;
                }
            }
        }
    }

    fn merge(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                prev: i.checked_sub(1).unwrap_or(END),
                next: if start + c.len_utf8() < text.len() { i + 1 } else { END },
            })
            .collect();
        let mut heap = BinaryHeap::new();
        for left in 0..symbols.len() {
            self.push(text, &symbols, left, &mut heap);
        }
        while let Some(pair) = heap.pop() {
            let Symbol { len, next, .. } = symbols[pair.left];
            let Some(right) = symbols.get_mut(next) else { continue };
            // Stale where either side has merged with something else since.
            if len == 0 || right.len == 0 || len + right.len != pair.len {
                continue;
            }
            let after = right.next;
            right.len = 0;
            symbols[pair.left].len = pair.len;
            symbols[pair.left].next = after;
            if let Some(s) = symbols.get_mut(after) {
                s.prev = pair.left;
            }
            let before = symbols[pair.left].prev;
            self.push(text, &symbols, before, &mut heap);
            self.push(text, &symbols, pair.left, &mut heap);
        }
        for s in symbols.iter().filter(|s| s.len > 0) {
            let piece = &text[s.start..s.start + s.len];
            match self.pieces.get(piece) {
                Some(id) => out.push(*id),
                None => self.fall_back(vocab, piece, out),
            }
        }
    }

    /// A character that is no piece: its bytes, and the unknown token where one of them is no token either.
    fn fall_back(&self, vocab: &Vocab, piece: &str, out: &mut Vec<u32>) {
        let bytes: Option<Vec<u32>> = piece.bytes().map(|b| self.bytes[b as usize]).collect();
        match bytes {
            Some(ids) => out.extend(ids),
            None => out.extend(vocab.unk),
        }
    }

    fn push(&self, text: &str, symbols: &[Symbol], left: usize, heap: &mut BinaryHeap<Pair>) {
        let Some(l) = symbols.get(left) else { return };
        let Some(r) = symbols.get(l.next) else { return };
        let len = l.len + r.len;
        if let Some(id) = self.pieces.get(&text[l.start..l.start + len]) {
            heap.push(Pair { score: self.scores[*id as usize], left, len });
        }
    }
}

/// Appends the bytes that token `id` stands for.
pub(crate) fn piece(vocab: &Vocab, id: u32, out: &mut Vec<u8>) {
    let (Some(text), Some(kind)) = (vocab.text(id), vocab.kind(id)) else { return };
    match kind {
        Kind::Normal => out.extend_from_slice(text.replace(BLANK, " ").as_bytes()),
        Kind::Control | Kind::Unknown | Kind::UserDefined => out.extend_from_slice(text.as_bytes()),
        Kind::Byte => out.extend(byte_of(text)),
        Kind::Unused => {}
    }
}
