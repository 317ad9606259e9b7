//! How much of a model a GPU's memory has room for.

use super::{ExpertPlacement, placement::Wanted};
use crate::{
    backend::{self, Program, runner::RunnerOptions},
    error::{Error, Result},
    graph,
    ir::{Graph, WeightId},
};
use std::collections::BTreeSet;

pub(super) fn device_bytes(
    gpu: &backend::wgpu::Gpu,
    program: &Program,
    graph: &Graph,
    options: &RunnerOptions,
) -> Result<backend::wgpu::DeviceBytes> {
    let dtypes: Vec<_> = program.weights.iter().map(|t| t.dtype()).collect();
    gpu.memory_of(graph, &dtypes, &gpu.run_options(), options)
}

/// The layers whose experts the processor computes for this GPU.
///
/// # Errors
/// As [`ExpertPlacement::wanted`]; [`crate::Error::Device`] for a budget that cannot hold the rest of the model, with what would help, or where
/// the driver does not say what is free.
pub(super) fn cpu_layers(
    gpu: &backend::wgpu::Gpu,
    program: &Program,
    placement: &ExpertPlacement,
) -> Result<BTreeSet<u32>> {
    let budget = match placement.wanted(program)? {
        Wanted::Layers(layers) => return Ok(layers),
        Wanted::Fit(budget) => budget,
    };
    let room = match budget.vram {
        Some(bytes) => bytes,
        None if gpu.shares_memory() => return Ok(BTreeSet::new()),
        None => gpu.free_memory().ok_or_else(|| {
            Error::Device(format!(
                "the driver of {} does not say how much memory is free: say how much to use",
                gpu.name()
            ))
        })?,
    };
    let options = budget.session.runner(budget.sessions);
    let total = |layers: &BTreeSet<u32>| -> Result<backend::wgpu::DeviceBytes> {
        device_bytes(gpu, program, &graph::split_experts(&program.graph, layers)?.device, &options)
    };
    let none = BTreeSet::new();
    let together = total(&none)?;
    if together.total() <= room {
        return Ok(none);
    }
    let experts = graph::expert_weights(&program.graph);
    let all: BTreeSet<u32> = experts.keys().copied().collect();
    let least = total(&all)?;
    let gb = |n: u64| n as f64 / 1e9;
    if least.total() > room {
        let (with, kv) = (gb(together.total()), gb(least.kv + least.states));
        let what = if all.is_empty() { "" } else { " with all routed experts left to the processor" };
        return Err(Error::Device(format!(
            "the model takes {:.2} GB of {}{what} ({:.2} GB of weights, {kv:.2} GB of keys and values for {} positions, {:.2} GB of \
             scratch; {with:.2} GB with the experts), and {:.2} GB may be used; a shorter context, keys and values in q8_0, a smaller \
             micro-batch or a file of fewer bits a weight helps",
            gb(least.total()),
            gpu.name(),
            gb(least.weights()),
            options.ctx.saturating_mul(options.sequences),
            gb(least.scratch),
            gb(room)
        )));
    }
    // The experts of the last layers fill what is left; then the plan itself says whether they fit.
    let of = |layer: &u32| -> u64 {
        let own = |m: &&(Vec<WeightId>, u64)| m.0.iter().any(|w| experts[layer].contains(w));
        together.matrices.iter().filter(own).map(|m| m.1).sum()
    };
    let (mut cpu, mut left) = (all.clone(), room - least.total());
    for layer in all.iter().rev() {
        match left.checked_sub(of(layer)) {
            Some(rest) => left = rest,
            None => break,
        }
        cpu.remove(layer);
    }
    while cpu.len() < all.len() && total(&cpu)?.total() > room {
        let next = all.iter().find(|l| !cpu.contains(l)).copied();
        cpu.extend(next);
    }
    Ok(cpu)
}
