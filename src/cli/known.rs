//! What people hand to the program in place of a language model: said by name, with the way to what they want.

use super::failure::{Failure, Outcome};
use crate::file::Checkpoint;
use std::path::Path;

/// Models of other kinds by their architecture in GGUF (llama.cpp, stable-diffusion.cpp, ComfyUI-GGUF) or `model_type`.
const OTHER_KINDS: &[(&str, &[&str])] = &[
    (
        "an embedding model: it makes vectors of texts, and writes none",
        &[
            "bert",
            "nomic-bert",
            "nomic-bert-moe",
            "neo-bert",
            "jina-bert-v2",
            "jina-bert-v3",
            "modern-bert",
            "eurobert",
            "gte",
            "roberta",
            "xlm-roberta",
            "mpnet",
            "distilbert",
            "albert",
            "electra",
            "deberta",
            "deberta-v2",
            "nomic_bert",
            "modernbert",
            "gemma-embedding",
            "t5encoder",
        ],
    ),
    (
        "an image or video model",
        &[
            "flux",
            "flux2",
            "sd1",
            "sdxl",
            "sd3",
            "qwen_image",
            "wan",
            "hunyuan_video",
            "hyvid",
            "lumina2",
            "aura",
            "ltxv",
            "ltx",
            "cosmos",
            "hidream",
            "z_image",
            "chroma",
            "pig",
            "omnigen2",
            "stable-diffusion",
            "vae",
        ],
    ),
    (
        "an audio model",
        &[
            "whisper",
            "wavtokenizer-dec",
            "outetts",
            "parler_tts",
            "kokoro",
            "dia",
            "chatterbox",
            "encodec",
            "wav2vec2",
            "hubert",
            "seamless_m4t",
            "speecht5",
            "musicgen",
            "csm",
        ],
    ),
    (
        "the part of a model that sees or hears, not the one that writes",
        &["clip", "mmproj", "clip_vision_model", "siglip", "siglip2", "vit", "dinov2", "blip"],
    ),
];

/// Says what is wrong with a path at which no model can lie.
pub fn path(path: &Path) -> Outcome {
    if path.is_dir() {
        return folder(path);
    }
    if path.exists() {
        return Ok(());
    }
    let Some(text) = path.to_str() else { return Ok(()) };
    let text = text.trim();
    let fetch = |name: &str| match cfg!(feature = "pull") {
        true => format!("moeray pull {name} downloads it"),
        false => {
            let repo = name.split(':').next().unwrap_or(name);
            format!("download it first, for example: hf download {repo} --include '*Q4_K_M*.gguf' --local-dir .")
        }
    };
    if text.starts_with("http://") || text.starts_with("https://") || text.starts_with("hf:") {
        let repo = text.split("huggingface.co/").nth(1).or(text.strip_prefix("hf://").or(text.strip_prefix("hf:")));
        let repo: Option<String> = repo.map(|r| r.splitn(3, '/').take(2).collect::<Vec<_>>().join("/"));
        let how = repo.map_or(format!("download it first, for example: curl -L -O {text}"), |r| fetch(&r));
        return Err(Failure::new(format!("{text} is an address, and nothing is downloaded unasked")).hint(how));
    }
    let parts: Vec<&str> = text.split('/').collect();
    let plain = |p: &&str| !p.is_empty() && p.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c));
    let is_file_name = [".gguf", ".safetensors", ".bin", ".json"].iter().any(|e| text.to_lowercase().ends_with(e));
    if let [owner, name] = parts[..]
        && parts.iter().all(|p| plain(p) && !matches!(*p, "." | ".."))
        && !is_file_name
        && !Path::new(owner).exists()
    {
        let repo = format!("{owner}/{name}");
        let what = format!(
            "there is no file {text}; it looks like a repository of huggingface.co, is not in a cache of this machine, and nothing is downloaded unasked"
        );
        return Err(Failure::new(what).hint(fetch(&repo)));
    }
    if let [name] = parts[..]
        && let Some((model, _)) = name.split_once(':').filter(|(m, tag)| plain(m) && plain(tag) && m.len() > 1)
    {
        let what = format!(
            "there is no file {name}; it looks like one of Ollama's names, and it is not in Ollama's folder here"
        );
        return Err(Failure::new(what).hint(format!(
            "where Ollama has it, `ollama show {model} --modelfile` says after FROM which file it is: Moeray runs that file"
        )));
    }
    Err(missing(path, text))
}

