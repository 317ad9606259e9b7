//! The program as a person runs it: every verb on the built-in model, and what it says to bad input.

use moeray::file;
use serde_json::Value as Json;
use std::{
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

const BIN: &str = env!("CARGO_BIN_EXE_moeray");
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");

pub(crate) struct Out {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut c = Command::new(BIN);
    c.args(args).env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

pub(crate) fn with_input(args: &[&str], input: &[u8]) -> Out {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    // The child may end without reading it.
    let _ = child.stdin.take().unwrap().write_all(input);
    let o = child.wait_with_output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    Out { code: o.status.code(), stdout: text(o.stdout), stderr: text(o.stderr) }
}

pub(crate) fn moeray(args: &[&str]) -> Out {
    with_input(args, b"")
}

/// Standard output of a call that must succeed.
pub(crate) fn ok(args: &[&str]) -> String {
    let o = moeray(args);
    assert_eq!(o.code, Some(0), "{args:?}: {}", o.stderr);
    o.stdout
}

fn json(args: &[&str]) -> Json {
    serde_json::from_str(&ok(args)).unwrap()
}

pub(crate) fn fails(args: &[&str], words: &[&str]) {
    let o = moeray(args);
    assert_eq!(o.code, Some(1), "{args:?}: {}{}", o.stdout, o.stderr);
    assert!(o.stdout.is_empty(), "{args:?} printed {:?} before it failed", o.stdout);
    assert!(!o.stderr.contains("panicked"), "{args:?}: {}", o.stderr);
    for w in words {
        assert!(o.stderr.contains(w), "{args:?} does not say {w:?}: {}", o.stderr);
    }
    assert!(o.stderr.starts_with("error: "), "{args:?}: {}", o.stderr);
}

fn names(dir: &Path) -> Vec<String> {
    let mut n: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    n.sort();
    n
}

pub(crate) fn put(dir: &Path, name: &str, bytes: &[u8]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().into()
}

pub(crate) fn at(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().into()
}

/// `run` on the cpu backend with a few tokens.
fn run<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--backend", "cpu", "-n", "12"], rest].concat()
}

#[test]
fn run_continues_the_prompt_and_the_seed_decides() {
    let a = moeray(&run(&["-p", "ROMEO:", "--seed", "1"]));
    assert_eq!(a.code, Some(0), "{}", a.stderr);
    assert!(a.stdout.starts_with("ROMEO:") && a.stdout.len() > 20 && a.stdout.ends_with('\n'), "{:?}", a.stdout);
    assert!(a.stderr.starts_with("[prompt 5 tokens, ") && a.stderr.contains(" | answer 12, "), "{}", a.stderr);
    assert!(a.stderr.ends_with("| seed 1]\n") && a.stderr.chars().count() <= 80, "{}", a.stderr);
    let long = moeray(&run(&["-p", "ROMEO:", "--seed", "1", "-v"])).stderr;
    for word in ["prompt 5 tokens", "generation 12 tokens", "tokens/s", "first token", "memory", "cpu", "seed 1"] {
        assert!(long.contains(word), "no {word:?} in {long}");
    }
    assert_eq!(a.stdout, ok(&run(&["-p", "ROMEO:", "--seed", "1", "-q"])));
    assert_ne!(a.stdout, ok(&run(&["-p", "ROMEO:", "--seed", "2"])));
    assert_eq!(a.stdout, ok(&run(&[DEMO, "-p", "ROMEO:", "--seed", "1"])), "the file is the built-in model");
    assert_eq!(a.stdout, ok(&run(&["-m", DEMO, "-p", "ROMEO:", "--seed", "1", "-ub", "2"])));
    assert_eq!(moeray(&run(&["-p", "ROMEO:", "-q"])).stderr, "", "-q is quiet");
}

#[test]
fn run_takes_prompts_from_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = put(dir.path(), "prompt.txt", "JULIET:\n".as_bytes());
    let greedy = ["--temp", "0", "--no-echo", "-q"];
    let from_text = ok(&run(&[&["-e", "-p", "JULIET:\\n"], &greedy[..]].concat()));
    assert_eq!(from_text, ok(&run(&[&["-f", &file], &greedy[..]].concat())));
    for args in [run(&greedy), run(&[&["-f", "-"], &greedy[..]].concat()), run(&[&["-p", "-"], &greedy[..]].concat())] {
        assert_eq!(from_text, with_input(&args, b"JULIET:\n").stdout, "{args:?}");
    }
    // The second prompt starts from an empty context.
    let two = ok(&run(&[&["-p", "ROMEO:", "-f", &file], &greedy[..]].concat()));
    assert!(two.ends_with(&from_text) && two.len() > from_text.len(), "{two:?}");
}

