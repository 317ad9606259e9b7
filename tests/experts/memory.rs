//! What a model takes of which memory, said before anything is made, against what is taken.

use crate::{goldens::folder, support::gpu};
use moeray::{
    Error,
    backend::wgpu::{Gpu, Options},
    file::{
        Checkpoint,
        synth::{Shape, Synthetic},
    },
    quant::{DType, KvType},
    session::{
        BackendChoice, ExpertPlacement, Experts, LoadOptions, MemoryBudget, MemoryPlan, Model, Session, SessionOptions,
    },
};
use std::path::Path;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");

/// The device under test with memory of its own to count; `None` where there is none.
fn device() -> Option<Gpu> {
    let name = gpu()?.name().split(" (").next().unwrap().to_string();
    Some(Gpu::open(&Options { device: Some(name), ..Options::default() }).unwrap())
}

fn on(gpu: &Gpu, placement: ExpertPlacement) -> LoadOptions {
    let experts = Experts { placement, ..Experts::default() };
    LoadOptions { backend: BackendChoice::Gpu(gpu.clone()), experts, ..LoadOptions::default() }
}

/// Bytes in use on a device.
fn held(gpu: &Gpu) -> u64 {
    gpu.held_memory().unwrap()[1]
}

/// The plan of a GPU is within 2 % of what its allocator then reports, with experts there and on the processor.
#[test]
fn the_plan_is_what_the_allocator_reports() {
    let Some(gpu) = device() else { return };
    if gpu.held_memory().is_none() {
        return crate::support::skip("no allocator report");
    }
    let session = SessionOptions { ctx: 1024, ubatch: 64, kv: KvType::F16 };
    for placement in [ExpertPlacement::Gpu, ExpertPlacement::Cpu, ExpertPlacement::FirstLayers(2)] {
        let options = on(&gpu, placement.clone());
        let plan = MemoryPlan::of(DEMO.as_ref(), &options, &session).unwrap();
        let before = held(&gpu);
        let model = Model::load(DEMO.as_ref(), &options, &mut |_| {}).unwrap();
        let mut s = Session::new(&model, session).unwrap();
        let sampling =
            moeray::generate::Sampling { options: moeray::generate::SamplerOptions::greedy(), ..Default::default() };
        s.set_sampler(&sampling).unwrap();
        let (taken, planned) = (held(&gpu) - before, plan.gpu.unwrap().total());
        let off = planned as f64 / taken as f64 - 1.0;
        println!("{placement:?}: planned {planned}, taken {taken}, off by {:.2} %", 100.0 * off);
        assert!(off.abs() < 0.02, "{placement:?}: planned {planned}, taken {taken}");
        drop((s, model));
    }
}

/// Weights by kind add up to the file's, and what is left to the processor is gone from the GPU.
#[test]
fn kinds_add_up() {
    let session = SessionOptions { ctx: 100, ubatch: 16, kv: KvType::F16 };
    let cpu = |repack| {
        let o = moeray::backend::cpu::Options { repack, ..Default::default() };
        let options = LoadOptions { backend: BackendChoice::Cpu(o), ..LoadOptions::default() };
        let plan = MemoryPlan::of(DEMO.as_ref(), &options, &session).unwrap();
        (plan, Model::load(DEMO.as_ref(), &options, &mut |_| {}).unwrap())
    };
    let (mapped, model) = cpu(false);
    let needs = moeray::session::MemoryNeeds::of(DEMO.as_ref(), &session).unwrap();
    assert!(mapped.gpu.is_none() && model.weight_bytes() == 0);
    let p = &mapped.cpu;
    // Norms are copied, for they are read as plain numbers.
    assert!(p.mapped.total() + p.weights.total() >= needs.weights && p.weights.total() < needs.weights / 100, "{p:?}");
    assert!(p.mapped.experts > needs.weights / 2 && p.mapped.attention > 0 && p.mapped.embedding > 0);
    assert_eq!((p.kv, p.read_per_token), (needs.kv, needs.read_per_token));
    let (packed, model) = cpu(true);
    let copied = packed.cpu.weights.total() - mapped.cpu.weights.total();
    assert_eq!(copied, model.weight_bytes(), "packed copies are counted to the byte");

    let Some(gpu) = device() else { return };
    let plan = |placement| MemoryPlan::of(DEMO.as_ref(), &on(&gpu, placement), &session).unwrap();
    let (whole, half, none) =
        (plan(ExpertPlacement::Gpu), plan(ExpertPlacement::FirstLayers(2)), plan(ExpertPlacement::Cpu));
    let experts = |p: &MemoryPlan| p.gpu.as_ref().unwrap().weights.experts;
    assert_eq!(experts(&none), 0);
    assert!(experts(&half) > experts(&whole) / 3 && experts(&half) < experts(&whole) * 2 / 3, "two layers of four");
    let rest = |p: &MemoryPlan| {
        let w = p.gpu.as_ref().unwrap().weights;
        w.total() - w.experts
    };
    assert_eq!((rest(&whole), rest(&half)), (rest(&none), rest(&none)));
    assert_eq!((whole.cpu.total(), half.cpu_layers.clone(), none.cpu_layers.len()), (0, vec![0, 1], 4));
    let read = |p: &MemoryPlan| p.gpu.as_ref().unwrap().read_per_token + p.cpu.read_per_token;
    // A whole number of bytes is read of each part.
    assert!(read(&whole).abs_diff(read(&none)) <= 1 && read(&none) == needs.read_per_token);
}

