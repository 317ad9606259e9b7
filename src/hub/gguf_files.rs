//! Which of a folder's files a name means.

use super::entries;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// A model in a folder or repository: a GGUF, all parts of a split one together, or the folder's safetensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Variant {
    /// Its quantisation as its file is called; none for safetensors, and for a file whose name says none.
    pub quant: Option<String>,
    /// What to open.
    pub path: PathBuf,
    /// Its files; of safetensors also those that describe them.
    pub files: Vec<PathBuf>,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// The models of a folder, also in folders within, as repositories have one for each quantisation. What goes with a model and is
/// none (`mmproj`, importance matrices) is left out.
pub(super) fn variants(folder: &Path) -> Vec<Variant> {
    let mut all = variants_of(files(folder, "", 2));
    for v in &mut all {
        v.path = if v.path.as_os_str().is_empty() { folder.to_owned() } else { folder.join(&v.path) };
        v.files.iter_mut().for_each(|f| *f = folder.join(&f));
    }
    all
}

/// The same of a list of files with their bytes. Paths are relative, that of the folder itself is empty.
pub(super) fn variants_of(files: Vec<(String, u64)>) -> Vec<Variant> {
    let mut all: Vec<Variant> = vec![];
    let tensors = safetensors(&files);
    for (name, bytes) in files {
        let path = PathBuf::from(&name);
        let lower = name.to_lowercase();
        let lower = lower.rsplit('/').next().unwrap_or_default();
        let Some(stem) = lower.strip_suffix(".gguf").filter(|s| !s.contains("mmproj") && !s.contains("imatrix")) else {
            continue;
        };
        let (stem, part) = split(stem);
        let quant = quantisation(stem);
        match all.iter_mut().find(|v| part > 1 && v.path.parent() == path.parent() && v.quant == quant) {
            Some(first) => {
                first.bytes += bytes;
                first.files.push(path);
            }
            // A later part whose first is missing is no model that could be opened.
            None if part > 1 => {}
            None => all.push(Variant { quant, files: vec![path.clone()], path, bytes }),
        }
    }
    all.extend(tensors);
    all
}

/// The safetensors of a folder with what describes them: configuration, tokenizer, templates.
fn safetensors(files: &[(String, u64)]) -> Option<Variant> {
    let inside = || files.iter().filter(|(name, _)| !name.contains('/'));
    let is = |name: &str, end: &str| name.to_lowercase().ends_with(end);
    // Some repositories have the same weights once more, in the form of another program.
    let sharded = inside().any(|(n, _)| n.starts_with("model") && is(n, ".safetensors"));
    let is_tensors = |n: &str| is(n, ".safetensors") && !(sharded && n.starts_with("consolidated"));
    if !inside().any(|(n, bytes)| is_tensors(n) && *bytes > 0) || !inside().any(|(n, _)| n == "config.json") {
        return None;
    }
    let describes = |n: &str| [".json", ".jinja", ".model", "merges.txt"].iter().any(|end| is(n, end));
    let chosen: Vec<_> = inside().filter(|(n, _)| is_tensors(n) || describes(n)).collect();
    Some(Variant {
        quant: None,
        path: PathBuf::new(),
        files: chosen.iter().map(|(n, _)| PathBuf::from(n)).collect(),
        bytes: chosen.iter().map(|(_, bytes)| bytes).sum(),
    })
}

fn files(folder: &Path, before: &str, depth: usize) -> Vec<(String, u64)> {
    let within = |(name, path): (String, PathBuf)| {
        if !path.is_dir() {
            let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
            vec![(format!("{before}{name}"), bytes)]
        } else if depth > 1 {
            files(&path, &format!("{before}{name}/"), depth - 1)
        } else {
            vec![]
        }
    };
    entries(folder).into_iter().flat_map(within).collect()
}

/// The name without `-00002-of-00003`, and the part's number; 1 for a file that is whole.
pub(super) fn split(stem: &str) -> (&str, usize) {
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

/// What a name with this quantisation means in a folder.
///
/// # Errors
/// As [`pick`].
pub(super) fn choose(folder: &Path, name: &str, quant: Option<&str>) -> Result<PathBuf> {
    let plain = name.strip_suffix(&format!(":{}", quant.unwrap_or_default())).unwrap_or(name);
    let all = variants(folder);
    pick(&all, plain, quant, &format!("on this disk, at {}", folder.display())).map(|v| v.path.clone())
}

/// What a quantisation means among the models of the repository `plain`, which is in this `place`. Without one: the only model, else
/// its Q4_K_M, as llama.cpp has it.
///
/// # Errors
/// [`Error::Invalid`] where there is no such model, with those that there are.
pub(super) fn pick<'a>(all: &'a [Variant], plain: &str, quant: Option<&str>, place: &str) -> Result<&'a Variant> {
    let has = |q: &str| all.iter().find(|v| v.quant.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(q)));
    let found = match (quant, all) {
        (Some(q), _) => has(q),
        (None, [one]) => Some(one),
        (None, _) => has("Q4_K_M"),
    };
    let known: Vec<String> = all.iter().filter_map(|v| Some(format!("{plain}:{}", v.quant.as_ref()?))).collect();
    found.ok_or_else(|| {
        Error::Invalid(match (known.is_empty(), quant) {
            (true, Some(q)) if !all.is_empty() => format!("{plain} is {place}, without a GGUF of {q}"),
            (true, _) => format!("{plain} is {place}, without a GGUF or safetensors"),
            (false, Some(q)) => format!("{plain} is {place}, without {q}; there are {}", known.join(", ")),
            (false, None) => format!("{plain} is {place}, in several forms; name one of {}", known.join(", ")),
        })
    })
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
