//! Training on a GPU: where weights lie, what does not fit one binding, and how much one submission holds.

use super::{
    backends::{linear, moe, through_frozen_of},
    model,
    net::{Net, results, worst},
};
use crate::{goldens, support};
use moeray::{
    backend::{
        reference::{self, Precision},
        wgpu::{self, ForcedLimits, Gpu, Options, RunOptions},
    },
    file::{Bytes, Tensor},
    graph::TrainProgram,
    ir::Op,
    kernels::Reduction,
    ops::train::Feed,
    quant::DType,
};

/// A device of its own with all checks on; `None` where there is none.
fn open(limits: ForcedLimits, run: RunOptions) -> Option<Gpu> {
    let options = Options { device: Some(support::gpu_number()?), checked: true, limits, run, ..Options::default() };
    Some(Gpu::open(&options).unwrap())
}

fn binding(bytes: u64) -> Option<Gpu> {
    open(ForcedLimits { max_binding: Some(bytes), ..ForcedLimits::default() }, RunOptions::default())
}

/// Holds both forms of kernels on a device to the reference.
fn held(gpu: &Gpu, what: &str, limit: f64, (program, feed): (TrainProgram, Feed)) {
    let want = results(&mut *reference::train(program.clone(), Precision::F64).unwrap(), &feed);
    for reduction in [Reduction::Workgroup, Reduction::Invocation] {
        let found = results(&mut *wgpu::train_with(gpu, program.clone(), Some(reduction)).unwrap(), &feed);
        let (error, name) = worst(&found, &want);
        assert!(error <= limit, "{what}, {reduction:?}: {name} is off by an NMSE of {error:.1e}");
    }
}

#[test]
fn weights_beyond_a_binding_are_cut() {
    let Some(gpu) = binding(20 << 10) else { return };
    // A frozen matrix and experts of several segments, whose ends are within experts: the cut is in both products.
    for dtype in [DType::F32, DType::F16, DType::Q8_0, DType::Q4K, DType::Q6K] {
        held(&gpu, &format!("{dtype}"), 1e-10, through_frozen_of(dtype, false, [160, 40]));
    }
    // Trained matrices and experts: gradients are cut as weights are.
    let mut n = Net::new(31, 4);
    let x = n.input(10);
    let wide = linear(&mut n, "wide", &[150, 10]);
    let back = linear(&mut n, "back", &[24, 150]);
    let x = n.b.one(Op::Linear(wide), &[x]).unwrap();
    let x = n.b.one(Op::Linear(back), &[x]).unwrap();
    let x = n.b.scaled(x, 0.02).unwrap();
    let y = moe(&mut n, x, 8, 2, 0.0);
    n.enters(y);
    held(&gpu, "trained matrices", 1e-8, n.trained(&[]));
    // A whole model, with the table of its tokens.
    let Some(gpu) = binding(40 << 10) else { return };
    let ids = goldens::golden("mixtral").ids;
    held(&gpu, "mixtral", 1e-7, (model::program("mixtral", &|_| true).unwrap(), model::feed(&ids)));
}

#[test]
fn a_value_beyond_a_binding_is_a_named_error() {
    let Some(gpu) = binding(8 << 10) else { return };
    let mut n = Net::new(300, 1);
    let x = n.input(10);
    let w = linear(&mut n, "w", &[3, 10]);
    let y = n.b.one(Op::Linear(w), &[x]).unwrap();
    n.enters(y);
    let (program, feed) = n.trained(&[]);
    let error = wgpu::train(&gpu, program).unwrap().micro(&feed).unwrap_err().to_string();
    assert!(error.contains("12000 bytes") && error.contains("bind at most 8192"), "{error}");
    assert!(error.contains("a smaller micro-batch"), "{error}");
}

/// A few frozen matrices one after the other, with a trained one before.
fn deep(dtype: DType, layers: usize) -> (TrainProgram, Feed) {
    let mut n = Net::new(4, 8);
    let x = n.input(8);
    let before = linear(&mut n, "before", &[512, 8]);
    let mut x = n.b.one(Op::Linear(before), &[x]).unwrap();
    let names: Vec<String> = (0..layers).map(|i| format!("frozen{i}")).collect();
    for (i, name) in names.iter().enumerate() {
        let bytes = crate::cpu::blocks(dtype, 512 * 512, &mut crate::cpu::Rng(i as u64 + 1));
        let w = n.tensor(name, Tensor::new(dtype, vec![512, 512], vec![Bytes::from_vec(bytes)]).unwrap());
        let y = n.b.one(Op::Linear(moeray::ir::Linear { weight: w, bias: None }), &[x]).unwrap();
        x = n.b.scaled(y, 0.05).unwrap();
    }
    n.enters(x);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    n.trained(&names)
}

