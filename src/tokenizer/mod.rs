//! Tokenizers: text into token ids and back, and chat templates.
//!
//! - A GGUF file carries its vocabulary in its metadata: byte-level BPE (`tokenizer.ggml.model` = `gpt2`) with one of the
//!   [pre-tokenizers](Tokenizer::pre_tokenizers) that llama.cpp knows by name, or SentencePiece with scores (`llama`).
//!   The ids equal llama.cpp's.
//! - A Hugging Face folder has a `tokenizer.json`, which the `tokenizers` crate runs.
//!
//! Special tokens in a text are cut out before anything else looks at it, and only where the caller asks for it: with
//! `parse_special` off, `<|im_end|>` in what a person typed is ordinary text. (llama.cpp makes an exception for
//! gpt-oss's `<|channel|>`, `<|message|>`, `<|start|>`, `<|constrain|>`: here they are control tokens like the others, but
//! decoding shows them.)
//!
//! Deliberately absent: file I/O, models, clocks.

mod answer;
mod bpe;
mod checkpoint;
mod decode;
mod export;
mod gemma4;
mod gguf;
mod guard;
mod hf;
mod jinja;
mod json;
mod pretok;
mod probe;
mod rank;
mod special;
mod spm;
mod template;
mod vocab;

pub use answer::{AnswerReader, Part as AnswerPart, Segment};
pub(crate) use answer::{Before, Kept};
pub use decode::DecodeStream;
pub use template::{ChatTemplate, DateTime, Message, Prompt, RenderOptions};
#[doc(hidden)]
pub use vocab::GgufVocab;

use crate::error::{Error, Result};
use special::{Part, Specials};
use std::{ops::Range, sync::Arc};
use vocab::Vocab;

/// How to encode a text; by default as a prompt in plain words, with what the vocabulary wants before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the special tokens before the text that the vocabulary wants before a prompt: usually BOS, often nothing
    /// ([`Tokenizer::adds_bos`]). Off for text that continues a prompt. EOS never goes behind it, whatever the file says: a
    /// prompt is to be continued ([`Tokenizer::adds_eos`]).
    pub add_bos: bool,
    /// Read the texts of control tokens (`<|im_start|>`) as those tokens: for rendered chat templates. Off for text that
    /// is not trusted. Tokens that a vocabulary defines as plain text are found either way.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        EncodeOptions { add_bos: true, parse_special: false }
    }
}

enum Engine {
    Bpe { vocab: Vocab, specials: Specials, bpe: bpe::Bpe, add_bos: bool, add_eos: bool },
    Spm { vocab: Vocab, specials: Specials, spm: spm::Spm, add_bos: bool, add_eos: bool },
    Hf(Box<hf::Hf>),
}

/// A tokenizer. Cheap to clone, and shared between threads.
#[derive(Clone)]
pub struct Tokenizer {
    engine: Arc<Engine>,
    ends: Vec<u32>,
    chat_template: Option<Template>,
}

/// What a model brings as its chat template. Only conversations need it, so one that does not parse is no error before.
#[derive(Clone)]
enum Template {
    Good(ChatTemplate),
    Broken { source: String, reason: String },
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match &*self.engine {
            Engine::Bpe { .. } => "byte-level BPE",
            Engine::Spm { .. } => "SentencePiece",
            Engine::Hf(_) => "tokenizer.json",
        };
        write!(f, "Tokenizer({kind}, {} tokens)", self.vocab_size())
    }
}

impl Tokenizer {
    /// A tokenizer from the `tokenizer.*` keys of a GGUF file.
    ///
    /// # Errors
    /// As [`Tokenizer::from_vocab`], and [`Error::Tokenizer`] for a key with a value of the wrong type.
    pub fn from_gguf(meta: &crate::file::Metadata) -> Result<Self> {
        Self::from_vocab(gguf::read(meta)?)
    }

