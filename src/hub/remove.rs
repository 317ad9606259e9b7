//! Removing models from Hugging Face's cache: a model's links in all snapshots, and the blobs that nothing else links to.

use super::{Name, Place, Places, entries, gguf_files::variants, hugging_face};
use crate::error::{Error, Result};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What may be left of a repository without a model and still go with the last one: its README and the like.
const SMALL: u64 = 4 << 20;

impl Places {
    /// What [`Places::remove`] would take away: the links, files and blobs, or the folder of the whole repository where no model would be
    /// left in it, and their bytes on the disk.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such model, the name means several, or it lies in a folder of another tool, which keeps
    /// its own account of it; [`Error::Format`] for a cache that is damaged.
    pub fn removal(&self, name: &str) -> Result<(Vec<PathBuf>, u64)> {
        let name = name.trim();
        let Some(path) = self.find(name)? else {
            return Err(Error::Invalid(format!("there is no model {name:?} in the folders of this person")));
        };
        let place = self.list().into_iter().find(|f| f.path == path).map(|f| f.place);
        let parts = Name::parse(name).and_then(|n| Some((n.owner?, n.repo)));
        match (place, parts, &self.hugging_face) {
            (Some(Place::HuggingFace), Some((owner, repo)), Some(cache)) => of_repository(cache, owner, repo, &path),
            (Some(Place::Ollama), ..) => {
                Err(Error::Invalid(format!("{name} is Ollama's: ollama rm {name} removes it")))
            }
            (Some(Place::LmStudio), ..) => {
                Err(Error::Invalid(format!("{name} lies at {}, where LM Studio keeps account of it", path.display())))
            }
            (Some(Place::HuggingFace | Place::Folder) | None, ..) => {
                Err(Error::Invalid(format!("{name} is at {}, and in no cache that is tidied here", path.display())))
            }
        }
    }

    /// Removes a model from Hugging Face's cache; gives what is gone.
    ///
    /// # Errors
    /// As [`Places::removal`]; [`Error::Write`] where something cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(Vec<PathBuf>, u64)> {
        let removed = self.removal(name)?;
        for path in &removed.0 {
            let folder = path.symlink_metadata().is_ok_and(|m| m.is_dir());
            let gone = if folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            gone.map_err(|source| Error::Write { path: path.clone(), source })?;
        }
        Ok(removed)
    }
}

/// A file of a snapshot.
struct Link {
    path: PathBuf,
    /// Its path in the snapshot.
    name: PathBuf,
    /// The blob that it links to; the file itself where the cache has no links.
    blob: PathBuf,
}

fn of_repository(cache: &Path, owner: &str, repo: &str, path: &Path) -> Result<(Vec<PathBuf>, u64)> {
    let Some(snapshot) = hugging_face::snapshot(cache, owner, repo)? else { return Ok(Default::default()) };
    let Some(folder) = snapshot.parent().and_then(Path::parent) else { return Ok(Default::default()) };
    let chosen = variants(&snapshot).into_iter().find(|v| v.path == path);
    let names: BTreeSet<PathBuf> =
        chosen.iter().flat_map(|v| &v.files).filter_map(|f| Some(f.strip_prefix(&snapshot).ok()?.to_owned())).collect();
    let links: Vec<Link> = entries(&folder.join("snapshots"))
        .into_iter()
        .flat_map(|(_, s)| links(&s, &s, &folder.join("blobs")))
        .collect();
    let (gone, kept): (Vec<Link>, Vec<Link>) = links.into_iter().partition(|l| names.contains(&l.name));
    let blobs = |links: &[Link]| links.iter().map(|l| l.blob.clone()).collect::<BTreeSet<_>>();
    let size = |blobs: &BTreeSet<PathBuf>| blobs.iter().map(|b| fs::metadata(b).map_or(0, |m| m.len())).sum::<u64>();
    let needed = blobs(&kept);
    let is_model = |l: &Link| {
        ["gguf", "safetensors"].iter().any(|e| l.name.extension().is_some_and(|own| own.eq_ignore_ascii_case(e)))
    };
    if !kept.iter().any(is_model) && size(&needed) <= SMALL {
        let all = blobs(&gone).union(&needed).cloned().collect();
        let locks = cache.join(".locks").join(folder.file_name().unwrap_or_default());
        let paths = [Some(folder.to_owned()), Some(locks).filter(|l| l.is_dir())].into_iter().flatten().collect();
        return Ok((paths, size(&all)));
    }
    let unused: BTreeSet<PathBuf> = blobs(&gone).difference(&needed).cloned().collect();
    let bytes = size(&unused);
    // Links first: whatever ends this leaves no link to nothing.
    let mut paths: Vec<PathBuf> = gone.into_iter().map(|l| l.path).collect();
    let own: Vec<PathBuf> = unused.into_iter().filter(|b| !paths.contains(b)).collect();
    paths.extend(own);
    Ok((paths, bytes))
}

/// All files of a snapshot.
fn links(snapshot: &Path, folder: &Path, blobs: &Path) -> Vec<Link> {
    let mut all = vec![];
    for (_, path) in entries(folder) {
        let Ok(about) = path.symlink_metadata() else { continue };
        if about.is_dir() {
            all.extend(links(snapshot, &path, blobs));
            continue;
        }
        // Only what lies among this repository's blobs is its own.
        let target = fs::read_link(&path).ok();
        let blob =
            target.as_ref().filter(|t| t.parent().is_some_and(|p| p.ends_with("blobs"))).and_then(|t| t.file_name());
        let blob = blob.map_or_else(|| path.clone(), |b| blobs.join(b));
        if let Ok(name) = path.strip_prefix(snapshot) {
            all.push(Link { name: name.to_owned(), blob, path });
        }
    }
    all
}
