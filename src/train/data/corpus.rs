//! The tokens of all texts, one behind the other.

use super::hash::Digest;
use crate::{
    error::{Error, Result},
    file::Bytes,
};
use std::sync::Arc;

/// What becomes of a sample that is longer than a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Excess {
    /// It is an error that names it.
    #[default]
    Raise,
    /// It is left out, and counted.
    Drop,
    /// Its end is left out.
    Truncate,
}

/// One text of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// Its first token.
    pub start: usize,
    /// Its tokens, at least 2.
    pub len: usize,
    /// Whether it may be cut into pieces that are learnt apart: plain text may, a conversation may not.
    pub divisible: bool,
}

/// Tokens in memory, or in a file that is mapped.
#[derive(Clone, Debug)]
enum Ids {
    Memory(Arc<[u32]>),
    U16(Bytes),
    U32(Bytes),
}

/// The tokens of all texts, and which of them are to be learnt.
#[derive(Clone, Debug)]
pub struct Corpus {
    parts: Vec<Ids>,
    /// The first token of each part, and the number of all.
    ends: Vec<usize>,
    /// Whether each token of a part in memory is to be learnt; one entry for each part, empty where all are.
    learnt: Vec<Arc<[bool]>>,
    texts: Vec<Text>,
    dropped: usize,
    longest: usize,
    vocab: usize,
    /// Of all tokens, where texts end, and what is learnt.
    digest: Digest,
}

impl Corpus {
    /// A corpus without texts, for ids below `vocab` and samples of at most `longest` tokens (texts that may be cut have any
    /// length).
    pub fn new(vocab: usize, longest: usize) -> Corpus {
        let (parts, ends, learnt, texts, digest) = (vec![], vec![0], vec![], vec![], Digest::default());
        Corpus { parts, ends, learnt, texts, dropped: 0, longest, vocab, digest }
    }

    /// Adds a text that may be cut, all of whose tokens are to be learnt. `name` names it in errors.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id out of range, or fewer than two tokens.
    pub fn add_text(&mut self, name: &str, ids: Vec<u32>) -> Result<()> {
        self.digest = self.check(name, ids.len(), ids.iter().copied())?;
        self.push(ids, vec![], true);
        Ok(())
    }

    /// Adds a sample that is learnt as a whole: `learnt` says for each token whether the model is to predict it.
    ///
    /// # Errors
    /// As [`Corpus::add_text`]; [`Error::Invalid`] where it is too long and `excess` says so, or nothing of it would be learnt.
    pub fn add_sample(&mut self, name: &str, mut ids: Vec<u32>, mut learnt: Vec<bool>, excess: Excess) -> Result<()> {
        if ids.len() > self.longest {
            match excess {
                Excess::Raise => return Err(self.too_long(name, ids.len())),
                Excess::Drop => {
                    self.dropped += 1;
                    return Ok(());
                }
                Excess::Truncate => {
                    ids.truncate(self.longest);
                    learnt.truncate(self.longest);
                }
            }
        }
        let mut digest = self.check(name, ids.len(), ids.iter().copied())?;
        if !learnt.iter().skip(1).any(|l| *l) {
            return Err(Error::Invalid(format!(
                "{name}: nothing of it would be learnt: it has no answer within {} tokens",
                self.longest
            )));
        }
        learnt.iter().for_each(|l| digest.word(u64::from(*l)));
        self.digest = digest;
        self.push(ids, learnt, false);
        Ok(())
    }

    fn too_long(&self, name: &str, tokens: usize) -> Error {
        Error::Invalid(format!(
            "{name}: {tokens} tokens do not fit a sequence of {}; a longer sequence_len helps, or excess_length_strategy = \
             \"drop\" or \"truncate\"",
            self.longest - 1
        ))
    }

    /// Adds a file of 16-bit (`wide` off) or 32-bit ids, as one text.
    ///
    /// # Errors
    /// As [`Corpus::add_text`].
    pub fn add_tokens(&mut self, name: &str, bytes: Bytes, wide: bool) -> Result<()> {
        let size = if wide { 4 } else { 2 };
        if bytes.len() % size != 0 {
            let what = format!("{} bytes are no whole number of {}-bit ids", bytes.len(), 8 * size);
            return Err(Error::format(name, what));
        }
        let len = bytes.len() / size;
        let part = if wide { Ids::U32(bytes) } else { Ids::U16(bytes) };
        self.digest = self.check(name, len, (0..len).map(|i| part.get(i)))?;
        self.texts.push(Text { start: self.len(), len, divisible: true });
        self.parts.push(part);
        self.learnt.push(Arc::default());
        self.ends.push(self.len() + len);
        Ok(())
    }

