//! Models by name: what other tools have downloaded already. The cache of Hugging Face's tools is read as it is on disk, and the
//! folders of Ollama and LM Studio are looked through. Nothing is downloaded, moved or removed unasked: the module `pull` and
//! [`Places::remove`] are what asks.
//!
//! | name | where it is looked for |
//! |---|---|
//! | `owner/repo`, `owner/repo:QUANT`, either behind `hf:` | Hugging Face's cache, then LM Studio's folder, then Ollama's |
//! | `model:tag`, `model` | Ollama's folder |
//!
//! Sources: huggingface_hub's guide "Understand caching"; Ollama's `manifest/` and `server/modelpath.go`; LM Studio's documentation on
//! importing models.
//!
//! Deliberately absent: environment variables, what is in a model.

mod gguf_files;
mod hugging_face;
mod lm_studio;
mod ollama;
#[cfg(feature = "pull")]
mod pull;
mod remove;

#[cfg(feature = "pull")]
pub use pull::{PullOptions, PullProgress, Pulled};

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Folders in which models may lie. A folder that is not there holds none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Hugging Face's cache (`~/.cache/huggingface/hub`), with folders `models--owner--repo`.
    pub hugging_face: Option<PathBuf>,
    /// Ollama's models (`~/.ollama/models`), with `manifests` and `blobs`.
    pub ollama: Option<PathBuf>,
    /// LM Studio's models (`~/.lmstudio/models`), with folders `owner/repo`.
    pub lm_studio: Option<PathBuf>,
}

/// Whose folder a model lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Place {
    /// Hugging Face's cache.
    HuggingFace,
    /// LM Studio's folder.
    LmStudio,
    /// Ollama's folder.
    Ollama,
    /// A folder that a person named.
    Folder,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Place::HuggingFace => "Hugging Face",
            Place::LmStudio => "LM Studio",
            Place::Ollama => "Ollama",
            Place::Folder => "a folder",
        })
    }
}

/// A model that lies in one of the places.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// The name that [`Places::find`] takes for it.
    pub name: String,
    /// What to open: a GGUF file, the first of a split one, or a folder of safetensors.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Where it lies.
    pub place: Place,
}

/// A name in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name<'a> {
    /// Whether `hf:` stands before it, or an address of huggingface.co.
    hugging_face: bool,
    owner: Option<&'a str>,
    repo: &'a str,
    /// What stands behind the colon: a quantisation, or a tag.
    tag: Option<&'a str>,
}

impl<'a> Name<'a> {
    /// `None` for what is no name: a path, or with signs that names do not have.
    fn parse(text: &'a str) -> Option<Self> {
        let short = ["hf:", "hf://", "https://huggingface.co/", "huggingface.co/", "hf.co/"];
        let stripped = short.iter().rev().find_map(|p| text.strip_prefix(p));
        let rest = stripped.map_or(text, |s| s.trim_start_matches('/'));
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        let (owner, repo) = match name.split_once('/') {
            Some((owner, repo)) => (Some(owner), repo),
            None => (None, name),
        };
        let is_plain = |s: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !s.is_empty() && s != "." && s != ".." && s.chars().all(plain)
        };
        let parts = [owner, Some(repo), tag];
        let fits = parts.into_iter().flatten().all(is_plain) && (stripped.is_none() || owner.is_some());
        fits.then_some(Name { hugging_face: stripped.is_some(), owner, repo, tag })
    }
}

impl Places {
    /// The model of this name, where it lies in one of the places; `None` where it does not, or where this is no name.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the repository is there and the name does not say which of its files, or none of them has that
    /// quantisation: with those that there are. [`Error::Format`] for a cache that is damaged.
    pub fn find(&self, name: &str) -> Result<Option<PathBuf>> {
        let Some(parts) = Name::parse(name) else { return Ok(None) };
        if let (Some(owner), Some(cache)) = (parts.owner, &self.hugging_face)
            && let Some(snapshot) = hugging_face::snapshot(cache, owner, parts.repo)?
        {
            return gguf_files::choose(&snapshot, name, parts.tag).map(Some);
        }
        if parts.hugging_face {
            return Ok(None);
        }
        if let (Some(owner), Some(folder)) = (parts.owner, &self.lm_studio) {
            let folder = folder.join(owner).join(parts.repo);
            if folder.is_dir() {
                return gguf_files::choose(&folder, name, parts.tag).map(Some);
            }
        }
        match &self.ollama {
            Some(folder) => ollama::blob(folder, parts.owner, parts.repo, parts.tag),
            None => Ok(None),
        }
    }

    /// All models in the places, sorted by name. What cannot be read is left out.
    pub fn list(&self) -> Vec<Found> {
        let mut all = vec![];
        self.hugging_face.iter().for_each(|f| all.extend(hugging_face::list(f)));
        self.lm_studio.iter().for_each(|f| all.extend(lm_studio::list(f)));
        self.ollama.iter().for_each(|f| all.extend(ollama::list(f)));
        all.sort();
        all
    }
}

impl Places {
    /// The models of a folder and of the folders in it, by the names of their files without `.gguf` (of split ones, without the part's
    /// number), and of safetensors by the name of their folder. Where two have the same name, the second has its folder's before it.
    pub fn in_folder(folder: &Path) -> Vec<Found> {
        let of = |v: &gguf_files::Variant| {
            let file = v.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let stem = file.strip_suffix(".gguf").or(file.strip_suffix(".GGUF")).unwrap_or(&file);
            if v.path.is_dir() { file } else { gguf_files::split(stem).0.to_owned() }
        };
        let mut variants = gguf_files::variants(folder);
        for (_, path) in entries(folder).into_iter().filter(|(_, p)| p.is_dir()) {
            // GGUFs in folders were found already.
            variants.extend(gguf_files::variants(&path).into_iter().filter(|v| v.path == path));
        }
        let mut all: Vec<Found> = vec![];
        for v in variants {
            let mut name = of(&v);
            if all.iter().any(|f| f.name == name)
                && let Some(parent) = v.path.parent().and_then(Path::file_name)
            {
                name = format!("{}/{name}", parent.to_string_lossy());
            }
            all.push(Found { name, path: v.path, bytes: v.bytes, place: Place::Folder });
        }
        all.sort();
        all.dedup_by(|a, b| a.name == b.name);
        all
    }
}

/// The entries of a folder by name, sorted; none where it cannot be read.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder) else { return vec![] };
    let named = |e: std::fs::DirEntry| Some((e.file_name().into_string().ok()?, e.path()));
    let mut all: Vec<_> = entries.flatten().filter_map(named).collect();
    all.sort();
    all
}

fn damaged(path: &Path, what: impl Into<String>) -> Error {
    Error::format(path.display().to_string(), what)
}
