//! A [`Checkpoint`]: named tensors and everything that lies beside them, whatever container they came from.

use super::{
    bytes::Bytes,
    metadata::{Metadata, sorted_index},
    tensor::Tensor,
};
use crate::error::{Error, Result};
use serde_json::Value as Json;
use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

/// The container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One GGUF file, or its shards.
    Gguf,
    /// A Hugging Face folder.
    SafeTensors,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Gguf => "GGUF",
            Format::SafeTensors => "safetensors",
        })
    }
}

/// One tensor of the file's table, usable or not.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// The file's name for its type, also of types that cannot be used.
    pub type_name: Cow<'static, str>,
    /// Row-major shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The size of its data, in bytes; 0 where the type is unknown.
    pub bytes: u64,
    /// Which of [`Checkpoint::files`] holds it.
    pub file: u32,
    /// The offset of its data in that file, in bytes.
    pub offset: u64,
    /// The tensor, or why it cannot be used ("has type I64, which ...").
    pub content: std::result::Result<Tensor, String>,
    /// The bytes of a tensor of plain bytes (safetensors' `U8`) or of FP8 numbers (`F8_E4M3`), which hold parts of weights in
    /// some files: their scales lie in another tensor.
    pub raw: Option<Bytes>,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Where it is; the format's name for a checkpoint in memory.
    pub path: PathBuf,
    /// Its size, in bytes.
    pub bytes: u64,
}

/// The JSON files and texts that lie beside safetensors.
#[derive(Clone, Debug, Default)]
pub(super) struct Beside {
    pub config: Option<Json>,
    pub generation_config: Option<Json>,
    pub tokenizer_config: Option<Json>,
    pub tokenizer_json: Option<Bytes>,
    pub chat_template: Option<String>,
    pub pooling: Option<Json>,
}

/// An opened model file or folder. Tensor data stays in the memory map; nothing of it has been read yet.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    format: Format,
    path: Option<PathBuf>,
    files: Vec<FileInfo>,
    meta: Metadata,
    tensors: Vec<TensorInfo>,
    /// Indices of `tensors`, sorted by name.
    by_name: Vec<u32>,
    beside: Beside,
}

impl Checkpoint {
    /// Puts the parts together; two tensors of one name are an error.
    pub(super) fn assemble(
        format: Format,
        path: Option<PathBuf>,
        files: Vec<FileInfo>,
        meta: Metadata,
        tensors: Vec<TensorInfo>,
        beside: Beside,
    ) -> Result<Self> {
        let by_name = sorted_index(tensors.len(), |i| tensors[i].name.as_str()).map_err(|i| {
            let t = &tensors[i];
            let file = files.get(t.file as usize).map_or(String::new(), |f| f.path.display().to_string());
            Error::format(file, format!("tensor `{}` comes twice", t.name.escape_debug()))
        })?;
        Ok(Checkpoint { format, path, files, meta, tensors, by_name, beside })
    }

    /// A checkpoint made in memory: GGUF metadata and tensors under GGUF names, in this order.
    ///
    /// # Errors
    /// [`Error::Format`] where a name comes twice.
    pub fn from_parts(meta: Metadata, tensors: Vec<(String, Tensor)>) -> Result<Self> {
        let (file, infos) = in_memory(tensors);
        Self::assemble(Format::Gguf, None, vec![file], meta, infos, Beside::default())
    }

    /// A Hugging Face folder made in memory: its `config.json`, `tokenizer.json` and `tokenizer_config.json`, and tensors under the
    /// folder's names, in this order.
    ///
    /// # Errors
    /// [`Error::Format`] where a name comes twice.
    pub fn from_folder(config: Json, tokenizer: [Json; 2], tensors: Vec<(String, Tensor)>) -> Result<Self> {
        let (file, infos) = in_memory(tensors);
        let [json, tokenizer_config] = tokenizer;
        let beside = Beside {
            config: Some(config),
            tokenizer_json: Some(Bytes::from_vec(json.to_string().into_bytes())),
            tokenizer_config: Some(tokenizer_config),
            ..Beside::default()
        };
        Self::assemble(Format::SafeTensors, None, vec![file], Metadata::new(), infos, beside)
    }

