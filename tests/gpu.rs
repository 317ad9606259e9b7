//! The wgpu backend as a host sees it: which device, small limits, several sequences, errors, a device that goes away.
//! What the ops compute is in `parity`, whole models in `goldens`.

use crate::{
    goldens::definition,
    support::{
        Target, compare, gpu, load,
        one::{OneSequence, Step, one},
        rng::Rng,
        skip,
    },
};
use moeray::{
    Error,
    backend::{
        Loaded, Output, Program,
        wgpu::{self, ForcedLimits, Gpu, Options, RunOptions},
    },
    kernels::{Reduction, Tiles},
    quant::KvType,
};
use std::time::Duration;

/// The device under test, opened once more in another way; `None` where there is none (see [`gpu`]).
fn open(change: impl FnOnce(&mut Options)) -> Option<Gpu> {
    let under_test = gpu()?;
    let name = under_test.name().split(" (").next().unwrap().to_string();
    let run = RunOptions { tiles: Some(Tiles::F32), ..RunOptions::default() };
    let mut options = Options { device: Some(name), checked: true, run, ..Options::default() };
    change(&mut options);
    Some(Gpu::open(&options).unwrap())
}

fn tokens(n: usize) -> Vec<u32> {
    let mut rng = Rng(7);
    (0..n).map(|_| rng.below(300) as u32).collect()
}

/// Feeds `ids` in chunks of these lengths with every position's outputs; each chunk's logits in turn.
fn logits(loaded: &dyn Loaded, ids: &[u32], chunks: &[usize], kv: KvType) -> Vec<f32> {
    let options = one(ids.len().max(300), *chunks.iter().max().unwrap(), kv);
    let mut runner = loaded.runner(options).unwrap();
    let (mut all, mut out, mut past) = (vec![], vec![], 0);
    for n in chunks {
        let tokens = &ids[past..past + n];
        runner.run(Step { tokens, past, outputs: *n, inputs: &[] }, &mut out).unwrap();
        past += n;
        all.extend(&out[0].f32);
    }
    assert_eq!(past, ids.len());
    all
}

fn reference(program: &Program, ids: &[u32]) -> Vec<f32> {
    logits(&*load(Target::Reference, program).unwrap(), ids, &[ids.len()], KvType::F32)
}

/// Runs a golden model on `gpu` and compares with the reference; chunked prefill, then token by token.
fn check(gpu: &Gpu, name: &str, run: RunOptions) {
    let d = definition(name);
    let loaded = gpu.load_with(d.program.clone(), run, &mut |_| Ok(())).unwrap();
    let ids = tokens(24);
    let want = reference(&d.program, &ids);
    for chunks in [vec![24], vec![9, 1, 14], vec![1; 24]] {
        let got = logits(&*loaded, &ids, &chunks, KvType::F32);
        compare::check(&got, &want, 1e-9).unwrap_or_else(|e| panic!("{name}, {run:?}, {chunks:?}: {e}"));
    }
}

#[test]
fn devices_are_listed_and_one_is_chosen() {
    let list = wgpu::DeviceInfo::all();
    for (i, d) in list.iter().enumerate() {
        assert!(d.index == i && !d.name.is_empty() && !d.why.is_empty() && d.limits.max_buffer > 0);
        assert!(!(d.chosen_by_default && d.device_type == "software"), "a software device is never the default");
    }
    assert!(list.iter().filter(|d| d.chosen_by_default).count() <= 1);
    let opened = Gpu::open(&Options::default());
    match list.iter().find(|d| d.chosen_by_default) {
        Some(d) => assert!(opened.unwrap().name().contains(&d.name)),
        None => assert!(matches!(opened, Err(Error::Device(what)) if what.contains("use the CPU"))),
    }
}

#[test]
fn a_device_that_is_not_there() {
    for device in ["no such device", "99", ""] {
        let e = Gpu::open(&Options { device: Some(device.into()), ..Options::default() }).unwrap_err();
        let Error::Device(what) = &e else { panic!("{e}") };
        assert!(what.contains("no device") && what.contains("there are"), "{what}");
        // It lists what there is.
        assert!(wgpu::DeviceInfo::all().iter().all(|d| what.contains(&d.name)), "{what}");
    }
}

/// A number and a part of the name in capitals choose the same device.
#[test]
fn a_device_by_number_and_by_name() {
    let Some(gpu) = gpu() else { return };
    let d = wgpu::DeviceInfo::all().into_iter().find(|d| gpu.name().contains(&d.name)).unwrap();
    for device in [d.index.to_string(), d.name[..6].to_uppercase()] {
        let opened = Gpu::open(&Options { device: Some(device), ..Options::default() }).unwrap();
        assert!(opened.name().contains(&d.name));
    }
}

