//! Bad input of a run: configurations, data, models and folders that no run can be made of are refused by name before the first
//! step, and leave nothing behind.

use super::{
    bigram::Bigram,
    model::{DEMO, config},
    trainer,
};
use moeray::{
    CancelToken,
    train::{Trainer, config::TrainConfig},
};
use std::{fs, path::Path};

/// A run of the tiny model, as far as it can be opened.
fn open(dir: &Path, words: &[String]) -> Result<Trainer, String> {
    let path = dir.join("run.toml");
    TrainConfig::read(&path, words).and_then(Trainer::open).map_err(|e| e.to_string())
}

/// Every pair of words and of what must be said to them.
fn refused(dir: &Path, table: &[(&str, &[&str])]) {
    for (words, says) in table {
        let words: Vec<String> = words.split(" ;; ").map(|w| w.replace("DIR", &dir.display().to_string())).collect();
        let e = match open(dir, &words) {
            Ok(_) => panic!("{words:?} was accepted"),
            Err(e) => e,
        };
        assert!(says.iter().all(|s| e.contains(s)), "{words:?} does not say {says:?}: {e}");
        assert!(e.len() < 700, "{words:?}: {e}");
        assert!(!dir.join("out").exists(), "{words:?} left a folder");
    }
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), "log = []\n");
    dir
}

#[test]
fn configurations() {
    let dir = folder();
    let deep = "a.".repeat(100_000) + "b=1";
    refused(
        dir.path(),
        &[
            ("learning_rate=nan", &["learning_rate is NaN"]),
            ("output_dir=", &["output_dir: a path is empty"]),
            ("tokenizer=", &["tokenizer: a path is empty"]),
            ("datasets.0.path=", &["datasets: a path is empty"]),
            ("test_datasets=[{path=\"\"}]", &["test_datasets: a path is empty"]),
            ("threads=100000", &["threads is 100000", "1024"]),
            ("threads=-1", &["threads=-1"]),
            ("device=3", &["device = \"3\"", "backend = \"wgpu\""]),
            ("device=[1]", &["device", "moeray devices"]),
            ("resume=7", &["resume is \"auto\", \"never\""]),
            ("resume=DIR/nothing", &["resume", "is no checkpoint", "trainer.json", "never"]),
            ("resume=DIR/text.txt", &["resume", "is no checkpoint"]),
            // Numbers of what is not chosen, too.
            ("momentum=nan", &["momentum is NaN"]),
            ("optimizer=sgd ;; adam_beta1=1", &["adam_beta1 is 1"]),
            ("adam_epsilon=1e-300", &["adam_epsilon", "single precision"]),
            ("wsd_decay_ratio=2", &["wsd_decay_ratio is 2"]),
            ("weight_decay=inf", &["weight_decay is inf"]),
            // Keys that are none.
            ("=5", &["no key"]),
            ("a..b=1", &["no key"]),
            (&deep, &["no key"]),
            ("seed=1\nthreads=2", &["seed=1"]),
            // Shapes.
            ("architecture.head_dim=7", &["heads have 7 columns"]),
            ("architecture.rope_theta=0", &["rope_theta is 0"]),
            ("architecture.rope_theta=nan", &["rope_theta is NaN"]),
            ("architecture.rope_theta=1e300", &["rope_theta is inf"]),
            ("architecture.rms_norm_eps=-1", &["rms_norm_eps is -1"]),
            ("architecture.rms_norm_eps=nan", &["rms_norm_eps is NaN"]),
            ("architecture.initializer_range=1e38", &["initializer_range is"]),
            ("architecture.num_hidden_layers=2000", &["num_hidden_layers is 2000", "1024"]),
            ("architecture.shared_expert_intermediate_size=99999999", &["shared_expert_intermediate_size is 99999999"]),
            ("architecture.vocab_size=5", &["vocab_size is 5", "4096 tokens"]),
            ("architecture.vocab_size=16777216 ;; architecture.hidden_size=65536", &["this machine has"]),
            ("architecture.model_type=gpt2 ;; export=[]", &["model_type \"gpt2\" is none of"]),
            (
                "architecture.model_type=mini_mixtral ;; architecture.router_hidden=65536 ;; architecture.num_experts=4096 ;; \
                 architecture.num_hidden_layers=1024 ;; architecture.shared_expert_intermediate_size=0",
                &["this machine has"],
            ),
            ("top_k_schedule=[[0,5]]", &["top_k_schedule", "5 of 4"]),
            ("lora.r=2", &["architecture", "lora"]),
            ("router.groups=2 ;; router.aux=none", &["mixtral"]),
        ],
    );
    let never = open(dir.path(), &["resume=false".into(), "device=".into()]).map(|_| ());
    assert!(never.unwrap_err().contains("device = \"\""));
    assert_eq!(open(dir.path(), &["resume=false".into()]).unwrap().config().resume, "never");
    // No configuration is so large; a device has no end.
    for path in ["/dev/zero", DEMO] {
        if Path::new(path).exists() {
            let e = TrainConfig::read(path.as_ref(), &[]).unwrap_err().to_string();
            assert!(e.contains("4 MiB") || e.contains("UTF-8"), "{path}: {e}");
        }
    }
}

