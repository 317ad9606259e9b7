//! Whole models against logits from independent implementations (Hugging Face transformers in float32, and PyTorch code
//! for the mini-Mixtral): the truth that the reference backend itself is held to. See `tests/data/goldens`.

use crate::support::{Target, compare, load};
use moeray::{
    backend::{Output, RunnerOptions, Step},
    file,
    model::{self, Definition},
    quant::KvType,
};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

const MODELS: &[&str] = &[
    "llama",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "qwen3_next",
    "qwen3_5_moe",
    "lfm2_moe",
    "gpt_oss",
    "granitemoe",
    "granitemoeshared",
    "hunyuan_moe",
    "llama4",
    "llama4_interleaved",
    "gemma4",
    "phimoe",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v2_groups",
    "deepseek_v3_yarn",
    "ernie4_5_moe",
    "glm4_moe",
    "dots1",
    "minimax_m2",
];

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens").join(name)
}

/// The goldens of transformers were computed by models that had been cast to BF16 as a whole (rotary frequencies included)
/// and back to float32: the same rounding is asked for here (Phi-3.5-MoE's are computed anew at every call). Without it they
/// agree to 1e-6 only, with it to 1e-12.
pub fn definition(name: &str) -> Definition {
    let ckpt = file::open(&folder(name)).unwrap();
    let options = model::Options { trace_router: true, bf16_rope: !matches!(name, "mini_mixtral" | "phimoe") };
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

/// Phi-3.5-MoE's two experts: each time the best of the rest, weighted by a softmax over those of the rest that are near it.
fn sparse_mixer(logits: &[f32], jitter: f32) -> [(u32, f32); 2] {
    let mut rest: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, x)| (i as u32, *x)).collect();
    [(); 2].map(|()| {
        let best = rest.iter().fold(rest[0], |b, x| if x.1 > b.1 { *x } else { b });
        let near = rest.iter().filter(|x| (best.1 - x.1) / x.1.abs().max(best.1) <= 2.0 * jitter);
        let sum: f64 = near.map(|x| f64::from(x.1 - best.1).exp()).sum();
        rest.retain(|x| x.0 != best.0);
        (best.0, (1.0 / sum) as f32)
    })
}

/// What a family makes of its router's logits, written out here once more.
#[derive(Default)]
struct Formula {
    sigmoid: bool,
    /// Divides by this of the sum of the chosen scores.
    divisor: Option<fn(f64) -> f64>,
    scale: f64,
    /// Groups, and how many of them take part by the sum of their two best.
    groups: Option<(usize, usize)>,
    /// By their best alone.
    by_best: bool,
    /// How the names of the selection biases end.
    bias: Option<&'static str>,
    /// How the names of the factors of experts end.
    factors: Option<&'static str>,
}

fn formula(name: &str) -> Formula {
    let plain = Formula { scale: 1.0, ..Formula::default() };
    let bias = Some("mlp.gate.e_score_correction_bias");
    let by_sum: Option<fn(f64) -> f64> = Some(|s| s);
    match name {
        // A softmax over the chosen logits is the renormalised softmax over all.
        "mixtral" | "qwen3_moe" | "qwen3_next" | "qwen3_5_moe" | "gpt_oss" | "granitemoe" | "granitemoeshared"
        | "hunyuan_moe" => Formula { divisor: by_sum, ..plain },
        "gemma4" => Formula { divisor: by_sum, factors: Some("router.per_expert_scale"), ..plain },
        "llama4" | "llama4_interleaved" => Formula { sigmoid: true, ..plain },
        "deepseek_v3" => {
            Formula { sigmoid: true, divisor: Some(|s| s + 1e-20), scale: 2.5, groups: Some((4, 2)), bias, ..plain }
        }
        "deepseek_v3_yarn" => Formula { sigmoid: true, divisor: Some(|s| s + 1e-20), scale: 2.8, bias, ..plain },
        "deepseek_v2_groups" => Formula { scale: 3.0, groups: Some((4, 2)), by_best: true, ..plain },
        "glm4_moe" => Formula { sigmoid: true, divisor: Some(|s| s + 1e-20), scale: 1.5, bias, ..plain },
        "dots1" => {
            Formula { sigmoid: true, divisor: Some(|s| s + 1e-20), scale: 2.0, groups: Some((2, 1)), bias, ..plain }
        }
        "lfm2_moe" => {
            let bias = Some("feed_forward.expert_bias");
            Formula { sigmoid: true, divisor: Some(|s| s + 1e-6), scale: 1.5, bias, ..plain }
        }
        "minimax_m2" => {
            Formula { sigmoid: true, divisor: by_sum, bias: Some("block_sparse_moe.e_score_correction_bias"), ..plain }
        }
        "ernie4_5_moe" => {
            Formula { divisor: Some(|s| s.max(1e-12)), bias: Some("mlp.moe_statics.e_score_correction_bias"), ..plain }
        }
        _ => plain,
    }
}

