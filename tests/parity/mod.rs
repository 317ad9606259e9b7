//! Every op, every fused op and every weight format, on every backend, against the reference: one table of cases.

pub mod attention;
pub mod case;
pub mod dense;
pub mod moe;
pub mod recurrent;

use crate::support::{Target, skip, thorough};
use case::{Case, check_all, check_table};
use moeray::{backend::cpu::SimdLevel, kernels::Tiles};
use std::sync::OnceLock;

macro_rules! parity {
    ($($name:ident: $cases:expr;)*) => {
        /// The table, by name.
        pub const TABLE: &[(&str, fn() -> &'static [Case])] = &[$((stringify!($name), table::$name)),*];
        /// The cases of each name. They are made once: packing weights into dear formats takes longer than running them.
        pub mod table {
            use super::*;
            $(pub fn $name() -> &'static [Case] {
                static CASES: OnceLock<Vec<Case>> = OnceLock::new();
                CASES.get_or_init($cases)
            })*
        }
        mod cpu { use super::*; $(#[test] fn $name() { check_all(table::$name(), Target::Cpu); })* }
        mod cpu_simd_levels {
            use super::*;
            $(#[test] fn $name() { slower_levels().for_each(|l| check_all(table::$name(), Target::CpuAt(l))); })*
        }
        mod wgpu { use super::*; $(#[test] fn $name() { check_usual(stringify!($name), table::$name, Target::Wgpu); })* }
        mod wgpu_workgroup {
            use super::*;
            $(#[test] fn $name() { check_usual(stringify!($name), table::$name, Target::WgpuWorkgroup); })*
        }
    };
}

/// The SIMD levels of this processor but the fastest, which `parity::cpu` runs.
fn slower_levels() -> impl Iterator<Item = SimdLevel> {
    let mut levels = moeray::backend::cpu::SimdLevel::available();
    levels.pop();
    levels.into_iter()
}

parity! {
    embed: dense::embed;
    linear: dense::linear;
    linear_fused: dense::linear_fused;
    elementwise: dense::elementwise;
    rms_norm: dense::rms_norm;
    rope: attention::rope;
    attend: attention::attend;
    rope_store: attention::rope_store;
    latent: attention::latent;
    routers: moe::routers;
    moe_blocks: moe::blocks;
    expert_linear: moe::expert_linear;
    local_ids: moe::local_ids;
    short_conv: recurrent::short_conv;
    delta_net: recurrent::delta_net;
    gates: recurrent::gates;
}

/// Products with activations of one 8-bit number instead of two.
#[test]
fn cpu_int8() {
    check_all(table::linear(), Target::CpuInt8);
    check_all(table::linear_fused(), Target::CpuInt8);
    check_all(table::moe_blocks(), Target::CpuInt8);
}

/// Cases of products.
fn products() -> impl Iterator<Item = Case> {
    [table::linear(), table::linear_fused(), table::moe_blocks(), table::expert_linear()].into_iter().flatten().cloned()
}

/// The steps of many rows of cases.
fn many(cases: impl Iterator<Item = Case>) -> Vec<Case> {
    cases.map(Case::many).filter(|c| !c.steps.is_empty()).collect()
}

/// Cases for tiles of halves. They are made of what the base expands: the format matters little, and each costs a pipeline.
fn halves() -> Vec<Case> {
    many(products().filter(|c| ["Q8_0", "Q4_K", "/F16"].iter().any(|f| c.name.contains(f))))
}

/// Cases for tiles of bytes. Where one dispatch mixes floats and quantised weights it is done in f32, which the reference does
/// not know.
fn bytes() -> Vec<Case> {
    many(products().filter(|c| c.quantised && usual(c) && !c.name.contains("BF16 Q4_0")))
}

/// Whether a case is run on a GPU each time. How a format is read is one piece of text in all kernels that take it, and single matrices
/// are run in all of them; whole blocks of experts in one format of each form: with and without minimum, with one and two levels of scales,
/// with a table.
fn usual(case: &Case) -> bool {
    use moeray::quant::DType as D;
    let formats = [D::Q4_0, D::Q5_1, D::Q8_0, D::Q2K, D::Q4K, D::Q6K, D::IQ4XS, D::MXFP4];
    let of_form = |t: &moeray::file::Tensor| t.dtype().is_float() || formats.contains(&t.dtype());
    thorough() || case.name.starts_with("linear/") || case.program.weights.iter().all(of_form)
}

/// [`check_table`] of the cases that are run each time.
fn check_usual(name: &str, cases: fn() -> &'static [Case], target: Target) {
    match thorough() {
        true => check_table(name, cases, target),
        false => {
            let some: Vec<Case> = cases().iter().filter(|c| usual(c)).cloned().collect();
            crate::support::once(&format!("{name}, usual, on {target:?}"), || check_all(&some, target));
        }
    }
}

/// Products of many rows by tiles of halves and of packed bytes; those of f32 are in the table.
#[test]
pub fn tiles_of_halves_and_bytes() {
    check_table("halves", halves, Target::WgpuF16);
    check_table("bytes", bytes, Target::WgpuInt8);
    // Cooperative matrices, where the device has them.
    let Some(gpu) = crate::support::gpu() else { return };
    for (tiles, target) in [(Tiles::Coop16, Target::WgpuCoop16), (Tiles::Coop8, Target::WgpuCoop8)] {
        match (tiles.row().runs)(&gpu.caps().features) {
            true => check_table("halves", halves, target),
            false => skip(&format!("{} has no {} tiles: translated, not run", gpu.name(), tiles.row().name)),
        }
    }
}

/// Products of few rows whose lanes add up within subgroups; without, they are in the table.
#[test]
pub fn subgroups() {
    let Some(gpu) = crate::support::gpu() else { return };
    if gpu.caps().features.subgroup_size.is_none() {
        return skip(&format!("{} has no subgroups of one size", gpu.name()));
    }
    check_table("few rows", few, Target::WgpuSubgroups);
}

fn few() -> Vec<Case> {
    let few = |c: &Case| ["Q8_0", "Q4_K", "F32", "/plain", "shared", "100 experts"].iter().any(|f| c.name.contains(f));
    let few: Vec<_> = products().filter(few).map(Case::few).collect();
    assert!(few.len() > 12, "{}", few.len());
    few
}

/// Infinity and what is no number stay visible, whatever tiles are made of, and spoil no other row.
#[test]
fn tiles_hide_no_infinity() {
    for target in [Target::WgpuWorkgroup, Target::WgpuF16, Target::WgpuInt8] {
        dense::not_finite(target);
    }
}

/// The same of values in a cache of codes, whose scales carry them, and on processors of keys.
#[test]
fn codes_hide_no_infinity() {
    for target in [Target::Reference, Target::Cpu, Target::Wgpu, Target::WgpuWorkgroup] {
        attention::not_finite(target);
    }
}

/// The table contains what it is meant to contain: each fused op comes out of the fusion of some case, and fusing changes
/// nothing that the reference computes.
#[test]
fn fusions() {
    let all = [
        table::linear_fused(),
        table::rope_store(),
        table::latent(),
        &table::moe_blocks()[..12],
        &table::rms_norm()[..2],
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
    for target in [Target::Cpu, Target::Wgpu, Target::WgpuWorkgroup] {
        moe::not_a_number(target);
    }
}

/// The reference against the formulas of two families, computed by hand: group choice, a bias that changes the choice and not
/// the weights, and the place of the epsilon.
#[test]
fn routers_by_hand() {
    moe::by_hand();
}