#[test]
fn data() {
    let dir = folder();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("empty.txt", b"");
    put("latin.txt", b"\xff\xfe\0a");
    put("odd.bin", &[1; 7]);
    put("range.bin", &[0xff; 4000]);
    put("one.u16", &[1, 0]);
    put("broken.jsonl", b"{\"text\": \n");
    put("null.jsonl", b"{\"text\": null}\n");
    put("list.jsonl", b"[1, 2]\n");
    put("blank.jsonl", b"\n\n  \n");
    put("keys.jsonl", b"{\"txet\": \"a\"}\n");
    put("talk.jsonl", b"{\"messages\": [1]}\n");
    put("deep.jsonl", "[".repeat(100_000).as_bytes());
    put("long.jsonl", format!("{{\"prompt\":\"a\",\"completion\":\"{}\"}}\n", "word ".repeat(200)).as_bytes());
    put("short.txt", b"the king is");
    put("what.dat", b"words");
    put("four.txt", &b"word".repeat(50));
    fs::create_dir(dir.path().join("hollow")).unwrap();
    let at = |name: &str| format!("val_set_size=0 ;; datasets.0.path=DIR/{name}");
    let table: &[(&str, &[&str])] = &[
        ("nothing.txt", &["nothing.txt"]),
        ("empty.txt", &["empty.txt", "is empty"]),
        ("latin.txt", &["latin.txt", "UTF-8", "offset 0"]),
        ("odd.bin", &["odd.bin", "7 bytes", "16-bit"]),
        ("range.bin", &["range.bin", "token 0", "65535", "4095"]),
        ("one.u16", &["one.u16", "one token"]),
        ("broken.jsonl", &["broken.jsonl, line 1", "JSON"]),
        ("null.jsonl", &["null.jsonl, line 1", "`text` is null"]),
        ("list.jsonl", &["list.jsonl, line 1", "is a list"]),
        ("blank.jsonl", &["blank.jsonl", "no line with a sample"]),
        ("keys.jsonl", &["keys.jsonl, line 1", "txet"]),
        ("talk.jsonl", &["talk.jsonl, line 1"]),
        ("deep.jsonl", &["deep.jsonl, line 1", "JSON"]),
        ("long.jsonl", &["long.jsonl, line 1", "tokens do not fit", "excess_length_strategy"]),
        ("what.dat", &["what.dat", "ds_type"]),
        ("hollow", &["hollow", "folder without data"]),
        ("four.txt ;; datasets.0.ds_type=u32", &["four.txt", "another width"]),
        ("text.txt ;; datasets.0.ds_type=parquet", &["parquet"]),
        ("text.txt ;; test_datasets=[{path=\"/no/such\"}]", &["/no/such"]),
        ("short.txt ;; random_windows=true", &["random_windows need more than sequence_len = 24"]),
        ("text.txt ;; val_set_size=0.000001", &["val_set_size = 0.000001", "test_datasets"]),
    ];
    let table: Vec<(String, &[&str])> = table.iter().map(|(name, says)| (at(name), *says)).collect();
    refused(dir.path(), &table.iter().map(|(w, s)| (w.as_str(), *s)).collect::<Vec<_>>());
    // A mark before the text is none of it.
    put("marked.txt", format!("\u{feff}{}", fs::read_to_string(dir.path().join("text.txt")).unwrap()).as_bytes());
    let tokens = |name: &str| {
        let words = [format!("datasets.0.path={}", dir.path().join(name).display()), "val_set_size=0".into()];
        open(dir.path(), &words).unwrap().feed().corpus().len()
    };
    assert_eq!(tokens("marked.txt"), tokens("text.txt"));
}

