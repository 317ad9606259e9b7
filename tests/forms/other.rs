//! Folders whose files say things twice, or as Python writes them; metadata whose strings are none.

use super::{build, logits_of, same_as_golden};
use crate::{
    export::{bytes_of, exported, tensors as of_gguf},
    files::build::Gguf,
    goldens::folder,
    variants::{Data, opened, tensors},
};
use moeray::{
    file::{self, Bytes},
    model::{self, REGISTRY},
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value as Json, json};

/// `NaN` and `Infinity` in files beside the weights: of no matter in keys that nobody reads, an error with its name in others.
#[test]
fn numbers_that_python_writes() {
    let (dir, _) = opened("gpt_oss", &tensors("gpt_oss"), |_| {});
    let path = dir.path().join("config.json");
    let config: Json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let with = |key: &str, word: &str| {
        let mut edited = config.clone();
        edited[key] = json!("WORD");
        std::fs::write(&path, edited.to_string().replace("\"WORD\"", word)).unwrap();
        file::open(dir.path()).and_then(|c| build(&c))
    };
    let (_dir, plain) = opened("gpt_oss", &tensors("gpt_oss"), |_| {});
    let want = logits_of(&build(&plain).unwrap(), "gpt_oss");
    for name in ["generation_config.json", "tokenizer_config.json"] {
        std::fs::write(dir.path().join(name), "{\"temperature\": NaN, \"model_max_length\": Infinity}").unwrap();
    }
    for word in ["NaN", "Infinity", "-Infinity", "[1, -Infinity, {\"a\": NaN}]"] {
        assert!(logits_of(&with("unused", word).unwrap(), "gpt_oss") == want, "{word}: other logits");
        for key in ["swiglu_limit", "rms_norm_eps", "hidden_size"] {
            let e = with(key, word).unwrap_err().to_string();
            assert!(e.contains(key), "{word}: {e}");
        }
    }
}