/// A path that names nothing: what is near it.
fn missing(path: &Path, text: &str) -> Failure {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fail = Failure::new(format!("there is no file or folder {text}"));
    let Ok(entries) = std::fs::read_dir(folder) else {
        return fail.hint(format!("there is no folder {} either", folder.display()));
    };
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    let wanted = path.file_name().map_or(String::new(), |n| n.to_string_lossy().to_lowercase());
    let near = names
        .iter()
        .filter(|n| distance(&n.to_lowercase(), &wanted) <= 2 + wanted.len() / 5)
        .min_by_key(|n| distance(&n.to_lowercase(), &wanted));
    if let Some(near) = near {
        return fail.hint(format!("did you mean {}?", folder.join(near).display()));
    }
    let models: Vec<&str> =
        names.iter().filter(|n| n.to_lowercase().ends_with(".gguf")).map(String::as_str).take(4).collect();
    match models.is_empty() {
        true => fail.hint("name a .gguf file or a folder with config.json and *.safetensors"),
        false => fail.hint(format!("in that folder there are {}", models.join(", "))),
    }
}

/// Edits that make one name of the other.
pub fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let edited = (corner + usize::from(x != *y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], edited);
        }
    }
    row[b.len()]
}

/// Says what a folder holds that is no language model's.
fn folder(path: &Path) -> Outcome {
    let has = |name: &str| path.join(name).is_file();
    let name = path.display();
    if has("model_index.json") {
        return Err(Failure::new(format!("{name} is an image model (a folder of diffusers, with model_index.json)"))
            .hint("Moeray runs language models; its text encoder is no chat model either"));
    }
    if has("adapter_config.json") && !has("config.json") {
        return Err(adapter(&name.to_string()));
    }
    if has("modules.json") && has("config_sentence_transformers.json") {
        return Err(other(&name.to_string(), OTHER_KINDS[0].0));
    }
    Ok(())
}

fn adapter(name: &str) -> Failure {
    Failure::new(format!("{name} is a LoRA adapter: it changes another model, and is none itself"))
        .hint("name its base model, and the adapter behind it: moeray run BASE --lora ADAPTER")
}

fn other(name: &str, what: &str) -> Failure {
    let hint = if what.starts_with("the part") {
        "give the file of the text model, which lies beside it"
    } else {
        "Moeray runs language models: those that write text"
    };
    Failure::new(format!("{name} is {what}")).hint(hint)
}

/// Says what an open file is where it is no language model.
pub fn model(path: &Path, checkpoint: &Checkpoint) -> Outcome {
    let name = path.display().to_string();
    let meta = checkpoint.meta();
    match meta.str("general.type") {
        Some("adapter") => return Err(adapter(&name)),
        Some("mmproj") => return Err(other(&name, OTHER_KINDS[3].0)),
        Some("imatrix") => {
            return Err(Failure::new(format!("{name} is an importance matrix for quantising, and no model")));
        }
        Some("vocab") => return Err(Failure::new(format!("{name} has a vocabulary alone, and no weights"))),
        _ => {}
    }
    let config = |key: &str| checkpoint.config().and_then(|c| c.get(key)).and_then(serde_json::Value::as_str);
    let kind = meta.str("general.architecture").or_else(|| config("model_type"));
    let kind = kind.unwrap_or_default().to_lowercase();
    match OTHER_KINDS.iter().find(|(_, kinds)| kinds.contains(&kind.as_str())) {
        Some((what, _)) => Err(other(&format!("{name} ({kind})"), what)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distances_of_names() {
        assert_eq!(distance("model.gguf", "model.gguf"), 0);
        assert_eq!(distance("model.gguf", "modle.ggu"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