#[test]
fn the_limits_that_every_webgpu_device_has() {
    let limits = ForcedLimits { webgpu_defaults: true, ..ForcedLimits::default() };
    let Some(gpu) = open(|o| o.limits = limits) else { return };
    assert_eq!((gpu.caps().storage_bindings, gpu.caps().workgroup_bytes), (8, 16384));
    assert!(gpu.caps().max_binding <= 128 << 20 && gpu.caps().max_invocations <= 256);
    for name in ["qwen3_moe", "qwen2_moe", "llama"] {
        check(&gpu, name, RunOptions::default());
    }
    // The kernels of real GPUs too.
    check(&gpu, "qwen3_moe", RunOptions { reduction: Some(Reduction::Workgroup), ..RunOptions::default() });
}

/// Bindings so small that every matrix, experts included, is cut into segments within an expert, and a chunk of 24 tokens
/// is run in pieces.
#[test]
fn small_bindings() {
    let limits = ForcedLimits { webgpu_defaults: true, max_binding: Some(8 << 10), ..ForcedLimits::default() };
    let Some(gpu) = open(|o| o.limits = limits) else { return };
    let d = definition("mixtral");
    let graph = moeray::graph::fuse(&d.program.graph);
    let dtypes: Vec<_> = d.program.weights.iter().map(|t| t.dtype()).collect();
    let weights = moeray::plan::weights(&graph, &dtypes, gpu.caps()).unwrap();
    let experts = weights.matrices.iter().find(|m| m.name.contains("ffn_down_exps")).unwrap();
    let per_expert = graph.weight(experts.parts[0]).shape[1];
    assert!(experts.segments.iter().any(|s| s.row0 % per_expert != 0), "no cut within an expert");
    let loaded = gpu.load(d.program.clone(), &mut |_| Ok(())).unwrap();
    let ids = tokens(20);
    let want = reference(&d.program, &ids);
    for chunks in [vec![20], vec![1; 20]] {
        let options = one(20, 20, KvType::F32);
        let (mut runner, mut got, mut out, mut past) = (loaded.runner(options).unwrap(), vec![], vec![], 0);
        for n in &chunks {
            let step = Step { tokens: &ids[past..past + n], past, outputs: *n, inputs: &[] };
            runner.run(step, &mut out).unwrap();
            got.extend(&out[0].f32);
            past += n;
        }
        compare::check(&got, &want, 1e-9).unwrap_or_else(|e| panic!("{chunks:?}: {e}"));
    }
}

#[test]
fn bindings_of_8_mib() {
    let limits = ForcedLimits { webgpu_defaults: true, max_binding: Some(8 << 20), ..ForcedLimits::default() };
    let Some(gpu) = open(|o| o.limits = limits) else { return };
    assert_eq!(gpu.caps().max_binding, 8 << 20);
    check(&gpu, "olmoe", RunOptions::default());
}

/// Nothing is read that was not written, nothing is written where it does not belong: scratch and caches full of NaN, canaries
/// behind every buffer, with both reductions.
#[test]
fn poison_and_canaries() {
    let Some(gpu) = gpu() else { return };
    for name in ["qwen2_moe", "qwen3_moe"] {
        for reduction in [Reduction::Invocation, Reduction::Workgroup] {
            let run = RunOptions { poison: true, reduction: Some(reduction), ..RunOptions::default() };
            check(&gpu, name, run);
            check(&gpu, name, RunOptions { canaries: true, ..run });
        }
    }
}

/// The kernels of real GPUs, fused and not, on every architecture.
#[test]
fn workgroups_on_every_model() {
    let Some(gpu) = gpu() else { return };
    for name in ["llama", "mixtral", "olmoe"] {
        check(&gpu, name, RunOptions { reduction: Some(Reduction::Workgroup), ..RunOptions::default() });
    }
    check(&gpu, "qwen3_moe", RunOptions { fuse: false, ..RunOptions::default() });
}

