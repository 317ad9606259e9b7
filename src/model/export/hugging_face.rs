//! A GGUF checkpoint as a Hugging Face folder: `model.safetensors` under the names of the published checkpoints, with a
//! `config.json` and the tokenizer's files.
//!
//! It is the way back of [`super::to_gguf`], and held to it: what was written is opened, brought into GGUF's order again, and
//! must be the same model with the same numbers, or nothing is left behind and there is an error. So a family that its files
//! have in a form that is not written here (merged, transposed, shifted by one) is refused and never written wrongly.
//!
//! Floats stay as they are, quantised weights become F32.

use super::{config_json, tensors};
use crate::{
    error::{Error, Result},
    file::{self, Checkpoint, Tensor},
    model::{
        architecture::Architecture,
        build::{Definition, find, quietly},
        decoder::Decoder,
        options::Options,
        params::Params,
        tensors::{by_halves, numbers, row, same_sizes},
    },
    quant::DType,
    tokenizer::GgufVocab,
};
use safetensors::{Dtype, View};
use serde_json::{Value as Json, json};
use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
};

/// Files of a tokenizer and of how a model is used, which are taken as they are.
const BESIDE: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
];

/// Writes the folder. `source` is the Hugging Face folder that the model came from: its `config.json` and tokenizer are taken, with
/// what has changed since. Without one `config.json` is made, and the tokenizer is that of `tokenizer`, a folder, or the GGUF's, where a `tokenizer.json`
/// can say it.
///
/// The folder is written beside its place and renamed; one that is there already gives way.
///
/// # Errors
/// [`Error::Unsupported`] for a family or form that is not written here: see the module's description. [`Error::Write`].
pub fn write_hugging_face(
    folder: &Path,
    gguf: &Checkpoint,
    source: Option<&Checkpoint>,
    tokenizer: Option<&Path>,
) -> Result<()> {
    let Prepared { d, family, config, pieces } = prepared(gguf, source)?;
    let copied = source.and_then(Checkpoint::path).or(tokenizer).filter(|p| p.is_dir());
    written_whole(folder, |beside| {
        fill(beside, &config, pieces, copied)?;
        if copied.is_none() {
            vocabulary(beside, gguf)?;
        }
        check(beside, gguf, &d, family)
    })
}

/// Makes a folder beside its place and renames it; one that is there already gives way. What cannot be made leaves nothing behind.
pub(super) fn written_whole(folder: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let mut name = folder.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let beside = folder.with_file_name(name);
    let done = make(&beside).and_then(|()| put(&beside, folder));
    done.inspect_err(|_| drop(fs::remove_dir_all(&beside)))
}

/// Refuses what [`write_hugging_face`] refuses by what the model is, before anything is written.
///
/// # Errors
/// [`Error::Unsupported`].
pub fn check_hugging_face(gguf: &Checkpoint, source: Option<&Checkpoint>) -> Result<()> {
    prepared(gguf, source).map(|_| ())
}

/// What is written.
struct Prepared {
    d: Definition,
    family: &'static Architecture,
    config: Json,
    pieces: Vec<(String, Piece)>,
}

fn prepared(gguf: &Checkpoint, source: Option<&Checkpoint>) -> Result<Prepared> {
    let d = quietly(gguf, &Options::default())?;
    if d.decoder.moe().is_some_and(|m| m.router.over_groups().is_some()) {
        return Err(Error::Unsupported("a router over groups, which no published checkpoint has".into()));
    }
    let family = match source {
        Some(s) => find(&Params::new(s)?)?,
        None => config_json::family(&d)?,
    };
    let config = match source.and_then(Checkpoint::config) {
        Some(c) => changed(c, &d.decoder)?,
        None => config_json::config(&d, family, gguf)?,
    };
    let pieces = pieces(gguf, &d, family, source)?;
    Ok(Prepared { d, family, config, pieces })
}

/// Renames a finished folder to its place.
fn put(beside: &Path, folder: &Path) -> Result<()> {
    let io = |source| Error::Write { path: folder.to_owned(), source };
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(io)?;
    }
    fs::rename(beside, folder).map_err(io)
}

