//! Files into a corpus.

use super::{
    corpus::Corpus,
    samples,
    source::{Kind, Source},
};
use crate::{
    error::{Error, Result},
    file,
    tokenizer::{EncodeOptions, Tokenizer},
};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

/// Endings and what they say.
const ENDINGS: &[(&str, Kind)] = &[
    ("txt", Kind::Text),
    ("text", Kind::Text),
    ("md", Kind::Text),
    ("jsonl", Kind::JsonLines),
    ("ndjson", Kind::JsonLines),
    ("bin", Kind::TokensU16),
    ("u16", Kind::TokensU16),
    ("u32", Kind::TokensU32),
];

/// Folders within folders, so that links cannot lead in a circle.
const DEPTH: usize = 16;

/// Reads all sources: ids below `vocab`, samples that fit `sequence_len` rows. Text needs a tokenizer.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`], [`Error::Tokenizer`], [`Error::Invalid`]: each names the file, the line where there are lines,
/// and what is wrong with it.
pub fn read(sources: &[Source], tokenizer: Option<&Tokenizer>, vocab: usize, sequence_len: usize) -> Result<Corpus> {
    let mut corpus = Corpus::new(vocab, sequence_len + 1);
    for source in sources {
        let io = |e| Error::Io { path: source.path.clone(), source: e };
        if std::fs::metadata(&source.path).map_err(io)?.is_dir() {
            let mut files = vec![];
            below(&source.path, DEPTH, &mut HashSet::new(), &mut files)?;
            if files.is_empty() {
                let endings: Vec<_> = ENDINGS.iter().map(|(e, _)| format!(".{e}")).collect();
                return Err(Error::format(
                    source.path.display().to_string(),
                    format!("is a folder without data: no file ends in {}", endings.join(", ")),
                ));
            }
            files.iter().try_for_each(|f| one(f, source, tokenizer, &mut corpus))?;
        } else {
            one(&source.path, source, tokenizer, &mut corpus)?;
        }
    }
    if corpus.is_empty() {
        let left = corpus.dropped();
        let why = if left > 0 { format!(": all {left} samples are too long") } else { String::new() };
        return Err(Error::Invalid(format!("the data sets hold no text{why}")));
    }
    Ok(corpus)
}

/// The files of a folder and of those in it, by name. A folder that links lead to again counts once.
fn below(folder: &Path, depth: usize, seen: &mut HashSet<PathBuf>, files: &mut Vec<PathBuf>) -> Result<()> {
    let io = |source| Error::Io { path: folder.to_owned(), source };
    if !seen.insert(folder.canonicalize().map_err(io)?) {
        return Ok(());
    }
    let mut entries = vec![];
    for entry in std::fs::read_dir(folder).map_err(io)? {
        entries.push(entry.map_err(io)?.path());
    }
    entries.sort();
    for path in entries {
        if path.is_dir() && depth > 0 {
            below(&path, depth - 1, seen, files)?;
        } else if path.is_file() && by_ending(&path).is_some() {
            files.push(path);
        }
    }
    Ok(())
}

fn by_ending(path: &Path) -> Option<Kind> {
    let ending = path.extension()?.to_str()?.to_lowercase();
    ENDINGS.iter().find(|(e, _)| *e == ending).map(|(_, kind)| *kind)
}

fn one(path: &Path, source: &Source, tokenizer: Option<&Tokenizer>, corpus: &mut Corpus) -> Result<()> {
    let name = path.display().to_string();
    let kind = source.kind.or_else(|| by_ending(path)).ok_or_else(|| {
        Error::Invalid(format!(
            "{name}: what is in it? Its ending does not tell; ds_type says it: text, json (an object a line), u16 or u32"
        ))
    })?;
    let io = |source| Error::Io { path: path.to_owned(), source };
    // A pipe would be waited for, without an end.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::format(name, "is no file"));
    }
    let bytes = file::map(path)?;
    if bytes.is_empty() {
        return Err(Error::format(name, "is empty"));
    }
    let text = || {
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| Error::format(&*name, format!("is not UTF-8 text: bad byte at offset {}", e.valid_up_to())));
        // Windows' programs put a mark before their texts, which is none of them.
        text.map(|t| t.strip_prefix('\u{feff}').unwrap_or(t))
    };
    let tokenizer = || {
        tokenizer
            .ok_or_else(|| Error::Invalid(format!("{name} is text, and there is no tokenizer to make tokens of it")))
    };
    match kind {
        Kind::Text => {
            let (text, tokenizer) = (text()?, tokenizer()?);
            let mut ids = tokenizer.encode(text, EncodeOptions::default())?;
            ids.extend(tokenizer.eos().filter(|_| source.add_eos));
            corpus.add_text(&name, ids)
        }
        Kind::JsonLines => {
            let (text, tokenizer, before) = (text()?, tokenizer()?, corpus.texts().len() + corpus.dropped());
            for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
                samples::line(&format!("{name}, line {}", i + 1), line, source, tokenizer, corpus)?;
            }
            if corpus.texts().len() + corpus.dropped() == before {
                return Err(Error::format(name, "has no line with a sample"));
            }
            Ok(())
        }
        Kind::TokensU16 | Kind::TokensU32 => {
            let (skip, wide) = header(&name, &bytes, kind == Kind::TokensU32)?;
            let ids = bytes.slice(skip..bytes.len()).ok_or_else(|| Error::format(&*name, "ends in its header"))?;
            corpus.add_tokens(&name, ids, wide)
        }
    }
}

/// The size of llm.c's header where there is one (256 integers: a magic number, a version, the count of tokens), and whether ids
/// have 32 bits.
fn header(name: &str, bytes: &[u8], wide: bool) -> Result<(usize, bool)> {
    let int = |i: usize| bytes.get(4 * i..4 * i + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let wide = match (int(0), int(1)) {
        (Some(20_240_520), Some(1)) => false,
        (Some(20_240_801), Some(7)) => true,
        (Some(20_240_520 | 20_240_801), version) => {
            return Err(Error::format(
                name,
                format!("is an llm.c file of version {version:?}, which is not known here"),
            ));
        }
        _ => return Ok((0, wide)),
    };
    let size = if wide { 4 } else { 2 };
    let said = int(2).map_or(0, |n| n as usize);
    if said.checked_mul(size).is_none_or(|n| n + 1024 != bytes.len()) {
        return Err(Error::format(name, format!("says that it has {said} tokens, and has {} bytes", bytes.len())));
    }
    Ok((1024, wide))
}
