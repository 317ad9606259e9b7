//! How much of a model a GPU's memory has room for.

use super::{
    ExpertPlacement, MemoryBudget, SlotOptions,
    placement::{Wanted, routers},
};
use crate::{
    backend::{
        Program,
        runner::RunnerOptions,
        wgpu::{DeviceBytes, Gpu, RunOptions},
    },
    error::{Error, Result},
    graph::{self, ExpertSlots},
    ir::{Graph, WeightId},
};
use std::collections::BTreeSet;

/// Where the experts of a program are that is on a GPU; by default with the rest.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed {
    /// Layers whose experts the processor computes.
    pub cpu_layers: BTreeSet<u32>,
    /// Slots for the experts of the others.
    pub slots: Option<ExpertSlots>,
}

impl Placed {
    /// How a GPU runs the program then.
    pub fn run_options(&self, gpu: &Gpu) -> RunOptions {
        let run = gpu.run_options();
        RunOptions { expert_slots: self.slots.or(run.expert_slots), ..run }
    }
}

pub(super) fn device_bytes(
    gpu: &Gpu,
    program: &Program,
    graph: &Graph,
    run: &RunOptions,
    options: &RunnerOptions,
) -> Result<DeviceBytes> {
    let dtypes: Vec<_> = program.weights.iter().map(|t| t.dtype()).collect();
    gpu.memory_of(graph, &dtypes, run, options)
}

fn gb(n: u64) -> f64 {
    n as f64 / 1e9
}

/// Where the experts of a program are on this GPU.
///
/// # Errors
/// As [`ExpertPlacement::wanted`]; [`crate::Error::Device`] for a budget that cannot hold the rest of the model, with what would help, or where
/// the driver does not say what is free.
pub(super) fn placed(gpu: &Gpu, program: &Program, placement: &ExpertPlacement) -> Result<Placed> {
    match placement.wanted(program)? {
        Wanted::Layers(cpu_layers) => Ok(Placed { cpu_layers, slots: None }),
        Wanted::Fit(budget) => {
            let cpu_layers = match room(gpu, budget)? {
                Some(room) => cpu_layers(gpu, program, budget, room)?,
                None => BTreeSet::new(),
            };
            Ok(Placed { cpu_layers, slots: None })
        }
        Wanted::Slots(o) => Ok(Placed { slots: slots(gpu, program, o)?, ..Placed::default() }),
    }
}

/// Bytes that a budget has; `None` where nothing is to be gained from less than the whole model.
fn room(gpu: &Gpu, budget: &MemoryBudget) -> Result<Option<u64>> {
    match budget.vram {
        Some(bytes) => Ok(Some(bytes)),
        None if gpu.shares_memory() => Ok(None),
        None => gpu.free_memory().map(Some).ok_or_else(|| {
            Error::Device(format!(
                "the driver of {} does not say how much memory is free: say how much to use",
                gpu.name()
            ))
        }),
    }
}

/// Slots of each layer for these options; `None`: all experts fit.
fn slots(gpu: &Gpu, program: &Program, o: &SlotOptions) -> Result<Option<ExpertSlots>> {
    let (number, eviction) = (o.number(&program.graph)?, o.eviction()?);
    let of = |slots: usize| ExpertSlots { slots, eviction };
    let room = o.budget.as_ref().map(|b| room(gpu, b)).transpose()?.flatten();
    let (Some(budget), Some(room)) = (&o.budget, room) else { return Ok(number.map(of)) };
    let options = budget.session.runner(budget.sessions);
    let total = |slots: Option<usize>| -> Result<u64> {
        let run = RunOptions { expert_slots: slots.map(of), ..gpu.run_options() };
        let bytes = device_bytes(gpu, program, &program.graph, &run, &options)?;
        // What kernels read in memory of the host is the same memory on some devices.
        Ok(bytes.total() + if gpu.shares_memory() { bytes.away_bytes() } else { 0 })
    };
    if number.is_none() && total(None)? <= room {
        return Ok(None);
    }
    let used = routers(&program.graph).map(|r| r.used).max().unwrap_or(1);
    let experts = routers(&program.graph).map(|r| r.experts).max().unwrap_or(1);
    let fit = |slots: usize| match total(Some(slots)) {
        Ok(bytes) => Ok(bytes <= room),
        // So many do not fit a buffer.
        Err(Error::Device(_)) => Ok(false),
        Err(e) => Err(e),
    };
    // The most that fit; with fewer than a token uses there are none.
    let (mut fits, mut most) = (used.saturating_sub(1), experts);
    while fits < most {
        let middle = fits + (most - fits).div_ceil(2);
        if fit(middle)? { fits = middle } else { most = middle - 1 }
    }
    let wanted = number.unwrap_or(used);
    if (wanted <= fits && fits >= used) || (wanted < used && fit(wanted)?) {
        return Ok(Some(of(number.unwrap_or(fits))));
    }
    let help = match fits < used {
        true => format!(
            "a token uses {used} experts of a layer, and no fewer slots are of use; experts left to the processor, a shorter context or keys \
             and values in q8_0 helps"
        ),
        false => format!("{fits} slots fit"),
    };
    Err(Error::Device(format!(
        "the model with slots for {wanted} experts of each layer takes {:.2} GB of {}, and {:.2} GB may be used; {help}",
        gb(total(Some(wanted))?),
        gpu.name(),
        gb(room)
    )))
}

/// The layers whose experts the processor computes for this GPU.
fn cpu_layers(gpu: &Gpu, program: &Program, budget: &MemoryBudget, room: u64) -> Result<BTreeSet<u32>> {
    let options = budget.session.runner(budget.sessions);
    let total = |layers: &BTreeSet<u32>| -> Result<DeviceBytes> {
        let graph = graph::split_experts(&program.graph, layers)?.device;
        device_bytes(gpu, program, &graph, &gpu.run_options(), &options)
    };
    let none = BTreeSet::new();
    let together = total(&none)?;
    if together.total() <= room {
        return Ok(none);
    }
    let experts = graph::expert_weights(&program.graph);
    let all: BTreeSet<u32> = experts.keys().copied().collect();
    let least = total(&all)?;
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
