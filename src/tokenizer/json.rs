//! The vocabulary of a GGUF file as a `tokenizer.json` with its `tokenizer_config.json`: the way back of `export`, of byte-level BPE.
//!
//! What comes out is held to the original as there: both must give the same ids for a mixed corpus.

use super::{
    GgufVocab,
    export::hold,
    gguf,
    pretok::patterns,
    vocab::{Kind, kinds},
};
use crate::{
    error::{Error, Result},
    file::Metadata,
};
use serde_json::{Map, Value as Json, json};

impl GgufVocab {
    /// `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a vocabulary that is no byte-level BPE with a pre-tokenizer whose patterns are known here, or whose
    /// ids would be others; [`Error::Tokenizer`] for one that contradicts itself.
    pub fn to_json(&self) -> Result<(Json, Json)> {
        let no = |what: String| Error::Unsupported(format!("{what} as tokenizer.json"));
        let pre = self.pre.as_deref().unwrap_or_default();
        let known = patterns::by_name(pre).filter(|_| self.model == "gpt2");
        let known = known.ok_or_else(|| no(format!("a vocabulary `{}` with the pre-tokenizer {pre:?}", self.model)))?;
        let kinds = kinds(self.tokens.len(), self.token_types.clone())?;
        let (mut vocab, mut added) = (Map::new(), vec![]);
        for (id, (text, kind)) in self.tokens.iter().zip(kinds).enumerate() {
            match kind {
                Kind::Unused => continue,
                Kind::Control | Kind::Unknown => added.push(token(id, text, true)),
                Kind::UserDefined => added.push(token(id, text, false)),
                Kind::Normal | Kind::Byte => {}
            }
            // The vocabulary has the added ones too: where it lacks them they get numbers behind it.
            vocab.insert(text.clone(), json!(id));
        }
        let merges: Vec<[&str; 2]> =
            self.merges.iter().flatten().filter_map(|m| m.split_once(' ')).map(Into::into).collect();
        let text = |id: Option<u32>| id.and_then(|id| self.tokens.get(id as usize)).cloned();
        let bos = text(self.bos).filter(|_| self.add_bos == Some(true));
        let root = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": known.json(), "post_processor": bos.map(|t| before(&t, self.bos)),
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": known.ignore_merges(), "vocab": vocab, "merges": merges,
            },
        });
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.insert("add_bos_token".into(), json!(self.add_bos == Some(true)));
        config.insert("add_eos_token".into(), json!(self.add_eos == Some(true)));
        for (key, id) in [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad)] {
            config.extend(text(id).map(|t| (key.to_owned(), json!(t))));
        }
        config.extend(self.chat_template.as_ref().map(|t| ("chat_template".to_owned(), json!(t))));
        let config = Json::Object(config);
        hold(self, &root, Some(&config)).map_err(|e| no(format!("a vocabulary whose ids would be others ({e})")))?;
        Ok((root, config))
    }

    /// What the `tokenizer.*` keys of a GGUF say.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a key with a value of the wrong type.
    pub fn from_metadata(meta: &Metadata) -> Result<Self> {
        gguf::read(meta)
    }
}

/// A token that is found in a text before anything else.
fn token(id: usize, text: &str, special: bool) -> Json {
    json!({
        "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special,
    })
}

/// A post-processor that puts a token before a text.
fn before(text: &str, id: Option<u32>) -> Json {
    let special = json!({ "SpecialToken": { "id": text, "type_id": 0 } });
    let sequence = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let mut tokens = Map::new();
    tokens.insert(text.into(), json!({ "id": text, "ids": [id], "tokens": [text] }));
    json!({
        "type": "TemplateProcessing", "single": [special, sequence("A")],
        "pair": [special, sequence("A"), sequence("B")], "special_tokens": tokens,
    })
}
