//! Ollama's folder: `manifests/<registry>/<owner>/<model>/<tag>` are lists of layers, `blobs/sha256-<digest>` the layers, of which one
//! is a GGUF.

use super::{Found, Place, damaged, entries};
use crate::error::Result;
use serde_json::Value as Json;
use std::path::{Path, PathBuf};

/// The kind of layer that is a model's weights.
const MODEL: &str = "application/vnd.ollama.image.model";
/// A manifest beyond this is none.
const MAX_MANIFEST: u64 = 1 << 20;

/// The file of a model; `None` where Ollama does not have it.
///
/// # Errors
/// [`crate::Error::Format`] for a manifest that cannot be read, or whose file is missing.
pub(super) fn blob(folder: &Path, owner: Option<&str>, model: &str, tag: Option<&str>) -> Result<Option<PathBuf>> {
    let tag = tag.unwrap_or("latest");
    let manifests = folder.join("manifests");
    let registries = ["registry.ollama.ai", "hf.co", "huggingface.co"];
    let places = registries.map(|r| manifests.join(r).join(owner.unwrap_or("library")).join(model).join(tag));
    match places.iter().find(|p| p.is_file()) {
        Some(manifest) => of_manifest(folder, manifest).map(|m| Some(m.0)),
        None => Ok(None),
    }
}

/// The file that a manifest names, and its size.
fn of_manifest(folder: &Path, manifest: &Path) -> Result<(PathBuf, u64)> {
    let io = |source| crate::Error::Io { path: manifest.to_owned(), source };
    if std::fs::metadata(manifest).map_err(io)?.len() > MAX_MANIFEST {
        return Err(damaged(manifest, "is too large for a manifest of Ollama"));
    }
    let json: Json = serde_json::from_slice(&std::fs::read(manifest).map_err(io)?)
        .map_err(|e| damaged(manifest, format!("is no manifest of Ollama: {e}")))?;
    let layers = json.get("layers").and_then(Json::as_array);
    let model = layers.into_iter().flatten().find(|l| l.get("mediaType").and_then(Json::as_str) == Some(MODEL));
    let digest = model.and_then(|l| l.get("digest")).and_then(Json::as_str).and_then(|d| d.strip_prefix("sha256:"));
    let digest = digest.filter(|d| d.len() == 64 && d.chars().all(|c| c.is_ascii_hexdigit()));
    let digest = digest.ok_or_else(|| damaged(manifest, "names no model"))?;
    let path = folder.join("blobs").join(format!("sha256-{digest}"));
    match std::fs::metadata(&path) {
        Ok(m) => Ok((path, m.len())),
        Err(_) => {
            Err(damaged(manifest, format!("names {}, which is not there (an unfinished download?)", path.display())))
        }
    }
}

/// The models of a folder.
pub(super) fn list(folder: &Path) -> Vec<Found> {
    let mut all = vec![];
    for (registry, path) in entries(&folder.join("manifests")) {
        for (owner, path) in entries(&path) {
            for (model, path) in entries(&path) {
                for (tag, manifest) in entries(&path) {
                    let Ok((path, bytes)) = of_manifest(folder, &manifest) else { continue };
                    let library = registry == "registry.ollama.ai" && owner == "library";
                    let name = if library { format!("{model}:{tag}") } else { format!("{owner}/{model}:{tag}") };
                    all.push(Found { name, path, bytes, place: Place::Ollama });
                }
            }
        }
    }
    all
}
