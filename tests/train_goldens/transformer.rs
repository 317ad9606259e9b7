//! Attention, blocks, and the whole small transformer.

use super::{case::Made, layers};
use moeray::{
    graph::formula,
    ir::{Linear, Math, Norm, NormKind, Op, RopePairs, Rotation, SelfAttention, ValueId},
};

pub fn rms_norm(m: &mut Made) {
    let x = m.input("x");
    let norm = Norm::rms(m.weight("weight"), m.case.f64("eps") as f32);
    let y = m.b.one(Op::RmsNorm(norm), &[x]).unwrap();
    m.output("y", y);
}

fn rotation(m: &Made) -> Rotation {
    let (dims, theta) = (m.case.usize("head_dim"), m.case.f64("theta"));
    let freq = (0..dims / 2).map(|i| theta.powf(-2.0 * i as f64 / dims as f64)).collect();
    Rotation {
        head_dim: dims,
        dims,
        pairs: RopePairs::Interleaved,
        freq,
        scale: 1.0,
        temperature: None,
        inverse: false,
    }
}

pub fn rope(m: &mut Made) {
    let dim = m.case.usize("head_dim");
    let length = m.case.tensor("in.xq").shape[1];
    let (q, k) = (m.input_of("xq", dim * m.case.usize("heads")), m.input_of("xk", dim * m.case.usize("kv_heads")));
    let starts = m.starts(length);
    let rotation = rotation(m);
    let q = m.b.math(Math::Rotate(rotation.clone()), &[q, starts]).unwrap();
    let k = m.b.math(Math::Rotate(rotation), &[k, starts]).unwrap();
    m.output("xq_out", q);
    m.output("xk_out", k);
}

/// The attention of F14 on `x`, whose weights' names begin with `stem`.
fn attention(m: &mut Made, stem: &str, x: ValueId, starts: ValueId) -> ValueId {
    let (heads, kv_heads, dim) = (m.case.usize("heads"), m.case.usize("kv_heads"), m.case.usize("head_dim"));
    let [q, k, v] = ["wq", "wk", "wv"].map(|n| m.product(&format!("{stem}{n}"), x));
    let rotation = rotation(m);
    let q = m.b.math(Math::Rotate(rotation.clone()), &[q, starts]).unwrap();
    let k = m.b.math(Math::Rotate(rotation), &[k, starts]).unwrap();
    let a = SelfAttention {
        heads,
        kv_heads,
        k_dim: dim,
        v_dim: dim,
        scale: 1.0 / (dim as f64).sqrt(),
        window: None,
        attention_chunk: None,
        sinks: None,
    };
    let o = m.b.add(Op::Math(Math::SelfAttend(a)), &[q, k, v, starts]).unwrap()[0];
    m.product(&format!("{stem}wo"), o)
}

pub fn grouped_queries(m: &mut Made) {
    let (x, length) = (m.input("x"), m.case.tensor("in.x").shape[1]);
    let starts = m.starts(length);
    let y = attention(m, "", x, starts);
    m.output("y", y);
}

pub fn block(m: &mut Made) {
    let (x, shape) = (m.input("x"), m.case.tensor("in.x").shape.clone());
    let (heads, hidden) = (m.case.usize("heads"), m.case.usize("hidden"));
    let starts = m.starts(shape[1]);
    let norm = |m: &mut Made, stem: &str, x: ValueId| {
        let (weight, bias) = (m.weight(&format!("{stem}.weight")), Some(m.weight(&format!("{stem}.bias"))));
        let eps = m.case.f64("layer_norm_eps") as f32;
        m.b.one(Op::RmsNorm(Norm { kind: NormKind::Layer, weight, bias, eps }), &[x]).unwrap()
    };
    let normed = norm(m, "ln1", x);
    let [q, k, v] = ["query", "key", "value"].map(|n| {
        let weight = m.joined((0..heads).map(|h| format!("sa.heads.{h}.{n}.weight")).collect(), false);
        m.b.one(Op::Linear(Linear { weight, bias: None }), &[normed]).unwrap()
    });
    let a = SelfAttention {
        heads,
        kv_heads: heads,
        k_dim: hidden / heads,
        v_dim: hidden / heads,
        scale: m.case.f64("attention_scale"),
        window: None,
        attention_chunk: None,
        sinks: None,
    };
    let o = m.b.add(Op::Math(Math::SelfAttend(a)), &[q, k, v, starts]).unwrap()[0];
    let o = m.product("sa.proj", o);
    let x = m.b.one(Op::Add, &[x, o]).unwrap();
    let normed = norm(m, "ln2", x);
    let y = layers::sparse_of(m, "smoe.", normed);
    let y = m.b.one(Op::Add, &[x, y]).unwrap();
    m.output("y", y);
}