/// Folders that lead to themselves count once, and pipes are not waited for.
#[cfg(unix)]
#[test]
fn links_and_pipes() {
    let dir = folder();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::copy(dir.path().join("text.txt"), data.join("a.txt")).unwrap();
    let texts = || {
        let words = [format!("datasets.0.path={}", data.display())];
        open(dir.path(), &words).unwrap().feed().corpus().len()
    };
    let before = texts();
    for name in ["round", "again", "further"] {
        std::os::unix::fs::symlink(&data, data.join(name)).unwrap();
    }
    assert_eq!(texts(), before);
    let pipe = dir.path().join("pipe.txt");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if made.is_ok_and(|s| s.success()) {
        refused(
            dir.path(),
            &[
                ("datasets.0.path=DIR/pipe.txt", &["pipe.txt", "is no file"]),
                ("tokenizer=DIR/pipe.txt", &["pipe.txt", "neither a file nor a folder"]),
            ],
        );
    }
}

/// What is read is not written over, and what cannot be written is said before the first step.
#[test]
fn places() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::copy(DEMO, out.join("model.gguf")).unwrap();
    fs::copy(dir.path().join("text.txt"), out.join("log.jsonl")).unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::copy(dir.path().join("text.txt"), data.join("text.txt")).unwrap();
    let said = |words: &[String]| {
        let made = TrainConfig::read(path.as_ref(), words).and_then(Trainer::open);
        made.map(|_| ()).unwrap_err().to_string()
    };
    let word = |key: &str, p: &Path| format!("{key}={}", p.display());
    let e = said(&[word("tokenizer", &out.join("model.gguf"))]);
    assert!(e.contains("model.gguf") && e.contains("tokenizer") && e.contains("output_dir"), "{e}");
    let e = said(&[word("datasets.0.path", &out.join("../out/log.jsonl"))]);
    assert!(e.contains("log.jsonl") && e.contains("datasets"), "{e}");
    let e = said(&[word("datasets.0.path", &data), word("output_dir", &data.join("a/b"))]);
    assert!(e.contains("output_dir") && e.contains("lies in"), "{e}");
    fs::remove_file(out.join("model.gguf")).unwrap();
    fs::create_dir(out.join("model.gguf")).unwrap();
    let e = said(&[]);
    assert!(e.contains("model.gguf is a folder"), "{e}");
    fs::remove_dir(out.join("model.gguf")).unwrap();
    fs::write(out.join("tensorboard"), "x").unwrap();
    let e = said(&["export=[]".into()]);
    assert!(e.contains("tensorboard is no folder"), "{e}");
}

/// An evaluation that memory has no room for would end the program behind the last step.
#[test]
fn evaluations_without_room() {
    let dir = folder();
    refused(dir.path(), &[("eval_batch_size=699050", &["this machine has", "smaller eval_batch_size"])]);
    open(dir.path(), &["eval_batch_size=699050".into(), "val_set_size=0".into()]).unwrap();
}

fn state(dir: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let path = dir.join("checkpoint-000060/trainer.json");
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(&path, json.to_string()).unwrap();
}

