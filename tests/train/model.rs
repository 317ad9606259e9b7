//! Models of the engine in training: the program trains, goes on, and leaves what runs.

use crate::cli::{fails, moeray, ok, put};
use moeray::{
    backend::runner::{Row, RunnerOptions, Step, Token},
    file::{self, Checkpoint},
    model,
    quant::KvType,
};
use serde_json::Value as Json;
use std::{fs, path::Path};

pub const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");

/// A tiny model of two layers with four experts, on a text of a few words.
pub fn config(dir: &Path, more: &str) -> String {
    let words = ["the", "king", "is", "dead", "long", "live", "queen", "and", "all", "her", "men"];
    let text: String =
        (0..600u32).map(|i| format!("{} ", words[(i * 7 + i / 11 * 3) as usize % words.len()])).collect();
    let text = put(dir, "text.txt", text.as_bytes());
    let out = dir.join("out");
    let toml = format!(
        "tokenizer = {DEMO:?}\noutput_dir = {out:?}\ndatasets = [{{ path = {text:?} }}]\nval_set_size = 0.2\nsequence_len = 24\n\
         micro_batch_size = 2\ngradient_accumulation_steps = 2\nmax_steps = 12\nlearning_rate = 0.01\nwarmup_steps = 3\n\
         eval_steps = 6\nsave_steps = 4\nthreads = 2\n{more}\n\
         [architecture]\nmodel_type = \"qwen2_moe\"\nhidden_size = 32\nnum_hidden_layers = 2\nnum_attention_heads = 4\n\
         num_key_value_heads = 2\nnum_experts = 4\nnum_experts_per_tok = 2\nmoe_intermediate_size = 32\n\
         shared_expert_intermediate_size = 32\nmax_position_embeddings = 64\n\
         [router]\naux = \"hf\"\naux_weight = 0.01\n"
    );
    put(dir, "run.toml", toml.as_bytes())
}

