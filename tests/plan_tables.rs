//! The plans of twelve models of real sizes as a table, `tests/data/plans.txt`: dispatches, barriers, bytes, and the workgroups of
//! each dispatch of a layer. Whoever changes a plan sees there what that costs; `MOERAY_BLESS=1` writes it anew.

use crate::{plan_sizes::unmade, proven};
use moeray::{
    file::{Tensor, synth::Shape},
    graph,
    kernels::{Tiles, tiles::DeviceFeatures},
    plan::{self, Caps, Options, Plan, Schedule, Sizes},
    quant::{DType, KvType, mix::Mix},
};
use std::{fmt::Write as _, path::Path};

/// Models, and the mixes of formats that people have them in.
const MODELS: [(&str, Mix); 12] = [
    ("qwen3-30b-a3b", Mix::Q4_K_M),
    ("qwen3-30b-a3b", Mix::Q8_0),
    ("qwen3-30b-a3b", Mix::Q4_0),
    ("gpt-oss-20b", Mix::MXFP4_MOE),
    ("gpt-oss-20b", Mix::Q4_K_M),
    ("mixtral-8x7b", Mix::Q4_K_M),
    ("mixtral-8x7b", Mix::Q4_0),
    ("olmoe-1b-7b", Mix::Q4_K_M),
    ("qwen1.5-moe-a2.7b", Mix::Q4_K_M),
    ("granite-3.1-1b-a400m", Mix::Q4_K_M),
    ("granite-3.1-1b-a400m", Mix::Q8_0),
    ("moe-1b-a400m", Mix::Q4_K_M),
];

/// A device with subgroups and tiles of bytes, as most cards are.
fn caps() -> Caps {
    let features = DeviceFeatures { f16: true, subgroups: true, subgroup_size: Some(32), ..DeviceFeatures::default() };
    let most = (1 << 31) - 4;
    Caps { max_binding: most, max_buffer: most, tiles: Tiles::Int8, features, ..Caps::webgpu_defaults() }
}

fn planned(name: &str, mix: Mix) -> Plan {
    let shape = Shape::preset(name).unwrap();
    let d = unmade(&shape, |name, dims| proven::format(&shape, mix, name, dims));
    let g = graph::fuse(&d.program.graph);
    let dtypes: Vec<DType> = d.program.weights.iter().map(Tensor::dtype).collect();
    let weights = plan::weights(&g, &dtypes, &caps()).unwrap();
    plan::plan(&g, &weights, &caps(), &Options::new(8192, 512, KvType::F16)).unwrap()
}

/// Totals of a schedule, then the dispatches of its second layer and of none.
fn lines(out: &mut String, name: &str, s: &Schedule, sizes: Sizes) {
    let t = s.totals(sizes);
    let (read, written) = (t.read as f64 / 1e6, t.written as f64 / 1e6);
    let Sizes { tokens, past, .. } = sizes;
    writeln!(
        out,
        "  {name}, {tokens} tokens behind {past}: {} dispatches, {} barriers, {read:.2} MB read, {written:.2} MB written",
        t.dispatches, t.barriers
    )
    .unwrap();
    for step in s.steps.iter().filter(|s| s.layer.is_none_or(|l| l == 1)) {
        let grid = step.grid.eval(sizes).map_or("by the device".into(), |g| format!("{} x {} x {}", g[0], g[1], g[2]));
        let v = &step.variant;
        let formats: Vec<String> = v.formats.iter().map(|f| f.to_string()).collect();
        let size = v.number("WG").unwrap_or(0);
        writeln!(out, "    {:<24} {:<14} {grid:<18} of {size}", v.kernel.name, formats.join(" ")).unwrap();
    }
}

#[test]
fn plans_of_real_models() {
    let mut text = String::new();
    for (name, mix) in MODELS {
        let p = planned(name, mix);
        writeln!(text, "{name} in {}", mix.name()).unwrap();
        for (tokens, past) in [(1, 0), (1, 1023), (8, 1023), (512, 0)] {
            let (kind, schedule) = p.schedules()[p.choose(tokens, 1)];
            lines(&mut text, kind, schedule.unwrap(), Sizes { tokens: tokens as u32, outputs: 1, past });
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/plans.txt");
    if std::env::var_os("MOERAY_BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    for (i, (got, want)) in text.lines().zip(want.lines()).enumerate() {
        assert_eq!(got, want, "line {} of {}: see its head", i + 1, path.display());
    }
    assert_eq!(text.lines().count(), want.lines().count(), "another number of lines");
}
