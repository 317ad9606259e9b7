//! Training on the CPU and on a GPU against the reference: every op, sizes beyond a tile, skewed experts, every format of frozen
//! weights; every instruction set and any number of threads; two runs on the GPU.

use super::{
    model,
    net::{Against, Net, against, results, worst},
    ops, routers,
};
use crate::goldens;
use moeray::{
    backend::{
        cpu::{self, Options, SimdLevel},
        reference::{self, Precision},
        training::Training,
        wgpu,
    },
    file::{Bytes, Tensor},
    graph::{
        TrainProgram,
        formula::{self, ExpertNet},
    },
    ir::{Activation, Linear, Math, Op, Router, Score, SelfAttention, ValueId},
    kernels::Reduction,
    ops::train::Feed,
    quant::DType,
};

fn options(threads: usize, simd_level: Option<SimdLevel>) -> Options {
    Options { threads: Some(threads), simd_level, ..Options::default() }
}

/// Holds the CPU, with all instruction sets and with one and two threads, to the reference.
fn held(what: &str, limit: f64, build: &dyn Fn() -> (TrainProgram, Feed)) {
    let (program, feed) = build();
    let want = results(&mut *reference::train(program.clone(), Precision::F64).unwrap(), &feed);
    for level in SimdLevel::ALL.into_iter().filter(|l| l.is_available()) {
        let run = |threads| {
            let mut training = cpu::train(program.clone(), &options(threads, Some(level))).unwrap();
            results(&mut *training, &feed)
        };
        let (one, two) = (run(1), run(2));
        let (error, name) = worst(&one, &want);
        assert!(error <= limit, "{what} with {}: {name} is off by an NMSE of {error:.1e}", level.name());
        assert_eq!(one, two, "{what}: two threads give other bits than one");
    }
}

/// Holds the GPU to the reference, and two runs to each other's bits.
fn held_gpu(what: &str, limit: f64, build: &dyn Fn() -> (TrainProgram, Feed)) {
    let Some(gpu) = crate::support::gpu() else { return };
    let (program, feed) = build();
    let want = results(&mut *reference::train(program.clone(), Precision::F64).unwrap(), &feed);
    for reduction in [Reduction::Workgroup, Reduction::Invocation] {
        let run = || results(&mut *wgpu::train_with(&gpu, program.clone(), Some(reduction)).unwrap(), &feed);
        let (one, two) = (run(), run());
        let (error, name) = worst(&one, &want);
        assert!(error <= limit, "{what} on the GPU, {reduction:?}: {name} is off by an NMSE of {error:.1e}");
        assert_eq!(one, two, "{what}: two runs on the GPU differ");
    }
}

/// The checks of all rules.
fn every_op() {
    ops::gradient_of_embed();
    ops::gradient_of_norms();
    ops::gradient_of_linear();
    ops::gradient_of_rotate();
    ops::gradient_of_self_attend();
    ops::gradient_of_cross_entropy();
    ops::gradient_of_elementwise_ops();
    ops::gradient_of_activations();
    ops::gradient_of_functions();
    ops::gradient_of_arithmetic_with_repeated_operands();
    ops::gradient_of_reductions();
    ops::gradient_of_dropout_and_noise();
    routers::gradient_of_routers();
    routers::gradient_of_routers_with_bias_groups_and_factors();
    routers::gradient_of_routers_over_groups();
    routers::gradient_of_experts();
    routers::gradient_of_experts_that_are_summed();
    routers::gradient_of_slots();
    routers::gradient_of_capacity_and_balances();
}

#[test]
fn every_op_on_the_cpu_is_that_of_the_reference() {
    against(Against::Cpu, every_op);
}

#[test]
fn every_op_on_the_gpu_is_that_of_the_reference() {
    if let Some(gpu) = crate::support::gpu() {
        against(Against::Gpu, every_op);
        texts_translate(&gpu);
    }
}

/// Translates all kernels of training so far to the languages of other systems, and holds them to WebGPU's base limits; its functions
/// that unpack halves are an own capability of naga's.
fn texts_translate(gpu: &wgpu::Gpu) {
    use naga::{
        back::{hlsl, msl, spv},
        valid::{Capabilities, ValidationFlags, Validator},
    };
    let texts = gpu.training_texts();
    assert!(texts.len() > 40, "{} kernels", texts.len());
    for text in texts {
        assert!(text.matches("var<storage").count() <= 8, "{text}");
        let module = naga::front::wgsl::parse_str(&text).unwrap();
        let info =
            Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32).validate(&module).unwrap();
        spv::write_vec(&module, &info, &spv::Options::default(), None).unwrap();
        let options = msl::Options { lang_version: (2, 0), fake_missing_bindings: true, ..Default::default() };
        msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()).unwrap();
        let (mut out, options) = (String::new(), hlsl::Options { fake_missing_bindings: true, ..Default::default() });
        let pipeline = hlsl::PipelineOptions::default();
        hlsl::Writer::new(&mut out, &options, &pipeline).write(&module, &info, None).unwrap();
    }
}

