//! Folders: values of `config.json` and of the files beside it, headers of safetensors.

use super::{gguf::used, values};
use crate::{goldens::folder, support::rng::Rng};
use moeray::{file, model, tokenizer::Tokenizer};
use serde_json::{Map, Value as Json, json};
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// A golden's config and weights.
struct Base {
    config: Map<String, Json>,
    header: Map<String, Json>,
    data: Vec<u8>,
    weights: PathBuf,
}

fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        let folders = std::fs::read_dir(folder("")).unwrap().map(|e| e.unwrap().path());
        let mut folders: Vec<_> = folders.filter(|p| p.join("config.json").is_file()).collect();
        folders.sort();
        let base = |path: PathBuf| {
            let weights = path.join("model.safetensors");
            let bytes = std::fs::read(&weights).unwrap();
            let head = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
            Base {
                config: serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap(),
                header: serde_json::from_slice(&bytes[8..head]).unwrap(),
                data: bytes[head..].to_vec(),
                weights,
            }
        };
        folders.into_iter().map(base).collect()
    })
}

/// A folder that is used again and again, of this thread's own.
fn scratch() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::tempdir().unwrap()).path()
}

fn put(name: &str, bytes: &[u8]) {
    std::fs::write(scratch().join(name), bytes).unwrap();
}

/// The weights of a base, without copying them where the system can.
fn put_weights(base: &Base) {
    let path = scratch().join("model.safetensors");
    let _ = std::fs::remove_file(&path);
    if std::fs::hard_link(&base.weights, &path).is_err() {
        std::fs::copy(&base.weights, &path).unwrap();
    }
}

/// As Python writes it, with numbers that are none now and then.
fn text(rng: &mut Rng, value: &Json) -> Vec<u8> {
    let text = value.to_string();
    match rng.below(10) {
        0 => text.replacen("null", ["NaN", "Infinity", "-Infinity"][rng.below(3)], 1).into_bytes(),
        1 => {
            let mut bytes = text.into_bytes();
            let head = bytes.len();
            values::damaged(rng, &mut bytes, head);
            bytes
        }
        _ => text.into_bytes(),
    }
}

fn opened_and_used() {
    // An error is an answer.
    if let Ok(ckpt) = file::open(scratch()) {
        let _ = used(&ckpt);
    }
}

/// Other values in `config.json`.
pub fn config(rng: &mut Rng) -> usize {
    let base = &bases()[rng.below(bases().len())];
    let mut config = values::changed(rng, &base.config);
    if rng.below(6) == 0 {
        config = json!({"model_type": base.config["model_type"], "text_config": config});
    }
    let bytes = text(rng, &config);
    put("config.json", &bytes);
    put_weights(base);
    opened_and_used();
    if rng.below(8) == 0
        && let Ok(ckpt) = file::open(scratch())
    {
        let _ = model::to_gguf(&ckpt);
    }
    base.data.len() + bytes.len()
}

/// Other values in `generation_config.json`, `tokenizer_config.json` and the index of shards.
pub fn beside(rng: &mut Rng) -> usize {
    let base = &bases()[0];
    put("config.json", Json::Object(base.config.clone()).to_string().as_bytes());
    put_weights(base);
    let whole = json!({
        "eos_token_id": [1, 2], "bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_eos_token": true,
        "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}], "model_max_length": 1e30,
        "weight_map": {"model.norm.weight": "model.safetensors"},
    });
    let names = ["generation_config.json", "tokenizer_config.json", "model.safetensors.index.json"];
    let name = names[rng.below(3)];
    let mut value = whole;
    values::change(rng, &mut value);
    put(name, &text(rng, &value));
    if let Ok(ckpt) = file::open(scratch()) {
        let _ = (ckpt.chat_template().map(str::len), Tokenizer::from_checkpoint(&ckpt).is_ok());
    }
    std::fs::remove_file(scratch().join(name)).unwrap();
    base.data.len()
}

/// Other values in the header of a safetensors file.
pub fn header(rng: &mut Rng) -> usize {
    let base = &bases()[rng.below(bases().len())];
    let mut whole = Json::Object(base.header.clone());
    for _ in 0..1 + rng.below(2) {
        let name = base.header.keys().nth(rng.below(base.header.len())).unwrap();
        match rng.below(4) {
            0 => values::change(rng, &mut whole),
            _ if !whole.get(name).is_some_and(Json::is_object) => {}
            1 => {
                // Another shape of as many numbers.
                let shape = whole[name]["shape"].as_array().cloned().unwrap_or_default();
                let n = shape.iter().filter_map(Json::as_u64).fold(1u64, u64::wrapping_mul);
                whole[name]["shape"] = if rng.below(2) == 0 { json!([n]) } else { shape.into_iter().rev().collect() };
            }
            _ => {
                let key = ["dtype", "shape", "data_offsets"][rng.below(3)];
                whole[name][key] = match key {
                    "dtype" => json!(["F32", "F16", "BF16", "F8_E4M3", "U8", "I64", "F64", "BOOL"][rng.below(8)]),
                    _ => json!((0..rng.below(4)).map(|_| values::number(rng)).collect::<Vec<_>>()),
                };
            }
        }
    }
    let mut head = text(rng, &whole);
    head.resize(head.len().next_multiple_of(8), b' ');
    let length = if rng.below(20) == 0 { values::number(rng) as u64 } else { head.len() as u64 };
    let bytes = [&length.to_le_bytes()[..], &head, &base.data].concat();
    let _ = std::fs::remove_file(scratch().join("model.safetensors"));
    put("model.safetensors", &bytes);
    put("config.json", Json::Object(base.config.clone()).to_string().as_bytes());
    opened_and_used();
    bytes.len()
}
