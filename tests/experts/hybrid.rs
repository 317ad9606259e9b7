//! A GPU that leaves experts to the processor: the same numbers as either alone.

use super::watched;
use crate::{
    goldens::{self, defined, definition, families, folder, forward, golden, names, tolerance},
    support::{Target, compare, gpu, load},
};
use moeray::{
    Error,
    backend::{
        self, Loaded, Program,
        runner::{self, Budget, Row, RunnerOptions, Status},
        wgpu::RunOptions,
    },
    file,
    generate::{SamplerOptions, Sampling},
    graph::{expert_weights, split_experts},
    ops::linear::Activations,
    quant::KvType,
    session::{BackendChoice, ExpertPlacement, Experts, LoadOptions, Model, Session, SessionOptions},
};
use std::collections::BTreeSet;

fn cpu() -> backend::cpu::Options {
    backend::cpu::Options { activations: Activations::Int16, ..Default::default() }
}

/// Loads a program on the GPU with the experts of some layers left to the processor.
fn hybrid(program: &Program, layers: &BTreeSet<u32>, run: Option<RunOptions>) -> Option<Box<dyn Loaded>> {
    let gpu = gpu()?;
    let split = split_experts(&program.graph, layers).unwrap();
    let host = backend::cpu::load_experts(&split, &program.weights, &cpu(), &mut |_| Ok(())).unwrap();
    let run = run.unwrap_or_else(|| gpu.run_options());
    Some(gpu.load_split(program.clone(), &split, host, run, &mut |_| Ok(())).unwrap())
}

fn all_layers(program: &Program) -> BTreeSet<u32> {
    expert_weights(&program.graph).into_keys().collect()
}

fn check_family(name: &str, run: Option<RunOptions>) {
    let (d, g) = (definition(name), golden(name));
    let layers = all_layers(&d.program);
    if layers.is_empty() {
        return;
    }
    let t = g.ids.len();
    let check = |loaded: &dyn Loaded, what: &str, chunks: &[usize]| {
        let out = forward(loaded, &g.ids, chunks);
        let logits = &out[names(&d).iter().position(|n| n == "logits").unwrap()];
        compare::check(&logits.f32, &g.logits, tolerance(Target::Wgpu))
            .unwrap_or_else(|e| panic!("{name}, {what}, chunks {chunks:?}: {e}"));
        goldens::check_routing(name, &d, &out, &g).unwrap_or_else(|e| panic!("{name}, {what}: {e}"));
    };
    let Some(all) = hybrid(&d.program, &layers, run) else { return };
    // One pass, chunks of odd lengths, and token by token; what is watched in the mixture of them alone, for it takes its time.
    let chunks = [vec![7, 1, 3, t - 11], vec![t], vec![1; t]];
    for chunks in chunks.iter().take(if run.is_some() { 1 } else { 3 }) {
        check(&*all, "all layers", chunks);
    }
    // One layer on the processor, the others on the device.
    let last = BTreeSet::from([*layers.last().unwrap()]);
    check(&*hybrid(&d.program, &last, run).unwrap(), "the last layer", &[t - 4, 1, 1, 2]);
    // As the product runs it: what the router chose is no output, so more is fused.
    let d = defined(name, false);
    let loaded = hybrid(&d.program, &layers, run).unwrap();
    let out = forward(&*loaded, &g.ids, &[t - 4, 1, 1, 2]);
    compare::check(&out[0].f32, &g.logits, tolerance(Target::Wgpu)).unwrap_or_else(|e| panic!("{name}, untraced: {e}"));
}

/// Every family with experts, against the independent implementation.
#[test]
fn goldens_with_experts_on_the_processor() {
    families().for_each(|name| check_family(name, None));
}

/// The same with the kernels of real GPUs, scratch poisoned and fenced.
#[test]
fn goldens_with_the_kernels_of_real_gpus() {
    families().for_each(|name| check_family(name, Some(watched())));
}

fn session(name: &str, placement: ExpertPlacement) -> Option<Model> {
    let options = LoadOptions {
        backend: BackendChoice::Gpu(gpu()?),
        experts: Experts { placement, cpu: cpu() },
        ..LoadOptions::default()
    };
    Some(Model::load(&folder(name), &options, &mut |_| {}).unwrap())
}

