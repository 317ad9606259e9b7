//! Experts as a person of the program meets them.

#![cfg(all(feature = "cli", feature = "demo-model"))]

use crate::{
    cli::{fails, ok},
    goldens::forward,
    support::{Target, gpu, load, thorough},
};
use serde_json::Value as Json;

fn json(args: &[&str]) -> Json {
    serde_json::from_str(&ok(args)).unwrap()
}

/// A name of the device under test that the program understands.
fn device() -> Option<String> {
    Some(gpu()?.name().split(" (").next().unwrap().to_string())
}

#[test]
fn a_recorded_text_is_looked_at_again() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.json");
    let trace = trace.to_str().unwrap();
    ok(&["run", "--backend", "cpu", "-q", "-n", "30", "--temp", "0", "-p", "ROMEO:", "--routing-json", trace]);
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");
    let of = json(&[
        "routing",
        "--simulate",
        trace,
        "--slots",
        "25%,4,100%",
        "--policy",
        "lru,belady",
        "-m",
        demo,
        "--json",
    ]);
    let rows = of["simulated"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    let number = |row: &Json, name: &str| row[name].as_f64().unwrap();
    for pair in rows.chunks(2) {
        assert_eq!((pair[0]["policy"].as_str(), pair[1]["policy"].as_str()), (Some("lru"), Some("belady")));
        assert!(number(&pair[1], "hits") >= number(&pair[0], "hits"));
        assert_eq!(number(&pair[0], "lookups"), 4.0 * 2.0 * of["tokens"].as_f64().unwrap(), "four layers, two experts");
        assert!(number(&pair[0], "bytes_per_token") > 0.0);
    }
    assert_eq!(number(&rows[4], "uploads"), number(&rows[4], "first"), "with a slot for each, an expert comes once");
    let table = ok(&["routing", "--simulate", trace, "--layers"]);
    assert!(
        table.contains("lfu-aged")
            && table.contains("pinned+lru")
            && table.contains("layer   3")
            && table.contains("25%"),
        "{table}"
    );
    fails(&["routing", "--simulate", trace, "--slots", "9"], &["9 slots", "8 experts"]);
    fails(&["routing", "--simulate", demo], &["error"]);
    fails(&["routing", "--simulate", "missing.json"], &["missing.json"]);
    fails(&["routing", "--simulate", trace, "--slots", "many"], &["many"]);
}

#[test]
fn memory_is_said_before_loading() {
    let cpu = json(&["inspect", "--memory", "--backend", "cpu", "--json", "--ctx", "1000"]);
    assert!(cpu["gpu"].is_null() && cpu["cpu"]["kv"].as_u64() == Some(4 * 2 * 2 * 64 * 2 * 1000), "{cpu}");
    assert!(cpu["tokens_per_second_at_best"].as_f64().unwrap() > 1.0);
    let text = ok(&["inspect", "--memory", "--backend", "cpu"]);
    assert!(["routed experts", "keys and values", "at best", "together"].iter().all(|w| text.contains(w)), "{text}");
    let Some(device) = device() else { return };
    let at = |more: &[&str]| json(&[&["inspect", "--memory", "--json", "--device", &device], more].concat());
    let whole = at(&[]);
    let split = at(&["--n-cpu-moe", "3"]);
    assert_eq!(split["cpu_expert_layers"], serde_json::json!([0, 1, 2]));
    let experts = |j: &Json, place: &str| j[place]["weights"]["experts"].as_u64().unwrap();
    let (one, all) = (experts(&split, "gpu"), experts(&whole, "gpu"));
    assert!(one > all / 5 && one < all / 3, "a layer of four: {one} of {all}");
    let total = split["gpu"]["total"].as_u64().unwrap();
    let fit = at(&["--vram", &total.to_string()]);
    assert!(fit["gpu"]["total"].as_u64().unwrap() <= total && !fit["cpu_expert_layers"].as_array().unwrap().is_empty());
    let text = ok(&["inspect", "--memory", "--device", &device, "--cpu-moe"]);
    assert!(text.contains("routed experts on the processor: layers 0-3"), "{text}");
    fails(&["inspect", "--memory", "--device", &device, "--vram", "1MB"], &["GB may be used", "shorter context"]);
}

