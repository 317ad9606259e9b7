//! A model's shape: its sizes, its tensors, and metadata with a tokenizer. The graph is that of the architecture, with all that
//! belongs to it: GPT-OSS has its biases, sinks, windows and clamped units, Granite its multipliers.

use super::super::{
    metadata::Metadata,
    value::{Array, Value},
};
use crate::error::{Error, Result};

/// The sizes of a model. The numbers of the presets are those of the models' `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Name of the preset.
    pub name: &'static str,
    /// GGUF architecture whose graph it is given: `qwen3moe`, `qwen2moe`, `olmoe`, `gpt-oss`, `granitemoe`, or `llama` (with
    /// experts: Mixtral).
    pub arch: &'static str,
    /// Transformer layers.
    pub layers: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token uses.
    pub used: usize,
    /// Intermediate size of an expert.
    pub expert_width: usize,
    /// Intermediate size of the shared expert; 0 for none.
    pub shared_width: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Whether the output head is the embedding table.
    pub tied: bool,
    /// The context length that the metadata states, in tokens.
    pub context: usize,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Positions that every other layer sees, the first among them; 0: all layers see all.
    pub window: usize,
    /// YaRN's factor and the context before it.
    pub yarn: Option<(f32, usize)>,
    /// Factors on embeddings, on what a layer adds, and on attention's scores, and the divisor of logits.
    pub multipliers: Option<[f32; 4]>,
    /// The mix of weight types in which the model is published, or that is usual for it.
    pub weights: &'static str,
}

impl Shape {
    /// The same with another number of layers.
    pub fn with_layers(self, layers: usize) -> Shape {
        Shape { layers, ..self }
    }

    /// The tensors under their GGUF names, `[out, in]` or `[experts, out, in]`, in file order.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let h = self.hidden;
        let mut list =
            vec![("token_embd.weight".to_owned(), vec![self.vocab, h]), ("output_norm.weight".to_owned(), vec![h])];
        if !self.tied {
            list.push(("output.weight".to_owned(), vec![self.vocab, h]));
        }
        for layer in 0..self.layers {
            self.layer(&mut |name, shape: &[usize]| list.push((format!("blk.{layer}.{name}"), shape.to_vec())));
        }
        list
    }

    fn layer(&self, add: &mut dyn FnMut(&str, &[usize])) {
        let (h, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        add("attn_norm.weight", &[h]);
        for (name, out) in [("q", q), ("k", kv), ("v", kv)] {
            add(&format!("attn_{name}.weight"), &[out, h]);
            if matches!(self.arch, "qwen2moe" | "gpt-oss") {
                add(&format!("attn_{name}.bias"), &[out]);
            }
        }
        match self.arch {
            "qwen3moe" => {
                add("attn_q_norm.weight", &[self.head_dim]);
                add("attn_k_norm.weight", &[self.head_dim]);
            }
            "olmoe" => {
                add("attn_q_norm.weight", &[q]);
                add("attn_k_norm.weight", &[kv]);
            }
            _ => {}
        }
        add("attn_output.weight", &[h, q]);
        let (gpt_oss, experts, width) = (self.arch == "gpt-oss", self.experts, self.expert_width);
        if gpt_oss {
            add("attn_output.bias", &[h]);
            add("attn_sinks.weight", &[self.heads]);
        }
        add(if gpt_oss { "post_attention_norm.weight" } else { "ffn_norm.weight" }, &[h]);
        add("ffn_gate_inp.weight", &[experts, h]);
        if gpt_oss {
            add("ffn_gate_inp.bias", &[experts]);
        }
        for (name, out, into) in [("gate", width, h), ("up", width, h), ("down", h, width)] {
            add(&format!("ffn_{name}_exps.weight"), &[experts, out, into]);
            if gpt_oss {
                add(&format!("ffn_{name}_exps.bias"), &[experts, out]);
            }
        }
        if self.shared_width > 0 {
            add("ffn_gate_inp_shexp.weight", &[h]);
            add("ffn_gate_shexp.weight", &[self.shared_width, h]);
            add("ffn_up_shexp.weight", &[self.shared_width, h]);
            add("ffn_down_shexp.weight", &[h, self.shared_width]);
        }
    }

    /// GGUF metadata: hyperparameters, and a byte-level tokenizer of the vocabulary's size.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the vocabulary is too small for a tokenizer.
    pub fn metadata(&self) -> Result<Metadata> {
        let mut m = Metadata::new();
        m.set("general.architecture", Value::string(self.arch));
        m.set("general.name", Value::string(format!("{} (random weights)", self.name)));
        let mut number = |key: &str, v: usize| {
            let v = u32::try_from(v).map_err(|_| Error::Invalid(format!("{}: {key} is {v}", self.name)))?;
            m.set(format!("{}.{key}", self.arch), Value::U32(v));
            Ok::<_, Error>(())
        };
        number("block_count", self.layers)?;
        number("context_length", self.context)?;
        number("embedding_length", self.hidden)?;
        number("feed_forward_length", self.expert_width)?;
        number("attention.head_count", self.heads)?;
        number("attention.head_count_kv", self.kv_heads)?;
        number("attention.key_length", self.head_dim)?;
        number("attention.value_length", self.head_dim)?;
        number("rope.dimension_count", self.head_dim)?;
        number("expert_count", self.experts)?;
        number("expert_used_count", self.used)?;
        number("vocab_size", self.vocab)?;
        if !matches!(self.arch, "llama" | "granitemoe") {
            number("expert_feed_forward_length", self.expert_width)?;
        }
        if self.shared_width > 0 {
            number("expert_shared_feed_forward_length", self.shared_width)?;
        }
        if self.window > 0 {
            number("attention.sliding_window", self.window)?;
        }
        if let Some((_, original)) = self.yarn {
            number("rope.scaling.original_context_length", original)?;
        }
        let mut set = |key: &str, v: Value| m.set(format!("{}.{key}", self.arch), v);
        set("rope.freq_base", Value::F32(self.rope_base));
        set("attention.layer_norm_rms_epsilon", Value::F32(self.eps));
        if let Some((factor, _)) = self.yarn {
            set("rope.scaling.type", Value::string("yarn"));
            set("rope.scaling.factor", Value::F32(factor));
        }
        if let Some(factors) = self.multipliers {
            let keys = ["embedding_scale", "residual_scale", "attention.scale", "logit_scale"];
            keys.iter().zip(factors).for_each(|(key, f)| set(key, Value::F32(f)));
        }
        tokenizer(&mut m, self.vocab)?;
        Ok(m)
    }
}

