//! The training formulas of the literature against PyTorch's autograd in double precision: outputs, loss terms and gradients of small
//! cases, on any folder of the form that `tests/data/train_goldens` has (`MOERAY_TRAIN_GOLDENS`). Case files say what they hold;
//! every output, loss and gradient of a file must be made by the case's graph.

mod capacity;
mod case;
mod compare;
mod curves;
mod layers;
mod losses;
mod routers;
mod transformer;

use case::{Case, Made};
use moeray::{
    backend::reference::{self, Precision},
    kernels::Reduction,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The folder with the cases.
pub fn folder() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/train_goldens");
    std::env::var_os("MOERAY_TRAIN_GOLDENS").map_or_else(own, PathBuf::from)
}

/// The cases of the folder with one number each: not training runs.
pub fn cases() -> Vec<Case> {
    let folder = folder();
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    names.sort();
    let cases: Vec<Case> = names.iter().map(|p| Case::read(p)).filter(|c| !c.is_run()).collect();
    assert!(!cases.is_empty(), "no case in {}", folder.display());
    cases
}

/// The graph of a case, by the formula that its name begins with.
pub fn build(c: &Case) -> Made<'_> {
    let mut m = Made::new(c);
    match &c.name[..3] {
        "f01" | "f05" | "f06" => layers::shared(&mut m),
        "f02" => losses::mean_square(&mut m),
        "f03" => losses::switch(&mut m),
        "f07" => layers::relu_expert(&mut m),
        "f08" | "f09" => routers::gates(&mut m),
        "f10" => layers::sparse(&mut m),
        "f11" => transformer::block(&mut m),
        "f12" => transformer::rms_norm(&mut m),
        "f13" => transformer::rope(&mut m),
        "f14" => transformer::grouped_queries(&mut m),
        "f15" => layers::swiglu(&mut m),
        "f16" | "f34" => layers::top_k_of_logits(&mut m),
        "f17" if c.has("logits") => losses::cross_entropy(&mut m),
        "f17" => transformer::whole(&mut m),
        "f18" => losses::competitive(&mut m),
        "f19" if c.hyper_opt("groups").is_some() => layers::hierarchical(&mut m),
        "f19" => routers::sparsely_gated(&mut m),
        "f20" => losses::usage(&mut m),
        "f21" | "f22" | "f24" => layers::gelu_experts(&mut m),
        "f23" => routers::token_router(&mut m),
        "f25" => schedule(c),
        "f26" | "f27" | "f28" => routers::three_gates(&mut m),
        "f29" => capacity::capacity(&mut m),
        "f30" => losses::log_sum_exp(&mut m),
        "f31" if c.has("ids") => transformer::whole(&mut m),
        "f31" | "f32" => losses::layers(&mut m),
        "f33" if c.has("loads") => bias_update(&mut m),
        "f33" => routers::biased(&mut m),
        _ => panic!("{}: no graph for this formula", c.name),
    }
    m
}

/// The schedule of how many experts a token uses: no graph.
fn schedule(c: &Case) {
    for s in c.record["schedules"].as_array().unwrap() {
        let n = |key: &str| s[key].as_u64().unwrap() as usize;
        for (epoch, used) in s["k_by_epoch"].as_array().unwrap().iter().enumerate() {
            let ours = moeray::graph::formula::progressive_top_k(epoch, n("experts"), n("top_k"));
            assert_eq!(ours as u64, used.as_u64().unwrap(), "{}: epoch {epoch}", c.name);
        }
    }
}

/// The update of biases without a loss: no gradient.
fn bias_update(m: &mut Made) {
    let (experts, rate) = (m.case.usize("experts"), m.case.f64("rate"));
    let mut biases = vec![0.0; experts];
    let loads = m.case.tensor("in.loads").values.clone();
    let mut found = vec![];
    for load in loads.chunks(experts) {
        moeray::graph::formula::bias_update(&mut biases, load, rate);
        found.extend(&biases);
    }
    m.host_output("biases", found);
    let zero = m.b.math(moeray::ir::Math::Constant { value: 0.0, cols: 1 }, &[]).unwrap();
    m.loss("total", zero);
}

fn run(limits: compare::Limits, backend: compare::Backend<'_>) {
    let mut failed = vec![];
    for case in cases() {
        if let Err(what) = compare::case(&case, limits, backend) {
            failed.push(format!("{}: {what}", case.name));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn train_goldens_reference_in_f64() {
    run(compare::Limits::F64, &|p| reference::train(p, Precision::F64).unwrap());
}

#[test]
fn train_goldens_reference_in_f32() {
    run(compare::Limits::F32, &|p| reference::train(p, Precision::F32).unwrap());
}

#[test]
fn train_goldens_wgpu() {
    let Some(gpu) = crate::support::gpu() else { return };
    for reduction in [Reduction::Workgroup, Reduction::Invocation] {
        run(compare::Limits::F32, &|p| moeray::backend::wgpu::train_with(&gpu, p, Some(reduction)).unwrap());
    }
}

#[test]
fn train_goldens_cpu() {
    let options = moeray::backend::cpu::Options::default();
    run(compare::Limits::F32, &|p| moeray::backend::cpu::train(p, &options).unwrap());
}