/// What a rank would hold is said without an MPI: a block of each layer's experts, E/n or one more, and all else.
#[test]
fn memory_of_ranks_is_said_before_loading() {
    let at = |place: &[&str]| json(&[&["inspect", "--memory", "--json", "--ctx", "300"], place].concat());
    let experts = |j: &Json, place: &str| {
        let of = |kind: &str| j[place][kind]["experts"].as_u64().unwrap();
        of("weights") + of("mapped")
    };
    let mut places = vec![(vec!["--backend".to_string(), "cpu".into()], "cpu")];
    places.extend(device().map(|d| (vec!["--device".to_string(), d], "gpu")));
    for (words, place) in &places {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let whole = at(&words);
        assert!(whole["ranks"].is_null());
        // Each call measures a memory.
        for n in if *place == "cpu" { vec![1, 2, 3, 8] } else { vec![3] } {
            let of = at(&[&words[..], &["--ranks", &n.to_string()]].concat());
            let ranks = of["ranks"].as_array().unwrap();
            let sum: u64 = ranks.iter().map(|r| r["expert_bytes"].as_u64().unwrap()).sum();
            let (mut next, mut most) = (0, 0);
            for r in ranks {
                let layers = r["layers"].as_array().unwrap();
                let (first, experts) = (layers[0]["first"].as_u64().unwrap(), layers[0]["experts"].as_u64().unwrap());
                assert!(layers.len() == 4 && first == next && (8 / n..=8_u64.div_ceil(n)).contains(&experts), "{r}");
                (next, most) = (first + experts, most.max(experts));
                assert_eq!(r["expert_bytes"].as_u64().unwrap(), sum / 8 * experts);
            }
            assert_eq!((ranks.len() as u64, next), (n, 8));
            // The fullest rank is shown, with everything but experts as one process has it.
            let (all, own) = (experts(&whole, place), experts(&of, place));
            let off = own as f64 / (all as f64 * most as f64 / 8.0) - 1.0;
            assert!(off.abs() < 0.01, "{place}, {n} ranks: {own} of {all}");
            for kind in ["embedding", "attention", "dense", "shared"] {
                let bytes = |j: &Json| j[place]["weights"][kind].as_u64().unwrap();
                let off = bytes(&of) as f64 / (bytes(&whole) as f64).max(1.0) - 1.0;
                assert!(bytes(&of) == bytes(&whole) || off.abs() < 0.01, "{place}, {n} ranks: {kind}");
            }
            assert_eq!(of[place]["kv"], whole[place]["kv"]);
            let read = |j: &Json| j[place]["read_per_token"].as_f64().unwrap();
            let saved = 1.0 - read(&of) / read(&whole);
            assert!(if n == 1 { saved == 0.0 } else { saved > 0.0 && saved < 0.9 }, "{n} ranks read {saved} less");
        }
    }
    let said = ok(&["inspect", "--memory", "--backend", "cpu", "--ranks", "3"]);
    assert!(said.contains("fullest of 3 ranks") && said.contains("2 or 3 routed experts"), "{said}");
    fails(&["inspect", "--memory", "--backend", "cpu", "--ranks", "9"], &["9 processes", "8 experts"]);
    fails(&["inspect", "--memory", "--backend", "reference", "--ranks", "2"], &["reference", "one process"]);
    fails(&["inspect", "--ranks", "2"], &["--memory --ranks"]);
    let Some(device) = device() else { return };
    let slots = ["inspect", "--memory", "--device", &device, "--expert-slots", "4", "--ranks", "2"];
    fails(&slots, &["in slots"]);
    fails(&["inspect", "--memory", "--device", &format!("{device},cpu"), "--ranks", "2"], &["one device"]);
}

#[test]
fn experts_are_left_to_the_processor() {
    fails(&["run", "--backend", "cpu", "--cpu-moe", "-p", "x"], &["--cpu-moe", "--backend cpu"]);
    fails(&["run", "--vram", "lots", "-p", "x"], &["lots"]);
    fails(&["run", "--cpu-moe", "--n-cpu-moe", "2", "-p", "x"], &["--cpu-moe"]);
    fails(&["run", "--backend", "auto", "-ot", "nothing=cpu", "-p", "x"], &["finds no weight", "ffn_"]);
    let Some(device) = device() else { return };
    let text = |more: &[&str]| {
        let args = ["run", "--device", &device, "-n", "12", "--temp", "0", "--json", "-q", "-p", "ROMEO:"];
        json(&[&args[..], more].concat())
    };
    let whole = text(&[]);
    for more in [&["-cmoe"][..], &["-ngl", "2"], &["-ot", "_exps=CPU", "--threads", "2"], &["-ncmoe", "1"]] {
        let split = text(more);
        assert_eq!(split["text"], whole["text"], "{more:?}");
        assert!(split["backend"].as_str().unwrap().contains("experts on cpu"), "{split}");
    }
    assert_eq!(text(&["-ngl", "99"])["text"], whole["text"]);
    // A dense model has nothing to leave to the processor: what would help is said.
    let dense = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/goldens/llama");
    let part = ["inspect", "--memory", dense, "--device", &device, "--gpu-layers", "2"];
    fails(&part, &["2 of 3 layers", "no routed experts", "-ngl 0", "without --gpu-layers"]);
    ok(&["inspect", "--memory", dense, "--device", &device, "--gpu-layers", "3"]);
}

