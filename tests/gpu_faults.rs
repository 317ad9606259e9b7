//! What real devices and their drivers get wrong, or have too little of: memory that is wasted or missing, compilers that refuse a
//! kernel.

use crate::{
    goldens::definition,
    plan_sizes::unmade,
    support::{compare, gpu, one::one, skip},
};
use moeray::{
    backend::{
        Loaded, reference,
        runner::{Row, Runner, RunnerOptions, Step},
        wgpu::{ForcedLimits, Gpu, Options, Requirements, RunOptions},
    },
    file::{Tensor, synth},
    generate::{SamplerOptions, Sampling},
    graph,
    kernels::{Reduction, Tiles},
    model,
    ops::linear::Activations,
    plan::{self, Caps, Plan, Weights},
    quant::{DType, KvType},
};
use std::path::Path;

/// The device under test, opened once more in another way; `None` where there is none.
fn open(change: impl FnOnce(&mut Options)) -> Option<Gpu> {
    let name = gpu()?.name().split(" (").next().unwrap().to_string();
    let mut options = Options { device: Some(name), checked: true, ..Options::default() };
    change(&mut options);
    Some(Gpu::open(&options).unwrap())
}

/// Every buffer that a model and its runner need, by size.
fn buffers(w: &Weights, p: &Plan) -> Vec<u64> {
    let mut all: Vec<u64> = w.matrices.iter().flat_map(|m| &m.segments).map(|s| s.bytes).collect();
    all.push(w.vector_bytes);
    all.extend(p.caches.iter().flat_map(|c| [c.keys, c.values]));
    all.extend(p.schedules().into_iter().filter_map(|s| s.1).flat_map(|s| &s.scratch).map(|s| s.bytes));
    all.extend(p.ropes.iter().map(|r| r.bytes));
    all.extend(&p.states);
    all
}

/// The weights and the plan of a preset, as on a card of a desktop.
fn planned(shape: &synth::Shape) -> (Weights, Plan) {
    let d = unmade(shape, |name, dims| match name {
        _ if !dims[dims.len() - 1].is_multiple_of(256) => DType::Q8_0,
        _ if ["attn_v", "ffn_down", "output.weight"].iter().any(|s| name.contains(s)) => DType::Q6K,
        _ => DType::Q4K,
    });
    let caps = Caps { max_binding: (1 << 31) - 4, max_buffer: (1 << 31) - 4, ..Caps::webgpu_defaults() };
    let g = graph::fuse(&d.program.graph);
    let dtypes: Vec<DType> = d.program.weights.iter().map(Tensor::dtype).collect();
    let weights = plan::weights(&g, &dtypes, &caps).unwrap();
    let plan = plan::plan(&g, &weights, &caps, &plan::Options::new(8192, 512, KvType::F16)).unwrap();
    (weights, plan)
}

