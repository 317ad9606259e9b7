//! Whole graphs: bits that do not depend on threads, SIMD levels that agree, profiles, and split attention.

use super::{Rng, blocks};
use crate::support::one::{OneSequence, Step, one};
use moeray::{
    backend::{
        Loaded, Output, Program,
        cpu::{self, Options, SimdLevel},
    },
    file::{Bytes, Tensor},
    graph::Builder,
    ir::{Activation, Attention, CacheDecl, Linear, Norm, Op, Renormalise, Rope, RopePairs, Router, Score},
    quant::{DType, KvType},
};

/// A small transformer with one MoE layer and one dense layer, in the given weight types.
fn model(experts: DType, rest: DType) -> Program {
    let (h, heads, kv, d, e, k, i, vocab) = (256, 8, 2, 32, 6, 3, 256, 300);
    let mut rng = Rng(42);
    let (mut b, mut weights) = (Builder::new(), vec![]);
    let mut add = |b: &mut Builder, shape: &[usize], dtype: DType| {
        let n: usize = shape.iter().product();
        weights.push(Tensor::new(dtype, shape.to_vec(), vec![Bytes::from_vec(blocks(dtype, n, &mut rng))]).unwrap());
        b.weight(format!("w{}", weights.len()), shape)
    };
    let linear = |weight| Op::Linear(Linear { weight, bias: None });
    let ids = b.one(Op::Tokens, &[]).unwrap();
    let table = add(&mut b, &[vocab, h], rest);
    let mut x = b.one(Op::Embed { table, scale: 1.0 }, &[ids]).unwrap();
    let inv_freq: Vec<f32> = (0..d / 2).map(|i| 10000f32.powf(-2.0 * i as f32 / d as f32)).collect();
    let rope = Rope {
        head_dim: d,
        dims: d,
        pairs: RopePairs::Halves,
        inv_freq: inv_freq.into(),
        scale: 1.0,
        long: None,
        temperature: None,
    };
    for layer in 0..2 {
        let cache = b.cache(CacheDecl::new(kv, d, d));
        let norm = Norm::rms(add(&mut b, &[h], DType::F32), 1e-5);
        let n = b.one(Op::RmsNorm(norm), &[x]).unwrap();
        let [q, key, v] = [heads, kv, kv].map(|n| add(&mut b, &[n * d, h], rest));
        let [q, key, v] = [q, key, v].map(|w| b.one(linear(w), &[n]).unwrap());
        let q = b.one(Op::Rope(rope.clone()), &[q]).unwrap();
        let key = b.one(Op::Rope(rope.clone()), &[key]).unwrap();
        let stored = b.one(Op::KvStore { cache }, &[key, v]).unwrap();
        let a = Attention { cache, heads, scale: 0.17, window: None, attention_chunk: None, sinks: None };
        let a = b.one(Op::Attend(a), &[q, stored]).unwrap();
        let wo = add(&mut b, &[h, heads * d], rest);
        let y = b.one(linear(wo), &[a]).unwrap();
        x = b.one(Op::Add, &[x, y]).unwrap();
        let norm = Norm::rms(add(&mut b, &[h], DType::F32), 1e-5);
        let n = b.one(Op::RmsNorm(norm), &[x]).unwrap();
        let y = if layer == 0 {
            let r = add(&mut b, &[e, h], DType::F32);
            let logits = b.one(linear(r), &[n]).unwrap();
            let r = Router { renormalise: Renormalise::Sum, ..Router::new(e, k, Score::Softmax) };
            let routed = b.add(Op::Router(r), &[logits]).unwrap();
            let [g, u, dn] = [[e, i, h], [e, i, h], [e, h, i]].map(|s| add(&mut b, &s, experts));
            let g = b.one(Op::ExpertLinear(Linear { weight: g, bias: None }), &[n, routed[0]]).unwrap();
            let u = b.one(Op::ExpertLinear(Linear { weight: u, bias: None }), &[n, routed[0]]).unwrap();
            let m = b.one(Op::Glu(Activation::Silu), &[g, u]).unwrap();
            let y = b.one(Op::ExpertLinear(Linear { weight: dn, bias: None }), &[m, routed[0]]).unwrap();
            b.one(Op::ExpertCombine, &[y, routed[1]]).unwrap()
        } else {
            let [g, u, dn] = [[i, h], [i, h], [h, i]].map(|s| add(&mut b, &s, rest));
            let [g, u] = [g, u].map(|w| b.one(linear(w), &[n]).unwrap());
            let m = b.one(Op::Glu(Activation::Silu), &[g, u]).unwrap();
            b.one(linear(dn), &[m]).unwrap()
        };
        x = b.one(Op::Add, &[x, y]).unwrap();
    }
    let x = b.one(Op::TakeOutputs, &[x]).unwrap();
    let norm = Norm::rms(add(&mut b, &[h], DType::F32), 1e-5);
    let n = b.one(Op::RmsNorm(norm), &[x]).unwrap();
    let head = add(&mut b, &[vocab, h], rest);
    let logits = b.one(linear(head), &[n]).unwrap();
    b.output("logits", logits);
    Program::new(b.finish(), weights).unwrap()
}

