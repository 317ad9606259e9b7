//! What several groups of tests use: seeded random numbers, comparators, and the backends under test.

pub mod compare;
mod gpus;
pub mod one;
pub mod rng;
pub mod successor;

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use moeray::{
    backend::{self, Loaded, Output, Program, cpu::SimdLevel, wgpu::Gpu},
    kernels::Tiles,
    ops::linear::Activations,
    quant::KvType,
};
use one::{OneSequence, Step, one};

/// The backends that are held to the reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    Reference,
    Cpu,
    /// The same with the instructions of this SIMD level.
    CpuAt(SimdLevel),
    /// The CPU with activations of 8 bits, its default.
    CpuInt8,
    Wgpu,
    /// The same device with the kernels of real GPUs and with nothing beyond what was written to be read.
    WgpuWorkgroup,
    /// The same with sums that meet within subgroups.
    WgpuSubgroups,
    /// The same with tiles of halves in products of many rows.
    WgpuF16,
    /// The same with tiles of packed bytes.
    WgpuInt8,
    /// The same with cooperative matrices of halves, for devices that have them.
    WgpuCoop16,
    /// The same with cooperative matrices in single precision.
    WgpuCoop8,
}

impl Target {
    /// Whether it may be absent.
    pub fn is_gpu(self) -> bool {
        !matches!(self, Target::Reference | Target::Cpu | Target::CpuAt(_) | Target::CpuInt8)
    }

    /// The target whose oracle and tolerances it shares.
    pub fn base(self) -> Target {
        match self {
            Target::CpuAt(_) => Target::Cpu,
            other => other,
        }
    }
}

/// Loads `program` on `target`; `None` where there is no GPU and its absence is allowed (see [`gpu`]).
pub fn load(target: Target, program: &Program) -> Option<Box<dyn Loaded>> {
    let quiet = &mut |_| Ok(());
    match target {
        Target::Reference => Some(backend::reference::load(program.clone()).unwrap()),
        Target::Cpu => {
            let options = backend::cpu::Options { activations: Activations::Int16, ..Default::default() };
            Some(backend::cpu::load(program.clone(), &options, quiet).unwrap())
        }
        Target::CpuAt(level) => {
            let options = backend::cpu::Options {
                activations: Activations::Int16,
                simd_level: Some(level),
                ..Default::default()
            };
            Some(backend::cpu::load(program.clone(), &options, quiet).unwrap())
        }
        Target::CpuInt8 => {
            let options = backend::cpu::Options { activations: Activations::Int8, ..Default::default() };
            Some(backend::cpu::load(program.clone(), &options, quiet).unwrap())
        }
        Target::Wgpu => Some(gpu()?.load(program.clone(), quiet).unwrap()),
        Target::WgpuWorkgroup
        | Target::WgpuSubgroups
        | Target::WgpuF16
        | Target::WgpuInt8
        | Target::WgpuCoop16
        | Target::WgpuCoop8 => {
            let reduction = Some(moeray::kernels::Reduction::Workgroup);
            let tiles = match target {
                Target::WgpuF16 => Tiles::F16,
                Target::WgpuInt8 => Tiles::Int8,
                Target::WgpuCoop16 => Tiles::Coop16,
                Target::WgpuCoop8 => Tiles::Coop8,
                _ => Tiles::F32,
            };
            let tiles = Some(tiles);
            let subgroups = Some(target == Target::WgpuSubgroups);
            let run = backend::wgpu::RunOptions {
                reduction,
                tiles,
                subgroups,
                poison: true,
                canaries: true,
                ..Default::default()
            };
            Some(gpu()?.load_with(program.clone(), run, quiet).unwrap())
        }
    }
}

/// The GPU of the tests: the device named in `MOERAY_TEST_DEVICE`, else lavapipe, else whatever there is. Says which.
/// Where there is none the running test is [`skip`]ped, unless `MOERAY_REQUIRE_GPU` is set, as `tests/run` does: then it fails.
pub fn gpu() -> Option<Gpu> {
    gpus::mine()
}

pub use gpus::ran_checked;

/// The number of the GPU of the tests in the list of devices, for tests that open one of their own; `None` where there is none.
pub fn gpu_number() -> Option<String> {
    let gpu = gpu()?;
    let all = backend::wgpu::DeviceInfo::all();
    let at = all.iter().position(|d| gpu.name().contains(&d.name));
    at.map(|at| at.to_string())
}

/// Says that the running test leaves out something, and why: on its output, and in the report of `tests/run`, which counts.
pub fn skip(why: &str) {
    println!("skipped: {why}");
    report("skipped", &format!("{}\t{why}", std::thread::current().name().unwrap_or("?")));
}

/// Adds a line to the file named by `MOERAY_TEST_REPORT`.
fn report(what: &str, line: &str) {
    let Some(path) = std::env::var_os("MOERAY_TEST_REPORT") else { return };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{what}\t{line}\n").as_bytes()).unwrap();
}

/// One step of a test: how many tokens, after how many, with how many outputs.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub tokens: usize,
    pub past: usize,
    pub outputs: usize,
}

/// A step: its shape, its token ids, and its named inputs.
pub type StepInput = (Shape, Vec<u32>, Vec<(String, Vec<f32>)>);

/// Runs steps one after another on one runner and collects every step's outputs.
pub fn run(loaded: &dyn Loaded, kv: KvType, steps: &[StepInput]) -> Vec<Vec<Output>> {
    let ctx = steps.iter().map(|(s, ..)| s.past + s.tokens).max().unwrap();
    let ubatch = steps.iter().map(|(s, ..)| s.tokens).max().unwrap();
    let mut runner = loaded.runner(one(ctx, ubatch, kv)).unwrap();
    let mut all = vec![];
    for (shape, tokens, inputs) in steps {
        let inputs: Vec<(&str, &[f32])> = inputs.iter().map(|(n, d)| (n.as_str(), d.as_slice())).collect();
        let mut out = vec![];
        let step = Step { tokens, past: shape.past, outputs: shape.outputs, inputs: &inputs };
        runner.run(step, &mut out).unwrap();
        all.push(out);
    }
    all
}

/// Whether dear tests run on all of their cases, as `tests/run --all` says. Otherwise each takes some that stand for all.
pub fn thorough() -> bool {
    std::env::var_os("MOERAY_TEST_ALL").is_some()
}

/// Runs `test` unless something of this name has passed in this process; waits where it is running on another thread. For what is
/// both a test by itself and what `proven` records.
pub fn once(name: &str, test: impl FnOnce()) {
    static PASSED: Mutex<BTreeMap<String, Arc<OnceLock<()>>>> = Mutex::new(BTreeMap::new());
    let cell = PASSED.lock().unwrap_or_else(PoisonError::into_inner).entry(name.into()).or_default().clone();
    cell.get_or_init(test);
}
