//! `moeray inspect`: what is in a model, and what it will need.

use super::{
    args::InspectArgs,
    facts,
    failure::{Failure, Outcome},
    inspect_memory, load, units,
};
use crate::{
    backend::wgpu,
    file::{Array, Checkpoint, TensorInfo, Value},
    graph,
    kernels::{self, Variant},
    model::{self, Definition, LayerSummary},
    plan::{self, Caps, Plan},
};
use serde_json::{Map, Value as Json, json};
use std::{
    collections::BTreeMap,
    io::{self, Write},
};

/// Items of a list that are shown.
const SHOWN: usize = 6;

/// Runs the verb.
pub fn inspect(args: &InspectArgs) -> Outcome {
    let checkpoint = load::open(args.model.path())?;
    let definition = model::build(&checkpoint, &model::Options::default());
    let mut out = io::stdout().lock();
    if args.place.device.ranks.is_some() && !args.memory {
        return Err(Failure::new("--ranks: a file is the same on all ranks")
            .hint("--memory --ranks N says what each of N ranks would hold"));
    }
    if args.shaders || args.shader.is_some() {
        return shaders(&mut out, args, &planned(args, &definition?)?.1);
    }
    if args.memory {
        let d = definition?;
        return inspect_memory::inspect(&mut out, args, &checkpoint, (&d, ctx(args, &d)));
    }
    let named = |d: &Definition| -> Outcome<Option<(String, Plan)>> {
        if args.plan { planned(args, d).map(Some) } else { Ok(None) }
    };
    if args.json {
        let mut all = as_json(&checkpoint);
        match &definition {
            Ok(d) => {
                all.insert("model".into(), model_json(d, ctx(args, d), args));
                if args.graph {
                    all.insert("graph".into(), d.program.graph.to_string().lines().collect());
                }
                if let Some((device, plan)) = named(d)? {
                    all.insert("planned_for".into(), device.into());
                    // The plan's two halves stand at the top, so that scripts find `decode.dispatches`.
                    if let Json::Object(plan) = plan.to_json() {
                        all.extend(plan);
                    }
                }
            }
            Err(e) => _ = all.insert("cannot_run".into(), e.to_string().into()),
        }
        writeln!(out, "{:#}", Json::Object(all))?;
        return Ok(());
    }
    if args.graph || args.plan {
        let d = definition?;
        if args.graph {
            write!(out, "{}", d.program.graph)?;
        }
        if let Some((device, plan)) = named(&d)? {
            writeln!(out, "plan for {device}\n{plan}")?;
        }
        return Ok(());
    }
    title(&mut out, &checkpoint, definition.as_ref().ok())?;
    match &definition {
        Ok(d) => summary(&mut out, d, ctx(args, d), args)?,
        Err(e) => writeln!(out, "\ncannot run: {e}")?,
    }
    if args.metadata {
        metadata(&mut out, &checkpoint)?;
    }
    if args.tensors {
        tensors(&mut out, &checkpoint)?;
    } else {
        writeln!(
            out,
            "\n{} tensors: --tensors lists them; --metadata shows what the file says",
            checkpoint.infos().len()
        )?;
    }
    Ok(())
}

fn ctx(args: &InspectArgs, d: &Definition) -> usize {
    args.ctx.map_or_else(|| d.decoder.context.clamp(1, 4096), |c| c as usize)
}

/// The plan for the named device, for the one that would be chosen, or for any that WebGPU allows.
fn planned(args: &InspectArgs, d: &Definition) -> Outcome<(String, Plan)> {
    let (name, caps) = match &args.place.device.device {
        Some(device) => {
            let gpu = wgpu::Gpu::open(&wgpu::Options { device: Some(device.clone()), ..wgpu::Options::default() })?;
            (gpu.describe(), gpu.caps().clone())
        }
        None => match wgpu::DeviceInfo::all().into_iter().find(|d| d.chosen_by_default) {
            Some(d) => (d.name, d.limits),
            None => ("any WebGPU device (the default limits)".into(), Caps::webgpu_defaults()),
        },
    };
    let graph = graph::fuse(&d.program.graph);
    let dtypes: Vec<_> = d.program.weights.iter().map(|t| t.dtype()).collect();
    let ctx = ctx(args, d);
    let mut options = plan::Options::new(ctx, (args.context.ubatch_size as usize).min(ctx), load::kv(&args.context));
    options.expert_slots = load::expert_slots(&args.place.device, d)?;
    let weights = match options.expert_slots {
        Some(_) => plan::weights_by_expert(&graph, &dtypes, &caps)?,
        None => plan::weights(&graph, &dtypes, &caps)?,
    };
    Ok((name, plan::plan(&graph, &weights, &caps, &options)?))
}