/// Outputs of several layers one behind the other, rows of layer after layer, are made on the host.
pub fn whole(m: &mut Made) {
    let stored = m.case.tensor("in.ids");
    let (length, ids) = (stored.shape[1], stored.values.iter().map(|v| *v as u32).collect::<Vec<u32>>());
    m.feed.tokens.clone_from(&ids);
    m.feed.rows = ids.len();
    let tokens = m.b.one(Op::Tokens, &[]).unwrap();
    let starts = m.starts(length);
    let table = m.weight("tok_embeddings.weight");
    let mut x = m.b.one(Op::Embed { table, scale: 1.0 }, &[tokens]).unwrap();
    let eps = m.case.f64("norm_eps") as f32;
    let norm = |m: &mut Made, name: &str, x: ValueId| {
        let norm = Norm::rms(m.weight(&format!("{name}.weight")), eps);
        m.b.one(Op::RmsNorm(norm), &[x]).unwrap()
    };
    let (mut routers, experts) = (vec![], m.case.usize("experts"));
    for layer in 0..m.case.usize("layers") {
        let stem = format!("layers.{layer}.");
        let normed = norm(m, &format!("{stem}attention_norm"), x);
        let a = attention(m, &format!("{stem}attention."), normed, starts);
        x = m.b.one(Op::Add, &[x, a]).unwrap();
        let normed = norm(m, &format!("{stem}ffn_norm"), x);
        let (y, logits, choice) = layers::gated_of(m, &format!("{stem}feed_forward."), [normed, normed]);
        x = m.b.one(Op::Add, &[x, y]).unwrap();
        routers.push(logits);
        let hot = m.b.math(Math::MultiHot { experts }, &[choice.ids]).unwrap();
        let counts = m.b.sum_rows(hot).unwrap();
        m.b.output(format!("part.ids.{layer}"), choice.ids);
        m.b.output(format!("part.tokens_per_expert.{layer}"), counts);
    }
    x = norm(m, "norm", x);
    let logits = m.product("output", x);
    m.output("logits", logits);
    // Position t against id t + 1; the last position of a sequence counts nothing.
    let targets = (0..ids.len()).map(|i| ids[(i + 1) % ids.len()]).collect();
    let targets = m.ids("targets", targets);
    let counts = (0..ids.len()).map(|i| f64::from(u8::from(i % length + 1 != length))).collect();
    m.feed.set("counts", counts);
    let weights = m.b.one(Op::Input { name: "counts".into(), cols: 1 }, &[]).unwrap();
    let ce = formula::cross_entropy(&mut m.b, logits, targets, weights, None).unwrap();
    m.loss("cross_entropy", ce);
    let mut total = ce;
    if m.case.hyper_opt("balance_weight").is_some() {
        let balance = formula::layers_balance(&mut m.b, &routers, m.case.usize("top_k"), None).unwrap();
        let z = formula::log_sum_exp_z(&mut m.b, &routers, None).unwrap();
        m.loss("balance", balance);
        m.loss("z", z);
        let (of_balance, of_z) = (m.case.f64("balance_weight"), m.case.f64("z_weight"));
        total = m.b.weighted_sum(&[(1.0, ce), (of_balance, balance), (of_z, z)]).unwrap();
    }
    m.loss("total", total);
}
