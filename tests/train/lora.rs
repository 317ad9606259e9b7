//! Low-rank adapters at inference: in the graph, from llama.cpp's GGUF, from PEFT's folders.

use crate::support::{
    Target,
    compare::diff,
    load,
    one::{OneSequence, Step, one},
};
use moeray::{
    backend::{self, Loaded, Program},
    file::{self, Checkpoint, Tensor},
    graph::LowRank,
    model::{self, AdapterFile, AdapterForm, Definition, write_adapter_gguf, write_adapter_peft},
    quant::{KvType, dequantize},
    train::data::normal,
};
use std::path::{Path, PathBuf};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bard-q4_k_m.gguf")
}

/// A folder of a golden in Hugging Face's own names.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens").join(name)
}

fn logits(loaded: &dyn Loaded, vocab: u32) -> Vec<f32> {
    let mut runner = loaded.runner(one(16, 16, KvType::F32)).unwrap();
    let ids: Vec<u32> = (0..12).map(|i| (i * 37 + 5) % vocab).collect();
    let mut out = vec![];
    runner.run(Step { tokens: &ids, past: 0, outputs: 12, inputs: &[] }, &mut out).unwrap();
    out[0].f32.clone()
}

fn reference(program: &Program) -> Vec<f32> {
    let vocab = program.graph.weights[0].shape[0] as u32;
    logits(&*backend::reference::load(program.clone()).unwrap(), vocab)
}

/// Pairs for these stems of layer 1 with hash numbers, r = 3.
fn pairs(d: &Definition, stems: &[&str]) -> Vec<LowRank> {
    pairs_in(1, d, stems)
}

fn pairs_in(layer: usize, d: &Definition, stems: &[&str]) -> Vec<LowRank> {
    let graph = &d.program.graph;
    let one = |(n, stem): (usize, &&str)| {
        let weight = if stem.contains('.') { stem.to_string() } else { format!("blk.{layer}.{stem}.weight") };
        let shape = &graph.weights.iter().find(|w| w.name == weight).unwrap_or_else(|| panic!("no {weight}")).shape;
        let (lead, [out, inp]) = shape.split_at(shape.len() - 2) else { panic!() };
        let fill = |part: u32, shape: Vec<usize>| {
            let len: usize = shape.iter().product();
            let x = (0..len).map(|i| normal(4, 2 * n as u32 + part, i as u32) * 0.2).collect();
            Tensor::from_f32(shape, x).unwrap()
        };
        LowRank { weight, a: fill(0, [lead, &[3, *inp]].concat()), b: fill(1, [lead, &[*out, 3]].concat()), scale: 1.0 }
    };
    stems.iter().enumerate().map(one).collect()
}

fn numbers(t: &Tensor) -> Vec<f32> {
    let mut x = vec![0.0; t.rows() * t.cols()];
    for (r, row) in x.chunks_mut(t.cols()).enumerate() {
        dequantize(t.dtype(), t.row(r), row).unwrap();
    }
    x
}

/// The program with W + factor · B A in the place of each W, in f32.
fn merged(d: &Definition, pairs: &[LowRank], factor: f32) -> Program {
    let mut weights = d.program.weights.to_vec();
    for p in pairs {
        let at = d.program.graph.weights.iter().position(|w| w.name == p.weight).unwrap();
        let (mut w, a, b) = (numbers(&weights[at]), numbers(&p.a), numbers(&p.b));
        let shape = weights[at].shape().to_vec();
        let [out, inp] = shape[shape.len() - 2..] else { panic!() };
        let r = p.rank();
        for (i, w) in w.iter_mut().enumerate() {
            let (e, o, x) = (i / (out * inp), i / inp % out, i % inp);
            let sum: f32 = (0..r).map(|j| b[(e * out + o) * r + j] * a[(e * r + j) * inp + x]).sum();
            *w += factor * sum;
        }
        weights[at] = Tensor::from_f32(shape, w).unwrap();
    }
    Program::new((*d.program.graph).clone(), weights).unwrap()
}

const EVERYWHERE: &[&str] = &[
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate_inp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
    "ffn_gate_shexp",
    "ffn_down_shexp",
    "output.weight",
];

fn read(ckpt: &Checkpoint, d: &Definition, path: &Path, scale: f32) -> Result<Definition, String> {
    let file = AdapterFile { path: path.to_owned(), scale };
    model::adapted(d.clone(), ckpt, &[file]).map_err(|e| e.to_string())
}

