//! Token ids back to text, at once or one by one.

use super::{Engine, Tokenizer, bpe, spm, vocab::Kind};
use crate::error::{Error, Result};

/// Appends the text of `bytes` that is complete, and leaves an unfinished UTF-8 sequence at the end in place. Bytes that
/// can never become UTF-8 turn into U+FFFD.
fn take_complete(bytes: &mut Vec<u8>, out: &mut String) {
    let mut at = 0;
    loop {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(text) => {
                out.push_str(text);
                at = bytes.len();
                break;
            }
            Err(e) => {
                let valid = at + e.valid_up_to();
                out.push_str(&String::from_utf8_lossy(&bytes[at..valid]));
                at = valid;
                match e.error_len() {
                    Some(n) => {
                        out.push('\u{fffd}');
                        at += n;
                    }
                    None => break,
                }
            }
        }
    }
    bytes.drain(..at);
}

/// Turns ids into text one at a time, for showing an answer as it is generated.
///
/// A token may end in the middle of a UTF-8 sequence; its bytes are then held back until the sequence is complete.
/// Blanks at the start are kept: an answer continues a prompt. Ids without a token give no text.
#[derive(Clone)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    special: bool,
    state: State,
}

#[derive(Clone)]
enum State {
    /// Bytes that are no complete UTF-8 sequence yet.
    Bytes(Vec<u8>),
    /// Of a `tokenizer.json` with a decoder whose bytes for a token depend on its neighbours: the ids whose text may still
    /// change, and how many at their front have been shown.
    Ids { ids: Vec<u32>, shown: usize },
}

/// A run of ids that never becomes valid text is shown after this many, so that nothing grows without bound.
const MOST_HELD: usize = 32;

/// What `now` has beyond what it has in common with `before`: where a decoder made something else of earlier ids, what is
/// new comes again rather than being lost.
fn beyond<'t>(before: &str, now: &'t str) -> &'t str {
    let common = before.chars().zip(now.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    &now[common..]
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer, special: bool) -> Self {
        let state = match &*tokenizer.engine {
            Engine::Bpe { .. } | Engine::Spm { .. } => State::Bytes(Vec::new()),
            Engine::Hf(hf) if hf.spells_bytes() => State::Bytes(Vec::new()),
            Engine::Hf(hf) => {
                let ids: Vec<u32> = hf.neutral.into_iter().collect();
                State::Ids { shown: ids.len(), ids }
            }
        };
        DecodeStream { tokenizer, special, state }
    }

    /// The text that became complete with this token; empty in the middle of a UTF-8 sequence, and for a control token that is
    /// not shown. Such a token ends a sequence: what was held back comes with U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        if self.hidden(id).is_some() {
            return self.flush();
        }
        let mut out = String::new();
        match &mut self.state {
            State::Bytes(bytes) => {
                self.tokenizer.piece(id, self.special, bytes);
                take_complete(bytes, &mut out);
            }
            State::Ids { ids, shown } => {
                ids.push(id);
                let before = self.tokenizer.decode_hf(&ids[..*shown], self.special);
                let now = self.tokenizer.decode_hf(ids, self.special);
                if (now.ends_with('\u{fffd}') || now == before) && ids.len() - *shown < MOST_HELD {
                    return out;
                }
                out.push_str(beyond(&before, &now));
                // The last shown ids stay as context, since decoders treat the first token of a text specially.
                ids.drain(..*shown);
                *shown = ids.len();
            }
        }
        out
    }

    /// The text of a control token that this stream leaves out; `None` for tokens that it shows.
    pub fn hidden(&self, id: u32) -> Option<String> {
        if self.special || !self.tokenizer.is_hidden(id) { None } else { self.tokenizer.token_text(id) }
    }

    /// Whether bytes are held back that are no complete text yet.
    pub fn is_pending(&self) -> bool {
        match &self.state {
            State::Bytes(bytes) => !bytes.is_empty(),
            State::Ids { ids, shown } => *shown < ids.len(),
        }
    }

    /// Ends the stream: gives the text that is still held back, with U+FFFD for an unfinished UTF-8 sequence.
    pub fn flush(&mut self) -> String {
        match &mut self.state {
            State::Bytes(bytes) => String::from_utf8_lossy(&std::mem::take(bytes)).into_owned(),
            State::Ids { ids, shown } => {
                let before = self.tokenizer.decode_hf(&ids[..*shown], self.special);
                let now = self.tokenizer.decode_hf(ids, self.special);
                if *shown < ids.len() {
                    ids.drain(..*shown);
                    *shown = ids.len();
                }
                beyond(&before, &now).to_owned()
            }
        }
    }
}

