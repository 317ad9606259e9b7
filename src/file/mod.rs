//! Files: hostile bytes into named tensors and metadata.
//!
//! Two containers are read, GGUF (one file or several shards, `gguf.rs`) and a Hugging Face folder of safetensors
//! (`safetensors.rs`); both become a [`Checkpoint`]. Every length and offset is checked against the bytes that are
//! there before anything is allocated for it.
//!
//! The way back is [`write_gguf`], and [`synth`] makes checkpoints of random weights for measuring.
//!
//! Deliberately absent: architecture names, GPU types, dequantisation.

mod bytes;
mod checkpoint;
mod cursor;
mod gguf;
mod gguf_write;
mod json;
mod metadata;
mod random;
mod safetensors;
mod shards;
mod sniff;
pub mod synth;
mod tensor;
mod unfinished;
mod value;

pub use bytes::Bytes;
pub use checkpoint::{Checkpoint, FileInfo, Format, TensorInfo};
pub use gguf_write::{Sink, TensorSpec, write_gguf, write_gguf_to};
pub use metadata::Metadata;
pub use tensor::Tensor;
pub use unfinished::write_whole;
pub use value::{Array, Strings, Value, ValueType};

use crate::error::{Error, Result};
use checkpoint::Beside;
use sniff::Kind;
use std::path::{Path, PathBuf};

/// Opens a model: a `.gguf` file, any shard of a split GGUF, a folder with `config.json` and `.safetensors` files, or one
/// `.safetensors` file with a `config.json` beside it. What a file is, its bytes tell, not its name.
///
/// Tensor data is memory-mapped and not read yet: the files must not be cut or rewritten while the checkpoint lives.
///
/// # Errors
/// [`Error::Io`] where something cannot be read; [`Error::Format`] where a file is something else or does not follow its
/// format. The text says what was found and what is accepted.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let what = std::fs::metadata(path).map_err(io)?;
    if what.is_dir() {
        return safetensors::open_folder(path);
    }
    if !what.is_file() {
        return Err(wrong_kind(&path.display().to_string(), "neither a file nor a folder"));
    }
    let name = path.file_name().unwrap_or_default();
    if name == safetensors::CONFIG || name == safetensors::INDEX {
        return safetensors::open_folder(path.parent().unwrap_or(Path::new(".")));
    }
    let bytes = map(path)?;
    match sniff::sniff(&bytes[..bytes.len().min(512)], bytes.len() as u64) {
        Kind::Gguf => shards::open(path, bytes),
        Kind::SafeTensors => safetensors::open_file(path),
        Kind::Other(what) => Err(wrong_kind(&path.display().to_string(), what)),
    }
}

/// Opens a GGUF that is in memory already: embedded in the program, or downloaded by the host application.
///
/// # Errors
/// As [`open`].
pub fn open_bytes(bytes: Bytes) -> Result<Checkpoint> {
    const NAME: &str = "GGUF in memory";
    if let Kind::Other(what) = sniff::sniff(&bytes[..bytes.len().min(512)], bytes.len() as u64) {
        return Err(wrong_kind(NAME, what));
    }
    let parsed = gguf::parse(NAME, 0, &bytes)?;
    if shards::count(NAME, &parsed.meta)? > 1 {
        return Err(Error::format(NAME, "is one shard of a split GGUF; open the files instead, or merge them"));
    }
    let file = FileInfo { path: PathBuf::from("memory"), bytes: bytes.len() as u64 };
    Checkpoint::assemble(Format::Gguf, None, vec![file], parsed.meta, parsed.tensors, Beside::default())
}

fn wrong_kind(file: &str, what: &str) -> Error {
    Error::format(
        file,
        format!("is {what}; accepted are GGUF files and folders with config.json and .safetensors files"),
    )
}

/// The tensors of one `.safetensors` file that is no model: an adapter's.
///
/// # Errors
/// As [`open`]; [`Error::Unsupported`] for a tensor of a type that is none of weights.
pub fn open_tensors(path: &Path) -> Result<Vec<(String, Tensor)>> {
    let name = path.display().to_string();
    let tensors = safetensors::parse(&name, 0, &map(path)?)?.into_iter();
    let usable = |t: TensorInfo| match t.content {
        Ok(content) => Ok((t.name, content)),
        Err(why) => Err(Error::Unsupported(format!("{name}: tensor `{}` {why}", t.name))),
    };
    tensors.map(usable).collect()
}

/// Maps a file into memory, read-only.
///
/// # Errors
/// [`Error::Io`].
pub fn map(path: &Path) -> Result<Bytes> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() == 0 {
        return Ok(Bytes::from_static(&[]));
    }
    // SAFETY: the map is private to this process and never written. If another process cuts or rewrites the file while
    // it is mapped, reads may fault or change, as with every memory-mapped model; the documentation of `open` says so.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
    Ok(Bytes::from_map(map))
}