fn load(program: &Program, threads: usize, level: Option<SimdLevel>) -> Box<dyn Loaded> {
    let (mut calls, mut last, mut total) = (0, 0, 0);
    let options = Options { threads: Some(threads), simd_level: level, ..Options::default() };
    let loaded = cpu::load(program.clone(), &options, &mut |p| {
        assert!(p.done >= last && p.done <= p.total, "{p:?} after {last}");
        (calls, last, total) = (calls + 1, p.done, p.total);
        Ok(())
    })
    .unwrap();
    assert!(calls >= program.weights.len(), "progress is reported for every weight");
    assert_eq!(last, total);
    loaded
}

/// A prefill of 40 tokens, then three single ones: the logits of every token.
fn logits(loaded: &dyn Loaded) -> Vec<f32> {
    logits_with(loaded, KvType::F16)
}

fn logits_with(loaded: &dyn Loaded, kv: KvType) -> Vec<f32> {
    let mut runner = loaded.runner(one(64, 40, kv)).unwrap();
    let (mut out, mut all) = (vec![], vec![]);
    let ids: Vec<u32> = (0..43).map(|i| i * 37 % 300).collect();
    for (past, n) in [(0, 40), (40, 1), (41, 1), (42, 1)] {
        let step = Step { tokens: &ids[past..past + n], past, outputs: n, inputs: &[] };
        runner.run(step, &mut out).unwrap();
        all.extend_from_slice(&out[0].f32);
    }
    assert_eq!(all.len(), 43 * 300);
    assert!(all.iter().all(|x| x.is_finite()));
    all
}

#[test]
fn threads_do_not_change_bits() {
    for (experts, rest) in [(DType::Q4K, DType::Q8_0), (DType::F16, DType::F32)] {
        let program = model(experts, rest);
        for kv in [KvType::F16, KvType::Q8_0] {
            let want = logits_with(&*load(&program, 1, None), kv);
            for threads in [2, 3, 5, 7] {
                let got = logits_with(&*load(&program, threads, None), kv);
                assert!(want.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()), "{threads} threads, {kv:?}");
            }
        }
    }
}

/// The SIMD levels differ by rounding only, and describe themselves.
#[test]
fn simd_levels_agree() {
    let program = model(DType::Q4K, DType::Q6K);
    for kv in [KvType::F16, KvType::Q8_0] {
        let want = logits_with(&*load(&program, 2, Some(SimdLevel::Scalar)), kv);
        let energy: f64 = want.iter().map(|x| f64::from(*x).powi(2)).sum();
        for level in cpu::SimdLevel::available() {
            let loaded = load(&program, 2, Some(level));
            assert_eq!(loaded.describe(), format!("cpu (2 threads, {})", level.name()));
            let got = logits_with(&*loaded, kv);
            let error: f64 = want.iter().zip(&got).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            // One activation code that rounds the other way is 1e-5 or so; a wrong kernel is 1e-2 and more.
            assert!(error / energy < 1e-4, "{}, {kv:?}: {:e}", level.name(), error / energy);
        }
    }
}

