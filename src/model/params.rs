//! Hyperparameters from either source: GGUF metadata (`<arch>.<key>`) or a Hugging Face `config.json`.
//!
//! Every read names both keys, so an error can say exactly what is missing from the file at hand.

use crate::{
    error::{Error, Result},
    file::{Checkpoint, Format, Metadata},
};
use serde_json::Value as Json;

/// Where hyperparameters come from.
pub struct Params<'a> {
    source: Source<'a>,
    ckpt: &'a Checkpoint,
    /// The architecture's name in the file: `general.architecture` or `model_type`.
    pub arch: String,
}

enum Source<'a> {
    Gguf(&'a Metadata),
    Hf(&'a Json),
}

impl<'a> Params<'a> {
    /// Reads the architecture's name.
    ///
    /// # Errors
    /// [`Error::Model`] where the file does not say what it is.
    pub fn new(ckpt: &'a Checkpoint) -> Result<Self> {
        match ckpt.format() {
            Format::Gguf => {
                let key = "general.architecture";
                let arch = ckpt.meta().str(key).ok_or_else(|| missing(key))?.to_string();
                Ok(Params { source: Source::Gguf(ckpt.meta()), ckpt, arch })
            }
            Format::SafeTensors => {
                let config = ckpt.config().ok_or_else(|| Error::Model("config.json is missing".into()))?;
                // Models that also see have the text model's sizes one level down.
                let text = config.get("text_config").filter(|c| c.get("model_type").is_some()).unwrap_or(config);
                let arch = text.get("model_type").and_then(Json::as_str).ok_or_else(|| missing("model_type"))?;
                Ok(Params { source: Source::Hf(text), ckpt, arch: arch.to_string() })
            }
        }
    }

    /// Whether this is a GGUF file (names, rotation pairs and defaults are llama.cpp's) or Hugging Face's.
    pub fn is_gguf(&self) -> bool {
        matches!(self.source, Source::Gguf(_))
    }

    /// Whether the file has a tensor whose name is like this: for what only the tensors say.
    pub fn any_tensor(&self, like: impl Fn(&str) -> bool) -> bool {
        self.ckpt.infos().iter().any(|t| like(&t.name))
    }

    fn gguf_key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn key(&self, gguf: &str, hf: &str) -> String {
        if self.is_gguf() { self.gguf_key(gguf) } else { hf.to_string() }
    }

    /// A value of the config, also from `rope_parameters` (transformers 5) by a dotted path; null counts as absent.
    fn hf(config: &'a Json, path: &str) -> Option<&'a Json> {
        path.split('.').try_fold(config, |at, part| at.get(part)).filter(|v| !v.is_null())
    }

    fn read<T>(
        &self,
        gguf: &str,
        hf: &str,
        from_gguf: impl Fn(&Metadata, &str) -> Option<T>,
        from_hf: impl Fn(&Json) -> Option<T>,
    ) -> Result<Option<T>> {
        let wrong = || Error::Model(format!("{} has the wrong type or sign", self.key(gguf, hf)));
        match self.source {
            Source::Gguf(m) => {
                let key = self.gguf_key(gguf);
                m.get(&key).map(|_| from_gguf(m, &key).ok_or_else(wrong)).transpose()
            }
            Source::Hf(c) => Self::hf(c, hf).map(|v| from_hf(v).ok_or_else(wrong)).transpose(),
        }
    }

    /// An optional count.
    ///
    /// # Errors
    /// [`Error::Model`] where the value is there and is no count.
    pub fn opt_usize(&self, gguf: &str, hf: &str) -> Result<Option<usize>> {
        let count = |v: u64| usize::try_from(v).ok();
        self.read(gguf, hf, |m, k| m.u64(k).and_then(count), |v| v.as_u64().and_then(count))
    }

    /// A count that must be there and be at least 1.
    ///
    /// # Errors
    /// [`Error::Model`] that names the key.
    pub fn usize(&self, gguf: &str, hf: &str) -> Result<usize> {
        match self.opt_usize(gguf, hf)? {
            Some(0) => Err(Error::Model(format!("{} is 0", self.key(gguf, hf)))),
            Some(n) if n > MOST => Err(Error::Model(format!("{} is {n}", self.key(gguf, hf)))),
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

    /// An optional text.
    ///
    /// # Errors
    /// [`Error::Model`] where the value is there and is no text.
    pub fn opt_str(&self, gguf: &str, hf: &str) -> Result<Option<String>> {
        self.read(gguf, hf, |m, k| m.str(k).map(str::to_string), |v| v.as_str().map(str::to_string))
    }

    /// A raw value of `config.json`; `None` for GGUF.
    pub fn config(&self, path: &str) -> Option<&'a Json> {
        match self.source {
            Source::Gguf(_) => None,
            Source::Hf(c) => Self::hf(c, path),
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

    /// A list of counts in `config.json`.
    pub fn config_list(&self, path: &str) -> Vec<usize> {
        let list = self.config(path).and_then(Json::as_array);
        list.into_iter().flatten().filter_map(|v| v.as_u64().map(|v| v as usize)).collect()
    }
}

/// No dimension of any model comes near this; sums and products of a few such numbers cannot overflow.
const MOST: usize = 1 << 24;

fn missing(key: &str) -> Error {
    Error::Model(format!("the hyperparameter {key} is missing"))
}
