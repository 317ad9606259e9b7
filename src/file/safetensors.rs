//! A Hugging Face folder: `config.json`, tensors in one or several `.safetensors` files, a tokenizer.
//!
//! Format: <https://huggingface.co/docs/safetensors>. The `safetensors` crate reads and validates the headers (offsets
//! contiguous, in range, equal to shape times type); the data is sliced out of the memory map.

use super::{
    bytes::Bytes,
    checkpoint::{Beside, Checkpoint, FileInfo, Format, TensorInfo},
    map,
    metadata::Metadata,
    tensor::Tensor,
};
use crate::{
    error::{Error, Result},
    quant::DType,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

/// The index of a sharded checkpoint.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The model's hyperparameters: what makes a folder a model.
pub(super) const CONFIG: &str = "config.json";
/// A config or index beyond this is no config: refused before it is read.
const MAX_JSON: u64 = 64 << 20;

/// Opens a folder.
pub(super) fn open_folder(folder: &Path) -> Result<Checkpoint> {
    if !folder.join(CONFIG).is_file() {
        return Err(no_config(folder));
    }
    let (shards, index) = shards(folder)?;
    open_shards(folder, folder, &shards, index.as_ref())
}

/// Opens one file that has a `config.json` beside it.
pub(super) fn open_file(file: &Path) -> Result<Checkpoint> {
    let folder = match file.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if !folder.join(CONFIG).is_file() {
        return Err(Error::format(
            file.display().to_string(),
            "is a safetensors file without a config.json beside it; the hyperparameters stand there",
        ));
    }
    open_shards(file, folder, &[file.to_owned()], None)
}

/// `weight_map` of the index: tensor name to file name.
type Index = BTreeMap<String, String>;

/// Which files hold the tensors, and which tensor the index expects in which.
fn shards(folder: &Path) -> Result<(Vec<PathBuf>, Option<Index>)> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok((vec![single], None));
    }
    let index = folder.join(INDEX);
    if index.is_file() {
        let map = read_index(&index)?;
        let names: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            check_shard_name(&index, name)?;
            let file = folder.join(name);
            if !file.is_file() {
                return Err(Error::format(
                    index.display().to_string(),
                    format!("names the shard {name}, which is not in the folder (an unfinished download?)"),
                ));
            }
            files.push(file);
        }
        return Ok((files, Some(map)));
    }
    let mut found = files_with(folder, "safetensors")?;
    match found.len() {
        1 => Ok((found, None)),
        0 => Err(Error::format(folder.display().to_string(), no_tensors(folder)?)),
        n => {
            found.truncate(4);
            let names: Vec<_> = found.iter().map(|p| file_name(p)).collect();
            Err(Error::format(
                folder.display().to_string(),
                format!(
                    "has {n} .safetensors files ({} ...) and no {INDEX} that says which to read; name one of them",
                    names.join(", ")
                ),
            ))
        }
    }
}

/// Why a folder without `config.json` is refused, in words that fit what is there.
fn no_config(folder: &Path) -> Error {
    let gguf = files_with(folder, "gguf").unwrap_or_default();
    let found = match gguf.as_slice() {
        [] => String::new(),
        [one] => format!("; it holds {}: name that file", file_name(one)),
        [one, ..] => format!("; it holds {} GGUF files such as {}: name one of them", gguf.len(), file_name(one)),
    };
    Error::format(
        folder.display().to_string(),
        format!(
            "is a folder without config.json{found} (accepted: a .gguf file, or a folder with config.json and .safetensors files)"
        ),
    )
}

