//! GGUF files as other writers and older converters made them: a tensor an expert, Ollama's spellings, sizes of 1 dropped and
//! added, predictors behind the layers, keys that say otherwise than the tensors.

use super::{build, goldens, logits_of};
use crate::{
    export::{exported, tensors, through_bytes},
    variants::opened,
};
use moeray::{
    file::{Array, Checkpoint, Metadata, Tensor, Value},
    model,
    quant::DType,
};
use serde_json::json;

type Tensors = Vec<(String, Tensor)>;

/// A golden as GGUF; LFM2 without the factor that no key says.
fn as_gguf(name: &str) -> Checkpoint {
    if name != "lfm2_moe" {
        return exported(name);
    }
    let (_dir, ckpt) = opened(name, &crate::variants::tensors(name), |c| c["routed_scaling_factor"] = json!(1.0));
    model::to_gguf(&ckpt).unwrap()
}

/// Goldens that a GGUF can hold: llama.cpp knows no chunks of other sizes than the released ones of Llama 4, which the
/// interleaved golden has, and no second factor of YaRN in DeepSeek's.
fn names() -> impl Iterator<Item = String> {
    goldens().into_iter().filter(|n| !["llama4", "deepseek_v2_groups"].contains(&n.as_str()))
}

#[track_caller]
fn same(name: &str, what: &str, plain: &Checkpoint, meta: &Metadata, tensors: Tensors) -> Vec<String> {
    let changed = through_bytes(&Checkpoint::from_parts(meta.clone(), tensors).unwrap());
    let d = build(&changed).unwrap_or_else(|e| panic!("{name}, {what}: {e}"));
    assert!(logits_of(&d, name) == logits_of(&build(plain).unwrap(), name), "{name}, {what}: other logits");
    d.skipped
}

/// `blk.0.ffn_gate_exps.weight` → `blk.0.ffn_gate.3.weight`.
fn one_by_one(all: Tensors) -> Tensors {
    let mut out = vec![];
    for (name, t) in all {
        let Some(stem) = name.strip_suffix("_exps.weight") else {
            out.push((name, t));
            continue;
        };
        let (count, each) = (t.shape()[0], t.rows() / t.shape()[0]);
        for e in 0..count {
            let bytes: Vec<u8> = (e * each..(e + 1) * each).flat_map(|r| t.row(r).to_vec()).collect();
            let part = Tensor::new(t.dtype(), t.shape()[1..].to_vec(), vec![moeray::file::Bytes::from_vec(bytes)]);
            out.push((format!("{stem}.{e}.weight"), part.unwrap()));
        }
    }
    out
}

#[test]
fn a_tensor_an_expert() {
    for name in &names().collect::<Vec<_>>() {
        let plain = as_gguf(name);
        let skipped = same(name, "a tensor an expert", &plain, plain.meta(), one_by_one(tensors(&plain)));
        assert!(skipped.is_empty());
    }
}

/// Gates and ups of a layer in one tensor, as llama.cpp's converter may join them.
#[test]
fn gates_and_ups_in_one_tensor() {
    for name in &names().collect::<Vec<_>>() {
        let plain = as_gguf(name);
        let (mut out, all): (Tensors, _) = (vec![], tensors(&plain));
        for (n, t) in &all {
            if n.ends_with("ffn_up_exps.weight") {
                continue;
            }
            let Some(stem) = n.strip_suffix("ffn_gate_exps.weight") else {
                out.push((n.clone(), t.clone()));
                continue;
            };
            let up = all.iter().find(|(m, _)| *m == format!("{stem}ffn_up_exps.weight"));
            let (Some((_, up)), [e, rows, cols]) = (up, t.shape()) else {
                out.push((n.clone(), t.clone()));
                continue;
            };
            let piece =
                |t: &Tensor, i: usize| (i * rows..(i + 1) * rows).flat_map(|r| t.row(r).to_vec()).collect::<Vec<u8>>();
            let bytes = (0..*e).flat_map(|i| [piece(t, i), piece(up, i)].concat()).collect();
            let bytes = moeray::file::Bytes::from_vec(bytes);
            out.push((
                format!("{stem}ffn_gate_up_exps.weight"),
                Tensor::new(t.dtype(), vec![*e, 2 * rows, *cols], vec![bytes]).unwrap(),
            ));
        }
        same(name, "merged", &plain, plain.meta(), out);
    }
}