/// A trained model of mixed formats with a shared expert, in both reductions, prefill and decode.
#[test]
fn the_demo_model() {
    let Some(gpu) = gpu() else { return };
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bard-q4_k_m.gguf");
    let d = moeray::model::build(&moeray::file::open(&path).unwrap(), &Default::default()).unwrap();
    let ids = tokens(12);
    let want = reference(&d.program, &ids);
    for reduction in [Reduction::Invocation, Reduction::Workgroup] {
        let run = RunOptions { reduction: Some(reduction), ..RunOptions::default() };
        let loaded = gpu.load_with(d.program.clone(), run, &mut |_| Ok(())).unwrap();
        for chunks in [vec![12], vec![1; 12]] {
            let got = logits(&*loaded, &ids, &chunks, KvType::F32);
            compare::check(&got, &want, 1e-9).unwrap_or_else(|e| panic!("{reduction:?}, {chunks:?}: {e}"));
        }
    }
}

/// Without bounds checks the same numbers, to the bit.
#[test]
fn unchecked_shaders_compute_the_same() {
    let Some(gpu) = gpu() else { return };
    let Some(unchecked) = open(|o| o.checked = false) else { return };
    let d = definition("qwen3_moe");
    let ids = tokens(24);
    let run = |g: &Gpu| logits(&*g.load(d.program.clone(), &mut |_| Ok(())).unwrap(), &ids, &[20, 1, 3], KvType::F32);
    let bits = |g: &Gpu| run(g).iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&unchecked) == bits(&gpu));
    // It is the proven ones that run without: of those that this model has, all.
    assert!(unchecked.ran_checked().is_empty(), "{:?}", unchecked.ran_checked());
}

/// A context that attention goes through in pieces, and one submission for every 5 dispatches.
#[test]
fn long_contexts_and_short_submissions() {
    let Some(gpu) = gpu() else { return };
    let d = definition("qwen3_moe");
    let ids = tokens(400);
    let want = reference(&d.program, &ids);
    for (reduction, most) in [(Reduction::Workgroup, None), (Reduction::Invocation, Some(5))] {
        let run = RunOptions { reduction: Some(reduction), max_dispatches: most, ..RunOptions::default() };
        let loaded = gpu.load_with(d.program.clone(), run, &mut |_| Ok(())).unwrap();
        let mut chunks = vec![100, 280];
        chunks.extend([1; 20]);
        let got = logits(&*loaded, &ids, &chunks, KvType::F32);
        compare::check(&got, &want, 1e-9).unwrap_or_else(|e| panic!("{reduction:?}: {e}"));
    }
}

/// Two sequences on one model, step by step in turn and from two threads: each as if alone.
#[test]
fn two_sequences_at_once() {
    let Some(gpu) = gpu() else { return };
    let d = definition("qwen2_moe");
    let loaded = gpu.load(d.program.clone(), &mut |_| Ok(())).unwrap();
    let (a, b) = (tokens(24), tokens(48)[24..].to_vec());
    let alone = [logits(&*loaded, &a, &[1; 24], KvType::F32), logits(&*loaded, &b, &[1; 24], KvType::F32)];
    assert_ne!(alone[0], alone[1]);
    let options = one(24, 4, KvType::F32);
    let mut runners = [loaded.runner(options).unwrap(), loaded.runner(options).unwrap()];
    let mut got: [Vec<f32>; 2] = [vec![], vec![]];
    let mut out: Vec<Output> = vec![];
    for past in 0..24 {
        for ((runner, ids), got) in runners.iter_mut().zip([&a, &b]).zip(&mut got) {
            runner.run(Step { tokens: &ids[past..past + 1], past, outputs: 1, inputs: &[] }, &mut out).unwrap();
            got.extend(&out[0].f32);
        }
    }
    assert!(got[0] == alone[0] && got[1] == alone[1], "in turn");
    let loaded = &*loaded;
    let threads = std::thread::scope(|s| {
        let run = |ids: Vec<u32>| s.spawn(move || logits(loaded, &ids, &[1; 24], KvType::F32));
        [run(a), run(b)].map(|t| t.join().unwrap())
    });
    assert!(threads == alone, "from two threads");
}

/// Going back overwrites: the same tokens after a detour give the same logits.
#[test]
fn going_back() {
    let Some(gpu) = gpu() else { return };
    let d = definition("mixtral");
    let loaded = gpu.load(d.program.clone(), &mut |_| Ok(())).unwrap();
    let ids = tokens(16);
    let mut runner = loaded.runner(one(16, 16, KvType::F32)).unwrap();
    let mut step = |tokens: &[u32], past: usize| {
        let mut out = vec![];
        runner.run(Step { tokens, past, outputs: 1, inputs: &[] }, &mut out).unwrap();
        out.swap_remove(0).f32
    };
    let first = step(&ids, 0);
    step(&[1, 2, 3, 4], 8);
    assert_eq!(step(&ids[8..], 8), first);
}

