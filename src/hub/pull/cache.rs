//! A repository in the cache: its folders, links and references.

use crate::error::{Error, Result};
use std::{
    fs::{self, File},
    path::{Component, Path, PathBuf},
};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Repository {
    folder: PathBuf,
    locks: PathBuf,
    commit: String,
}

/// What backup programs look for in folders that need none (<https://bford.info/cachedir/>).
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# This file marks a cache that was made by huggingface_hub.\n\
                   # https://bford.info/cachedir/\n";

pub(super) fn write_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Write { path, source }
}

/// Whether a word of the hub can be the name of a file.
pub(super) fn is_plain(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !word.is_empty() && word.len() < 200 && !word.starts_with('.') && word.chars().all(plain)
}

impl Repository {
    /// Makes the folders of a repository and of a commit.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub(super) fn new(cache: &Path, repo: &str, commit: &str) -> Result<Self> {
        let name = format!("models--{}", repo.replace('/', "--"));
        let of = Repository {
            folder: cache.join(&name),
            locks: cache.join(".locks").join(&name),
            commit: commit.to_owned(),
        };
        for folder in [&of.folder.join("blobs"), &of.folder.join("refs"), &of.snapshot(), &of.locks] {
            fs::create_dir_all(folder).map_err(write_error(folder))?;
        }
        let tag = cache.join("CACHEDIR.TAG");
        if !tag.exists() {
            // A convenience for others: without it everything works.
            let _ = fs::write(&tag, TAG);
        }
        Ok(of)
    }

    pub(super) fn commit(&self) -> &str {
        &self.commit
    }

    /// The folder of this commit's files.
    pub(super) fn snapshot(&self) -> PathBuf {
        self.folder.join("snapshots").join(&self.commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Where a blob grows.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// The file whose lock keeps other programs from fetching the same blob.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub(super) fn lock_file(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        // Several people may share a cache.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o664);
        options.open(&path).map_err(write_error(&path))
    }

    /// The path of a file in the snapshot.
    ///
    /// # Errors
    /// [`Error::Format`] for a name that leads out of it.
    pub(super) fn link(&self, file: &str) -> Result<PathBuf> {
        let path = Path::new(file);
        let inside = path.components().all(|c| matches!(c, Component::Normal(_)));
        match inside && !file.is_empty() && !file.contains(['\\', ':', '\0']) {
            true => Ok(self.snapshot().join(path)),
            false => Err(Error::format("the hub", format!("{file:?} is no name of a file in a repository"))),
        }
    }

    /// Makes a file of the snapshot: a link to a blob, or the blob itself where there are no links.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub(super) fn make_link(&self, etag: &str, link: &Path) -> Result<()> {
        if let Some(folder) = link.parent() {
            fs::create_dir_all(folder).map_err(write_error(folder))?;
        }
        // A link whose blob is gone.
        let there = |e: &std::io::Error| e.kind() != std::io::ErrorKind::NotFound;
        fs::remove_file(link).or_else(|e| if there(&e) { Err(e) } else { Ok(()) }).map_err(write_error(link))?;
        // Relative, so that a cache can be moved.
        let depth = link.strip_prefix(&self.folder).map_or(2, |p| p.components().count().saturating_sub(1));
        let mut target = PathBuf::new();
        (0..depth).for_each(|_| target.push(".."));
        let target = target.join("blobs").join(etag);
        match symlink(&target, link) {
            Ok(()) => Ok(()),
            // Another program has made the same link meanwhile.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            Err(_) => fs::rename(self.blob(etag), link).map_err(write_error(link)),
        }
    }

    /// Notes that a branch or tag is this commit.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub(super) fn set_reference(&self, revision: &str) -> Result<()> {
        if revision == self.commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if fs::read_to_string(&path).is_ok_and(|old| old == self.commit) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(write_error(folder))?;
        }
        // In one piece: another program may be reading it.
        let new = path.with_file_name(format!(".{}.new", std::process::id()));
        fs::write(&new, &self.commit).map_err(write_error(&new))?;
        fs::rename(&new, &path).map_err(write_error(&path))
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
