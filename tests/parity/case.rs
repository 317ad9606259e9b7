//! A case: a small graph, its weights, and the steps to run. From one case come the parity of every backend against the
//! reference, with the tolerances of the op's page.

use crate::support::{Shape, StepInput, Target, compare, load, rng::Rng, run};
use moeray::{
    backend::{Output, Program, reference},
    file::{Bytes, Tensor},
    graph::Builder,
    ir::{Graph, ValueId, WeightId},
    ops::linear::Activations,
    quant::{self, DType, KvType},
};
use std::sync::{Arc, OnceLock};

/// A case while it is made.
pub struct Maker {
    pub b: Builder,
    weights: Vec<Tensor>,
    pub rng: Rng,
    inputs: Vec<(String, usize)>,
    vocab: usize,
}

impl Maker {
    pub fn new(seed: u64) -> Self {
        Maker { b: Builder::new(), weights: vec![], rng: Rng(seed), inputs: vec![], vocab: 1 }
    }

    /// A random weight stored as `dtype`, of deviation `1/sqrt(in)` as trained ones roughly have; of formats without a fast quantiser
    /// blocks of random bits.
    pub fn weight(&mut self, shape: &[usize], dtype: DType) -> WeightId {
        let n: usize = shape.iter().product();
        // Quantisers that search grids take longer than all that is done with their weights.
        let grids = [DType::IQ2XXS, DType::IQ2XS, DType::IQ2S, DType::IQ3XXS, DType::IQ3S, DType::IQ1S, DType::IQ1M];
        if dtype.no_quantiser().is_some() || grids.contains(&dtype) {
            let bytes = crate::cpu::blocks(dtype, n, &mut crate::cpu::Rng(self.rng.below(1 << 30) as u64));
            return self.stored(shape, dtype, bytes);
        }
        let scale = 1.0 / (*shape.last().unwrap() as f32).sqrt();
        let x = self.rng.normals(n, scale);
        self.given(shape, dtype, &x)
    }

    /// A weight of these numbers, rounded to `dtype`.
    pub fn given(&mut self, shape: &[usize], dtype: DType, x: &[f32]) -> WeightId {
        let mut bytes = vec![];
        quant::quantize(dtype, x, &mut bytes).unwrap();
        self.stored(shape, dtype, bytes)
    }

    fn stored(&mut self, shape: &[usize], dtype: DType, bytes: Vec<u8>) -> WeightId {
        self.weights.push(Tensor::new(dtype, shape.to_vec(), vec![Bytes::from_vec(bytes)]).unwrap());
        self.b.weight(format!("w{}", self.weights.len() - 1), shape)
    }

    /// A norm's weight: near 1.
    pub fn near_one(&mut self, n: usize) -> WeightId {
        let x: Vec<f32> = self.rng.normals(n, 0.2).iter().map(|v| 1.0 + v).collect();
        self.given(&[n], DType::F32, &x)
    }

    /// A named input.
    pub fn input(&mut self, cols: usize) -> ValueId {
        let name = format!("in{}", self.inputs.len());
        self.inputs.push((name.clone(), cols));
        self.b.one(moeray::ir::Op::Input { name, cols }, &[]).unwrap()
    }

    /// Token ids are drawn below this.
    pub fn vocab(&mut self, n: usize) {
        self.vocab = n;
    }

    pub fn one(&mut self, op: moeray::ir::Op, inputs: &[ValueId]) -> ValueId {
        self.b.one(op, inputs).unwrap()
    }

    /// Finishes the case: names the outputs `y0`, `y1`… (or as given) and runs these steps.
    pub fn finish(self, name: impl Into<String>, outputs: &[(&str, ValueId)], steps: &[(usize, usize, usize)]) -> Case {
        let mut b = self.b;
        outputs.iter().for_each(|(n, v)| b.output(*n, *v));
        let mut rng = self.rng;
        let steps = steps.iter().map(|&(tokens, past, outputs)| {
            let ids = (0..tokens).map(|_| rng.below(self.vocab) as u32).collect();
            let inputs = self.inputs.iter().map(|(n, c)| (n.clone(), rng.with_outliers(tokens * c))).collect();
            (Shape { tokens, past, outputs }, ids, inputs)
        });
        let steps = steps.collect();
        let quantised = self.weights.iter().any(|w| !w.dtype().is_float());
        let program = Program::new(b.finish(), self.weights).unwrap();
        Case { name: name.into(), program, steps, kv: KvType::F32, quantised, wanted: Wanted::default() }
    }
}