/// The same greedy text with the choice on the device one step ahead, and in slices of a few dispatches; the closing line says who computes.
#[test]
fn the_same_text_and_in_slices() {
    let g = golden("qwen3_moe");
    let text = |model: &Model, budget: Budget| {
        let mut s = Session::new(model, SessionOptions { ctx: 64, ubatch: 16, ..Default::default() }).unwrap();
        let sampling = Sampling { options: SamplerOptions::greedy(), ..Sampling::default() };
        assert!(s.set_sampler(&sampling).unwrap(), "the device chooses");
        s.begin_choice(&g.ids, 0).unwrap();
        let mut ids = vec![];
        while ids.len() < 8 {
            while s.choices_queued() < s.depth() && s.choices_queued() + ids.len() < 8 {
                s.begin_next(0).unwrap();
            }
            loop {
                match s.poll(budget).unwrap() {
                    Status::Done => break,
                    Status::Waiting => s.wait().unwrap(),
                    Status::Pending => {}
                    Status::Idle => panic!("nothing is queued"),
                }
            }
            ids.push(s.chosen().unwrap());
        }
        ids
    };
    let Some(whole) = session("qwen3_moe", ExpertPlacement::Gpu) else { return };
    let want = text(&whole, Budget::UNLIMITED);
    for placement in [ExpertPlacement::Cpu, ExpertPlacement::FirstLayers(1), ExpertPlacement::LastOnGpu(1)] {
        let model = session("qwen3_moe", placement).unwrap();
        assert!(model.describe().contains("experts on cpu"), "{}", model.describe());
        assert_eq!(text(&model, Budget::UNLIMITED), want);
        assert_eq!(text(&model, Budget::dispatches(3)), want);
        assert_eq!(text(&model, Budget::micros(1)), want);
    }
    assert!(!whole.describe().contains("experts on"));
}

/// A step that is cancelled while the device waits for the processor leaves nothing behind.
#[test]
fn steps_are_cancelled_at_any_slice() {
    let (d, g) = (definition("qwen2_moe"), golden("qwen2_moe"));
    let Some(loaded) = hybrid(&d.program, &all_layers(&d.program), None) else { return };
    let options = RunnerOptions { ctx: 64, sequences: 1, ubatch: 32, kv: KvType::F32 };
    let rows: Vec<Row> =
        g.ids.iter().enumerate().map(|(i, id)| Row { logits: i == g.ids.len() - 1, ..Row::fed(*id, 0, i) }).collect();
    let step = runner::Step { rows: &rows, ..Default::default() };
    let at = names(&d).iter().position(|n| n == "logits").unwrap();
    let mut runner = loaded.runner(options).unwrap();
    let want = runner.step(&step).unwrap().outputs[at].f32.clone();
    for polls in 0..12 {
        runner.truncate(0, 0);
        runner.begin(&step).unwrap();
        for _ in 0..polls {
            if runner.poll(Budget::dispatches(2)).unwrap() == Status::Waiting && polls % 3 > 0 {
                runner.wait().unwrap();
            }
        }
        runner.cancel();
        assert_eq!(runner.queued(), 0);
        runner.truncate(0, 0);
        assert_eq!(runner.step(&step).unwrap().outputs[at].f32, want, "after {polls} polls");
    }
}

/// Rows of several sequences in one step, with more sequences than a single token's schedule takes.
#[test]
fn sequences_side_by_side() {
    let d = definition("granitemoe");
    let Some(whole) = load(Target::Wgpu, &d.program) else { return };
    let split = hybrid(&d.program, &all_layers(&d.program), None).unwrap();
    let options = RunnerOptions { ctx: 24, sequences: 8, ubatch: 24, kv: KvType::F32 };
    let run = |loaded: &dyn Loaded| {
        let mut runner = loaded.runner(options).unwrap();
        let mut all = vec![];
        for position in 0..6 {
            let id = |s: usize| ((11 * s + 7 * position) % 90) as u32;
            let rows: Vec<Row> = (0..8).map(|s| Row { logits: true, ..Row::fed(id(s), s, position) }).collect();
            let step = runner::Step { rows: &rows, ..Default::default() };
            all.extend(runner.step(&step).unwrap().outputs[0].f32.clone());
        }
        all
    };
    compare::check(&run(&*split), &run(&*whole), 1e-9).unwrap();
}

