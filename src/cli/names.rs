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

/// A variable of the environment that is there and not empty.
fn var(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|p| !p.as_os_str().is_empty())
}

/// Where Hugging Face's tools keep what is this person's.
fn hugging_face(rest: &str) -> Option<PathBuf> {
    let home = || Some(var(if cfg!(windows) { "USERPROFILE" } else { "HOME" })?.join(".cache"));
    let folder = var("HF_HOME").or_else(|| Some(var("XDG_CACHE_HOME").or_else(home)?.join("huggingface")));
    Some(folder?.join(rest))
}

/// The hub that models come from.
#[cfg(feature = "pull")]
pub fn endpoint() -> String {
    std::env::var("HF_ENDPOINT").ok().filter(|e| !e.is_empty()).unwrap_or_else(|| "https://huggingface.co".into())
}

/// What this person shows to the hub: HF_TOKEN, or what `hf auth login` has written.
#[cfg(feature = "pull")]
pub fn token() -> Option<String> {
    let plain = |t: String| Some(t.trim().to_owned()).filter(|t| !t.is_empty());
    let named = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].iter().find_map(|name| std::env::var(name).ok().and_then(plain));
    named.or_else(|| {
        let path = var("HF_TOKEN_PATH").or_else(|| hugging_face("token"))?;
        std::fs::read_to_string(path).ok().and_then(plain)
    })
}

/// The folders in which models of other tools lie, for this person.
pub fn places() -> Places {
    let home = var(if cfg!(windows) { "USERPROFILE" } else { "HOME" });
    let at_home = |path: &str| home.as_ref().map(|h| h.join(path));
    let hub = var("HF_HUB_CACHE").or_else(|| hugging_face("hub"));
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
