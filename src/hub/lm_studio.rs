//! LM Studio's folder: `owner/repo/` with files as they were downloaded.

use super::{Found, Place, entries, gguf_files::variants};
use std::path::Path;

/// The models of a folder.
pub(super) fn list(folder: &Path) -> Vec<Found> {
    let mut all = vec![];
    for (owner, path) in entries(folder) {
        for (repo, path) in entries(&path).into_iter().filter(|(_, p)| p.is_dir()) {
            all.extend(variants(&path).into_iter().map(|v| Found {
                name: v.quant.map_or(format!("{owner}/{repo}"), |q| format!("{owner}/{repo}:{q}")),
                path: v.path,
                bytes: v.bytes,
                place: Place::LmStudio,
            }));
        }
    }
    all
}