/// Checkpoints whose state cannot be, and none that is whole: a run that began anew would replace them.
#[test]
fn checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let again = || {
        let made =
            Trainer::new(Bigram::new(trainer::VOCAB, 64), trainer::config(dir.path(), ""), trainer::corpus(40), None);
        made.map(|t| t.state().step).map_err(|e| e.to_string())
    };
    trainer::finish(trainer::trainer(trainer::config(dir.path(), "")));
    assert_eq!(again(), Ok(60));
    let whole = fs::read(dir.path().join("checkpoint-000060/trainer.json")).unwrap();
    type Change = fn(&mut serde_json::Value);
    let changes: &[(&str, Change, &str)] = &[
        ("a place behind the data", |j| j["state"]["cursor"]["sequence"] = 1_000_000.into(), "sequence 1000000"),
        ("more skipped than taken", |j| j["state"]["skipped"] = 61.into(), "cannot be"),
        ("an optimizer ahead", |j| j["state"]["optimizer_steps"][0][1][0] = u64::MAX.into(), "cannot be"),
        ("no end", |j| j["state"]["step"] = u64::MAX.into(), "cannot be"),
        ("no files", |j| j["files"] = serde_json::json!({}), "model.safetensors"),
        ("another version", |j| j["version"] = 9.into(), "version 9"),
        ("another type", |j| j["state"]["step"] = "many".into(), "no trainer's state"),
    ];
    for (what, change, says) in changes {
        state(dir.path(), change);
        let e = again().unwrap_err();
        assert!(e.contains(says), "{what}: {e}");
        assert!(dir.path().join("checkpoint-000060/model.safetensors").exists(), "{what}: it is gone");
        fs::write(dir.path().join("checkpoint-000060/trainer.json"), &whole).unwrap();
    }
    // The huge epoch of a place that an epoch has is as good as another.
    state(dir.path(), |j| j["state"]["cursor"] = serde_json::json!({ "epoch": u64::MAX, "sequence": 0 }));
    assert_eq!(again(), Ok(60));
    let model = dir.path().join("checkpoint-000060/model.safetensors");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    let e = again().unwrap_err();
    assert!(e.contains("no checkpoint") && e.contains("resume = \"never\""), "{e}");
    assert!(model.exists());
}

/// Two runs in one folder would write the same files.
#[cfg(unix)]
#[test]
fn two_runs_in_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = trainer::trainer(trainer::config(dir.path(), ""));
    first.open_logs().unwrap();
    let mut second = trainer::trainer(trainer::config(dir.path(), ""));
    let e = second.open_logs().unwrap_err().to_string();
    assert!(e.contains("another run") && e.contains("output_dir"), "{e}");
    drop(first);
    second.open_logs().unwrap();
}

/// The data of a run may not be another under its name; a longer or shorter one never could.
#[test]
fn other_data() {
    let dir = tempfile::tempdir().unwrap();
    let open = |corpus| {
        let config = trainer::config(dir.path(), "");
        Trainer::new(Bigram::new(trainer::VOCAB, 64), config, corpus, None).map_err(|e| e.to_string())
    };
    let corpus = |last: u32| {
        let mut c = moeray::train::data::Corpus::new(trainer::VOCAB, 33);
        for i in 0..40 {
            c.add_text("text", vec![1, 2, 3, 4, if i == 39 { last } else { 5 }]).unwrap();
        }
        c
    };
    open(corpus(5)).unwrap().run(&CancelToken::new(), &mut |_| {}).unwrap();
    assert_eq!(open(corpus(5)).unwrap().state().step, 60);
    let e = open(corpus(6)).map(|_| ()).unwrap_err();
    assert!(e.contains("checksum of the data") && e.contains("never"), "{e}");
}

