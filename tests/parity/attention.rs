//! Cases of rotation, cache and attention: no past, a long past, chunks against single tokens, windows, sinks.

use super::case::{Case, Maker};
use crate::support::{Target, load, run};
use moeray::ir::{Attention, CacheDecl, Linear, Norm, Op, Rope, RopePairs, Temperature, ValueId};
use moeray::quant::DType;
use moeray::quant::KvType::{F16, Q8_0};

fn rope_of(head_dim: usize, dims: usize, pairs: RopePairs) -> Rope {
    let inv_freq = (0..dims / 2).map(|i| 10000f32.powf(-2.0 * i as f32 / dims as f32)).collect();
    Rope { head_dim, dims, pairs, inv_freq, scale: 1.0, long: None, temperature: None }
}

/// A prompt, one more token twice, a few, and then a step back to position 3.
const STEPS: [(usize, usize, usize); 5] = [(5, 0, 5), (1, 5, 1), (1, 6, 1), (4, 7, 4), (2, 3, 2)];
/// The same in a context that one token and a few go through in pieces.
const LONG: [(usize, usize, usize); 6] =
    [(300, 0, 1), (1, 300, 1), (70, 301, 3), (1, 371, 1), (5, 372, 2), (2, 377, 2)];

pub fn rope() -> Vec<Case> {
    let mut cases = vec![];
    for (heads, d, dims) in [(1, 2, 2), (3, 16, 16), (4, 64, 32), (2, 128, 128)] {
        for pairs in [RopePairs::Interleaved, RopePairs::Halves] {
            let mut m = Maker::new(d as u64);
            let x = m.input(heads * d);
            let mut r = rope_of(d, dims, pairs);
            r.scale = 1.25;
            let y = m.one(Op::Rope(r), &[x]);
            let steps = [(1, 0, 1), (3, 1, 0), (9, 2000, 1)];
            cases.push(m.finish(format!("rope/{heads} heads of {d}, {dims} turn, {pairs:?}"), &[("y0", y)], &steps));
        }
    }
    cases
}

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    window: Option<usize>,
    attention_chunk: Option<usize>,
    sinks: bool,
}

fn attention(m: &mut Maker, s: Shape, cache: moeray::ir::CacheId) -> Attention {
    let sinks = s.sinks.then(|| m.weight(&[s.heads], moeray::quant::DType::F32));
    Attention {
        cache,
        heads: s.heads,
        scale: 1.0 / (s.k_dim as f32).sqrt(),
        window: s.window,
        attention_chunk: s.attention_chunk,
        sinks,
    }
}

fn plain(s: Shape, steps: &[(usize, usize, usize)]) -> Case {
    let mut m = Maker::new(s.heads as u64 * 31 + s.k_dim as u64);
    let cache = m.b.cache(CacheDecl::new(s.kv_heads, s.k_dim, s.v_dim));
    let (q, k, v) = (m.input(s.heads * s.k_dim), m.input(s.kv_heads * s.k_dim), m.input(s.kv_heads * s.v_dim));
    let stored = m.one(Op::KvStore { cache }, &[k, v]);
    let a = attention(&mut m, s, cache);
    let y = m.one(Op::Attend(a), &[q, stored]);
    let Shape { heads, kv_heads, k_dim, v_dim, window, attention_chunk, sinks } = s;
    m.finish(
        format!("attend/{heads} on {kv_heads}, {k_dim} and {v_dim}, window {window:?}, chunk {attention_chunk:?}, sinks {sinks}"),
        &[("y0", y)],
        steps,
    )
}

pub fn attend() -> Vec<Case> {
    let s = |heads, kv_heads, k_dim, v_dim| Shape {
        heads,
        kv_heads,
        k_dim,
        v_dim,
        window: None,
        attention_chunk: None,
        sinks: false,
    };
    let gqa = s(8, 2, 64, 64);
    vec![
        plain(s(1, 1, 4, 4), &STEPS),
        plain(s(4, 4, 16, 16), &STEPS),
        plain(s(6, 2, 32, 32), &STEPS),
        plain(s(4, 1, 24, 40), &STEPS),
        plain(s(16, 1, 128, 128), &STEPS),
        plain(gqa, &LONG),
        plain(gqa, &LONG).with_cache(F16),
        plain(s(4, 2, 16, 16), &STEPS).with_cache(F16),
        plain(gqa, &LONG).with_cache(Q8_0),
        // Blocks of fewer than 32 columns, an odd number of blocks, several lines of them.
        plain(s(4, 2, 16, 16), &STEPS).with_cache(Q8_0),
        plain(s(4, 1, 24, 40), &STEPS).with_cache(Q8_0),
        plain(s(3, 1, 96, 36), &LONG).with_cache(Q8_0),
        plain(s(16, 2, 128, 256), &STEPS).with_cache(Q8_0),
        plain(Shape { window: Some(290), sinks: true, ..gqa }, &[(450, 0, 1), (1, 450, 1), (70, 451, 3), (6, 521, 6)])
            .with_cache(Q8_0),
        plain(Shape { window: Some(3), ..s(4, 2, 16, 16) }, &STEPS),
        plain(Shape { window: Some(64), sinks: true, ..gqa }, &LONG),
        // In chunks, the first of which the window has left.
        plain(
            Shape { window: Some(290), sinks: true, ..gqa },
            &[(450, 0, 1), (1, 450, 1), (70, 451, 3), (1, 521, 1), (8, 522, 8)],
        ),
        plain(Shape { sinks: true, ..s(4, 2, 16, 16) }, &STEPS),
        plain(Shape { attention_chunk: Some(3), ..s(4, 2, 16, 16) }, &STEPS),
        plain(Shape { attention_chunk: Some(64), sinks: true, ..gqa }, &LONG),
        // Far into one chunk, and at the start of the next, where a query sees itself alone.
        plain(
            Shape { attention_chunk: Some(290), ..gqa },
            &[(450, 0, 1), (1, 450, 1), (125, 451, 3), (4, 576, 4), (1, 580, 1), (1, 581, 1)],
        ),
    ]
}

