//! Layers split over several devices: two of one GPU, a GPU and the processor, the processor twice.

use crate::{
    cli::{fails, ok},
    goldens::{self, definition, families, folder, forward, golden, names, tolerance},
    support::{Target, compare, gpu, gpu_number, load},
};
use moeray::{
    Error,
    backend::{
        Loaded, Program, cpu,
        runner::{self, Budget, Row, RunnerOptions},
        stages::{Placed, staged},
        wgpu,
    },
    generate::SamplerOptions,
    generate::{GenerateOptions, generate},
    graph::{self, ranges_of_layers},
    ops::linear::Activations,
    quant::KvType,
    session::{BackendChoice, ExpertPlacement, Experts, LoadOptions, MemoryPlan, Model, Session, SessionOptions},
};

#[test]
fn ranges_by_shares() {
    let of = |layers, shares: &[u32]| ranges_of_layers(layers, shares).map_err(|e| e.to_string());
    assert_eq!(of(4, &[1, 3]), Ok(vec![0..1, 1..4]));
    assert_eq!(of(48, &[1, 1]), Ok(vec![0..24, 24..48]));
    assert_eq!(of(5, &[7]).map(|r| (r.len(), r[0].clone())), Ok((1, 0..5)));
    // Each has a layer, however small its share.
    assert_eq!(of(3, &[1000, 1, 1]), Ok(vec![0..1, 1..2, 2..3]));
    assert_eq!(of(10, &[1, 1000]), Ok(vec![0..1, 1..10]));
    assert_eq!(of(7, &[1, 1, 1]), Ok(vec![0..2, 2..5, 5..7]));
    assert_eq!(of(3, &[u32::MAX, u32::MAX]), Ok(vec![0..2, 2..3]));
    assert!(of(2, &[1, 1, 1]).unwrap_err().contains("2 layers for 3 devices"));
    assert!(of(2, &[0, 1]).unwrap_err().contains("share of 0") && of(2, &[]).is_err());
}

/// A program whose stages are on these targets, with equal shares; `None` without a GPU where one is wanted, or where its layers cannot be
/// parted like that.
fn split(program: &Program, targets: &[Target]) -> Option<Box<dyn Loaded>> {
    let shares = vec![1; targets.len()];
    let ranges = ranges_of_layers(graph::layers(&program.graph), &shares).ok()?;
    let placed = |(stage, target): (graph::Stage, &Target)| {
        let loaded = load(*target, &stage.program)?;
        Some(Placed { stage, loaded })
    };
    let stages = graph::stages(program, &ranges).unwrap().into_iter().zip(targets);
    Some(staged(program.clone(), stages.map(placed).collect::<Option<_>>()?))
}

/// Every family, dense ones too: the same bits on the processor, the goldens' numbers on a GPU and over its borders, and the same experts.
#[test]
fn goldens_on_two_and_three_devices() {
    use Target::{Cpu, Wgpu, WgpuWorkgroup};
    for (i, name) in families().enumerate() {
        let (d, g) = (definition(name), golden(name));
        let at = names(&d).iter().position(|n| n == "logits").unwrap();
        let t = g.ids.len();
        let chunks = [7, 1, 3, t - 11];
        let whole = forward(&*load(Cpu, &d.program).unwrap(), &g.ids, &chunks);
        for targets in [&[Cpu, Cpu][..], &[Cpu, Cpu, Cpu]] {
            let Some(parts) = split(&d.program, targets) else { continue };
            assert!(forward(&*parts, &g.ids, &chunks) == whole, "{name} on {} processors: other bits", targets.len());
        }
        let gpus = [[Wgpu, Wgpu], [Wgpu, Cpu], [Cpu, Wgpu], [WgpuWorkgroup, Cpu]][i % 4];
        let Some(parts) = split(&d.program, &gpus) else { continue };
        let out = forward(&*parts, &g.ids, &chunks);
        compare::check(&out[at].f32, &g.logits, tolerance(Wgpu)).unwrap_or_else(|e| panic!("{name} on {gpus:?}: {e}"));
        goldens::check_routing(name, &d, &out, &g).unwrap_or_else(|e| panic!("{name} on {gpus:?}: {e}"));
    }
}

fn rows(ids: &[u32], first: usize) -> Vec<Row> {
    let last = ids.len() - 1;
    ids.iter().enumerate().map(|(i, id)| Row { logits: i == last, ..Row::fed(*id, 0, first + i) }).collect()
}

