//! Hugging Face checkpoints as GGUF: the same logits from both forms, refusals of what GGUF cannot say, and vocabularies
//! that give the same ids.

use crate::{
    goldens::{Golden, check_routing, folder, forward, golden, names, tolerance},
    support::{Target, compare, load},
};
use moeray::{
    Error,
    file::{self, Bytes, Checkpoint, Metadata, Tensor, TensorSpec, Value, write_gguf_to},
    model::{self, Definition},
    tokenizer::{EncodeOptions, GgufVocab, Tokenizer},
};
use serde_json::{Value as Json, json};
use std::{collections::BTreeMap, path::Path};

/// A GGUF file's bytes of tensors as they are.
fn bytes_of(meta: &Metadata, tensors: &[(String, Tensor)]) -> Vec<u8> {
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

fn tensors(ckpt: &Checkpoint) -> Vec<(String, Tensor)> {
    ckpt.tensors().map(|(n, t)| (n.to_string(), t.clone())).collect()
}

/// Written and read again.
fn through_bytes(ckpt: &Checkpoint) -> Checkpoint {
    file::open_bytes(Bytes::from_vec(bytes_of(ckpt.meta(), &tensors(ckpt)))).unwrap()
}

fn options(bf16_rope: bool) -> model::Options {
    model::Options { trace_router: true, bf16_rope }
}

fn exported(name: &str) -> Checkpoint {
    model::to_gguf(&file::open(&folder(name)).unwrap()).unwrap()
}

#[allow(clippy::print_stdout)]
fn check_golden(name: &str, d: &Definition, g: &Golden, target: Target) {
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
        "mini_mixtral",
        "qwen3_next",
        "qwen3_5_moe",
    ];
    for name in all {
        let g = golden(name);
        let d = model::build(&through_bytes(&exported(name)), &options(name != "mini_mixtral")).unwrap();
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
    let d = model::build(&wrong, &options(true)).unwrap();
    let g = golden("llama");
    let loaded = load(Target::Reference, &d.program).unwrap();
    let out = forward(&*loaded, &g.ids, &[g.ids.len()]);
    assert!(compare::check(&out[0].f32, &g.logits, 1e-6).is_err());
}

/// A golden's folder with another config and other tensors.
fn edited(
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

fn logits(ckpt: &Checkpoint, ids: &[u32]) -> Vec<f32> {
    let d = model::build(ckpt, &options(false)).unwrap();
    let loaded = load(Target::Reference, &d.program).unwrap();
    forward(&*loaded, ids, &[ids.len()]).swap_remove(0).f32
}

/// Both forms give the same logits, and they are not those of the golden (the edit has done something).
fn check_forms(name: &str, what: &str, ckpt: &Checkpoint) -> Checkpoint {
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
        c["sliding_window"] = json!(4);
        c["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention"]);
    };
    let (_dir, ckpt) = edited("mixtral", some, |_| true, &[]);
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
    let d = model::build(&merged, &options(true)).unwrap();
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
    let d = model::build(&ckpt, &options(true)).unwrap();
    for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
        check_golden("mixtral", &d, &golden("mixtral"), target);
    }
}

const BARD: &[u8] = include_bytes!("data/tokenizer/bard.json");

fn meta_of(bytes: &'static [u8]) -> Metadata {
    file::open_bytes(Bytes::from_static(bytes)).unwrap().meta().clone()
}

fn written(v: &GgufVocab) -> Metadata {
    let mut meta = Metadata::new();
    v.write(&mut meta);
    meta
}

/// The same keys as llama.cpp's converter wrote for the same model.
#[test]
fn bards_vocabulary_equals_llama_cpps() {
    let end = "<|endoftext|>";
    let config = json!({"bos_token": end, "eos_token": {"content": end}, "pad_token": end});
    let theirs = meta_of(include_bytes!("../demo/bard-q4_k_m.gguf"));
    let ours = written(&GgufVocab::from_json(BARD, Some(&config), 4096).unwrap());
    let keys: Vec<&str> = theirs.iter().map(|(k, _)| k).filter(|k| k.starts_with("tokenizer.")).collect();
    assert_eq!(keys.len(), 8, "{keys:?}");
    for key in keys {
        assert_eq!(ours.get(key), theirs.get(key), "{key}");
    }
    assert_eq!(ours.bool("tokenizer.ggml.add_bos_token"), Some(false));
}

#[test]
fn vocabularies_are_padded_and_bounded() {
    let v = GgufVocab::from_json(BARD, None, 4100).unwrap();
    assert_eq!((v.tokens.len(), v.tokens[4097].as_str()), (4100, "[PAD4097]"));
    assert_eq!(v.token_types.unwrap()[4095..], [1, 5, 5, 5, 5]);
    let text = GgufVocab::from_json(BARD, None, 4095).unwrap_err().to_string();
    assert!(text.contains("4095 rows"), "{text}");
}

