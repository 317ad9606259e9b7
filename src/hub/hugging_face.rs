//! Hugging Face's cache: `models--owner--repo/refs/main` names a commit, `snapshots/<commit>/` has links to `blobs/`.

use super::{Found, Place, damaged, entries, gguf_files::variants};
use crate::error::Result;
use std::path::{Path, PathBuf};

/// The snapshot of a repository that `refs/main` names, or the only one; `None` where the repository is not there.
///
/// # Errors
/// [`crate::Error::Format`] where a reference is no commit, or names a snapshot that is missing.
pub(super) fn snapshot(cache: &Path, owner: &str, repo: &str) -> Result<Option<PathBuf>> {
    let folder = cache.join(format!("models--{owner}--{repo}"));
    let folder = match folder.is_dir() {
        true => folder,
        // Names on the hub are found in any case.
        false => {
            match entries(cache).into_iter().find(|(n, _)| n.eq_ignore_ascii_case(&format!("models--{owner}--{repo}")))
            {
                Some((_, path)) => path,
                None => return Ok(None),
            }
        }
    };
    let main = folder.join("refs").join("main");
    let snapshots = folder.join("snapshots");
    if let Ok(commit) = std::fs::read_to_string(&main) {
        let commit = commit.trim();
        if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(damaged(&main, "is no name of a commit"));
        }
        let snapshot = snapshots.join(commit);
        return match snapshot.is_dir() {
            true => Ok(Some(snapshot)),
            false => Err(damaged(
                &main,
                format!("names the snapshot {commit}, which is not there (an unfinished download?)"),
            )),
        };
    }
    // Downloaded by a commit's name: there is no reference.
    match &entries(&snapshots)[..] {
        [(_, only)] => Ok(Some(only.clone())),
        _ => Ok(None),
    }
}

/// The models of a cache.
pub(super) fn list(cache: &Path) -> Vec<Found> {
    let mut all = vec![];
    for (name, _) in entries(cache) {
        let Some((owner, repo)) = name.strip_prefix("models--").and_then(|n| n.split_once("--")) else { continue };
        let Ok(Some(folder)) = snapshot(cache, owner, repo) else { continue };
        all.extend(variants(&folder).into_iter().map(|v| Found {
            name: v.quant.map_or(format!("{owner}/{repo}"), |q| format!("{owner}/{repo}:{q}")),
            path: v.path,
            bytes: v.bytes,
            place: Place::HuggingFace,
        }));
    }
    all
}
