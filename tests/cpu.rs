//! The CPU backend by itself: every format's products at every SIMD level, the thread pool (`cpu/pool.rs`), and independence of
//! the number of threads. Parity of ops with the reference is in `parity`, at every SIMD level.

mod pool;

use crate::{
    quant::dequantized,
    support::one::{OneSequence, Step, one},
};
use moeray::{
    backend::{
        Loaded, Output, Program,
        cpu::{self, Options, SimdLevel, pool::Pool},
    },
    file::{Bytes, Tensor},
    graph::Builder,
    ir::{Activation, Attention, CacheDecl, Linear, Norm, Op, Renormalise, Rope, RopePairs, Router, Score},
    ops::linear::Activations,
    quant::{DType, KvType},
};
use proptest::prelude::*;

/// splitmix64.
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1 .. 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Random blocks of a format: all bits random, but the scales are numbers of a sensible size.
pub fn blocks(dtype: DType, weights: usize, rng: &mut Rng) -> Vec<u8> {
    let l = dtype.layout();
    let mut bytes: Vec<u8> = (0..weights / l.block * l.bytes).map(|_| rng.next() as u8).collect();
    let scales: &[usize] = match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::MXFP4 => &[],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
        DType::IQ1M | DType::NVFP4 => &[],
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4NL | DType::IQ4XS => &[0],
        DType::IQ1S | DType::IQ2XXS | DType::IQ2XS | DType::IQ2S | DType::IQ3XXS | DType::IQ3S => &[0],
    };
    for block in bytes.chunks_exact_mut(l.bytes) {
        let x = rng.unit() * 0.05;
        match dtype {
            DType::F32 => block.copy_from_slice(&x.to_le_bytes()),
            DType::F16 => block.copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
            DType::BF16 => block.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
            DType::MXFP4 => block[0] = 118 + block[0] % 8,
            // Its d is in the upper four bits of four words.
            DType::IQ1M => {
                let d = half::f16::from_f32(rng.unit() * 0.01).to_bits();
                (0..4).for_each(|i| block[49 + 2 * i] = block[49 + 2 * i] & 15 | ((d >> (4 * i) & 15) as u8) << 4);
            }
            DType::NVFP4 => block[..4].iter_mut().for_each(|s| *s &= 0x3f),
            _ => {}
        }
        for at in scales {
            block[*at..at + 2].copy_from_slice(&half::f16::from_f32(rng.unit() * 0.01).to_le_bytes());
        }
    }
    bytes
}

fn matrix(dtype: DType, rows: usize, cols: usize, rng: &mut Rng) -> Tensor {
    let bytes = Bytes::from_vec(blocks(dtype, rows * cols, rng));
    Tensor::new(dtype, vec![rows, cols], vec![bytes]).unwrap()
}

/// Activations with an outlier of a hundred times the others' size in one of fifty places, and a stretch of zeros.
fn activations(n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n)
        .map(|i| match rng.next() % 50 {
            _ if i % 512 >= 448 && i % 512 < 480 => 0.0,
            0 => rng.unit() * 100.0,
            _ => rng.unit(),
        })
        .collect()
}

/// The activations as the backend is documented to round them: to a 127th of the largest of 32 neighbours.
fn rounded(x: &[f32]) -> Vec<f64> {
    x.chunks(32)
        .flat_map(|g| {
            let top = g.iter().fold(0f32, |a, v| a.max(v.abs()));
            let inverse = if top > 0.0 { 127.0 / top } else { 0.0 };
            g.iter().map(move |v| f64::from((v * inverse).round_ties_even()) * f64::from(top / 127.0))
        })
        .collect()
}

/// Checks `W x` of one matrix against f64 arithmetic on the dequantised weights:
/// - with the activations rounded as documented: up to f32 rounding, 2e-6 of Σ (|w| + 128 steps) |x|, where 128 steps are
///   bounded by the row's largest weight (formats whose codes have an offset sum it apart and subtract it);
/// - with the true activations (quantised formats): within the bound of the rounding, half a step of each activation,
///   Σ |w| · largest of its 32 / 254.
fn check_product(
    level: SimdLevel,
    dtype: DType,
    rows: usize,
    cols: usize,
    tokens: usize,
    pool: &Pool,
) -> Result<(), String> {
    [false, true].into_iter().try_for_each(|repack| check_form(level, dtype, rows, cols, tokens, repack, pool))
}

/// The same from the file's form or a packed copy (where the SIMD level has none: from the file's form again).
fn check_form(
    level: SimdLevel,
    dtype: DType,
    rows: usize,
    cols: usize,
    tokens: usize,
    repack: bool,
    pool: &Pool,
) -> Result<(), String> {
    let mut rng = Rng((rows * 1_000_003 + cols * 1009 + tokens) as u64);
    let weight = matrix(dtype, rows, cols, &mut rng);
    let x = activations(tokens * cols, &mut rng);
    let got = cpu::multiply(&weight, &x, level, Activations::Int8, repack, pool).unwrap();
    let form = if repack { "packed" } else { "mapped" };
    compare_product(&weight, &x, &got)
        .map_err(|e| format!("{dtype} {form} {rows}x{cols}, {tokens} tokens, {}: {e}", level.name()))
}