#[test]
fn what_has_no_kernel_on_the_gpu_is_refused_by_name() {
    let Some(gpu) = crate::support::gpu() else { return };
    let mut n = Net::new(1, 1);
    let logits = n.input(1100);
    let choice = formula::top_k(&mut n.b, logits, Router::new(1100, 2, Score::Softmax)).unwrap();
    n.enters(choice.weights);
    let (program, _) = n.trained(&[]);
    let error = wgpu::train(&gpu, program).err().unwrap().to_string();
    assert!(error.contains("router") && error.contains("1100 experts"), "{error}");
}

pub fn linear(n: &mut Net, name: &str, shape: &[usize]) -> Linear {
    Linear { weight: n.weight(name, shape), bias: None }
}

/// A way to hold a backend to the reference: what is held, the limit, and how it is built.
type Held = dyn Fn(&str, f64, &dyn Fn() -> (TrainProgram, Feed));

#[test]
fn matrices_beyond_a_tile_are_those_of_the_reference() {
    matrices(&held);
}

#[test]
fn matrices_on_the_gpu_are_those_of_the_reference() {
    matrices(&held_gpu);
}

fn matrices(held: &Held) {
    for (rows, out, inp) in [(1, 1, 1), (1, 129, 7), (7, 5, 130), (49, 131, 33), (97, 48, 257), (300, 17, 3)] {
        held(&format!("[{out}, {inp}] on {rows} rows"), 1e-10, &|| {
            let mut n = Net::new(rows, 5);
            let bias = Some(n.weight("b", &[out]));
            let l = Linear { bias, ..linear(&mut n, "w", &[out, inp]) };
            let x = n.input(inp);
            let y = n.b.one(Op::Linear(l), &[x]).unwrap();
            let y = n.b.scaled(y, 1.0 / inp as f64).unwrap();
            n.enters(y);
            n.trained(&[])
        });
    }
}

/// A layer of gated experts on an input that a matrix makes.
pub fn moe(n: &mut Net, x: ValueId, experts: usize, used: usize, skew: f64) -> ValueId {
    let gate = linear(n, "router", &[experts, 24]);
    let logits = n.b.one(Op::Linear(gate), &[x]).unwrap();
    // One expert that all tokens choose, where it is skewed.
    let one = n.b.math(Math::Constant { value: skew, cols: 1 }, &[]).unwrap();
    let one = n.b.math(Math::PadColumns { before: 1, after: experts - 2 }, &[one]).unwrap();
    let logits = n.b.plus(logits, one).unwrap();
    let choice = formula::top_k(&mut n.b, logits, Router::new(experts, used, Score::SoftmaxOfSelected)).unwrap();
    let (gate, up) = (linear(n, "gate", &[experts, 37, 24]), linear(n, "up", &[experts, 37, 24]));
    let bias = Some(n.weight("down.bias", &[experts, 24]));
    let down = Linear { bias, ..linear(n, "down", &[experts, 24, 37]) };
    let net = ExpertNet::Gated { gate, up, act: Activation::Silu, down };
    formula::routed_experts(&mut n.b, net, x, choice).unwrap()
}

#[test]
fn layers_of_experts_are_those_of_the_reference() {
    layers_of_experts(&held);
}

#[test]
fn layers_of_experts_on_the_gpu_are_those_of_the_reference() {
    layers_of_experts(&held_gpu);
}

fn layers_of_experts(held: &Held) {
    for (rows, experts, used, skew) in
        [(1, 4, 1, 0.0), (61, 5, 2, 0.0), (53, 7, 2, 50.0), (40, 4, 4, 0.0), (97, 16, 3, 0.0)]
    {
        held(&format!("{used} of {experts} experts, {rows} rows, skewed by {skew}"), 1e-8, &|| {
            let mut n = Net::new(rows, 9);
            let before = linear(&mut n, "before", &[24, 10]);
            let x = n.input(10);
            let x = n.b.one(Op::Linear(before), &[x]).unwrap();
            let x = n.b.scaled(x, 0.1).unwrap();
            let y = moe(&mut n, x, experts, used, skew);
            let y = n.b.scaled(y, 0.1).unwrap();
            n.enters(y);
            n.trained(&[])
        });
    }
}

#[test]
fn attention_is_that_of_the_reference() {
    attention(&held);
}

#[test]
fn attention_on_the_gpu_is_that_of_the_reference() {
    attention(&held_gpu);
}

fn attention(held: &Held) {
    for (rows, dim, window, sinks) in [(1, 4, None, false), (70, 16, None, false), (67, 24, Some(9), true)] {
        held(&format!("attention of {rows} rows, heads of {dim}"), 1e-10, &|| {
            let mut n = Net::new(rows, 13);
            let (q, k, v) = (n.input(4 * dim), n.input(2 * dim), n.input(2 * dim));
            let starts = (0..rows as u32).map(|r| if r < 40 { r - r % 13 } else { 40 }).collect();
            let starts = n.ids("starts", 1, starts);
            let sinks = sinks.then(|| n.weight("sinks", &[4]));
            let a = SelfAttention {
                heads: 4,
                kv_heads: 2,
                k_dim: dim,
                v_dim: dim,
                scale: 0.25,
                window,
                attention_chunk: None,
                sinks,
            };
            let y = n.b.add(Op::Math(Math::SelfAttend(a)), &[q, k, v, starts]).unwrap()[0];
            n.enters(y);
            n.trained(&[])
        });
    }
}