#[test]
fn a_gguf_adapter_is_the_merged_model() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = file::open(&demo()).unwrap();
    let d = model::build(&ckpt, &Default::default()).unwrap();
    let base = reference(&d.program);
    let path = dir.path().join("a.gguf");
    let pairs = pairs(&d, EVERYWHERE);
    // alpha 6, r 3: a factor of 2; half of it is asked for.
    write_adapter_gguf(&path, &d.arch, 6.0, &pairs).unwrap();
    let with = read(&ckpt, &d, &path, 0.5).unwrap();
    let (got, want) = (reference(&with.program), reference(&merged(&d, &pairs, 1.0)));
    let moved = diff(&base, &want).nmse;
    let far = diff(&got, &want);
    assert!(moved > 1e-3 && far.nmse < 1e-11 && far.non_finite == 0, "{far:?}, the adapter itself {moved:e}");
    // The base weights are the file's own, quantised as they were.
    assert!(with.program.weights.iter().zip(d.program.weights.iter()).all(|(a, b)| a.dtype() == b.dtype()));
    let off = read(&ckpt, &d, &path, 0.0).unwrap();
    assert!(diff(&reference(&off.program), &base).nmse < 1e-12);
    // Two adapters add up.
    let file = |scale| AdapterFile { path: path.clone(), scale };
    let both = model::adapted(d.clone(), &ckpt, &[file(0.2), file(0.3)]).unwrap();
    assert!(diff(&reference(&both.program), &want).nmse < 1e-10);
    let cpu = backend::cpu::load(with.program, &backend::cpu::Options::default(), &mut |_| Ok(())).unwrap();
    let off = diff(&logits(&*cpu, 4096), &want);
    assert!(off.nmse < 2e-3, "cpu: {off:?}");
}

/// The published layout of PEFT's parameters, by its definition and by loops.
fn peft_delta(a: &Tensor, b: &Tensor, experts: usize, e: usize, i: usize, o: usize) -> f32 {
    let (la, lb, r) = (numbers(a), numbers(b), a.rows() / experts);
    (0..r).map(|j| lb[o * b.cols() + j * experts + e] * la[(e * r + j) * a.cols() + i]).sum()
}

#[test]
fn peft_folders_are_the_merged_model() {
    for (name, stems) in [("qwen2_moe", EVERYWHERE), ("mixtral", &EVERYWHERE[..8]), ("qwen3_moe", &EVERYWHERE[..8])] {
        let Ok(ckpt) = file::open(&folder(name)) else { panic!("no golden {name}") };
        let d = model::build(&ckpt, &Default::default()).unwrap();
        // Layer 1 of one of them is dense.
        let pairs = pairs_in(2, &d, stems);
        let want = reference(&merged(&d, &pairs, 1.5));
        for form in [AdapterForm::Fused, AdapterForm::PerExpert] {
            let dir = tempfile::tempdir().unwrap();
            write_adapter_peft(dir.path(), &d, &ckpt, 4.5, &pairs, form).unwrap();
            let got = reference(&read(&ckpt, &d, dir.path(), 1.0).unwrap().program);
            let far = diff(&got, &want);
            assert!(far.nmse < 1e-11, "{name}, {form:?}: {far:?}");
            // The same adapter on the same model as GGUF, whose rows of queries and keys may be in another order.
            let gguf = model::to_gguf(&ckpt).unwrap();
            let dg = model::build(&gguf, &Default::default()).unwrap();
            let got = reference(&read(&gguf, &dg, dir.path(), 1.0).unwrap().program);
            let far = diff(&got, &want);
            assert!(far.nmse < 1e-9, "{name}, {form:?}, as GGUF: {far:?}");
        }
    }
}