    /// Refuses a text without tokens to learn, and ids out of range. Gives the digest with it.
    fn check(&self, name: &str, len: usize, ids: impl Iterator<Item = u32>) -> Result<Digest> {
        if len < 2 {
            let what = if len == 0 { "is empty" } else { "has one token: nothing comes behind it to be learnt" };
            return Err(Error::Invalid(format!("{name} {what}")));
        }
        let (vocab, mut digest) = (self.vocab, self.digest);
        digest.word(len as u64);
        for (i, id) in ids.enumerate() {
            if id as usize >= vocab {
                return Err(Error::Invalid(format!(
                    "{name}: token {i} has the id {id}, and the model's vocabulary ends at {}; were the ids made with another \
                     tokenizer, or with another width?",
                    vocab.saturating_sub(1)
                )));
            }
            digest.word(u64::from(id));
        }
        Ok(digest)
    }

    fn push(&mut self, ids: Vec<u32>, learnt: Vec<bool>, divisible: bool) {
        let start = self.len();
        self.texts.push(Text { start, len: ids.len(), divisible });
        self.ends.push(start + ids.len());
        self.parts.push(Ids::Memory(ids.into()));
        self.learnt.push(learnt.into());
    }

    /// Tokens in all.
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// The texts.
    pub fn texts(&self) -> &[Text] {
        &self.texts
    }

    /// The same for the same tokens in the same texts, of which the same are learnt.
    pub(in crate::train) fn digest(&self) -> Digest {
        self.digest
    }

    /// Samples that were left out because they are too long.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Tokens of the texts together; less than [`Corpus::len`] where some were held back.
    pub fn text_tokens(&self) -> usize {
        self.texts.iter().map(|t| t.len).sum()
    }

    /// As [`Corpus::rows`], where `at` counts the tokens of the texts alone, one text behind the other, and rows go on from one
    /// text to the next. `starts` has the sum of the lengths before each text.
    pub(super) fn window(&self, starts: &[usize], at: usize, rows: usize, mut each: impl FnMut(u32, u32, bool)) {
        let mut text = starts.partition_point(|s| *s <= at).saturating_sub(1);
        let (mut at, end, mut before) = (at, at + rows + 1, None);
        while at < end {
            let (Some(t), Some(start)) = (self.texts.get(text), starts.get(text)) else { return };
            let (within, take) = (at - start, (start + t.len).min(end) - at);
            // The border of two texts is a row, too; `rows` gives those within.
            for i in t.start + within..t.start + within + take {
                let (id, learnt) = self.token(i);
                if let Some(before) = before {
                    each(before, id, learnt);
                }
                before = Some(id);
            }
            at += take;
            text += 1;
        }
    }

    /// A token, and whether it is to be learnt.
    fn token(&self, i: usize) -> (u32, bool) {
        let part = self.ends.partition_point(|e| *e <= i).saturating_sub(1);
        let within = i - self.ends[part];
        (self.parts[part].get(within), self.learnt[part].get(within).copied().unwrap_or(true))
    }

    /// Calls `each` with `rows` tokens from token `at`, whether each is to be learnt, and the token behind it.
    pub(super) fn rows(&self, at: usize, rows: usize, mut each: impl FnMut(u32, u32, bool)) {
        let (mut before, mut part) = (None, self.ends.partition_point(|e| *e <= at).saturating_sub(1));
        for i in at..(at + rows + 1).min(self.len()) {
            while self.ends.get(part + 1).is_some_and(|e| *e <= i) {
                part += 1;
            }
            let (Some(ids), Some(learnt)) = (self.parts.get(part), self.learnt.get(part)) else { return };
            let within = i - self.ends[part];
            let id = ids.get(within);
            if let Some(before) = before {
                each(before, id, learnt.get(within).copied().unwrap_or(true));
            }
            before = Some(id);
        }
    }

    /// Parts the corpus: texts that may be cut lose their last tokens, and others are chosen whole by an integer hash of `seed`,
    /// `share` (0 to 1) of all. Gives what is trained on, and what is not.
    ///
    /// # Errors
    /// [`Error::Invalid`] where one of both would be empty.
    pub fn split(&self, share: f64, seed: u32) -> Result<(Corpus, Corpus)> {
        let (mut train, mut held) = (vec![], vec![]);
        for (i, t) in self.texts.iter().enumerate() {
            let tail = (t.len as f64 * share) as usize;
            // A short text is a sample, whatever it is made of.
            if t.divisible && tail >= self.longest {
                train.push(Text { len: t.len - tail, ..*t });
                held.push(Text { start: t.start + t.len - tail, len: tail, ..*t });
            } else if f64::from(super::hash::word(seed, 2, i as u32)) < share * f64::from(u32::MAX) {
                held.push(*t);
            } else {
                train.push(*t);
            }
        }
        if train.is_empty() || held.is_empty() {
            return Err(Error::Invalid(format!(
                "val_set_size = {share} of {} texts leaves none to {}; another part helps, or files that test_datasets names",
                self.texts.len(),
                if held.is_empty() { "evaluate" } else { "train on" }
            )));
        }
        Ok((Corpus { texts: train, ..self.clone() }, Corpus { texts: held, ..self.clone() }))
    }
}

impl Ids {
    fn get(&self, i: usize) -> u32 {
        match self {
            Ids::Memory(v) => v[i],
            Ids::U16(b) => u32::from(u16::from_le_bytes([b[2 * i], b[2 * i + 1]])),
            Ids::U32(b) => u32::from_le_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]]),
        }
    }
}
