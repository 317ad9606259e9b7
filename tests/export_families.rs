//! Families whose router, attention or layers have keys of their own in GGUF: the same logits and the same experts from a
//! Hugging Face checkpoint and from the GGUF that is made of it, the keys and names of llama.cpp, and older files.

use crate::{
    export::{check_forms, check_golden, edited, exported, logits, options, tensors, through_bytes},
    goldens::{folder, forward, golden},
    support::{Target, compare, load},
};
use moeray::{
    Error, Result,
    file::{self, Bytes, Checkpoint, Metadata, Tensor, Value},
    model::{self, Definition},
    quant::{DType, dequantize, quantize_rows},
};
use serde_json::{Value as Json, json};

fn check(name: &str, ckpt: &Checkpoint) {
    // Phi-3.5-MoE computes its frequencies anew at every call.
    let d = model::build(&through_bytes(ckpt), &options()).unwrap();
    for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
        check_golden(name, &d, &golden(name), target);
    }
}

#[test]
fn latent_attention_through_gguf() {
    for name in ["deepseek_v2", "deepseek_v3", "deepseek_v3_yarn"] {
        check(name, &exported(name));
    }
}

#[test]
fn families_through_gguf() {
    for name in ["ernie4_5_moe", "glm4_moe", "dots1", "minimax_m2", "bailing_moe_v2", "phimoe"] {
        check(name, &exported(name));
    }
}

/// The value of a key, as text.
fn key(ckpt: &Checkpoint, key: &str) -> String {
    match ckpt.meta().get(key) {
        Some(v) => v.as_bool().map(|b| b.to_string()).or(v.as_f64().map(|n| n.to_string())).unwrap(),
        None => "missing".into(),
    }
}

/// Shapes and keys as llama.cpp's converter writes them and its loader asks for them.
#[test]
fn keys_are_llama_cpps() {
    type Keys = &'static [(&'static str, &'static str)];
    let cases: [(&str, &str, Keys); 5] = [
        (
            "deepseek_v3",
            "deepseek2",
            &[
                ("attention.head_count_kv", "1"),
                ("attention.key_length", "48"),
                ("attention.value_length", "32"),
                ("attention.key_length_mla", "40"),
                ("attention.value_length_mla", "24"),
                ("attention.q_lora_rank", "48"),
                ("attention.kv_lora_rank", "32"),
                ("rope.dimension_count", "16"),
                ("leading_dense_block_count", "1"),
                ("expert_shared_count", "1"),
                ("expert_feed_forward_length", "48"),
                ("feed_forward_length", "128"),
                ("expert_gating_func", "2"),
                ("expert_weights_norm", "true"),
                ("expert_weights_scale", "2.5"),
                ("expert_group_count", "4"),
                ("expert_group_used_count", "2"),
                ("block_count", "3"),
            ],
        ),
        (
            "glm4_moe",
            "glm4moe",
            &[
                ("rope.dimension_count", "8"),
                ("attention.key_length", "16"),
                ("expert_shared_count", "1"),
                ("expert_weights_scale", "1.5"),
                ("expert_group_count", "missing"),
                ("leading_dense_block_count", "1"),
            ],
        ),
        (
            "ernie4_5_moe",
            "ernie4_5-moe",
            &[
                ("interleave_moe_layer_step", "1"),
                ("leading_dense_block_count", "1"),
                ("expert_shared_count", "2"),
                ("expert_shared_feed_forward_length", "96"),
            ],
        ),
        ("dots1", "dots1", &[("expert_group_count", "2"), ("expert_weights_scale", "2"), ("expert_gating_func", "2")]),
        ("minimax_m2", "minimax-m2", &[("rope.dimension_count", "8"), ("expert_feed_forward_length", "12")]),
    ];
    for (name, arch, keys) in cases {
        let ckpt = exported(name);
        assert_eq!(ckpt.meta().str("general.architecture"), Some(arch));
        for (k, want) in keys {
            assert_eq!(key(&ckpt, &format!("{arch}.{k}")), *want, "{name}: {k}");
        }
    }
    let v3 = exported("deepseek_v3");
    let shape = |name: &str| v3.require(name).unwrap().shape().to_vec();
    assert_eq!(shape("blk.1.attn_k_b.weight"), [4, 32, 24]);
    assert_eq!(shape("blk.1.attn_v_b.weight"), [4, 24, 32]);
    assert_eq!(shape("blk.1.attn_q_b.weight"), [160, 48]);
    assert_eq!(shape("blk.1.attn_kv_a_mqa.weight"), [48, 64]);
    assert_eq!(shape("blk.2.exp_probs_b.bias"), [16]);
    let yarn = exported("deepseek_v3_yarn");
    assert!((yarn.meta().f32("deepseek2.rope.scaling.yarn_log_multiplier").unwrap() - 0.1).abs() < 1e-7);
}