/// Makes a folder of these parts, with the files beside a model that `copied` has.
pub(super) fn fill(folder: &Path, config: &Json, pieces: Vec<(String, Piece)>, copied: Option<&Path>) -> Result<()> {
    let io = |path: PathBuf| move |source| Error::Write { path, source };
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(io(folder.to_owned()))?;
    }
    fs::create_dir_all(folder).map_err(io(folder.to_owned()))?;
    let config_path = folder.join("config.json");
    let text = serde_json::to_vec_pretty(config).map_err(|e| io(config_path.clone())(e.into()))?;
    fs::write(&config_path, text).map_err(io(config_path.clone()))?;
    let path = folder.join("model.safetensors");
    let format = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize_to_file(pieces, format, &path).map_err(|e| io(path.clone())(std::io::Error::other(e)))?;
    // The crate makes a file that nobody else may read.
    let usual = fs::metadata(&config_path).map(|m| m.permissions());
    usual.and_then(|p| fs::set_permissions(&path, p)).map_err(io(path))?;
    let Some(from) = copied else { return Ok(()) };
    for name in BESIDE.iter().filter(|n| from.join(n).is_file()) {
        fs::copy(from.join(name), folder.join(name)).map_err(io(folder.join(name)))?;
    }
    Ok(())
}

/// Writes the tokenizer of a GGUF, where a `tokenizer.json` can say it.
fn vocabulary(folder: &Path, gguf: &Checkpoint) -> Result<()> {
    if gguf.meta().get("tokenizer.ggml.tokens").is_none() {
        return Ok(());
    }
    let (tokenizer, config) = match GgufVocab::from_metadata(gguf.meta())?.to_json() {
        Ok(made) => made,
        Err(e @ Error::Unsupported(_)) => {
            tracing::warn!("the folder gets no tokenizer.json: {e}");
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    for (name, json) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)] {
        let path = folder.join(name);
        fs::write(&path, json.to_string()).map_err(|source| Error::Write { path, source })?;
    }
    Ok(())
}

/// Writes the tokenizer of a folder that is in memory.
pub(super) fn vocabulary_files(folder: &Path, ckpt: &Checkpoint) -> Result<()> {
    let config = ckpt.tokenizer_config().map(|c| c.to_string().into_bytes());
    let json = ckpt.tokenizer_json().map(<[u8]>::to_vec);
    for (name, bytes) in [("tokenizer.json", json), ("tokenizer_config.json", config)] {
        let (Some(bytes), path) = (bytes, folder.join(name)) else { continue };
        fs::write(&path, bytes).map_err(|source| Error::Write { path, source })?;
    }
    Ok(())
}

/// The source's configuration with what training changes: the type of the weights, and how many experts a token uses.
fn changed(config: &Json, d: &Decoder) -> Result<Json> {
    let Some(object) = config.as_object().filter(|c| !c.contains_key("text_config")) else {
        return Err(Error::Unsupported("a model that also sees as safetensors".into()));
    };
    let mut out = object.clone();
    out.shift_remove("quantization_config");
    for key in ["dtype", "torch_dtype"] {
        if out.contains_key(key) {
            out.insert(key.into(), "float32".into());
        }
    }
    if let Some(moe) = d.moe() {
        for key in ["num_experts_per_tok", "moe_topk", "moe_k"] {
            if let Some(k) = out.get_mut(key).filter(|k| k.is_u64()) {
                *k = json!(moe.router.used);
            }
        }
    }
    Ok(Json::Object(out))
}

/// One tensor of the file. Its bytes are made when they are written.
pub(super) struct Piece {
    tensor: Tensor,
    shape: Vec<usize>,
}

impl Piece {
    /// A tensor of the shape that it has.
    pub fn new(tensor: Tensor) -> Piece {
        let shape = tensor.shape().to_vec();
        Piece { tensor, shape }
    }

    fn own_dtype(&self) -> Option<Dtype> {
        match self.tensor.dtype() {
            DType::F32 => Some(Dtype::F32),
            DType::F16 => Some(Dtype::F16),
            DType::BF16 => Some(Dtype::BF16),
            _ => None,
        }
    }
}