pub fn log(dir: &Path) -> Vec<Json> {
    let text = fs::read_to_string(dir.join("out/log.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

pub fn weights(path: &Path) -> Vec<u8> {
    fs::read(path.join("model.safetensors")).unwrap()
}

#[test]
fn a_model_from_nothing_learns_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    let dry = moeray(&["train", &config, "--dry-run"]);
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    for word in ["trained:", "experts", "router", "memory:", "GFLOP", "12 steps"] {
        assert!(dry.stderr.contains(word), "no {word:?} in {}", dry.stderr);
    }
    assert!(!dir.path().join("out/model.gguf").exists());
    let said = moeray(&["train", &config]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let (out, lines) = (dir.path().join("out"), log(dir.path()));
    let losses: Vec<f64> = lines.iter().filter_map(|l| l["cross_entropy"].as_f64()).collect();
    assert_eq!(losses.len(), 12);
    assert!((losses[0] - 4096f64.ln()).abs() < 0.2 && losses[11] < losses[0] - 2.0, "{losses:?}");
    let step = lines.iter().find(|l| l["loss"].is_number()).unwrap();
    assert!((step["loss"].as_f64().unwrap() - losses[0] - 0.01 * step["balance"].as_f64().unwrap()).abs() < 1e-6);
    // Two of four experts a row of 4 sequences of 24, in both layers.
    for load in step["loads"].as_array().unwrap() {
        let sum: u64 = load["tokens"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(sum, 2 * 4 * 24);
    }
    assert_eq!(step["loads"].as_array().unwrap().len(), 2);
    for file in
        ["log.csv", "loss.svg", "load.svg", "tensorboard", "checkpoint-000008", "checkpoint-000012", "model.gguf"]
    {
        assert!(out.join(file).exists(), "{file}");
    }
    let text = ok(&[
        "run",
        out.join("model.gguf").to_str().unwrap(),
        "--backend",
        "cpu",
        "-q",
        "--temp",
        "0",
        "-n",
        "8",
        "-p",
        "the king",
    ]);
    assert!(text.starts_with("the king"), "{text}");
    // The file has the weights of the last checkpoint.
    let made = file::open(&out.join("model.gguf")).unwrap();
    let bytes = weights(&out.join("checkpoint-000012"));
    let saved = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for name in ["blk.1.ffn_down_exps.weight", "blk.0.ffn_gate_inp.weight", "output_norm.weight"] {
        let own: Vec<u8> = made.tensor(name).unwrap().parts().iter().flat_map(|p| p.to_vec()).collect();
        assert!(own == saved.tensor(name).unwrap().data(), "{name}");
    }
}

#[test]
fn threads_and_interruptions_make_no_difference() {
    let run = |more: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "");
        let out = dir.path().join("out");
        if more.contains(&"twice") {
            // As if it had ended behind step 8.
            ok(&["train", &config, "-q"]);
            fs::remove_dir_all(out.join("checkpoint-000012")).unwrap();
            let said = moeray(&["train", &config]);
            assert_eq!(said.code, Some(0), "{}", said.stderr);
            assert!(!said.stderr.contains("step 1/12"));
        } else {
            ok(&[&["train", &config, "-q"], more].concat());
        }
        weights(&out.join("checkpoint-000012"))
    };
    let one = run(&["threads=1"]);
    assert!(one == run(&["threads=2"]), "threads");
    assert!(one == run(&["twice"]), "an interruption");
    assert!(one != run(&["seed=1"]));
}

#[test]
fn wrong_runs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    for (word, says) in [
        ("learning_rat=1", "`learning_rate` is one"),
        ("architecture.num_experts_per_tok=5", "num_experts_per_tok is 5"),
        ("freeze=[\"*\"]", "no parameter"),
        ("freeze=[\"dense\"]", "\"dense\""),
        ("sequence_len=65", "65"),
        ("datasets.0.path=/no/such/text.txt", "/no/such/text.txt"),
        ("tokenizer=/no/such/model.gguf", "/no/such/model.gguf"),
        ("base_model=x.gguf", "architecture"),
        ("architecture.hidden_size=1048576", "this machine has"),
        ("architecture.num_hidden_layers=5000", "num_hidden_layers is 5000"),
        ("architecture.num_experts=5000", "num_experts is 5000"),
        ("micro_batch_size=16777216", "rows at once"),
        ("eval_batch_size=16777216", "rows at once"),
        ("micro_batch_size=699050", "this machine has"),
        ("export=[\"safetensors\", \"onnx\"]", "onnx"),
        ("router.groups=2", "importance"),
    ] {
        fails(&["train", &config, word], &[says]);
    }
    fails(&["train", "/no/such.toml"], &["/no/such.toml"]);
    assert!(!dir.path().join("out/model.gguf").exists());
}

/// The mean loss of the tokens of `text`, by the reference.
pub fn loss(ckpt: &Checkpoint, adapters: &[model::AdapterFile], text: &str) -> f64 {
    let d = model::adapted(model::build(ckpt, &Default::default()).unwrap(), ckpt, adapters).unwrap();
    let ids = moeray::tokenizer::Tokenizer::from_checkpoint(ckpt).unwrap().encode(text, Default::default()).unwrap();
    let loaded = moeray::backend::reference::load(d.program).unwrap();
    let options = RunnerOptions { ctx: ids.len(), ubatch: ids.len(), sequences: 1, kv: KvType::F32 };
    let mut runner = loaded.runner(options).unwrap();
    let row = |(position, id): (usize, &u32)| Row {
        token: Token::Id(*id),
        sequence: 0,
        position,
        logits: true,
        hidden: false,
        choose: None,
    };
    let rows: Vec<Row> = ids.iter().enumerate().map(row).collect();
    let results = runner.step(&Step { rows: &rows, masks: &[], inputs: &[], trace: true }).unwrap();
    let logits = &results.outputs[0];
    let one = |(row, next): (&[f32], &u32)| {
        let most = row.iter().copied().fold(f32::MIN, f32::max);
        let lse = f64::from(most) + row.iter().map(|x| f64::from(x - most).exp()).sum::<f64>().ln();
        lse - f64::from(row[*next as usize])
    };
    let n = ids.len() - 1;
    logits.f32.chunks(logits.cols).take(n).zip(&ids[1..]).map(one).sum::<f64>() / n as f64
}

#[test]
fn an_adapter_of_a_quantised_model_learns() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let sentence = "A kernel reads its weights in blocks, and every block has a scale of its own. ";
    let text = put(d, "prose.txt", sentence.repeat(12).as_bytes());
    let (gguf, peft) = (d.join("a.gguf"), d.join("peft"));
    let before = fs::read(DEMO).unwrap();
    let common = [
        "finetune",
        "-m",
        DEMO,
        "-f",
        &text,
        "--ctx",
        "24",
        "--accumulate",
        "2",
        "--steps",
        "6",
        "-lr",
        "0.01",
        "--lora-r",
        "4",
        "--lora-targets",
        "attention,experts,shared",
    ];
    let said = moeray(&[&common[..], &["-o", gguf.to_str().unwrap()]].concat());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("--lora"), "{}", said.stderr);
    let ckpt = file::open(DEMO.as_ref()).unwrap();
    let adapter = |path: &Path| vec![model::AdapterFile { path: path.to_owned(), scale: 1.0 }];
    let (old, new) = (loss(&ckpt, &[], sentence), loss(&ckpt, &adapter(&gguf), sentence));
    assert!(new < old - 0.5, "{new} after {old}");
    // Every target's B has learnt, and the file was only read.
    let made = file::open(&gguf).unwrap();
    let bs: Vec<_> = made.tensors().filter(|(n, _)| n.ends_with("lora_b")).collect();
    assert_eq!(bs.len(), 4 * (4 + 3 + 3));
    assert!(bs.iter().all(|(_, t)| t.parts().iter().any(|p| p.iter().any(|b| *b != 0))));
    assert!(before == fs::read(DEMO).unwrap());
    // The same as PEFT's folder.
    let said = moeray(&[&common[..], &["-o", peft.to_str().unwrap()]].concat());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let again = loss(&ckpt, &adapter(&peft), sentence);
    assert!((again - new).abs() < 1e-4, "{again} and {new}");
    fails(&[&common[..], &["-o", gguf.to_str().unwrap()]].concat(), &["exists", "--force"]);
    let none = ["finetune", "-m", DEMO, "-f", &text, "--lora-targets", "dense", "-o", "x.gguf"];
    fails(&none, &["lora.targets", "dense"]);
}

