//! The program trains a Hugging Face folder: the folder stays as it is, what is made is the same model in both forms, and what
//! cannot be is refused by name before the first step.

use crate::{
    cli::{moeray, put},
    goldens,
};
use moeray::{file, model, train::data::below};
use std::{collections::BTreeMap, fs, path::Path};

/// A copy of a golden's folder, tokens of random ids below `top`, and a configuration.
fn prepared(dir: &Path, golden: &str, top: u32) -> String {
    let base = dir.join("base");
    fs::create_dir(&base).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(goldens::folder(golden).join(name), base.join(name)).unwrap();
    }
    let ids: Vec<u8> = (0..600u32).flat_map(|i| (below(5, 1, i, top) as u16).to_le_bytes()).collect();
    let tokens = put(dir, "tokens.u16", &ids);
    let out = dir.join("out");
    let toml = format!(
        "base_model = {base:?}\noutput_dir = {out:?}\ndatasets = [{{ path = {tokens:?} }}]\nsequence_len = 16\nmicro_batch_size = 2\n\
         max_steps = 3\nlearning_rate = 0.01\nlog = []\nexport = [\"gguf\", \"safetensors\"]\n"
    );
    put(dir, "run.toml", toml.as_bytes())
}

/// Every file of a folder with its bytes.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let one = |e: fs::DirEntry| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap());
    fs::read_dir(folder).unwrap().map(|e| one(e.unwrap())).collect()
}

fn logits(path: &Path) -> Vec<f32> {
    let d = model::build(&file::open(path).unwrap(), &Default::default()).unwrap();
    let ids: Vec<u32> = (0..12).map(|i| i * 3 + 1).collect();
    goldens::forward(&*moeray::backend::reference::load(d.program).unwrap(), &ids, &[12])[0].f32.clone()
}

#[test]
fn the_folder_stays_and_both_forms_are_one_model() {
    for golden in ["qwen2_moe", "mixtral", "dots1"] {
        let dir = tempfile::tempdir().unwrap();
        let config = prepared(dir.path(), golden, 90);
        let before = contents(&dir.path().join("base"));
        let said = moeray(&["train", &config]);
        assert_eq!(said.code, Some(0), "{golden}: {}", said.stderr);
        assert!(before == contents(&dir.path().join("base")), "{golden}: the base was changed");
        let out = dir.path().join("out");
        let (gguf, folder) = (logits(&out.join("model.gguf")), logits(&out.join("model")));
        let far = crate::support::compare::diff(&gguf, &folder);
        assert!(far.nmse < 1e-12 && far.non_finite == 0, "{golden}: {far:?}");
        let moved = crate::support::compare::diff(&logits(&dir.path().join("base")), &folder);
        assert!(moved.nmse > 1e-4, "{golden}: it learnt nothing, {moved:?}");
        let [old, new] = ["base", "out/model"].map(|f| fs::read(dir.path().join(f).join("config.json")).unwrap());
        let [mut old, mut new] = [old, new].map(|c| serde_json::from_slice::<serde_json::Value>(&c).unwrap());
        for c in [&mut old, &mut new] {
            c.as_object_mut().unwrap().retain(|k, _| k != "dtype" && k != "torch_dtype");
        }
        assert_eq!(old, new, "{golden}");
        // Again, with fewer experts a token: the file says so.
        let said = moeray(&["train", &config, "top_k_schedule=[[0,1]]", "resume=never", "-q"]);
        assert_eq!(said.code, Some(0), "{golden}: {}", said.stderr);
        let new: serde_json::Value = serde_json::from_slice(&fs::read(out.join("model/config.json")).unwrap()).unwrap();
        assert_eq!(new["num_experts_per_tok"], 1, "{golden}");
        let far = crate::support::compare::diff(&logits(&out.join("model.gguf")), &logits(&out.join("model")));
        assert!(far.nmse < 1e-12, "{golden}: {far:?}");
    }
}

#[test]
fn impossible_runs_are_refused_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    let config = prepared(dir.path(), "qwen2_moe", 90);
    let wide = put(dir.path(), "wide.u16", &[200, 255].repeat(40));
    let empty = put(dir.path(), "empty.u16", b"");
    let text = put(dir.path(), "words.txt", b"some words");
    for (word, says) in [
        (format!("datasets.0.path={wide}"), vec!["wide.u16", "token 0", "65480"]),
        (format!("datasets.0.path={empty}"), vec!["empty.u16", "is empty"]),
        (format!("datasets.0.path={text}"), vec!["words.txt", "no tokenizer"]),
        ("sequence_len=1000000".into(), vec!["sequence_len is 1000000"]),
        ("freeze=[\"*\"]".into(), vec!["no parameter"]),
        ("lora.targets=[\"ffn_nothing*\"]".into(), vec!["lora.targets", "ffn_nothing*"]),
        ("top_k_schedule=[[0,99]]".into(), vec!["top_k_schedule", "99 of 6"]),
        ("top_k_schedule=[[0,0]]".into(), vec!["top_k_schedule", "at least 1"]),
        ("router.capacity_factor=0".into(), vec!["capacity_factor is 0"]),
        ("router.bias_update=0.001".into(), vec!["bias_update", "selection bias"]),
        ("router.jitter=1.5".into(), vec!["jitter is 1.5"]),
        ("router.aux=\"importance_load\"".into(), vec!["needs noise"]),
        ("expert_dropout=1".into(), vec!["expert_dropout is 1"]),
        ("export=[\"onnx\"]".into(), vec!["onnx"]),
    ] {
        let said = moeray(&["train", &config, &word]);
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{word}: {}", said.stderr);
        // Warnings about the folder may stand before it.
        let error = said.stderr.split("error: ").nth(1).unwrap_or_else(|| panic!("{word}: {}", said.stderr));
        assert!(says.iter().all(|w| error.contains(w)), "{word} does not say {says:?}: {error}");
        assert!(!dir.path().join("out").exists() || contents(&dir.path().join("out")).is_empty(), "{word} left files");
    }
}
