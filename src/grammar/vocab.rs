//! A vocabulary as `llguidance` wants it: a trie of the bytes of tokens.

use crate::{
    error::{Error, Result},
    tokenizer::{EncodeOptions, Tokenizer},
};
use llguidance::toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};

pub(super) struct Vocab {
    trie: TokTrie,
    tokenizer: Tokenizer,
    /// Whether a text in the middle of another has the same tokens as alone.
    canonical: bool,
}

/// Longer tokens are left out: the trie cannot hold them.
const LONGEST_TOKEN: usize = 1000;
/// Bytes of all tokens together; the trie has at most as many nodes, and 22 bits for their number.
const MOST_BYTES: usize = (1 << 22) - 1;

impl Vocab {
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let marker = TokTrie::SPECIAL_TOKEN_MARKER;
        let ends: Vec<u32> =
            tokenizer.eos_ids().iter().copied().filter(|e| (*e as usize) < tokenizer.vocab_size()).collect();
        let Some(end) = ends.first() else {
            return Err(Error::Unsupported("grammars with a vocabulary of which no token ends a text".into()));
        };
        let mut words: Vec<Vec<u8>> = Vec::with_capacity(tokenizer.vocab_size());
        for id in 0..tokenizer.vocab_size() as u32 {
            let mut word = if tokenizer.is_special(id) || ends.contains(&id) {
                let text = tokenizer.token_text(id).unwrap_or_default();
                std::iter::once(marker).chain(text.into_bytes()).collect()
            } else {
                // A byte that is no UTF-8 would pass for the marker of control tokens.
                tokenizer.token_bytes(id)?.filter(|b| b.first() != Some(&marker)).unwrap_or_default()
            };
            if word.len() > LONGEST_TOKEN {
                word.clear();
            }
            words.push(word);
        }
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes > MOST_BYTES {
            return Err(Error::Unsupported(format!("grammars with a vocabulary of {bytes} bytes")));
        }
        let info = TokRxInfo { tok_bos: tokenizer.bos(), ..TokRxInfo::new(words.len() as u32, *end) };
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
        Ok(Vocab { trie, tokenizer: tokenizer.clone(), canonical: tokenizer.splits_anywhere() })
    }
}

impl TokenizerEnv for Vocab {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let options = EncodeOptions { add_bos: false, parse_special: false };
        let text = std::str::from_utf8(bytes).ok().filter(|_| self.canonical);
        match text.and_then(|t| self.tokenizer.encode(t, options).ok()) {
            Some(ids) => ids,
            None => self.trie.greedy_tokenize(bytes),
        }
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.canonical
    }
}
