//! Whole models against logits from independent implementations (Hugging Face transformers in float32, and PyTorch code
//! for the mini-Mixtral): the truth that the reference backend itself is held to. See `tests/data/goldens`.

mod routing;

use crate::support::{
    self, Target, compare, load,
    one::{OneSequence, Step, one},
};
use moeray::{
    backend::Output,
    file,
    model::{self, Definition},
    quant::KvType,
};
pub use routing::check_routing;
use routing::{Best, BestTwo, Formula, NO_EXPERTS, SIGMOID, SOFTMAX, SPARSE_MIXER, Sum, SumAtLeast, SumPlus};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// Each golden of transformers, with what its family makes of the router's logits.
const MODELS: &[(&str, Formula)] = &[
    ("llama", NO_EXPERTS),
    // A softmax over the chosen logits is the renormalised softmax over all.
    ("mixtral", SOFTMAX.over(Sum)),
    ("qwen2_moe", SOFTMAX),
    ("qwen3_moe", SOFTMAX.over(Sum)),
    ("olmoe", SOFTMAX),
    ("qwen3_next", SOFTMAX.over(Sum)),
    ("qwen3_5_moe", SOFTMAX.over(Sum)),
    ("lfm2_moe", SIGMOID.over(SumPlus(1e-6)).times(1.5).bias("feed_forward.expert_bias")),
    ("gpt_oss", SOFTMAX.over(Sum)),
    ("granitemoe", SOFTMAX.over(Sum)),
    ("granitemoeshared", SOFTMAX.over(Sum)),
    ("hunyuan_moe", SOFTMAX.over(Sum)),
    ("llama4", SIGMOID),
    ("llama4_interleaved", SIGMOID),
    ("gemma4", SOFTMAX.over(Sum).factors("router.per_expert_scale")),
    ("phimoe", SPARSE_MIXER),
    ("deepseek_v2", SOFTMAX),
    ("deepseek_v3", SIGMOID.over(SumPlus(1e-20)).times(2.5).groups(4, 2, BestTwo).bias(CORRECTION)),
    ("deepseek_v2_groups", SOFTMAX.times(3.0).groups(4, 2, Best)),
    ("deepseek_v3_yarn", SIGMOID.over(SumPlus(1e-20)).times(2.8).bias(CORRECTION)),
    ("ernie4_5_moe", SOFTMAX.over(SumAtLeast(1e-12)).bias("mlp.moe_statics.e_score_correction_bias")),
    ("glm4_moe", SIGMOID.over(SumPlus(1e-20)).times(1.5).bias(CORRECTION)),
    ("dots1", SIGMOID.over(SumPlus(1e-20)).times(2.0).groups(2, 1, BestTwo).bias(CORRECTION)),
    ("bailing_moe_v2", SIGMOID.over(SumPlus(1e-20)).times(2.5).groups(4, 2, BestTwo).bias("mlp.gate.expert_bias")),
    ("minimax_m2", SIGMOID.over(Sum).bias("block_sparse_moe.e_score_correction_bias")),
];

/// How most families' selection biases end.
const CORRECTION: &str = "mlp.gate.e_score_correction_bias";

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens").join(name)
}

/// A golden's model, whose graph also gives the chosen experts and their weights.
pub fn definition(name: &str) -> Definition {
    defined(name, true)
}

/// As [`definition`], or as the product runs it.
pub fn defined(name: &str, trace_router: bool) -> Definition {
    let options = model::Options { trace_router };
    model::build(&file::open(&folder(name)).unwrap(), &options).unwrap()
}

/// The goldens of transformers, by name: all families.
pub fn families() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|m| m.0)
}

pub struct Golden {
    pub ids: Vec<u32>,
    pub logits: Vec<f32>,
    greedy: Vec<u32>,
    routers: Vec<(Vec<f32>, usize)>,
}

