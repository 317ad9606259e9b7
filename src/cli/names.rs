//! Models by name, and `moeray list`: the folders of other tools as their environment variables say.

use super::{
    args::ListArgs,
    failure::{Outcome, say},
    units,
};
use crate::hub::Places;
use serde_json::json;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The folders in which models of other tools lie, for this person.
pub fn places() -> Places {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| !p.as_os_str().is_empty());
    let home = var(if cfg!(windows) { "USERPROFILE" } else { "HOME" });
    let at_home = |path: &str| home.as_ref().map(|h| h.join(path));
    let hub = var("HF_HUB_CACHE")
        .or_else(|| Some(var("HF_HOME")?.join("hub")))
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| at_home(".cache/huggingface/hub"));
    let there = |list: [Option<PathBuf>; 2]| list.into_iter().flatten().find(|p| p.is_dir());
    let service = Some(PathBuf::from("/usr/share/ollama/.ollama/models"));
    Places {
        hugging_face: hub,
        ollama: var("OLLAMA_MODELS").or_else(|| there([at_home(".ollama/models"), service])),
        lm_studio: there([at_home(".lmstudio/models"), at_home(".cache/lm-studio/models")]),
    }
}

/// The path that a person means: a file or folder, or a name under which another tool has a model.
pub fn resolved(path: &Path) -> Outcome<PathBuf> {
    if !path.exists()
        && let Some(name) = path.to_str()
        && let Some(found) = places().find(name.trim())?
    {
        tracing::info!("{name} is {}", found.display());
        return Ok(found);
    }
    Ok(path.to_owned())
}

/// Runs the verb.
pub fn list(args: &ListArgs) -> Outcome {
    let (places, mut out) = (places(), io::stdout().lock());
    let all = places.list();
    if args.json {
        let model = |f: &crate::hub::Found| json!({"name": f.name, "path": f.path, "bytes": f.bytes, "place": f.place.to_string()});
        writeln!(out, "{:#}", all.iter().map(model).collect::<serde_json::Value>())?;
        return Ok(());
    }
    let width = all.iter().map(|f| f.name.chars().count()).max().unwrap_or(0);
    for f in &all {
        writeln!(out, "{:<width$}  {:>9}  {}", f.name, units::bytes(f.bytes), f.place)?;
        if args.paths {
            writeln!(out, "  {}", f.path.display())?;
        }
    }
    if all.is_empty() {
        say(format_args!("no models of other tools on this disk; looked for in"));
        let folders = [&places.hugging_face, &places.lm_studio, &places.ollama];
        folders.into_iter().flatten().for_each(|f| say(format_args!("  {}", f.display())));
    }
    Ok(())
}