/// A model of a known shape with few layers, at random.
fn synthetic(name: &str, layers: usize) -> Checkpoint {
    let shape = Shape { vocab: 2048, ..Shape::preset(name).unwrap() }.with_layers(layers);
    let made = Synthetic::new(&shape, 1, |_, _| DType::Q4_0).unwrap();
    made.checkpoint(&mut |_, _| Ok(())).unwrap()
}

/// A budget is kept: what the allocator then reports stays within it, whatever part of the experts it holds, and one layer more would
/// not have fit.
#[test]
fn budgets_are_kept() {
    let Some(gpu) = device() else { return };
    if gpu.held_memory().is_none() {
        return crate::support::skip("no allocator report");
    }
    let session = SessionOptions { ctx: 128, ubatch: 32, kv: KvType::F16 };
    let ckpt = synthetic("moe-1b-a400m", 4);
    let fit = |bytes| ExpertPlacement::Fit(MemoryBudget { vram: Some(bytes), session, sessions: 1 });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let shape = Shape { vocab: 2048, ..Shape::preset("moe-1b-a400m").unwrap() }.with_layers(4);
    Synthetic::new(&shape, 1, |_, _| DType::Q4_0).unwrap().write(&path, &mut |_, _| Ok(())).unwrap();
    let total = |placement| MemoryPlan::of(&path, &on(&gpu, placement), &session).unwrap().gpu.unwrap().total();
    let (most, least) = (total(ExpertPlacement::Gpu), total(ExpertPlacement::Cpu));
    assert!(least < most / 2, "{least} of {most}");
    let mut seen = vec![];
    for part in [0, 10, 30, 60, 99, 100] {
        let budget = least + (most - least) * part / 100;
        let options = on(&gpu, fit(budget));
        let plan = MemoryPlan::of(&path, &options, &session).unwrap();
        let n = plan.cpu_layers.len();
        let before = held(&gpu);
        let model = Model::from_checkpoint(&ckpt, &options, &mut |_| {}).unwrap();
        let s = Session::new(&model, session).unwrap();
        let taken = held(&gpu) - before;
        assert!(taken <= budget, "{part} %: {taken} of {budget}");
        assert_eq!(plan.cpu_layers, (0..n).collect::<Vec<_>>(), "the first layers are left to the processor");
        if n > 0 {
            let one_more = total(ExpertPlacement::FirstLayers(n - 1));
            assert!(one_more > budget, "{part} %: {n} layers, though {one_more} of {budget} would do");
        }
        seen.push(n);
        drop((s, model));
    }
    assert_eq!((seen[0], seen[5]), (4, 0), "{seen:?}");
    assert!(seen.is_sorted_by(|a, b| a >= b) && seen.contains(&2), "{seen:?}");
    let e = Model::from_checkpoint(&ckpt, &on(&gpu, fit(least - 1)), &mut |_| {}).err().unwrap();
    let said = e.to_string();
    assert!(matches!(e, Error::Device(_)), "{said}");
    assert!(
        ["GB of weights", "for 128 positions", "shorter context", "may be used"].iter().all(|w| said.contains(w)),
        "{said}"
    );
}

/// A device in the processor's own memory has nothing to gain from a second place there.
#[test]
fn shared_memory_is_not_split_by_itself() {
    let Some(gpu) = device() else { return };
    if !gpu.shares_memory() {
        return;
    }
    let session = SessionOptions { ctx: 100, ..SessionOptions::default() };
    let auto = ExpertPlacement::Fit(MemoryBudget { vram: None, session, sessions: 1 });
    let plan = MemoryPlan::of(DEMO.as_ref(), &on(&gpu, auto), &session).unwrap();
    assert!(plan.cpu_layers.is_empty() && plan.expert_layers.len() == 4);
}

/// What is wrong with a wish is said where the model runs on the processor alone, too.
#[test]
fn wishes_are_checked_without_a_gpu() {
    let load = |name: &Path, placement| {
        let experts = Experts { placement, ..Experts::default() };
        let options =
            LoadOptions { backend: BackendChoice::Cpu(Default::default()), experts, ..LoadOptions::default() };
        Model::load(name, &options, &mut |_| {}).map(|_| ())
    };
    assert!(load(DEMO.as_ref(), ExpertPlacement::Cpu).is_ok());
    assert!(matches!(load(&folder("llama"), ExpertPlacement::Cpu), Err(Error::Invalid(_))));
    let rule = ExpertPlacement::Rules(vec!["no_such=cpu".parse().unwrap()]);
    assert!(matches!(load(DEMO.as_ref(), rule), Err(Error::Invalid(_))));
}