/// Another set of metadata and tensors as a file, written and read.
fn rebuilt(meta: Metadata, tensors: Vec<(String, Tensor)>) -> Checkpoint {
    through_bytes(&Checkpoint::from_parts(meta, tensors).unwrap())
}

fn numbers(t: &Tensor) -> Vec<f32> {
    let mut out = vec![0.0; t.rows() * t.cols()];
    out.chunks_mut(t.cols()).enumerate().for_each(|(r, row)| dequantize(t.dtype(), t.row(r), row).unwrap());
    out
}

/// Files that llama.cpp wrote before it absorbed the projections: keys and values of a head in one matrix, as many key heads as
/// query heads, lengths of a head without `_mla`.
#[test]
fn old_files_with_joint_keys_and_values() {
    let new = exported("deepseek_v3");
    let mut meta = new.meta().clone();
    meta.set("deepseek2.attention.head_count_kv", Value::U32(4));
    for k in ["key_length", "value_length"] {
        let n = new.meta().get(&format!("deepseek2.attention.{k}_mla")).unwrap().clone();
        meta.set(format!("deepseek2.attention.{k}"), n);
    }
    let kept = meta.iter().filter(|(k, _)| !k.ends_with("_mla")).map(|(k, v)| (k.to_string(), v.clone())).collect();
    let meta = Metadata::from_entries(kept).unwrap();
    let mut old = vec![];
    for (name, t) in tensors(&new) {
        let Some(stem) = name.strip_suffix("attn_k_b.weight") else {
            if !name.ends_with("attn_v_b.weight") {
                old.push((name, t));
            }
            continue;
        };
        let v = new.require(&format!("{stem}attn_v_b.weight")).unwrap();
        let ([heads, rank, nope], value) = (<[usize; 3]>::try_from(t.shape()).unwrap(), v.shape()[1]);
        let (k, v) = (numbers(&t), numbers(v));
        let mut joint = vec![];
        for h in 0..heads {
            (0..nope).for_each(|n| joint.extend((0..rank).map(|c| k[(h * rank + c) * nope + n])));
            joint.extend(&v[h * value * rank..(h + 1) * value * rank]);
        }
        let shape = vec![heads * (nope + value), rank];
        old.push((format!("{stem}attn_kv_b.weight"), Tensor::from_f32(shape, joint).unwrap()));
    }
    check("deepseek_v3", &rebuilt(meta, old));
}

fn build(ckpt: &Checkpoint) -> Result<Definition> {
    model::build(ckpt, &options())
}