#[test]
fn the_demo_model_is_a_run_of_one_command() {
    let toml = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bard.toml");
    let overrides = [format!("tokenizer={DEMO}"), "datasets.0.path=texts".to_owned()];
    let config = moeray::train::config::TrainConfig::read(&toml, &overrides).unwrap();
    let demo = file::open(DEMO.as_ref()).unwrap();
    let made = moeray::train::from_scratch(config.architecture.as_ref().unwrap(), &demo, config.seed).unwrap();
    let shapes = |c: &Checkpoint| -> std::collections::BTreeMap<String, Vec<usize>> {
        // ggml drops sizes of 1.
        let one =
            |(n, t): (&str, &file::Tensor)| (n.to_owned(), t.shape().iter().copied().filter(|s| *s > 1).collect());
        c.tensors().map(one).collect()
    };
    assert_eq!(shapes(&made), shapes(&demo));
    let [ours, theirs] = [&made, &demo].map(|c| model::build(c, &Default::default()).unwrap());
    // The width of a dense network is said by the file, and no layer has one.
    assert!(ours.decoder.dense().is_none());
    assert!(ours.decoder == model::Decoder { ffn: ours.decoder.ffn, ..theirs.decoder });
    // 4096 tokens a step, of which the last of each sequence is only predicted.
    assert_eq!((config.sequence_len + 1) * config.micro_batch_size * config.gradient_accumulation_steps, 4096);
    let learner = moeray::train::ModelLearner::new(&ours, &config).unwrap();
    let all: usize = moeray::train::Learner::parameters(&learner).iter().map(|p| p.len()).sum();
    assert_eq!(all, demo.tensors().map(|(_, t)| t.rows() * t.cols()).sum::<usize>());
}