/// The vectors of a golden's layers with experts that have names like this, in order.
fn vectors(name: &str, ending: &str) -> Vec<Vec<f32>> {
    let ckpt = file::open(&folder(name)).unwrap();
    let mut names: Vec<&str> = ckpt.infos().iter().map(|t| t.name.as_str()).filter(|n| n.ends_with(ending)).collect();
    names.sort_by_key(|n| n.split('.').find_map(|p| p.parse::<usize>().ok()));
    let numbers = |n: &&str| {
        let t = ckpt.require(n).unwrap();
        let mut out = vec![0.0; t.cols()];
        moeray::quant::dequantize(t.dtype(), t.row(0), &mut out).unwrap();
        out
    };
    names.iter().map(numbers).collect()
}

/// The k experts of one token with their weights, by a family's formula.
fn routed(f: &Formula, logits: &[f32], [bias, factors]: [Option<&Vec<f32>>; 2], k: usize) -> Vec<(u32, f64)> {
    let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    let score = |x: &f32| if f.sigmoid { 1.0 / (1.0 + (-f64::from(*x)).exp()) } else { f64::from(*x).exp() / sum };
    let scores: Vec<f64> = logits.iter().map(score).collect();
    let choice = |i: usize| scores[i] + bias.map_or(0.0, |b| f64::from(b[i]));
    let mut allowed: Vec<usize> = (0..logits.len()).collect();
    if let Some((groups, used)) = f.groups {
        let size = logits.len() / groups;
        let value = |g: usize| {
            let mut c: Vec<f64> = (g * size..(g + 1) * size).map(choice).collect();
            c.sort_by(|a, b| b.total_cmp(a));
            if f.by_best { c[0] } else { c[0] + c[1] }
        };
        let mut order: Vec<usize> = (0..groups).collect();
        order.sort_by(|a, b| value(*b).total_cmp(&value(*a)));
        allowed.retain(|e| order[..used].contains(&(e / size)));
    }
    allowed.sort_by(|a, b| choice(*b).total_cmp(&choice(*a)));
    allowed.truncate(k);
    let total = f.divisor.map_or(1.0, |d| d(allowed.iter().map(|e| scores[*e]).sum()));
    let factor = |e: usize| f.scale * factors.map_or(1.0, |f| f64::from(f[e]));
    allowed.iter().map(|e| (*e as u32, scores[*e] / total * factor(*e))).collect()
}

/// (expert, weight) pairs of every layer against those that follow from the golden's router logits by the family's formula.
pub fn check_routing(name: &str, d: &Definition, out: &[Output], g: &Golden) -> Result<(), String> {
    let names = names(d);
    let k = d.decoder.moe().map_or(0, |m| m.router.used);
    let f = formula(name);
    let of = |ending: Option<&str>| ending.map(|e| vectors(name, e)).unwrap_or_default();
    let (biases, factors) = (of(f.bias), of(f.factors));
    let layers: Vec<&str> = names.iter().filter_map(|n| n.strip_prefix("router_ids_")).collect();
    assert_eq!(layers.len(), g.routers.len(), "{name}: MoE layers");
    assert!(f.bias.is_none() || biases.len() == layers.len(), "{name}: selection biases");
    assert!(f.factors.is_none() || factors.len() == layers.len(), "{name}: factors of experts");
    for (l, (layer, (logits, experts))) in layers.iter().zip(&g.routers).enumerate() {
        let pairs: Vec<(u32, f64)> = logits
            .chunks(*experts)
            .flat_map(|row| match name {
                "phimoe" => sparse_mixer(row, 0.01).map(|(e, w)| (e, f64::from(w))).to_vec(),
                _ => routed(&f, row, [biases.get(l), factors.get(l)], k),
            })
            .collect();
        let (ids, weights): (Vec<u32>, Vec<f32>) = pairs.iter().map(|(e, w)| (*e, *w as f32)).unzip();
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

/// Blocks of the teaching literature against PyTorch modules written from the formulas (`make_mini_moe.py`): logits, and
/// experts with their weights.
#[test]
fn mini_moe() {
    for name in ["mini_moe_a", "mini_moe_b", "mini_moe_c"] {
        let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
        let t = SafeTensors::deserialize(&bytes).unwrap();
        let options = model::Options { trace_router: true, ..Default::default() };
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