/// Quantised experts: within what the op page grants 8-bit activations.
#[test]
fn quantised_experts() {
    let bytes = file::Bytes::from_static(moeray::session::DEMO_MODEL);
    let d = moeray::model::build(&file::open_bytes(bytes).unwrap(), &Default::default()).unwrap();
    let Some(gpu) = gpu() else { return };
    let whole = gpu.load(d.program.clone(), &mut |_| Ok(())).unwrap();
    let split = hybrid(&d.program, &all_layers(&d.program), None).unwrap();
    assert!(split.weight_bytes() > 0);
    let ids: Vec<u32> = (0..20).map(|i| (i * 37 + 5) % 300).collect();
    for chunks in [vec![20], vec![12, 1, 7], vec![1; 20]] {
        let (got, want) = (forward(&*split, &ids, &chunks), forward(&*whole, &ids, &chunks));
        compare::check(&got[0].f32, &want[0].f32, 1e-7).unwrap_or_else(|e| panic!("{chunks:?}: {e}"));
    }
}

/// The profile of a step says what the device's kernels take, the way to the processor and what it computes; what it computed stays right.
#[test]
fn profiles_have_the_processor_too() {
    let Some(model) = session("qwen2_moe", ExpertPlacement::Cpu) else { return };
    let g = golden("qwen2_moe");
    let mut s = Session::new(&model, SessionOptions { ctx: 64, ubatch: 32, kv: KvType::F32 }).unwrap();
    for tokens in [&g.ids[..1], &g.ids[..9]] {
        let times = match s.profile(tokens) {
            Ok(times) => times.unwrap(),
            Err(Error::Unsupported(what)) => return crate::support::skip(&what),
            Err(e) => panic!("{e}"),
        };
        let of = |name: &str| times.iter().find(|k| k.kernel == name).unwrap_or_else(|| panic!("no {name}: {times:?}"));
        let (way, experts) = (of("the way to the processor"), of("experts on the processor"));
        // Layer 1 of three is dense.
        assert_eq!((way.dispatches, experts.dispatches), (2, 2));
        assert!(way.seconds > 0.0 && experts.seconds > 0.0 && way.bytes > 0, "{way:?}, {experts:?}");
        assert!(times.iter().any(|k| k.kernel.starts_with("attend") && k.seconds > 0.0), "{times:?}");
    }
    let logits = s.all_logits(&g.ids).unwrap();
    compare::check(&logits, &g.logits, tolerance(Target::Wgpu)).unwrap();
}

#[test]
fn wrong_placements_are_refused() {
    let Some(gpu) = gpu() else { return };
    let refused = |name: &str, placement: ExpertPlacement| {
        let backend = BackendChoice::Gpu(gpu.clone());
        let options = LoadOptions { backend, experts: Experts { placement, cpu: cpu() }, ..LoadOptions::default() };
        let e = Model::load(&folder(name), &options, &mut |_| {}).err().unwrap();
        assert!(matches!(e, Error::Invalid(_)), "{e}");
        e.to_string()
    };
    let rules = |list: &[&str]| ExpertPlacement::Rules(list.iter().map(|r| r.parse().unwrap()).collect());
    assert!(refused("llama", ExpertPlacement::Cpu).contains("no routed experts"));
    assert!(refused("mixtral", ExpertPlacement::FirstLayers(99)).contains("99"));
    let dense = refused("llama", ExpertPlacement::LastOnGpu(1));
    assert!(dense.contains("1 of 3 layers") && dense.contains("on the GPU as a whole, or on the processor"), "{dense}");
    assert!(refused("mixtral", rules(&["nothing_like_it=cpu"])).contains("finds no weight"));
    assert!(refused("mixtral", rules(&["attn_q=cpu"])).contains("only the weights of routed experts"));
    let half = refused("mixtral", rules(&["ffn_gate_exps=cpu"]));
    assert!(half.contains("one place") && half.contains("ffn_gate_exps"), "{half}");
    for rule in ["x", "x=disk", "(=cpu"] {
        assert!(rule.parse::<moeray::session::TensorRule>().is_err(), "{rule}");
    }
    // Rules that say in other words what can be done: a later one goes before an earlier one.
    let backend = BackendChoice::Gpu(gpu.clone());
    let placement = rules(&["_exps=CPU", "blk.0.*_exps=gpu"]);
    let options = LoadOptions { backend, experts: Experts { placement, cpu: cpu() }, ..LoadOptions::default() };
    let plan = moeray::session::MemoryPlan::of(
        &folder("mixtral"),
        &options,
        &SessionOptions { ctx: 16, ..Default::default() },
    );
    let plan = plan.unwrap();
    assert!(!plan.cpu_layers.contains(&0) && plan.cpu_layers.len() + 1 == plan.expert_layers.len(), "{plan:?}");
}