#[test]
fn experts_in_slots() {
    fails(&["run", "--backend", "cpu", "--expert-slots", "2", "-p", "x"], &["--expert-slots", "--backend cpu"]);
    fails(&["run", "--expert-slots", "2", "--cpu-moe", "-p", "x"], &["--expert-slots", "--cpu-moe"]);
    fails(&["run", "--expert-slots", "some", "-p", "x"], &["some"]);
    let Some(device) = device() else { return };
    let text = |more: &[&str]| {
        let args = ["run", "--device", &device, "-n", "12", "--temp", "0", "--json", "-q", "-p", "ROMEO:"];
        json(&[&args[..], more].concat())
    };
    let whole = text(&[]);
    for more in [
        &["--expert-slots", "2"][..],
        &["--expert-slots", "50%", "--slot-policy", "lfu-aged"],
        &["--expert-slots", "5", "--slot-policy", "pinned+lru"],
        &["--expert-slots", "1"],
    ]
    .into_iter()
    .take(if thorough() { 4 } else { 2 })
    {
        let slots = text(more);
        assert_eq!(slots["text"], whole["text"], "{more:?}");
        assert!(slots["backend"].as_str().unwrap().contains("slots for the experts of a layer"), "{slots}");
    }
    let at = |more: &[&str]| json(&[&["inspect", "--memory", "--json", "--device", &device], more].concat());
    let (all, four) = (at(&[]), at(&["--expert-slots", "50%"]));
    let experts = |j: &Json, place: &str| j[place]["weights"]["experts"].as_u64().unwrap();
    assert_eq!((experts(&four, "cpu"), all["host_experts"].as_u64()), (experts(&all, "gpu"), Some(0)));
    let half = experts(&four, "gpu") as f64 / experts(&all, "gpu") as f64;
    assert!((half - 0.5).abs() < 0.01, "{half}");
    assert_eq!(four["expert_slots"][3], serde_json::json!({"layer": 3, "slots": 4}));
    let said = ok(&["inspect", "--memory", "--device", &device, "--expert-slots", "50%"]);
    assert!(said.contains("4 a layer are in slots") && said.contains("found in slots"), "{said}");
    let plan = ok(&["inspect", "--plan", "--device", &device, "--expert-slots", "4"]);
    assert!(plan.contains("router_cached") && plan.contains("expert_fill_3"), "{plan}");
    let args = ["bench", "--device", &device, "-p", "0", "-n", "8", "-r", "1", "-q", "--expert-slots", "25%"];
    let said = ok(&args);
    assert!(said.contains("2 slots a layer") && said.contains("a token were copied"), "{said}");
    let rows = json(&[&args[..], &["-o", "json"]].concat());
    let row = &rows[0];
    let hits = row["expert_hits_percent"].as_f64().unwrap();
    assert!(
        row["expert_slots"] == 2 && (0.0..100.0).contains(&hits) && row["expert_bytes_per_token"].as_f64() > Some(0.0),
        "{row}"
    );
    fails(&["run", "--device", &device, "--expert-slots", "9", "-p", "x"], &["9 slots", "8 experts"]);
    fails(&["run", "--device", &device, "--expert-slots", "4", "--vram", "1MB", "-p", "x"], &["may be used"]);
}

/// A file with the matrices of each expert side by side is the same model, and an expert lies in one piece of it.
#[test]
fn experts_laid_side_by_side() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("together.gguf");
    let out = path.to_str().unwrap();
    ok(&["quantize", demo, out, "--type", "Q4_K_M", "--experts-together", "-q"]);
    let (before, after) = (moeray::file::open(demo.as_ref()).unwrap(), moeray::file::open(&path).unwrap());
    let names: Vec<&str> = after.tensors().map(|(n, _)| n).collect();
    let at = names.iter().position(|n| *n == "blk.1.ffn_gate.3.weight").unwrap();
    assert_eq!(names[at + 1..at + 4], ["blk.1.ffn_up.3.weight", "blk.1.ffn_down.3.weight", "blk.1.ffn_gate.4.weight"]);
    assert_eq!(names.len(), before.tensors().count() + 4 * (3 * 8 - 3));
    let bytes = |c: &moeray::file::Checkpoint| c.tensors().map(|(_, t)| t.byte_len()).sum::<usize>();
    assert_eq!(bytes(&before), bytes(&after), "nothing is rounded again");
    let ids: Vec<u32> = (0..12).map(|i| (i * 37 + 5) % 300).collect();
    let build = |c| moeray::model::build(c, &Default::default()).unwrap().program;
    let (one, other) = (build(&before), build(&after));
    for target in [Target::Cpu, Target::Wgpu] {
        let logits = |program| Some(forward(&*load(target, program)?, &ids, &[9, 1, 2]).swap_remove(0).f32);
        assert!(logits(&one) == logits(&other), "{target:?}: the same bits");
    }
}