/// wgpu's allocator holds hardly more than what is used. Its blocks of 256 MiB, the default, wasted a quarter of a card on a
/// Qwen3-30B-A3B, and 72 percent of GPT-OSS-20B's size.
///
/// The buffers are made as the driver's memory and not touched: a software device gives them pages only when they are used.
#[test]
fn memory_is_not_wasted() {
    let Some(under_test) = gpu() else { return };
    let name = under_test.name().split(" (").next().unwrap().to_string();
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let adapter = adapters.into_iter().find(|a| a.get_info().name.contains(&name)).unwrap();
    for shape in &synth::PRESETS {
        let descriptor = wgpu::DeviceDescriptor {
            required_limits: Requirements::minimum().best_limits(&adapter),
            memory_hints: Requirements::minimum().memory_hints,
            ..Default::default()
        };
        let (device, _queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let (w, p) = planned(shape);
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let make = |size: u64| {
            let size = size.max(16).next_multiple_of(4);
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
        };
        let held: Vec<wgpu::Buffer> = buffers(&w, &p).into_iter().map(make).collect();
        let wanted: u64 = held.iter().map(wgpu::Buffer::size).sum();
        let Some(report) = device.generate_allocator_report() else { return skip("wgpu counts no memory here") };
        // Small models: a block that is not full.
        let most = wanted + wanted / 50 + (8 << 20);
        println!("{}: {} bytes in {} buffers, {} held", shape.name, wanted, held.len(), report.total_reserved_bytes);
        assert!(report.total_reserved_bytes <= most, "{}: {} for {wanted}", shape.name, report.total_reserved_bytes);
    }
}

/// The same of a model that was loaded, with all that a runner makes beside the plan.
#[test]
fn a_loaded_model_holds_what_it_says() {
    let Some(gpu) = open(|_| {}) else { return };
    let before = gpu.held_memory().unwrap()[0];
    let program = {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bard-q4_k_m.gguf");
        model::build(&moeray::file::open(&path).unwrap(), &model::Options::default()).unwrap().program
    };
    let loaded = gpu.load(program, &mut |_| Ok(())).unwrap();
    let runner = loaded.runner(RunnerOptions { ctx: 16384, sequences: 4, ubatch: 64, kv: KvType::F32 }).unwrap();
    let said = loaded.weight_bytes() + runner.memory_bytes();
    let [held, used] = gpu.held_memory().unwrap();
    println!("{said} bytes said, {used} used, {held} held, {before} before");
    assert!(held - before <= said + said / 50 + (16 << 20), "{held} bytes are held for {said}");
    assert!(said <= used + used / 50, "{said} bytes are said to be in use of {used}");
}

/// What cannot fit is refused before the first byte is sent, with what it takes and what there is.
#[test]
fn what_does_not_fit_is_refused_first() {
    let limits = |memory| ForcedLimits { memory: Some(memory), ..ForcedLimits::default() };
    let Some(small) = open(|o| o.limits = limits(1 << 10)) else { return };
    let mut reports = 0;
    let refused = small.load(definition("qwen3_moe").program, &mut |_| {
        reports += 1;
        Ok(())
    });
    let e = refused.err().unwrap().to_string();
    assert!(reports == 0 && e.contains("the weights take") && e.contains("left"), "{reports} reports: {e}");
    // Room for the weights, and for a short context.
    let gpu = open(|o| o.limits = limits(64 << 20)).unwrap();
    assert_eq!(gpu.free_memory(), Some(64 << 20));
    let loaded = gpu.load(definition("qwen3_moe").program, &mut |_| Ok(())).unwrap();
    assert!(loaded.runner(one(64, 8, KvType::F16)).is_ok());
    let e = loaded.runner(one(1 << 17, 8, KvType::F32)).err().unwrap().to_string();
    assert!(e.contains("keys, values and working memory") && e.contains("shorter context"), "{e}");
}

/// Software devices share the memory of the machine, and say how much there is.
#[test]
fn the_driver_says_what_is_left() {
    let Some(gpu) = gpu() else { return };
    match gpu.free_memory() {
        Some(free) => assert!(free > 16 << 20, "{free} bytes"),
        None => skip("the driver does not say what memory is left"),
    }
}

fn greedy(loaded: &dyn Loaded) -> (bool, Vec<u32>) {
    let mut r = loaded.runner(one(32, 8, KvType::F32)).unwrap();
    let rules = Sampling { options: SamplerOptions::greedy(), ..Sampling::default() };
    let on_device = r.set_sampler(0, &rules).unwrap();
    let (mut all, mut next) = (vec![], vec![5, 6, 7]);
    while all.len() < 6 {
        let at = r.len(0);
        let mut rows: Vec<Row> = next.iter().zip(at..).map(|(id, p)| Row::fed(*id, 0, p)).collect();
        rows.last_mut().unwrap().choose = Some(0);
        let token = r.step(&Step { rows: &rows, ..Step::default() }).unwrap().tokens[0].token().unwrap();
        all.push(token);
        next = vec![token];
    }
    (on_device, all)
}

/// A compiler that refuses the sampler's kernels ends no generation: tokens are chosen on the host, and are the same.
#[test]
fn a_sampler_that_does_not_compile_is_done_without() {
    let Some(gpu) = open(|_| {}) else { return };
    let program = definition("qwen3_moe").program;
    let want = greedy(&*gpu.load(program.clone(), &mut |_| Ok(())).unwrap());
    assert!(want.0, "the device chooses");
    for kernel in ["sample_pick", "sample_keys"] {
        let broken = open(|_| {}).unwrap();
        broken.edit_shaders(move |name, text| {
            if name == kernel {
                text.push_str("\nfn refused() -> u32 { return 1.5; }\n");
            }
        });
        let got = greedy(&*broken.load(program.clone(), &mut |_| Ok(())).unwrap());
        assert_eq!(got, (false, want.1.clone()), "without {kernel}");
    }
}

/// Logits of a few tokens of a small model in Q6_K, nearly all of whose scales are subnormal halves.
fn scales_of_q6_k(loaded: &dyn Loaded) -> Vec<f32> {
    let mut r = loaded.runner(one(8, 4, KvType::F32)).unwrap();
    let rows: Vec<Row> = (0..3).map(|i| Row { logits: true, ..Row::fed(5 + i as u32, 0, i) }).collect();
    r.step(&Step { rows: &rows, ..Step::default() }).unwrap().outputs[0].f32.clone()
}

/// A device whose conversion of halves drops subnormal ones is told apart when it is opened, and gets a decode that does not depend on
/// it: its numbers are right. Imitated by shaders that drop them; without that decode the numbers are wrong.
#[test]
fn subnormal_halves_survive() {
    let Some(under_test) = gpu() else { return };
    let probed = under_test.probe().unwrap();
    println!("{probed:?}");
    let shape = synth::Shape::preset("tiny").unwrap().with_layers(1);
    let format = |_: &str, dims: &[usize]| match dims[dims.len() - 1].is_multiple_of(256) {
        true => DType::Q6K,
        false => DType::Q8_0,
    };
    let synthetic = synth::Synthetic::new(&shape, 3, format).unwrap();
    let checkpoint = synthetic.checkpoint(&mut |_, _| Ok(())).unwrap();
    let program = model::build(&checkpoint, &model::Options::default()).unwrap().program;
    assert!(program.weights.iter().any(|w| w.dtype() == DType::Q6K));
    let want = scales_of_q6_k(&*reference::load_with(program.clone(), Activations::F32).unwrap());
    let on = |flushes: bool, told: bool, reduction: Reduction| {
        let gpu = open(|o| o.without_halves = told).unwrap();
        assert_eq!(gpu.caps().features.flushes_halves, told || probed.flushes_halves);
        if flushes {
            gpu.edit_shaders(|_, text| {
                let kept = "vec2<f32> { let v = unpack2x16float(w); return select(v, vec2<f32>(0.0), abs(v) < vec2<f32>(6.1035e-5)); }";
                *text = text.replace("unpack2x16float(", "flushing(") + &format!("\nfn flushing(w: u32) -> {kept}\n");
            });
        }
        let run = RunOptions { reduction: Some(reduction), tiles: Some(Tiles::F32), ..RunOptions::default() };
        let got = scales_of_q6_k(&*gpu.load_with(program.clone(), run, &mut |_| Ok(())).unwrap());
        compare::diff(&got, &want)
    };
    for reduction in [Reduction::Invocation, Reduction::Workgroup] {
        for (flushes, told) in [(false, true), (true, true)] {
            let d = on(flushes, told, reduction);
            assert!(d.non_finite == 0 && d.nmse < 1e-9, "flushes {flushes}, told {told}, {reduction:?}: {d:?}");
        }
    }
    let d = on(true, false, Reduction::Workgroup);
    assert!(d.nmse > 1e-2, "without it nothing is wrong: {d:?}");
}

/// A cache larger than what the device binds lies in several buffers: heads and sequences in all of them run, are saved, forked and
/// restored as in one.
#[test]
fn caches_in_several_buffers() {
    let limits = ForcedLimits { webgpu_defaults: true, max_binding: Some(8 << 10), ..ForcedLimits::default() };
    let Some(gpu) = open(|o| o.limits = limits) else { return };
    let options = |sequences: usize| RunnerOptions { ctx: 60, sequences, ubatch: 16, kv: KvType::F32 };
    for name in ["mixtral", "qwen3_moe"] {
        let program = definition(name).program;
        let g = graph::fuse(&program.graph);
        let dtypes: Vec<DType> = program.weights.iter().map(Tensor::dtype).collect();
        let weights = plan::weights(&g, &dtypes, gpu.caps()).unwrap();
        let planned = |sequences| {
            let o = plan::Options { sequences, ..plan::Options::new(60, 16, KvType::F32) };
            plan::plan(&g, &weights, gpu.caps(), &o).unwrap().caches[0].parts.len()
        };
        println!("{name}: {} and {} parts", planned(None), planned(Some(5)));
        assert!(planned(Some(5)) > 2, "{name}: the caches are not cut");
        let ids: Vec<u32> = (0..23).map(|i| (i * 37 + 5) % 300).collect();
        let fed = |r: &mut Runner, sequence: usize, from: usize, to: usize| {
            let row = |i: usize| Row { logits: i + 1 == to, ..Row::fed(ids[i], sequence, i) };
            let rows: Vec<Row> = (from..to).map(row).collect();
            r.step(&Step { rows: &rows, ..Step::default() }).unwrap().outputs[0].f32.clone()
        };
        let exact = reference::load_with(program.clone(), Activations::F32).unwrap();
        let mut one = exact.runner(options(1)).unwrap();
        let want = [fed(&mut one, 0, 0, 12), fed(&mut one, 0, 12, 13), fed(&mut one, 0, 13, 23)];
        for reduction in [Reduction::Invocation, Reduction::Workgroup] {
            let run = RunOptions {
                reduction: Some(reduction),
                tiles: Some(Tiles::F32),
                poison: true,
                canaries: true,
                ..RunOptions::default()
            };
            let loaded = gpu.load_with(program.clone(), run, &mut |_| Ok(())).unwrap();
            let mut r = loaded.runner(options(5)).unwrap();
            let same = |got: &[f32], i: usize, what: &str| {
                compare::check(got, &want[i], 1e-9).unwrap_or_else(|e| panic!("{name}, {reduction:?}, {what}: {e}"));
            };
            for sequence in [4, 1] {
                same(&fed(&mut r, sequence, 0, 12), 0, "a prompt");
                same(&fed(&mut r, sequence, 12, 13), 1, "a token");
            }
            r.fork(4, 2, 13).unwrap();
            let saved = r.save(1, 13).unwrap();
            r.restore(3, &saved).unwrap();
            for sequence in [2, 3, 4] {
                same(&fed(&mut r, sequence, 13, 23), 2, "what follows");
            }
        }
    }
}