#[test]
fn models_are_those_of_the_reference() {
    models(&held);
}

#[test]
fn models_on_the_gpu_are_those_of_the_reference() {
    models(&held_gpu);
}

fn models(held: &Held) {
    for name in ["llama", "mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"] {
        let frozen = |n: &str| n.contains("exp_probs_b");
        let ids = goldens::golden(name).ids;
        held(name, 1e-7, &|| (model::program(name, &|n| !frozen(n)).unwrap(), model::feed(&ids)));
    }
}

/// A trained matrix before a frozen one and frozen experts of a format, or of the numbers that the format stands for.
fn through_frozen(dtype: DType, dequantised: bool) -> (TrainProgram, Feed) {
    through_frozen_of(dtype, dequantised, [12, 10])
}

/// The same with so many rows of the frozen matrix, and of each of four experts.
pub fn through_frozen_of(dtype: DType, dequantised: bool, [rows, of_expert]: [usize; 2]) -> (TrainProgram, Feed) {
    let mut n = Net::new(9, 21);
    let tensor = |shape: &[usize], seed: u64| {
        let numbers: usize = shape.iter().product();
        let bytes = crate::cpu::blocks(dtype, numbers, &mut crate::cpu::Rng(seed));
        let stored = Tensor::new(dtype, shape.to_vec(), vec![Bytes::from_vec(bytes)]).unwrap();
        if !dequantised {
            return stored;
        }
        let mut values = vec![0.0; numbers];
        for (r, row) in values.chunks_mut(*shape.last().unwrap()).enumerate() {
            moeray::quant::dequantize(dtype, stored.row(r), row).unwrap();
        }
        Tensor::from_f32(shape.to_vec(), values).unwrap()
    };
    let (dense, experts) = (tensor(&[rows, 256], 3), tensor(&[4, of_expert, 256], 4));
    let before = linear(&mut n, "before", &[256, 8]);
    let x = n.input(8);
    let x = n.b.one(Op::Linear(before), &[x]).unwrap();
    let x = n.b.scaled(x, 0.05).unwrap();
    let dense = Linear { weight: n.tensor("dense", dense), bias: None };
    let experts = Linear { weight: n.tensor("experts", experts), bias: None };
    let y = n.b.one(Op::Linear(dense), &[x]).unwrap();
    let y = n.b.scaled(y, 0.05).unwrap();
    n.enters(y);
    let (weights, ids) = (n.input(2), n.ids("ids", 2, (0..18).map(|i| (i * 5 + i / 4) % 4).collect()));
    let choice = formula::Choice { ids, weights };
    let z = formula::routed_experts(&mut n.b, ExpertNet::Linear(experts), x, choice).unwrap();
    let z = n.b.scaled(z, 0.05).unwrap();
    n.enters(z);
    n.trained(&["dense", "experts"])
}

#[test]
fn gradients_through_frozen_weights_of_every_format_are_those_of_their_numbers() {
    for dtype in DType::ALL {
        let (program, feed) = through_frozen(dtype, true);
        let want = results(&mut *reference::train(program, Precision::F64).unwrap(), &feed);
        let (program, feed) = through_frozen(dtype, false);
        let exact = results(&mut *reference::train(program.clone(), Precision::F64).unwrap(), &feed);
        assert_eq!(exact, want, "{dtype}: the reference");
        let found = results(&mut *cpu::train(program, &options(2, None)).unwrap(), &feed);
        let (error, name) = worst(&found, &want);
        assert!(error <= 1e-10, "{dtype}: {name} is off by an NMSE of {error:.1e}");
    }
}

#[test]
fn gradients_through_frozen_weights_on_the_gpu_are_those_of_their_numbers() {
    for dtype in DType::ALL {
        held_gpu(&format!("{dtype}"), 1e-10, &|| through_frozen(dtype, false));
    }
}

#[test]
fn an_update_changes_what_the_next_micro_batch_computes() {
    let (program, feed) = model_of_two_steps();
    let mut training = cpu::train(program, &options(2, None)).unwrap();
    let loss = |t: &mut dyn Training| t.evaluate(&feed).unwrap().iter().find(|n| n.name == "loss").unwrap().values[0];
    let before = loss(&mut *training);
    for _ in 0..20 {
        training.micro(&feed).unwrap();
        training
            .each(&mut |s| {
                s.weight.iter_mut().zip(s.gradient.iter()).for_each(|(w, g)| *w -= 0.05 * g);
                Ok(())
            })
            .unwrap();
        training.clear().unwrap();
    }
    let after = loss(&mut *training);
    assert!(after < before - 0.1, "the loss goes from {before} to {after}");
    assert!(training.gradient(0).unwrap().iter().all(|g| *g == 0.0));
}

fn model_of_two_steps() -> (TrainProgram, Feed) {
    (model::program("mixtral", &|_| true).unwrap(), model::feed(&goldens::golden("mixtral").ids))
}
