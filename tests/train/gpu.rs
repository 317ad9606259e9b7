//! Models of the engine in training on a GPU: the program learns there as on the CPU, a run gives the same bits twice, and goes on.

use super::model::{DEMO, config, log, loss, weights};
use crate::{
    cli::{fails, moeray, ok, put},
    support::gpu_number,
};
use moeray::{
    backend::wgpu::{ForcedLimits, Gpu, Options},
    train::{Trainer, config::TrainConfig},
};
use std::{fs, path::Path};

/// Runs a configuration with these words; gives the losses of its steps and evaluations, and the last weights.
fn run(dir: &Path, words: &[&str]) -> (Vec<f64>, Vec<u8>) {
    let config = config(dir, "");
    ok(&[&["train", &config, "-q"], words].concat());
    let losses = log(dir).iter().filter_map(|l| l["cross_entropy"].as_f64()).collect();
    (losses, weights(&dir.join("out/checkpoint-000012")))
}

#[test]
fn a_model_learns_on_a_gpu_as_on_the_cpu() {
    let Some(device) = gpu_number() else { return };
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let (cpu, _) = run(dirs[0].path(), &[]);
    let on_gpu = ["--device", &device];
    let (first, one) = run(dirs[1].path(), &on_gpu);
    let (second, two) = run(dirs[2].path(), &on_gpu);
    assert!(one == two && first == second, "two runs on the GPU differ");
    assert_eq!((first.len(), cpu.len()), (12, 12));
    let off = first.iter().zip(&cpu).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(off <= 1e-4, "losses on the GPU are off by {off:.1e}: {first:?} and {cpu:?}");
    // As if it had ended behind step 8: the rest is what it was.
    let out = dirs[1].path().join("out");
    fs::remove_dir_all(out.join("checkpoint-000012")).unwrap();
    let said = moeray(&[
        "train",
        dirs[1].path().join("run.toml").to_str().unwrap(),
        "backend=wgpu",
        &format!("device={device:?}"),
    ]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(!said.stderr.contains("step 1/12"));
    assert!(weights(&out.join("checkpoint-000012")) == one, "an interruption");
}

#[test]
fn wrong_places_to_train_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "");
    fails(&["train", &config, "device=llvmpipe"], &["device", "backend = \"wgpu\""]);
    fails(&["train", &config, "--backend", "cpu", "--device", "1"], &["device", "wgpu"]);
    fails(&["train", &config, "--device", "no such GPU"], &["no such GPU"]);
    assert!(!dir.path().join("out/model.gguf").exists());
}

/// A device of its own: what is counted on it is of this test alone.
fn own_gpu() -> Option<Gpu> {
    let options = Options { device: Some(gpu_number()?), ..Options::default() };
    Some(Gpu::open(&options).unwrap())
}

/// A run of a configuration in this process, on a GPU or on the CPU.
fn trainer(path: &str, words: &[&str], gpu: Option<&Gpu>) -> Trainer {
    try_trainer(path, words, gpu).unwrap()
}

fn try_trainer(path: &str, words: &[&str], gpu: Option<&Gpu>) -> moeray::Result<Trainer> {
    let mut words: Vec<String> = words.iter().map(|w| (*w).to_string()).collect();
    words.extend(gpu.map(|_| "backend=wgpu".to_string()));
    let config = TrainConfig::read(path.as_ref(), &words).unwrap();
    match gpu {
        Some(gpu) => Trainer::open_on(config, gpu.clone()),
        None => Trainer::open(config),
    }
}

#[test]
fn a_step_is_one_submission_a_micro_batch_and_reads_little() {
    let Some(gpu) = own_gpu() else { return };
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), "");
    let text = format!("datasets.0.path={}", dir.path().join("text.txt").display());
    let out = format!("output_dir={}", dir.path().join("out").display());
    let tokenizer = format!("tokenizer={DEMO}");
    // The demo model's layers and ops, on fewer columns.
    let words = [
        text.as_str(),
        &out,
        &tokenizer,
        "sequence_len=16",
        "micro_batch_size=2",
        "gradient_accumulation_steps=3",
        "architecture.hidden_size=32",
        "architecture.moe_intermediate_size=32",
        "architecture.shared_expert_intermediate_size=32",
    ];
    let bard = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard.toml");
    let mut trainer = trainer(bard, &words, Some(&gpu));
    // The first step records what the others run.
    trainer.step().unwrap();
    let since = |before: [u64; 3]| [0, 1, 2].map(|i| gpu.traffic()[i] - before[i]);
    let before = gpu.traffic();
    trainer.step().unwrap();
    let [submissions, _, read] = since(before);
    assert_eq!(submissions, 3 + 3, "three micro-batches, the norm, the update, and gradients set to zero");
    assert!(read <= 4096, "{read} bytes are read back a step");
    let before = gpu.traffic();
    trainer.time_micro_batch().unwrap();
    let [submissions, dispatches, _] = since(before);
    assert_eq!(submissions, 2);
    assert!(dispatches <= 400, "{dispatches} dispatches a micro-batch");
}

