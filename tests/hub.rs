//! Models by name: caches as the tools that own them write them.

use super::cli::{at, fails};
use moeray::{
    Error,
    hub::{Place, Places},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn put(path: PathBuf, bytes: usize) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, vec![b'x'; bytes]).unwrap();
    path
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A repository in Hugging Face's cache: blobs, links to them, and a reference.
fn repository(cache: &Path, name: &str, files: &[(&str, usize)]) -> PathBuf {
    let folder = cache.join(format!("models--{}", name.replace('/', "--")));
    let snapshot = folder.join("snapshots").join(COMMIT);
    for (i, (file, bytes)) in files.iter().enumerate() {
        let blob = put(folder.join("blobs").join(format!("{i:064x}")), *bytes);
        let link = snapshot.join(file);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(&blob, &link).unwrap();
        // Without links the cache holds copies.
        #[cfg(not(unix))]
        fs::copy(&blob, &link).unwrap();
    }
    put(folder.join("refs/main"), 0);
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    snapshot
}

#[test]
fn in_the_cache_of_hugging_face() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("hub");
    let many = repository(
        &cache,
        "unsloth/Qwen3-30B-A3B-GGUF",
        &[
            ("Qwen3-30B-A3B-Q4_K_M.gguf", 5),
            ("Qwen3-30B-A3B-UD-Q2_K_XL.gguf", 3),
            ("BF16/Qwen3-30B-A3B-BF16-00001-of-00002.gguf", 7),
            ("BF16/Qwen3-30B-A3B-BF16-00002-of-00002.gguf", 8),
            ("mmproj-F16.gguf", 1),
            ("README.md", 1),
        ],
    );
    let one = repository(&cache, "ggml-org/gpt-oss-20b-GGUF", &[("gpt-oss-20b-mxfp4.gguf", 4)]);
    let tensors =
        repository(&cache, "Qwen/Qwen3-30B-A3B", &[("config.json", 2), ("a.safetensors", 3), ("b.safetensors", 4)]);
    repository(&cache, "some/dataset", &[("README.md", 2)]);
    let places = Places { hugging_face: Some(cache.clone()), ..Places::default() };
    let find = |name: &str| places.find(name).unwrap();
    assert_eq!(find("unsloth/Qwen3-30B-A3B-GGUF:q4_k_m"), Some(many.join("Qwen3-30B-A3B-Q4_K_M.gguf")));
    assert_eq!(find("unsloth/Qwen3-30B-A3B-GGUF"), find("unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M"), "llama.cpp's choice");
    assert_eq!(find("hf:unsloth/qwen3-30b-a3b-gguf:UD-Q2_K_XL"), Some(many.join("Qwen3-30B-A3B-UD-Q2_K_XL.gguf")));
    let first = many.join("BF16/Qwen3-30B-A3B-BF16-00001-of-00002.gguf");
    assert_eq!(
        find("https://huggingface.co/unsloth/Qwen3-30B-A3B-GGUF:BF16"),
        Some(first),
        "of a split one the first part"
    );
    assert_eq!(find("ggml-org/gpt-oss-20b-GGUF"), Some(one.join("gpt-oss-20b-mxfp4.gguf")), "the only one");
    assert_eq!(find("Qwen/Qwen3-30B-A3B"), Some(tensors.clone()));
    for none in ["nobody/here", "../Qwen/x", "/etc/passwd", "a/b/c", "qwen3:30b", "", "hf:", "hf:a", "some/..", "a b/c"]
    {
        assert_eq!(find(none), None, "{none:?}");
    }
    let e = places.find("unsloth/Qwen3-30B-A3B-GGUF:Q8_0").unwrap_err().to_string();
    for word in ["Q8_0", "unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M", ":BF16", ":UD-Q2_K_XL"] {
        assert!(e.contains(word), "{e}");
    }
    let e = places.find("some/dataset").unwrap_err().to_string();
    assert!(e.contains("without a GGUF or safetensors"), "{e}");
    let list: Vec<(String, u64)> = places.list().into_iter().map(|f| (f.name, f.bytes)).collect();
    let want = [
        ("Qwen/Qwen3-30B-A3B", 9),
        ("ggml-org/gpt-oss-20b-GGUF:MXFP4", 4),
        ("unsloth/Qwen3-30B-A3B-GGUF:BF16", 15),
        ("unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M", 5),
        ("unsloth/Qwen3-30B-A3B-GGUF:UD-Q2_K_XL", 3),
    ];
    assert_eq!(list, want.map(|(name, bytes)| (name.to_owned(), bytes)));
    for f in places.list() {
        assert_eq!(find(&f.name), Some(f.path.clone()), "what is listed is found: {}", f.name);
        assert_eq!(f.place, Place::HuggingFace);
    }
}