#[test]
fn run_as_json_and_stop_strings() {
    let whole = json(&["run", "--backend", "cpu", "-n", "40", "--temp", "0", "--json", "-q", "-p", "ROMEO:"]);
    assert_eq!(whole["finish_reason"], "length");
    assert_eq!((whole["ids"].as_array().unwrap().len(), whole["prompt_tokens"].as_u64()), (40, Some(5)));
    let text = whole["text"].as_str().unwrap();
    let word = text.split_whitespace().nth(3).unwrap();
    let cut = json(&["run", "--backend", "cpu", "-n", "40", "--temp", "0", "--json", "-p", "ROMEO:", "--stop", word]);
    assert_eq!(cut["finish_reason"], "stop");
    assert_eq!(cut["text"].as_str().unwrap(), &text[..text.find(word).unwrap()]);
    let end = json(&["run", "--backend", "cpu", "-n", "9", "--ctx", "8", "--temp", "0", "--json", "-p", "ROMEO:"]);
    assert_eq!((end["finish_reason"].as_str(), end["generated_tokens"].as_u64()), (Some("context"), Some(4)));
}

#[test]
fn bench_speaks_llama_bench() {
    let args = ["bench", "--backend", "cpu,reference", "-p", "4", "-n", "0,2", "-r", "2", "-q", "-o"];
    let rows = json(&[&args[..], &["json"]].concat());
    let rows = rows.as_array().unwrap();
    let tests: Vec<_> = rows
        .iter()
        .map(|r| (r["backends"].as_str().unwrap(), r["n_prompt"].as_u64().unwrap(), r["n_gen"].as_u64().unwrap()))
        .collect();
    assert_eq!(tests, [("cpu", 4, 0), ("cpu", 0, 2), ("reference", 4, 0), ("reference", 0, 2)]);
    for r in rows {
        assert!(r["avg_ts"].as_f64().unwrap() > 0.0 && r["stddev_ts"].as_f64().unwrap() >= 0.0);
        assert_eq!((r["samples_ts"].as_array().unwrap().len(), r["samples_ns"].as_array().unwrap().len()), (2, 2));
        assert!(r["model_type"].as_str().unwrap().contains("Q4_K_M"));
        let (size, token) = (r["model_size"].as_u64().unwrap(), r["bytes_per_token"].as_u64().unwrap());
        // Two of eight experts, and one row of the embedding table: well below the whole, well above the shared part.
        assert!(token < size * 3 / 5 && token > size / 4, "{token} of {size} bytes a token");
        assert!(r["read_bandwidth"].as_f64().unwrap() > 1e8);
        // One position on average, four layers, two heads of 64 numbers for keys and values each, two bytes.
        let seen = r["n_gen"].as_u64().unwrap() / 2;
        assert_eq!(r["kv_bytes_per_token"].as_u64(), Some(seen * 4 * 2 * 2 * 64 * 2));
    }
    let md = ok(&[&args[..], &["md"]].concat());
    assert!(md.contains(" tg2 |") && md.contains(" ± ") && md.contains("of roof"), "{md}");
    let csv = ok(&[&args[..], &["csv"]].concat());
    let width = csv.lines().next().unwrap().split(',').count();
    assert!(csv.lines().count() == 5 && width > 20, "{csv}");
    assert_eq!(ok(&[&args[..], &["jsonl"]].concat()).lines().count(), 4);
    let table = ok(&[&args[..], &["table"]].concat());
    assert!(table.contains("pp4") && table.contains("8 experts, top 2"), "{table}");
    assert!(table.lines().all(|l| l.chars().count() <= 80), "a terminal has 80 columns: {table}");
}

