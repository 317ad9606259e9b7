//! What each family makes of its router's logits, written out once more.

use super::{Golden, MODELS, folder, names};
use crate::support::compare;
use moeray::{backend::Output, file, model::Definition};

/// Phi-3.5-MoE's two experts: each time the best of the rest, weighted by a softmax over those of the rest that are near it.
fn sparse_mixer(logits: &[f32], jitter: f32) -> [(u32, f32); 2] {
    let mut rest: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, x)| (i as u32, *x)).collect();
    [(); 2].map(|()| {
        let best = rest.iter().fold(rest[0], |b, x| if x.1 > b.1 { *x } else { b });
        let near = rest.iter().filter(|x| (best.1 - x.1) / x.1.abs().max(best.1) <= 2.0 * jitter);
        let sum: f64 = near.map(|x| f64::from(x.1 - best.1).exp()).sum();
        rest.retain(|x| x.0 != best.0);
        (best.0, (1.0 / sum) as f32)
    })
}

/// What a family makes of its router's logits, written out here once more.
#[derive(Clone, Copy)]
pub struct Formula {
    kind: Kind,
    /// What the chosen scores are divided by.
    divisor: Divisor,
    scale: f64,
    /// Groups, and how many of them take part, by what counts of each.
    groups: Option<(usize, usize, GroupValue)>,
    /// How the names of the selection biases end.
    bias: Option<&'static str>,
    /// How the names of the factors of experts end.
    factors: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    NoExperts,
    Softmax,
    Sigmoid,
    SparseMixer,
}

#[derive(Clone, Copy)]
pub enum Divisor {
    One,
    Sum,
    SumPlus(f64),
    SumAtLeast(f64),
}

#[derive(Clone, Copy)]
pub enum GroupValue {
    Best,
    BestTwo,
}

pub use Divisor::{One, Sum, SumAtLeast, SumPlus};
pub use GroupValue::{Best, BestTwo};

pub const SOFTMAX: Formula =
    Formula { kind: Kind::Softmax, divisor: One, scale: 1.0, groups: None, bias: None, factors: None };
pub const SIGMOID: Formula = Formula { kind: Kind::Sigmoid, ..SOFTMAX };
pub const SPARSE_MIXER: Formula = Formula { kind: Kind::SparseMixer, ..SOFTMAX };
pub const NO_EXPERTS: Formula = Formula { kind: Kind::NoExperts, ..SOFTMAX };

impl Formula {
    pub const fn over(self, divisor: Divisor) -> Self {
        Formula { divisor, ..self }
    }
    pub const fn times(self, scale: f64) -> Self {
        Formula { scale, ..self }
    }
    pub const fn groups(self, count: usize, used: usize, by: GroupValue) -> Self {
        Formula { groups: Some((count, used, by)), ..self }
    }
    pub const fn bias(self, ending: &'static str) -> Self {
        Formula { bias: Some(ending), ..self }
    }
    pub const fn factors(self, ending: &'static str) -> Self {
        Formula { factors: Some(ending), ..self }
    }
}

/// The vectors of a golden's layers with experts that have names like this, in order.
fn vectors(name: &str, ending: &str) -> Vec<Vec<f32>> {
    let ckpt = file::open(&folder(name)).unwrap();
    let mut names: Vec<&str> = ckpt.infos().iter().map(|t| t.name.as_str()).filter(|n| n.ends_with(ending)).collect();
    names.sort_by_key(|n| n.split('.').find_map(|p| p.parse::<usize>().ok()));
    let numbers = |n: &&str| {
        let t = ckpt.require(n).unwrap();
        let mut out = vec![0.0; t.cols()];
        moeray::quant::dequantize(t.dtype(), t.row(0), &mut out).unwrap();
        out
    };
    names.iter().map(numbers).collect()
}

/// The k experts of one token with their weights, by a family's formula.
fn routed(f: &Formula, logits: &[f32], [bias, factors]: [Option<&Vec<f32>>; 2], k: usize) -> Vec<(u32, f64)> {
    let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
    let score = |x: &f32| match f.kind {
        Kind::Sigmoid => 1.0 / (1.0 + (-f64::from(*x)).exp()),
        _ => f64::from(*x).exp() / sum,
    };
    let scores: Vec<f64> = logits.iter().map(score).collect();
    let choice = |i: usize| scores[i] + bias.map_or(0.0, |b| f64::from(b[i]));
    let mut allowed: Vec<usize> = (0..logits.len()).collect();
    if let Some((groups, used, by)) = f.groups {
        let size = logits.len() / groups;
        let value = |g: usize| {
            let mut c: Vec<f64> = (g * size..(g + 1) * size).map(choice).collect();
            c.sort_by(|a, b| b.total_cmp(a));
            match by {
                Best => c[0],
                BestTwo => c[0] + c[1],
            }
        };
        let mut order: Vec<usize> = (0..groups).collect();
        order.sort_by(|a, b| value(*b).total_cmp(&value(*a)));
        allowed.retain(|e| order[..used].contains(&(e / size)));
    }
    allowed.sort_by(|a, b| choice(*b).total_cmp(&choice(*a)));
    allowed.truncate(k);
    let sum: f64 = allowed.iter().map(|e| scores[*e]).sum();
    let total = match f.divisor {
        One => 1.0,
        Sum => sum,
        SumPlus(least) => sum + least,
        SumAtLeast(least) => sum.max(least),
    };
    let factor = |e: usize| f.scale * factors.map_or(1.0, |f| f64::from(f[e]));
    allowed.iter().map(|e| (*e as u32, scores[*e] / total * factor(*e))).collect()
}

/// (expert, weight) pairs of every layer against those that follow from the golden's router logits by the family's formula.
pub fn check_routing(name: &str, d: &Definition, out: &[Output], g: &Golden) -> Result<(), String> {
    let names = names(d);
    let k = d.decoder.moe().map_or(0, |m| m.router.used);
    let (_, f) = MODELS.iter().find(|m| m.0 == name).unwrap();
    let of = |ending: Option<&str>| ending.map(|e| vectors(name, e)).unwrap_or_default();
    let (biases, factors) = (of(f.bias), of(f.factors));
    let layers: Vec<&str> = names.iter().filter_map(|n| n.strip_prefix("router_ids_")).collect();
    assert_eq!(layers.len(), g.routers.len(), "{name}: MoE layers");
    assert_eq!(layers.is_empty(), f.kind == Kind::NoExperts, "{name}: MoE layers");
    assert!(f.bias.is_none() || biases.len() == layers.len(), "{name}: selection biases");
    assert!(f.factors.is_none() || factors.len() == layers.len(), "{name}: factors of experts");
    for (l, (layer, (logits, experts))) in layers.iter().zip(&g.routers).enumerate() {
        let pairs: Vec<(u32, f64)> = logits
            .chunks(*experts)
            .flat_map(|row| match f.kind {
                Kind::SparseMixer => sparse_mixer(row, 0.01).map(|(e, w)| (e, f64::from(w))).to_vec(),
                _ => routed(f, row, [biases.get(l), factors.get(l)], k),
            })
            .collect();
        let (ids, weights): (Vec<u32>, Vec<f32>) = pairs.iter().map(|(e, w)| (*e, *w as f32)).unzip();
        let at = |what: &str| names.iter().position(|n| *n == format!("router_{what}_{layer}")).unwrap();
        let got = (&out[at("ids")].u32[..], &out[at("weights")].f32[..]);
        compare::check_routing(got, (&ids, &weights), k, 1e-3).map_err(|e| format!("{name}, layer {layer}: {e}"))?;
    }
    Ok(())
}