/// A profile tells of every op, and of the bytes that a token has to read at least; the sequence goes on as if nothing had been.
#[test]
fn a_profile_counts_ops_and_bytes() {
    let program = model(DType::Q4K, DType::Q8_0);
    let loaded = load(&program, 2, None);
    let options = one(16, 8, KvType::F16);
    let (mut runner, mut other) = (loaded.runner(options).unwrap(), loaded.runner(options).unwrap());
    let (mut out, mut want) = (vec![], vec![]);
    let step = |past: usize, tokens: &'static [u32]| Step { tokens, past, outputs: 1, inputs: &[] };
    for r in [&mut runner, &mut other] {
        r.run(step(0, &[1, 2, 3]), &mut out).unwrap();
    }
    let times = runner.time(step(3, &[4])).unwrap().unwrap();
    assert_eq!(times.iter().map(|t| t.dispatches).sum::<usize>(), moeray::graph::fuse(&program.graph).nodes.len());
    assert!(times.iter().all(|t| t.seconds.is_finite() && t.seconds >= 0.0));
    let experts = program.graph.weights.iter().zip(program.weights.iter()).filter(|(w, _)| w.shape.len() == 3);
    // Three experts of those that there are.
    let read: usize = experts.map(|(w, t)| t.byte_len() / w.shape[0] * 3).sum();
    let counted = |kernel: &str, op: &str| -> u64 {
        times.iter().filter(|t| t.kernel == kernel && t.op.starts_with(op)).map(|t| t.bytes).sum()
    };
    assert_eq!(counted("Q4_K", "expert_"), read as u64, "{times:?}");
    assert!(counted("F16", "attend") > 0 && counted("Q8_0", "") > 0, "{times:?}");
    assert_eq!(counted("Q4_K", "linear"), 0);
    runner.run(step(3, &[4]), &mut out).unwrap();
    other.run(step(3, &[4]), &mut want).unwrap();
    assert_eq!(out, want);
    assert!(runner.time(step(3, &[])).is_err());
}

/// Two runners of one model at the same time, from two threads, give what one gives.
#[test]
fn two_runners_at_once() {
    let program = model(DType::Q4_0, DType::Q8_0);
    let loaded = load(&program, 2, None);
    let want = logits(&*loaded);
    std::thread::scope(|s| {
        let both: Vec<_> = (0..2).map(|_| s.spawn(|| (0..3).map(|_| logits(&*loaded)).collect::<Vec<_>>())).collect();
        for got in both.into_iter().flat_map(|h| h.join().unwrap()) {
            assert_eq!(got, want);
        }
    });
}

/// A long context, where decoding splits the positions, against a prefill that does not.
#[test]
fn split_attention_is_attention() {
    split_attention(KvType::F32, 1e-5);
    // Weights are within a 65 534th of the largest of 128 positions, of others in a prefill than in a piece, and the largest is
    // some ten times the mean: 3 · 10 / 65 534 if all errors had one sign.
    split_attention(KvType::Q8_0, 4e-4);
}