/// Two shards that both have the embedding, one of them another: the index says which counts.
#[test]
fn a_tensor_in_two_shards() {
    let (dir, _) = opened("mixtral", &tensors("mixtral"), |_| {});
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let table = "model.embed_tokens.weight";
    let (mut first, mut second, mut map) = (Data::new(), Data::new(), json!({}));
    for (i, (name, t)) in tensors("mixtral").into_iter().enumerate() {
        if name == table {
            let (dtype, shape, bytes) = t.clone();
            first.insert(name.clone(), (dtype, shape, vec![0; bytes.len()]));
        }
        let (shard, file) = if i % 2 == 0 || name == table { (&mut second, 2) } else { (&mut first, 1) };
        map[&name] = json!(format!("model-{file:05}-of-00002.safetensors"));
        shard.insert(name, t);
    }
    for (i, shard) in [first, second].iter().enumerate() {
        let views = shard.iter().map(|(n, (d, s, b))| (n.as_str(), TensorView::new(*d, s.clone(), b).unwrap()));
        let path = dir.path().join(format!("model-{:05}-of-00002.safetensors", i + 1));
        safetensors::serialize_to_file(views, None, &path).unwrap();
    }
    std::fs::write(dir.path().join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    let got = logits_of(&build(&file::open(dir.path()).unwrap()).unwrap(), "mixtral");
    let (_dir, plain) = opened("mixtral", &tensors("mixtral"), |_| {});
    assert!(got == logits_of(&build(&plain).unwrap(), "mixtral"), "other logits");

    // Without a word of it in the index, two of one name are an error.
    map.as_object_mut().unwrap().remove(table);
    std::fs::write(dir.path().join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    let e = file::open(dir.path()).unwrap_err().to_string();
    assert!(e.contains(table) && e.contains("twice"), "{e}");
}

/// Sizes of 1 in Hugging Face's tensors.
#[test]
fn sizes_of_one_in_folders() {
    for name in ["mixtral", "qwen3_next", "lfm2_moe", "gpt_oss", "deepseek_v2", "ernie4_5_moe"] {
        let mut data = tensors(name);
        data.values_mut().for_each(|(_, shape, _)| shape.insert(shape.len() - 1, 1));
        same_as_golden(name, "more sizes", &data);
        let mut data = tensors(name);
        data.values_mut().for_each(|(_, shape, _)| shape.retain(|n| *n != 1));
        same_as_golden(name, "fewer sizes", &data);
    }
}

/// The golden of Mixtral as a file whose metadata begin with these bytes of an entry more.
fn with_entry(entry: impl FnOnce(&mut Gguf)) -> moeray::Result<file::Checkpoint> {
    let plain = exported("mixtral");
    let mut bytes = bytes_of(plain.meta(), &of_gguf(&plain));
    let mut more = Gguf::default();
    entry(&mut more);
    // The data begin at a multiple of the alignment: a string fills up what is missing.
    let fill = 32 - (more.bytes.len() + 8 + "general.filler".len() + 4 + 8) % 32;
    more.text("general.filler", &"x".repeat(fill));
    assert_eq!(more.bytes.len() % 32, 0);
    let count = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + 2;
    bytes[16..24].copy_from_slice(&count.to_le_bytes());
    bytes.splice(24..24, more.bytes);
    file::open_bytes(Bytes::from_vec(bytes))
}

/// Strings that only describe may be anything; zeros behind a string are no part of it.
#[test]
fn strings_that_are_none() {
    let want = logits_of(&build(&exported("mixtral")).unwrap(), "mixtral");
    let ckpt = with_entry(|g| {
        g.string(b"general.description").u32(8).string(b"caf\xe9");
    });
    let ckpt = ckpt.unwrap();
    assert_eq!(ckpt.meta().str("general.description"), Some("caf\u{fffd}"));
    assert!(logits_of(&build(&ckpt).unwrap(), "mixtral") == want, "other logits");
    let ckpt = with_entry(|g| {
        g.array("general.tags", 8, 3).string(b"\xff").string(b"plain").string(b"padded\0\0");
    });
    let tags: Vec<String> = ckpt.unwrap().meta().strings("general.tags").unwrap().map(String::from).collect();
    assert_eq!(tags, ["\u{fffd}", "plain", "padded"]);
    let ckpt = with_entry(|g| {
        g.string(b"general.author\0").u32(8).string(b"A\0\0\0");
    });
    assert_eq!(ckpt.unwrap().meta().str("general.author"), Some("A"));
    // What becomes tokens must be text.
    let e = with_entry(|g| {
        g.string(b"tokenizer.chat_template").u32(8).string(b"\xe9");
    });
    let e = e.unwrap_err().to_string();
    assert!(e.contains("`tokenizer.chat_template`") && e.contains("UTF-8"), "{e}");
}

/// Another number of tokens than the table's rows is an error that names the key: transformers refuses it, too.
#[test]
fn a_vocabulary_of_another_size() {
    for n in [1, 319, 321, 1 << 20] {
        let (_dir, ckpt) = opened("mixtral", &tensors("mixtral"), |c| c["vocab_size"] = json!(n));
        let e = build(&ckpt).unwrap_err().to_string();
        assert!(e.contains("vocab_size") && e.contains(&n.to_string()), "{e}");
    }
}

/// FP8 matrices of all experts in one tensor, with their scales.
#[test]
fn fp8_experts_together() {
    let mut data = tensors("qwen3_moe");
    let (mut packed, mut floats) = (Data::new(), Data::new());
    let codes: Vec<u8> = (0..=255u8).filter(|b| moeray::quant::f8_e4m3(*b).is_finite()).collect();
    let [e, width, hidden] = [16, 48, 64];
    data.retain(|n, _| !n.contains(".experts."));
    let layers = data.keys().filter(|n| n.ends_with("mlp.gate.weight")).cloned().collect::<Vec<_>>();
    for (l, gate) in layers.iter().enumerate() {
        let prefix = gate.strip_suffix("gate.weight").unwrap();
        for (leaf, rows, cols) in [("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)] {
            let raw: Vec<u8> = (0..e * rows * cols).map(|i| codes[(i * 7 + l * 3 + i / 64) % codes.len()]).collect();
            let (down, across) = (rows.div_ceil(16), cols.div_ceil(32));
            let scales: Vec<f32> = (0..e * down * across).map(|i| 1e-4 * (1 + i % 5) as f32).collect();
            let scale = |i: usize| scales[(i / (rows * cols) * down + i / cols % rows / 16) * across + i % cols / 32];
            let plain =
                raw.iter().enumerate().map(|(i, b)| half::bf16::from_f32(moeray::quant::f8_e4m3(*b) * scale(i)));
            let name = format!("{prefix}experts.{leaf}");
            floats.insert(
                name.clone(),
                (Dtype::BF16, vec![e, rows, cols], plain.flat_map(half::bf16::to_le_bytes).collect()),
            );
            packed.insert(name.clone(), (Dtype::F8_E4M3, vec![e, rows, cols], raw));
            let bytes = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
            packed.insert(format!("{name}_scale_inv"), (Dtype::F32, vec![e, down, across], bytes));
        }
    }
    let of = |more: Data, config: fn(&mut Json)| {
        let (_dir, ckpt) = opened("qwen3_moe", &data.clone().into_iter().chain(more).collect(), config);
        logits_of(&build(&ckpt).unwrap_or_else(|e| panic!("{e}")), "qwen3_moe")
    };
    let fp8 = |c: &mut Json| c["quantization_config"] = json!({"quant_method": "fp8", "weight_block_size": [16, 32]});
    assert!(of(packed, fp8) == of(floats, |_| {}), "other logits");
}

/// What is written can be read: every golden, in every type that it can be written in.
#[test]
fn what_is_exported_can_be_read() {
    for entry in std::fs::read_dir(folder("")).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("config.json").is_file() {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        // What GGUF cannot say is refused before anything is written.
        let Ok(gguf) = model::to_gguf(&file::open(&path).unwrap()) else { continue };
        let bytes = bytes_of(gguf.meta(), &of_gguf(&gguf));
        let back = file::open_bytes(Bytes::from_vec(bytes)).unwrap();
        assert_eq!(back.meta(), gguf.meta(), "{name}");
        build(&back).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// The families, how many keys of their configs and of their GGUF are known, how many of them have further names, and under how
/// many names their tensors are found: `cargo test -- the_table_of_families --nocapture` prints it.
#[test]
fn the_table_of_families() {
    println!("| family | keys of config.json | further names | keys of GGUF with a default | names of tensors |");
    println!("|---|---|---|---|---|");
    for a in REGISTRY {
        let keys = a.config.known().count();
        let names = a.names.known();
        println!("| {} | {keys} | {} | {} | {names} |", a.hf, a.config.also.len(), a.gguf.defaults().count());
        assert!(keys >= 16 && names > 20, "{}: {keys} keys, {names} names", a.hf);
    }
}