/// Sequences that are saved, put back, forked, and steps that are cancelled between any two slices, with recurrent states too.
#[test]
fn sequences_and_cancelled_steps() {
    for name in ["qwen2_moe", "qwen3_next", "lfm2_moe"] {
        let program = goldens::defined(name, false).program;
        let g = golden(name);
        let options = RunnerOptions { ctx: 64, sequences: 2, ubatch: 32, kv: KvType::F16 };
        for targets in [[Target::Cpu, Target::Cpu], [Target::Wgpu, Target::Cpu]] {
            let Some(loaded) = split(&program, &targets) else { continue };
            let mut runner = loaded.runner(options).unwrap();
            let step = |runner: &mut runner::Runner, rows: &[Row]| {
                let step = runner::Step { rows, ..Default::default() };
                runner.step(&step).unwrap().outputs.iter().find(|o| !o.f32.is_empty()).unwrap().f32.clone()
            };
            step(&mut runner, &rows(&g.ids[..9], 0));
            let saved = runner.save(0, 9).unwrap();
            let want = step(&mut runner, &rows(&g.ids[9..12], 9));
            for polls in 0..9 {
                runner.restore(0, &saved).unwrap();
                let cancelled = rows(&g.ids[10..12], 9);
                runner.begin(&runner::Step { rows: &cancelled, ..Default::default() }).unwrap();
                (0..polls).for_each(|_| _ = runner.poll(Budget::dispatches(4)).unwrap());
                runner.cancel();
                runner.restore(0, &saved).unwrap();
                assert!(
                    step(&mut runner, &rows(&g.ids[9..12], 9)) == want,
                    "{name} on {targets:?} after {polls} polls"
                );
            }
            runner.restore(0, &saved).unwrap();
            runner.fork(0, 1, 9).unwrap();
            let other: Vec<Row> = rows(&g.ids[9..12], 9).into_iter().map(|r| Row { sequence: 1, ..r }).collect();
            assert!(step(&mut runner, &other) == want, "{name} on {targets:?}, forked");
        }
    }
}

fn processor() -> BackendChoice {
    BackendChoice::Cpu(cpu::Options { activations: Activations::Int16, threads: Some(1), ..Default::default() })
}

fn options(places: &[(BackendChoice, u32)]) -> LoadOptions {
    LoadOptions { backend: BackendChoice::Split(places.to_vec()), ..LoadOptions::default() }
}

/// The same greedy text through the library as on one device, and hidden states; the closing line says which layers are where.
#[test]
fn the_same_text() {
    let Some(gpu) = gpu() else { return };
    let gpu = || BackendChoice::Gpu(gpu.clone());
    let text = |options: &LoadOptions| {
        let model = Model::load(&folder("qwen3_moe"), options, &mut |_| {}).unwrap();
        let mut s = Session::new(&model, SessionOptions { ctx: 64, ubatch: 16, ..Default::default() }).unwrap();
        let options = GenerateOptions { max_tokens: 12, sampler: SamplerOptions::greedy(), ..Default::default() };
        let pieces = generate(&mut s, None, &golden("qwen3_moe").ids, options, Default::default()).unwrap();
        (pieces.map(|p| p.unwrap().id).collect::<Vec<u32>>(), model.describe())
    };
    let (want, _) = text(&LoadOptions { backend: gpu(), ..LoadOptions::default() });
    for places in [[(gpu(), 1), (gpu(), 2)], [(gpu(), 1), (processor(), 1)], [(processor(), 3), (gpu(), 1)]] {
        let (ids, place) = text(&options(&places));
        assert_eq!(ids, want, "{place}");
        assert!(place.contains("layers 0-") && place.contains("; layers "), "{place}");
    }
}

/// What each device takes, before anything is loaded: its layers' weights, keys and values, and no others'.
#[test]
fn memory_of_each() {
    let session = SessionOptions { ctx: 256, ubatch: 16, kv: KvType::F16 };
    let plan = |options: &LoadOptions| MemoryPlan::of(&folder("qwen3_moe"), options, &session).unwrap();
    let whole = plan(&LoadOptions { backend: processor(), ..LoadOptions::default() });
    let parts = plan(&options(&[(processor(), 1), (processor(), 2)]));
    let [(a, first), (b, second)] = &parts.split[..] else { panic!("{parts:?}") };
    assert_eq!((first.start, first.end, second.end), (0, second.start, whole_layers()));
    assert!(parts.gpu.is_none() && parts.cpu.total() == 0);
    assert_eq!(a.kv + b.kv, whole.cpu.kv);
    assert_eq!(
        a.kv * second.len() as u64,
        b.kv * first.len() as u64,
        "a layer's keys and values lie where the layer is"
    );
    let weights = |p: &moeray::session::PlaceBytes| p.weights.total() + p.mapped.total();
    assert_eq!(weights(a) + weights(b), weights(&whole.cpu));
    let experts = |p: &moeray::session::PlaceBytes| p.weights.experts + p.mapped.experts;
    assert_eq!(experts(a) * second.len() as u64, experts(b) * first.len() as u64);
    let Some(shared) = gpu() else { return };
    // A device of its own: other tests allocate on theirs meanwhile.
    let device = Some(shared.name().split(" (").next().unwrap().to_string());
    let gpu = wgpu::Gpu::open(&wgpu::Options { device, ..wgpu::Options::default() }).unwrap();
    let Some(before) = gpu.held_memory().map(|m| m[1]) else { return crate::support::skip("no allocator report") };
    let places = options(&[(BackendChoice::Gpu(gpu.clone()), 1), (processor(), 2)]);
    let said = plan(&places).split[0].0.total();
    let model = Model::load(&folder("qwen3_moe"), &places, &mut |_| {}).unwrap();
    let held = gpu.held_memory().unwrap()[1] - before;
    let weights = plan(&places).split[0].0.weights.total();
    assert!(held >= weights && held <= said + (1 << 16), "{held} held, {weights} of weights, {said} in all");
    drop(model);
}