#[test]
fn bad_steps_are_errors() {
    let Some(gpu) = gpu() else { return };
    let d = definition("llama");
    let loaded = gpu.load(d.program.clone(), &mut |_| Ok(())).unwrap();
    assert!(loaded.runner(one(0, 1, KvType::F16)).is_err());
    let mut runner = loaded.runner(one(8, 4, KvType::F16)).unwrap();
    assert!(runner.memory_bytes() > 0 && loaded.weight_bytes() > 0);
    let mut out = vec![];
    let mut step = |tokens: &[u32], past, outputs| runner.run(Step { tokens, past, outputs, inputs: &[] }, &mut out);
    assert!(matches!(step(&[], 0, 0), Err(Error::Invalid(_))));
    assert!(matches!(step(&[1; 5], 0, 0), Err(Error::Invalid(_))));
    assert!(matches!(step(&[1; 2], 7, 0), Err(Error::ContextFull { .. })));
    assert!(matches!(step(&[u32::MAX], 0, 1), Err(Error::Invalid(_))));
    assert!(step(&[1, 2], 0, 0).is_ok() && step(&[3], 2, 1).is_ok());
    let e = loaded.runner(one(1 << 40, 4, KvType::F16)).err().unwrap();
    assert!(matches!(&e, Error::Device(what) if what.contains("shorter context")), "{e}");
}

#[test]
fn progress_reaches_the_end() {
    let Some(gpu) = gpu() else { return };
    let mut seen = vec![];
    let loaded = gpu
        .load(definition("llama").program, &mut |p| {
            seen.push((p.phase, p.done, p.total));
            Ok(())
        })
        .unwrap();
    // Whether kernels are still waited for depends on how fast they were compiled meanwhile: a phase of its own.
    let of = |phase: &str| seen.iter().filter(|s| s.0 == phase).map(|s| (s.1, s.2)).collect::<Vec<_>>();
    let (weights, kernels) = (of("weights to the GPU"), of("kernels for the GPU"));
    assert_eq!(weights.len() + kernels.len(), seen.len(), "{seen:?}");
    assert!(weights.is_sorted() && kernels.is_sorted(), "{seen:?}");
    let last = *weights.last().unwrap();
    assert_eq!(last, (last.1, loaded.weight_bytes()));
    assert!(kernels.iter().all(|(done, total)| done <= total), "{seen:?}");
}

/// A device that goes away is an error, for what runs and for what is made; another one carries on.
#[test]
fn a_lost_device() {
    let Some(gpu) = open(|_| {}) else { return };
    let d = definition("llama");
    let loaded = gpu.load(d.program.clone(), &mut |_| Ok(())).unwrap();
    let options = one(8, 4, KvType::F16);
    let mut runner = loaded.runner(options).unwrap();
    let mut out = vec![];
    let mut step = || runner.run(Step { tokens: &[1], past: 0, outputs: 1, inputs: &[] }, &mut out);
    step().unwrap();
    gpu.destroy();
    let e = step().unwrap_err();
    assert!(matches!(&e, Error::Device(what) if what.contains("lost") && what.contains("open it again")), "{e}");
    assert!(matches!(loaded.runner(options), Err(Error::Device(_))));
    assert!(matches!(gpu.load(d.program.clone(), &mut |_| Ok(())), Err(Error::Device(_))));
    let again = open(|_| {}).unwrap();
    let loaded = again.load(d.program, &mut |_| Ok(())).unwrap();
    loaded.runner(options).unwrap().run(Step { tokens: &[1], past: 0, outputs: 1, inputs: &[] }, &mut out).unwrap();
}