/// Compares `got`, `[tokens, rows]`, with `weight` times `x` in f64 arithmetic, within the bounds that [`check_product`]
/// states.
fn compare_product(weight: &Tensor, x: &[f32], got: &[f32]) -> Result<(), String> {
    let (dtype, rows, cols) = (weight.dtype(), weight.rows(), weight.cols());
    let tokens = x.len() / cols;
    assert_eq!(got.len(), tokens * rows);
    let at = |t: usize, r: usize| format!("[{t}, {r}]");
    for t in 0..tokens {
        let x = &x[t * cols..(t + 1) * cols];
        let near = if dtype.is_float() { x.iter().map(|v| f64::from(*v)).collect() } else { rounded(x) };
        for r in 0..rows {
            let w: Vec<f64> = dequantized(dtype, weight.row(r)).iter().map(|v| f64::from(*v)).collect();
            let dot = |x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            let top = w.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
            let size: f64 = w.iter().zip(&near).map(|(w, x)| (w.abs() + top) * x.abs()).sum();
            let y = f64::from(got[t * rows + r]);
            let error = (y - dot(&near)).abs();
            if error.is_nan() || error > 2e-6 * size + 1e-30 {
                return Err(format!("{} = {y}, not {} (error {error:e} of {size:e})", at(t, r), dot(&near)));
            }
            let exact: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let steps = x.chunks(32).flat_map(|g| {
                let top = g.iter().fold(0f32, |a, v| a.max(v.abs()));
                g.iter().map(move |_| f64::from(top) / 254.0)
            });
            let bound: f64 = w.iter().zip(steps).map(|(w, s)| w.abs() * s).sum::<f64>() * 1.001 + 2e-6 * size;
            let error = (y - dot(&exact)).abs();
            if error > bound {
                return Err(format!("{}: error {error:e} above the bound {bound:e}", at(t, r)));
            }
        }
    }
    Ok(())
}

/// Every format × SIMD level × shape × number of tokens (1, 2, 3, 4: rows kernels; 5 to 29: panels with every remainder).
#[test]
fn products() {
    let pool = Pool::new(2).unwrap();
    let levels = cpu::simd_levels();
    println!("SIMD levels under test: {levels:?}");
    let mut ran = 0;
    for dtype in DType::ALL {
        for &level in &levels {
            for cols in [32, 64, 96, 256, 288, 512, 800] {
                if cols % dtype.layout().block != 0 {
                    continue;
                }
                for (rows, tokens) in
                    [(1, 1), (2, 1), (3, 2), (5, 3), (17, 4), (5, 5), (35, 6), (1, 7), (16, 21), (33, 15), (18, 29)]
                {
                    check_product(level, dtype, rows, cols, tokens, &pool).unwrap();
                    ran += 1;
                }
            }
        }
    }
    // 10 formats take all seven widths, one the three multiples of 64, 15 only the two multiples of 256.
    assert_eq!(ran, levels.len() * 11 * (10 * 7 + 3 + 15 * 2));
}

/// Float rows need not be whole vectors.
#[test]
fn float_rows_of_any_length() {
    let pool = Pool::new(1).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for level in cpu::simd_levels() {
            for cols in [1, 3, 15, 17, 63, 65, 100, 300] {
                for tokens in [1, 2, 5, 64, 77] {
                    check_product(level, dtype, 6, cols, tokens, &pool).unwrap();
                }
            }
        }
    }
}

