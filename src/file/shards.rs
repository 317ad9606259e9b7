//! GGUF files on disk: one, or the shards of a split (`NAME-00001-of-00003.gguf`).
//!
//! A split is described by `split.no` (from 0), `split.count` and `split.tensors.count` in every shard; the first shard
//! holds the model's metadata (`gguf-split` of llama.cpp).

use super::{
    bytes::Bytes,
    checkpoint::{Beside, Checkpoint, FileInfo, Format},
    gguf, map,
    metadata::Metadata,
};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Opens the GGUF file at `path`, whose bytes are mapped already, and its sister shards.
pub(super) fn open(path: &Path, bytes: Bytes) -> Result<Checkpoint> {
    let name = path.display().to_string();
    let parsed = gguf::parse(&name, 0, &bytes)?;
    let count = count(&name, &parsed.meta)?;
    if count <= 1 {
        let file = FileInfo { path: path.to_owned(), bytes: bytes.len() as u64 };
        let (meta, tensors) = (parsed.meta, parsed.tensors);
        return Checkpoint::assemble(Format::Gguf, Some(path.to_owned()), vec![file], meta, tensors, Beside::default());
    }
    let prefix = prefix(path, count).ok_or_else(|| {
        Error::format(
            &name,
            format!("is one of {count} shards, but is not named like one (NAME-00001-of-{count:05}.gguf)"),
        )
    })?;
    let (mut files, mut tensors, mut first) = (Vec::new(), Vec::new(), None);
    for number in 0..count {
        let shard = path.with_file_name(format!("{prefix}-{:05}-of-{count:05}.gguf", number + 1));
        let shown = shard.display().to_string();
        if !shard.is_file() {
            return Err(Error::format(&name, format!("is one of {count} shards, and the shard {shown} is missing")));
        }
        let bytes = map(&shard)?;
        let parsed = gguf::parse(&shown, number, &bytes)?;
        check_shard(&shown, &parsed.meta, number, count)?;
        files.push(FileInfo { path: shard, bytes: bytes.len() as u64 });
        tensors.extend(parsed.tensors);
        first.get_or_insert(parsed.meta);
    }
    let meta = first.unwrap_or_default();
    if let Some(want) = meta.u64("split.tensors.count")
        && want != tensors.len() as u64
    {
        return Err(Error::format(
            &name,
            format!("its {count} shards hold {} tensors instead of {want}", tensors.len()),
        ));
    }
    Checkpoint::assemble(Format::Gguf, Some(path.to_owned()), files, meta, tensors, Beside::default())
}

/// Shards that the file's metadata speaks of; 1 where it does not.
pub(super) fn count(file: &str, meta: &Metadata) -> Result<usize> {
    let Some(value) = meta.get("split.count") else { return Ok(1) };
    match value.as_u64() {
        // 0 is what llama.cpp writes into a merged file; five digits stand in the names.
        Some(n) if n < 100_000 => Ok((n as usize).max(1)),
        _ => Err(Error::format(file, format!("split.count is {value}"))),
    }
}

/// `NAME` of `NAME-00002-of-00003.gguf`.
fn prefix(path: &Path, count: usize) -> Option<String> {
    let name = PathBuf::from(path.file_name()?);
    let stem = name.to_str()?.strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let (prefix, number) = stem.rsplit_once('-')?;
    (number.len() == 5 && number.bytes().all(|b| b.is_ascii_digit())).then(|| prefix.to_owned())
}

fn check_shard(file: &str, meta: &Metadata, number: usize, count: usize) -> Result<()> {
    let (no, n) = (meta.u64("split.no"), meta.u64("split.count"));
    if no == Some(number as u64) && n == Some(count as u64) {
        return Ok(());
    }
    let say = |v: Option<u64>| v.map_or("missing".into(), |v| v.to_string());
    Err(Error::format(
        file,
        format!(
            "should be shard {number} of {count} by its name, but split.no is {} and split.count {}",
            say(no),
            say(n)
        ),
    ))
}