fn floats(t: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    t.tensor(name).unwrap().data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ints(t: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    let data = t.tensor(name).unwrap();
    data.data().chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}

impl Golden {
    /// Of each layer with experts: router logits, row-major, and the number of experts.
    pub fn routers(&self) -> &[(Vec<f32>, usize)] {
        &self.routers
    }
}

pub fn golden(name: &str) -> Golden {
    let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
    let t = SafeTensors::deserialize(&bytes).unwrap();
    let mut routers = vec![];
    while let Ok(r) = t.tensor(&format!("router_{}", routers.len())) {
        routers.push((floats(&t, &format!("router_{}", routers.len())), r.shape()[1]));
    }
    let greedy = t.tensor("greedy").map(|_| ints(&t, "greedy")).unwrap_or_default();
    Golden { ids: ints(&t, "input_ids"), logits: floats(&t, "logits"), greedy, routers }
}

/// The tolerance that this engine promises for whole models with float weights and an f32 cache.
pub fn tolerance(target: Target) -> f64 {
    if target == Target::Reference { 1e-10 } else { 1e-9 }
}

pub fn names(d: &Definition) -> Vec<String> {
    d.program.graph.outputs.iter().map(|(n, _)| n.clone()).collect()
}

/// Feeds `ids` in chunks of these lengths, with all positions' outputs, and joins the chunks' outputs.
pub fn forward(loaded: &dyn moeray::backend::Loaded, ids: &[u32], chunks: &[usize]) -> Vec<Output> {
    let options = one(ids.len(), *chunks.iter().max().unwrap(), KvType::F32);
    let mut runner = loaded.runner(options).unwrap();
    let (mut all, mut out, mut past): (Vec<Output>, _, _) = (vec![], vec![], 0);
    for n in chunks {
        let step = Step { tokens: &ids[past..past + n], past, outputs: *n, inputs: &[] };
        runner.run(step, &mut out).unwrap();
        past += n;
        if all.is_empty() {
            all = out.clone();
        } else {
            for (a, o) in all.iter_mut().zip(&out) {
                a.rows += o.rows;
                a.f32.extend(&o.f32);
                a.u32.extend(&o.u32);
            }
        }
    }
    all
}

/// The greedy continuation, by one prefill and then token by token.
fn greedy(d: &Definition, loaded: &dyn moeray::backend::Loaded, g: &Golden) -> Vec<u32> {
    let logits = names(d).iter().position(|n| n == "logits").unwrap();
    let ctx = g.ids.len() + g.greedy.len();
    let mut runner = loaded.runner(one(ctx, g.ids.len(), KvType::F32)).unwrap();
    let (mut out, mut made, mut past) = (vec![], vec![], 0);
    let mut feed = g.ids.clone();
    while made.len() < g.greedy.len() {
        runner.run(Step { tokens: &feed, past, outputs: 1, inputs: &[] }, &mut out).unwrap();
        past += feed.len();
        let row = &out[logits].f32;
        let best = (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b });
        made.push(best as u32);
        feed = vec![best as u32];
    }
    made
}

fn check_models(target: Target) {
    for (name, _) in MODELS {
        let (d, g) = (definition(name), golden(name));
        let Some(loaded) = load(target, &d.program) else { return };
        let t = g.ids.len();
        let check = |d: &Definition, out: &[Output], what: &str| {
            let logits = &out[names(d).iter().position(|n| n == "logits").unwrap()];
            let diff = compare::check(&logits.f32, &g.logits, tolerance(target))
                .unwrap_or_else(|e| panic!("{name} on {target:?}, {what}: {e}"));
            println!("{name} | {target:?} | {what} | {diff:?}");
        };
        // One pass, chunks of odd lengths, and token by token: the same logits each time.
        for chunks in [vec![t], vec![7, 1, 3, t - 11], vec![1; t]] {
            let out = forward(&*loaded, &g.ids, &chunks);
            check(&d, &out, &format!("chunks {chunks:?}"));
            check_routing(name, &d, &out, &g).unwrap_or_else(|e| panic!("{target:?}, chunks {chunks:?}: {e}"));
        }
        // As the product runs it: what the router chose is no output, so more is fused.
        let d = defined(name, false);
        let loaded = load(target, &d.program).unwrap();
        check(&d, &forward(&*loaded, &g.ids, &[t - 4, 1, 1, 2]), "untraced");
        assert_eq!(greedy(&d, &*loaded, &g), g.greedy, "{name} on {target:?}: greedy continuation");
    }
}

