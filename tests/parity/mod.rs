//! Every op, every fused op and every weight format, on every backend, against the reference: one table of cases.

pub mod attention;
pub mod case;
pub mod dense;
pub mod moe;
pub mod recurrent;

use crate::support::{Target, skip};
use case::check_all;
use moeray::{backend::cpu::SimdLevel, kernels::Tiles};

macro_rules! parity {
    ($($name:ident: $cases:expr;)*) => {
        mod cpu { use super::*; $(#[test] fn $name() { check_all($cases, Target::Cpu); })* }
        mod cpu_simd_levels {
            use super::*;
            $(#[test] fn $name() { slower_levels().for_each(|l| check_all($cases, Target::CpuAt(l))); })*
        }
        mod wgpu { use super::*; $(#[test] fn $name() { check_all($cases, Target::Wgpu); })* }
        mod wgpu_lanes { use super::*; $(#[test] fn $name() { check_all($cases, Target::WgpuLanes); })* }
    };
}

/// The SIMD levels of this processor but the fastest, which `parity::cpu` runs.
fn slower_levels() -> impl Iterator<Item = SimdLevel> {
    let mut levels = moeray::backend::cpu::simd_levels();
    levels.pop();
    levels.into_iter()
}

parity! {
    embed: dense::embed();
    linear: dense::linear();
    linear_fused: dense::linear_fused();
    elementwise: dense::elementwise();
    rms_norm: dense::rms_norm();
    rope: attention::rope();
    attend: attention::attend();
    rope_store: attention::rope_store();
    latent: attention::latent();
    routers: moe::routers();
    moe_blocks: moe::blocks();
    expert_linear: moe::expert_linear();
    short_conv: recurrent::short_conv();
    delta_net: recurrent::delta_net();
    gates: recurrent::gates();
}

/// Products with activations of one 8-bit number instead of two.
#[test]
fn cpu_int8() {
    check_all(dense::linear(), Target::CpuInt8);
    check_all(dense::linear_fused(), Target::CpuInt8);
    check_all(moe::blocks(), Target::CpuInt8);
}

/// Products of many rows by tiles of halves and of packed bytes; those of f32 are in the table.
#[test]
fn tiles_of_halves_and_bytes() {
    let all = || [dense::linear(), dense::linear_fused(), moe::blocks(), moe::expert_linear()].into_iter().flatten();
    let many = |of: &dyn Fn(&case::Case) -> bool| -> Vec<_> {
        all().filter(of).map(case::Case::many).filter(|c| !c.steps.is_empty()).collect()
    };
    // Halves are made of what the base expands: the format matters little, and each costs a pipeline.
    let half = |c: &case::Case| ["Q8_0", "Q4_K", "/F16"].iter().any(|f| c.name.contains(f));
    check_all(many(&half), Target::WgpuF16);
    // Where one dispatch mixes floats and quantised weights it is done in f32, which the reference does not know.
    let bytes = |c: &case::Case| c.quantised && !c.name.contains("BF16 Q4_0");
    check_all(many(&bytes), Target::WgpuInt8);
    // Cooperative matrices, where the device has them.
    let Some(gpu) = crate::support::gpu() else { return };
    for (tiles, target) in [(Tiles::Coop16, Target::WgpuCoop16), (Tiles::Coop8, Target::WgpuCoop8)] {
        match (tiles.row().runs)(&gpu.caps().extras) {
            true => check_all(many(&half), target),
            false => skip(&format!("{} has no {} tiles: translated, not run", gpu.name(), tiles.row().name)),
        }
    }
}

/// Products of few rows whose lanes add up within subgroups; without, they are in the table.
#[test]
fn subgroups() {
    let Some(gpu) = crate::support::gpu() else { return };
    if gpu.caps().extras.subgroup_size.is_none() {
        return skip(&format!("{} has no subgroups of one size", gpu.name()));
    }
    let all = [dense::linear(), dense::linear_fused(), moe::blocks(), moe::expert_linear()];
    let few =
        |c: &case::Case| ["Q8_0", "Q4_K", "F32", "/plain", "shared", "100 experts"].iter().any(|f| c.name.contains(f));
    let few: Vec<_> = all.into_iter().flatten().filter(few).map(case::Case::few).collect();
    assert!(few.len() > 12, "{}", few.len());
    check_all(few, Target::WgpuSubgroups);
}

/// Infinity and what is no number stay visible, whatever tiles are made of, and spoil no other row.
#[test]
fn tiles_hide_no_infinity() {
    for target in [Target::WgpuLanes, Target::WgpuF16, Target::WgpuInt8] {
        dense::not_finite(target);
    }
}

/// The same of values in a cache of codes, whose scales carry them, and on processors of keys.
#[test]
fn codes_hide_no_infinity() {
    for target in [Target::Reference, Target::Cpu, Target::Wgpu, Target::WgpuLanes] {
        attention::not_finite(target);
    }
}

/// Shaders run without checks by default: the table above and the whole models of `gpu` and `goldens`, which the tests run
/// with the checks on, have them all. (The two of sampling are run in `picker`, the one that measures devices in `gpu`.)
#[test]
fn every_kernel_of_the_catalogue_is_run() {
    use moeray::{
        kernels::{Style, catalogue},
        plan,
    };
    let all = [
        dense::embed(),
        dense::linear(),
        dense::linear_fused(),
        dense::elementwise(),
        dense::rms_norm(),
        attention::rope(),
        attention::attend(),
        attention::rope_store(),
        attention::latent(),
        moe::routers(),
        moe::blocks(),
        moe::expert_linear(),
        recurrent::short_conv(),
        recurrent::delta_net(),
        recurrent::gates(),
    ];
    let mut seen = std::collections::BTreeSet::from(["sample_keys", "sample_pick", "copy"]);
    let mut plans = |program: &moeray::backend::Program, ctx: usize, chunk: usize| {
        let graph = moeray::graph::fuse(&program.graph);
        let dtypes: Vec<_> = program.weights.iter().map(|t| t.dtype()).collect();
        for style in [Style::Rows, Style::Lanes] {
            let caps = plan::Caps::webgpu_defaults();
            let weights = plan::weights(&graph, &dtypes, &caps).unwrap();
            let kv = moeray::quant::KvType::F32;
            let options = plan::Options { style: Some(style), ..plan::Options::new(ctx, chunk, kv) };
            let plan = plan::plan(&graph, &weights, &caps, &options).unwrap();
            let schedules = plan.schedules().into_iter().filter_map(|s| s.1).filter(|s| s.max_tokens <= chunk.max(1));
            seen.extend(schedules.flat_map(|s| &s.steps).map(|s| s.variant.kernel.name));
        }
    };
    for case in all.into_iter().flatten() {
        let ctx = case.steps.iter().map(|(s, ..)| s.past + s.tokens).max().unwrap();
        plans(&case.program, ctx, case.steps.iter().map(|(s, ..)| s.tokens).max().unwrap());
    }
    for name in ["llama", "qwen2_moe", "qwen3_moe"] {
        plans(&crate::goldens::definition(name).program, 24, 24);
    }
    let missing: Vec<_> = catalogue::ALL.iter().map(|k| k.name).filter(|k| !seen.contains(k)).collect();
    assert!(missing.is_empty(), "no case runs {missing:?}");
}

/// The table contains what it is meant to contain: each fused op comes out of the fusion of some case, and fusing changes
/// nothing that the reference computes.
#[test]
fn fusions() {
    let all = [
        dense::linear_fused(),
        attention::rope_store(),
        attention::latent(),
        moe::blocks().into_iter().take(12).collect(),
        dense::rms_norm().into_iter().take(2).collect(),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for case in all.into_iter().flatten() {
        let fused = moeray::graph::fuse(case.graph());
        moeray::graph::check(&fused).unwrap();
        seen.extend(fused.nodes.iter().map(|n| n.op.name()));
        let raw = moeray::backend::reference::load(case.program.clone()).unwrap();
        let program = moeray::backend::Program::new(fused, case.program.weights.to_vec()).unwrap();
        let fused = moeray::backend::reference::load(program).unwrap();
        let (a, b) =
            (crate::support::run(&*raw, case.kv, &case.steps), crate::support::run(&*fused, case.kv, &case.steps));
        assert_eq!(a, b, "{}", case.name);
    }
    let wanted = [
        "norm_linears",
        "rope_store",
        "linear_add",
        "linear_glu",
        "linear_act",
        "norm_router",
        "expert_glu",
        "expert_act",
        "expert_down_add",
    ];
    for op in wanted {
        assert!(seen.contains(op), "no case fuses to {op}: {seen:?}");
    }
}

#[test]
fn routers_take_not_a_number() {
    for target in [Target::Cpu, Target::Wgpu, Target::WgpuLanes] {
        moe::not_a_number(target);
    }
}

/// The reference against the formulas of two families, computed by hand: group choice, a bias that changes the choice and not
/// the weights, and the place of the epsilon.
#[test]
fn routers_by_hand() {
    moe::by_hand();
}