/// Names that Ollama writes where llama.cpp writes others, and its pictures and sounds.
#[test]
fn ollamas_names() {
    let spelled = |n: String| {
        let pairs = [
            ("ssm_dt.bias", "ssm_dt"),
            ("exp_probs_b.bias", "exp_probs_b"),
            ("attn_sinks.weight", "attn_sinks"),
            ("attn_output.", "attn_out."),
            ("ffn_down_exps.scale", "ffn_gate_inp.per_expert_scale"),
            ("layer_output_scale.weight", "layer_output_scale"),
        ];
        pairs.iter().fold(n, |n, (from, to)| n.replace(from, to))
    };
    for name in &names().collect::<Vec<_>>() {
        let plain = as_gguf(name);
        let mut all: Tensors = tensors(&plain).into_iter().map(|(n, t)| (spelled(n), t)).collect();
        for n in ["v.blk.0.attn_q.weight", "v.patch_embd.weight", "mm.0.weight"] {
            all.push((n.into(), Tensor::from_f32(vec![2], vec![1.0; 2]).unwrap()));
        }
        let skipped = same(name, "Ollama", &plain, plain.meta(), all);
        assert_eq!(skipped, ["projector of pictures (1 tensors)", "vision tower (2 tensors)"], "{name}");
    }
}

/// Sizes of 1 at the end are dropped by ggml; others put some between.
#[test]
fn sizes_of_one() {
    for name in &names().collect::<Vec<_>>() {
        let plain = as_gguf(name);
        let more = |(n, t): (String, Tensor)| {
            let mut shape = t.shape().to_vec();
            if shape.len() < 4 {
                shape.insert(shape.len() - 1, 1);
            }
            (n, t.reshaped(shape).unwrap())
        };
        same(name, "more sizes", &plain, plain.meta(), tensors(&plain).into_iter().map(more).collect());
    }
    // One expert: a stack of one matrix is that matrix.
    let plain = as_gguf("mixtral");
    let mut meta = plain.meta().clone();
    meta.set("llama.expert_count", Value::U32(1));
    meta.set("llama.expert_used_count", Value::U32(1));
    let first = |(n, t): (String, Tensor), drop: bool| {
        let is_stack = n.ends_with("_exps.weight");
        if !is_stack && !n.ends_with("ffn_gate_inp.weight") {
            return (n, t);
        }
        let rows = t.rows() / t.shape()[0];
        let bytes: Vec<u8> = (0..rows).flat_map(|r| t.row(r).to_vec()).collect();
        let mut shape = t.shape().to_vec();
        shape[0] = 1;
        let shape = if drop { shape[1..].to_vec() } else { shape };
        (n, Tensor::new(t.dtype(), shape, vec![moeray::file::Bytes::from_vec(bytes)]).unwrap())
    };
    let kept = tensors(&plain).into_iter().map(|t| first(t, false)).collect();
    let kept = through_bytes(&Checkpoint::from_parts(meta.clone(), kept).unwrap());
    same("mixtral", "one expert", &kept, &meta, tensors(&plain).into_iter().map(|t| first(t, true)).collect());
}