/// Without the key, DeepSeek's architecture means softmax, as the files of V2 that are older than it do; beside a selection
/// bias, which came with V3, that would be a guess. Other families' architectures define theirs.
#[test]
fn a_missing_scoring_function_is_refused_where_it_matters() {
    let without = |name: &str, keys: &[&str]| {
        let whole = exported(name);
        let kept = |k: &str| !keys.iter().any(|n| k.ends_with(n));
        let kept = whole.meta().iter().filter(|(k, _)| kept(k)).map(|(k, v)| (k.to_string(), v.clone()));
        rebuilt(Metadata::from_entries(kept.collect()).unwrap(), tensors(&whole))
    };
    let e = build(&without("deepseek_v3", &[".expert_gating_func"])).unwrap_err();
    assert!(matches!(&e, Error::Model(t) if t.contains("deepseek2.expert_gating_func")), "{e}");
    for name in ["deepseek_v2", "glm4_moe", "dots1", "minimax_m2", "ernie4_5_moe"] {
        let ids = golden(name).ids;
        let got = logits(&without(name, &[".expert_gating_func"]), &ids);
        compare::check(&got, &logits(&exported(name), &ids), 1e-12).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    // A function that no file has yet.
    let mut meta = exported("glm4_moe").meta().clone();
    meta.set("glm4moe.expert_gating_func", Value::U32(9));
    let e = build(&rebuilt(meta, tensors(&exported("glm4_moe")))).unwrap_err();
    assert!(matches!(&e, Error::Unsupported(t) if t.contains("scoring function 9")), "{e}");
}

fn refusal(ckpt: &Checkpoint) -> String {
    match model::to_gguf(ckpt) {
        Err(Error::Unsupported(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn variants_of_these_families() {
    let all = |_: &str| true;
    // V2's groups, with the two factors of YaRN that cancel; as they are in the golden they cannot be said.
    assert!(refusal(&file::open(&folder("deepseek_v2_groups")).unwrap()).contains("mscale"));
    let (_dir, ckpt) = edited("deepseek_v2_groups", |c| c["rope_parameters"]["mscale"] = json!(0.8), all, &[]);
    let gguf = check_forms("deepseek_v2_groups", "equal factors", &ckpt);
    assert_eq!(key(&gguf, "deepseek2.expert_group_count"), "4");
    assert_eq!(key(&gguf, "deepseek2.expert_gating_func"), "1");

    // A factor of the file's own works on rotation and dot products: the rotation's goes into both.
    let mut meta = gguf.meta().clone();
    meta.set("deepseek2.rope.scaling.attn_factor", Value::F32(1.5));
    let d = build(&rebuilt(meta, tensors(&gguf))).unwrap();
    let plain = build(&gguf).unwrap();
    let scale = |d: &Definition| d.decoder.latent().unwrap().scale;
    assert!((scale(&d) / scale(&plain) - 2.25).abs() < 1e-6);

    // ERNIE-4.5 with experts in every second layer, and with a last dense layer that no key can say.
    let mlp = |layer: usize| format!("model.layers.{layer}.mlp.");
    let second = |c: &mut Json| {
        c["moe_layer_interval"] = json!(2);
        c["num_hidden_layers"] = json!(2);
        c["moe_layer_start_index"] = json!(0);
    };
    let two = |n: &str| !n.starts_with("model.layers.2.");
    let (_dir, ckpt) = edited("ernie4_5_moe", second, two, &[]);
    let gguf = check_forms("ernie4_5_moe", "every second layer", &ckpt);
    // The first layer with experts is the second, whichever of the two keys says so.
    assert_eq!(key(&gguf, "ernie4_5-moe.leading_dense_block_count"), "1");
    assert!(gguf.tensor("blk.0.ffn_gate.weight").is_some() && ckpt.tensor(&(mlp(1) + "gate.weight")).is_some());

    let cases: [(&str, &str, Json, &str); 6] = [
        ("deepseek_v3", "rope_interleave", json!(false), "rope_interleave"),
        ("minimax_m2", "hidden_act", json!("gelu"), "activation"),
        ("phimoe", "router_jitter_noise", json!(0.02), "sparsemixer"),
        ("ernie4_5_moe", "moe_norm_min", json!(0.9), "divided"),
        ("glm4_moe", "hidden_act", json!("relu"), "activation"),
        ("dots1", "sliding_window", json!(4), "window"),
    ];
    for (name, key, value, said) in cases {
        let slides = key == "sliding_window";
        let edit = |c: &mut Json| {
            c[key] = value;
            if slides {
                c["layer_types"] = json!(["full_attention", "sliding_attention", "full_attention"]);
            }
        };
        let (_dir, ckpt) = edited(name, edit, all, &[]);
        let text = refusal(&ckpt);
        assert!(text.contains(said), "{name}, {key}: {text}");
    }
}

/// LongRoPE's two sets of factors and its factor on the rotated vectors.
#[test]
fn long_rope_through_gguf() {
    let scaling = json!({
        "rope_type": "longrope", "rope_theta": 1e6, "original_max_position_embeddings": 20, "attention_factor": 1.25,
        "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
        "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0],
    });
    let (_dir, ckpt) = edited("phimoe", |c| c["rope_parameters"] = scaling, |_| true, &[]);
    let gguf = check_forms("phimoe", "LongRoPE", &ckpt);
    assert_eq!(gguf.require("rope_factors_long.weight").unwrap().shape(), [8]);
    assert_eq!(key(&gguf, "phimoe.rope.scaling.attn_factor"), "1.25");
    let long = |c: &Checkpoint| {
        let d = build(c).unwrap();
        let rope = d.program.graph.nodes.iter().find_map(|n| match &n.op {
            moeray::ir::Op::Rope(r) => Some(r.clone()),
            _ => None,
        });
        rope.unwrap().for_context(1000)
    };
    let (a, b) = (long(&ckpt), long(&gguf));
    let near = |(a, b): (&f32, &f32)| (a / b - 1.0).abs() < 1e-6;
    assert!(a.inv_freq.iter().zip(b.inv_freq.iter()).all(near) && a.scale == b.scale);
}

/// The comparison notices one head's keys in the place of another's.
#[test]
fn alarm_swapped_heads_are_noticed() {
    let good = exported("deepseek_v3");
    let swapped = tensors(&good).into_iter().map(|(n, t)| match n.as_str() {
        "blk.1.attn_k_b.weight" => {
            let rows: Vec<usize> = (32..64).chain(0..32).chain(64..128).collect();
            let bytes = rows.iter().flat_map(|r| t.row(*r).to_vec()).collect();
            (n, Tensor::new(t.dtype(), t.shape().to_vec(), vec![Bytes::from_vec(bytes)]).unwrap())
        }
        _ => (n, t),
    });
    let wrong = Checkpoint::from_parts(good.meta().clone(), swapped.collect()).unwrap();
    let g = golden("deepseek_v3");
    let want = logits(&good, &g.ids);
    assert!(compare::check(&logits(&wrong, &g.ids), &want, 1e-6).is_err());
}

/// Quantised, with the two matrices of each head of latent attention: the reference's numbers on the others.
#[test]
fn quantised_families() {
    for name in ["deepseek_v3", "glm4_moe"] {
        let whole = exported(name);
        let quantised = |(n, t): (String, Tensor)| {
            if t.shape().len() < 2 || n.contains("ffn_gate_inp") || t.cols() % 32 != 0 {
                return (n, t);
            }
            let bytes = quantize_rows(DType::Q8_0, t.rows(), t.cols(), &numbers(&t), 1).unwrap();
            (n, Tensor::new(DType::Q8_0, t.shape().to_vec(), vec![Bytes::from_vec(bytes)]).unwrap())
        };
        let small = rebuilt(whole.meta().clone(), tensors(&whole).into_iter().map(quantised).collect());
        assert_eq!(small.require("blk.2.ffn_gate_exps.weight").unwrap().dtype(), DType::Q8_0);
        let (d, ids) = (build(&small).unwrap(), golden(name).ids);
        let want = logits(&small, &ids);
        assert!(compare::check(&want, &logits(&whole, &ids), 1e-7).is_err(), "{name}: the rounding shows");
        for (target, tolerance) in [(Target::Cpu, 1e-6), (Target::Wgpu, 1e-9)] {
            let Some(loaded) = load(target, &d.program) else { continue };
            let got = forward(&*loaded, &ids, &[ids.len()]).swap_remove(0).f32;
            compare::check(&got, &want, tolerance).unwrap_or_else(|e| panic!("{name} on {target:?}: {e}"));
        }
    }
}
