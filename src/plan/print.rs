//! A plan as text and as JSON, as `moeray inspect --plan` shows it.

use super::{Cost, Count, Depth, Grid, Plan, Schedule, Sizes, Step, totals::barriers};
use serde_json::{Value, json};
use std::fmt;

/// The sizes that the printed figures are for.
const ONE_TOKEN: Sizes = Sizes { tokens: 1, outputs: 1, past: 0 };

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Grid::Direct { x, count, per, tile, z } = *self else { return f.write_str("indirect") };
        let rows = match count {
            Count::Tokens => "T".to_string(),
            Count::Outputs => "O".to_string(),
            Count::One => "1".to_string(),
            Count::Fixed(n) => n.to_string(),
        };
        write!(f, "{x}")?;
        match (per, tile, count) {
            (1, 1, Count::One) => {}
            (1, 1, _) => write!(f, " x {rows}")?,
            (_, 1, _) => write!(f, " x {per}{rows}")?,
            (1, _, _) => write!(f, " x {rows}/{tile}")?,
            _ => write!(f, " x {per}{rows}/{tile}")?,
        }
        match z {
            Depth::One => Ok(()),
            Depth::Pieces(p) => write!(f, " x {} pieces", p.most),
            Depth::IfSeveral(_) => write!(f, " if pieces"),
        }
    }
}

/// A number of bytes for people.
fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        _ => format!("{:.1} MB", n as f64 / 1e6),
    }
}

fn sizes(s: &Schedule) -> Sizes {
    Sizes { tokens: s.max_tokens as u32, outputs: 1, past: 0 }
}

fn line(f: &mut fmt::Formatter<'_>, i: usize, step: &Step, barrier: bool, s: Sizes) -> fmt::Result {
    let layer = step.layer.map_or_else(String::new, |l| l.to_string());
    let mark = if barrier { '|' } else { ' ' };
    let (read, written) = (bytes(step.reads.eval(s)), bytes(step.writes.eval(s)));
    let grid = step.grid.to_string();
    writeln!(
        f,
        "{i:>4} {mark} {layer:>3} {:<16} {grid:<20} {read:>10} {written:>10}  {}",
        step.op,
        step.variant.label()
    )
}

fn schedule(f: &mut fmt::Formatter<'_>, name: &str, s: &Schedule) -> fmt::Result {
    let at = sizes(s);
    writeln!(f, "{name}: T <= {}, O <= {}; nodes", s.max_tokens, s.max_outputs)?;
    write!(f, "{}", s.nodes)?;
    writeln!(f, "{name}: dispatches, figures for T = {}, O = 1, P = 0", at.tokens)?;
    writeln!(f, "     | lay {:<16} {:<20} {:>10} {:>10}  kernel", "op", "grid", "read", "written")?;
    for (i, (step, barrier)) in s.steps.iter().zip(barriers(&s.steps)).enumerate() {
        for call in s.host_calls.iter().filter(|c| c.before == i) {
            let layer = call.layer.map_or_else(String::new, |l| l.to_string());
            let read: u64 = call.inputs.iter().map(|i| i.bytes(at.tokens as usize)).sum();
            let written = 4 * u64::from(at.tokens) * call.stride as u64;
            let what = format!("{:<16} {:<20} {:>10} {:>10}", "host_experts", "the host", bytes(read), bytes(written));
            writeln!(f, "     | {layer:>3} {what}")?;
        }
        line(f, i, step, barrier, at)?;
    }
    let t = s.totals(at);
    let scratch: u64 = s.scratch.iter().map(|s| s.bytes).sum();
    writeln!(
        f,
        "{} dispatches, {} barriers, {} read, {} written, {} of scratch in {} buffers",
        t.dispatches,
        t.barriers,
        bytes(t.read),
        bytes(t.written),
        bytes(scratch),
        s.scratch.len()
    )
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        schedule(f, "decode", &self.decode)?;
        let waits = self.host_waits_per_token();
        writeln!(f, "{:.2} dispatches a layer, {waits} waits of the host a token", self.dispatches_per_layer())?;
        if let Some(s) = &self.sampling {
            writeln!(f, "then, where tokens are chosen on the device:")?;
            for (i, step) in s.steps[0].iter().enumerate() {
                line(f, self.decode.steps.len() + i, step, true, ONE_TOKEN)?;
            }
        }
        writeln!(f)?;
        if let Some(s) = &self.small_batch {
            schedule(f, "small batch", s)?;
            writeln!(f)?;
        }
        schedule(f, "prefill", &self.prefill)
    }
}

fn cost_json(c: Cost, s: Sizes) -> Value {
    json!(c.eval(s))
}

fn schedule_json(s: &Schedule) -> Value {
    let at = sizes(s);
    let barriers = barriers(&s.steps);
    let step = |(step, barrier): (&Step, &bool)| {
        json!({
            "op": step.op,
            "layer": step.layer,
            "kernel": step.variant.kernel.name,
            "variant": step.variant.label(),
            "grid": step.grid.to_string(),
            "barrier": barrier,
            "bytes_read": cost_json(step.reads, at),
            "bytes_written": cost_json(step.writes, at),
        })
    };
    json!({
        "max_tokens": s.max_tokens,
        "max_outputs": s.max_outputs,
        "nodes": s.nodes.lines(),
        "dispatches": s.steps.len(),
        "barriers": barriers.iter().filter(|b| **b).count(),
        "host_calls": s.host_calls.len(),
        "scratch_bytes": s.scratch.iter().map(|s| s.bytes).sum::<u64>(),
        "steps": s.steps.iter().zip(&barriers).map(step).collect::<Vec<_>>(),
    })
}

impl Plan {
    /// Dispatches of a decoded token that belong to transformer layers, a layer on average.
    pub fn dispatches_per_layer(&self) -> f64 {
        self.decode.totals(ONE_TOKEN).layer_dispatches as f64 / self.layers.max(1) as f64
    }

    /// Waits of the device for the host, a decoded token: none where tokens are chosen on the device, because the next
    /// step is queued before the host learns of them; else one, for the logits. Experts that the host computes are one a layer.
    pub fn host_waits_per_token(&self) -> usize {
        self.decode.host_calls.len() + usize::from(self.sampling.is_none())
    }

    /// The plan as JSON: `decode`, `small_batch` (null where there is none) and `prefill` with their steps; the figures of a decoded
    /// token (at P = 0) are `decode.dispatches_per_layer`, `decode.dispatches`, `decode.barriers`, `decode.bytes_per_token`,
    /// `decode.host_waits_per_token`, `decode.sampling_dispatches` (of the choice of a token), and
    /// `decode.bytes_per_position` grows with the context.
    pub fn to_json(&self) -> Value {
        let mut decode = schedule_json(&self.decode);
        let (here, next) = (self.decode.totals(ONE_TOKEN), self.decode.totals(Sizes { past: 1, ..ONE_TOKEN }));
        decode["dispatches_per_layer"] = json!(self.dispatches_per_layer());
        decode["bytes_per_token"] = json!(here.read + here.written);
        decode["bytes_per_position"] = json!(next.read - here.read);
        decode["sampling_dispatches"] = json!(self.sampling.as_ref().map_or(0, |s| s.steps[0].len()));
        decode["host_waits_per_token"] = json!(self.host_waits_per_token());
        let small_batch = self.small_batch.as_ref().map(schedule_json);
        json!({ "decode": decode, "small_batch": small_batch, "prefill": schedule_json(&self.prefill) })
    }
}