/// Layers behind the model's own that predict further tokens, in every family: left out, with one notice.
#[test]
fn predictors_of_every_family() {
    for name in &names().collect::<Vec<_>>() {
        let plain = as_gguf(name);
        let (mut meta, mut all) = (plain.meta().clone(), tensors(&plain));
        let arch = meta.str("general.architecture").unwrap().to_string();
        let layers = meta.u64(&format!("{arch}.block_count")).unwrap();
        let last = format!("blk.{}.", layers - 1);
        let copies: Tensors = all.iter().filter(|(n, _)| n.starts_with(&last)).cloned().collect();
        let count = copies.len() + 2;
        all.extend(copies.into_iter().map(|(n, t)| (n.replace(&last, &format!("blk.{layers}.")), t)));
        for n in ["eh_proj", "enorm"] {
            let t = Tensor::from_f32(vec![2], vec![1.0; 2]).unwrap();
            all.push((format!("blk.{layers}.nextn.{n}.weight"), t));
        }
        meta.set(format!("{arch}.block_count"), Value::U32(layers as u32 + 1));
        meta.set(format!("{arch}.nextn_predict_layers"), Value::U32(1));
        // Lists of a number a layer count the predictors, too.
        for key in ["attention.head_count_kv", "attention.sliding_window_pattern"] {
            let key = format!("{arch}.{key}");
            if let Some(list) = meta.u64s(&key) {
                let longer: Vec<u32> = list.iter().chain(list.last()).map(|n| *n as u32).collect();
                meta.set(key, Value::Array(Array::from_u32(&longer)));
            } else if let Some(list) = meta.bools(&key) {
                meta.set(key, Value::Array(Array::from_bool(&[list, vec![true]].concat())));
            }
        }
        let skipped = same(name, "predictors", &plain, &meta, all);
        assert_eq!(skipped, [format!("multi-token prediction ({count} tensors)")], "{name}");
    }
}

/// Counts as lists of one number, a vocabulary that the key says otherwise than the table, and descriptions that are no UTF-8
/// (which the reader makes readable).
#[test]
fn keys_that_say_it_otherwise() {
    for name in &names().collect::<Vec<_>>() {
        let plain = as_gguf(name);
        let mut meta = plain.meta().clone();
        let arch = meta.str("general.architecture").unwrap().to_string();
        let layers = meta.u64(&format!("{arch}.block_count")).unwrap() as usize;
        for key in ["feed_forward_length", "attention.head_count", "expert_used_count"] {
            let key = format!("{arch}.{key}");
            let Some(n) = meta.u64(&key) else { continue };
            meta.set(key, Value::Array(Array::from_u32(&vec![n as u32; layers])));
        }
        same(name, "lists", &plain, &meta, tensors(&plain));
        for n in [1, 1 << 30, 0] {
            meta.set(format!("{arch}.vocab_size"), Value::U32(n));
            same(name, "another vocab_size", &plain, &meta, tensors(&plain));
        }
        meta.set(format!("{arch}.context_length"), Value::U32(u32::MAX));
        same(name, "a large context", &plain, &meta, tensors(&plain));
    }
}

/// Experts of one layer in two quantised types.
#[test]
fn experts_of_different_types() {
    let plain = as_gguf("mixtral");
    let mut all = one_by_one(tensors(&plain));
    let numbers = |t: &Tensor| {
        let mut x = vec![0.0; t.rows() * t.cols()];
        x.chunks_mut(t.cols())
            .enumerate()
            .for_each(|(r, row)| moeray::quant::dequantize(t.dtype(), t.row(r), row).unwrap());
        x
    };
    let coded = |t: &Tensor, to: DType| {
        let bytes = moeray::quant::quantize_rows(to, t.rows(), t.cols(), &numbers(t), 1).unwrap();
        Tensor::new(to, t.shape().to_vec(), vec![moeray::file::Bytes::from_vec(bytes)]).unwrap()
    };
    let mut floats = all.clone();
    let each = all.iter_mut().zip(&mut floats).filter(|((n, _), _)| n.contains("ffn_down."));
    for (i, ((_, t), (_, f))) in each.enumerate() {
        *t = coded(t, if i % 3 == 0 { DType::Q8_0 } else { DType::Q4_0 });
        *f = Tensor::from_f32(t.shape().to_vec(), numbers(t)).unwrap();
    }
    let want = through_bytes(&Checkpoint::from_parts(plain.meta().clone(), floats).unwrap());
    same("mixtral", "two quantised types", &want, plain.meta(), all);
}