fn whole_layers() -> usize {
    graph::layers(&goldens::defined("qwen3_moe", false).program.graph)
}

#[test]
fn splits_that_cannot_be() {
    let refused = |places: &[(BackendChoice, u32)], more: LoadOptions| {
        let options = LoadOptions { backend: BackendChoice::Split(places.to_vec()), ..more };
        let e = Model::load(&folder("qwen3_moe"), &options, &mut |_| {}).err().unwrap();
        let planned = MemoryPlan::of(&folder("qwen3_moe"), &options, &SessionOptions::default()).unwrap_err();
        assert_eq!(e.to_string(), planned.to_string());
        assert!(matches!(e, Error::Invalid(_) | Error::Unsupported(_)), "{e:?}");
        e.to_string()
    };
    let plain = LoadOptions::default;
    assert!(refused(&[(processor(), 0), (processor(), 1)], plain()).contains("share of 0"));
    assert!(refused(&vec![(processor(), 1); 60], plain()).contains("for 60 devices"));
    assert!(refused(&[], plain()).contains("for 0 devices"));
    assert!(refused(&[(BackendChoice::Reference, 1), (processor(), 1)], plain()).contains("nothing else"));
    let experts = Experts { placement: ExpertPlacement::Cpu, ..Experts::default() };
    let both = [(processor(), 1), (processor(), 1)];
    assert!(refused(&both, LoadOptions { experts, ..plain() }).contains("stay with their layers"));
}

/// The same as a person says it.
#[test]
#[cfg(all(feature = "cli", feature = "demo-model"))]
fn devices_of_the_program() {
    let run = ["run", "-q", "-n", "12", "--temp", "0", "--json", "-p", "ROMEO:"];
    let text = |more: &[&str]| -> serde_json::Value { serde_json::from_str(&ok(&[&run[..], more].concat())).unwrap() };
    let alone = text(&["--backend", "cpu"]);
    let two = text(&["--device", "cpu,cpu", "--split", "1,3"]);
    assert_eq!(two["ids"], alone["ids"]);
    let place = two["backend"].as_str().unwrap();
    assert!(place.starts_with("layers 0-0 on cpu") && place.contains("; layers 1-3 on cpu"), "{place}");
    let cpus = |more: &[&'static str]| [&run[..], &["--device", "cpu,cpu"], more].concat();
    fails(&cpus(&["--split", "1,2,3"]), &["--split has 3 shares", "names 2"]);
    fails(&cpus(&["--split", "0,1"]), &["share of 0"]);
    fails(&cpus(&["--backend", "cpu"]), &["--backend"]);
    fails(&cpus(&["--cpu-moe"]), &["stay with their layers"]);
    fails(&[&run[..], &["--device", "cpu,cpu,cpu,cpu,cpu"]].concat(), &["4 layers for 5 devices"]);
    fails(&[&run[..], &["--device", "cpu,"]].concat(), &["empty"]);
    fails(&[&run[..], &["--device", "cpu,no such card"]].concat(), &["no such card"]);
    let memory = ok(&["inspect", "--memory", "--device", "cpu,cpu", "--split", "1,3"]);
    assert!(memory.contains("layers 0\n") && memory.contains("layers 1-3\n"), "{memory}");
    let Some(n) = gpu_number() else { return };
    let alone = text(&["--device", &n]);
    let twice = format!("{n},{n}");
    for more in [&["--device", &twice, "--split", "1,3"][..], &["--device", &twice], &["--device", &format!("{n},cpu")]]
    {
        assert_eq!(text(more)["ids"], alone["ids"], "{more:?}");
    }
    let json = ok(&["inspect", "--memory", "--json", "--device", &twice, "--split", "1,3"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let part = |i: usize| &json["split"][i];
    assert_eq!((part(0)["layers"].as_u64(), part(1)["first_layer"].as_u64()), (Some(1), Some(1)));
    assert_eq!(part(0)["place"]["kv"].as_u64().map(|n| 3 * n), part(1)["place"]["kv"].as_u64());
}
