//! Budgets of memory are kept, for models of many shapes. The models are small, so that all of them are made in earnest and the allocator is
//! asked; what a shape changes (which matrices there are, shared experts, formats, widths that are no powers of two, few wide experts and many
//! narrow ones) is that of the presets. `memory` holds the plan itself to within 2 % of the allocator's report.

use crate::support::{gpu, skip};
use moeray::{
    backend::wgpu::{ForcedLimits, Gpu, Options},
    file::synth::{self, Shape, Synthetic},
    quant::{DType, KvType},
    routing::Policy,
    session::{
        BackendChoice, ExpertPlacement, Experts, LoadOptions, MemoryBudget, MemoryPlan, Model, Session, SessionOptions,
        SlotOptions,
    },
};
use std::path::Path;

/// A preset in small: what it has stays, how much of it does not.
fn small(s: &Shape) -> Shape {
    let group = s.heads / s.kv_heads;
    let size = |n: usize| if n == 0 { 0 } else { (n / 8).clamp(64, 256).next_multiple_of(32) };
    Shape {
        layers: 4,
        hidden: size(s.hidden),
        heads: 2 * group,
        kv_heads: 2,
        head_dim: s.head_dim.min(64),
        experts: s.experts.min(24),
        used: s.used.min(6),
        expert_width: size(s.expert_width),
        shared_width: size(s.shared_width),
        vocab: 640,
        context: 512,
        ..s.clone()
    }
}

/// Twelve shapes, each in a format of its own.
fn shapes() -> Vec<(String, Shape, DType)> {
    let formats = [DType::Q4_0, DType::Q8_0, DType::F16, DType::MXFP4, DType::F32, DType::Q5_0];
    let base = small(&Shape::preset("qwen3-30b-a3b").unwrap());
    let more = [
        ("few wide experts", Shape { experts: 4, used: 1, expert_width: 512, ..base.clone() }),
        ("many narrow experts", Shape { experts: 96, used: 8, expert_width: 32, ..base.clone() }),
        ("every expert used", Shape { experts: 6, used: 6, ..base.clone() }),
    ];
    let presets = synth::PRESETS.iter().map(|s| (s.name.to_string(), small(s)));
    let all = presets.chain(more.map(|(name, s)| (name.to_string(), s)));
    all.zip(formats.into_iter().cycle()).map(|((name, shape), dtype)| (name, shape, dtype)).collect()
}

const SESSION: SessionOptions = SessionOptions { ctx: 192, ubatch: 24, kv: KvType::F16 };

fn on(gpu: &Gpu, placement: ExpertPlacement) -> LoadOptions {
    let experts = Experts { placement, ..Experts::default() };
    LoadOptions { backend: BackendChoice::Gpu(gpu.clone()), experts, ..LoadOptions::default() }
}

fn budget(vram: u64) -> MemoryBudget {
    MemoryBudget { vram: Some(vram), session: SESSION, sessions: 1 }
}

fn in_slots(vram: u64) -> ExpertPlacement {
    ExpertPlacement::Slots(SlotOptions { slots: None, policy: Policy::Lru, budget: Some(budget(vram)) })
}

/// What a model and a session take, as the allocator says.
fn taken(gpu: &Gpu, path: &Path, options: &LoadOptions) -> u64 {
    let held = || gpu.held_memory().unwrap()[1];
    let before = held();
    let model = Model::load(path, options, &mut |_| {}).unwrap();
    let mut session = Session::new(&model, SESSION).unwrap();
    let greedy = moeray::generate::SamplerOptions::greedy();
    session.set_sampler(&moeray::generate::Sampling { options: greedy, ..Default::default() }).unwrap();
    held() - before
}

#[test]
fn budgets_of_twelve_shapes() {
    let Some(under_test) = gpu() else { return };
    if under_test.held_memory().is_none() {
        return skip("no allocator report");
    }
    let name = under_test.name().split(" (").next().unwrap().to_string();
    let limits = ForcedLimits { own_memory: true, ..ForcedLimits::default() };
    let gpu = Gpu::open(&Options { device: Some(name), limits, ..Options::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let all = shapes();
    assert_eq!(all.len(), 12);
    let (mut split, mut slotted) = (0, 0);
    for (i, (name, shape, dtype)) in all.into_iter().enumerate() {
        let path = dir.path().join(format!("{i}.gguf"));
        let made = Synthetic::new(&shape, 1, |_, dims| {
            if dims[dims.len() - 1].is_multiple_of(dtype.layout().block) { dtype } else { DType::F32 }
        });
        made.unwrap().write(&path, &mut |_, _| Ok(())).unwrap();
        let planned = |placement| MemoryPlan::of(&path, &on(&gpu, placement), &SESSION).unwrap();
        let total = |placement| planned(placement).gpu.unwrap().total();
        let (most, least) = (total(ExpertPlacement::Gpu), total(ExpertPlacement::Cpu));
        assert!(least < most, "{name}");
        for part in [0, 45, 100] {
            let bytes = least + (most - least) * part / 100;
            let placement = ExpertPlacement::Fit(budget(bytes));
            let plan = planned(placement.clone());
            split += usize::from((1..shape.layers).contains(&plan.cpu_layers.len()));
            let taken = taken(&gpu, &path, &on(&gpu, placement));
            assert!(taken <= bytes, "{name} in {dtype}, {part} % of the experts: {taken} of {bytes}");
        }
        // The least that slots take, and what lies between them and all experts.
        let slots =
            |n| SlotOptions { slots: Some(moeray::routing::Slots::Count(n)), policy: Policy::Lru, budget: None };
        let few = total(ExpertPlacement::Slots(slots(shape.used)));
        for part in [0, 50] {
            let bytes = few.min(most) + most.saturating_sub(few) * part / 100;
            if few > most {
                continue;
            }
            let plan = planned(in_slots(bytes));
            slotted += usize::from(!plan.expert_slots.is_empty());
            let on_device = taken(&gpu, &path, &on(&gpu, in_slots(bytes))) - plan.host_experts;
            assert!(on_device <= bytes, "{name} in {dtype}, slots {:?}: {on_device} of {bytes}", plan.expert_slots);
            // One slot more in each layer would not have fit.
            if let Some((_, n)) = plan.expert_slots.first().filter(|s| s.1 < shape.experts) {
                assert!(total(ExpertPlacement::Slots(slots(n + 1))) > bytes, "{name}: {} slots would fit", n + 1);
            }
        }
    }
    assert!(
        split >= 8 && slotted >= 15,
        "{split} models with a part of their experts on the device, {slotted} with slots"
    );
}