/// Every folder of a golden with a greedy continuation has its row, so that none lies there unread.
#[test]
fn every_golden_is_run() {
    let folders = std::fs::read_dir(folder("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut goldens: Vec<String> = folders.filter(|n| !n.ends_with(".py") && !n.starts_with("mini_")).collect();
    let mut rows: Vec<&str> = MODELS.iter().map(|m| m.0).collect();
    goldens.sort_unstable();
    rows.sort_unstable();
    assert_eq!(rows, goldens);
}

#[test]
fn reference() {
    check_models(Target::Reference);
}

#[test]
fn cpu() {
    check_models(Target::Cpu);
}

#[test]
fn wgpu() {
    check_models_once(Target::Wgpu);
}

/// The kernels of real GPUs, where a workgroup shares a row.
#[test]
fn wgpu_workgroup() {
    check_models_once(Target::WgpuWorkgroup);
}

/// As [`check_models`], once a process.
pub fn check_models_once(target: Target) {
    support::once(&format!("goldens on {target:?}"), || check_models(target));
}

/// Two sequences of 16 tokens, from PyTorch-style names with interleaved rotary pairs.
fn check_mini_mixtral(target: Target) {
    let (d, g) = (definition("mini_mixtral"), golden("mini_mixtral"));
    let Some(loaded) = load(target, &d.program) else { return };
    let vocab = g.logits.len() / g.ids.len();
    for (ids, want) in g.ids.chunks(16).zip(g.logits.chunks(16 * vocab)) {
        for chunks in [vec![16], vec![1; 16]] {
            let out = forward(&*loaded, ids, &chunks);
            compare::check(&out[0].f32, want, tolerance(target)).unwrap_or_else(|e| panic!("{target:?}: {e}"));
        }
    }
}

#[test]
fn mini_mixtral() {
    for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
        check_mini_mixtral(target);
    }
}

/// Blocks of the teaching literature against PyTorch modules written from the formulas (`make_mini_moe.py`): logits, and
/// experts with their weights.
#[test]
fn mini_moe() {
    for name in ["mini_moe_a", "mini_moe_b", "mini_moe_c"] {
        let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
        let t = SafeTensors::deserialize(&bytes).unwrap();
        let options = model::Options { trace_router: true };
        let d = model::build(&file::open(&folder(name)).unwrap(), &options).unwrap();
        let (ids, names) = (ints(&t, "input_ids"), names(&d));
        for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
            let Some(loaded) = load(target, &d.program) else { continue };
            for chunks in [vec![ids.len()], vec![7, 1, ids.len() - 8], vec![1; ids.len()]] {
                let out = forward(&*loaded, &ids, &chunks);
                let at = |name: String| &out[names.iter().position(|n| *n == name).unwrap()];
                compare::check(&at("logits".into()).f32, &floats(&t, "logits"), tolerance(target))
                    .unwrap_or_else(|e| panic!("{name} on {target:?}: {e}"));
                for l in 0..2 {
                    let (i, w) = (format!("router_ids_{l}"), format!("router_weights_{l}"));
                    let want = (ints(&t, &i), floats(&t, &w));
                    compare::check_routing((&at(i).u32, &at(w).f32), (&want.0, &want.1), 2, 1e-4)
                        .unwrap_or_else(|e| panic!("{name} on {target:?}, layer {l}: {e}"));
                }
            }
        }
    }
}