/// The shaders of a plan: their labels, or the text of one.
fn shaders(out: &mut dyn Write, args: &InspectArgs, plan: &Plan) -> Outcome {
    let sampling = plan.sampling.iter().flat_map(|s| s.steps.iter().flatten());
    let steps = plan.schedules().into_iter().filter_map(|s| s.1).flat_map(|s| &s.steps).chain(sampling);
    let variants: BTreeMap<String, &Variant> = steps.map(|s| (s.variant.label(), &s.variant)).collect();
    let Some(wanted) = &args.shader else {
        if args.json {
            writeln!(out, "{:#}", json!({ "shaders": variants.keys().collect::<Vec<_>>() }))?;
            return Ok(());
        }
        for label in variants.keys() {
            writeln!(out, "{label}")?;
        }
        return Ok(());
    };
    let Some(variant) = variants.get(wanted) else {
        let near = near(wanted, variants.keys()).join(", ");
        return Err(Failure::new(format!("this model's plan has no shader {wanted}"))
            .hint(format!("near it are {near}; --shaders lists all")));
    };
    let linked = kernels::link(variant)?;
    match args.json {
        true => writeln!(out, "{:#}", json!({ "label": linked.label, "wgsl": linked.text }))?,
        false => write!(out, "{}", linked.with_origins())?,
    }
    Ok(())
}

/// The names that begin most like `wanted`.
fn near<'a>(wanted: &str, names: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let alike = |name: &str| wanted.chars().zip(name.chars()).take_while(|(a, b)| a == b).count();
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    names.sort_by_key(|name| std::cmp::Reverse(alike(name)));
    names.truncate(3);
    names
}

/// The file and the model in a few words.
fn title(out: &mut dyn Write, ckpt: &Checkpoint, d: Option<&Definition>) -> io::Result<()> {
    let path = ckpt.path().map_or_else(|| load::DEMO_NAME.into(), |p| p.display().to_string());
    writeln!(out, "{path}: {}, {}", ckpt.format(), units::bytes(ckpt.file_bytes()))?;
    if let Some(name) = ckpt.meta().str("general.name") {
        writeln!(out, "  {name}")?;
    }
    if let Some(d) = d {
        let (parameters, weights) = (billions(facts::parameters(&d.program)), facts::weight_type(ckpt));
        writeln!(out, "  {}: {parameters} parameters in {weights}", facts::shape(d))?;
    }
    for f in ckpt.files().iter().filter(|_| ckpt.files().len() > 1) {
        writeln!(out, "  {} ({})", f.path.display(), units::bytes(f.bytes))?;
    }
    Ok(())
}

/// A count of weights for people: `1.38 billion`.
fn billions(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.2} billion", n as f64 / 1e9),
    }
}

fn metadata(out: &mut dyn Write, ckpt: &Checkpoint) -> io::Result<()> {
    if !ckpt.meta().is_empty() {
        writeln!(out, "\nmetadata")?;
    }
    let width = ckpt.meta().iter().map(|(k, _)| k.len()).max().unwrap_or(0);
    for (key, value) in ckpt.meta().iter() {
        writeln!(out, "  {key:<width$}  {}", show(value))?;
    }
    if let Some(config) = ckpt.config() {
        writeln!(out, "\nconfig.json\n{config:#}")?;
    }
    Ok(())
}

fn tensors(out: &mut dyn Write, ckpt: &Checkpoint) -> io::Result<()> {
    writeln!(out, "\ntensors ({})", ckpt.infos().len())?;
    let width = ckpt.infos().iter().map(|t| t.name.len()).max().unwrap_or(0);
    for t in ckpt.infos() {
        let shape = format!("{:?}", t.shape);
        let problem = problem(t).map_or_else(String::new, |e| format!("  cannot be used: it {e}"));
        writeln!(out, "  {:<width$}  {:<7} {shape:<20} {:>10}{problem}", t.name, t.type_name, units::bytes(t.bytes))?;
    }
    Ok(())
}