#[test]
fn bench_runs_sequences_side_by_side_and_profiles() {
    let args = ["bench", "--backend", "cpu", "-p", "3", "-n", "2", "-d", "5", "--sequences", "1,3", "-r", "2", "-q"];
    let rows = json(&[&args[..], &["-o", "json", "--profile"]].concat());
    let of = |i: usize, field: &str| rows[i][field].as_u64().unwrap();
    assert_eq!(
        [0, 1, 2].map(|i| (of(i, "n_prompt"), of(i, "n_gen"), of(i, "n_seq"))),
        [(3, 0, 1), (0, 2, 1), (0, 2, 3)]
    );
    for (i, tokens) in [(0, 3.0), (1, 2.0), (2, 6.0)] {
        let (ns, ts) = (&rows[i]["samples_ns"][0], &rows[i]["samples_ts"][0]);
        assert!((ts.as_f64().unwrap() * ns.as_f64().unwrap() / 1e9 - tokens).abs() < 1e-3, "{}", rows[i]);
    }
    // The roofline of one sequence says nothing of several.
    assert!(rows[1]["roofline_percent"].is_number() && rows[2]["roofline_percent"].is_null());
    let kernels = rows[1]["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|k| k["op"] == "expert_glu" && k["kernel"] == "Q4_K" && k["bytes"].as_u64() > Some(0)));
    assert!(ok(&args).contains("tg2 x 3 @ d5"));
    // A prompt and a generation in one test, in llama-bench's words.
    let both = ["bench", "--backend", "cpu", "-p", "0", "-n", "0", "-pg", "3,2", "--sequences", "1,3", "-r", "1", "-q"];
    let rows = json(&[&both[..], &["-o", "json"]].concat());
    for (i, sequences) in [1, 3].into_iter().enumerate() {
        let of = |field: &str| rows[i][field].as_u64();
        assert_eq!([of("n_prompt"), of("n_gen"), of("n_seq")], [Some(3), Some(2), Some(sequences)]);
        let (ns, ts) = (rows[i]["samples_ns"][0].as_f64().unwrap(), rows[i]["samples_ts"][0].as_f64().unwrap());
        assert!((ts * ns / 1e9 - 5.0 * sequences as f64).abs() < 1e-3, "{}", rows[i]);
    }
    assert!(ok(&both).contains("pp3+tg2 x 3"));
    fails(&["bench", "-pg", "3"], &["--prompt-gen", "512,128"]);
    // A text's tokens, which a router sends elsewhere than random ones.
    let dir = tempfile::tempdir().unwrap();
    let text = put(dir.path(), "text", TEXT.as_bytes());
    let given = [&args[..], &["--text", &text]].concat();
    assert!(ok(&given).contains("the tokens are those of"));
    assert_eq!(json(&[&given[..], &["-o", "json"]].concat())[2]["text"].as_str(), Some(&text[..]));
    let empty = put(dir.path(), "empty", b"\n");
    fails(&[&args[..], &["--text", &empty]].concat(), &["--text", "no text"]);
}

#[test]
fn bench_makes_models_that_are_not_there() {
    let rows = json(&[
        "bench",
        "--synthetic",
        "moe-1b-a400m",
        "--type",
        "Q4_0",
        "--layers",
        "1",
        "--backend",
        "cpu",
        "-p",
        "2",
        "-n",
        "1",
        "-d",
        "3",
        "-r",
        "1",
        "-q",
        "-o",
        "json",
    ]);
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert!(rows[0]["model_filename"].as_str().unwrap().contains("moe-1b-a400m"));
    assert_eq!(rows[0]["n_depth"], 3);
    fails(&["bench", "--synthetic", "no-such-model"], &["no-such-model", "olmoe-1b-7b"]);
    fails(&["bench", "--synthetic", "olmoe-1b-7b", "--type", "Q9_X"], &["Q9_X", "Q4_K_M"]);
}

/// Arguments that are no text are bad input, as files are.
#[cfg(unix)]
#[test]
fn arguments_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let mut c = command(&["run", "-p"]);
    c.arg(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    let o = c.output().unwrap();
    let said = String::from_utf8(o.stderr).unwrap();
    assert_eq!(o.status.code(), Some(1), "{said}");
    assert!(o.stdout.is_empty() && said.starts_with("error: ") && said.contains("UTF-8"), "{said}");
}

const TEXT: &str = "\
First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\nFirst Citizen:\nYou are all \
resolved rather to die than to famish?\n\nAll:\nResolved. resolved.\n\nFirst Citizen:\nFirst, you know Caius Marcius is \
chief enemy to the people.\n\nAll:\nWe know't, we know't.\n\nFirst Citizen:\nLet us kill him, and we'll have corn at our \
own price.\nIs't a verdict?\n";

#[test]
fn perplexity_prefers_text_to_noise_and_divergence_from_itself_is_zero() {
    let dir = tempfile::tempdir().unwrap();
    let text = put(dir.path(), "text.txt", TEXT.as_bytes());
    let noise: String = TEXT.split(' ').rev().collect::<Vec<_>>().join(" ");
    let noise = put(dir.path(), "noise.txt", noise.as_bytes());
    let base = at(dir.path(), "base.safetensors");
    let args = |file: &'static str| ["perplexity", "--backend", "cpu", "--ctx", "48", "--json", "-q", file];
    let on = |file: &str, rest: &[&str]| json(&[&args("-f")[..], &[file], rest].concat());
    let own = on(&text, &["--save-logits", &base]);
    let ppl = own["perplexity"]["mean"].as_f64().unwrap();
    assert!((2.0..200.0).contains(&ppl) && own["tokens_scored"].as_u64().unwrap() >= 46, "{own}");
    assert!(on(&noise, &[])["perplexity"]["mean"].as_f64().unwrap() > 1.5 * ppl, "alarm: noise is as likely as text");
    for same in [on(&text, &["--base-model", DEMO]), json(&[&args("--kl-base")[..], &[&base]].concat())] {
        assert_eq!(same["perplexity"], own["perplexity"]);
        assert_eq!(same["base_perplexity"], own["perplexity"]);
        assert!(
            same["kl_divergence"]["max"].as_f64().unwrap().abs() < 1e-9 && same["same_top"]["mean"] == 1.0,
            "{same}"
        );
    }
    // Another rounding of the same model is near, and not the same.
    let q2 = at(dir.path(), "q2.gguf");
    ok(&["quantize", DEMO, &q2, "--type", "Q2_K", "--allow-requantize"]);
    let other = on(&text, &["--base-model", &q2]);
    let kl = other["kl_divergence"]["mean"].as_f64().unwrap();
    assert!((1e-4..2.0).contains(&kl), "{other}");
    let table = ok(&["perplexity", "--backend", "cpu", "--ctx", "48", "-q", "-f", &text, "--base-model", &q2]);
    assert!(table.contains("perplexity") && table.contains("KL divergence") && table.contains("99 %"), "{table}");
}

#[test]
fn logits_are_the_numbers_of_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (at(dir.path(), "a.safetensors"), at(dir.path(), "b.safetensors"));
    ok(&["logits", "--backend", "cpu", "-p", "ROMEO:", "--router", "-o", &a]);
    ok(&["logits", "--backend", "reference", "--ids", "606,45,37,47,26", "--ubatch-size", "2", "-o", &b]);
    let (a, b) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    let (a, b) =
        (safetensors::SafeTensors::deserialize(&a).unwrap(), safetensors::SafeTensors::deserialize(&b).unwrap());
    let f32s = |t: &safetensors::SafeTensors<'_>, n: &str| -> Vec<f32> {
        bytemuck::pod_collect_to_vec(t.tensor(n).unwrap().data())
    };
    assert_eq!(a.tensor("logits").unwrap().shape(), [5, 4096]);
    assert_eq!(a.tensor("ids").unwrap().data(), b.tensor("ids").unwrap().data());
    let (x, y) = (f32s(&a, "logits"), f32s(&b, "logits"));
    let error: f32 = x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum();
    let power: f32 = y.iter().map(|y| y * y).sum();
    assert!(error / power < 1e-2, "cpu differs from reference by {}", error / power);
    let shifted: f32 = x[4096..].iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum();
    assert!(shifted / power > 1e-2, "alarm: shifted positions look the same");
    for layer in 0..4 {
        let ids = a.tensor(&format!("router_ids_{layer}")).unwrap();
        assert_eq!((ids.shape(), ids.dtype()), (&[5, 2][..], safetensors::Dtype::U32));
        let ids: Vec<u32> = bytemuck::pod_collect_to_vec(ids.data());
        assert!(ids.chunks(2).all(|p| p[0] != p[1] && p[0] < 8 && p[1] < 8), "{ids:?}");
        let weights = f32s(&a, &format!("router_weights_{layer}"));
        assert!(weights.len() == 10 && weights.iter().all(|w| *w > 0.0 && *w <= 1.0), "{weights:?}");
    }
    assert!(b.tensor("router_ids_0").is_err());
}