#[test]
fn frozen_weights_stay_in_their_format_on_the_gpu() {
    const LAYERS: usize = 12;
    let f32_bytes = (LAYERS * 512 * 512 * 4) as u64;
    // Less than the same weights in f32 take: enough for them as they are.
    let limits = ForcedLimits { memory: Some(f32_bytes / 3), ..ForcedLimits::default() };
    let Some(gpu) = open(limits, RunOptions::default()) else { return };
    let (program, feed) = deep(DType::Q4K, LAYERS);
    let before = gpu.held_memory();
    let mut training = wgpu::train(&gpu, program).unwrap();
    training.micro(&feed).unwrap();
    if let (Some([_, before]), Some([_, after])) = (before, gpu.held_memory()) {
        // Packed, and one of them at a time in f32.
        let used = after - before;
        assert!(used < f32_bytes / 3, "{used} bytes are in use; in f32 the weights alone take {f32_bytes}");
    }
    let error = wgpu::train(&gpu, deep(DType::F32, LAYERS).0).err().unwrap().to_string();
    assert!(error.contains("weights and their gradients") && error.contains("memory left"), "{error}");
}

#[test]
fn submissions_hold_no_more_work_than_they_may() {
    let build = || {
        let mut n = Net::new(190, 6);
        let before = linear(&mut n, "before", &[24, 10]);
        let x = n.input(10);
        let x = n.b.one(Op::Linear(before), &[x]).unwrap();
        let x = n.b.scaled(x, 0.1).unwrap();
        let y = moe(&mut n, x, 16, 3, 0.0);
        n.enters(y);
        n.trained(&[])
    };
    let run = |options: RunOptions| {
        let gpu = open(ForcedLimits::default(), options)?;
        let mut made = vec![];
        for reduction in [Reduction::Workgroup, Reduction::Invocation] {
            let (program, feed) = build();
            let mut training = wgpu::train_with(&gpu, program, Some(reduction)).unwrap();
            let before = gpu.traffic();
            training.micro(&feed).unwrap();
            let after = gpu.traffic();
            let all = (0..training.parameters().len()).map(|i| training.gradient(i).unwrap()).collect::<Vec<_>>();
            made.push((all, [after[0] - before[0], after[1] - before[1]]));
        }
        Some(made)
    };
    let Some(whole) = run(RunOptions::default()) else { return };
    let by_work = run(RunOptions { max_work: Some(40_000), ..RunOptions::default() }).unwrap();
    let by_count = run(RunOptions { max_dispatches: Some(3), ..RunOptions::default() }).unwrap();
    for ((whole, by_work), by_count) in whole.iter().zip(&by_work).zip(&by_count) {
        assert!(whole.0 == by_work.0 && whole.0 == by_count.0, "gradients depend on how they are submitted");
        let [submissions, dispatches] = whole.1;
        assert_eq!(submissions, 1);
        // Products of experts, of some 160 000 multiply-adds each, are cut as well.
        assert!(by_work.1[0] > 10 && by_work.1[1] > dispatches, "{:?} and {:?}", by_work.1, whole.1);
        assert_eq!(by_count.1, [dispatches.div_ceil(3), dispatches]);
    }
}

#[test]
fn attention_is_cut_by_rows_as_well() {
    let ids = goldens::golden("llama").ids;
    let run = |max_work| {
        let gpu = open(ForcedLimits::default(), RunOptions { max_work, ..RunOptions::default() })?;
        let mut training = wgpu::train(&gpu, model::program("llama", &|_| true).unwrap()).unwrap();
        Some((results(&mut *training, &model::feed(&ids)), gpu.traffic()[1]))
    };
    let Some((whole, few)) = run(None) else { return };
    let (cut, many) = run(Some(500)).unwrap();
    assert!(whole == cut, "results depend on how they are submitted");
    assert!(many > 2 * few, "{many} dispatches instead of {few}");
}
