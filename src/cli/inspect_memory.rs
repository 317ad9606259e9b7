//! `moeray inspect --memory`: what a model takes where, and how fast memory lets it be.

use super::{args::InspectArgs, facts, failure::Outcome, load, units};
use crate::{
    backend::{Program, cpu, wgpu},
    file::Checkpoint,
    graph::{experts_of_rank, split_for_rank},
    model::Definition,
    session::{BackendChoice, LoadOptions, MemoryPlan, PlaceBytes, SessionOptions, WeightBytes},
};
use serde_json::{Value as Json, json};
use std::{
    io::{self, Write},
    ops::Range,
};

/// Says what a model takes where.
pub fn inspect(
    out: &mut dyn Write,
    args: &InspectArgs,
    checkpoint: &Checkpoint,
    (d, positions): (&Definition, usize),
) -> Outcome {
    let room = load::Room::new(Some(positions as u32), &args.context);
    let options = load::load_options(args.place.backend, &args.place.device, room, Default::default())?;
    let ubatch = (args.context.ubatch_size as usize).min(positions);
    let session = SessionOptions { ctx: positions, ubatch, kv: load::kv(&args.context) };
    let ranks = args.place.device.ranks.map(|n| shares(&d.program, n as usize)).transpose()?;
    let plan = match &ranks {
        None => MemoryPlan::of_definition(d, &options, &session)?,
        Some(ranks) => {
            // The first of those that have most.
            let most = ranks.iter().enumerate().rev().max_by_key(|(_, r)| r.bytes).map_or(0, |(rank, _)| rank);
            MemoryPlan::of_part(d, &options, &session, (most, ranks.len()))?
        }
    };
    let speed = speed(&plan, &options)?;
    match args.json {
        true => writeln!(out, "{:#}", as_json(&plan, &session, &speed, ranks.as_deref()))?,
        false => {
            let name = checkpoint.path().map_or_else(|| load::DEMO_NAME.into(), |p| p.display().to_string());
            let whose = ranks.as_ref().map_or_else(String::new, |r| format!(" on the fullest of {} ranks", r.len()));
            writeln!(out, "{name}: memory for a context of {positions} tokens{whose}")?;
            words(out, &plan, &speed, ranks.as_deref())?;
        }
    }
    Ok(())
}

/// What one of several processes has of the routed experts.
struct Share {
    /// Of each layer with experts the layer, and the block.
    blocks: Vec<(usize, Range<usize>)>,
    /// All of them, in the form in which the file stores them.
    bytes: u64,
}

/// Of each of so many processes its share.
fn shares(program: &Program, ranks: usize) -> Outcome<Vec<Share>> {
    let share = |rank: usize| {
        let part = split_for_rank(program, rank, ranks)?;
        let block = |r: &crate::graph::RankRegion| (r.layer as usize, experts_of_rank(r.experts, rank, ranks));
        let bytes = facts::expert_bytes(&part.program).values().map(|(_, bytes)| bytes).sum();
        Ok(Share { blocks: part.regions.iter().map(block).collect(), bytes })
    };
    (0..ranks).map(share).collect()
}

/// Bytes a second of each memory that weights are read from, and the tokens a second that they allow.
struct Speed {
    gpu: Option<f64>,
    cpu: Option<f64>,
    tokens: f64,
}

/// Measures the memories that are used. The weights of a token have to be read once, so no token takes less time.
fn speed(plan: &MemoryPlan, options: &LoadOptions) -> Outcome<Speed> {
    let on_gpu = plan.gpu.as_ref().map_or(0, |g| g.read_per_token);
    let mut speed = Speed { gpu: None, cpu: None, tokens: 0.0 };
    if on_gpu > 0 {
        let gpu = match &options.backend {
            BackendChoice::Wgpu(o) | BackendChoice::Prefer(o, _) => wgpu::Gpu::open(o)?,
            BackendChoice::Gpu(gpu) => gpu.clone(),
            BackendChoice::Auto | BackendChoice::Cpu(_) | BackendChoice::Split(_) | BackendChoice::Reference => {
                wgpu::Gpu::open(&wgpu::Options::default())?
            }
        };
        speed.gpu = Some(gpu.roofline()?.bandwidth);
    }
    if plan.cpu.read_per_token > 0 {
        let threads = options.experts.cpu.threads.unwrap_or_else(cpu::pool::default_threads);
        speed.cpu = Some(cpu::measure_bandwidth(threads)?);
    }
    let seconds = |bytes: u64, speed: Option<f64>| speed.map_or(0.0, |s| bytes as f64 / s.max(1.0));
    let token = seconds(on_gpu, speed.gpu) + seconds(plan.cpu.read_per_token, speed.cpu);
    speed.tokens = if token > 0.0 { 1.0 / token } else { 0.0 };
    Ok(speed)
}