/// What the oracles say, with activations in f32, in 16 and in 8 bits: once computed, for all targets and tests.
type Wanted = Arc<[OnceLock<Vec<Vec<Output>>>; 3]>;

#[derive(Clone)]
pub struct Case {
    pub name: String,
    pub program: Program,
    pub steps: Vec<StepInput>,
    pub kv: KvType,
    pub quantised: bool,
    wanted: Wanted,
}

impl Case {
    pub fn with_cache(mut self, kv: KvType) -> Self {
        (self.kv, self.wanted) = (kv, Wanted::default());
        self.name += &format!(" {kv:?} cache");
        self
    }

    /// Without the steps of few rows, which no tiles are made for.
    pub fn many(mut self) -> Self {
        self.steps.retain(|s| s.0.tokens > 8);
        self.wanted = Wanted::default();
        self
    }

    /// Without the steps of many rows, which go by tiles.
    pub fn few(mut self) -> Self {
        self.steps.retain(|s| s.0.tokens <= 8);
        self.wanted = Wanted::default();
        self
    }

    /// The tolerance that `ops/mod.rs` states.
    fn tolerance(&self, target: Target) -> f64 {
        match (target.base(), self.quantised, self.kv) {
            (Target::Cpu, true, _) if self.program.graph.nodes.len() > 2 => 1e-7,
            (Target::WgpuF16 | Target::WgpuCoop16, ..) => 1e-6,
            (Target::CpuInt8 | Target::WgpuInt8, true, _) if self.program.graph.nodes.len() > 2 => 1e-5,
            (Target::Cpu, _, KvType::Q8_0) => 1e-5,
            (_, _, KvType::F16 | KvType::Q8_0) => 1e-6,
            _ => 1e-10,
        }
    }

    /// What `target` is held to.
    pub fn want(&self, target: Target) -> &[Vec<Output>] {
        let (i, activations) = match target.base() {
            Target::Cpu => (1, Activations::Int16),
            Target::CpuInt8 | Target::WgpuInt8 => (2, Activations::Int8),
            _ => (0, Activations::F32),
        };
        self.wanted[i].get_or_init(|| {
            let oracle = reference::load_with(self.program.clone(), activations).unwrap();
            run(&*oracle, self.kv, &self.steps)
        })
    }

    /// Compares what came out on `target` with what was wanted.
    pub fn compare(&self, target: Target, got: &[Vec<Output>], want: &[Vec<Output>]) -> Result<(), String> {
        let names: Vec<String> = self.program.graph.outputs.iter().map(|(n, _)| n.clone()).collect();
        compare::check_steps(&names, got, want, self.tolerance(target)).map_err(|e| format!("{}: {e}", self.name))?;
        Ok(())
    }

    /// Runs on `target` and compares with the reference. `Ok(false)`: there is no such device here.
    pub fn check(&self, target: Target) -> Result<bool, String> {
        let Some(loaded) = load(target, &self.program) else { return Ok(false) };
        self.compare(target, &run(&*loaded, self.kv, &self.steps), self.want(target))?;
        Ok(true)
    }

    pub fn graph(&self) -> &Graph {
        &self.program.graph
    }
}

/// Checks all cases on a target; fails with the list of those that are wrong.
pub fn check_all(cases: &[Case], target: Target) {
    assert!(!cases.is_empty());
    let (mut failures, mut ran) = (vec![], 0);
    for case in cases {
        match case.check(target) {
            Ok(true) => ran += 1,
            Ok(false) => assert!(target.is_gpu(), "only a GPU may be absent"),
            Err(e) => failures.push(e),
        }
    }
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    let present = !target.is_gpu() || crate::support::gpu().is_some();
    assert_eq!(ran, if present { cases.len() } else { 0 }, "cases that ran");
}

/// Checks the cases of a table as [`check_all`] does, once a process for each target.
pub fn check_table<C: AsRef<[Case]>>(name: &str, cases: fn() -> C, target: Target) {
    crate::support::once(&format!("{name} on {target:?}"), || check_all(cases().as_ref(), target));
}