#[test]
fn names_that_peft_would_rename_are_parameters() {
    let ckpt = file::open(&folder("qwen2_moe")).unwrap();
    let d = model::build(&ckpt, &Default::default()).unwrap();
    let stems = ["attn_q", "ffn_gate_inp", "ffn_gate_shexp", "ffn_gate_exps", "ffn_up_exps"];
    let dir = tempfile::tempdir().unwrap();
    write_adapter_peft(dir.path(), &d, &ckpt, 3.0, &pairs_in(2, &d, &stems), AdapterForm::Fused).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["target_modules"], serde_json::json!(["model.layers.2.self_attn.q_proj"]));
    let parameters = ["gate.weight", "shared_expert.gate_proj.weight", "experts.gate_up_proj"];
    let parameters: Vec<String> = parameters.iter().map(|p| format!("model.layers.2.mlp.{p}")).collect();
    assert_eq!(config["target_parameters"], serde_json::json!(parameters));
    // One rank and one factor for all.
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(6), Some(6.0)));
    let all = file::open_tensors(&dir.path().join("adapter_model.safetensors")).unwrap();
    let experts = |n: &str| if n.contains("experts.lora") { 6 } else { 1 };
    for (name, t) in &all {
        let rank = if name.contains("lora_A") { t.rows() } else { t.cols() };
        assert_eq!(rank, 6 * experts(name), "{name}");
    }
}

#[test]
fn fused_experts_have_pefts_odd_order() {
    let ckpt = file::open(&folder("qwen3_moe")).unwrap();
    let d = model::build(&ckpt, &Default::default()).unwrap();
    let pairs = pairs(&d, &["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]);
    let dir = tempfile::tempdir().unwrap();
    write_adapter_peft(dir.path(), &d, &ckpt, 3.0, &pairs, AdapterForm::Fused).unwrap();
    let all = file::open_tensors(&dir.path().join("adapter_model.safetensors")).unwrap();
    let find =
        |end: &str| &all.iter().find(|(n, _)| n.ends_with(end)).unwrap_or_else(|| panic!("no {end} in {all:?}")).1;
    let [e, out, inp] = pairs[0].b.shape()[..2].iter().copied().chain([pairs[0].a.cols()]).collect::<Vec<_>>()[..]
    else {
        panic!()
    };
    let (a, b) = (find("experts.base_layer.lora_A.weight"), find("experts.base_layer.lora_B.weight"));
    // Twice the rank.
    assert_eq!((a.shape(), b.shape()), (&[e * 6, inp][..], &[2 * out, 6 * e][..]));
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("adapter_config.json")).unwrap()).unwrap();
    let parameters: Vec<&str> =
        config["target_parameters"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert!(
        parameters[0].ends_with("experts.gate_up_proj") && parameters[1].ends_with("experts.down_proj"),
        "{parameters:?}"
    );
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(6), Some(6.0)));
    // The change of row o of the merged parameter's expert: gate first, then up.
    for (which, p) in pairs[..2].iter().enumerate() {
        let (pa, pb) = (numbers(&p.a), numbers(&p.b));
        for (x, o, i) in [(0, 0, 0), (e - 1, out - 1, inp - 1), (e / 2, 3, 5)] {
            let want: f32 = (0..3).map(|j| pb[(x * out + o) * 3 + j] * pa[(x * 3 + j) * inp + i]).sum();
            let got = peft_delta(a, b, e, x, i, which * out + o);
            assert!((got - want).abs() < 1e-6, "{which} {x} {o} {i}: {got} instead of {want}");
        }
    }
}

