//! Which of a folder's files a name means.

use super::entries;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// A model in a folder: a GGUF, all parts of a split one together, or the folder's safetensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// Its quantisation as its file is called; none for safetensors, and for a file whose name says none.
    pub quant: Option<String>,
    /// What to open.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// The models of a folder, also in folders within, as repositories have one for each quantisation. What goes with a model and is
/// none (`mmproj`, importance matrices) is left out.
pub(super) fn variants(folder: &Path) -> Vec<Variant> {
    let mut all: Vec<Variant> = vec![];
    let (mut tensors, mut config) = (0, false);
    for (name, path) in files(folder, 2) {
        let lower = name.to_lowercase();
        let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
        let inside = path.parent() == Some(folder);
        config |= inside && lower == "config.json";
        if inside && lower.ends_with(".safetensors") {
            tensors += bytes;
        }
        let Some(stem) = lower.strip_suffix(".gguf").filter(|s| !s.contains("mmproj") && !s.contains("imatrix")) else {
            continue;
        };
        let (stem, part) = split(stem);
        let quant = quantisation(stem);
        match all.iter_mut().find(|v| part > 1 && v.path.parent() == path.parent() && v.quant == quant) {
            Some(first) => first.bytes += bytes,
            // A later part whose first is missing is no model that could be opened.
            None if part > 1 => {}
            None => all.push(Variant { quant, path, bytes }),
        }
    }
    if tensors > 0 && config {
        all.push(Variant { quant: None, path: folder.to_owned(), bytes: tensors });
    }
    all
}

fn files(folder: &Path, depth: usize) -> Vec<(String, PathBuf)> {
    let within = |(name, path): (String, PathBuf)| {
        if !path.is_dir() {
            vec![(name, path)]
        } else if depth > 1 {
            files(&path, depth - 1)
        } else {
            vec![]
        }
    };
    entries(folder).into_iter().flat_map(within).collect()
}

/// The name without `-00002-of-00003`, and the part's number; 1 for a file that is whole.
fn split(stem: &str) -> (&str, usize) {
    let parts = stem.len().checked_sub(15).and_then(|at| Some((stem.get(..at)?, stem.get(at..)?)));
    let number = |s: &str| (s.len() == 5).then(|| s.parse::<usize>().ok()).flatten();
    let found = parts.and_then(|(name, tail)| {
        let (part, of) = tail.strip_prefix('-')?.split_once("-of-")?;
        number(of)?;
        Some((name, number(part)?))
    });
    found.unwrap_or((stem, 1))
}

/// The quantisation at the end of a file's name, in upper case: `Q4_K_M`, `IQ4_XS`, `MXFP4`, `BF16`, with what is written before it
/// in some names (`UD-Q4_K_XL`).
fn quantisation(stem: &str) -> Option<String> {
    let upper = stem.to_uppercase();
    let words: Vec<&str> = upper.split(['-', '.']).collect();
    let is_quant = |w: &str| {
        let kinds = ["Q", "IQ", "TQ", "F", "BF", "FP", "MXFP", "NVFP"];
        kinds.iter().any(|k| w.strip_prefix(k).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
    };
    let at = words.iter().rposition(|w| is_quant(w))?;
    let dynamic = at > 0 && words[at - 1] == "UD";
    Some(if dynamic { format!("UD-{}", words[at]) } else { words[at].to_owned() })
}

/// What a name with this quantisation means in a folder. Without one: the only model, else its Q4_K_M, as llama.cpp has it.
///
/// # Errors
/// [`Error::Invalid`] where there is no such model, with those that there are.
pub(super) fn choose(folder: &Path, name: &str, quant: Option<&str>) -> Result<PathBuf> {
    let all = variants(folder);
    let has = |q: &str| all.iter().find(|v| v.quant.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(q)));
    let found = match (quant, &all[..]) {
        (Some(q), _) => has(q),
        (None, [one]) => Some(one),
        (None, _) => has("Q4_K_M"),
    };
    if let Some(v) = found {
        return Ok(v.path.clone());
    }
    let plain = name.strip_suffix(&format!(":{}", quant.unwrap_or_default())).unwrap_or(name);
    let known: Vec<String> = all.iter().filter_map(|v| Some(format!("{plain}:{}", v.quant.as_ref()?))).collect();
    Err(Error::Invalid(match (known.is_empty(), quant) {
        (true, _) => format!("{plain} is on this disk, at {}, without a GGUF or safetensors", folder.display()),
        (false, Some(q)) => format!("{plain} is on this disk without {q}; there are {}", known.join(", ")),
        (false, None) => format!("{plain} is on this disk in several forms; name one of {}", known.join(", ")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        let of = |name: &str| quantisation(split(&name.to_lowercase()).0);
        for (name, want) in [
            ("Qwen3-30B-A3B-Q4_K_M", Some("Q4_K_M")),
            ("Qwen3-30B-A3B-UD-Q4_K_XL", Some("UD-Q4_K_XL")),
            ("gpt-oss-20b-mxfp4", Some("MXFP4")),
            ("olmoe-1b-7b-0924-instruct-q4_k_m", Some("Q4_K_M")),
            ("mixtral-8x7b-instruct-v0.1.Q4_K_M", Some("Q4_K_M")),
            ("model-IQ4_XS-00002-of-00003", Some("IQ4_XS")),
            ("granite-3.1-1b-a400m-instruct-f16", Some("F16")),
            ("model-BF16", Some("BF16")),
            ("Qwen3-30B-A3B", None),
            ("model", None),
        ] {
            assert_eq!(of(name).as_deref(), want, "{name}");
        }
        assert_eq!(split("a-00002-of-00003"), ("a", 2));
        assert_eq!((split("a-0002-of-00003").1, split("a").1, split("-of-").1), (1, 1, 1));
    }
}