impl Tokenizer {
    /// Appends the bytes of a token where they do not depend on its neighbours.
    fn piece(&self, id: u32, special: bool, out: &mut Vec<u8>) {
        if !special && self.is_hidden(id) {
            return;
        }
        match &*self.engine {
            Engine::Bpe { vocab, .. } => bpe::piece(vocab, id, out),
            Engine::Spm { vocab, .. } => spm::piece(vocab, id, out),
            Engine::Hf(hf) => hf.piece(id, out),
        }
    }

    /// The bytes that a token adds in the middle of a text; `None` for control tokens and ids without a token.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a `tokenizer.json` with a decoder whose bytes for a token depend on its neighbours.
    pub fn token_bytes(&self, id: u32) -> Result<Option<Vec<u8>>> {
        if let Engine::Hf(hf) = &*self.engine
            && !hf.spells_bytes()
        {
            return Err(Error::Unsupported("tokens of this tokenizer.json have no bytes of their own".into()));
        }
        if self.is_special(id) || self.token_text(id).is_none() {
            return Ok(None);
        }
        let mut bytes = vec![];
        self.piece(id, true, &mut bytes);
        Ok(Some(bytes))
    }

    /// Whether decoding leaves the token out unless control tokens are asked for.
    fn is_hidden(&self, id: u32) -> bool {
        match &*self.engine {
            Engine::Bpe { vocab, .. } | Engine::Spm { vocab, .. } => vocab.is_hidden(id),
            Engine::Hf(hf) => hf.is_special(id),
        }
    }

    fn decode_hf(&self, ids: &[u32], special: bool) -> String {
        let Engine::Hf(hf) = &*self.engine else { return String::new() };
        hf.decode(ids, special)
    }

    /// The text of `ids` without control tokens. The inverse of [`Tokenizer::encode`] where the text has no special
    /// tokens and the vocabulary has all bytes: the blank that a SentencePiece vocabulary puts before a text is removed
    /// again. Ids without a token give no text; bytes that are no UTF-8 give U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_with(ids, false)
    }

    /// [`Tokenizer::decode`]; with `special`, control tokens appear with their texts.
    pub fn decode_with(&self, ids: &[u32], special: bool) -> String {
        let (vocab, space_prefix) = match &*self.engine {
            Engine::Hf(hf) => return hf.decode(ids, special),
            Engine::Bpe { vocab, .. } => (vocab, false),
            Engine::Spm { vocab, spm, .. } => (vocab, spm.space_prefix),
        };
        let mut bytes = Vec::new();
        let mut after_special = true;
        for id in ids {
            let start = bytes.len();
            self.piece(*id, special, &mut bytes);
            let is_special = matches!(vocab.kind(*id), Some(Kind::Control | Kind::Unknown | Kind::UserDefined));
            if space_prefix && after_special && !is_special && bytes.get(start) == Some(&b' ') {
                bytes.remove(start);
            }
            after_special = is_special;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether a text has the same tokens in the middle of another as alone, but for those at its borders: where nothing is put
    /// before a text.
    pub(crate) fn splits_anywhere(&self) -> bool {
        matches!(&*self.engine, Engine::Bpe { .. })
    }

    /// A stream that turns generated ids into text one by one, without control tokens.
    pub fn stream(&self) -> DecodeStream {
        DecodeStream::new(self.clone(), false)
    }

    /// [`Tokenizer::stream`] that shows control tokens with their texts.
    pub fn stream_special(&self) -> DecodeStream {
        DecodeStream::new(self.clone(), true)
    }
}
