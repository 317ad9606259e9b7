//! What a GGUF means where a key is absent: what llama.cpp's reader takes then, held key by key against what is read here.

use super::build;
use crate::export::{exported, tensors};
use moeray::file::{Checkpoint, Metadata, Value};

/// What llama.cpp takes for an absent key.
#[derive(Clone, Copy, Debug)]
enum Taken {
    /// It refuses the file.
    Refused,
    Count(u32),
    Number(f32),
    Flag(bool),
    /// The value of another key.
    As(&'static str),
}
use Taken::{As, Count, Flag, Number, Refused};

/// All architectures: `llama_model::load_hparams` and `llama_hparams` (llama-model.cpp, llama-hparams.h).
const COMMON: &[(&str, Taken)] = &[
    ("block_count", Refused),
    ("context_length", Refused),
    ("embedding_length", Refused),
    ("attention.head_count", Refused),
    ("attention.head_count_kv", As("attention.head_count")),
    ("attention.layer_norm_rms_epsilon", Refused),
    ("rope.freq_base", Number(10_000.0)),
    ("rope.scaling.attn_factor", Number(1.0)),
    ("rope.scaling.yarn_beta_fast", Number(32.0)),
    ("rope.scaling.yarn_beta_slow", Number(1.0)),
    ("rope.scaling.original_context_length", As("context_length")),
    ("nextn_predict_layers", Count(0)),
    ("vocab_size", Count(1)),
];

/// The architectures, by a golden: `load_arch_hparams` of `src/models/*.cpp`, as of the middle of 2026.
const OWN: &[(&str, &[(&str, Taken)])] = &[
    ("llama", &[]),
    ("mixtral", &[]),
    ("qwen2_moe", &[]),
    ("qwen3_moe", &[]),
    ("olmoe", &[]),
    ("phimoe", &[]),
    ("qwen3_next", &[("full_attention_interval", Count(4)), ("ssm.conv_kernel", Refused), ("ssm.state_size", Refused)]),
    (
        "qwen3_5_moe",
        &[("full_attention_interval", Count(4)), ("ssm.group_count", Refused), ("ssm.inner_size", Refused)],
    ),
    ("gpt_oss", &[("expert_feed_forward_length", Refused), ("attention.sliding_window", Refused)]),
    ("granitemoe", GRANITE),
    ("granitemoeshared", GRANITE),
    ("deepseek_v2", DEEPSEEK),
    ("deepseek_v3", DEEPSEEK),
    ("dots1", DEEPSEEK),
    ("glm4_moe", DEEPSEEK),
    (
        "bailing_moe_v2",
        &[
            ("leading_dense_block_count", Count(0)),
            ("expert_feed_forward_length", Refused),
            ("expert_shared_count", Refused),
            ("expert_weights_scale", Number(1.0)),
            ("expert_weights_norm", Flag(false)),
            ("expert_gating_func", Refused),
        ],
    ),
    ("ernie4_5_moe", &[("leading_dense_block_count", Count(0)), ("expert_shared_count", Count(0))]),
    ("hunyuan_moe", &[("expert_feed_forward_length", Refused), ("expert_shared_feed_forward_length", Refused)]),
    ("llama4_interleaved", &[("expert_feed_forward_length", Refused), ("interleave_moe_layer_step", Refused)]),
    ("minimax_m2", &[]),
    (
        "gemma4",
        &[
            ("attention.sliding_window", Refused),
            ("attention.sliding_window_pattern", Refused),
            ("attention.key_length_swa", Refused),
            ("attention.shared_kv_layers", Count(0)),
            ("rope.freq_base_swa", Number(10_000.0)),
            ("final_logit_softcapping", Number(30.0)),
        ],
    ),
];

/// `granite.cpp`: a factor of 0 or none on the dot products is 1/sqrt(head_dim).
const GRANITE: &[(&str, Taken)] = &[
    ("logit_scale", Refused),
    ("embedding_scale", Number(1.0)),
    ("residual_scale", Number(1.0)),
    ("attention.scale", Number(0.0)),
    ("expert_shared_feed_forward_length", Count(0)),
];

/// `deepseek2.cpp`, `dots1.cpp`, `glm4-moe.cpp`.
const DEEPSEEK: &[(&str, Taken)] = &[
    ("expert_feed_forward_length", Refused),
    ("expert_shared_count", Refused),
    ("expert_weights_scale", Number(1.0)),
    ("expert_weights_norm", Flag(false)),
];

/// What is read of a file with these metadata: a decoder, in words, or an error.
fn read(plain: &Checkpoint, meta: Metadata) -> Result<String, String> {
    let ckpt = Checkpoint::from_parts(meta, tensors(plain)).unwrap();
    build(&ckpt).map(|d| format!("{:?}", d.decoder)).map_err(|e| e.to_string())
}

/// What is wrong where `key` is absent.
fn check(plain: &Checkpoint, arch: &str, key: &str, taken: Taken) -> Option<String> {
    let name = format!("{arch}.{key}");
    let kept = plain.meta().iter().filter(|(k, _)| **k != name).map(|(k, v)| (k.to_string(), v.clone()));
    let without = Metadata::from_entries(kept.collect()).unwrap();
    let mut with = without.clone();
    let value = match taken {
        Refused => None,
        Count(n) => Some(Value::U32(n)),
        Number(x) => Some(Value::F32(x)),
        Flag(yes) => Some(Value::Bool(yes)),
        As(other) => plain.meta().get(&format!("{arch}.{other}")).cloned(),
    };
    if let Some(value) = value {
        with.set(name, value);
    }
    match (read(plain, without), taken, read(plain, with)) {
        (Err(e), _, _) if e.contains(key) => None,
        (got, Refused, _) => Some(format!("{arch}: without {key} there is {got:?}")),
        (Err(_), _, Err(_)) => None,
        (got, _, want) if got == want => None,
        (got, _, want) => Some(format!("{arch}: without {key} ({taken:?}) there is {got:?}, not {want:?}")),
    }
}

#[test]
fn absent_keys_mean_what_they_mean_to_llama_cpp() {
    let (mut wrong, mut checked) = (vec![], 0);
    for (name, own) in OWN {
        let plain = exported(name);
        let arch = plain.meta().str("general.architecture").unwrap().to_string();
        for (key, taken) in COMMON.iter().chain(*own) {
            checked += 1;
            wrong.extend(check(&plain, &arch, key, *taken));
        }
    }
    println!("{checked} keys of {} files", OWN.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Another default, and a key that is not refused, are seen.
#[test]
fn alarm_other_defaults_are_seen() {
    let plain = exported("granitemoe");
    assert!(check(&plain, "granitemoe", "embedding_scale", Number(2.0)).is_some());
    assert!(check(&plain, "granitemoe", "residual_scale", Refused).is_some());
    assert!(check(&plain, "granitemoe", "residual_scale", Number(1.0)).is_none());
}
