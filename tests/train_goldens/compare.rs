//! What a backend makes of a case, against the case.

use super::{
    build,
    case::{Case, Source},
};
use moeray::{
    backend::training::{Named, Training},
    graph::TrainProgram,
};
use std::collections::{BTreeMap, BTreeSet};

/// How far results may be off.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Losses, absolute.
    loss: f64,
    /// The same relative to a loss above 1: the rounding of a large sum.
    relative: f64,
    /// The same relative to the sum of the sizes of a total's parts: one rounding in f32.
    of_parts: f64,
    /// Outputs and gradients, as normalised mean square.
    nmse: f64,
    /// Numbers that are 0 in exact arithmetic only.
    near_zero: f64,
}

impl Limits {
    pub const F64: Limits = Limits { loss: 1e-6, relative: 0.0, of_parts: 0.0, nmse: 1e-16, near_zero: 1e-14 };
    pub const F32: Limits = Limits { loss: 1e-6, relative: 1e-6, of_parts: 6e-8, nmse: 1e-9, near_zero: 1e-5 };
}

/// Makes a backend of a program.
pub type Backend<'a> = &'a dyn Fn(TrainProgram) -> Box<dyn Training>;

/// Runs a case: all of its losses and outputs, and the gradients of the total and of single terms.
pub fn case(case: &Case, limits: Limits, backend: Backend<'_>) -> Result<(), String> {
    let (program, sources, feed, host) = build(case).finish("total");
    let mut seen = BTreeSet::new();
    for (name, values) in &host {
        outputs_agree(case, &format!("out.{name}"), values, limits)?;
        seen.insert(format!("out.{name}"));
    }
    let Some(program) = program else {
        // No gradient at all: a schedule, an update of biases.
        let rest: Vec<String> =
            case.below("out.").into_iter().filter(|n| !seen.contains(&format!("out.{n}"))).collect();
        return if rest.is_empty() { Ok(()) } else { Err(format!("nobody makes {rest:?}")) };
    };
    let mut training = backend(program);
    let made = training.micro(&feed).map_err(|e| e.to_string())?;
    for named in &made {
        if let Some(term) = named.name.strip_prefix("loss.") {
            loss_agrees(case, term, named, limits)?;
        } else if named.name.starts_with("out.") {
            outputs_agree(case, &named.name, &named.values, limits)?;
        } else {
            continue;
        }
        seen.insert(named.name.clone());
    }
    for (name, values) in of_layers(&made) {
        outputs_agree(case, &format!("out.{name}"), &values, limits)?;
        seen.insert(format!("out.{name}"));
    }
    seen.extend(gradients_agree(case, "grad.", &sources, &mut *training, &made, limits)?);
    for term in case.terms() {
        let (program, sources, feed, _) = build(case).finish(&term);
        let mut training = backend(program.ok_or(format!("no term {term}"))?);
        let made = training.micro(&feed).map_err(|e| e.to_string())?;
        let prefix = format!("grad_of.{term}.");
        seen.extend(gradients_agree(case, &prefix, &sources, &mut *training, &made, limits)?);
    }
    let wanted = ["out.", "loss.", "grad.", "grad_of."];
    let missing: Vec<&String> =
        case.tensors.keys().filter(|n| wanted.iter().any(|p| n.starts_with(p)) && !seen.contains(*n)).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("nobody makes {missing:?}")) }
}

/// Outputs that a graph makes layer by layer, one behind the other.
fn of_layers(made: &[Named]) -> BTreeMap<String, Vec<f64>> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for named in made {
        let Some((name, _)) = named.name.strip_prefix("part.").and_then(|n| n.rsplit_once('.')) else { continue };
        all.entry(name.into()).or_default().extend(&named.values);
    }
    all
}

