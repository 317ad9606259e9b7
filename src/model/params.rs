//! Hyperparameters from either source: GGUF metadata (`<arch>.<key>`) or a Hugging Face `config.json`.
//!
//! Every read names both keys, so an error can say exactly what is missing from the file at hand. What an absent key means is
//! the family's to say: [`Config`] for `config.json`, [`GgufForm::absent`] for GGUF. No key has a default that serves all.

use super::{
    facts::{Absent, Config, MOST},
    gguf::GgufForm,
    tensors::numbers,
};
use crate::{
    error::{Error, Result},
    file::{Checkpoint, Format, Metadata},
};
use serde_json::Value as Json;
use std::{borrow::Cow, cell::RefCell, collections::BTreeSet};

/// Where hyperparameters come from.
pub struct Params<'a> {
    source: Source<'a>,
    ckpt: &'a Checkpoint,
    /// The architecture's name in the file: `general.architecture` or `model_type`.
    pub arch: String,
    config: &'static Config,
    form: &'static GgufForm,
    /// Names of tensors that were read as hyperparameters.
    read: RefCell<Vec<String>>,
}

enum Source<'a> {
    Gguf(&'a Metadata),
    Hf {
        /// The text model's config.
        text: &'a Json,
        /// The whole file.
        whole: &'a Json,
    },
}

impl<'a> Params<'a> {
    /// Reads the architecture's name.
    ///
    /// # Errors
    /// [`Error::Model`] where the file does not say what it is.
    pub(super) fn new(ckpt: &'a Checkpoint) -> Result<Self> {
        let (source, arch) = match ckpt.format() {
            Format::Gguf => {
                let key = "general.architecture";
                let arch = ckpt.meta().str(key).ok_or_else(|| missing(key))?;
                (Source::Gguf(ckpt.meta()), arch)
            }
            Format::SafeTensors => {
                let whole = ckpt.config().ok_or_else(|| Error::Model("config.json is missing".into()))?;
                // Multimodal configs nest the text model's under `text_config`, whose type the outer one may say alone.
                let text = whole.get("text_config").filter(|c| c.is_object()).unwrap_or(whole);
                let arch = text.get("model_type").or(whole.get("model_type")).and_then(Json::as_str);
                (Source::Hf { text, whole }, arch.ok_or_else(|| missing("model_type"))?)
            }
        };
        let (config, form, read) = (&Config::NONE, &GgufForm::NONE, RefCell::default());
        Ok(Params { source, ckpt, arch: arch.to_string(), config, form, read })
    }

    /// The same with the facts of the family that they belong to.
    pub(super) fn of(self, config: &'static Config, form: &'static GgufForm) -> Self {
        Params { config, form, ..self }
    }