/// The smallest byte-level BPE tokenizer that GGUF readers accept, filled up with unused tokens to `vocab`: the 256
/// bytes under GPT-2's printable stand-ins, one merge (`t` `h`), and an end-of-text token.
fn tokenizer(m: &mut Metadata, vocab: usize) -> Result<()> {
    const SPECIAL: usize = 257;
    if vocab <= SPECIAL {
        return Err(Error::Invalid(format!(
            "a vocabulary of {vocab} is too small for the bytes; at least {}",
            SPECIAL + 1
        )));
    }
    // GPT-2's byte alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order.
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100u32;
    let stand_in = |b: u8| {
        let code = if printable(b) { u32::from(b) } else { next };
        next += u32::from(!printable(b));
        char::from_u32(code).unwrap_or('?').to_string()
    };
    let mut tokens: Vec<String> = (0..=255u8).map(stand_in).collect();
    tokens.extend(["th".to_owned(), "<|endoftext|>".to_owned()]);
    tokens.extend((tokens.len()..vocab).map(|i| format!("<unused{i}>")));
    // 1 normal, 3 control, 5 unused (llama.cpp's token types).
    let types: Vec<i32> = (0..vocab)
        .map(|i| {
            if i < SPECIAL {
                1
            } else if i == SPECIAL {
                3
            } else {
                5
            }
        })
        .collect();
    m.set("tokenizer.ggml.model", Value::string("gpt2"));
    m.set("tokenizer.ggml.pre", Value::string("gpt-2"));
    m.set("tokenizer.ggml.tokens", Value::Array(Array::from_strings(&tokens)));
    m.set("tokenizer.ggml.token_type", Value::Array(Array::from_i32(&types)));
    m.set("tokenizer.ggml.merges", Value::Array(Array::from_strings(["t h"])));
    m.set("tokenizer.ggml.bos_token_id", Value::U32(SPECIAL as u32));
    m.set("tokenizer.ggml.eos_token_id", Value::U32(SPECIAL as u32));
    m.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    Ok(())
}
