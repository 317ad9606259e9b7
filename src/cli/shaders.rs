//! What a GPU's device taught between runs: compiled shaders, where the driver gives them, and which kernels are fastest. Two
//! files in the user's folder for caches.
//!
//! Without it everything works, slower at the start: nothing here is an error.

use crate::backend::wgpu::{ShaderCache, Tuning};
use std::{fs, path::PathBuf, sync::OnceLock};

struct Kept {
    cache: ShaderCache,
    before: Vec<u8>,
    tuning: Tuning,
    text: String,
}

const SHADERS: &str = "shaders.bin";
const TUNING: &str = "tuning.txt";

static KEPT: OnceLock<Kept> = OnceLock::new();

/// A file of `moeray` in the folder where this system keeps caches (XDG Base Directory Specification; Apple's and Microsoft's
/// conventions).
pub fn path(name: &str) -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let folder = if cfg!(windows) {
        var("LOCALAPPDATA")?
    } else if cfg!(target_os = "macos") {
        var("HOME")?.join("Library/Caches")
    } else {
        var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")))?
    };
    Some(folder.join("moeray").join(name))
}

fn kept() -> &'static Kept {
    KEPT.get_or_init(|| {
        let before = path(SHADERS).and_then(|p| fs::read(p).ok()).unwrap_or_default();
        // SAFETY: this program wrote the file, in a folder that is the user's own; damage is noticed by a checksum.
        let cache = unsafe { ShaderCache::from_bytes(&before) };
        let text = path(TUNING).and_then(|p| fs::read_to_string(p).ok()).unwrap_or_default();
        Kept { cache, before, tuning: Tuning::from_text(&text), text }
    })
}

/// The cache of this process, with what the file holds.
pub fn cache() -> ShaderCache {
    kept().cache.clone()
}

/// The measurements of this process, with what the file holds.
pub fn tuning() -> Tuning {
    kept().tuning.clone()
}

/// Writes the files, where something is new.
pub fn save() {
    let Some(kept) = KEPT.get() else { return };
    if let Some(bytes) = kept.cache.bytes().filter(|b| *b != kept.before) {
        write(SHADERS, &bytes);
    }
    let text = kept.tuning.text();
    if text != kept.text {
        write(TUNING, text.as_bytes());
    }
}

/// Whole or not at all: another process may read or write at the same time.
fn write(name: &str, bytes: &[u8]) {
    let Some(path) = path(name) else { return };
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    let written = folder.and_then(|()| fs::write(&part, bytes)).and_then(|()| fs::rename(&part, &path));
    if let Err(e) = written {
        tracing::debug!("not kept: {}: {e}", path.display());
        drop(fs::remove_file(part));
    }
}