/// Why a tensor cannot be used. Bytes and FP8 numbers can, together with the tensor of their scales.
fn problem(t: &TensorInfo) -> Option<&String> {
    t.content.as_ref().err().filter(|_| t.raw.is_none())
}

/// Hyperparameters by name, in reading order.
fn hyperparameters(d: &Definition) -> Vec<(&'static str, Json)> {
    let h = &d.decoder;
    let [heads, kv_heads, head_dim] = h.heads().unwrap_or_default();
    let act = h.dense().or(h.moe().map(|m| &m.experts)).map(|g| format!("{:?}", g.act));
    let qk_norm = h.attention().and_then(|a| a.qk_norm).map_or_else(|| "None".into(), |n| format!("{:?}", n.over));
    let mut list = vec![
        ("architecture", json!(d.arch)),
        ("layers", json!(h.layers.len())),
        ("hidden", json!(h.hidden)),
        ("heads", json!(heads)),
        ("kv_heads", json!(kv_heads)),
        ("head_dim", json!(head_dim)),
        ("ffn", json!(h.ffn)),
        ("vocabulary", json!(facts::vocabulary(&d.program))),
        ("context_length", json!(h.context)),
        ("norm_eps", json!(h.norm.eps)),
        ("rope_pairs", json!(h.rope().map(|r| format!("{:?}", r.pairs)))),
        ("qk_norm", json!(qk_norm)),
        ("activation", json!(act)),
    ];
    if let Some(m) = h.moe() {
        list.extend([
            ("experts", json!(m.router.experts)),
            ("experts_used", json!(m.router.used)),
            ("expert_width", json!(m.experts.width)),
            ("router", json!(m.router.to_string())),
            ("shared_expert_width", json!(m.shared.map(|s| s.unit.width))),
            ("dense_layers", json!(h.dense_layers())),
        ]);
    }
    list
}

/// Bytes: weights, keys and values for `ctx` positions, recurrent states.
fn memory(d: &Definition, ctx: usize, args: &InspectArgs) -> [u64; 3] {
    let kv = facts::kv_bytes(&d.program, load::kv(&args.context)) * ctx as u64;
    [facts::weight_bytes(&d.program), kv, facts::state_bytes(&d.program)]
}

fn summary(out: &mut dyn Write, d: &Definition, ctx: usize, args: &InspectArgs) -> io::Result<()> {
    writeln!(out)?;
    let said = |value: &Json| !value.is_null() && value.as_array().is_none_or(|a| !a.is_empty());
    for (name, value) in hyperparameters(d).into_iter().filter(|(_, value)| said(value)) {
        writeln!(out, "  {:<20} {}", name.replace('_', " "), in_words(&value))?;
    }
    writeln!(out, "\nlayers")?;
    for (range, l) in grouped(&model::layers(&d.program.graph)) {
        writeln!(out, "  {range:<8} {} | {}", l.mixer, l.feed_forward())?;
    }
    for part in &d.skipped {
        writeln!(out, "  left out {part}")?;
    }
    writeln!(out)?;
    let [weights, kv, states] = memory(d, ctx, args);
    writeln!(out, "  {:<20} {}", "parameters", facts::parameters(&d.program))?;
    writeln!(out, "  {:<20} {}", "read a token", units::bytes(facts::bytes_per_token(&d.program)))?;
    writeln!(out, "\nmemory for a context of {ctx}, without scratch")?;
    let together = weights + kv + states;
    let parts = [("weights", weights), ("keys and values", kv), ("recurrent states", states), ("together", together)];
    for (name, n) in parts.into_iter().filter(|(name, n)| *n > 0 || !name.starts_with("recurrent")) {
        writeln!(out, "  {name:<20} {}", units::bytes(n))?;
    }
    Ok(())
}