    /// The same Hugging Face folder with another `config.json` and other tensors, in memory.
    ///
    /// # Errors
    /// [`Error::Format`] where a name comes twice.
    pub fn changed(&self, config: Json, tensors: Vec<(String, Tensor)>) -> Result<Self> {
        let (file, infos) = in_memory(tensors);
        let beside = Beside { config: Some(config), ..self.beside.clone() };
        Self::assemble(self.format, self.path.clone(), vec![file], self.meta.clone(), infos, beside)
    }

    /// The usable tensors with their names, in file order. The checkpoint is consumed, so that a caller can drop each tensor when
    /// it is done with it.
    pub fn into_tensors(self) -> Vec<(String, Tensor)> {
        self.tensors.into_iter().filter_map(|t| Some((t.name, t.content.ok()?))).collect()
    }

    /// The container.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The file or folder that was opened; `None` for bytes in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The files that hold the tensors, in shard order.
    pub fn files(&self) -> &[FileInfo] {
        &self.files
    }

    /// The size of all files that hold tensors, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// The tensor called `name`; `None` where there is none or it cannot be used. See [`Checkpoint::require`].
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.info(name)?.content.as_ref().ok()
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`Error::Model`] where it is missing, [`Error::Unsupported`] where it is there and cannot be used; both name it.
    pub fn require(&self, name: &str) -> Result<&Tensor> {
        match self.info(name) {
            Some(TensorInfo { content: Ok(t), .. }) => Ok(t),
            Some(TensorInfo { content: Err(why), .. }) => Err(Error::Unsupported(format!("tensor `{name}` {why}"))),
            None => Err(Error::Model(format!("tensor `{name}` is missing from the file"))),
        }
    }

    /// The table entry of `name`, usable or not.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.by_name.binary_search_by(|i| self.tensors[*i as usize].name.as_str().cmp(name)).ok()?;
        self.tensors.get(self.by_name[at] as usize)
    }

    /// The usable tensors, by name, in file order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().filter_map(|t| Some((t.name.as_str(), t.content.as_ref().ok()?)))
    }

    /// All table entries in file order, those that cannot be used included.
    pub fn infos(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// GGUF metadata; empty for safetensors.
    pub fn meta(&self) -> &Metadata {
        &self.meta
    }

    /// `config.json` of a safetensors folder.
    pub fn config(&self) -> Option<&Json> {
        self.beside.config.as_ref()
    }

    /// `generation_config.json` of a safetensors folder.
    pub fn generation_config(&self) -> Option<&Json> {
        self.beside.generation_config.as_ref()
    }

    /// `tokenizer_config.json` of a safetensors folder.
    pub fn tokenizer_config(&self) -> Option<&Json> {
        self.beside.tokenizer_config.as_ref()
    }

    /// `tokenizer.json` of a safetensors folder, unparsed.
    pub fn tokenizer_json(&self) -> Option<&[u8]> {
        self.beside.tokenizer_json.as_deref()
    }

    /// `1_Pooling/config.json` of a folder in sentence-transformers' form.
    pub fn pooling(&self) -> Option<&Json> {
        self.beside.pooling.as_ref()
    }

    /// The chat template: `tokenizer.chat_template` of a GGUF; `chat_template.jinja` of a folder, or else
    /// `chat_template` of its `tokenizer_config.json` (a text, or a list from which `default` is taken).
    pub fn chat_template(&self) -> Option<&str> {
        if let Some(t) = self.meta.str("tokenizer.chat_template").or(self.beside.chat_template.as_deref()) {
            return Some(t);
        }
        match self.tokenizer_config()?.get("chat_template")? {
            Json::String(t) => Some(t),
            Json::Array(named) => {
                let default = named.iter().find(|t| t.get("name").and_then(Json::as_str) == Some("default"));
                default?.get("template")?.as_str()
            }
            _ => None,
        }
    }
}

/// The table of tensors in memory, and the file that they stand for.
fn in_memory(tensors: Vec<(String, Tensor)>) -> (FileInfo, Vec<TensorInfo>) {
    let mut offset = 0;
    let infos = tensors.into_iter().map(|(name, t)| {
        let bytes = t.byte_len() as u64;
        let info = TensorInfo {
            name,
            type_name: Cow::Borrowed(t.dtype().layout().name),
            shape: t.shape().to_vec(),
            bytes,
            file: 0,
            offset,
            content: Ok(t),
            raw: None,
        };
        offset += bytes;
        info
    });
    let infos: Vec<_> = infos.collect();
    let bytes = infos.iter().map(|t| t.bytes).sum();
    (FileInfo { path: PathBuf::from("memory"), bytes }, infos)
}