/// A model file that became another one under its name is no base to go on from.
#[test]
fn another_base() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let words = ["export=[\"gguf\"]", "max_steps=1", "warmup_steps=0", "log=[]"].map(String::from);
    let run = |words: &[String]| {
        let mut t = TrainConfig::read(path.as_ref(), words).and_then(Trainer::open).map_err(|e| e.to_string())?;
        t.run(&CancelToken::new(), &mut |_| {}).map_err(|e| e.to_string())?;
        t.export().map_err(|e| e.to_string())
    };
    run(&words).unwrap();
    let base = dir.path().join("base.gguf");
    fs::rename(dir.path().join("out/model.gguf"), &base).unwrap();
    fs::remove_dir_all(dir.path().join("out")).unwrap();
    let toml = fs::read_to_string(&path).unwrap();
    let toml = toml.split("[architecture]").next().unwrap().replace("tokenizer =", "base_model =");
    fs::write(&path, toml).unwrap();
    let lora = |more: &str| {
        let base = format!("base_model={}", base.display());
        [&words[..], &[base, "lora={r=2}".into(), more.into()]].concat()
    };
    run(&lora("seed=1")).unwrap();
    let mut bytes = fs::read(&base).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&base, bytes).unwrap();
    let e = run(&lora("seed=1")).unwrap_err();
    assert!(e.contains("checksum of the model"), "{e}");
}

/// Weights that are no numbers any more are not written: neither in the middle nor behind the last step.
#[test]
fn poisoned_weights() {
    for (more, good) in [("save_steps = 1\n", 0), ("", 0)] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = trainer::config(dir.path(), more);
        (config.learning_rate, config.max_steps, config.warmup_steps) = (1e300, 1, 0);
        let mut t = Trainer::new(Bigram::new(trainer::VOCAB, 64), config, trainer::corpus(40), None).unwrap();
        let e = t.run(&CancelToken::new(), &mut |_| {}).unwrap_err().to_string();
        assert!(e.contains("after step 1") && e.contains("learning_rate"), "{more:?}: {e}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), good, "{more:?} left something");
    }
}

/// The verbs beside `train`: what they read stays, with `--force` too, and errors name their options.
#[test]
fn verbs() {
    use crate::cli::fails;
    let dir = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (base, text, adapter) = (at("base.gguf"), at("text.txt"), at("a.gguf"));
    fs::copy(DEMO, &base).unwrap();
    fs::write(at("empty.txt"), "").unwrap();
    let tune = |words: &[&str], says: &[&str]| {
        let usual = ["finetune", "-m", &base, "-f", &text, "--steps", "1", "-q"];
        fails(&[&usual[..], words].concat(), says);
    };
    tune(&["-o", &base, "--force"], &["base.gguf is what is read"]);
    tune(&["-o", &text, "--force"], &["text.txt is what is read"]);
    tune(&["-o", &at("none/a.gguf")], &["-o", "there is no folder"]);
    tune(&["-o", &adapter, "--lora-targets", "dense"], &["\"dense\"", "--lora-targets"]);
    tune(&["-o", &adapter, "--lora-r", "0"], &["r is 0", "--lora-r"]);
    tune(&["-o", &adapter, "--lr", "nan"], &["learning_rate is NaN", "--learning-rate"]);
    tune(&["-o", &adapter, "--lr-min", "nan"], &["--learning-rate-min is NaN"]);
    tune(&["-o", &adapter, "--lr-min", "1"], &["--learning-rate-min is 1"]);
    tune(&["-o", &adapter, "--ctx", "100000"], &["sequence_len is 100000", "--ctx"]);
    tune(&["-o", &adapter, "--ctx", "0"], &["--ctx"]);
    fails(&["finetune", "-m", &base, "-f", &at("empty.txt"), "-o", &adapter], &["empty.txt", "is empty"]);
    let other = at("other.gguf");
    fs::write(&other, &fs::read(DEMO).unwrap()[..100_000]).unwrap();
    fails(&["finetune", "-m", &other, "-f", &text, "-o", &adapter], &["other.gguf"]);
    fails(&["merge", &base, "--lora", DEMO, "-o", &at("m.gguf")], &["no adapter"]);
    fails(&["merge", &base, "--lora", DEMO, "-o", &base, "--force"], &["is what is read"]);
    fails(&["merge", &base, "--lora", DEMO, "-o", &at("m.gguf"), "--type", "F17"], &["--type F17"]);
    assert!(fs::read(&base).unwrap() == fs::read(DEMO).unwrap());
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["base.gguf", "empty.txt", "other.gguf", "run.toml", "text.txt"]);
}
