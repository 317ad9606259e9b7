//! Hugging Face checkpoints as GGUF: the same logits from both forms, and refusals of what GGUF cannot say.

use crate::{
    goldens::{Golden, check_routing, folder, forward, golden, names, tolerance},
    support::{Target, compare, load},
};
use moeray::{
    Error,
    file::{self, Bytes, Checkpoint, Metadata, Tensor, TensorSpec, Value, write_gguf_to},
    model::{self, Definition},
};
use serde_json::{Value as Json, json};
use std::{collections::BTreeMap, path::Path};

/// A GGUF file's bytes of tensors as they are.
pub fn bytes_of(meta: &Metadata, tensors: &[(String, Tensor)]) -> Vec<u8> {
    let spec =
        |(name, t): &(String, Tensor)| TensorSpec { name: name.clone(), dtype: t.dtype(), shape: t.shape().to_vec() };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let mut out = vec![];
    write_gguf_to(&mut out, Path::new("test"), meta, &specs, &mut |i, sink| {
        (0..tensors[i].1.parts().len()).try_for_each(|p| sink.write(&tensors[i].1.parts()[p]))
    })
    .unwrap();
    out
}

pub fn tensors(ckpt: &Checkpoint) -> Vec<(String, Tensor)> {
    ckpt.tensors().map(|(n, t)| (n.to_string(), t.clone())).collect()
}

/// Written and read again.
pub fn through_bytes(ckpt: &Checkpoint) -> Checkpoint {
    file::open_bytes(Bytes::from_vec(bytes_of(ckpt.meta(), &tensors(ckpt)))).unwrap()
}

pub fn options() -> model::Options {
    model::Options { trace_router: true }
}

pub fn exported(name: &str) -> Checkpoint {
    model::to_gguf(&file::open(&folder(name)).unwrap()).unwrap()
}

#[allow(clippy::print_stdout)]
pub fn check_golden(name: &str, d: &Definition, g: &Golden, target: Target) {
    let Some(loaded) = load(target, &d.program) else { return };
    let logits = names(d).iter().position(|n| n == "logits").unwrap();
    // The mini-Mixtral's golden is two sequences of 16 tokens.
    let t = if name == "mini_mixtral" { 16 } else { g.ids.len() };
    let vocab = g.logits.len() / g.ids.len();
    for (ids, want) in g.ids.chunks(t).zip(g.logits.chunks(t * vocab)) {
        let out = forward(&*loaded, ids, &[t]);
        let diff = compare::check(&out[logits].f32, want, tolerance(target));
        let diff = diff.unwrap_or_else(|e| panic!("{name} as GGUF on {target:?}: {e}"));
        println!("{name} as GGUF | {target:?} | NMSE {:.1e}", diff.nmse);
        if name != "mini_mixtral" {
            check_routing(name, d, &out, g).unwrap_or_else(|e| panic!("{name} as GGUF on {target:?}: {e}"));
        }
    }
}

#[test]
fn goldens_through_gguf() {
    let all = [
        "llama",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
        "gpt_oss",
        "granitemoe",
        "granitemoeshared",
        "hunyuan_moe",
        "llama4_interleaved",
        "gemma4",
        "mini_mixtral",
        "qwen3_next",
        "qwen3_5_moe",
    ];
    for name in all {
        let g = golden(name);
        let d = model::build(&through_bytes(&exported(name)), &options()).unwrap();
        for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
            check_golden(name, &d, &g, target);
        }
    }
}

/// LFM2 with the factor that llama.cpp's graph takes for granted; with another it is refused.
#[test]
fn lfm2_through_gguf() {
    let e = model::to_gguf(&file::open(&folder("lfm2_moe")).unwrap()).unwrap_err().to_string();
    assert!(e.contains("times 1.5"), "{e}");
    let (_dir, ckpt) = edited("lfm2_moe", |c| c["routed_scaling_factor"] = json!(1.0), |_| true, &[]);
    let gguf = check_forms("lfm2_moe", "no factor", &ckpt);
    assert_eq!(gguf.meta().u64("lfm2moe.expert_gating_func"), Some(2));
    assert_eq!(gguf.require("blk.0.shortconv.in_proj.weight").unwrap().shape(), [96, 32]);
}

/// The comparison notices rows of queries in the wrong order.
#[test]
fn alarm_unpermuted_queries_are_noticed() {
    let source = file::open(&folder("llama")).unwrap();
    let good = exported("llama");
    let wrong = tensors(&good).into_iter().map(|(n, t)| match n.as_str() {
        "blk.0.attn_q.weight" => (n, source.require("model.layers.0.self_attn.q_proj.weight").unwrap().clone()),
        _ => (n, t),
    });
    let wrong = Checkpoint::from_parts(good.meta().clone(), wrong.collect()).unwrap();
    let d = model::build(&wrong, &options()).unwrap();
    let g = golden("llama");
    let loaded = load(Target::Reference, &d.program).unwrap();
    let out = forward(&*loaded, &g.ids, &[g.ids.len()]);
    assert!(compare::check(&out[0].f32, &g.logits, 1e-6).is_err());
}