    /// A tokenizer from a vocabulary.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another model than `gpt2`, `llama` and `gemma4`, or a pre-tokenizer that is not known
    /// (which lists the known); [`Error::Tokenizer`] for a vocabulary that contradicts itself: merges of unknown tokens, ids
    /// out of range, fewer kinds or scores than tokens.
    #[doc(hidden)]
    pub fn from_vocab(mut v: GgufVocab) -> Result<Self> {
        let template = v.chat_template.take();
        let name = v.name.take().unwrap_or_default();
        let engine = match v.model.as_str() {
            "gpt2" => {
                if v.pre.is_none() {
                    tracing::warn!(
                        "tokenizer.ggml.pre is missing: the text is split by a default pattern, as llama.cpp does"
                    );
                }
                if v.pre.as_deref() == Some("default") {
                    tracing::warn!(
                        "tokenizer.ggml.pre is \"default\", a pre-tokenizer with which hardly any model was trained: where the \
                         converter did not know the model's own, the text is split otherwise than it should be"
                    );
                }
                let pre = pretok::by_name(v.pre.as_deref().unwrap_or("default"))?;
                let vocab = Vocab::new(&mut v, [None; 3])?;
                let merges = v.merges.take().ok_or_else(|| {
                    vocab::bad("no tokenizer.ggml.merges, which a `gpt2` tokenizer needs; convert the model again")
                })?;
                let bpe = bpe::Bpe::new(&vocab, &merges, pre)?;
                let specials = Specials::new(&vocab, &name);
                let (add_bos, add_eos) = (v.add_bos.unwrap_or(pre.add_bos), v.add_eos.unwrap_or(false));
                Engine::Bpe { vocab, specials, bpe, add_bos, add_eos }
            }
            "llama" => {
                let vocab = Vocab::new(&mut v, [Some(1), Some(2), Some(0)])?;
                let spm = spm::Spm::new(&vocab, v.scores.take(), v.add_space_prefix.unwrap_or(true))?;
                let specials = Specials::new(&vocab, &name);
                let (add_bos, add_eos) = (v.add_bos.unwrap_or(true), v.add_eos.unwrap_or(false));
                Engine::Spm { vocab, specials, spm, add_bos, add_eos }
            }
            "gemma4" => return gemma4::tokenizer(&v, template),
            other => {
                return Err(Error::Unsupported(format!(
                    "the tokenizer {other:?} (tokenizer.ggml.model): known are gpt2 (byte-level BPE), llama \
                     (SentencePiece) and gemma4"
                )));
            }
        };
        if let Engine::Bpe { vocab, add_bos, add_eos, .. } | Engine::Spm { vocab, add_bos, add_eos, .. } = &engine {
            for (add, id, key) in [(add_bos, vocab.bos, "bos"), (add_eos, vocab.eos, "eos")] {
                if *add && id.is_none() {
                    return Err(vocab::bad(format!("add_{key}_token is set, but there is no {key}_token_id")));
                }
            }
        }
        Ok(Self::finish(engine, template))
    }

    /// A tokenizer from the bytes of `tokenizer.json`; `config` is `tokenizer_config.json`, which names the special
    /// tokens and holds the chat template.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where either does not parse or they contradict each other.
    pub fn from_json(bytes: &[u8], config: Option<&serde_json::Value>) -> Result<Self> {
        let engine = Engine::Hf(Box::new(hf::Hf::new(bytes, config)?));
        Ok(Self::finish(engine, config.and_then(hf::chat_template).map(str::to_owned)))
    }

    fn finish(engine: Engine, template: Option<String>) -> Self {
        let ends = match &engine {
            Engine::Bpe { vocab, .. } | Engine::Spm { vocab, .. } => vocab.ends.clone(),
            Engine::Hf(hf) => hf.ends.clone(),
        };
        let tokenizer = Tokenizer { engine: Arc::new(engine), ends, chat_template: None };
        match template {
            Some(source) => tokenizer.with_chat_template(source),
            None => tokenizer,
        }
    }

    /// The same tokenizer with this chat template (`chat_template.jinja` of a Hugging Face folder).
    /// One that does not parse makes no error here: only [`Tokenizer::chat_template`] needs it.
    pub fn with_chat_template(mut self, source: impl Into<String>) -> Self {
        let text = |id: Option<u32>| id.and_then(|id| self.token_text(id)).unwrap_or_default();
        let source = source.into();
        self.chat_template = Some(match ChatTemplate::new(&*source, text(self.bos()), text(self.eos())) {
            Ok(template) => Template::Good(template),
            Err(e) => Template::Broken { source, reason: e.to_string() },
        });
        self
    }

    /// The same tokenizer with further end-of-generation ids (`eos_token_id` of `generation_config.json`).
    pub fn with_eos_ids(mut self, ids: &[u32]) -> Self {
        self.ends.extend(ids);
        self.ends.sort_unstable();
        self.ends.dedup();
        self
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the `tokenizers` crate refuses; a GGUF vocabulary encodes any text. Bytes for which a
    /// byte-level vocabulary has no token are left out, as in llama.cpp.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        self.encode_parts(text, &[], options)
    }

    /// [`Tokenizer::encode`] of a text in which special tokens do not count where they touch one of `foreign`.
    fn encode_parts(&self, text: &str, foreign: &[Range<usize>], options: EncodeOptions) -> Result<Vec<u32>> {
        let (vocab, specials, add_bos) = match &*self.engine {
            Engine::Hf(hf) => return hf.encode(text, foreign, options.add_bos, options.parse_special),
            Engine::Bpe { vocab, specials, add_bos, .. } | Engine::Spm { vocab, specials, add_bos, .. } => {
                (vocab, specials, *add_bos)
            }
        };
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        out.extend(vocab.bos.filter(|_| options.add_bos && add_bos));
        let parts = specials.split(text, foreign, options.parse_special);
        match &*self.engine {
            Engine::Spm { spm, .. } => spm.encode(vocab, &parts, &mut out),
            Engine::Bpe { bpe, .. } => {
                for part in parts {
                    match part {
                        Part::Token(id) => out.push(id),
                        Part::Text(text) => bpe.encode(vocab, text, &mut out),
                    }
                }
            }
            Engine::Hf(_) => {}
        }
        Ok(out)
    }

