//! `config.json` of a model that has none: of the families whose classes in transformers say all that the graph is.
//!
//! Source: `configuration_*.py` of transformers.

use crate::{
    error::{Error, Result},
    file::Checkpoint,
    ir::{Activation, Renormalise, RopePairs},
    model::{
        architecture::Architecture,
        build::Definition,
        decoder::{AttentionSpec, Bias, LayerSpec, Mixer, Position, Span},
        families::REGISTRY,
        rope::Scaling,
    },
};
use serde_json::{Map, Value as Json, json};

/// Families whose `config.json` is made here, with their classes.
const CLASSES: &[(&str, &str)] = &[
    ("llama", "LlamaForCausalLM"),
    ("mixtral", "MixtralForCausalLM"),
    ("qwen2_moe", "Qwen2MoeForCausalLM"),
    ("qwen3_moe", "Qwen3MoeForCausalLM"),
    ("olmoe", "OlmoeForCausalLM"),
];

/// The family of a GGUF under its name in `config.json`.
pub(super) fn family(d: &Definition) -> Result<&'static Architecture> {
    let wanted = |a: &&&Architecture| {
        let experts = if d.arch == "llama" { d.decoder.moe().is_some() == (a.hf == "mixtral") } else { true };
        a.gguf.arch == d.arch && experts && CLASSES.iter().any(|(hf, _)| *hf == a.hf)
    };
    REGISTRY.iter().find(wanted).copied().ok_or_else(|| {
        let known: Vec<&str> = CLASSES.iter().map(|(hf, _)| *hf).collect();
        Error::Unsupported(format!(
            "a config.json for `{}`: it is made for {}; a model that begins from a Hugging Face folder keeps that folder's",
            d.arch,
            known.join(", ")
        ))
    })
}

/// What [`super::write_hugging_face`] does not compare of a layer.
pub(super) fn without_order(layer: &mut LayerSpec) {
    if let Mixer::Attention(a) = &mut layer.mixer {
        a.bias = Bias::IfPresent;
        if let Position::Rope(r) = &mut a.position {
            r.pairs = RopePairs::Halves;
            r.divisors = None;
        }
    }
}

/// The configuration of a model of one of the families above.
pub(super) fn config(d: &Definition, family: &Architecture, gguf: &Checkpoint) -> Result<Json> {
    let no = |what: &str| Error::Unsupported(format!("{} with {what} as safetensors", family.title));
    let class = CLASSES.iter().find(|(hf, _)| *hf == family.hf).map(|(_, class)| *class);
    let (Some(a), Some(rope), Some(class)) = (d.decoder.attention(), d.decoder.rope(), class) else {
        return Err(no("other layers than attention"));
    };
    let whole = |l: &LayerSpec| matches!(&l.mixer, Mixer::Attention(AttentionSpec { span: Span::Context, .. }));
    if !d.decoder.layers.iter().all(whole) {
        return Err(no("sliding windows"));
    }
    if rope.scaling != Scaling::None || rope.divisors.is_some() || rope.dims != rope.head_dim {
        return Err(no("scaled or partial rotation"));
    }
    let table = gguf.tensor("token_embd.weight").map_or(0, |t| t.rows());
    let tokens = |key: &str| gguf.meta().u64(&format!("tokenizer.ggml.{key}_token_id"));
    let mut out = Map::new();
    let mut set = |key: &str, value: Json| drop(out.insert(key.into(), value));
    set("architectures", json!([class]));
    set("model_type", json!(family.hf));
    set("dtype", json!("float32"));
    set("torch_dtype", json!("float32"));
    set("vocab_size", json!(table));
    set("hidden_size", json!(d.decoder.hidden));
    set("num_hidden_layers", json!(d.decoder.layers.len()));
    set("num_attention_heads", json!(a.heads));
    set("num_key_value_heads", json!(a.kv_heads));
    set("head_dim", json!(a.head_dim));
    set("hidden_act", json!("silu"));
    set("max_position_embeddings", json!(d.decoder.context));
    set("rms_norm_eps", number(d.decoder.norm.eps));
    set("rope_theta", number(rope.base));
    set("rope_parameters", json!({ "rope_type": "default", "rope_theta": number(rope.base) }));
    set("tie_word_embeddings", json!(gguf.tensor("output.weight").is_none()));
    set("attention_dropout", json!(0.0));
    set("use_cache", json!(true));
    for (key, id) in [("bos_token_id", tokens("bos")), ("eos_token_id", tokens("eos"))] {
        set(key, id.map_or(Json::Null, |id| json!(id)));
    }
    let bias = gguf.info("blk.0.attn_q.bias").is_some();
    if family.hf == "qwen2_moe" {
        set("qkv_bias", json!(bias))
    } else {
        set("attention_bias", json!(bias))
    }
    experts(d, family, &mut set)?;
    Ok(Json::Object(out))
}

/// Keys of the feed-forward part.
fn experts(d: &Definition, family: &Architecture, set: &mut dyn FnMut(&str, Json)) -> Result<()> {
    let no = |what: &str| Error::Unsupported(format!("{} with {what} as safetensors", family.title));
    let Some(moe) = d.decoder.moe() else {
        let width = d.decoder.dense().map_or(d.decoder.ffn, |g| g.width);
        set("intermediate_size", json!(width));
        return Ok(());
    };
    if moe.experts.act != Activation::Silu || !moe.experts.gated {
        return Err(no("other units than SwiGLU"));
    }
    let dense = d.decoder.dense_layers();
    let qwen = family.hf.starts_with("qwen");
    if !dense.is_empty() && !qwen {
        return Err(no("layers without experts"));
    }
    let width = if qwen { d.decoder.dense().map_or(d.decoder.ffn.max(1), |g| g.width) } else { moe.experts.width };
    set("intermediate_size", json!(width));
    set("num_experts_per_tok", json!(moe.router.used));
    set("output_router_logits", json!(false));
    let sum = moe.router.renormalise == Renormalise::Sum;
    if family.hf == "mixtral" {
        set("num_local_experts", json!(moe.router.experts));
        set("sliding_window", Json::Null);
        return Ok(());
    }
    set("num_experts", json!(moe.router.experts));
    set("norm_topk_prob", json!(sum));
    if !qwen {
        return Ok(());
    }
    set("moe_intermediate_size", json!(moe.experts.width));
    set("decoder_sparse_step", json!(1));
    set("mlp_only_layers", json!(dense));
    set("use_sliding_window", json!(false));
    if family.hf == "qwen2_moe" {
        // Hugging Face's class has a shared expert whatever its configuration says.
        let shared = moe.shared.ok_or_else(|| no("no shared expert"))?;
        set("shared_expert_intermediate_size", json!(shared.unit.width));
    }
    Ok(())
}

/// A single-precision number as the short decimal that it was written as.
fn number(x: f32) -> Json {
    x.to_string().parse::<f64>().map_or(Json::Null, |x| json!(x))
}