/// A tokenizer.json of a GGUF's vocabulary.
fn json_of(v: &GgufVocab, merges: Vec<[String; 2]>, parts: Json) -> Json {
    let vocab: serde_json::Map<_, _> = v.tokens.iter().enumerate().map(|(i, t)| (t.clone(), json!(i))).collect();
    let types = v.token_types.as_ref().unwrap();
    let special = |(id, text): (usize, &String)| {
        (types[id] == 2 || types[id] == 3 || types[id] == 4).then(|| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": types[id] != 4})
        })
    };
    let added: Vec<Json> = v.tokens.iter().enumerate().filter_map(special).collect();
    let mut json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges}});
    for (key, value) in parts.as_object().unwrap() {
        match json["model"].get(key) {
            Some(_) => json["model"][key] = value.clone(),
            None => json[key] = value.clone(),
        }
    }
    json
}

fn bpe() -> (GgufVocab, Vec<[String; 2]>) {
    let meta = meta_of(include_bytes!("data/tokenizer/bpe.gguf"));
    let strings = |key: &str| meta.strings(key).unwrap().map(str::to_owned).collect::<Vec<String>>();
    let types = meta.i64s("tokenizer.ggml.token_type").unwrap().iter().map(|t| *t as i32).collect();
    let v = GgufVocab { tokens: strings("tokenizer.ggml.tokens"), token_types: Some(types), ..Default::default() };
    let merges = strings("tokenizer.ggml.merges").into_iter().map(|m| {
        let (l, r) = m.split_once(' ').unwrap();
        [l.to_owned(), r.to_owned()]
    });
    (v, merges.collect())
}

/// Patterns as models' files have them become names, and the named rules give the ids that the patterns give.
#[test]
fn patterns_become_names_with_the_same_ids() {
    let level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |p: &str| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false});
    let tail = r"\s*[\r\n]+|\s+(?!\S)|\s+";
    let short = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
    let word = r"[^\r\n\p{L}\p{N}]?";
    let llama = format!(r"{short}|{word}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{tail}");
    let qwen = format!(r"{short}|{word}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{tail}");
    let qwen35 = format!(r"{short}|{word}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{tail}");
    let bailing =
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
    let ascii = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##;
    let deepseek = format!(r"{ascii}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{tail}");
    let (upper, lower) = (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]");
    let signs = r" ?[^\s\p{L}\p{N}]+[\r\n/]*";
    let gpt4o = format!(r"{word}{upper}*{lower}+{short}?|{word}{upper}+{lower}*{short}?|\p{{N}}{{1,3}}|{signs}|{tail}");
    let tekken = format!(r"{word}{upper}*{lower}+|{word}{upper}+{lower}*|\p{{N}}|{signs}|{tail}");
    let one = |p: &str| json!([split(p), level(false)]);
    let cases: [(&str, Json, bool); 10] = [
        ("gpt-2", json!([level(true)]), false),
        ("llama-bpe", one(&llama), true),
        ("smaug-bpe", one(&llama), false),
        ("qwen2", one(&qwen), false),
        ("qwen35", one(&qwen35), false),
        ("smollm", json!([{"type": "Digits", "individual_digits": true}, level(true)]), false),
        ("bailingmoe", one(bailing), false),
        (
            "deepseek-v3",
            json!([split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(&deepseek), level(false)]),
            false,
        ),
        ("gpt-4o", one(&gpt4o), false),
        ("tekken", one(&tekken), true),
    ];
    let (v, merges) = bpe();
    for (name, stages, ignore_merges) in cases {
        let parts = json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": stages},
            "normalizer": {"type": "NFC"}, "ignore_merges": ignore_merges});
        let json = json_of(&v, merges.clone(), parts).to_string();
        // Holds the ids to those of the original, or fails.
        let got = GgufVocab::from_json(json.as_bytes(), None, v.tokens.len()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(got.pre.as_deref(), Some(name));
        assert_eq!(got.tokens, v.tokens);
    }
}

