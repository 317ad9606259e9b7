//! Which variants of kernels run without the checks of wgpu: `src/kernels/proven.txt` lists them, and here it is held to what the
//! tests run with every check on, and to what real models need.

use crate::{
    goldens, gpu, gpu_sampler, parity, plan_sizes,
    support::{self, compare},
};
use moeray::{
    backend::{
        Loaded, Program, reference,
        runner::{Row, RunnerOptions, Step},
        wgpu::{Gpu, RunOptions},
    },
    file::{
        self,
        synth::{self, Shape, Synthetic},
    },
    graph,
    kernels::{self, Reduction, Tiles, tiles::DeviceFeatures},
    model,
    ops::linear::Activations,
    plan::{self, Caps, Options},
    quant::{
        DType, KvType,
        mix::{Mix, Model},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

fn list() -> BTreeSet<String> {
    kernels::proven().map(String::from).collect()
}

/// Runs (or waits for) what may prove a variant: the table of parity, whole models against their goldens, tokens chosen on the
/// device. Every check is on, and numbers are compared.
fn run_all() {
    use support::Target::{Wgpu, WgpuWorkgroup};
    for target in [Wgpu, WgpuWorkgroup] {
        parity::TABLE.iter().for_each(|(name, cases)| parity::case::check_table(name, *cases, target));
        goldens::check_models_once(target);
    }
    parity::tiles_of_halves_and_bytes();
    parity::subgroups();
    support::once("small models", small_models);
    support::once("deep batch", deep_batch);
    gpu_sampler::ties();
    gpu::the_roofline_is_measured();
}

/// Whatever is listed was run. What the list lacks still runs, with checks: `MOERAY_WRITE_PROVEN=1 cargo test -- proven` writes it
/// anew (nothing but this test may run then, or it depends on chance what is listed).
#[test]
fn the_list_holds_what_was_run() {
    let Some(gpu) = support::gpu() else { return };
    run_all();
    let ran = support::ran_checked();
    if std::env::var_os("MOERAY_WRITE_PROVEN").is_some() {
        let text: String = ran.iter().map(|l| format!("{l}\n")).collect();
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/proven.txt"), text).unwrap();
        return;
    }
    let unproven: Vec<String> = list().difference(&ran).cloned().collect();
    // Devices with other features or subgroups have other variants; on them, what the list has beyond theirs was not run.
    if !unproven.is_empty() && !gpu.name().contains(WRITER) {
        return support::skip(&format!("{} has no use for {} variants of the list", gpu.name(), unproven.len()));
    }
    assert!(unproven.is_empty(), "listed as proven, but nothing ran {unproven:#?}");
}

/// Part of the name of the device that wrote the list: lavapipe with vectors of 256 bits.
const WRITER: &str = "256 bits";

/// The mixes of formats that presets are proven in: what people download most. Others run checked where they have a variant that no
/// case of the tables has.
const MIXES: [Mix; 3] = [Mix::Q4_K_M, Mix::Q8_0, Mix::Q4_0];

/// Who is proven in what: MXFP4 is of GPT-OSS alone.
fn mixes(shape: &Shape) -> impl Iterator<Item = Mix> {
    MIXES.into_iter().chain((shape.arch == "gpt-oss").then_some(Mix::MXFP4_MOE))
}

/// The presets that are proven: all but gpt-oss-120b, whose small form chooses other experts where activations have 8 bits, so that
/// its numbers say little. It has the kernels of gpt-oss-20b but for those that know of 128 experts, which run checked.
fn presets() -> impl Iterator<Item = &'static Shape> {
    synth::PRESETS.iter().filter(|s| s.name != "gpt-oss-120b")
}

/// Which format a mix gives a tensor of a preset of eight layers: the first layer is one of those that get more bits in some mixes,
/// the second is not.
pub fn format(shape: &Shape, mix: Mix, name: &str, dims: &[usize]) -> DType {
    let (experts, heads_per_kv) = (shape.experts, shape.heads / shape.kv_heads);
    mix.choose(&Model { layers: 8, experts, heads_per_kv, tied: shape.tied }, name, dims).unwrap_or(DType::F32)
}

/// A preset's model with everything smaller that no variant of a kernel depends on: which sizes are beyond 512 and whole numbers of
/// 32 and of 256, columns of heads and how many share a head of keys, experts in whole 64s and how many a token uses stay.
fn small(shape: &Shape) -> Shape {
    let size = |n: usize| match n {
        0..=512 => n,
        _ if n.is_multiple_of(256) => 768,
        _ => 544,
    };
    let group = shape.heads / shape.kv_heads;
    let heads = match shape.heads * shape.head_dim {
        0..=512 => shape.heads,
        _ => 768usize.div_ceil(shape.head_dim * group) * group,
    };
    let experts = if shape.experts == 8 { 8 } else { (shape.experts - 1) / 64 * 64 + shape.used.max(4) };
    Shape {
        layers: 2,
        hidden: size(shape.hidden),
        heads,
        kv_heads: heads / group,
        experts,
        used: shape.used,
        expert_width: size(shape.expert_width),
        shared_width: size(shape.shared_width),
        vocab: 320,
        context: 512,
        ..shape.clone()
    }
}

/// Logits of every position: a prompt, one token, and a few, of the last of so many sequences. The context is one whose attention is
/// split.
fn logits(loaded: &dyn Loaded, kv: KvType, sequences: usize) -> Vec<f32> {
    let mut runner = loaded.runner(RunnerOptions { ctx: 512, sequences, ubatch: 64, kv }).unwrap();
    let (mut all, mut position) = (vec![], 0);
    for n in [12, 1, 3] {
        let row = |i: usize| Row { logits: true, ..Row::fed((31 * i % 300) as u32, sequences - 1, i) };
        let rows: Vec<Row> = (position..position + n).map(row).collect();
        let results = runner.step(&Step { rows: &rows, ..Step::default() }).unwrap();
        all.extend(&results.outputs[0].f32);
        position += n;
    }
    all
}

/// Every preset in its mixes, small, and the demo model, in every way that real GPUs run them and that proves a variant.
fn small_models() {
    let Some(gpu) = support::gpu() else { return };
    let mut planned = BTreeSet::new();
    for shape in presets().map(small) {
        for (i, mix) in mixes(&shape).enumerate() {
            let synthetic = Synthetic::new(&shape, 7, |name, dims| format(&shape, mix, name, dims)).unwrap();
            let ckpt = synthetic.checkpoint(&mut |_, _| Ok(())).unwrap();
            let program = model::build(&ckpt, &model::Options::default()).unwrap().program;
            in_every_way(&gpu, &format!("{} in {}", shape.name, mix.name()), &program, i == 0, &mut planned);
        }
    }
    in_every_way(&gpu, "the demo model", &demo(), true, &mut planned);
}

/// Several sequences whose attention is cut into pieces: the demo model's 320 tokens as the second of two, against the reference.
fn deep_batch() {
    let Some(gpu) = support::gpu() else { return };
    let run =
        RunOptions { reduction: Some(Reduction::Workgroup), poison: true, canaries: true, ..RunOptions::default() };
    let last = |loaded: &dyn Loaded, sequences: usize| {
        let options = RunnerOptions { ctx: 4096, sequences, ubatch: 64, kv: KvType::F16 };
        let mut runner = loaded.runner(options).unwrap();
        let mut logits = vec![];
        for first in (0..320).step_by(64) {
            let row = |i: usize| Row { logits: i == 319, ..Row::fed((31 * i % 300) as u32, sequences - 1, i) };
            let rows: Vec<Row> = (first..first + 64).map(row).collect();
            logits = runner.step(&Step { rows: &rows, ..Step::default() }).unwrap().outputs[0].f32.clone();
        }
        logits
    };
    let reference = reference::load_with(demo(), Activations::F32).unwrap();
    let loaded = gpu.load_with(demo(), run, &mut |_| Ok(())).unwrap();
    let d = compare::diff(&last(&*loaded, 2), &last(&*reference, 1));
    assert!(d.non_finite == 0 && d.nmse < 1e-6, "{d:?}");
}

#[test]
fn attention_of_batches_is_cut_too() {
    if support::gpu().is_none() {
        return;
    }
    support::once("deep batch", deep_batch);
    let ran = support::ran_checked();
    assert!(ran.iter().any(|l| l == "attend_reduce-wg128-batch1"), "{ran:?}");
}

fn demo() -> Program {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bard-q4_k_m.gguf");
    model::build(&file::open(&path).unwrap(), &model::Options::default()).unwrap().program
}

/// A model against the reference with each kind of tiles, with sums in subgroups and without; with every storage of keys and values
/// and several sequences where `caches` says so: these matter to attention alone. Ways whose plans have no variant that `planned` lacks
/// prove nothing new, and are left out.
fn in_every_way(gpu: &Gpu, what: &str, program: &Program, caches: bool, planned: &mut BTreeSet<String>) {
    let reference = reference::load_with(program.clone(), Activations::F32).unwrap();
    for (tiles, subgroups) in [(Tiles::F32, false), (Tiles::F32, true), (Tiles::F16, false), (Tiles::Int8, false)] {
        let run = RunOptions {
            reduction: Some(Reduction::Workgroup),
            tiles: Some(tiles),
            subgroups: Some(subgroups),
            poison: true,
            canaries: true,
            ..RunOptions::default()
        };
        let both = |kv| [(kv, 1), (kv, 2)];
        let mut cases: Vec<(KvType, usize)> = match caches && tiles == Tiles::F32 && !subgroups {
            true => KVS.into_iter().flat_map(both).collect(),
            false => vec![(KvType::F16, 1)],
        };
        cases.retain(|&(kv, sequences)| {
            let of_run = Options {
                reduction: run.reduction,
                tiles: run.tiles,
                subgroups: run.subgroups,
                sequences: (sequences > 1).then_some(sequences),
                ..Options::new(512, 64, kv)
            };
            let labels = variants(program, gpu.caps(), &of_run);
            let new = !labels.is_subset(planned);
            planned.extend(labels);
            new
        });
        if cases.is_empty() {
            continue;
        }
        let loaded = gpu.load_with(program.clone(), run, &mut |_| Ok(())).unwrap();
        for (kv, sequences) in cases {
            let d = compare::diff(&logits(&*loaded, kv, sequences), &logits(&*reference, kv, 1));
            // Activations in 8 bits; and rounded ones may choose another expert.
            let tolerance = if tiles == Tiles::F32 { 1e-7 } else { 1e-3 };
            let how =
                format!("{what}, {tiles:?} tiles, subgroups {subgroups}, {kv:?} cache, {sequences} sequences: {d:?}");
            println!("{how}");
            assert!(d.non_finite == 0 && d.nmse < tolerance, "{how}, tolerance {tolerance:e}");
        }
    }
}

const KVS: [KvType; 3] = [KvType::F16, KvType::Q8_0, KvType::F32];

/// The devices of real GPUs, as far as variants differ: with subgroups of one size and without, with each kind of tiles.
fn devices() -> Vec<Caps> {
    let mut all = vec![];
    for subgroup_size in [None, Some(32)] {
        for tiles in [Tiles::F32, Tiles::F16, Tiles::Int8] {
            let features = DeviceFeatures { f16: true, subgroups: true, subgroup_size, ..DeviceFeatures::default() };
            all.push(Caps { features, tiles, max_binding: 1 << 31, max_buffer: 1 << 32, ..Caps::webgpu_defaults() });
        }
    }
    all
}

/// Labels of the variants of a model's plan.
fn variants(program: &Program, caps: &Caps, options: &Options) -> BTreeSet<String> {
    let graph = graph::fuse(&program.graph);
    let dtypes: Vec<DType> = program.weights.iter().map(|t| t.dtype()).collect();
    let weights = plan::weights(&graph, &dtypes, caps).unwrap();
    let plan = plan::plan(&graph, &weights, caps, options).unwrap();
    let sampling = plan.sampling.iter().flat_map(|s| s.steps.iter().flatten());
    let steps = plan.schedules().into_iter().filter_map(|s| s.1).flat_map(|s| &s.steps).chain(sampling);
    steps.map(|s| s.variant.label()).collect()
}

/// Those that are not proven.
fn unproven(program: &Program, caps: &Caps, options: &Options) -> BTreeSet<String> {
    variants(program, caps, options).into_iter().filter(|l| !kernels::is_proven(l)).collect()
}

/// In every way in which a real GPU runs a model.
fn unproven_anywhere(program: &Program) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (i, caps) in devices().iter().enumerate() {
        all.extend(unproven(program, caps, &Options::new(4096, 64, KvType::F16)));
        // Storage of keys and values and the number of sequences matter to attention alone.
        for kv in KVS.into_iter().filter(|_| i == 0) {
            let options = Options::new(4096, 64, kv);
            all.extend(
                [None, Some(4)].into_iter().flat_map(|n| unproven(program, caps, &Options { sequences: n, ..options })),
            );
        }
    }
    all
}

/// Real models run unchecked on real GPUs: every variant of the plans of the presets in these mixes, of the demo model, and of every
/// family as its golden is.
#[test]
fn real_models_need_no_checks() {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let mut note = |labels: BTreeSet<String>, what: &str| {
        labels.into_iter().for_each(|l| _ = all.entry(l).or_insert_with(|| what.into()));
    };
    for shape in presets() {
        for mix in mixes(shape) {
            let shape = shape.clone().with_layers(2);
            let d = plan_sizes::unmade(&shape, |name, dims| format(&shape, mix, name, dims));
            note(unproven_anywhere(&d.program), &format!("{} in {}", shape.name, mix.name()));
        }
    }
    note(unproven_anywhere(&demo()), "the demo model");
    for name in goldens::families() {
        let d = goldens::defined(name, false);
        note(unproven(&d.program, &devices()[0], &Options::new(24, 24, KvType::F32)), name);
    }
    let list: String = all.iter().map(|(l, what)| format!("{l}, of {what}\n")).collect();
    assert!(all.is_empty(), "{} variants run checked:\n{list}", all.len());
}
