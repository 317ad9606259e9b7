//! Where a run reads and where it writes: nothing that is written takes the place of what is read.

use super::config::{ExportName, LogName, TrainConfig};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What a run leaves in its folder beside checkpoints.
struct Place {
    path: PathBuf,
    folder: bool,
}

/// Refuses a run that would write over what it reads, or could not write what it makes.
///
/// # Errors
/// [`Error::Invalid`] that names both.
pub(super) fn check_places(config: &TrainConfig) -> Result<()> {
    let bad = |what: String| Err(Error::Invalid(what));
    let places = places(config);
    if let Some(p) = places.iter().find(|p| p.path.exists() && p.path.is_dir() != p.folder) {
        let [is, wanted] = if p.folder { ["no folder", "a folder"] } else { ["a folder", "a file"] };
        return bad(format!("output_dir: {} is {is}, and the run writes {wanted} there", p.path.display()));
    }
    let models = [("base_model", &config.base_model), ("tokenizer", &config.tokenizer)];
    let models = models.iter().filter_map(|(key, path)| Some((*key, path.as_deref()?)));
    let sets = [("datasets", &config.datasets), ("test_datasets", &config.test_datasets)];
    let sets = sets.iter().flat_map(|(key, sets)| sets.iter().map(move |d| (*key, d.path.as_path())));
    for (key, read) in models.chain(sets.clone()) {
        if let Some(p) = places.iter().find(|p| is_same(&p.path, read)) {
            return bad(format!(
                "output_dir: {} would be written over, and the run reads it ({key}); another output_dir leaves it as it is",
                p.path.display()
            ));
        }
    }
    // What is read as a folder would be another one at the next start.
    let out = real(&config.output_dir);
    for (key, read) in sets.filter(|(_, path)| path.is_dir()) {
        if out.as_ref().zip(read.canonicalize().ok()).is_some_and(|(out, read)| out.starts_with(read)) {
            return bad(format!(
                "output_dir {} lies in {} ({key}), whose files are the data; another output_dir keeps logs apart from it",
                config.output_dir.display(),
                read.display()
            ));
        }
    }
    Ok(())
}

/// Refuses to write a file over one that was read, or into a folder's place.
///
/// # Errors
/// [`Error::Invalid`].
pub(super) fn apart(written: &Path, read: &Path) -> Result<()> {
    match is_same(written, read) {
        true => Err(Error::Invalid(format!("{} is what was read: another name leaves it as it is", written.display()))),
        false => Ok(()),
    }
}

fn places(config: &TrainConfig) -> Vec<Place> {
    let place = |name: &str, folder| Place { path: config.output_dir.join(name), folder };
    let mut all = vec![];
    match &config.lora {
        Some(_) => all.push(place("adapter.gguf", false)),
        None => all.extend(config.export.iter().map(|e| match e {
            ExportName::Gguf => place("model.gguf", false),
            ExportName::Safetensors => place("model", true),
        })),
    }
    for log in &config.log {
        match log {
            LogName::Csv => all.push(place("log.csv", false)),
            LogName::Jsonl => all.push(place("log.jsonl", false)),
            LogName::Tensorboard => all.push(place("tensorboard", true)),
            LogName::Svg => all.extend([place("loss.svg", false), place("load.svg", false)]),
        }
    }
    all
}

/// Whether both are one file or folder.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The path without links, of which the end may not be there yet.
fn real(path: &Path) -> Option<PathBuf> {
    let above = path.ancestors().find(|p| !p.as_os_str().is_empty() && p.exists());
    match above {
        Some(above) => Some(above.canonicalize().ok()?.join(path.strip_prefix(above).ok()?)),
        None => Some(Path::new(".").canonicalize().ok()?.join(path)),
    }
}
