//! What families say of absent keys in `config.json`, held against the config classes of transformers, key by key. The table
//! is made by `tests/data/config_facts.py`.

use moeray::model::{Absent, Architecture, REGISTRY};
use serde_json::Value as Json;
use std::collections::BTreeSet;

/// Keys whose absence follows from other keys: the class leaves them empty and fills them in, and so does the family here.
const DERIVED: &[&str] = &["layer_types", "moe_layers", "no_rope_layers", "mlp_only_layers", "moe_layer_end_index"];

/// Keys of the published configs of a family that its class does not have (their files are read as their own code reads them),
/// those that classes take from elsewhere than a field of theirs, and those that matter in training only or not to latent
/// attention.
const BESIDE: &[(&str, &[&str])] = &[
    ("mixtral", &["router_jitter_noise"]),
    ("llama4_text", &["router_jitter_noise"]),
    ("minimax_m2", &["router_jitter_noise"]),
    ("deepseek_v2", &["head_dim"]),
    ("deepseek_v3", &["num_key_value_heads"]),
    ("hunyuan_v1_moe", &["moe_intermediate_size", "num_shared_expert", "use_qk_norm", "use_cla"]),
    ("gemma4_text", &["global_head_dim", "num_global_key_value_heads", "per_layer_config", "rope_theta", "hidden_act"]),
    ("qwen3_next", &["full_attention_interval"]),
    ("qwen3_5_moe_text", &["full_attention_interval"]),
    // `norm_eps` is another name for it here.
    ("lfm2_moe", &["rms_norm_eps", "hidden_act", "tie_embedding"]),
];

fn table() -> Json {
    serde_json::from_str(include_str!("data/config_facts.json")).unwrap()
}

fn entry(name: &str) -> &'static Architecture {
    REGISTRY.iter().find(|a| a.hf == name).unwrap_or_else(|| panic!("{name} is not in the registry"))
}

/// Whether ours is what the class takes, or an error where the class would guess.
fn agrees(key: &str, ours: Absent, theirs: Option<&Json>) -> bool {
    let theirs = theirs.filter(|v| !v.is_null());
    match ours {
        Absent::Refused => true,
        Absent::Nothing => theirs.is_none() || DERIVED.contains(&key),
        Absent::Count(n) => theirs.and_then(Json::as_u64) == Some(n as u64),
        Absent::Number(x) => theirs.and_then(Json::as_f64) == Some(x),
        Absent::Flag(yes) => theirs.and_then(Json::as_bool) == Some(yes),
        Absent::Text(text) => theirs.and_then(Json::as_str) == Some(text),
    }
}

/// What is wrong with a family's facts, and how many keys were looked at.
fn check(a: &Architecture, theirs: &Json, read: &BTreeSet<&str>) -> (Vec<String>, usize) {
    let (mut wrong, mut checked) = (vec![], 0);
    let beside = BESIDE.iter().find(|(n, _)| *n == a.hf).map_or(&[][..], |(_, keys)| *keys);
    // Every key that some family's reader looks at: known here as the class knows it, or by neither.
    for key in read.iter().filter(|k| !beside.contains(*k)) {
        let (ours, class) = (a.config.absent(key), theirs["defaults"].get(*key));
        checked += usize::from(ours.is_some());
        match (ours, class) {
            (Some(ours), _) if agrees(key, ours, class) => {}
            (None, None) => {}
            (ours, class) => wrong.push(format!("{}: {key} is {ours:?} here and {class:?} in the class", a.hf)),
        }
    }
    for (other, key) in theirs["also"].as_object().unwrap() {
        let same = (other.as_str(), key.as_str().unwrap());
        if a.config.absent(same.1).is_some() && !a.config.also.contains(&same) {
            wrong.push(format!("{}: {other} means {key} in the class", a.hf));
        }
    }
    (wrong, checked)
}

/// All keys that families here name.
fn read() -> BTreeSet<&'static str> {
    let own = REGISTRY.iter().filter(|a| a.hf != "mini_mixtral").flat_map(|a| a.config.keys.iter().map(|(k, _)| *k));
    own.chain(["num_key_value_heads", "hidden_act", "rope_theta", "tie_word_embeddings", "rms_norm_eps"]).collect()
}

#[test]
fn families_take_what_their_classes_take() {
    let (table, read) = (table(), read());
    let mut wrong = vec![];
    for (name, theirs) in table["families"].as_object().unwrap() {
        let (found, checked) = check(entry(name), theirs, &read);
        println!("{name}: {checked} keys, {} further names", entry(name).config.also.len());
        wrong.extend(found);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The comparison sees a default, a key and a name that differ.
#[test]
fn alarm_other_facts_are_seen() {
    let (table, read) = (table(), read());
    for edit in [
        |f: &mut Json| f["defaults"]["num_local_experts"] = 9.into(),
        |f: &mut Json| f["defaults"]["norm_topk_prob"] = true.into(),
        |f: &mut Json| f["also"] = serde_json::json!({"n_experts": "num_local_experts"}),
    ] {
        let mut theirs = table["families"]["mixtral"].clone();
        assert!(check(entry("mixtral"), &theirs, &read).0.is_empty());
        edit(&mut theirs);
        assert_eq!(check(entry("mixtral"), &theirs, &read).0.len(), 1);
    }
}
