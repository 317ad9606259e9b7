//! Valid files: everything that is in them is found again.

use super::{build, data, scratch};
use moeray::{
    file::{self, Bytes, Format, Value},
    quant::DType,
};
use std::path::Path;

#[test]
fn folder_of_safetensors() {
    let c = file::open(&data("goldens/qwen3_moe")).unwrap();
    assert_eq!(c.format(), Format::SafeTensors);
    assert_eq!(c.config().unwrap()["model_type"], "qwen3_moe");
    let embed = c.require("model.embed_tokens.weight").unwrap();
    assert_eq!(embed.shape(), [320, 64]);
    assert_eq!(embed.dtype(), DType::BF16);
    let bytes: u64 = c.infos().iter().map(|t| t.bytes).sum();
    assert!(c.file_bytes() > bytes && c.file_bytes() - bytes < 64 << 10);
    let missing = c.require("no.such").unwrap_err().to_string();
    assert!(missing.contains("no.such"), "{missing}");
    // The same folder by its config, and the one file beside its config.
    for name in ["config.json", "model.safetensors"] {
        let again = file::open(&data("goldens/qwen3_moe").join(name)).unwrap();
        assert_eq!(again.infos().len(), c.infos().len());
        assert_eq!(again.require("model.embed_tokens.weight").unwrap().row(319), embed.row(319));
    }
}

#[test]
fn gguf_with_one_of_everything() {
    let c = file::open_bytes(Bytes::from_vec(build::sample().bytes)).unwrap();
    let m = c.meta();
    assert_eq!(c.format(), Format::Gguf);
    assert_eq!(m.len(), 17);
    assert_eq!(m.iter().next().unwrap().0, "general.architecture");
    assert_eq!(m.str("general.name"), Some("é ☃"));
    assert_eq!(m.get("k.i8"), Some(&Value::I8(-128)));
    assert_eq!(
        (m.u64("k.u8"), m.u64("k.u16"), m.u64("k.u32"), m.u64("k.u64")),
        (Some(200), Some(513), Some(7), Some(u64::MAX))
    );
    assert_eq!((m.i64("k.i16"), m.i64("k.i32"), m.i64("k.i64")), (Some(-1), Some(-7), Some(i64::MIN)));
    assert_eq!((m.u64("k.i32"), m.u64("k.f32"), m.u64("none")), (None, None, None));
    assert_eq!((m.f32("k.f32"), m.f32("k.u32"), m.bool("k.bool")), (Some(0.5), Some(7.0), Some(true)));
    assert_eq!(m.get("k.f64"), Some(&Value::F64(1e300)));
    assert_eq!(m.u64s("a.u32"), Some(vec![1, 2, 3]));
    let strings = m.strings("a.strings").unwrap();
    assert_eq!(strings.len(), 3);
    assert_eq!(strings.collect::<Vec<_>>(), ["one", "", "drei ☃"]);
    let nested = m.array("a.nested").unwrap().arrays().unwrap();
    assert_eq!(nested[0].iter().collect::<Vec<_>>(), [Value::Bool(false), Value::Bool(true)]);
    assert_eq!(nested[1].str(0), Some("deep"));
    assert!(m.array("a.empty").unwrap().is_empty());
    assert_eq!(m.get("a.nested").unwrap().to_string(), "[[2 × bool], [1 × string]]");

    // Innermost dimension first in the file, outermost first here.
    let two = c.require("two").unwrap();
    assert_eq!((two.dtype(), two.shape(), two.rows(), two.byte_len()), (DType::Q8_0, &[3, 2, 32][..], 6, 6 * 34));
    assert_eq!(two.row(1)[0], 32 + 34);
    assert_eq!(c.require("one").unwrap().row(0)[..4], [0, 1, 2, 3]);
    assert_eq!(c.tensors().map(|t| t.0).collect::<Vec<_>>(), ["one", "two", "three"]);
    let info = c.info("three").unwrap();
    assert_eq!((info.bytes, info.type_name.as_ref(), info.offset % 32), (144, "Q4_K", 0));
}

#[test]
fn version_2_and_other_alignments() {
    let mut g = build::Gguf::new(2, 2, 1);
    g.entry("general.alignment", 4, &128u32.to_le_bytes()).tensor("a", &[1], 0, 0).tensor("b", &[1], 0, 128);
    let mut payload = vec![0; 132];
    payload[128..].copy_from_slice(&2.5f32.to_le_bytes());
    let c = file::open_bytes(Bytes::from_vec(g.data(128, &payload))).unwrap();
    assert_eq!(c.require("b").unwrap().row(0), 2.5f32.to_le_bytes());
}

#[test]
fn gguf_without_tensors_is_a_vocabulary() {
    let mut g = build::Gguf::new(3, 0, 1);
    let c = file::open_bytes(Bytes::from_vec(g.text("general.architecture", "x").bytes.clone())).unwrap();
    assert_eq!(c.tensors().count(), 0);
}

/// A type that cannot be computed with does not stop the file from being inspected, but is refused when asked for.
#[test]
fn unsupported_types_are_listed_and_refused_by_name() {
    let mut g = build::Gguf::new(3, 3, 0);
    g.tensor("old", &[256], 41, 0).tensor("future", &[256], 999, 96).tensor("fine", &[4], 0, 96);
    let c = file::open_bytes(Bytes::from_vec(g.data(32, &[0; 112]))).unwrap();
    assert_eq!(c.infos().len(), 3);
    assert_eq!(c.tensors().count(), 1);
    let refusal = c.require("old").unwrap_err().to_string();
    assert!(refusal.contains("`old` has type Q1_0") && refusal.contains("Q4_K"), "{refusal}");
    let refusal = c.require("future").unwrap_err().to_string();
    assert!(refusal.contains("type 999"), "{refusal}");
}