/// The folder with the sides of its experts' parameters flipped, as earlier versions of PEFT wrote them.
fn flip(folder: &Path, version: Option<&str>) {
    let path = folder.join("adapter_model.safetensors");
    let mut all: std::collections::BTreeMap<String, Tensor> = file::open_tensors(&path).unwrap().into_iter().collect();
    let experts: Vec<String> = all.keys().filter(|n| n.contains("experts") && n.contains("lora_A")).cloned().collect();
    for name in experts {
        let other = name.replace("lora_A", "lora_B");
        let (a, b) = (all[&name].clone(), all[&other].clone());
        let (na, nb, e, n) = (numbers(&a), numbers(&b), 8, a.rows());
        let (inp, out, r) = (a.cols(), b.rows(), a.rows() / e);
        let at = |x: usize, j: usize| (x * r + j, j * e + x);
        let (mut fa, mut fb) = (vec![0.0; n * out], vec![0.0; inp * n]);
        for (x, j) in (0..e).flat_map(|x| (0..r).map(move |j| (x, j))) {
            let (row, column) = at(x, j);
            (0..out).for_each(|o| fa[row * out + o] = nb[o * n + column]);
            (0..inp).for_each(|i| fb[i * n + column] = na[row * inp + i]);
        }
        all.insert(name, Tensor::from_f32(vec![n, out], fa).unwrap());
        all.insert(other, Tensor::from_f32(vec![inp, n], fb).unwrap());
    }
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = all
        .iter()
        .map(|(n, t)| (n.clone(), t.shape().to_vec(), numbers(t).iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = bytes.iter().map(|(n, s, b)| {
        (n.as_str(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, s.clone(), b).unwrap())
    });
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let config = folder.join("adapter_config.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    match version {
        Some(v) => json["peft_version"] = v.into(),
        None => drop(json.as_object_mut().unwrap().remove("peft_version")),
    }
    std::fs::write(&config, json.to_string()).unwrap();
}

#[test]
fn earlier_versions_of_peft_are_told_apart() {
    // Experts of one model are square on the way down, so that only the version tells; those of the other are not.
    let golden = file::open(&folder("mixtral")).unwrap();
    for ckpt in [file::open(&demo()).unwrap(), golden] {
        let d = model::build(&ckpt, &Default::default()).unwrap();
        let pairs = pairs(&d, &["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"]);
        let want = reference(&merged(&d, &pairs, 1.0));
        for version in [None, Some("0.17.1"), Some("0.19.1.dev0@abc")] {
            let dir = tempfile::tempdir().unwrap();
            write_adapter_peft(dir.path(), &d, &ckpt, 3.0, &pairs, AdapterForm::Fused).unwrap();
            flip(dir.path(), version);
            let far = diff(&reference(&read(&ckpt, &d, dir.path(), 1.0).unwrap().program), &want);
            assert!(far.nmse < 1e-11, "{}, {version:?}: {far:?}", d.arch);
        }
    }
}

#[test]
fn adapters_of_other_models_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = file::open(&demo()).unwrap();
    let d = model::build(&ckpt, &Default::default()).unwrap();
    let path = dir.path().join("a.gguf");
    let write = |arch: &str, pairs: &[LowRank]| write_adapter_gguf(&path, arch, 1.0, pairs).unwrap();
    let good = pairs(&d, &["attn_q"]);
    let t = |shape: &[usize], x: f32| Tensor::from_f32(shape.to_vec(), vec![x; shape.iter().product()]).unwrap();
    let bad = |weight: &str, a: &[usize], b: &[usize]| {
        vec![LowRank { weight: weight.into(), a: t(a, 0.1), b: t(b, 0.1), scale: 1.0 }]
    };
    for (arch, pairs, words) in [
        ("llama", good.clone(), "`llama`"),
        ("qwen2moe", bad("blk.9.attn_q.weight", &[3, 256], &[256, 3]), "blk.9.attn_q.weight"),
        ("qwen2moe", bad("blk.1.attn_q.weight", &[3, 128], &[256, 3]), "another model"),
        ("qwen2moe", bad("blk.1.attn_q.weight", &[3, 256], &[256, 4]), "another model"),
        ("qwen2moe", bad("blk.1.attn_norm.weight", &[3, 256], &[1, 3]), "no matrix"),
        ("qwen2moe", bad("token_embd.weight", &[3, 256], &[4096, 3]), "looked up"),
    ] {
        write(arch, &pairs);
        let e = read(&ckpt, &d, &path, 1.0).map(|_| ()).unwrap_err();
        assert!(e.contains(words) && e.contains("a.gguf"), "{e}");
    }
    let mut nan = good.clone();
    nan[0].b = t(&[256, 3], f32::NAN);
    write("qwen2moe", &nan);
    assert!(read(&ckpt, &d, &path, 1.0).map(|_| ()).unwrap_err().contains("NaN"));
    assert!(read(&ckpt, &d, &demo(), 1.0).map(|_| ()).unwrap_err().contains("no adapter"));
    assert!(read(&ckpt, &d, &dir.path().join("none"), 1.0).map(|_| ()).unwrap_err().contains("none"));
    let peft = dir.path().join("peft");
    for (config, words) in [
        ("{", "JSON"),
        ("{\"peft_type\": \"IA3\"}", "IA3"),
        ("{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 3, \"use_dora\": true}", "use_dora"),
        ("{\"peft_type\": \"LORA\", \"r\": 3, \"lora_alpha\": 3, \"bias\": \"all\"}", "bias"),
        ("{\"peft_type\": \"LORA\", \"lora_alpha\": 3}", "`r`"),
    ] {
        std::fs::create_dir_all(&peft).unwrap();
        std::fs::write(peft.join("adapter_config.json"), config).unwrap();
        let e = read(&ckpt, &d, &peft, 1.0).map(|_| ()).unwrap_err();
        assert!(e.contains(words), "{e}");
    }
}

#[test]
fn adapters_on_a_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = file::open(&demo()).unwrap();
    let d = model::build(&ckpt, &Default::default()).unwrap();
    let (path, pairs) = (dir.path().join("a.gguf"), pairs(&d, EVERYWHERE));
    write_adapter_gguf(&path, &d.arch, 3.0, &pairs).unwrap();
    let with = read(&ckpt, &d, &path, 1.0).unwrap();
    // A rank of 3 is filled up: rows of float matrices come in fours.
    assert!(with.program.graph.weights.iter().any(|w| w.name.contains("lora_b") && w.shape.ends_with(&[4])));
    for target in [Target::Wgpu, Target::WgpuWorkgroup] {
        let Some(loaded) = load(target, &with.program) else { return };
        let far = diff(&logits(&*loaded, 4096), &reference(&with.program));
        assert!(far.nmse < 1e-8 && far.non_finite == 0, "{target:?}: {far:?}");
    }
}

