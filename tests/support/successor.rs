//! A model whose next token is fixed by the current one, in a byte-level vocabulary: what it says is known beforehand.

use moeray::{
    file::{Array, Metadata, Sink, TensorSpec, Value, write_gguf},
    quant::DType,
};
use std::path::{Path, PathBuf};

/// The letter that a byte-level vocabulary writes for each byte (GPT-2's table).
pub fn letters() -> Vec<String> {
    let printable = |b: u32| (0x21..0x7f).contains(&b) || (0xa1..0xad).contains(&b) || b >= 0xae;
    let mut rest = 0x100..;
    let letter = |b: u32| if printable(b) { b } else { rest.next().unwrap() };
    (0..256).map(letter).map(|c| char::from_u32(c).unwrap().to_string()).collect()
}

/// Such a model, to be written as GGUF.
#[derive(Default)]
pub struct Successor<'a> {
    /// After the first text's token comes the second's.
    pub chain: &'a [(&'a str, &'a str)],
    /// Ordinary tokens beside the bytes.
    pub words: &'a [&'a str],
    /// Control tokens, of which the first ends a text.
    pub controls: &'a [&'a str],
    pub template: &'a str,
}

impl Successor<'_> {
    /// Writes it to `name` in `dir`. All projections are zero and the embedding is one-hot, so that the output matrix alone
    /// decides; after a token that the chain does not name comes byte 0.
    pub fn write(&self, dir: &Path, name: &str) -> PathBuf {
        let letters = letters();
        let spelled = |text: &str| text.bytes().map(|b| letters[b as usize].as_str()).collect::<String>();
        let mut tokens = letters.clone();
        tokens.extend(self.words.iter().map(|w| spelled(w)));
        tokens.extend(self.controls.iter().map(|c| (*c).to_owned()));
        let id = |text: &str| {
            let text = if self.controls.contains(&text) { text.to_owned() } else { spelled(text) };
            tokens.iter().position(|t| *t == text).unwrap_or_else(|| panic!("no token {text}"))
        };
        let (size, width, inner) = (tokens.len(), tokens.len().next_multiple_of(32), 32);
        let ones: Vec<(usize, usize)> = (0..size).map(|i| (i, i)).collect();
        let next: Vec<(usize, usize)> = self.chain.iter().map(|(a, b)| (id(b), id(a))).collect();
        let square = |pairs: &[(usize, usize)]| {
            let mut m = vec![0f32; size * width];
            pairs.iter().for_each(|(row, col)| m[row * width + col] = 1.0);
            m
        };
        let mut tensors = vec![
            ("token_embd.weight", vec![size, width], square(&ones)),
            ("output.weight", vec![size, width], square(&next)),
        ];
        for norm in ["output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"] {
            tensors.push((norm, vec![width], vec![1.0; width]));
        }
        for narrow in ["attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"] {
            let name: &str = ["blk.0.", narrow, ".weight"].concat().leak();
            tensors.push((name, vec![inner, width], vec![0.0; inner * width]));
        }
        for wide in ["blk.0.attn_output.weight", "blk.0.ffn_down.weight"] {
            tensors.push((wide, vec![width, inner], vec![0.0; inner * width]));
        }
        let path = dir.join(name);
        let spec = |(name, shape, _): &(&str, Vec<usize>, Vec<f32>)| TensorSpec {
            name: (*name).into(),
            dtype: DType::F32,
            shape: shape.clone(),
        };
        let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
        let mut fill = |i: usize, sink: &mut Sink<'_>| sink.write(bytemuck::cast_slice(&tensors[i].2));
        write_gguf(&path, &self.metadata(&tokens, width, inner), &specs, &mut fill).unwrap();
        path
    }

    fn metadata(&self, tokens: &[String], width: usize, inner: usize) -> Metadata {
        let mut meta = Metadata::new();
        let number = |n: usize| Value::U32(n as u32);
        let first = tokens.len() - self.controls.len();
        let mut kinds = vec![1; first];
        kinds.resize(tokens.len(), 3);
        meta.set("general.architecture", Value::string("llama"));
        for (key, n) in [
            ("block_count", 1),
            ("context_length", 4096),
            ("embedding_length", width),
            ("feed_forward_length", inner),
            ("attention.head_count", 1),
            ("attention.head_count_kv", 1),
            ("attention.key_length", inner),
            ("attention.value_length", inner),
            ("rope.dimension_count", inner),
        ] {
            meta.set(format!("llama.{key}"), number(n));
        }
        meta.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-6));
        meta.set("tokenizer.ggml.model", Value::string("gpt2"));
        meta.set("tokenizer.ggml.pre", Value::string("gpt-2"));
        meta.set("tokenizer.ggml.tokens", Value::Array(Array::from_strings(tokens)));
        meta.set("tokenizer.ggml.token_type", Value::Array(Array::from_i32(&kinds)));
        meta.set("tokenizer.ggml.merges", Value::Array(Array::from_strings(Vec::<String>::new())));
        meta.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
        meta.set("tokenizer.ggml.eos_token_id", number(first));
        meta.set("tokenizer.chat_template", Value::string(self.template));
        meta
    }
}
