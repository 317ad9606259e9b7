//! A Hugging Face checkpoint as a GGUF one: llama.cpp's tensor names, metadata keys and row order.
//!
//! No bytes are copied: experts stay the parts that they are in the file, and where llama.cpp wants the rows of queries and
//! keys in another order the tensor's parts are its rows. The result can be run, quantised or written.

use super::{Decoder, Definition, Options, QkNorm, params::Params};
use crate::{
    error::{Error, Result},
    file::{Checkpoint, Format, Metadata, Tensor, Value},
    ir::{Op, Rope, RopePairs, Score},
    tokenizer::Tokenizer,
};

/// The checkpoint under GGUF names. One that is GGUF already is returned as it is.
///
/// # Errors
/// As [`super::build`]; [`Error::Unsupported`] for what GGUF cannot say of this architecture.
pub fn to_gguf(ckpt: &Checkpoint) -> Result<Checkpoint> {
    if ckpt.format() == Format::Gguf {
        return Ok(ckpt.clone());
    }
    let d = super::build(ckpt, &Options::default())?;
    let arch = gguf_arch(&d)?;
    let rope = rope_of(&d)?;
    let mut meta = Metadata::new();
    hyperparameters(&mut meta, arch, &d.decoder, &rope)?;
    let factors = rotation(&mut meta, arch, &Params::new(ckpt)?, &rope)?;
    if let Ok(t) = Tokenizer::from_checkpoint(ckpt) {
        t.write_gguf(&mut meta);
    }
    let mut tensors = vec![];
    for (decl, tensor) in d.program.graph.weights.iter().zip(d.program.weights.iter()) {
        let turns = decl.name.contains(".attn_q.") || decl.name.contains(".attn_k.");
        let interleave = arch == "llama" && turns && rope.pairs == RopePairs::Halves;
        let tensor = if interleave { interleaved(tensor, &rope)? } else { tensor.clone() };
        // llama.cpp keeps the gate of a shared expert as a vector.
        let vector = decl.name.ends_with("ffn_gate_inp_shexp.weight");
        tensors.push((decl.name.clone(), if vector { tensor.reshaped(vec![tensor.cols()])? } else { tensor }));
    }
    if let Some(f) = factors {
        tensors.push(("rope_freqs.weight".into(), Tensor::from_f32(vec![f.len()], f)?));
    }
    Checkpoint::from_parts(meta, tensors)
}

/// The architecture's name in llama.cpp. The tutorials' mini-Mixtral is a `llama` with other names: its softmax over the
/// chosen logits equals the renormalised softmax over all.
fn gguf_arch(d: &Definition) -> Result<&'static str> {
    let entry = super::REGISTRY.iter().find(|a| a.hf == Some(&d.arch));
    match entry.and_then(|a| a.gguf) {
        Some(name) => Ok(name),
        None if matches!(d.arch.as_str(), "mini_mixtral" | "mistral") => Ok("llama"),
        None => Err(Error::Unsupported(format!("GGUF has no name for the architecture {}", d.arch))),
    }
}

fn rope_of(d: &Definition) -> Result<Rope> {
    let rope = d.program.graph.nodes.iter().find_map(|n| if let Op::Rope(r) = &n.op { Some(r.clone()) } else { None });
    rope.ok_or_else(|| Error::Unsupported("a model without rotary positions as GGUF".into()))
}