/// A number that is none in position 3 of the keys or values of the first of two heads, token by token: those before it, the
/// other head, and position 2 once more after a step back see nothing of it.
pub fn not_finite(target: Target) {
    let s = Shape { heads: 2, kv_heads: 2, k_dim: 40, v_dim: 40, window: None, attention_chunk: None, sinks: false };
    let steps = [0, 1, 2, 3, 4, 2].map(|past| (1, past, 1));
    for (input, bad) in [1, 2].into_iter().flat_map(|i| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|b| (i, b))) {
        // On a GPU scores that are no numbers count as not seen, whatever the cache.
        if input == 1 && target.is_gpu() {
            continue;
        }
        let mut case = plain(s, &steps).with_cache(Q8_0);
        case.steps[3].2[input].1[35] = bad;
        let Some(loaded) = load(target, &case.program) else { return };
        for (step, out) in run(&*loaded, case.kv, &case.steps).iter().enumerate() {
            let (first, second) = out[0].f32.split_at(40);
            // A key spoils the whole sum, a value its column and perhaps its block's others.
            let spoilt = if input == 1 { first } else { &first[35..36] };
            let right = match step {
                3 | 4 => !spoilt.iter().any(|x| x.is_finite()),
                _ => first.iter().all(|x| x.is_finite()),
            };
            assert!(
                right && second.iter().all(|x| x.is_finite()),
                "{target:?}, {bad} in {input}, step {step}: {first:?}"
            );
        }
    }
}

/// Latent attention: a matrix for each head, heads put together, values that are the first part of their keys.
pub fn latent() -> Vec<Case> {
    let mut cases = vec![];
    for (heads, [nope, rope, rank, value], dtype, steps) in [
        (1, [4, 4, 4, 4], DType::F32, &STEPS[..]),
        (3, [12, 8, 20, 16], DType::F32, &STEPS[..]),
        (4, [32, 16, 64, 32], DType::Q8_0, &STEPS[..]),
        (8, [16, 8, 40, 12], DType::BF16, &LONG[..]),
        (16, [32, 64, 512, 32], DType::F16, &[(5, 0, 5), (1, 5, 1), (3, 6, 1)][..]),
    ] {
        let mut m = Maker::new(heads as u64);
        let [q_nope, q_rope] = [nope, rope].map(|n| m.input(heads * n));
        let [c, k_rope] = [rank, rope].map(|n| m.input(n));
        let ids = m.one(Op::HeadIds { heads }, &[]);
        let matrix = |m: &mut Maker, shape: [usize; 3], d: DType| {
            Op::ExpertLinear(Linear { weight: m.weight(&shape, d), bias: None })
        };
        let (absorb, expand) =
            (matrix(&mut m, [heads, rank, nope], dtype), matrix(&mut m, [heads, value, rank], dtype));
        let q = m.one(absorb, &[q_nope, ids]);
        let turn = Op::Rope(rope_of(rope, rope, RopePairs::Interleaved));
        let (q_rope, k_rope) = (m.one(turn.clone(), &[q_rope]), m.one(turn, &[k_rope]));
        let (q, k) = (m.one(Op::JoinHeads { heads }, &[q, q_rope]), m.one(Op::JoinHeads { heads: 1 }, &[c, k_rope]));
        let cache = m.b.cache(CacheDecl { v_in_k: true, ..CacheDecl::new(1, rank + rope, rank) });
        let stored = m.one(Op::KvStore { cache }, &[k]);
        let scale = 1.0 / ((nope + rope) as f32).sqrt();
        let y = m.one(
            Op::Attend(Attention { cache, heads, scale, window: None, attention_chunk: None, sinks: None }),
            &[q, stored],
        );
        let z = m.one(expand, &[y, ids]);
        let case =
            m.finish(format!("latent/{heads} heads, {rank} and {rope}, {dtype}"), &[("y0", y), ("y1", z)], steps);
        cases.push(match dtype {
            DType::BF16 => case.with_cache(F16),
            DType::Q8_0 | DType::F16 => case.with_cache(Q8_0),
            _ => case,
        });
    }
    cases
}

