//! Whole models against logits from independent implementations (Hugging Face transformers in float32, and PyTorch code
//! for the mini-Mixtral): the truth that the reference backend itself is held to. See `tests/data/goldens`.

use crate::support::{Target, compare, load};
use moeray::{
    backend::{KvType, Output, RunnerOptions, Step},
    file,
    model::{self, Definition},
};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

const MODELS: [&str; 5] = ["llama", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe"];

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens").join(name)
}

/// The goldens of transformers were computed by models that had been cast to BF16 as a whole (rotary frequencies included)
/// and back to float32: the same rounding is asked for here. Without it they agree to 1e-6 only, with it to 1e-12.
pub fn definition(name: &str) -> Definition {
    let ckpt = file::open(&folder(name)).unwrap();
    let options = model::Options { trace_router: true, bf16_rope: name != "mini_mixtral" };
    model::build(&ckpt, &options).unwrap()
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
    if target == Target::Reference { 1e-9 } else { 1e-6 }
}

pub fn names(d: &Definition) -> Vec<String> {
    d.program.graph.outputs.iter().map(|(n, _)| n.clone()).collect()
}

/// Feeds `ids` in chunks of these lengths, with all positions' outputs, and joins the chunks' outputs.
pub fn forward(loaded: &dyn moeray::backend::Loaded, ids: &[u32], chunks: &[usize]) -> Vec<Output> {
    let options = RunnerOptions { ctx: ids.len(), chunk: *chunks.iter().max().unwrap(), kv: KvType::F32 };
    let mut runner = loaded.runner(options).unwrap();
    let (mut all, mut out, mut past): (Vec<Output>, _, _) = (vec![], vec![], 0);
    for n in chunks {
        let step = Step { tokens: &ids[past..past + n], past, outputs: *n, inputs: &[] };
        runner.step(step, &mut out).unwrap();
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

/// (expert, weight) pairs of every layer against those that follow from the golden's router logits by the family's formula,
/// written out here once more.
pub fn check_routing(name: &str, d: &Definition, out: &[Output], g: &Golden) -> Result<(), String> {
    let names = names(d);
    let k = d.decoder.moe.as_ref().map_or(0, |m| m.router.used);
    let renormalise = matches!(name, "mixtral" | "qwen3_moe");
    let layers: Vec<&str> = names.iter().filter_map(|n| n.strip_prefix("router_ids_")).collect();
    assert_eq!(layers.len(), g.routers.len(), "{name}: MoE layers");
    for (layer, (logits, experts)) in layers.iter().zip(&g.routers) {
        let (mut ids, mut weights) = (vec![], vec![]);
        for row in logits.chunks(*experts) {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            let mut p: Vec<(u32, f64)> =
                row.iter().enumerate().map(|(i, x)| (i as u32, f64::from(*x).exp() / sum)).collect();
            p.sort_by(|a, b| b.1.total_cmp(&a.1));
            let total: f64 = if renormalise { p[..k].iter().map(|x| x.1).sum() } else { 1.0 };
            ids.extend(p[..k].iter().map(|x| x.0));
            weights.extend(p[..k].iter().map(|x| (x.1 / total) as f32));
        }
        let at = |what: &str| names.iter().position(|n| *n == format!("router_{what}_{layer}")).unwrap();
        let got = (&out[at("ids")].u32[..], &out[at("weights")].f32[..]);
        compare::check_routing(got, (&ids, &weights), k, 1e-3).map_err(|e| format!("{name}, layer {layer}: {e}"))?;
    }
    Ok(())
}

/// The greedy continuation, by one prefill and then token by token.
fn greedy(d: &Definition, loaded: &dyn moeray::backend::Loaded, g: &Golden) -> Vec<u32> {
    let logits = names(d).iter().position(|n| n == "logits").unwrap();
    let ctx = g.ids.len() + g.greedy.len();
    let mut runner = loaded.runner(RunnerOptions { ctx, chunk: g.ids.len(), kv: KvType::F32 }).unwrap();
    let (mut out, mut made, mut past) = (vec![], vec![], 0);
    let mut feed = g.ids.clone();
    while made.len() < g.greedy.len() {
        runner.step(Step { tokens: &feed, past, outputs: 1, inputs: &[] }, &mut out).unwrap();
        past += feed.len();
        let row = &out[logits].f32;
        let best = (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b });
        made.push(best as u32);
        feed = vec![best as u32];
    }
    made
}

fn check_models(target: Target) {
    for name in MODELS {
        let (d, g) = (definition(name), golden(name));
        let Some(loaded) = load(target, &d.program) else { return };
        let logits = names(&d).iter().position(|n| n == "logits").unwrap();
        let t = g.ids.len();
        // One pass, chunks of odd lengths, and token by token: the same logits each time.
        for chunks in [vec![t], vec![7, 1, 3, t - 11], vec![1; t]] {
            let out = forward(&*loaded, &g.ids, &chunks);
            let d2 = compare::check(&out[logits].f32, &g.logits, tolerance(target))
                .unwrap_or_else(|e| panic!("{name} on {target:?}, chunks {chunks:?}: {e}"));
            check_routing(name, &d, &out, &g).unwrap_or_else(|e| panic!("{target:?}, chunks {chunks:?}: {e}"));
            println!("{name} | {target:?} | {} chunks | NMSE {:.1e}", chunks.len(), d2.nmse);
        }
        assert_eq!(greedy(&d, &*loaded, &g), g.greedy, "{name} on {target:?}: greedy continuation");
    }
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
    check_models(Target::Wgpu);
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
            let Err(e) = loaded.runner(RunnerOptions { ctx, chunk: 1, kv: KvType::F16 }) else {
                panic!("{target:?} made a cache of {ctx} positions");
            };
            assert!(matches!(e, moeray::Error::Device(_)) && e.to_string().contains("--ctx"), "{target:?}: {e}");
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
