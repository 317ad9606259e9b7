//! Routers over groups: what was trained is written, and runs as it was trained.

use super::model::{DEMO, config, loss};
use crate::{
    cli::ok,
    support::{
        Target,
        compare::diff,
        load,
        one::{OneSequence, Step, one},
    },
};
use moeray::{
    CancelToken,
    backend::Loaded,
    file,
    ir::GroupScore,
    model,
    quant::KvType,
    train::{StepRecord, Trainer, config::TrainConfig},
};
use std::{fs, path::Path};

const TEXT: &str = "the king is dead and all her men live long the queen is dead";

/// Words of a run of a shape with eight experts in four groups, of which a token uses two with two experts in each.
fn words(dir: &Path, more: &[&str]) -> Vec<String> {
    let short = dir.join("short.txt");
    fs::write(&short, TEXT).unwrap();
    let test = format!("test_datasets=[{{path={short:?}, add_eos=false}}]");
    let own = [
        "val_set_size=0",
        &test,
        "sequence_len=40",
        "max_steps=3",
        "log=[]",
        "architecture.num_experts=8",
        "architecture.num_experts_per_tok=4",
        "architecture.shared_expert_intermediate_size=0",
        "router.aux=none",
        "router.groups=4",
        "router.groups_used=2",
    ];
    own.iter().chain(more).map(|w| (*w).to_owned()).collect()
}

fn open(path: &str, words: &[String]) -> Trainer {
    Trainer::open(TrainConfig::read(path.as_ref(), words).unwrap()).unwrap()
}

/// Trains and writes; gives the loss of the evaluation behind it.
fn trained(path: &str, words: &[String]) -> (Vec<StepRecord>, f64) {
    let mut t = open(path, words);
    let mut steps = vec![];
    t.run(&CancelToken::new(), &mut |e| {
        if let moeray::train::Event::Step(s) = e {
            steps.push(s.clone());
        }
    })
    .unwrap();
    let evaluated = t.evaluate().unwrap().loss;
    t.export().unwrap();
    (steps, evaluated)
}

fn logits(loaded: &dyn Loaded) -> Vec<f32> {
    let mut runner = loaded.runner(one(16, 16, KvType::F32)).unwrap();
    let ids: Vec<u32> = (0..12).map(|i| (i * 37 + 5) % 4096).collect();
    let mut out = vec![];
    runner.run(Step { tokens: &ids, past: 0, outputs: 12, inputs: &[] }, &mut out).unwrap();
    out[0].f32.clone()
}

/// The model in both forms computes what was trained, on every backend.
#[test]
fn it_runs_as_it_was_trained() {
    for (kind, more, written) in [
        ("mixtral", &["export=[\"gguf\"]"][..], &["model.gguf"][..]),
        ("qwen3_moe", &["export=[\"gguf\"]", "freeze=[\"router\"]"], &["model.gguf"]),
        (
            "mini_mixtral",
            &["export=[\"gguf\", \"safetensors\"]", "architecture.router_bias=true", "architecture.router_hidden=24"],
            &["model"],
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = config(dir.path(), "");
        let kind_word = format!("architecture.model_type={kind}");
        let mut all = words(dir.path(), &[more, &[kind_word.as_str()]].concat());
        if kind == "mini_mixtral" {
            // A router with a hidden layer is in no GGUF; the folder is.
            all.iter_mut().filter(|w| w.starts_with("export")).for_each(|w| *w = "export=[\"safetensors\"]".into());
        }
        let (_, evaluated) = trained(&path, &all);
        for name in written {
            let at = dir.path().join("out").join(name);
            let ckpt = file::open(&at).unwrap();
            let d = model::build(&ckpt, &Default::default()).unwrap();
            let groups = d.decoder.moe().unwrap().router.groups.unwrap();
            assert_eq!((groups.count, groups.used, groups.score), (4, 2, GroupScore::Own), "{kind}: {name}");
            let got = loss(&ckpt, &[], TEXT);
            assert!((got - evaluated).abs() < 2e-5 * evaluated, "{kind}, {name}: {got} and not {evaluated}");
            let want = logits(&*moeray::backend::reference::load(d.program.clone()).unwrap());
            for target in [Target::Cpu, Target::Wgpu, Target::WgpuWorkgroup] {
                let Some(loaded) = load(target, &d.program) else { continue };
                let far = diff(&logits(&*loaded), &want);
                assert!(far.nmse < 1e-8 && far.non_finite == 0, "{kind}, {name}, {target:?}: {far:?}");
            }
        }
    }
}

/// A file that has it is trained further: the first step from it has the loss and the gradient of the run that wrote it.
#[test]
fn a_file_of_it_is_trained_further() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let still =
        ["architecture.model_type=mixtral", "learning_rate=0", "max_steps=1", "warmup_steps=0", "export=[\"gguf\"]"];
    let (first, evaluated) = trained(&path, &words(dir.path(), &still));
    let base = dir.path().join("base.gguf");
    fs::rename(dir.path().join("out/model.gguf"), &base).unwrap();
    let toml = fs::read_to_string(&path).unwrap();
    let (head, _) = toml.split_once("[architecture]").unwrap();
    fs::write(&path, head.replace("tokenizer =", "base_model =").replace(DEMO, base.to_str().unwrap())).unwrap();
    let out = format!("output_dir={}", dir.path().join("again").display());
    let again: Vec<String> = words(dir.path(), &["learning_rate=0", "max_steps=1", "warmup_steps=0", &out])
        .into_iter()
        .filter(|w| !w.starts_with("architecture") && !w.starts_with("router"))
        .collect();
    let (second, further) = trained(&path, &again);
    let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * b.abs();
    assert!(near(second[0].loss, first[0].loss) && near(further, evaluated), "{} {}", second[0].loss, first[0].loss);
    assert!(near(second[0].grad_norm, first[0].grad_norm), "{} {}", second[0].grad_norm, first[0].grad_norm);
    assert_eq!(second[0].loads, first[0].loads);
    let refused = |more: &str| {
        let words = [&again[..], &[more.to_owned()]].concat();
        TrainConfig::read(path.as_ref(), &words).and_then(Trainer::open).map(|_| ()).unwrap_err().to_string()
    };
    // What is made for one softmax over all experts is not for two.
    for more in [
        "router.aux=switch",
        "router.z=logsumexp",
        "router.noise=normal",
        "router.capacity_factor=1",
        "router.groups=2",
    ] {
        let e = refused(more);
        assert!(e.contains("group"), "{more}: {e}");
    }
    let e = refused("export=[\"safetensors\"]");
    assert!(e.contains("over groups") && e.contains("gguf"), "{e}");
    // And the program runs it and says what it is.
    let base = base.to_str().unwrap();
    assert!(ok(&["inspect", base]).contains("a router over groups"));
    ok(&["run", base, "--backend", "cpu", "-n", "2", "-q", "--temp", "0", "-p", "the king"]);
}
