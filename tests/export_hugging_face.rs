//! Models as Hugging Face folders: what is written is the model that it was, by its logits, under the names of the published
//! checkpoints; what cannot be written is refused, and nothing is left behind.

use crate::{
    export::exported,
    goldens::{folder, golden},
    support::compare::diff,
};
use moeray::{
    Error,
    file::{self, Checkpoint},
    model,
    tokenizer::{EncodeOptions, GgufVocab, Tokenizer},
};
use serde_json::Value as Json;
use std::{fs, path::Path};

fn logits(ckpt: &Checkpoint, ids: &[u32]) -> Vec<f32> {
    let d = model::build(ckpt, &Default::default()).unwrap();
    let loaded = moeray::backend::reference::load(d.program).unwrap();
    crate::goldens::forward(&*loaded, ids, &[ids.len()])[0].f32.clone()
}

fn config(folder: &Path) -> Json {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// Families that are written as their folders have them.
const KEPT: &[&str] =
    &["llama", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "dots1", "glm4_moe", "minimax_m2", "ernie4_5_moe"];

#[test]
fn a_model_goes_to_gguf_and_back() {
    let dir = tempfile::tempdir().unwrap();
    for name in KEPT {
        let (source, gguf, ids) = (file::open(&folder(name)).unwrap(), exported(name), golden(name).ids);
        let out = dir.path().join(name);
        model::write_hugging_face(&out, &gguf, Some(&source), None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let back = file::open(&out).unwrap();
        assert!(logits(&source, &ids) == logits(&back, &ids), "{name}: other logits");
        // The names of the checkpoint, each with its shape.
        let shapes = |c: &Checkpoint| -> std::collections::BTreeMap<String, Vec<usize>> {
            c.infos().iter().map(|t| (t.name.clone(), t.shape.clone())).collect()
        };
        let (old, new) = (shapes(&source), shapes(&back));
        if old.keys().any(|n| n.contains(".experts.0.")) || name == &"llama" {
            assert_eq!(old, new, "{name}");
        }
        assert_eq!(config(&out)["model_type"], config(&folder(name))["model_type"]);
        assert_eq!(config(&out)["dtype"].as_str().unwrap_or("float32"), "float32");
    }
}

#[test]
fn a_gguf_gets_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe"] {
        let (gguf, ids) = (exported(name), golden(name).ids);
        let out = dir.path().join(name);
        model::write_hugging_face(&out, &gguf, None, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let far = diff(&logits(&file::open(&out).unwrap(), &ids), &logits(&gguf, &ids));
        assert!(far.nmse < 1e-12 && far.non_finite == 0, "{name}: {far:?}");
        // The source's own configuration says the same of every key that both have and that makes the model.
        let (made, source) = (config(&out), config(&folder(name)));
        for key in [
            "model_type",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
            "num_local_experts",
            "num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "norm_topk_prob",
            "rms_norm_eps",
            "tie_word_embeddings",
            "mlp_only_layers",
        ] {
            let same = match (&made[key], &source[key]) {
                (Json::Null, _) | (_, Json::Null) => true,
                (a, b) => a == b || (a.as_f64().is_some() && a.as_f64() == b.as_f64()),
            };
            assert!(same, "{name}: {key} is {} after {}", made[key], source[key]);
        }
    }
}

#[test]
fn quantised_weights_become_floats() {
    let dir = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bard-q4_k_m.gguf");
    if !demo.is_file() {
        return;
    }
    let gguf = file::open(&demo).unwrap();
    let out = dir.path().join("bard");
    model::write_hugging_face(&out, &gguf, None, None).unwrap();
    let ids: Vec<u32> = (0..6).map(|i| i * 91 + 3).collect();
    let far = diff(&logits(&file::open(&out).unwrap(), &ids), &logits(&gguf, &ids));
    assert!(far.nmse < 1e-10, "{far:?}");
    // All files may be read by the same people.
    let rights = |name: &str| fs::metadata(out.join(name)).unwrap().permissions();
    assert_eq!(rights("model.safetensors"), rights("config.json"));
    // The tokenizer is the same, with its special tokens.
    GgufVocab::from_metadata(gguf.meta()).unwrap().to_json().unwrap();
    let [ours, theirs] = [&file::open(&out).unwrap(), &gguf].map(|c| Tokenizer::from_checkpoint(c).unwrap());
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for text in [&*text, "ROMEO:<|endoftext|>\n\n  But  soft!", ""] {
        for parse_special in [false, true] {
            let options = EncodeOptions { add_bos: true, parse_special };
            assert_eq!(ours.encode(text, options).unwrap(), theirs.encode(text, options).unwrap());
        }
    }
    assert_eq!((ours.eos(), ours.bos()), (theirs.eos(), theirs.bos()));
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["gpt_oss", "deepseek_v3", "qwen3_next", "gemma4"] {
        let (source, gguf) = (file::open(&folder(name)).unwrap(), exported(name));
        let out = dir.path().join(name);
        match model::write_hugging_face(&out, &gguf, Some(&source), None) {
            Ok(()) => panic!("{name} is written: it belongs among the others"),
            Err(Error::Unsupported(e)) => {
                assert!(e.contains("safetensors") || e.contains("config.json"), "{name}: {e}")
            }
            Err(e) => panic!("{name}: {e}"),
        }
    }
    let gguf = exported("dots1");
    let e = model::write_hugging_face(&dir.path().join("x"), &gguf, None, None).unwrap_err().to_string();
    assert!(e.contains("config.json") && e.contains("qwen3_moe"), "{e}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    // A folder that is there stays until the new one is whole.
    let out = dir.path().join("kept");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("note"), "mine").unwrap();
    model::write_hugging_face(&out, &gguf, None, None).unwrap_err();
    assert!(out.join("note").is_file());
}
