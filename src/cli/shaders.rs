//! Compiled shaders between runs: a file in the user's folder for caches, where the driver gives them.
//!
//! Without it everything works, slower at the start: nothing here is an error.

use crate::backend::wgpu::ShaderCache;
use std::{fs, path::PathBuf, sync::OnceLock};

struct Kept {
    cache: ShaderCache,
    before: Vec<u8>,
}

static KEPT: OnceLock<Kept> = OnceLock::new();

/// `moeray/shaders.bin` in the folder where this system keeps caches (XDG Base Directory Specification; Apple's and Microsoft's
/// conventions).
fn path() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let folder = if cfg!(windows) {
        var("LOCALAPPDATA")?
    } else if cfg!(target_os = "macos") {
        var("HOME")?.join("Library/Caches")
    } else {
        var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")))?
    };
    Some(folder.join("moeray").join("shaders.bin"))
}

/// The cache of this process, with what the file holds.
pub fn cache() -> ShaderCache {
    let kept = KEPT.get_or_init(|| {
        let before = path().and_then(|p| fs::read(p).ok()).unwrap_or_default();
        // SAFETY: this program wrote the file, in a folder that is the user's own; damage is noticed by a checksum.
        let cache = unsafe { ShaderCache::from_bytes(&before) };
        Kept { cache, before }
    });
    kept.cache.clone()
}

/// Writes the file, where shaders were compiled that it did not hold.
pub fn save() {
    let Some((kept, path)) = KEPT.get().zip(path()) else { return };
    let Some(bytes) = kept.cache.bytes().filter(|b| *b != kept.before) else { return };
    // Whole or not at all: another process may read or write at the same time.
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written = folder.and_then(|()| fs::write(&part, bytes)).and_then(|()| fs::rename(&part, &path));
    if let Err(e) = written {
        tracing::debug!("compiled shaders are not kept: {}: {e}", path.display());
        drop(fs::remove_file(part));
    }
}