/// The comparison notices a model that is slightly another: one flag, one number, one weight's sign.
#[test]
fn goldens_reject_a_wrong_model() {
    let g = golden("mixtral");
    let spoiled = |spoil: &dyn Fn(&mut Definition)| {
        let mut d = definition("mixtral");
        spoil(&mut d);
        let loaded = load(Target::Reference, &d.program).unwrap();
        let out = forward(&*loaded, &g.ids, &[g.ids.len()]);
        let logits = compare::check(&out[0].f32, &g.logits, 1e-6);
        logits.is_err() || check_routing("mixtral", &d, &out, &g).is_err()
    };
    use moeray::ir::Op;
    let edit = |d: &mut Definition, f: &dyn Fn(&mut Op)| {
        let mut graph = (*d.program.graph).clone();
        graph.nodes.iter_mut().for_each(|n| f(&mut n.op));
        d.program.graph = std::sync::Arc::new(graph);
    };
    assert!(!spoiled(&|_| {}), "unspoiled, it passes");
    assert!(spoiled(&|d| edit(d, &|op| if let Op::Router(r) = op {
        r.renormalise = moeray::ir::Renormalise::No
    })));
    assert!(spoiled(&|d| edit(d, &|op| if let Op::Router(r) = op {
        r.scale = 1.01
    })));
    assert!(spoiled(&|d| edit(d, &|op| if let Op::RmsNorm(n) = op {
        n.eps = 1e-3
    })));
    assert!(spoiled(&|d| edit(d, &|op| if let Op::Attend(a) = op {
        a.window = Some(16)
    })));
    assert!(spoiled(&|d| edit(d, &|op| {
        if let Op::Rope(r) = op {
            r.pairs = moeray::ir::RopePairs::Interleaved;
        }
    })));
}

/// A context beyond the machine's memory is refused before anything is allocated for it.
#[test]
fn impossible_contexts_are_refused() {
    let d = definition("llama");
    for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
        let Some(loaded) = load(target, &d.program) else { continue };
        for ctx in [1usize << 40, usize::MAX / 2] {
            let Err(e) = loaded.runner(one(ctx, 1, KvType::F16)) else {
                panic!("{target:?} made a cache of {ctx} positions");
            };
            assert!(
                matches!(e, moeray::Error::Device(_)) && e.to_string().contains("shorter context"),
                "{target:?}: {e}"
            );
        }
    }
}

/// Hyperparameters that make every number wrong are refused at load, and weights that do are refused with the first logits.
#[test]
fn impossible_numbers_are_refused() {
    let spoiled = |from: &str, to: &str| {
        let dir = tempfile::tempdir().unwrap();
        for name in ["model.safetensors", "config.json"] {
            std::fs::copy(folder("llama").join(name), dir.path().join(name)).unwrap();
        }
        let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        assert!(config.contains(from));
        std::fs::write(dir.path().join("config.json"), config.replace(from, to)).unwrap();
        model::build(&file::open(dir.path()).unwrap(), &model::Options::default()).map(|_| ()).unwrap_err().to_string()
    };
    assert!(spoiled("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": -1.0").contains("epsilon"));
    assert!(spoiled("\"rope_theta\": 10000.0", "\"rope_theta\": 0.0").contains("rotary base"));
    assert!(spoiled("\"rope_type\": \"default\"", "\"rope_type\": \"wavy\"").contains("wavy"));
    assert!(spoiled("\"hidden_act\": \"silu\"", "\"hidden_act\": \"sinc\"").contains("sinc"));

    // A block scale of the demo model becomes NaN: quantised weights are not read at load.
    let mut bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bard-q4_k_m.gguf")).unwrap();
    let ckpt = file::open_bytes(file::Bytes::from_vec(bytes.clone())).unwrap();
    let at = ckpt.info("blk.1.attn_q.weight").unwrap().offset as usize;
    bytes[at..at + 2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let ckpt = file::open_bytes(file::Bytes::from_vec(bytes)).unwrap();
    let options = moeray::session::LoadOptions {
        backend: moeray::session::BackendChoice::Cpu(Default::default()),
        ..Default::default()
    };
    let model = moeray::session::Model::from_checkpoint(&ckpt, &options, &mut |_| {}).unwrap();
    let mut session = moeray::session::Session::new(&model, Default::default()).unwrap();
    let e = session.prefill(&[1, 2, 3]).unwrap_err().to_string();
    assert!(e.contains("NaN"), "{e}");
}