/// Every dispatch of a step is timed, and nothing of the sequence changes.
#[test]
fn a_profile_counts_every_dispatch() {
    let Some(gpu) = gpu() else { return };
    let d = definition("qwen3_moe");
    let loaded = gpu.load(d.program.clone(), &mut |_| Ok(())).unwrap();
    let mut runner = loaded.runner(one(24, 16, KvType::F32)).unwrap();
    let ids = tokens(12);
    let mut out = vec![];
    let step = |past: usize, n: usize| Step { tokens: &ids[past..past + n], past, outputs: 1, inputs: &[] };
    runner.run(step(0, 8), &mut out).unwrap();
    let graph = moeray::graph::fuse(&d.program.graph);
    let dtypes: Vec<_> = d.program.weights.iter().map(|t| t.dtype()).collect();
    let weights = moeray::plan::weights(&graph, &dtypes, gpu.caps()).unwrap();
    let options = moeray::plan::Options::new(24, 16, KvType::F32);
    let plan = moeray::plan::plan(&graph, &weights, gpu.caps(), &options).unwrap();
    for (n, schedule) in [(1, &plan.decode), (4, &plan.prefill)] {
        let times = match runner.time(step(8, n)) {
            Ok(times) => times.unwrap(),
            Err(Error::Unsupported(what)) => {
                assert!(what.contains("timestamp"), "{what}");
                return skip(&what);
            }
            Err(e) => panic!("{e}"),
        };
        assert_eq!(times.iter().map(|k| k.dispatches).sum::<usize>(), schedule.steps.len());
        assert!(times.iter().all(|k| k.seconds.is_finite() && k.seconds >= 0.0));
        assert!(times.iter().map(|k| k.seconds).sum::<f64>() > 0.0 && times.iter().any(|k| k.bytes > 0));
    }
    runner.run(step(8, 1), &mut out).unwrap();
    let mut other = loaded.runner(one(24, 16, KvType::F32)).unwrap();
    let mut want = vec![];
    other.run(step(0, 8), &mut want).unwrap();
    other.run(step(8, 1), &mut want).unwrap();
    assert_eq!(out, want);
    assert!(matches!(runner.time(step(0, 12)), Ok(Some(_))));
    assert!(runner.time(Step { tokens: &[], past: 0, outputs: 0, inputs: &[] }).is_err());
}

#[test]
pub fn the_roofline_is_measured() {
    let Some(gpu) = gpu() else { return };
    let loaded = gpu.load(definition("llama").program, &mut |_| Ok(())).unwrap();
    let roofline = loaded.roofline().unwrap().unwrap();
    // No device moves less than a floppy drive, none more than a thousand of today's fastest cards.
    assert!((1e5..1e16).contains(&roofline.bandwidth) && (0.0..0.1).contains(&roofline.dispatch), "{roofline:?}");
}

/// Submissions cut by the work in them compute the same.
#[test]
fn bounded_work() {
    let Some(gpu) = gpu() else { return };
    for max_work in [Some(0), Some(200_000), None] {
        check(&gpu, "mixtral", RunOptions { max_work, ..RunOptions::default() });
    }
}

/// Compiled shaders of one run serve another; those of nobody do no harm.
#[test]
fn compiled_shaders_between_runs() {
    let cache = wgpu::ShaderCache::default();
    let Some(first) = open(|o| o.shaders = cache.clone()) else { return };
    check(&first, "llama", RunOptions::default());
    let Some(bytes) = cache.bytes() else { return skip("the driver has no pipeline caches") };
    for bytes in [&bytes[..], &bytes[..bytes.len() / 2], b"", b"nobody's"] {
        // SAFETY: they come from `ShaderCache::bytes`, or are damaged so that the checksum refuses them.
        let kept = unsafe { wgpu::ShaderCache::from_bytes(bytes) };
        let second = open(|o| o.shaders = kept.clone()).unwrap();
        check(&second, "llama", RunOptions::default());
        assert!(kept.bytes().is_some());
    }
}

/// Every way to multiply tiles that the device has is measured, and gives right numbers; where time is up, only the base is.
#[test]
fn tiles_are_measured() {
    use moeray::kernels::tiles::ROWS;
    let Some(gpu) = gpu() else { return };
    let m = gpu.measure(256, 20, Duration::MAX).unwrap();
    let runs: Vec<_> = ROWS.iter().filter(|r| (r.runs)(&gpu.caps().features)).map(|r| r.tiles).collect();
    let found: Vec<_> = m.seconds.iter().map(|s| s.0).collect();
    assert!(runs == found && found.len() > 1, "{found:?} of {runs:?}");
    let base = gpu.measure(256, 20, Duration::ZERO).unwrap();
    assert_eq!((base.tiles, base.seconds.len()), (Tiles::F32, 1));
    let best = m.seconds.iter().map(|s| s.1).fold(f64::MAX, f64::min);
    assert!(m.seconds.contains(&(m.tiles, best)) && best > 0.0, "{m:?}");
    assert!(gpu.measure(100, 20, Duration::MAX).is_err() && gpu.measure(256, 0, Duration::MAX).is_err());
    // Asked for by name, what a device lacks is refused at load.
    let d = definition("llama");
    for row in ROWS.iter().filter(|r| !(r.runs)(&gpu.caps().features)) {
        let run = RunOptions { tiles: Some(row.tiles), ..RunOptions::default() };
        let e = gpu.load_with(d.program.clone(), run, &mut |_| Ok(())).err().unwrap();
        assert!(matches!(&e, Error::Unsupported(what) if what.contains(row.name)), "{e}");
    }
}