fn shard(no: u16, count: u16, total: i32, tensor: &str) -> Vec<u8> {
    let mut g = build::Gguf::new(3, 1, 4);
    g.entry("split.no", 2, &no.to_le_bytes()).entry("split.count", 2, &count.to_le_bytes());
    g.entry("split.tensors.count", 5, &total.to_le_bytes()).text("which", &format!("shard {no}"));
    g.tensor(tensor, &[1], 0, 0).data(32, &f32::from(no).to_le_bytes())
}

#[test]
fn split_gguf_opens_from_any_shard() {
    let dir = scratch();
    let path = |i: usize| dir.path().join(format!("m-{i:05}-of-00003.gguf"));
    for i in 0..3u16 {
        std::fs::write(path(i as usize + 1), shard(i, 3, 3, &format!("t{i}"))).unwrap();
    }
    for i in 1..=3 {
        let c = file::open(&path(i)).unwrap();
        assert_eq!(c.meta().str("which"), Some("shard 0"));
        assert_eq!(c.files().len(), 3);
        assert_eq!(c.tensors().map(|t| t.0).collect::<Vec<_>>(), ["t0", "t1", "t2"]);
        assert_eq!(c.require("t2").unwrap().row(0), 2f32.to_le_bytes());
    }
    let error = |path: &Path| file::open(path).unwrap_err().to_string();
    // A shard of another number of shards, a wrong total, a name that comes twice, a missing shard, another name.
    std::fs::write(path(2), shard(2, 3, 3, "t1")).unwrap();
    assert!(error(&path(1)).contains("split.no is 2"), "{}", error(&path(1)));
    std::fs::write(path(2), shard(1, 3, 3, "t0")).unwrap();
    assert!(error(&path(1)).contains("`t0` comes twice"), "{}", error(&path(1)));
    std::fs::write(path(2), shard(1, 3, 3, "t1")).unwrap();
    std::fs::write(path(1), shard(0, 3, 4, "t0")).unwrap();
    assert!(error(&path(1)).contains("hold 3 tensors instead of 4"), "{}", error(&path(1)));
    std::fs::remove_file(path(2)).unwrap();
    assert!(error(&path(3)).contains("m-00002-of-00003.gguf is missing"), "{}", error(&path(3)));
    let renamed = dir.path().join("renamed.gguf");
    std::fs::rename(path(1), &renamed).unwrap();
    assert!(error(&renamed).contains("NAME-00001-of-00003.gguf"), "{}", error(&renamed));
    let alone = file::open_bytes(Bytes::from_vec(shard(0, 2, 2, "t"))).unwrap_err().to_string();
    assert!(alone.contains("one shard of a split GGUF"), "{alone}");
}

#[test]
fn sharded_safetensors_and_what_lies_beside() {
    let dir = scratch();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let tensors = |names: &[&str]| {
        let view = |_| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &[0u8; 8]).unwrap();
        safetensors::serialize(names.iter().map(|n| (*n, view(n))), None).unwrap()
    };
    std::fs::write(dir.path().join("model-1.safetensors"), tensors(&["a", "b"])).unwrap();
    std::fs::write(dir.path().join("model-2.safetensors"), tensors(&["c"])).unwrap();
    put("config.json", "{\"model_type\": \"x\"}");
    put("generation_config.json", "{\"eos_token_id\": 3}");
    put("tokenizer.json", "{}");
    put(
        "tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"}, {\"name\": \"default\", \"template\": \"D\"}]}",
    );
    let index = "model.safetensors.index.json";
    put(
        index,
        "{\"metadata\": {\"x\": 1}, \"weight_map\": {\"a\": \"model-1.safetensors\", \"b\": \"model-1.safetensors\", \"c\": \"model-2.safetensors\"}}",
    );
    let c = file::open(dir.path()).unwrap();
    assert_eq!(c.tensors().map(|t| t.0).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!((c.chat_template(), c.tokenizer_json()), (Some("D"), Some(&b"{}"[..])));
    assert_eq!(c.generation_config().unwrap()["eos_token_id"], 3);
    put("chat_template.jinja", "J");
    assert_eq!(file::open(dir.path()).unwrap().chat_template(), Some("J"));

    let error = || file::open(dir.path()).unwrap_err().to_string();
    put(index, "{\"weight_map\": {\"a\": \"model-2.safetensors\"}}");
    assert!(error().contains("promises tensor `a` in model-2.safetensors"), "{}", error());
    for reach in
        ["../model-1.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "c:\\\\x.safetensors", "a.bin"]
    {
        put(index, &format!("{{\"weight_map\": {{\"a\": \"{reach}\"}}}}"));
        assert!(error().contains("a plain name"), "{}", error());
    }
    put(index, "{\"weight_map\": {\"a\": \"model-3.safetensors\"}}");
    assert!(error().contains("model-3.safetensors, which is not in the folder"), "{}", error());
    put(index, "{\"weight_map\": 3}");
    assert!(error().contains("no index of shards"), "{}", error());
    std::fs::remove_file(dir.path().join(index)).unwrap();
    assert!(error().contains("2 .safetensors files"), "{}", error());
    put("config.json", "{");
    std::fs::remove_file(dir.path().join("model-2.safetensors")).unwrap();
    assert!(error().contains("config.json: is no valid JSON"), "{}", error());
}
