//! Models from nothing: a shape, a tokenizer, and first weights.

mod mini_mixtral;

use super::{
    config::ArchitectureConfig,
    data::{normal, short},
};
use crate::{
    error::{Error, Result},
    file::{Checkpoint, Metadata, Tensor, synth::Shape},
    memory,
    model::MINI_MIXTRAL,
    tokenizer::{GgufVocab, Tokenizer},
};

/// Names of `config.json` and of GGUF.
const ARCHITECTURES: &[(&str, &str)] =
    &[("qwen2_moe", "qwen2moe"), ("qwen3_moe", "qwen3moe"), ("olmoe", "olmoe"), ("mixtral", "llama")];

/// A model of this shape, with the tokenizer of `from`: matrices are normal numbers of the standard deviation
/// `initializer_range`, norms ones, biases zeros. The seed decides. It is under GGUF names, but for the transformer of tutorials, which
/// is a folder as its files are.
///
/// # Errors
/// [`Error::Invalid`] for an architecture that is not known here, or a vocabulary that the tokenizer does not fit.
pub fn from_scratch(config: &ArchitectureConfig, from: &Checkpoint, seed: u64) -> Result<Checkpoint> {
    config.check()?;
    if config.is_mini_mixtral() {
        return mini_mixtral::model(config, from, seed);
    }
    let (vocabulary, tokens) = vocabulary(from)?;
    let vocab = table_rows(config, tokens)?;
    let shape = shape(config, vocab)?;
    let mut meta = shape.metadata()?;
    let own: Vec<String> = meta.iter().map(|(k, _)| k.to_owned()).filter(|k| k.starts_with("tokenizer.")).collect();
    let entries = meta.iter().filter(|(k, _)| !own.iter().any(|o| o == k)).map(|(k, v)| (k.to_owned(), v.clone()));
    meta = Metadata::from_entries(entries.collect()).map_err(|k| Error::Invalid(format!("{k} comes twice")))?;
    meta.set("general.name", crate::file::Value::string("trained with moeray"));
    for (key, value) in vocabulary.iter() {
        meta.set(key, value.clone());
    }
    Checkpoint::from_parts(meta, first_tensors(shape.tensors(), config, seed)?)
}

/// Rows of the embedding table.
fn table_rows(config: &ArchitectureConfig, tokens: usize) -> Result<usize> {
    let rows = config.vocab_size.unwrap_or(tokens);
    if rows < tokens {
        return Err(Error::Invalid(format!(
            "architecture: vocab_size is {rows}, and the tokenizer has {tokens} tokens"
        )));
    }
    // What is too large is said, where an allocation would end the program.
    let bytes = 4 * config.weights(rows);
    match memory::total() {
        Some(all) if bytes > u128::from(all) => Err(Error::Invalid(format!(
            "architecture: {} weights take {:.1} GiB, and this machine has {:.1}",
            config.weights(rows),
            bytes as f64 / GIB,
            all as f64 / GIB
        ))),
        Some(_) | None => Ok(rows),
    }
}

/// Bytes of a GiB.
const GIB: f64 = (1u64 << 30) as f64;

/// Tensors of these names and shapes as they are before the first step.
fn first_tensors(
    shapes: Vec<(String, Vec<usize>)>,
    config: &ArchitectureConfig,
    seed: u64,
) -> Result<Vec<(String, Tensor)>> {
    let tensor = |(stream, (name, dims)): (usize, (String, Vec<usize>))| {
        let n: usize = dims.iter().product();
        let value = |i: usize| match () {
            () if name.ends_with(".bias") => 0.0,
            () if name.contains("norm") => 1.0,
            () => normal(short(seed), 16 + stream as u32, i as u32) * config.initializer_range,
        };
        let numbers = (0..n).map(value).collect();
        Ok((name, Tensor::from_f32(dims, numbers)?))
    };
    shapes.into_iter().enumerate().map(tensor).collect()
}

/// The tokenizer's keys, and how many tokens it has.
fn vocabulary(from: &Checkpoint) -> Result<(Metadata, usize)> {
    let tokens = Tokenizer::from_checkpoint(from)?.vocab_size();
    let mut meta = Metadata::new();
    match from.tokenizer_json() {
        Some(_) => GgufVocab::from_checkpoint(from, tokens)?.write(&mut meta),
        None => {
            from.meta().iter().filter(|(k, _)| k.starts_with("tokenizer.")).for_each(|(k, v)| meta.set(k, v.clone()))
        }
    }
    Ok((meta, tokens))
}

fn shape(c: &ArchitectureConfig, vocab: usize) -> Result<Shape> {
    let arch = ARCHITECTURES.iter().find(|(hf, _)| *hf == c.model_type).map(|(_, gguf)| *gguf);
    let arch = arch.ok_or_else(|| {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|(hf, _)| *hf).chain([MINI_MIXTRAL]).collect();
        Error::Invalid(format!("architecture: model_type {:?} is none of {}", c.model_type, known.join(", ")))
    })?;
    if c.shared_expert_intermediate_size > 0 && arch != "qwen2moe" {
        let what = format!("architecture: {} has no shared expert; qwen2_moe has one", c.model_type);
        return Err(Error::Invalid(what));
    }
    Ok(Shape {
        name: "scratch",
        arch,
        layers: c.num_hidden_layers,
        hidden: c.hidden_size,
        heads: c.num_attention_heads,
        kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim.unwrap_or(c.hidden_size / c.num_attention_heads),
        experts: c.num_experts,
        used: c.num_experts_per_tok,
        expert_width: c.moe_intermediate_size,
        shared_width: c.shared_expert_intermediate_size,
        vocab,
        tied: c.tie_word_embeddings,
        context: c.max_position_embeddings,
        rope_base: c.rope_theta,
        eps: c.rms_norm_eps,
        window: 0,
        yarn: None,
        multipliers: None,
        weights: "F32",
    })
}