fn hyperparameters(meta: &mut Metadata, arch: &str, d: &Decoder, rope: &Rope) -> Result<()> {
    meta.set("general.architecture", Value::string(arch));
    meta.set("general.type", Value::string("model"));
    let count = |meta: &mut Metadata, key: &str, n: usize| meta.set(format!("{arch}.{key}"), Value::U32(n as u32));
    count(meta, "block_count", d.layers);
    count(meta, "context_length", d.context);
    count(meta, "embedding_length", d.hidden);
    count(meta, "feed_forward_length", d.ffn);
    count(meta, "attention.head_count", d.heads);
    count(meta, "attention.head_count_kv", d.kv_heads);
    count(meta, "attention.key_length", d.head_dim);
    count(meta, "attention.value_length", d.head_dim);
    count(meta, "rope.dimension_count", rope.dims);
    count(meta, "vocab_size", d.vocab);
    meta.set(format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(d.eps));
    match d.windows.as_slice() {
        [] => {}
        [Some(first), rest @ ..] if rest.iter().all(|w| *w == Some(*first)) => {
            count(meta, "attention.sliding_window", *first);
        }
        _ => return Err(Error::Unsupported(format!("sliding windows on some layers of {arch} as GGUF"))),
    }
    let Some(m) = &d.moe else { return Ok(()) };
    let implied = Score::Softmax == m.router.score || arch == "llama";
    if !m.dense_layers.is_empty() || !implied || (arch == "qwen3moe" && !m.router.renormalise) {
        return Err(Error::Unsupported(format!("dense layers among experts, or this router, in {arch} as GGUF")));
    }
    count(meta, "expert_count", m.router.experts);
    count(meta, "expert_used_count", m.router.used);
    count(meta, "expert_feed_forward_length", m.width);
    if let Some(s) = m.shared {
        count(meta, "expert_shared_feed_forward_length", s.width);
    }
    // What the architecture does not imply is said.
    if m.router.renormalise && d.qk_norm != QkNorm::PerHead && arch != "llama" {
        meta.set(format!("{arch}.expert_weights_norm"), Value::Bool(true));
    }
    Ok(())
}

/// The rotation's keys; scaled frequencies become divisors, as llama.cpp stores Llama 3's.
fn rotation(meta: &mut Metadata, arch: &str, p: &Params<'_>, rope: &Rope) -> Result<Option<Vec<f32>>> {
    let base = match p.opt_f32("", "rope_parameters.rope_theta")? {
        Some(b) => b,
        None => p.opt_f32("", "rope_theta")?.unwrap_or(10_000.0),
    };
    meta.set(format!("{arch}.rope.freq_base"), Value::F32(base));
    let plain = |i: usize| (1.0 / f64::from(base).powf(2.0 * i as f64 / rope.dims as f64)) as f32;
    let factors: Vec<f32> = rope.inv_freq.iter().enumerate().map(|(i, f)| plain(i) / f).collect();
    if factors.iter().all(|f| *f == 1.0) {
        return Ok(None);
    }
    if arch != "llama" {
        return Err(Error::Unsupported(format!("scaled rotary frequencies in {arch} as GGUF")));
    }
    Ok(Some(factors))
}

/// Rows of each head from halves (i, i + D/2) to pairs (2i, 2i + 1): what llama.cpp's converter does for `llama`.
fn interleaved(t: &Tensor, rope: &Rope) -> Result<Tensor> {
    let d = rope.head_dim;
    if rope.dims != d {
        return Err(Error::Unsupported("partial rotation by halves as GGUF `llama`".into()));
    }
    let one_row = t.shape().len() > 1;
    let rows = if one_row { t.rows() } else { t.cols() };
    let bytes = if one_row { t.row_bytes() } else { t.dtype().layout().bytes };
    let from = |r: usize| (r / d) * d + (r % 2) * (d / 2) + (r % d) / 2;
    let piece = |r: usize| {
        let (part, within) = if one_row { (r / t.rows_per_part(), r % t.rows_per_part()) } else { (0, r) };
        t.parts()[part].slice(within * bytes..(within + 1) * bytes)
    };
    let parts: Option<Vec<_>> = (0..rows).map(|r| piece(from(r))).collect();
    let parts = parts.ok_or_else(|| Error::Model("rows of queries or keys are out of range".into()))?;
    if one_row {
        return Tensor::new(t.dtype(), t.shape().to_vec(), parts);
    }
    let joined: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
    Tensor::new(t.dtype(), t.shape().to_vec(), vec![crate::file::Bytes::from_vec(joined)])
}