#[test]
fn logits_without_further_options_are_exact() {
    let dir = tempfile::tempdir().unwrap();
    let golden = at(std::path::Path::new(env!("CARGO_MANIFEST_DIR")), "tests/data/goldens/mixtral");
    let expected = std::fs::read(at(std::path::Path::new(&golden), "expected.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&expected).unwrap();
    let ids: Vec<i64> = bytemuck::pod_collect_to_vec(expected.tensor("input_ids").unwrap().data());
    let ids = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    let want: Vec<f32> = bytemuck::pod_collect_to_vec(expected.tensor("logits").unwrap().data());
    let error_of = |more: &[&str]| -> f64 {
        let out = at(dir.path(), "logits.safetensors");
        let mut args = vec!["logits", "-m", &golden, "--ids", &ids, "-o", &out];
        args.extend(more);
        ok(&args);
        let bytes = std::fs::read(&out).unwrap();
        let got = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(got.tensor("logits").unwrap().data());
        assert_eq!(got.len(), want.len());
        let squares = |d: f32| f64::from(d) * f64::from(d);
        let error: f64 = got.iter().zip(&want).map(|(g, w)| squares(g - w)).sum();
        error / want.iter().map(|w| squares(*w)).sum::<f64>()
    };
    for backend in ["reference", "cpu"] {
        let error = error_of(&["--backend", backend]);
        assert!(error <= 1e-9, "{backend}: {error:e}");
    }
    let coarse = error_of(&["--backend", "reference", "--kv", "f16"]);
    assert!(coarse > 1e-9, "alarm: a cache in half precision looks the same ({coarse:e})");
    // 8 bits: a thousandth of the largest of 32, a hundred times coarser than half precision, and no more.
    let [reference, cpu] = ["reference", "cpu"].map(|b| error_of(&["--backend", b, "--kv", "q8_0"]));
    assert!(reference > 3.0 * coarse && reference < 1e-3, "{reference:e} {coarse:e}");
    assert!((cpu / reference - 1.0).abs() < 0.1, "{cpu:e} {reference:e}");
}

#[test]
fn inspect_and_devices_show_what_is_there() {
    let text = ok(&["inspect"]);
    for word in ["million parameters in Q4_K_M", "8 experts, top 2", "keys and values", "--tensors"] {
        assert!(text.contains(word), "no {word:?}: {text}");
    }
    for rusty in ["null", "None", "Halves", "qwen2moe.block_count", "blk.0."] {
        assert!(!text.contains(rusty), "{rusty:?} is no word for a summary: {text}");
    }
    assert!(ok(&["inspect", "--tensors"]).contains("blk.0.ffn_gate_exps.weight"));
    assert!(ok(&["inspect", "--metadata"]).contains("qwen2moe.block_count"));
    assert!(ok(&["inspect", DEMO, "--graph"]).contains("output logits"));
    assert!(ok(&["inspect", "--plan"]).contains("dispatches a layer"));
    let labels = ok(&["inspect", "--shaders"]);
    let labels: Vec<&str> = labels.lines().filter_map(|l| l.split(' ').next()).collect();
    assert!(labels.iter().any(|l| l.starts_with("attend-")) && labels.iter().any(|l| l.starts_with("sample_pick-")));
    let attend: &str = labels.iter().find(|l| l.starts_with("attend-")).unwrap();
    let text = ok(&["inspect", "--shader", attend]);
    assert!(text.contains("// shaders/attend.wgsl") && text.contains("struct Params"), "{text}");
    let wgsl = &json(&["inspect", "--shader", attend, "--json"])["wgsl"];
    assert!(wgsl.as_str().unwrap().contains("fn main("));
    fails(&["inspect", "--shader", "attend-of-another"], &["attend-of-another", attend, "--shaders"]);
    let j = json(&["inspect", "--plan", "--json", "--ctx", "1000"]);
    assert_eq!((j["model"]["experts"].as_u64(), j["model"]["vocabulary"].as_u64()), (Some(8), Some(4096)));
    // Four layers, two heads of 64 numbers for keys and values each, two bytes.
    assert_eq!(j["model"]["memory"]["kv"], 4 * 2 * 2 * 64 * 2 * 1000);
    // One byte, and a scale of two for every 32.
    let j = json(&["inspect", "--plan", "--json", "--ctx", "1000", "--kv", "q8_0"]);
    assert_eq!(j["model"]["memory"]["kv"], 4 * 2 * 2 * (64 + 4) * 1000);
    assert!(j["decode"]["dispatches"].as_u64().unwrap() > 10 && j["prefill"]["steps"].is_array());
    assert_eq!(j["tensors"].as_array().unwrap().len(), 71);
    let dense = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/goldens/mixtral");
    assert!(ok(&["inspect", dense, "--metadata"]).contains("config.json"));
    assert!(ok(&["devices"]).contains("without --backend"));
    assert!(json(&["devices", "--json"])["choice"]["backend"].is_string());
}

#[test]
fn quantize_writes_a_model_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let out = at(dir.path(), "out.gguf");
    fails(&["quantize", DEMO, &out, "--type", "q8_0"], &["rounded twice", " to Q8_0", "--allow-requantize"]);
    let o = moeray(&["quantize", DEMO, &out, "--type", "q8_0", "--allow-requantize"]);
    assert_eq!(o.code, Some(0), "{}", o.stderr);
    assert!(o.stderr.contains("71 tensors"), "{}", o.stderr);
    let ckpt = file::open(Path::new(&out)).unwrap();
    assert_eq!(ckpt.tensor("blk.0.ffn_up_exps.weight").unwrap().dtype().to_string(), "Q8_0");
    assert_eq!(ckpt.tensor("blk.0.attn_norm.weight").unwrap().dtype().to_string(), "F32");
    assert_eq!(ckpt.meta().u64("general.file_type"), Some(7));
    // Eight bits hold what four had: the words stay.
    let greedy = ["--temp", "0", "-q", "-p", "ROMEO:"];
    assert_eq!(ok(&run(&greedy)), ok(&run(&[&[out.as_str()], &greedy[..]].concat())));
    fails(&["quantize", DEMO, &out, "--type", "Q4_0"], &["out.gguf", "exists", "--force"]);
    ok(&["quantize", DEMO, &out, "--type", "Q4_0", "--force", "-q", "--allow-requantize"]);
    assert_eq!(file::open(Path::new(&out)).unwrap().meta().u64("general.file_type"), Some(2));
    assert_eq!(names(dir.path()), ["out.gguf"], "temporary files were left");
}

#[test]
fn bad_input_is_named_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let whole = std::fs::read(DEMO).unwrap();
    let (head, half) =
        (put(dir.path(), "head.gguf", &whole[..1000]), put(dir.path(), "half.gguf", &whole[..whole.len() / 2]));
    let noise = put(dir.path(), "noise.gguf", &[7; 4096]);
    let latin = put(dir.path(), "latin.txt", b"caf\xe9");
    let short = put(dir.path(), "short.txt", b"too short");
    let out = at(dir.path(), "out.safetensors");
    let before = names(dir.path());
    for bad in [&head, &half, &noise] {
        let name = Path::new(bad).file_name().unwrap().to_str().unwrap();
        fails(&["run", bad, "-p", "x"], &[name]);
        fails(&["inspect", bad], &[name]);
        fails(&["logits", bad, "--ids", "1", "-o", &out], &[name]);
        fails(&["quantize", bad, &out, "--type", "Q8_0"], &[name]);
    }
    let model: [(&[&str], &[&str]); 12] = [
        (&["run", "no/such.gguf", "-p", "x"], &["no/such.gguf", "hint: "]),
        (&["run", "--backend", "cpu", "-p", ""], &["-p", "empty"]),
        (&["run", "--backend", "cpu", "-p", "one two three four", "--ctx", "2"], &["context", "--ctx"]),
        (&["run", "--backend", "cpu", "-f", &latin], &["-f", "latin.txt", "UTF-8", "offset 3"]),
        (&["run", "--backend", "cpu", "-f", "no-such.txt"], &["-f", "no-such.txt"]),
        (&["run", "--backend", "cpu", "-p", "x", "--temp", "-1"], &["--temp", "temperature -1"]),
        (&["run", "--backend", "cpu", "-p", "x", "--stop", ""], &["--stop", "stop string"]),
        (&["run", "--backend", "cpu", "--device", "0", "-p", "x"], &["--device 0"]),
        (&["run", "--device", "no such GPU", "-p", "x"], &["no such GPU", "hint: "]),
        (&["chat", "--backend", "cpu"], &["chat template", "moeray run", "moeray chat MODEL.gguf", "hf download"]),
        (&["logits", "--backend", "cpu", "--ids", "5,999999", "-o", &out], &["999999", "4096"]),
        (&["perplexity", "--backend", "cpu", "-f", &short], &["short.txt", "512"]),
    ];
    for (args, words) in model {
        fails(args, words);
    }
    fails(&["run", "--backend", "tpu", "-p", "x"], &["tpu"]);
    fails(&["run", "--backnd", "cpu"], &["--backnd", "--backend"]);
    fails(&["rnu"], &["rnu", "run"]);
    fails(&["logits", "--ids", "five", "-o", &out], &["five"]);
    fails(&["perplexity", "--backend", "cpu", "--kl-base", &noise], &["noise.gguf"]);
    fails(&["logits", "--backend", "cpu", "--ids", "1", "-o", "no/such/folder/x"], &["no/such/folder/x"]);
    assert_eq!(names(dir.path()), before, "a failed call left a file");
}