/// A hyperparameter for people.
fn in_words(value: &Json) -> String {
    match (value.as_str(), value.as_f64().filter(|x| x.fract() != 0.0)) {
        (Some(text), _) => text.to_lowercase(),
        // What was stored as f32 has no more digits.
        (None, Some(x)) => (x as f32).to_string(),
        (None, None) => value.to_string(),
    }
}

/// Neighbours that are alike, as one line: `1-47`.
fn grouped(layers: &[LayerSummary]) -> Vec<(String, &LayerSummary)> {
    let alike = |a: &LayerSummary, b: &LayerSummary| LayerSummary { layer: b.layer, ..a.clone() } == *b;
    let name = |g: &[LayerSummary]| match g {
        [one] => one.layer.to_string(),
        [first, .., last] => format!("{}-{}", first.layer, last.layer),
        [] => String::new(),
    };
    layers.chunk_by(alike).filter_map(|g| Some((name(g), g.first()?))).collect()
}

fn layer_json(l: &LayerSummary) -> Json {
    let router = l.router.as_ref().map(|r| json!({"experts": r.experts, "used": r.used, "variant": l.variant}));
    json!({"layer": l.layer, "mixer": l.mixer, "kind": if router.is_some() { "moe" } else { "dense" },
        "width": l.width, "router": router, "shared_width": l.shared_width})
}

fn as_json(ckpt: &Checkpoint) -> Map<String, Json> {
    let tensor = |t: &TensorInfo| {
        json!({"name": t.name, "type": t.type_name, "shape": t.shape, "bytes": t.bytes,
            "problem": problem(t)})
    };
    let meta: Map<String, Json> = ckpt.meta().iter().map(|(k, v)| (k.to_string(), value_json(v))).collect();
    let mut all = Map::new();
    all.insert("path".into(), json!(ckpt.path()));
    all.insert("format".into(), format!("{:?}", ckpt.format()).into());
    all.insert("file_bytes".into(), ckpt.file_bytes().into());
    all.insert("metadata".into(), meta.into());
    all.insert("config".into(), ckpt.config().cloned().unwrap_or_default());
    all.insert("tensors".into(), ckpt.infos().iter().map(tensor).collect());
    all
}

fn model_json(d: &Definition, ctx: usize, args: &InspectArgs) -> Json {
    let [weights, kv, states] = memory(d, ctx, args);
    let mut m: Map<String, Json> = hyperparameters(d).into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    m.insert("title".into(), d.title.into());
    m.insert("layer_list".into(), model::layers(&d.program.graph).iter().map(layer_json).collect());
    m.insert("left_out".into(), json!(d.skipped));
    m.insert("parameters".into(), facts::parameters(&d.program).into());
    m.insert("bytes_per_token".into(), facts::bytes_per_token(&d.program).into());
    m.insert(
        "memory".into(),
        json!({"ctx": ctx, "weights": weights, "kv": kv, "states": states, "total": weights + kv + states}),
    );
    m.into()
}

/// A value for a person: long lists and texts are cut.
fn show(value: &Value) -> String {
    match value.as_array() {
        Some(a) => {
            let items: Vec<String> = first(a).iter().map(scalar).collect();
            let more = if a.len() > SHOWN { ", ..." } else { "" };
            format!("[{}{more}] ({} x {})", items.join(", "), a.len(), a.kind().name())
        }
        None => scalar(value),
    }
}

fn first(a: &Array) -> Vec<Value> {
    (0..a.len().min(SHOWN)).filter_map(|i| a.get(i)).collect()
}

fn scalar(v: &Value) -> String {
    match v.as_str() {
        Some(s) if s.chars().count() > 80 => format!("{:?}...", s.chars().take(80).collect::<String>()),
        Some(s) => format!("{s:?}"),
        None => value_json(v).to_string(),
    }
}

fn value_json(v: &Value) -> Json {
    if let Some(a) = v.as_array() {
        // A vocabulary of 150 000 texts helps nobody.
        return json!({"length": a.len(), "type": a.kind().name(),
            "first": first(a).iter().map(value_json).collect::<Vec<_>>()});
    }
    let text = v.as_str().map(Json::from).or_else(|| v.as_bool().map(Json::from));
    let number = || v.as_u64().map(Json::from).or_else(|| v.as_i64().map(Json::from));
    text.or_else(number).unwrap_or_else(|| json!(v.as_f64()))
}
