//! `moeray routing --simulate`: a cache of experts on a recorded text.

use super::{
    args::SimulateArgs,
    facts,
    failure::{Failure, Outcome},
    load, units,
};
use crate::{
    model,
    routing::{self, Policy, SlotCounts, Slots, Trace},
};
use serde_json::{Value as Json, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::Path,
};

/// One policy with one number of slots.
struct Row {
    policy: Policy,
    slots: Slots,
    layers: Vec<SlotCounts>,
}

/// Runs the verb.
pub fn simulate(args: &SimulateArgs) -> Outcome {
    let texts = recorded(&args.simulate)?;
    let bytes = args.model.as_ref().map(|m| expert_bytes(m, &texts)).transpose()?;
    let mut rows = vec![];
    for slots in &args.slots {
        for policy in args.policy.iter().map(|p| Policy::from(*p)) {
            rows.push(Row { policy, slots: *slots, layers: policy.simulate(&texts, *slots)? });
        }
    }
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{:#}", as_json(&texts, &rows, bytes.as_deref()))?,
        false => table(&mut out, &texts, &rows, bytes.as_deref(), args.layers)?,
    }
    Ok(())
}

/// The texts of a file that `run --routing-json` wrote.
fn recorded(path: &Path) -> Outcome<Vec<Trace>> {
    let text = fs::read_to_string(path).map_err(|e| Failure::io("read", path, &e))?;
    let hint = "moeray run MODEL -f TEXT -n 1 --routing-json FILE records a text";
    let failure = |what: String| Failure::new(format!("{}: {what}", path.display())).hint(hint);
    let json: Json = serde_json::from_str(&text).map_err(|e| failure(format!("no JSON: {e}")))?;
    let texts = json.get("prompts").and_then(Json::as_array).ok_or_else(|| failure("no list of prompts".into()))?;
    let texts: Vec<Trace> =
        texts.iter().map(Trace::from_json).collect::<Result<_, _>>().map_err(|e| failure(e.to_string()))?;
    if texts.is_empty() {
        return Err(failure("no text was recorded".into()));
    }
    Ok(texts)
}

/// Bytes of one expert of each recorded layer.
fn expert_bytes(path: &Path, texts: &[Trace]) -> Outcome<Vec<u64>> {
    let definition = model::build(&load::open(Some(&path.to_path_buf()))?, &model::Options::default())?;
    let of_layer: BTreeMap<usize, (usize, u64)> = facts::expert_bytes(&definition.program);
    let other = |what: String| Failure::new(format!("{} is not the model that was recorded: {what}", path.display()));
    let bytes = |l: &routing::LayerTrace| match of_layer.get(&l.layer) {
        Some((experts, bytes)) if *experts == l.experts => Ok(bytes / *experts as u64),
        Some((experts, _)) => Err(other(format!("layer {} has {experts} experts, not {}", l.layer, l.experts))),
        None => Err(other(format!("layer {} has no experts", l.layer))),
    };
    texts.iter().take(1).flat_map(|t| t.layers()).map(bytes).collect()
}

/// Bytes that were uploaded.
fn uploaded(layers: &[SlotCounts], bytes: &[u64]) -> u64 {
    layers.iter().zip(bytes).map(|(l, b)| l.uploads * b).sum()
}

fn all(layers: &[SlotCounts]) -> SlotCounts {
    let mut sum = SlotCounts::default();
    layers.iter().for_each(|l| sum.add(l));
    sum
}

fn tokens(texts: &[Trace]) -> u64 {
    texts.iter().map(|t| t.tokens() as u64).sum()
}

fn words(slots: Slots) -> String {
    match slots {
        Slots::Count(n) => n.to_string(),
        Slots::Percent(p) => format!("{p}%"),
    }
}

fn as_json(texts: &[Trace], rows: &[Row], bytes: Option<&[u64]>) -> Json {
    let counts = |c: &SlotCounts| json!({"lookups": c.lookups, "hits": c.hits, "uploads": c.uploads, "first": c.first, "hit_rate": c.hit_rate()});
    let row = |r: &Row| {
        let layer = |(l, c): (&routing::LayerTrace, &SlotCounts)| {
            let mut json = counts(c);
            json["layer"] = l.layer.into();
            json
        };
        let layers: Vec<Json> = texts[0].layers().iter().zip(&r.layers).map(layer).collect();
        let mut json = counts(&all(&r.layers));
        json["policy"] = r.policy.name().into();
        json["slots"] = words(r.slots).into();
        if let Some(bytes) = bytes {
            json["bytes_per_token"] = (uploaded(&r.layers, bytes) as f64 / tokens(texts).max(1) as f64).into();
        }
        json["layers"] = layers.into();
        json
    };
    json!({"tokens": tokens(texts), "simulated": rows.iter().map(row).collect::<Vec<_>>()})
}

fn table(out: &mut dyn Write, texts: &[Trace], rows: &[Row], bytes: Option<&[u64]>, layers: bool) -> io::Result<()> {
    let n = tokens(texts);
    writeln!(out, "{n} tokens, {} layers with experts", texts[0].layers().len())?;
    let more = if bytes.is_some() { "  bytes a token" } else { "" };
    writeln!(out, "{:>6}  {:<10}  {:>6}  {:>16}{more}", "slots", "policy", "hits", "uploads a token")?;
    for r in rows {
        let sum = all(&r.layers);
        let uploads = sum.uploads as f64 / n.max(1) as f64;
        write!(
            out,
            "{:>6}  {:<10}  {:>5.1}%  {uploads:>16.2}",
            words(r.slots),
            r.policy.name(),
            100.0 * sum.hit_rate()
        )?;
        if let Some(bytes) = bytes {
            write!(out, "  {:>13}", units::bytes(uploaded(&r.layers, bytes) / n.max(1)))?;
        }
        writeln!(out)?;
        for (l, c) in texts[0].layers().iter().zip(&r.layers).filter(|_| layers) {
            writeln!(
                out,
                "          layer {:>3}  {:>5.1}%  {:>16.2}",
                l.layer,
                100.0 * c.hit_rate(),
                c.uploads as f64 / n.max(1) as f64
            )?;
        }
    }
    Ok(())
}
