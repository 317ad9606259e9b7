//! Files that appear under their names only when they are whole.

use crate::error::{Error, Result};
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// Writes a file as a whole or not at all: until it is durable it has another name, with a dot first, in the same folder.
///
/// # Errors
/// [`Error::Write`]; [`Error::Invalid`] for a path that ends in no name.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |source| Error::Write { path: path.to_owned(), source };
    let (mut file, guard) = Unfinished::create(path)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)?;
    drop(file);
    guard.finish(path).map_err(io)
}

/// A file under a passing name, removed when dropped.
pub(super) struct Unfinished(Option<PathBuf>);

impl Unfinished {
    pub fn create(target: &Path) -> Result<(File, Self)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let invalid = || Error::Invalid(format!("{} is no name for a file", target.display()));
        let name = target.file_name().ok_or_else(invalid)?.to_string_lossy();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = target.with_file_name(format!(".{name}.{}-{number}.part", std::process::id()));
        let file = File::create_new(&path).map_err(|source| Error::Write { path: target.to_owned(), source })?;
        Ok((file, Unfinished(Some(path))))
    }

    pub fn finish(mut self, target: &Path) -> std::io::Result<()> {
        if let Some(path) = &self.0 {
            std::fs::rename(path, target)?;
            self.0 = None;
        }
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(e) = std::fs::remove_file(path)
        {
            tracing::warn!("cannot remove the unfinished {}: {e}", path.display());
        }
    }
}