    /// The ids of a rendered chat template: special tokens are read, and BOS is added only where the vocabulary wants it
    /// and the template did not write it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_prompt(&Prompt::trusted(text))
    }

    /// The ids of a prompt: special tokens are read where the template wrote them, and are ordinary text where they came in
    /// with the conversation. BOS is added only where the vocabulary wants it and the template did not write it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let options = EncodeOptions { add_bos: false, parse_special: true };
        let mut ids = self.encode_parts(&prompt.text, &prompt.foreign, options)?;
        if let Some(bos) = self.bos().filter(|bos| self.adds_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The ids of a part of a prompt that continues another: as [`Tokenizer::encode_prompt`], and nothing goes before it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_continuation(&self, part: &Prompt) -> Result<Vec<u32>> {
        self.encode_parts(&part.text, &part.foreign, EncodeOptions { add_bos: false, parse_special: true })
    }

    /// Ids that the vocabulary spans: the largest id and one. A model's embedding table may be padded to more rows.
    pub fn vocab_size(&self) -> usize {
        match &*self.engine {
            Engine::Bpe { vocab, .. } | Engine::Spm { vocab, .. } => vocab.len(),
            Engine::Hf(hf) => hf.vocab_size(),
        }
    }

    /// The ids that end a generation, ascending: the file's EOS, end of turn and end of message, and tokens whose texts
    /// are known to mean that (`<|im_end|>`, `<|eot_id|>`, `<end_of_turn>`, `<|endoftext|>`...).
    pub fn eos_ids(&self) -> &[u32] {
        &self.ends
    }

    /// The token before a text, where there is one.
    pub fn bos(&self) -> Option<u32> {
        match &*self.engine {
            Engine::Bpe { vocab, .. } | Engine::Spm { vocab, .. } => vocab.bos,
            Engine::Hf(hf) => hf.bos,
        }
    }

    /// The token that the file calls EOS.
    pub fn eos(&self) -> Option<u32> {
        match &*self.engine {
            Engine::Bpe { vocab, .. } | Engine::Spm { vocab, .. } => vocab.eos,
            Engine::Hf(hf) => hf.eos,
        }
    }

    /// Whether [`EncodeOptions::add_bos`] has a BOS to add.
    pub fn adds_bos(&self) -> bool {
        match &*self.engine {
            Engine::Bpe { add_bos, .. } | Engine::Spm { add_bos, .. } => *add_bos,
            Engine::Hf(hf) => hf.add_bos,
        }
    }

    /// Whether the file wants EOS behind a text that is complete (`add_eos_token`), as in training; a caller who feeds such
    /// texts puts [`Tokenizer::eos`] there.
    pub fn adds_eos(&self) -> bool {
        match &*self.engine {
            Engine::Bpe { add_eos, .. } | Engine::Spm { add_eos, .. } => *add_eos,
            Engine::Hf(hf) => hf.add_eos,
        }
    }

    /// The text of a token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`), for showing to people.
    pub fn token_text(&self, id: u32) -> Option<String> {
        match &*self.engine {
            Engine::Bpe { vocab, .. } | Engine::Spm { vocab, .. } => vocab.text(id).map(str::to_owned),
            Engine::Hf(hf) => hf.token_text(id),
        }
    }

    /// The token that the vocabulary spells `text`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        match &*self.engine {
            Engine::Bpe { vocab, .. } | Engine::Spm { vocab, .. } => vocab.by_text.get(text).copied(),
            Engine::Hf(hf) => hf.token_id(text),
        }
    }

    /// Whether the token steers the model and is no text.
    pub fn is_special(&self, id: u32) -> bool {
        match &*self.engine {
            Engine::Bpe { vocab, .. } | Engine::Spm { vocab, .. } => {
                matches!(vocab.kind(id), Some(vocab::Kind::Control | vocab::Kind::Unknown))
            }
            Engine::Hf(hf) => hf.is_special(id),
        }
    }

    /// The model's chat template, where it has one.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where it does not parse, as [`ChatTemplate::new`] said.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        match &self.chat_template {
            None => Ok(None),
            Some(Template::Good(template)) => Ok(Some(template)),
            Some(Template::Broken { reason, .. }) => Err(Error::Tokenizer(reason.clone())),
        }
    }

    /// The chat template's text as the model has it, whether it parses or not.
    pub fn chat_template_source(&self) -> Option<&str> {
        self.chat_template.as_ref().map(|t| match t {
            Template::Good(template) => template.source(),
            Template::Broken { source, .. } => source,
        })
    }

    /// The pre-tokenizers of byte-level BPE that are known by name (`tokenizer.ggml.pre`).
    pub fn pre_tokenizers() -> impl Iterator<Item = &'static str> {
        pretok::names()
    }
}