impl View for Piece {
    fn dtype(&self) -> Dtype {
        self.own_dtype().unwrap_or(Dtype::F32)
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.own_dtype().is_some() {
            return Cow::Owned(self.tensor.parts().iter().flat_map(|p| p.iter().copied()).collect());
        }
        // Every format of weights has a decoder; a tensor without numbers is found when the file is read back.
        Cow::Owned(numbers(&self.tensor).unwrap_or_default().iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        let size = if self.own_dtype().is_some_and(|d| d != Dtype::F32) { 2 } else { 4 };
        size * self.shape.iter().product::<usize>()
    }
}

/// The tensors under their published names, in the order of their names. Sizes of 1 stand where the source has them.
fn pieces(
    gguf: &Checkpoint,
    d: &Definition,
    family: &Architecture,
    source: Option<&Checkpoint>,
) -> Result<Vec<(String, Piece)>> {
    let mut out = vec![];
    let mut add = |name: String, tensor: Tensor| {
        let theirs = source.and_then(|s| s.info(&name)).map(|t| t.shape.clone());
        let shape = theirs.filter(|s| same_sizes(s, tensor.shape())).unwrap_or_else(|| tensor.shape().to_vec());
        out.push((name, Piece { tensor, shape }));
    };
    for (name, t) in gguf.tensors() {
        if name.starts_with("rope_f") {
            // Frequencies are numbers of `config.json`.
            continue;
        }
        let published = family.names.candidates(name).into_iter().next().unwrap_or_default();
        let layer = name.strip_prefix("blk.").and_then(|r| r.split('.').next()?.parse::<usize>().ok());
        let rope = layer.and_then(|l| d.decoder.layers.get(l)?.rope());
        let qk = name.contains(".attn_q.") || name.contains(".attn_k.");
        match rope.filter(|_| qk && family.gguf.rows.interleaved_qk) {
            Some(rope) => add(published, by_halves(t, rope.head_dim)?),
            None if published.contains("{}") => {
                let experts = t.shape().first().copied().unwrap_or(0);
                for e in 0..experts {
                    add(published.replace("{}", &e.to_string()), slice(t, e, experts)?);
                }
            }
            // llama.cpp keeps the gate of a shared expert as a vector.
            None if name.ends_with(".ffn_gate_inp_shexp.weight") && t.shape().len() == 1 => {
                add(published, t.reshaped(vec![1, t.cols()])?);
            }
            None => add(published, t.clone()),
        }
    }
    out.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(out)
}

/// The part of one expert, which is not copied.
pub(super) fn slice(t: &Tensor, e: usize, experts: usize) -> Result<Tensor> {
    let shape = t.shape().get(1..).unwrap_or_default().to_vec();
    let wrong = || Error::Model(format!("experts in a tensor of shape {:?}", t.shape()));
    if shape.len() < 2 {
        // A bias an expert: a row.
        return Tensor::new(t.dtype(), shape, vec![row(t, e).ok_or_else(wrong)?]);
    }
    let rows = t.rows() / experts.max(1);
    let parts = (e * rows..(e + 1) * rows).map(|r| row(t, r)).collect::<Option<Vec<_>>>();
    Tensor::new(t.dtype(), shape, parts.ok_or_else(wrong)?)
}

/// Opens what was written, brings it into GGUF's order, and compares.
fn check(folder: &Path, gguf: &Checkpoint, d: &Definition, family: &Architecture) -> Result<()> {
    let refused = |what: String| Error::Unsupported(format!("{} as safetensors: {what}", family.title));
    let unread = |e: Error| refused(format!("what would be written is not read as the same model ({e})"));
    let back = quietly(&file::open(folder)?, &Options::default()).map_err(unread)?;
    let [a, b] =
        [&d.decoder, &back.decoder].map(|d| Decoder { vocab: 0, ffn: 0, tied: true, layers: vec![], ..d.clone() });
    if a != b {
        return Err(refused("what would be written has other sizes or factors".into()));
    }
    if let Some(i) = (0..d.decoder.layers.len()).find(|i| !alike(d, &back, *i)) {
        return Err(refused(format!("layer {i} would be read as another one")));
    }
    let written = tensors::tensors(family.gguf, &back)?;
    for (name, t) in gguf.tensors() {
        let same = match written.iter().find(|(n, _)| n == name) {
            Some((_, w)) => same_sizes(w.shape(), t.shape()) && numbers(w)? == numbers(t)?,
            None => name.starts_with("rope_f"),
        };
        if !same {
            return Err(refused(format!("`{name}` would not be read back as it is")));
        }
    }
    Ok(())
}

/// Refuses a folder that is not read as the model that was written.
pub(super) fn compared(back: &Definition, written: &Definition) -> Result<()> {
    let refused = |what: &str| Err(Error::Unsupported(format!("{} as a folder: {what}", written.title)));
    let (a, b) = (&written.program, &back.program);
    if written.decoder != back.decoder || a.graph.weights != b.graph.weights {
        return refused("what would be written is read as another model");
    }
    for ((decl, a), b) in a.graph.weights.iter().zip(a.weights.iter()).zip(b.weights.iter()) {
        if numbers(a)? != numbers(b)? {
            return refused(&format!("`{}` would not be read back as it is", decl.name));
        }
    }
    Ok(())
}

/// Whether layer `i` of both is the same but for the order of rows in queries and keys, which GGUF changes together with the rotation,
/// and ways to say that there are no biases.
fn alike(a: &Definition, b: &Definition, i: usize) -> bool {
    let plain = |d: &Definition| {
        let mut layer = d.decoder.layers.get(i).cloned()?;
        config_json::without_order(&mut layer);
        Some(layer)
    };
    plain(a) == plain(b)
}