#[test]
fn a_damaged_cache_is_an_error_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().to_owned();
    let snapshot = repository(&cache, "a/b", &[("m.gguf", 1)]);
    let places = Places { hugging_face: Some(cache.clone()), ..Places::default() };
    let reference = cache.join("models--a--b/refs/main");
    for (commit, word) in [("../../../etc", "no name of a commit"), ("", "no name"), ("0000", "unfinished")] {
        fs::write(&reference, commit).unwrap();
        let e = places.find("a/b").unwrap_err();
        assert!(matches!(e, Error::Format { .. }) && e.to_string().contains(word), "{e}");
        assert!(e.to_string().contains("main"), "{e}");
    }
    assert!(places.list().is_empty(), "what cannot be read is left out");
    // Downloaded by a commit's name there is no reference, and one snapshot.
    fs::remove_file(&reference).unwrap();
    assert_eq!(places.find("a/b").unwrap(), Some(snapshot.join("m.gguf")));
}

#[test]
fn in_the_folders_of_ollama_and_lm_studio() {
    let dir = tempfile::tempdir().unwrap();
    let (ollama, studio) = (dir.path().join("ollama"), dir.path().join("studio"));
    let digest = "ab".repeat(32);
    let blob = put(ollama.join("blobs").join(format!("sha256-{digest}")), 9);
    let manifest = |path: &str, digest: &str| {
        let path = put(ollama.join("manifests").join(path), 0);
        let layers = format!(
            r#"{{"schemaVersion": 2, "layers": [
                {{"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:00", "size": 1}},
                {{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:{digest}", "size": 9}}]}}"#
        );
        fs::write(path, layers).unwrap();
    };
    manifest("registry.ollama.ai/library/qwen3/30b-a3b", &digest);
    manifest("registry.ollama.ai/library/qwen3/latest", &digest);
    manifest("registry.ollama.ai/somebody/model/7b", &digest);
    manifest("hf.co/unsloth/x-GGUF/Q4_K_M", &digest);
    manifest("registry.ollama.ai/library/gone/latest", &"cd".repeat(32));
    manifest("registry.ollama.ai/library/evil/latest", "../../../etc/passwd");
    let file = put(studio.join("lmstudio-community/OLMoE-GGUF/OLMoE-Q4_K_M.gguf"), 6);
    let places = Places { hugging_face: None, ollama: Some(ollama), lm_studio: Some(studio) };
    let find = |name: &str| places.find(name).unwrap();
    for name in ["qwen3:30b-a3b", "qwen3", "qwen3:latest", "somebody/model:7b", "unsloth/x-GGUF:Q4_K_M"] {
        assert_eq!(find(name), Some(blob.clone()), "{name}");
    }
    assert_eq!(find("lmstudio-community/OLMoE-GGUF"), Some(file.clone()));
    assert_eq!(find("lmstudio-community/OLMoE-GGUF:Q4_K_M"), Some(file));
    assert_eq!(find("qwen3:8b"), None);
    assert!(places.find("gone").unwrap_err().to_string().contains("unfinished"));
    assert!(places.find("evil").unwrap_err().to_string().contains("names no model"));
    let names: Vec<String> = places.list().into_iter().map(|f| f.name).collect();
    let want = [
        "lmstudio-community/OLMoE-GGUF:Q4_K_M",
        "qwen3:30b-a3b",
        "qwen3:latest",
        "somebody/model:7b",
        "unsloth/x-GGUF:Q4_K_M",
    ];
    assert_eq!(names, want);
}

/// The program runs a model by its name, and says what there is.
#[cfg(all(feature = "cli", feature = "demo-model"))]
#[test]
fn the_program_takes_names() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("hub");
    let snapshot = repository(&cache, "bard/verse-GGUF", &[("verse-Q4_K_M.gguf", 1)]);
    let file = snapshot.join("verse-Q4_K_M.gguf");
    fs::remove_file(&file).unwrap();
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf"), &file).unwrap();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_moeray"));
        command.args(args).env("HF_HUB_CACHE", &cache).env("OLLAMA_MODELS", dir.path());
        let out = command.stdin(std::process::Stdio::null()).output().unwrap();
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    let tail = ["-p", "ROMEO:", "-n", "3", "--temp", "0", "--backend", "cpu", "-q"];
    let (code, named, err) = run(&[&["run", "bard/verse-GGUF:Q4_K_M"], &tail[..]].concat());
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(named, run(&[&["run", &at(&snapshot, "verse-Q4_K_M.gguf")], &tail[..]].concat()).1);
    let (code, _, err) = run(&["run", "bard/verse-GGUF:Q8_0", "-p", "x"]);
    assert!(code == Some(1) && err.contains("bard/verse-GGUF:Q4_K_M"), "{err}");
    assert!(run(&["list"]).1.contains("bard/verse-GGUF:Q4_K_M"));
    let json: serde_json::Value = serde_json::from_str(&run(&["list", "--json"]).1).unwrap();
    assert_eq!(json[0]["place"], "Hugging Face");
    fails(&["run", "nobody/nothing-GGUF", "-p", "x"], &["nobody/nothing-GGUF", "moeray pull nobody/nothing-GGUF"]);
}