fn no_tensors(folder: &Path) -> Result<String> {
    let pickles = [files_with(folder, "bin")?, files_with(folder, "pt")?, files_with(folder, "pth")?].concat();
    Ok(match pickles.first() {
        Some(p) => format!(
            "has no .safetensors file, but {}: PyTorch pickles are not read (they can run code); convert with safetensors",
            file_name(p)
        ),
        None => "has a config.json and no .safetensors file".into(),
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The files of a folder with this extension, sorted by name.
fn files_with(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension)) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read_index(path: &Path) -> Result<Index> {
    #[derive(serde::Deserialize)]
    struct Text {
        weight_map: Index,
    }
    let index: Text = serde_json::from_slice(&read_small(path)?)
        .map_err(|e| Error::format(path.display().to_string(), format!("is no index of shards: {e}")))?;
    if index.weight_map.is_empty() {
        return Err(Error::format(path.display().to_string(), "names no tensor"));
    }
    Ok(index.weight_map)
}

/// A shard is a plain file name: an index must not reach out of its folder.
fn check_shard_name(index: &Path, name: &str) -> Result<()> {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    if plain && !name.contains(['/', '\\', ':', '\0']) && name.ends_with(".safetensors") {
        return Ok(());
    }
    Err(Error::format(
        index.display().to_string(),
        format!(
            "names the shard `{}`; a plain name of a .safetensors file in the same folder is expected",
            name.escape_debug()
        ),
    ))
}

/// Refuses a link that leaves the folder, except into the `blobs` of a Hugging Face cache
/// (`models--x/snapshots/rev/file -> ../../blobs/hash`), which is how downloads are stored.
fn check_inside(folder: &Path, file: &Path) -> Result<()> {
    let canonical = |p: &Path| p.canonicalize().map_err(|source| Error::Io { path: p.to_owned(), source });
    let (root, real) = (canonical(folder)?, canonical(file)?);
    let snapshots = root.parent().filter(|p| p.ends_with("snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|p| p.join("blobs"));
    if real.starts_with(&root) || blobs.is_some_and(|b| real.starts_with(b)) {
        return Ok(());
    }
    Err(Error::format(file.display().to_string(), format!("is a link that leaves its folder, to {}", real.display())))
}

fn open_shards(path: &Path, folder: &Path, shards: &[PathBuf], index: Option<&Index>) -> Result<Checkpoint> {
    let (mut files, mut tensors) = (Vec::new(), Vec::new());
    for (number, shard) in shards.iter().enumerate() {
        check_inside(folder, shard)?;
        let bytes = map(shard)?;
        files.push(FileInfo { path: shard.clone(), bytes: bytes.len() as u64 });
        // A tensor may lie in two shards, such as an output matrix that is the embedding: the index says which counts.
        let promised = |name: &str| index.and_then(|map| map.get(name)).is_none_or(|file| shard.ends_with(file));
        let found = parse(&shard.display().to_string(), number, &bytes)?;
        tensors.extend(found.into_iter().filter(|t| promised(&t.name)));
    }
    let beside = beside(folder)?;
    let checkpoint =
        Checkpoint::assemble(Format::SafeTensors, Some(path.to_owned()), files, Metadata::new(), tensors, beside)?;
    if let Some(map) = index {
        check_index(folder, &checkpoint, map)?;
    }
    Ok(checkpoint)
}

/// Every tensor that the index promises is in the shard that it names.
fn check_index(folder: &Path, checkpoint: &Checkpoint, map: &Index) -> Result<()> {
    for (tensor, shard) in map {
        let holder = checkpoint.info(tensor).and_then(|t| checkpoint.files().get(t.file as usize));
        if holder.is_none_or(|f| f.path.file_name() != Some(shard.as_ref())) {
            return Err(Error::format(
                folder.join(INDEX).display().to_string(),
                format!("promises tensor `{}` in {shard}, which does not hold it", tensor.escape_debug()),
            ));
        }
    }
    Ok(())
}

/// The table of contents of one safetensors file, in the order of the data.
pub(super) fn parse(file: &str, number: usize, bytes: &Bytes) -> Result<Vec<TensorInfo>> {
    let all: &[u8] = bytes;
    let (header, meta) = SafeTensors::read_metadata(all)
        .map_err(|e| Error::format(file, format!("{e} (a file of {} bytes; truncated?)", all.len())))?;
    let base = header + 8;
    let mut infos = Vec::new();
    for name in meta.offset_keys() {
        let Some(info) = meta.info(&name) else { continue };
        let bad = |what: &str| Error::format(file, format!("tensor `{}`: {what}", name.escape_debug()));
        let (start, end) = info.data_offsets;
        let data = bytes.slice(base + start..base + end).ok_or_else(|| bad("its data lies beyond the end"))?;
        let raw = matches!(info.dtype, Dtype::U8 | Dtype::F8_E4M3).then(|| data.clone());
        let content = match dtype(info.dtype) {
            _ if data.is_empty() => Err(format!("has no weights (shape {:?})", info.shape)),
            Some(d) => {
                // A scalar is a vector of one.
                let shape = if info.shape.is_empty() { vec![1] } else { info.shape.clone() };
                Ok(Tensor::new(d, shape, vec![data]).map_err(|e| bad(&e.to_string()))?)
            }
            None if info.dtype == Dtype::F8_E4M3 => {
                Err("has type F8_E4M3, whose numbers count only together with scales in another tensor".into())
            }
            None => Err(format!("has type {:?}, which is not supported (supported: F32, F16, BF16)", info.dtype)),
        };
        infos.push(TensorInfo {
            type_name: Cow::Owned(format!("{:?}", info.dtype)),
            shape: info.shape.clone(),
            bytes: (end - start) as u64,
            file: number as u32,
            offset: (base + start) as u64,
            content,
            raw,
            name,
        });
    }
    Ok(infos)
}

fn dtype(d: Dtype) -> Option<DType> {
    match d {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Reads what lies beside the tensors. Only `config.json` must be there; what is there must be readable.
fn beside(folder: &Path) -> Result<Beside> {
    let optional = |name: &str| {
        let path = folder.join(name);
        path.is_file().then_some(path)
    };
    let json = |name: &str| -> Result<Option<Json>> {
        let Some(path) = optional(name) else { return Ok(None) };
        let parsed = super::json::parse(&read_small(&path)?);
        parsed.map(Some).map_err(|e| Error::format(path.display().to_string(), format!("is no valid JSON: {e}")))
    };
    let chat_template = match optional("chat_template.jinja") {
        Some(path) => Some(
            String::from_utf8(read_small(&path)?)
                .map_err(|e| Error::format(path.display().to_string(), format!("is not valid UTF-8: {e}")))?,
        ),
        None => None,
    };
    Ok(Beside {
        config: json(CONFIG)?,
        generation_config: json("generation_config.json")?,
        tokenizer_config: json("tokenizer_config.json")?,
        tokenizer_json: optional("tokenizer.json").map(|p| map(&p)).transpose()?,
        chat_template,
        pooling: json("1_Pooling/config.json")?,
    })
}

fn read_small(path: &Path) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MAX_JSON {
        return Err(Error::format(
            path.display().to_string(),
            format!("has {size} bytes; at most {MAX_JSON} are read"),
        ));
    }
    std::fs::read(path).map_err(io)
}
