//! The transformer of tutorials from nothing: names and keys are those of its folders (`model::families`, mini-Mixtral).

use super::{first_tensors, table_rows};
use crate::{
    error::{Error, Result},
    file::Checkpoint,
    tokenizer::{GgufVocab, Tokenizer},
    train::config::{ArchitectureConfig, NormName},
};
use serde_json::{Map, Value as Json, json};

/// The folder, in memory.
pub(super) fn model(c: &ArchitectureConfig, from: &Checkpoint, seed: u64) -> Result<Checkpoint> {
    let tokenizer = Tokenizer::from_checkpoint(from)?;
    let vocab = table_rows(c, tokenizer.vocab_size())?;
    let tensors = first_tensors(shapes(c, vocab), c, seed)?;
    Checkpoint::from_folder(config(c, vocab, tokenizer.eos()), tokenizer_files(from)?, tensors)
}

/// `config.json`.
fn config(c: &ArchitectureConfig, vocab: usize, eos: Option<u32>) -> Json {
    let mut out = Map::new();
    let mut set = |key: &str, value: Json| drop(out.insert(key.into(), value));
    set("model_type", json!(c.model_type));
    set("vocab_size", json!(vocab));
    set("dim", json!(c.hidden_size));
    set("n_layers", json!(c.num_hidden_layers));
    set("n_heads", json!(c.num_attention_heads));
    set("n_kv_heads", json!(c.num_key_value_heads));
    set("head_dim", json!(head_dim(c)));
    set("hidden_dim", json!(c.moe_intermediate_size));
    set("num_experts", json!(c.num_experts));
    set("top_k", json!(c.num_experts_per_tok));
    set("norm_eps", decimal(c.rms_norm_eps));
    set("rope_theta", decimal(c.rope_theta));
    set("max_seq_len", json!(c.max_position_embeddings));
    let parts = [
        ("norm", c.norm.map(|v| json!(v))),
        ("router", c.router.map(|v| json!(v))),
        ("router_hidden", c.router_hidden.map(|v| json!(v))),
        ("router_activation", c.router_activation.map(|v| json!(v))),
        ("expert_gated", c.expert_gated.map(|v| json!(v))),
        ("expert_activation", c.expert_activation.map(|v| json!(v))),
        ("num_shared_experts", c.num_shared_experts.map(|v| json!(v))),
        ("eos_token_id", eos.map(|v| json!(v))),
    ];
    for (key, value) in parts {
        if let Some(value) = value {
            set(key, value);
        }
    }
    Json::Object(out)
}

/// A single-precision number as the short decimal that it was written as.
fn decimal(x: f32) -> Json {
    x.to_string().parse::<f64>().map_or(Json::Null, |x| json!(x))
}

fn head_dim(c: &ArchitectureConfig) -> usize {
    c.head_dim.unwrap_or(c.hidden_size / c.num_attention_heads)
}

/// The tensors, `[out, in]`, in the order of the layers.
fn shapes(c: &ArchitectureConfig, vocab: usize) -> Vec<(String, Vec<usize>)> {
    let (h, d) = (c.hidden_size, head_dim(c));
    let (q, kv) = (c.num_attention_heads * d, c.num_key_value_heads * d);
    let mut all = Shapes(vec![]);
    let norm_bias = c.norm == Some(NormName::Layer);
    all.add("tok_embeddings", &[vocab, h], false);
    for layer in 0..c.num_hidden_layers {
        let at = |name: &str| format!("layers.{layer}.{name}");
        all.add(&at("attention_norm"), &[h], norm_bias);
        for (name, shape) in [("wq", [q, h]), ("wk", [kv, h]), ("wv", [kv, h]), ("wo", [h, q])] {
            all.add(&at(&format!("attention.{name}")), &shape, false);
        }
        all.add(&at("ffn_norm"), &[h], norm_bias);
        let router_bias = c.router_bias == Some(true);
        if let Some(n) = c.router_hidden {
            all.add(&at("feed_forward.gate_hidden"), &[n, h], router_bias);
        }
        all.add(&at("feed_forward.gate"), &[c.num_experts, c.router_hidden.unwrap_or(h)], router_bias);
        (0..c.num_experts).for_each(|e| all.unit(c, &at(&format!("feed_forward.experts.{e}"))));
        let shared = c.num_shared_experts.unwrap_or(0);
        (0..shared).for_each(|n| all.unit(c, &at(&format!("feed_forward.shared_experts.{n}"))));
    }
    all.add("norm", &[h], norm_bias);
    all.add("output", &[vocab, h], false);
    all.0
}

/// Names and shapes so far.
struct Shapes(Vec<(String, Vec<usize>)>);

impl Shapes {
    fn add(&mut self, stem: &str, shape: &[usize], bias: bool) {
        self.0.push((format!("{stem}.weight"), shape.to_vec()));
        if bias {
            self.0.push((format!("{stem}.bias"), vec![shape[0]]));
        }
    }

    /// An expert, routed or shared.
    fn unit(&mut self, c: &ArchitectureConfig, stem: &str) {
        let (h, i, bias) = (c.hidden_size, c.moe_intermediate_size, c.expert_bias == Some(true));
        self.add(&format!("{stem}.w1"), &[i, h], bias);
        self.add(&format!("{stem}.w2"), &[h, i], bias);
        if c.expert_gated != Some(false) {
            self.add(&format!("{stem}.w3"), &[i, h], bias);
        }
    }
}

/// `tokenizer.json` and `tokenizer_config.json`.
fn tokenizer_files(from: &Checkpoint) -> Result<[Json; 2]> {
    let (json, mut config) = match from.tokenizer_json() {
        Some(bytes) => {
            let json = serde_json::from_slice::<Json>(bytes);
            let json = json.map_err(|e| Error::Tokenizer(format!("tokenizer.json is no JSON: {e}")))?;
            (json, from.tokenizer_config().cloned().unwrap_or_else(|| json!({})))
        }
        None => GgufVocab::from_metadata(from.meta())?.to_json().map_err(|e| match e {
            Error::Unsupported(what) => Error::Unsupported(format!(
                "mini_mixtral is a folder with a tokenizer.json, and the tokenizer is {what}"
            )),
            other => other,
        })?,
    };
    if let (Some(template), Some(config)) = (from.chat_template(), config.as_object_mut()) {
        config.insert("chat_template".into(), json!(template));
    }
    Ok([json, config])
}