fn kinds(w: &WeightBytes) -> [(&'static str, u64); 5] {
    [
        ("embeddings, output", w.embedding),
        ("attention", w.attention),
        ("dense, routers, norms", w.dense),
        ("shared experts", w.shared),
        ("routed experts", w.experts),
    ]
}

fn place(out: &mut dyn Write, p: &PlaceBytes) -> io::Result<()> {
    let free = p.free.map_or_else(|| "what is free is not known".into(), |n| format!("{} free", units::bytes(n)));
    writeln!(out, "\n{} ({free})", p.name)?;
    let mut line = |name: &str, n: u64, note: &str| match n {
        0 => Ok(()),
        n => writeln!(out, "  {name:<22} {:>10}{note}", units::bytes(n)),
    };
    for ((name, held), (_, mapped)) in kinds(&p.weights).into_iter().zip(kinds(&p.mapped)) {
        line(name, held, "")?;
        line(name, mapped, "  read from the file")?;
    }
    line("keys and values", p.kv, "")?;
    line("recurrent states", p.states, "")?;
    line("scratch", p.scratch, "")?;
    line("together", p.total(), "")?;
    line("read a token", p.read_per_token, "")
}

/// Numbers of layers for a person: `0-11, 13`.
fn ranges(layers: &[usize]) -> String {
    let range = |r: &[usize]| match r {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    layers.chunk_by(|a, b| a + 1 == *b).map(range).collect::<Vec<_>>().join(", ")
}

/// How the ranks share the experts: `10 or 11 of each layer's 32`.
fn shared(out: &mut dyn Write, ranks: &[Share], layers: usize) -> io::Result<()> {
    let sizes = || ranks.iter().flat_map(|r| r.blocks.iter().map(|(_, block)| block.len()));
    let range = |least: String, most: String, between: &str| match least == most {
        true => most,
        false => format!("{least} {between} {most}"),
    };
    let bytes = |least: bool| {
        let all = ranks.iter().map(|r| r.bytes);
        units::bytes(if least { all.min() } else { all.max() }.unwrap_or(0))
    };
    let of = |n: Option<usize>| n.unwrap_or(0).to_string();
    writeln!(
        out,
        "each rank has {} routed experts of each of {layers} layers ({}), and all else",
        range(of(sizes().min()), of(sizes().max()), "or"),
        range(bytes(true), bytes(false), "to"),
    )
}

fn words(out: &mut dyn Write, plan: &MemoryPlan, speed: &Speed, ranks: Option<&[Share]>) -> io::Result<()> {
    if let Some(gpu) = &plan.gpu {
        place(out, gpu)?;
    }
    for (part, layers) in &plan.split {
        place(out, part)?;
        writeln!(out, "  layers {}", ranges(&layers.clone().collect::<Vec<_>>()))?;
    }
    if plan.cpu != (PlaceBytes { name: plan.cpu.name.clone(), free: plan.cpu.free, ..PlaceBytes::default() }) {
        place(out, &plan.cpu)?;
    }
    writeln!(out)?;
    if let Some(ranks) = ranks {
        shared(out, ranks, plan.expert_layers.len())?;
    } else if plan.gpu.is_some() && !plan.expert_layers.is_empty() {
        let on_gpu: Vec<usize> = plan.expert_layers.iter().copied().filter(|l| !plan.cpu_layers.contains(l)).collect();
        for (who, layers) in [("on the GPU", &on_gpu), ("on the processor", &plan.cpu_layers)] {
            if !layers.is_empty() {
                writeln!(out, "routed experts {who}: layers {}", ranges(layers))?;
            }
        }
    }
    if plan.host_experts > 0 {
        let slots: Vec<usize> = plan.expert_slots.iter().map(|s| s.1).collect();
        let bytes = units::bytes(plan.host_experts);
        match slots.iter().max() {
            Some(n) => writeln!(
                out,
                "of {bytes} of experts, which the GPU reads in memory of the host, {n} a layer are in slots"
            )?,
            None => writeln!(
                out,
                "{bytes} of experts are read by the GPU in memory of the host: there are fewer slots than a token uses"
            )?,
        }
    }
    let of = |name: &str, speed: Option<f64>| speed.map(|s| format!("{name} {:.1} GB/s", s / 1e9));
    let speeds: Vec<String> =
        [of("the GPU's", speed.gpu), of("the processor's", speed.cpu)].into_iter().flatten().collect();
    if speed.tokens > 0.0 {
        let provided = match ranks {
            Some(_) => ", with a token's experts spread evenly over the ranks and nothing counted for their exchange",
            None if plan.host_experts > 0 => ", with all experts found in slots",
            None => "",
        };
        writeln!(
            out,
            "at best {:.1} tokens a second{provided}: memory was measured, {}",
            speed.tokens,
            speeds.join(", ")
        )?;
    }
    Ok(())
}

fn as_json(plan: &MemoryPlan, session: &SessionOptions, speed: &Speed, ranks: Option<&[Share]>) -> Json {
    let share = |r: &Share| {
        let block = |(layer, b): &(usize, Range<usize>)| json!({"layer": layer, "first": b.start, "experts": b.len()});
        json!({"expert_bytes": r.bytes, "layers": r.blocks.iter().map(block).collect::<Vec<_>>()})
    };
    let weights = |w: &WeightBytes| {
        json!({"embedding": w.embedding, "attention": w.attention, "dense": w.dense, "shared": w.shared,
            "experts": w.experts, "total": w.total()})
    };
    let place = |p: &PlaceBytes| {
        json!({"name": p.name, "free": p.free, "weights": weights(&p.weights), "mapped": weights(&p.mapped), "kv": p.kv,
            "states": p.states, "scratch": p.scratch, "total": p.total(), "read_per_token": p.read_per_token})
    };
    json!({
        "ctx": session.ctx,
        "gpu": plan.gpu.as_ref().map(place),
        "cpu": place(&plan.cpu),
        "expert_layers": plan.expert_layers,
        "cpu_expert_layers": plan.cpu_layers,
        "expert_slots": plan.expert_slots.iter().map(|(layer, slots)| json!({"layer": layer, "slots": slots})).collect::<Vec<_>>(),
        "host_experts": plan.host_experts,
        "split": plan.split.iter().map(|(p, layers)| json!({"place": place(p), "first_layer": layers.start, "layers": layers.len()}))
            .collect::<Vec<_>>(),
        "ranks": ranks.map(|all| all.iter().map(share).collect::<Vec<_>>()),
        "bandwidth": {"gpu": speed.gpu, "cpu": speed.cpu},
        "tokens_per_second_at_best": speed.tokens,
    })
}