#[test]
fn merging_makes_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = file::open(&demo()).unwrap();
    let d = model::build(&ckpt, &Default::default()).unwrap();
    let pairs = pairs(&d, EVERYWHERE);
    let (adapter, out) = (dir.path().join("a.gguf"), dir.path().join("m.gguf"));
    write_adapter_gguf(&adapter, &d.arch, 3.0, &pairs).unwrap();
    let [a, o] = [adapter.to_str().unwrap(), out.to_str().unwrap()];
    let base = demo();
    let base = base.to_str().unwrap();
    crate::cli::fails(&["merge", base, "--lora", a, "-o", o], &["Q4_K", "--type"]);
    assert!(!out.exists());
    let said = crate::cli::moeray(&["merge", base, "--lora", a, "-o", o, "--type", "F32"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let got = file::open(&out).unwrap();
    let got = reference(&model::build(&got, &Default::default()).unwrap().program);
    let far = diff(&got, &reference(&merged(&d, &pairs, 1.0)));
    assert!(far.nmse < 1e-11, "{far:?}");
    // What the adapter leaves alone is as it was.
    let (before, after) = (file::open(base.as_ref()).unwrap(), file::open(&out).unwrap());
    let bytes = |c: &Checkpoint| {
        c.tensor("blk.0.attn_q.weight").unwrap().parts().iter().flat_map(|p| p.to_vec()).collect::<Vec<u8>>()
    };
    assert!(bytes(&before) == bytes(&after));
    crate::cli::fails(&["merge", base, "--lora", a, "-o", o, "--type", "F32"], &["exists", "--force"]);
    let kept = crate::cli::moeray(&["merge", base, "--lora", a, "-o", o, "--force", "--allow-requantize"]);
    assert_eq!(kept.code, Some(0), "{}", kept.stderr);
    assert_eq!(
        file::open(&out).unwrap().tensor("blk.1.attn_q.weight").unwrap().dtype(),
        before.tensor("blk.1.attn_q.weight").unwrap().dtype()
    );
}

#[test]
fn verbs_take_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = file::open(&demo()).unwrap();
    let d = model::build(&ckpt, &Default::default()).unwrap();
    let path = dir.path().join("a.gguf");
    write_adapter_gguf(&path, &d.arch, 3.0, &pairs(&d, &["attn_q", "ffn_down_exps"])).unwrap();
    let path = path.to_str().unwrap();
    let before = std::fs::read(demo()).unwrap();
    let run = |lora: &[&str]| {
        crate::cli::ok(&[&["run", "--backend", "cpu", "-n", "12", "-q", "--temp", "0", "-p", "ROMEO:"], lora].concat())
    };
    let (plain, with) = (run(&[]), run(&["--lora", path]));
    assert_ne!(plain, with);
    assert_eq!(plain, run(&["--lora", &format!("{path}=0")]));
    assert_eq!(with, run(&["--lora", &format!("{path}=0.25"), "--lora", &format!("{path}=0.75")]));
    let fails = |args: &[&str], words: &[&str]| crate::cli::fails(args, words);
    fails(&["run", "-p", "x", "--lora", "none.gguf"], &["--lora", "none.gguf"]);
    fails(&["run", "-p", "x", "--lora", &format!("{path}=much")], &["no number"]);
    fails(&["run", path, "-p", "x"], &["adapter", "--lora"]);
    assert!(before == std::fs::read(demo()).unwrap());
}