fn split_attention(kv_type: KvType, tolerance: f32) {
    let (heads, kv, d, n) = (4, 2, 32, 1300);
    let mut b = Builder::new();
    let cache = b.cache(CacheDecl::new(kv, d, d));
    let [q, k, v] = [("q", heads * d), ("k", kv * d), ("v", kv * d)]
        .map(|(name, cols)| b.one(Op::Input { name: name.into(), cols }, &[]).unwrap());
    let stored = b.one(Op::KvStore { cache }, &[k, v]).unwrap();
    for window in [None, Some(700), Some(40)] {
        let a = Attention { cache, heads, scale: 0.2, window, attention_chunk: None, sinks: None };
        let y = b.one(Op::Attend(a), &[q, stored]).unwrap();
        b.output(format!("{window:?}"), y);
    }
    let loaded = load(&Program::new(b.finish(), vec![]).unwrap(), 3, None);
    let mut rng = Rng(5);
    let mut random = |cols: usize| -> Vec<f32> { (0..n * cols).map(|_| rng.unit() * 3.0).collect() };
    let (q, k, v) = (random(heads * d), random(kv * d), random(kv * d));
    let options = one(n, n, kv_type);
    let step = |runner: &mut moeray::backend::runner::Runner, past: usize, t: usize| -> Vec<Output> {
        let part = |x: &Vec<f32>, cols: usize| x[past * cols..(past + t) * cols].to_vec();
        let (q, k, v) = (part(&q, heads * d), part(&k, kv * d), part(&v, kv * d));
        let inputs = [("q", &q[..]), ("k", &k[..]), ("v", &v[..])];
        let mut out = vec![];
        runner.run(Step { tokens: &vec![0; t], past, outputs: 0, inputs: &inputs }, &mut out).unwrap();
        out
    };
    let all = step(&mut loaded.runner(options).unwrap(), 0, n);
    let mut runner = loaded.runner(options).unwrap();
    step(&mut runner, 0, n - 1);
    let last = step(&mut runner, n - 1, 1);
    for (a, l) in all.iter().zip(&last) {
        for (x, y) in a.f32[(n - 1) * heads * d..].iter().zip(&l.f32) {
            assert!((x - y).abs() < tolerance, "{x} {y}");
        }
    }
    // A window of 40 of 1300 random positions is not the same as all of them: the outputs differ.
    assert_ne!(last[0].f32, last[2].f32);
}

/// Weights are packed where the SIMD level has packed kernels and it is not forbidden: memory says so, and the results are those of
/// the map up to the order of sums.
#[test]
fn packed_and_mapped_agree() {
    for (experts, rest) in [(DType::Q4K, DType::Q6K), (DType::Q8_0, DType::Q5_0)] {
        let program = model(experts, rest);
        for level in cpu::SimdLevel::available() {
            let with = |repack: bool| {
                let options = Options { threads: Some(2), simd_level: Some(level), repack, ..Options::default() };
                cpu::load(program.clone(), &options, &mut |_| Ok(())).unwrap()
            };
            let (mapped, packed) = (with(false), with(true));
            assert_eq!(mapped.weight_bytes(), 0);
            let has_kernels = matches!(level, SimdLevel::Avx2 | SimdLevel::AvxVnni | SimdLevel::Avx512Vnni);
            assert_eq!(packed.weight_bytes() > 0, has_kernels, "{}", level.name());
            let (want, got) = (logits(&*mapped), logits(&*packed));
            let energy: f64 = want.iter().map(|x| f64::from(*x).powi(2)).sum();
            let error: f64 = want.iter().zip(&got).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            assert!(error / energy < 1e-4, "{}: {:e}", level.name(), error / energy);
        }
    }
}

/// Copies that memory has no room for are not made: the weights are read from where they are. Those that every token reads come first,
/// then experts of whole layers.
#[test]
fn copies_that_do_not_fit_are_not_made() {
    let program = model(DType::Q4K, DType::Q6K);
    let experts: u64 = moeray::graph::expert_weights(&program.graph).len() as u64;
    let with = |memory| {
        let options = Options { threads: Some(1), memory: Some(memory), ..Options::default() };
        cpu::load(program.clone(), &options, &mut |_| Ok(())).unwrap()
    };
    let needed = with(u64::MAX).weight_bytes();
    assert_eq!(with(needed).weight_bytes(), needed);
    assert_eq!(with(1).weight_bytes(), 0);
    if needed == 0 {
        return;
    }
    // Each smaller memory has copies that fit it, of so many layers' experts and of all that is no expert's, or of nothing.
    let held: std::collections::BTreeSet<u64> = (0..=40)
        .map(|i| needed * i / 40)
        .map(|most| {
            let held = with(most).weight_bytes();
            assert!(held <= most);
            held
        })
        .collect();
    assert_eq!(held.len() as u64, experts + 2, "{held:?}");
    let want = logits(&*with(needed));
    for most in held {
        let got = logits(&*with(most));
        let energy: f64 = want.iter().map(|x| f64::from(*x).powi(2)).sum();
        let error: f64 = want.iter().zip(&got).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        assert!(error / energy < 1e-4, "{most} bytes: {:e}", error / energy);
    }
}