/// The comparison of [`check_product`] rejects the product with a matrix of which one quant differs by one bit, at every SIMD
/// level, from the file's blocks and from a packed copy.
#[test]
fn alarm_one_quant_off_is_seen() {
    let pool = Pool::new(1).unwrap();
    for dtype in DType::ALL {
        let good = blocks(dtype, 512, &mut Rng(7));
        let weights = dequantized(dtype, &good);
        let top = weights.iter().fold(0f32, |a, w| a.max(w.abs()));
        let flipped = |at: usize| {
            let mut bad = good.clone();
            bad[at] ^= 1;
            bad
        };
        let errors =
            |bad: &[u8]| -> Vec<f32> { dequantized(dtype, bad).iter().zip(&weights).map(|(b, g)| b - g).collect() };
        // The first bit that changes few weights, each by more than rounding. (A bit of a scale changes all of a block.)
        let changes_a_quant = |at: &usize| {
            let errors = errors(&flipped(*at));
            let changed = errors.iter().filter(|e| **e != 0.0).count();
            (1..=8).contains(&changed) && errors.iter().all(|e| *e == 0.0 || (e.abs() > top / 300.0 && e.is_finite()))
        };
        let at = (dtype.layout().bytes / 2..good.len()).find(changes_a_quant).unwrap();
        // Half a thousand activations of 1 beside a large one whose weight is wrong; of several such weights, which are one point
        // of a grid, with signs such that their errors add up.
        let x: Vec<f32> =
            errors(&flipped(at)).iter().map(|e| if *e == 0.0 { 1.0 } else { 64f32.copysign(*e) }).collect();
        let tensor = |bytes: Vec<u8>| Tensor::new(dtype, vec![1, 512], vec![Bytes::from_vec(bytes)]).unwrap();
        let (right, wrong) = (tensor(good.clone()), tensor(flipped(at)));
        for level in cpu::simd_levels() {
            for repack in [false, true] {
                let product = |w: &Tensor| cpu::multiply(w, &x, level, Activations::Int8, repack, &pool).unwrap();
                let what = format!("{dtype} {}, packed: {repack}", level.name());
                compare_product(&right, &x, &product(&right)).map_err(|e| format!("{what}: {e}")).unwrap();
                assert!(compare_product(&right, &x, &product(&wrong)).is_err(), "{what}: one quant off passed");
            }
        }
    }
}

/// Infinities and not-a-numbers in activations reach the result.
#[test]
fn bad_numbers_are_not_hidden() {
    let pool = Pool::new(1).unwrap();
    let mut rng = Rng(3);
    for dtype in DType::ALL {
        let w = matrix(dtype, 1, 256, &mut rng);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = activations(256, &mut rng);
            x[77] = bad;
            for level in cpu::simd_levels() {
                let y = cpu::multiply(&w, &x, level, Activations::Int8, false, &pool).unwrap()[0];
                assert!(!y.is_finite(), "{dtype} {}: {bad} became {y}", level.name());
            }
        }
    }
}

#[test]
fn wrong_arguments_are_errors() {
    let pool = Pool::new(1).unwrap();
    let w = matrix(DType::F32, 1, 8, &mut Rng(1));
    assert!(cpu::multiply(&w, &[0.0; 9], SimdLevel::Scalar, Activations::Int8, false, &pool).is_err());
    assert!(Pool::new(0).is_err());
    assert!(Pool::new(100_000).is_err());
}

// ---- whole graphs --------------------------------------------------------------------------------------------------------

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
        for level in cpu::simd_levels() {
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

#[test]
fn bandwidth_is_a_number() {
    let b = cpu::measure_bandwidth(1).unwrap();
    assert!(b > 1e8 && b < 1e13, "{b}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Shapes that nobody thought of.
    #[test]
    fn products_of_any_shape(rows in 1usize..70, groups in 1usize..20, tokens in 1usize..40, format in 0usize..16) {
        let dtype = DType::ALL[format];
        let cols = groups * if dtype.layout().block == 256 { 256 } else { 32 };
        let pool = Pool::new(2).unwrap();
        for level in cpu::simd_levels() {
            check_product(level, dtype, rows, cols.min(2048), tokens, &pool).map_err(TestCaseError::fail)?;
        }
    }
}

/// Weights are packed where the SIMD level has packed kernels and it is not forbidden: memory says so, and the results are those of
/// the map up to the order of sums.
#[test]
fn packed_and_mapped_agree() {
    for (experts, rest) in [(DType::Q4K, DType::Q6K), (DType::Q8_0, DType::Q5_0)] {
        let program = model(experts, rest);
        for level in cpu::simd_levels() {
            let with = |repack: bool| {
                let options = Options { threads: Some(2), simd_level: Some(level), repack, ..Options::default() };
                cpu::load(program.clone(), &options, &mut |_| Ok(())).unwrap()
            };
            let (mapped, packed) = (with(false), with(true));
            assert_eq!(mapped.weight_bytes(), 0);
            assert_eq!(packed.weight_bytes() > 0, level == SimdLevel::Avx512Vnni, "{}", level.name());
            let (want, got) = (logits(&*mapped), logits(&*packed));
            let energy: f64 = want.iter().map(|x| f64::from(*x).powi(2)).sum();
            let error: f64 = want.iter().zip(&got).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            assert!(error / energy < 1e-4, "{}: {:e}", level.name(), error / energy);
        }
    }
}

/// Copies that memory has no room for are not made: the weights are read from where they are.
#[test]
fn copies_that_do_not_fit_are_not_made() {
    let program = model(DType::Q4K, DType::Q6K);
    let with = |memory| {
        let options = Options { threads: Some(1), memory: Some(memory), ..Options::default() };
        cpu::load(program.clone(), &options, &mut |_| Ok(())).unwrap()
    };
    let needed = with(u64::MAX).weight_bytes();
    assert_eq!(with(needed).weight_bytes(), needed);
    assert_eq!(with(needed.saturating_sub(1)).weight_bytes(), 0);
}