fn loss_agrees(case: &Case, term: &str, found: &Named, limits: Limits) -> Result<(), String> {
    let want = case.tensor(&format!("loss.{term}")).values[0];
    let off = (found.values[0] - want).abs();
    // Where a source has no loss, the total is a sum of very many products of both signs, which is rounded like its largest parts.
    let parts: f64 = if term == "total" { upstream_parts(case) } else { 0.0 };
    let bound = limits.loss.max(limits.relative * want.abs()).max(limits.of_parts * parts);
    if off <= bound { Ok(()) } else { Err(format!("loss {term} is {}, not {want}", found.values[0])) }
}

/// The sum of the sizes of what the total of a case without a loss is a sum of: 0 for cases with one.
fn upstream_parts(case: &Case) -> f64 {
    let of = |name: &String| {
        let (up, out) = (case.tensor(&format!("up.{name}")), case.tensor(&format!("out.{name}")));
        up.values.iter().zip(&out.values).map(|(u, o)| (u * o).abs()).sum::<f64>()
    };
    case.below("up.").iter().map(of).sum()
}

fn outputs_agree(case: &Case, name: &str, found: &[f64], limits: Limits) -> Result<(), String> {
    agree(name, found, &case.tensor(name).values, limits.nmse, limits.near_zero)
}

/// The normalised mean square error within bounds; where all is 0, no number above `zero`.
fn agree(name: &str, found: &[f64], want: &[f64], nmse: f64, zero: f64) -> Result<(), String> {
    if found.len() != want.len() {
        return Err(format!("{name} has {} numbers, not {}", found.len(), want.len()));
    }
    let size: f64 = want.iter().map(|w| w * w).sum();
    let error: f64 = found.iter().zip(want).map(|(f, w)| (f - w) * (f - w)).sum();
    let largest = found.iter().fold(0f64, |m, v| m.max(v.abs()));
    let fits = if size == 0.0 { largest <= zero } else { error <= nmse * size };
    if fits && found.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    Err(format!("{name}: NMSE {:.1e}, largest {largest:.1e}", error / size))
}

fn gradients_agree(
    case: &Case,
    prefix: &str,
    sources: &[Source],
    training: &mut dyn Training,
    made: &[Named],
    limits: Limits,
) -> Result<BTreeSet<String>, String> {
    let list = |key: &str| -> BTreeSet<String> {
        case.record[key].as_array().into_iter().flatten().map(|n| n.as_str().unwrap().to_string()).collect()
    };
    let (zero, near) = (list("zero_gradients"), list("zero_to_rounding"));
    let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (i, p) in training.parameters().to_vec().iter().enumerate() {
        let (source, g) = (&sources[p.weight.0 as usize], training.gradient(i).unwrap());
        let g = if source.transposed { transposed(&g, &p.shape) } else { g };
        let each = g.len() / source.names.len();
        found.extend(source.names.iter().cloned().zip(g.chunks(each).map(<[f64]>::to_vec)));
    }
    let inputs = made.iter().filter_map(|n| n.name.strip_prefix("grad.").map(|i| (i.to_string(), n.values.clone())));
    found.extend(inputs);
    let mut seen = BTreeSet::new();
    for name in case.below(prefix) {
        let want = case.tensor(&format!("{prefix}{name}"));
        // A loss that does not depend on an input has no gradient by it: 0.
        let none = vec![0.0; want.values.len()];
        let found = found.get(&name).unwrap_or(&none);
        // Of single terms some gradients are 0 to rounding without being listed.
        let size = want.values.iter().fold(0f64, |m, v| m.max(v.abs()));
        let (zero_bound, want) = match () {
            () if prefix == "grad." && zero.contains(&name) => (0.0, vec![0.0; want.values.len()]),
            () if near.contains(&name) || size < 1e-14 => (limits.near_zero, vec![0.0; want.values.len()]),
            () => (0.0, want.values.clone()),
        };
        agree(&format!("{prefix}{name}"), found, &want, limits.nmse, zero_bound)?;
        seen.insert(format!("{prefix}{name}"));
    }
    Ok(seen)
}

fn transposed(x: &[f64], shape: &[usize]) -> Vec<f64> {
    let (out, inp) = (shape[0], shape[1]);
    (0..out * inp).map(|i| x[i % out * inp + i / out]).collect()
}