/// A child that generates for long, once its first text has come.
#[cfg(unix)]
fn long_run() -> (std::process::Child, [u8; 16]) {
    let args = ["run", "--backend", "reference", "-n", "900", "--ignore-eos", "-p", "A long tale:"];
    let mut child = command(&args).spawn().unwrap();
    let mut first = [0; 16];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    (child, first)
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_generation_cleanly() {
    let (child, first) = long_run();
    assert!(first.starts_with(b"A long tale:"));
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    let o = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(o.stderr).unwrap();
    assert_eq!(o.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted]") && stderr.contains("/s"), "{stderr}");
    assert!(o.stdout.ends_with(b"\n"));
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (mut child, _) = long_run();
    drop(child.stdout.take());
    let o = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(o.stderr).unwrap();
    assert_eq!((o.status.code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn help_is_for_people() {
    let top = ok(&["--help"]);
    for verb in ["run", "chat", "bench", "perplexity", "logits", "inspect", "devices", "quantize"] {
        assert!(top.contains(verb), "{top}");
        let help = ok(&[verb, "--help"]);
        assert!(help.contains("Usage: moeray"), "{help}");
        assert!(help.lines().all(|l| l.chars().count() <= 120), "{help}");
    }
    assert!(ok(&["--version"]).starts_with("moeray "));
}

/// `--show-routing`: on the screen, in the JSON object, in files; and `inspect` says what each layer is.
#[test]
fn routing_is_shown() {
    let text = ok(&run(&["-p", "ROMEO:", "--seed", "1", "--show-routing"]));
    assert!(
        text.contains("load of the experts") && text.contains("evenness") && !text.contains("  layer  0 "),
        "{text}"
    );
    let text = ok(&run(&["-p", "ROMEO:", "--seed", "1", "--show-routing=tokens"]));
    let (summary, tokens) = (text.find("load of the experts").unwrap(), text.find("  layer  0 ").unwrap());
    assert!(summary < tokens && !text.contains('\u{120}'), "the summary comes first, and tokens are decoded: {text}");
    let dir = tempfile::tempdir().unwrap();
    let (svg, file) = (dir.path().join("load.svg"), dir.path().join("routing.json"));
    let (svg_arg, file_arg) = (svg.to_str().unwrap(), file.to_str().unwrap());
    let page = dir.path().join("routing.html");
    let call = [
        "-p",
        "ROMEO:",
        "--seed",
        "1",
        "--json",
        "--show-routing",
        "--routing-svg",
        svg_arg,
        "--routing-json",
        file_arg,
        "--routing-html",
        page.to_str().unwrap(),
    ];
    let object = json(&run(&call));
    let fed = object["prompt_ids"].as_array().unwrap().len() + object["ids"].as_array().unwrap().len() - 1;
    let routing = &object["routing"];
    assert_eq!(routing["tokens"], fed, "the last token was not fed");
    let layer = &routing["layers"][0];
    let (experts, used) = (layer["experts"].as_u64().unwrap(), layer["used"].as_u64().unwrap() as usize);
    let ids = layer["ids"].as_array().unwrap();
    assert_eq!(ids.len(), fed);
    assert!(ids.iter().all(|t| t.as_array().unwrap().len() == used));
    assert!(ids.iter().flat_map(|t| t.as_array().unwrap()).all(|id| id.as_u64().unwrap() < experts));
    let counts = layer["load"]["counts"].as_array().unwrap();
    assert_eq!(counts.iter().map(|c| c.as_u64().unwrap() as usize).sum::<usize>(), fed * used);
    let saved: Json = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(saved["prompts"][0]["layers"], routing["layers"]);
    assert_eq!(saved["prompts"][0]["ids"].as_array().unwrap().len(), fed);
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg ") && picture.contains("bard-q4_k_m.gguf"), "the picture names the file");
    assert_eq!(std::fs::read_to_string(&page).unwrap().matches("<svg ").count(), 3);

    let model = &json(&["inspect", "--json"])["model"];
    let layers = model["layer_list"].as_array().unwrap();
    assert_eq!(layers.len(), model["layers"].as_u64().unwrap() as usize);
    assert_eq!(layers[0]["router"]["experts"], model["experts"]);
    assert!(ok(&["inspect"]).contains("attention ("));
}

#[cfg(feature = "grammar")]
#[test]
fn run_gives_a_text_the_form_that_was_asked_for() {
    let schema = r#"{"type": "object", "properties": {"mood": {"enum": ["glad", "sad"]}, "n": {"type": "integer", "maximum": 9,
        "minimum": 1}}, "required": ["mood", "n"], "additionalProperties": false}"#;
    let common = ["run", "-q", "-p", "ROMEO:", "--no-echo", "--backend", "cpu", "--seed", "3", "-n", "60"];
    let with = |more: &[&'static str]| [&common[..], more].concat();
    let value = json(&with(&["--json-schema", schema]));
    assert!(
        ["glad", "sad"].contains(&value["mood"].as_str().unwrap()) && (1..=9).contains(&value["n"].as_i64().unwrap())
    );
    let text = ok(&with(&["--regex", "[A-Z][a-z]{3,9}, [a-z]{2,5}!"]));
    assert!(text.ends_with("!\n") && text.contains(", ") && text.len() < 20, "{text:?}");
    let dir = tempfile::tempdir().unwrap();
    let lark = put(dir.path(), "form.lark", b"start: \"I \" VERB \".\"\nVERB: \"see\" | \"hear\"\n");
    let text = ok(&[&common[..], &["--grammar", &lark]].concat());
    assert!(["I see.\n", "I hear.\n"].contains(&text.as_str()), "{text:?}");
    for (more, words) in [
        (["--json-schema", r#"{"type": "array", "uniqueItems": true}"#], "--json-schema: the schema at #/uniqueItems"),
        (["--json-schema", "{"], "no JSON"),
        (["--json-schema", "/nowhere.json"], "cannot read"),
        (["--regex", "("], "--regex: grammar"),
        (["--grammar", "/nowhere.lark"], "cannot read"),
    ] {
        fails(&with(&more), &[words]);
    }
    fails(&with(&["--regex", "a", "--grammar", "b"]), &["--regex"]);
}