/// The whole block: norms of q and k (none, per head, over the row; before or after the rotation), rotation, cache,
/// attention, with two layers' caches.
pub fn rope_store() -> Vec<Case> {
    let mut cases = vec![];
    let kinds = [
        ("no norm", 0, RopePairs::Interleaved, false),
        ("per head", 1, RopePairs::Halves, false),
        ("over the row", 2, RopePairs::Halves, false),
        ("per head, after", 1, RopePairs::Interleaved, true),
        ("over the row, after", 2, RopePairs::Halves, true),
    ];
    cases.extend(kinds.map(|kind| two_layers(kind, [32, 32])));
    cases.extend([two_layers(kinds[0], [32, 32]), two_layers(kinds[1], [144, 36])].map(|c| c.with_cache(Q8_0)));
    cases.push(unrotated());
    cases.push(projected());
    cases
}

/// Queries, keys and values by one product of an input, as models have them.
fn projected() -> Case {
    let s = Shape { heads: 6, kv_heads: 2, k_dim: 32, v_dim: 32, window: None, attention_chunk: None, sinks: false };
    let mut m = Maker::new(21);
    let x = m.input(64);
    let norm = Norm::rms(m.near_one(64), 1e-5);
    let normed = m.one(Op::RmsNorm(norm), &[x]);
    let qkv = [192, 64, 64].map(|n| {
        let weight = m.weight(&[n, 64], DType::F32);
        m.one(Op::Linear(Linear { weight, bias: None }), &[normed])
    });
    let y = block(&mut m, s, (1, false), RopePairs::Halves, qkv);
    m.finish("rope_store/projected", &[("y0", y)], &STEPS)
}

/// Two blocks one beside the other, with heads of these columns.
fn two_layers(
    (name, qk_norm, pairs, qk_norm_after_rope): (&str, u64, RopePairs, bool),
    [k_dim, v_dim]: [usize; 2],
) -> Case {
    let s = Shape { heads: 6, kv_heads: 2, k_dim, v_dim, window: None, attention_chunk: None, sinks: false };
    let mut m = Maker::new(qk_norm);
    let mut outputs = vec![];
    for _ in 0..2 {
        let (q, k, v) = (m.input(6 * k_dim), m.input(2 * k_dim), m.input(2 * v_dim));
        outputs.push(block(&mut m, s, (qk_norm, qk_norm_after_rope), pairs, [q, k, v]));
    }
    let named: Vec<(&str, _)> = ["y0", "y1"].into_iter().zip(outputs).collect();
    m.finish(format!("rope_store/{name}, {k_dim} and {v_dim}"), &named, &STEPS)
}

/// Queries that only grow with their position, keys as they are.
fn unrotated() -> Case {
    let mut m = Maker::new(9);
    let (q, k, v) = (m.input(64), m.input(32), m.input(32));
    let still = Rope { inv_freq: vec![0.0; 8].into(), ..rope_of(16, 16, RopePairs::Interleaved) };
    let grown = Rope { temperature: Some(Temperature { every: 3, scale: 0.5 }), ..still };
    let q = m.one(Op::Rope(grown), &[q]);
    let cache = m.b.cache(CacheDecl::new(2, 16, 16));
    let stored = m.one(Op::KvStore { cache }, &[k, v]);
    let s = Shape { heads: 4, kv_heads: 2, k_dim: 16, v_dim: 16, window: None, attention_chunk: None, sinks: false };
    let a = attention(&mut m, s, cache);
    let y = m.one(Op::Attend(a), &[q, stored]);
    m.finish("rope_store/no rotation, temperature", &[("y0", y)], &STEPS)
}

fn block(
    m: &mut Maker,
    s: Shape,
    (qk_norm, qk_norm_after_rope): (u64, bool),
    pairs: RopePairs,
    [q, k, v]: [ValueId; 3],
) -> ValueId {
    let cache = m.b.cache(CacheDecl::new(s.kv_heads, s.k_dim, s.v_dim));
    let mut turn = |x: ValueId, heads: usize| {
        let n = [0, s.k_dim, heads * s.k_dim][qk_norm as usize];
        let norm = (n > 0).then(|| Op::RmsNorm(Norm::rms(m.near_one(n), 1e-6)));
        let rope = Op::Rope(rope_of(s.k_dim, s.k_dim, pairs));
        let ops = if qk_norm_after_rope { [Some(rope), norm] } else { [norm, Some(rope)] };
        ops.into_iter().flatten().fold(x, |x, op| m.one(op, &[x]))
    };
    let (q, k) = (turn(q, s.heads), turn(k, s.kv_heads));
    let stored = m.one(Op::KvStore { cache }, &[k, v]);
    let a = attention(m, s, cache);
    m.one(Op::Attend(a), &[q, stored])
}