/// A golden's folder with another config and other tensors.
pub fn edited(
    name: &str,
    edit: impl FnOnce(&mut Json),
    keep: impl Fn(&str) -> bool,
    more: &[(&str, usize)],
) -> (tempfile::TempDir, Checkpoint) {
    use safetensors::{Dtype, SafeTensors, tensor::TensorView};
    let dir = tempfile::tempdir().unwrap();
    let mut config: Json = serde_json::from_slice(&std::fs::read(folder(name).join("config.json")).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(folder(name).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: BTreeMap<String, TensorView<'_>> = file.iter().map(|(n, t)| (n.to_string(), t)).collect();
    all.retain(|n, _| keep(n));
    let vector = |n: usize| (0..n).flat_map(|i| ((i as f32 * 0.7).sin() * 0.3).to_le_bytes()).collect::<Vec<u8>>();
    let vectors: Vec<Vec<u8>> = more.iter().map(|(_, n)| vector(*n)).collect();
    for ((name, n), data) in more.iter().zip(&vectors) {
        all.insert(name.to_string(), TensorView::new(Dtype::F32, vec![*n], data).unwrap());
    }
    safetensors::serialize_to_file(all, None, &dir.path().join("model.safetensors")).unwrap();
    let ckpt = file::open(dir.path()).unwrap();
    (dir, ckpt)
}

pub fn logits(ckpt: &Checkpoint, ids: &[u32]) -> Vec<f32> {
    let d = model::build(ckpt, &options()).unwrap();
    let loaded = load(Target::Reference, &d.program).unwrap();
    forward(&*loaded, ids, &[ids.len()]).swap_remove(0).f32
}

/// Both forms give the same logits, and they are not those of the golden (the edit has done something).
pub fn check_forms(name: &str, what: &str, ckpt: &Checkpoint) -> Checkpoint {
    let ids = golden(name).ids;
    let gguf = through_bytes(&model::to_gguf(ckpt).unwrap());
    let want = logits(ckpt, &ids);
    compare::check(&logits(&gguf, &ids), &want, 1e-11).unwrap_or_else(|e| panic!("{name}, {what}: {e}"));
    assert!(compare::check(&golden(name).logits, &want, 1e-6).is_err(), "{name}, {what}: no different from before");
    gguf
}

#[test]
fn variants_through_gguf() {
    let all = |_: &str| true;
    // Qwen2-MoE without the dense layer of its golden: the first layer alone.
    let first = |n: &str| !n.starts_with("model.layers.") || n.starts_with("model.layers.0.");
    let one_layer = |c: &mut Json| {
        c["num_hidden_layers"] = json!(1);
        c["mlp_only_layers"] = json!([]);
    };
    let (_dir, ckpt) = edited("qwen2_moe", one_layer, first, &[]);
    let gguf = check_forms("qwen2_moe", "one layer", &ckpt);
    assert_eq!(gguf.require("blk.0.ffn_gate_inp_shexp.weight").unwrap().shape().len(), 1);

    let p = "model.layers.1.self_attn.";
    let biases = [("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)];
    let sizes =
        |c: &Json| (c["hidden_size"].as_u64(), c["num_attention_heads"].as_u64(), c["num_key_value_heads"].as_u64());
    let names: Vec<(String, usize)> = biases.iter().map(|(n, size)| (format!("{p}{n}.bias"), *size)).collect();
    let more: Vec<(&str, usize)> = names.iter().map(|(n, s)| (n.as_str(), *s)).collect();
    let (_dir, ckpt) = edited("llama", |c| assert_eq!(sizes(c), (Some(64), Some(4), Some(2))), all, &more);
    check_forms("llama", "biases", &ckpt);

    let llama3 = json!({"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    let (_dir, ckpt) = edited("llama", |c| c["rope_parameters"] = llama3, all, &[]);
    let gguf = check_forms("llama", "llama3 scaling", &ckpt);
    assert!(gguf.tensor("rope_freqs.weight").is_some());

    let linear = json!({"rope_theta": 10000.0, "rope_type": "linear", "factor": 3.0});
    let (_dir, ckpt) = edited("qwen3_moe", |c| c["rope_parameters"] = linear, all, &[]);
    let gguf = check_forms("qwen3_moe", "linear scaling", &ckpt);
    assert_eq!(gguf.meta().f32("qwen3moe.rope.scaling.factor"), Some(3.0));

    let window = |c: &mut Json| c["sliding_window"] = json!(4);
    let (_dir, ckpt) = edited("mixtral", window, all, &[]);
    let gguf = check_forms("mixtral", "sliding window", &ckpt);
    assert_eq!(gguf.meta().u64("llama.attention.sliding_window"), Some(4));

    let tied = |c: &mut Json| c["tie_word_embeddings"] = json!(true);
    let (_dir, ckpt) = edited("llama", tied, |n| n != "lm_head.weight", &[]);
    let gguf = check_forms("llama", "tied embeddings", &ckpt);
    assert!(gguf.tensor("output.weight").is_none());
}

#[test]
fn what_gguf_cannot_say_is_refused_by_name() {
    let refusal = |ckpt: &Checkpoint| match model::to_gguf(ckpt) {
        Err(Error::Unsupported(text)) => text,
        other => panic!("{other:?}"),
    };
    let cases: [(&str, &str, Json, &str); 5] = [
        ("olmoe", "norm_topk_prob", json!(true), "norm_topk_prob"),
        ("qwen3_moe", "norm_topk_prob", json!(false), "norm_topk_prob"),
        ("llama", "hidden_act", json!("gelu"), "Gelu"),
        ("llama", "partial_rotary_factor", json!(0.5), "rotation of 8 of 16"),
        (
            "qwen3_moe",
            "rope_parameters",
            json!({"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
            "frequencies",
        ),
    ];
    for (name, key, value, said) in cases {
        let (_dir, ckpt) = edited(name, |c| c[key] = value, |_| true, &[]);
        let text = refusal(&ckpt);
        assert!(text.contains(said), "{name}, {key}: {text}");
    }
    let some = |c: &mut Json| {
        c["use_sliding_window"] = json!(true);
        c["sliding_window"] = json!(4);
        c["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention"]);
    };
    let (_dir, ckpt) = edited("qwen2_moe", some, |_| true, &[]);
    assert!(refusal(&ckpt).contains("sliding windows on some"));
}

/// `ffn_gate_up_exps`: both halves in one tensor, the gate first.
#[test]
fn merged_experts_give_the_same_logits() {
    let split = exported("qwen3_moe");
    let mut merged = vec![];
    for (name, t) in tensors(&split) {
        if name.ends_with("ffn_up_exps.weight") {
            continue;
        }
        let Some(stem) = name.strip_suffix("ffn_gate_exps.weight") else {
            merged.push((name, t));
            continue;
        };
        let up = split.require(&format!("{stem}ffn_up_exps.weight")).unwrap();
        let [e, inner, hidden] = *t.shape() else { panic!() };
        let rows =
            |t: &Tensor, i: usize| (i * inner..(i + 1) * inner).flat_map(|r| t.row(r).to_vec()).collect::<Vec<u8>>();
        let data = (0..e).flat_map(|i| [rows(&t, i), rows(up, i)].concat()).collect();
        let both = Tensor::new(t.dtype(), vec![e, 2 * inner, hidden], vec![Bytes::from_vec(data)]).unwrap();
        merged.push((format!("{stem}ffn_gate_up_exps.weight"), both));
    }
    let merged = file::open_bytes(Bytes::from_vec(bytes_of(split.meta(), &merged))).unwrap();
    assert!(merged.tensor("blk.0.ffn_gate_up_exps.weight").is_some());
    let d = model::build(&merged, &options()).unwrap();
    for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
        check_golden("qwen3_moe", &d, &golden("qwen3_moe"), target);
    }
}

/// Two shards, as llama.cpp's gguf-split writes them.
#[test]
fn a_split_gguf_gives_the_same_logits() {
    let whole = exported("mixtral");
    let all = tensors(&whole);
    let dir = tempfile::tempdir().unwrap();
    let halves = all.split_at(all.len() / 2);
    let mut path = Default::default();
    for (no, part) in [halves.0, halves.1].into_iter().enumerate() {
        let mut meta = if no == 0 { whole.meta().clone() } else { Metadata::new() };
        // The writer leaves split.* out, since what it writes is one file: the keys get their names afterwards.
        meta.set("SPLIT.no", Value::U16(no as u16));
        meta.set("SPLIT.count", Value::U16(2));
        meta.set("SPLIT.tensors.count", Value::I32(all.len() as i32));
        let mut bytes = bytes_of(&meta, part);
        while let Some(at) = bytes.windows(6).position(|w| w == b"SPLIT.") {
            bytes[at..at + 6].copy_from_slice(b"split.");
        }
        path = dir.path().join(format!("m-{:05}-of-00002.gguf", no + 1));
        std::fs::write(&path, bytes).unwrap();
    }
    let ckpt = file::open(&path).unwrap();
    assert_eq!(ckpt.files().len(), 2);
    let d = model::build(&ckpt, &options()).unwrap();
    for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
        check_golden("mixtral", &d, &golden("mixtral"), target);
    }
}