#[test]
fn unknown_tokenizers_are_refused_by_name() {
    let (v, merges) = bpe();
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let whole = json!({"type": "Split", "pattern": {"Regex": "[a-z]+|."}, "behavior": "Isolated", "invert": false});
    let cases = [
        (json!({"pre_tokenizer": whole}), "[a-z]+|."),
        (json!({"pre_tokenizer": {"type": "Whitespace"}}), "Whitespace"),
        (json!({"pre_tokenizer": level, "normalizer": {"type": "Lowercase"}}), "Lowercase"),
        (json!({"pre_tokenizer": level, "dropout": 0.1}), "dropout"),
        (json!({"pre_tokenizer": level, "byte_fallback": true}), "ByteLevel"),
    ];
    for (parts, said) in cases {
        let json = json_of(&v, merges.clone(), parts).to_string();
        let text = GgufVocab::from_json(json.as_bytes(), None, v.tokens.len()).unwrap_err().to_string();
        assert!(text.contains(said) && text.contains("folder"), "{said}: {text}");
    }
    let mut json = json_of(&v, merges, json!({"pre_tokenizer": level}));
    json["added_tokens"][0]["rstrip"] = json!(true);
    let text = GgufVocab::from_json(json.to_string().as_bytes(), None, v.tokens.len()).unwrap_err().to_string();
    assert!(text.contains("rstrip"), "{text}");
}

/// A SentencePiece vocabulary and its `tokenizer.json` as transformers makes it: every split of a piece into two is a
/// merge, the best piece first.
fn spm() -> (Metadata, GgufVocab, Json) {
    let meta = meta_of(include_bytes!("data/tokenizer/spm.gguf"));
    let tokens: Vec<String> = meta.strings("tokenizer.ggml.tokens").unwrap().map(str::to_owned).collect();
    let types: Vec<i32> = meta.i64s("tokenizer.ggml.token_type").unwrap().iter().map(|t| *t as i32).collect();
    let scores = meta.f32s("tokenizer.ggml.scores").unwrap();
    let id = |t: &str| tokens.iter().position(|x| x == t);
    let mut order: Vec<usize> = (0..tokens.len()).filter(|i| types[*i] == 1).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let mut merges = vec![];
    for i in order {
        let mut pairs: Vec<_> = tokens[i]
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (l, r) = tokens[i].split_at(at);
                Some((id(l)?, id(r)?))
            })
            .collect();
        pairs.sort_unstable();
        merges.extend(pairs.into_iter().map(|(l, r)| [tokens[l].clone(), tokens[r].clone()]));
    }
    let v = GgufVocab { tokens, token_types: Some(types), ..Default::default() };
    let parts = json!({"byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>",
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}});
    let json = json_of(&v, merges, parts);
    (meta, v, json)
}

#[test]
fn sentencepiece_json_gives_the_same_ids() {
    let (meta, v, json) = spm();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true});
    let got = GgufVocab::from_json(json.to_string().as_bytes(), Some(&config), v.tokens.len()).unwrap();
    assert_eq!((got.model.as_str(), got.add_space_prefix), ("llama", Some(true)));
    assert_eq!(got.token_types, v.token_types);
    let (ours, theirs) = (Tokenizer::from_gguf(&written(&got)).unwrap(), Tokenizer::from_gguf(&meta).unwrap());
    assert_eq!((ours.bos(), ours.eos(), ours.adds_bos()), (theirs.bos(), theirs.eos(), true));
    let expected: Json = serde_json::from_str(include_str!("data/tokenizer/expected.json")).unwrap();
    let texts = expected["texts"].as_array().unwrap().iter().zip(expected["spm"]["ids"].as_array().unwrap());
    let mut compared = 0;
    for (text, want) in texts {
        let want: Vec<u32> = want.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect();
        assert_eq!(ours.encode(text.as_str().unwrap(), EncodeOptions::default()).unwrap(), want, "{text}");
        compared += 1;
    }
    assert!(compared > 30);
}

/// Where scores cannot say what the merges do, there is an error and no vocabulary.
#[test]
fn alarm_sentencepiece_json_that_scores_cannot_say() {
    let (_, v, json) = spm();
    let refused =
        |json: &Json| GgufVocab::from_json(json.to_string().as_bytes(), None, v.tokens.len()).unwrap_err().to_string();
    let mut first = json.clone();
    first["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    first["normalizer"] = json!(null);
    assert!(refused(&first).contains("Metaspace"));

    let merges = json["model"]["merges"].as_array().unwrap();
    let mut fewer = json.clone();
    fewer["model"]["merges"] = json!(merges[1..]);
    assert!(refused(&fewer).contains("no merge"));

    let union = |m: &Json| format!("{}{}", m[0].as_str().unwrap(), m[1].as_str().unwrap());
    let twin = (1..merges.len()).find(|i| union(&merges[*i]) == union(&merges[i - 1])).unwrap();
    let mut torn = merges.clone();
    let moved = torn.remove(twin);
    torn.push(moved);
    let mut apart = json.clone();
    apart["model"]["merges"] = json!(torn);
    assert!(refused(&apart).contains("several ranks"));
}