#[test]
fn optimizers_on_a_gpu_take_the_steps_of_the_host() {
    let Some(gpu) = own_gpu() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let schedule = "top_k_schedule=[[0,4],[1,2]]";
    for words in [
        &["optimizer=adamw", "weight_decay=0.1"][..],
        &["optimizer=adam", "weight_decay=0.1", "unused_experts=decay"],
        &["optimizer=adamw", "adam_beta1=0", schedule, "architecture.num_experts=8"],
        &["optimizer=sgd", "nesterov=true"],
        &["optimizer=sgd", "momentum=0"],
        // These need sums over rows, which the host makes.
        &["optimizer=adafactor"],
        &["expert_moments=factored_only"],
    ] {
        let words = [words, &["val_set_size=0", "max_steps=6", "max_grad_norm=0.5"]].concat();
        let run = |gpu: Option<&Gpu>| {
            let mut trainer = trainer(&path, &words, gpu);
            (0..6).map(|_| trainer.step().unwrap()).map(|r| [r.loss, r.grad_norm]).collect::<Vec<_>>()
        };
        let (found, want) = (run(Some(&gpu)), run(None));
        for (found, want) in found.iter().flatten().zip(want.iter().flatten()) {
            let off = (found - want).abs() / want.abs().max(1.0);
            assert!(off <= 1e-4, "{words:?}: {found} on the GPU, {want} on the CPU");
        }
    }
}

#[test]
fn a_bias_correction_of_another_step_on_the_gpu_is_seen() {
    let Some(gpu) = own_gpu() else { return };
    gpu.edit_shaders(|name, text| {
        if name == "adam" {
            // By the step after this one: 1 − 0.999 ^ 2 in the place of 1 − 0.999.
            assert!(text.contains("/ b[at + 1u]"));
            *text = text.replace("/ b[at + 1u]", "/ (b[at + 1u] * 1.414)");
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let words = ["optimizer=adamw", "val_set_size=0", "max_steps=3"];
    let run = |gpu: Option<&Gpu>| {
        let mut trainer = trainer(&path, &words, gpu);
        (0..3).map(|_| trainer.step().unwrap().loss).collect::<Vec<_>>()
    };
    let (found, want) = (run(Some(&gpu)), run(None));
    let off = found.iter().zip(&want).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(off > 1e-4, "losses differ by {off:.1e} only: {found:?} and {want:?}");
}

#[test]
fn an_adapter_of_a_quantised_model_learns_on_a_gpu_as_on_the_cpu() {
    let Some(device) = gpu_number() else { return };
    let dir = tempfile::tempdir().unwrap();
    let sentence = "A kernel reads its weights in blocks, and every block has a scale of its own. ";
    let text = put(dir.path(), "prose.txt", sentence.repeat(12).as_bytes());
    let before = fs::read(DEMO).unwrap();
    let ckpt = moeray::file::open(DEMO.as_ref()).unwrap();
    let learnt = |words: &[&str]| {
        let gguf = dir.path().join(format!("{}.gguf", words.join("")));
        let common = ["finetune", "-m", DEMO, "-f", &text, "--ctx", "24", "--accumulate", "2", "--steps", "5"];
        let more = ["-lr", "0.01", "--lora-r", "4", "--lora-targets", "attention,experts,shared,router,output"];
        let said = moeray(&[&common[..], &more, words, &["-o", gguf.to_str().unwrap()]].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        loss(&ckpt, &[moeray::model::AdapterFile { path: gguf, scale: 1.0 }], sentence)
    };
    let base = loss(&ckpt, &[], sentence);
    let (cpu, gpu) = (learnt(&["--backend", "cpu"]), learnt(&["--device", &device]));
    assert!(gpu < base - 0.4, "{gpu} after {base}");
    assert!((gpu - cpu).abs() < 2e-3, "{gpu} on the GPU, {cpu} on the CPU");
    assert!(before == fs::read(DEMO).unwrap(), "the model was only read");
}

#[test]
fn a_device_that_is_too_small_is_a_clear_error() {
    let Some(device) = gpu_number() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let open = |limits| Gpu::open(&Options { device: Some(device.clone()), limits, ..Options::default() }).unwrap();
    let memory = |bytes| open(ForcedLimits { memory: Some(bytes), ..ForcedLimits::default() });
    let words = ["val_set_size=0", "micro_batch_size=16"];
    let refused = |gpu: &Gpu, words: &[&str]| match try_trainer(&path, words, Some(gpu)) {
        Ok(mut trainer) => trainer.step().unwrap_err().to_string(),
        Err(e) => e.to_string(),
    };
    let error = refused(&memory(1 << 20), &words);
    assert!(error.contains("weights and their gradients") && error.contains("memory left"), "{error}");
    let error = refused(&memory(4 << 20), &words);
    assert!(error.contains("micro-batch of 384 rows") && error.contains("recompute"), "{error}");
    let small = open(ForcedLimits { max_binding: Some(256 << 10), ..ForcedLimits::default() });
    let error = refused(&small, &words);
    // Weights are cut; the logits of 384 rows are not.
    assert!(error.contains("linear takes 6291456 bytes") && error.contains("bind at most"), "{error}");
}
