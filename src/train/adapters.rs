//! Low-rank adapters that begin: A random, B zero, so that the first step starts from the model itself.

use super::{
    config::LoraConfig,
    data::{normal, short},
    parameter::{Parameter, Role},
    select::Selection,
};
use crate::{
    error::{Error, Result},
    file::Tensor,
    graph::{LowRank, Program},
    ir::Op,
};

/// What gets adapters where nothing is said: what most people leave alone is not among it.
const USUAL: [Role; 4] = [Role::Attention, Role::Experts, Role::Shared, Role::Dense];

/// Adapters of the program's matrices that `config` chooses. A is normal with the variance of the uniform numbers in ±1/√in that
/// PEFT begins with, B zero. Matrices of one row get none.
///
/// # Errors
/// [`Error::Invalid`] for a target that matches no matrix.
pub fn new_adapters(program: &Program, config: &LoraConfig, seed: u64) -> Result<Vec<LowRank>> {
    config.check()?;
    let graph = &program.graph;
    let table = |w| graph.nodes.iter().any(|n| matches!(n.op, Op::Embed { table, .. } if table == w));
    let matrix = |op: &Op| match op {
        Op::Linear(l) | Op::ExpertLinear(l) if !table(l.weight) => Some(l.weight),
        _ => None,
    };
    let mut weights: Vec<_> = graph.nodes.iter().filter_map(|n| matrix(&n.op)).collect();
    weights.sort();
    weights.dedup();
    // A matrix of one row, as the gate of a shared expert is, is smaller than its adapter would be.
    let is_matrix = |shape: &[usize]| matches!(shape, [.., out, _] if *out > 1);
    let weights = weights.into_iter().map(|w| graph.weight(w)).filter(|w| is_matrix(&w.shape));
    let all: Vec<Parameter> = weights.map(|w| Parameter::new(&w.name, &w.shape)).collect();
    let usual = || {
        let there =
            Role::ALL.iter().filter(|(_, role)| USUAL.contains(role) && all.iter().any(|p| Role::of(&p.name) == *role));
        there.map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>()
    };
    let targets = config.targets.clone().unwrap_or_else(usual);
    let chosen = Selection::new("lora.targets", &targets, &all)?;
    let one = |(stream, p): (usize, &Parameter)| {
        let (lead, ends) = p.shape.split_at(p.shape.len() - 2);
        let &[out, inp] = ends else { return Err(Error::Invalid(format!("{} is no matrix", p.name))) };
        let (a, b) = ([lead, &[config.r, inp]].concat(), [lead, &[out, config.r]].concat());
        let bound = 1.0 / (inp as f32).sqrt();
        let n = a.iter().product::<usize>();
        // Normal numbers of the same variance as uniform ones in ±bound.
        let numbers = (0..n).map(|i| normal(short(seed), (1 << 20) + stream as u32, i as u32) * bound / 3f32.sqrt());
        Ok(LowRank {
            weight: p.name.clone(),
            a: Tensor::from_f32(a, numbers.collect())?,
            b: Tensor::from_f32(b.clone(), vec![0.0; b.iter().product()])?,
            scale: config.alpha / config.r as f32,
        })
    };
    all.iter().filter(|p| chosen.matches(&p.name)).enumerate().map(one).collect()
}