    /// The family's form as GGUF.
    pub(super) fn form(&self) -> &'static GgufForm {
        self.form
    }

    /// Whether this is a GGUF file (names, rotation pairs and defaults are llama.cpp's) or Hugging Face's.
    pub fn is_gguf(&self) -> bool {
        matches!(self.source, Source::Gguf(_))
    }

    /// Whether the file has a tensor whose name is like this: for what only the tensors say.
    pub fn any_tensor(&self, like: impl Fn(&str) -> bool) -> bool {
        self.ckpt.infos().iter().any(|t| like(&t.name))
    }

    /// Whether the file has this tensor.
    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.ckpt.info(name).is_some()
    }

    /// The numbers of a tensor of a GGUF that is a hyperparameter; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Model`] where it cannot be read.
    pub(super) fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if !self.is_gguf() || !self.has_tensor(name) {
            return Ok(None);
        }
        self.read.borrow_mut().push(name.to_string());
        numbers(self.ckpt.require(name)?).map(Some)
    }

    /// The tensors that were read as hyperparameters.
    pub(super) fn tensors_read(&self) -> Vec<String> {
        self.read.borrow().clone()
    }

    fn gguf_key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn key(&self, gguf: &str, hf: &str) -> String {
        if self.is_gguf() { self.gguf_key(gguf) } else { hf.to_string() }
    }

    /// A value of a config: of a key that the family has, by any of its names, or else what its absence means; `None` where
    /// there is none. A dotted path is taken as it is.
    fn hf(&self, text: &'a Json, key: &str) -> Result<Option<Cow<'a, Json>>> {
        if key.contains('.') {
            return Ok(path(text, key).map(Cow::Borrowed));
        }
        let Some(absent) = self.config.absent(key) else { return Ok(None) };
        let mut found: Option<(&str, &'a Json)> = None;
        for name in self.config.names(key) {
            let Some(value) = text.get(name) else { continue };
            match found {
                Some((first, other)) if other != value => {
                    return Err(Error::Model(format!("{first} and {name} mean the same and are {other} and {value}")));
                }
                _ => found = Some((name, value)),
            }
        }
        match (found, absent) {
            (Some((_, Json::Null)), _) => Ok(None),
            (Some((_, value)), _) => Ok(Some(Cow::Borrowed(value))),
            (None, absent) => value(absent, key).map(|v| v.map(Cow::Owned)),
        }
    }

    fn read<T>(
        &self,
        gguf: &str,
        hf: &str,
        from_gguf: impl Fn(&Metadata, &str) -> Option<T>,
        from_hf: impl Fn(&Json) -> Option<T>,
    ) -> Result<Option<T>> {
        let wrong = || Error::Model(format!("{} has the wrong type or sign", self.key(gguf, hf)));
        let absent = match self.source {
            Source::Gguf(m) => {
                let key = self.gguf_key(gguf);
                if m.get(&key).is_some() {
                    return from_gguf(m, &key).ok_or_else(wrong).map(Some);
                }
                let absent = self.form.absent.iter().find(|(k, _)| *k == gguf).map_or(Absent::Nothing, |(_, a)| *a);
                value(absent, &key)?.map(Cow::Owned)
            }
            Source::Hf { text, .. } => self.hf(text, hf)?,
        };
        absent.map(|v| from_hf(&v).ok_or_else(wrong)).transpose()
    }

    /// An optional count of anything, or a size in columns.
    ///
    /// # Errors
    /// [`Error::Model`] where the value is there and is no count, or one that no model has.
    pub fn opt_usize(&self, gguf: &str, hf: &str) -> Result<Option<usize>> {
        match self.opt_length(gguf, hf)? {
            Some(n) if n > MOST => Err(Error::Model(format!("{} is {n}: no model has so many", self.key(gguf, hf)))),
            n => Ok(n),
        }
    }

    /// An optional number of positions, of any size: nothing is made for each of them at load.
    ///
    /// # Errors
    /// [`Error::Model`] where the value is there and is no count.
    pub fn opt_length(&self, gguf: &str, hf: &str) -> Result<Option<usize>> {
        let count = |v: u64| usize::try_from(v).ok();
        self.read(gguf, hf, |m, k| m.u64(k).or_else(|| same(m, k)).and_then(count), |v| v.as_u64().and_then(count))
    }

    /// A count that must be there and be at least 1.
    ///
    /// # Errors
    /// [`Error::Model`] that names the key.
    pub fn usize(&self, gguf: &str, hf: &str) -> Result<usize> {
        match self.opt_usize(gguf, hf)? {
            Some(0) => Err(Error::Model(format!("{} is 0", self.key(gguf, hf)))),
            Some(n) => Ok(n),
            None => Err(missing(&self.key(gguf, hf))),
        }
    }

    /// How many tensors the file has: no file has more layers.
    pub(super) fn tensors(&self) -> usize {
        self.ckpt.infos().len()
    }

    /// Rows of a tensor of the file.
    pub(super) fn rows_of(&self, name: &str) -> Option<usize> {
        self.ckpt.info(name)?.shape.first().copied()
    }

    /// The context that the model was trained for, in tokens: of any length, since nothing is made for it.
    ///
    /// # Errors
    /// [`Error::Model`] that names the key.
    pub(super) fn context(&self) -> Result<usize> {
        let (gguf, hf) = ("context_length", "max_position_embeddings");
        match self.opt_length(gguf, hf)? {
            Some(0) => Err(Error::Model(format!("{} is 0", self.key(gguf, hf)))),
            Some(n) => Ok(n),
            None => Err(missing(&self.key(gguf, hf))),
        }
    }

    /// An optional number.
    ///
    /// # Errors
    /// [`Error::Model`] where the value is there and is no finite number.
    pub fn opt_f32(&self, gguf: &str, hf: &str) -> Result<Option<f32>> {
        let number = |v: f64| Some(v as f32).filter(|v| v.is_finite());
        self.read(gguf, hf, |m, k| m.f32(k).filter(|v| v.is_finite()), |v| v.as_f64().and_then(number))
    }

    /// A number that must be there.
    ///
    /// # Errors
    /// [`Error::Model`] that names the key.
    pub fn f32(&self, gguf: &str, hf: &str) -> Result<f32> {
        self.opt_f32(gguf, hf)?.ok_or_else(|| missing(&self.key(gguf, hf)))
    }

    /// An optional flag.
    ///
    /// # Errors
    /// [`Error::Model`] where the value is there and is no flag.
    pub fn opt_bool(&self, gguf: &str, hf: &str) -> Result<Option<bool>> {
        self.read(gguf, hf, |m, k| m.bool(k), Json::as_bool)
    }

    /// A flag that must be there.
    ///
    /// # Errors
    /// [`Error::Model`] that names the key.
    pub fn bool(&self, gguf: &str, hf: &str) -> Result<bool> {
        self.opt_bool(gguf, hf)?.ok_or_else(|| missing(&self.key(gguf, hf)))
    }

    /// An optional text.
    ///
    /// # Errors
    /// [`Error::Model`] where the value is there and is no text.
    pub fn opt_str(&self, gguf: &str, hf: &str) -> Result<Option<String>> {
        self.read(gguf, hf, |m, k| m.str(k).map(str::to_string), |v| v.as_str().map(str::to_string))
    }

    /// Whether the embedding serves for a missing output matrix. A GGUF without an output matrix is tied; of a multimodal
    /// config the outer key decides.
    ///
    /// # Errors
    /// [`Error::Model`] where the value is there and is no flag.
    pub(super) fn tied(&self) -> Result<bool> {
        let key = "tie_word_embeddings";
        match &self.source {
            Source::Gguf(_) => Ok(true),
            Source::Hf { whole, text } => match whole.get(key).and_then(Json::as_bool) {
                Some(tied) if !std::ptr::eq(*whole, *text) => Ok(tied),
                _ => Ok(self.opt_bool("", key)?.unwrap_or(false)),
            },
        }
    }

    /// A value of `config.json` that is there, of a key that the family has; `None` for GGUF and for null.
    pub fn config(&self, key: &str) -> Option<&'a Json> {
        match self.source {
            Source::Gguf(_) => None,
            Source::Hf { text, .. } => match key.split_once('.') {
                None => {
                    self.config.names(key).filter(|_| self.config.absent(key).is_some()).find_map(|k| path(text, k))
                }
                Some(_) => path(text, key),
            },
        }
    }

    /// A list of counts (or flags, as 0 and 1) in GGUF's metadata, one a layer; `None` where there is none, or a single count.
    pub fn list(&self, gguf: &str) -> Option<Vec<usize>> {
        let Source::Gguf(m) = self.source else { return None };
        let a = m.get(&self.gguf_key(gguf))?.as_array()?;
        (0..a.len())
            .map(|i| {
                let v = a.get(i)?;
                let count = || v.as_i64().and_then(|n| n.try_into().ok());
                v.as_u64().or_else(count).or_else(|| v.as_bool().map(u64::from)).map(|n| n as usize)
            })
            .collect()
    }

    /// Numbers of layers in `config.json`; `None` where there is no list.
    pub fn config_set(&self, path: &str) -> Option<BTreeSet<usize>> {
        let list = self.config(path).and_then(Json::as_array)?;
        Some(list.iter().filter_map(|v| v.as_u64().map(|v| v as usize)).collect())
    }
}

/// A value by a dotted path; null counts as absent.
fn path<'a>(config: &'a Json, path: &str) -> Option<&'a Json> {
    path.split('.').try_fold(config, |at, part| at.get(part)).filter(|v| !v.is_null())
}

/// What an absent key means, as a value.
fn value(absent: Absent, key: &str) -> Result<Option<Json>> {
    Ok(match absent {
        Absent::Refused => return Err(missing(key)),
        Absent::Nothing => None,
        Absent::Count(n) => Some(n.into()),
        Absent::Number(x) => Some(x.into()),
        Absent::Flag(yes) => Some(yes.into()),
        Absent::Text(text) => Some(text.into()),
    })
}

/// The count that a list has in all places: llama.cpp's loader takes either form for most keys.
fn same(m: &Metadata, key: &str) -> Option<u64> {
    let list = m.u64s(key)?;
    let first = *list.first()?;
    list.iter().all(|n| *n == first).then_some(first)
}

fn missing(key: &str) -> Error {
    Error::Model(format!("the hyperparameter {key} is missing"))
}
