//! A Hugging Face checkpoint as a GGUF one: llama.cpp's tensor names, metadata keys and row order.
//!
//! No matrix is copied: experts stay the parts that they are in the file, and where llama.cpp wants the rows of queries
//! and keys in another order the tensor's parts are its rows. The result can be run, quantised or written. Norms, biases
//! and routers are F32 in it, matrices are as they were.
//!
//! What llama.cpp's graph of an architecture would compute otherwise than the model does is refused by name: the file
//! would load there and give wrong numbers. These are let through, because this engine reads back what was meant:
//! - A sliding window is written (`<arch>.attention.sliding_window`) though llama.cpp ignores it in these architectures. Up
//!   to the window's length the results are the same.
//! - DeepSeek-V2's groups, which llama.cpp scores by two experts instead of one, and Phi-3.5-MoE, whose routing and norms
//!   it simplifies. llama.cpp's own converter writes the same files; a warning says what differs.

use super::{Decoder, Definition, Multipliers, Options, QkNorm, params::Params};
use crate::{
    error::{Error, Result},
    file::{Bytes, Checkpoint, Format, Metadata, Tensor, Value},
    ir::{Activation, NormKind, Op, Renormalise, Rope, RopePairs, Score},
    tokenizer::GgufVocab,
};

/// The checkpoint under GGUF names, with its tokenizer. One that is GGUF already is returned as it is.
///
/// A folder without `tokenizer.json` gives a file without a vocabulary (`no_vocab`), which can be fed token ids only.
///
/// # Errors
/// As [`super::build`] and [`GgufVocab::from_checkpoint`]; [`Error::Unsupported`] for what GGUF cannot say of this
/// architecture.
pub fn to_gguf(ckpt: &Checkpoint) -> Result<Checkpoint> {
    if ckpt.format() == Format::Gguf {
        return Ok(ckpt.clone());
    }
    let d = super::build(ckpt, &Options::default())?;
    let arch = gguf_arch(&d)?;
    let rope = rope_of(&d)?;
    let vocab = d.program.graph.weights.first().and_then(|w| w.shape.first().copied()).unwrap_or(d.decoder.vocab);
    let mut meta = Metadata::new();
    general(&mut meta, arch, ckpt);
    let params = Params::new(ckpt)?;
    let factors = match &d.decoder.full {
        Some(full) => super::export_gemma4::keys(&mut meta, arch, &params, &d.decoder, full)?,
        None => {
            hyperparameters(&mut meta, arch, &d.decoder, &rope)?;
            if let Some(m) = &d.decoder.latent {
                super::export_deepseek::latent_keys(&mut meta, arch, &params, m, &rope)?;
            }
            experts(&mut meta, arch, &d.decoder)?;
            super::export_recurrent::keys(&mut meta, arch, &d.decoder, rope.dims)?;
            rotation(&mut meta, arch, &params, &d.decoder, &rope)?
        }
    };
    meta.set(format!("{arch}.vocab_size"), u32_of("vocab_size", vocab)?);
    match ckpt.tokenizer_json() {
        Some(_) => GgufVocab::from_checkpoint(ckpt, vocab)?.write(&mut meta),
        None => {
            tracing::warn!("there is no tokenizer.json: the GGUF has no vocabulary");
            meta.set("tokenizer.ggml.model", Value::string("no_vocab"));
        }
    }
    let mut tensors = vec![];
    for (decl, tensor) in d.program.graph.weights.iter().zip(d.program.weights.iter()) {
        let turns = decl.name.contains(".attn_q.") || decl.name.contains(".attn_k.");
        let interleave = matches!(arch, "llama" | "granitemoe") && turns && rope.pairs == RopePairs::Halves;
        let tensor = if interleave { interleaved(tensor, rope.head_dim)? } else { tensor.clone() };
        // llama.cpp keeps the gate of a shared expert as a vector.
        let vector = decl.name.ends_with("ffn_gate_inp_shexp.weight");
        // Norms without weights have none in the file.
        if d.decoder.qk_norm == QkNorm::Unweighted && is_qk_norm(&decl.name) {
            continue;
        }
        tensors.push((decl.name.clone(), if vector { tensor.reshaped(vec![tensor.cols()])? } else { tensor }));
    }
    let mut tensors = super::export_recurrent::tensors(arch, &d.decoder, tensors)?;
    if let Some(m) = &d.decoder.latent {
        tensors = super::export_deepseek::latent_tensors(m, tensors)?;
    }
    if d.decoder.full.is_some() {
        tensors = super::export_gemma4::tensors(&d.decoder, &d.program, tensors)?;
    }
    for (name, f) in factors {
        tensors.push((name.into(), Tensor::from_f32(vec![f.len()], f)?));
    }
    Checkpoint::from_parts(meta, tensors)
}

fn is_qk_norm(name: &str) -> bool {
    name.contains(".attn_q_norm.") || name.contains(".attn_k_norm.")
}

pub(super) fn refused(arch: &str, what: impl std::fmt::Display) -> Error {
    Error::Unsupported(format!("{what}: a GGUF of the architecture `{arch}` cannot say that"))
}

/// The architecture's name in llama.cpp. The tutorials' mini-Mixtral is a `llama` with other names: its softmax over the
/// chosen logits equals the renormalised softmax over all. Mistral is a `llama` there too.
fn gguf_arch(d: &Definition) -> Result<&'static str> {
    let entry = super::REGISTRY.iter().find(|a| a.hf == Some(&d.arch));
    match entry.and_then(|a| a.gguf) {
        Some(name) => Ok(name),
        None if matches!(d.arch.as_str(), "mini_mixtral" | "mistral") => Ok("llama"),
        None => Err(Error::Unsupported(format!("GGUF has no name for the architecture {}", d.arch))),
    }
}

fn rope_of(d: &Definition) -> Result<Rope> {
    let rope =
        d.program.graph.nodes.iter().find_map(|n| {
            if let Op::Rope(r) = &n.op { Some(r.clone()) } else { None }.filter(|r| r.temperature.is_none())
        });
    rope.ok_or_else(|| Error::Unsupported("a model without rotary positions as GGUF".into()))
}

/// What the file is, and the folder's name as the model's.
fn general(meta: &mut Metadata, arch: &str, ckpt: &Checkpoint) {
    meta.set("general.architecture", Value::string(arch));
    meta.set("general.type", Value::string("model"));
    let folder = ckpt.files().first().and_then(|f| f.path.parent());
    if let Some(name) = folder.and_then(|p| p.file_name()).and_then(|n| n.to_str()) {
        // llama.cpp takes a name with this in it for a reason to tokenise otherwise.
        let harmless = !["phi-3", "phi3"].iter().any(|p| name.to_lowercase().contains(p));
        if harmless {
            meta.set("general.name", Value::string(name));
        }
    }
}

pub(super) fn u32_of(key: &str, n: usize) -> Result<Value> {
    u32::try_from(n).map(Value::U32).map_err(|_| Error::Model(format!("{key} is {n}")))
}

fn hyperparameters(meta: &mut Metadata, arch: &str, d: &Decoder, rope: &Rope) -> Result<()> {
    let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    if d.act != if arch == "gpt-oss" { clamped } else { Activation::Silu } {
        return Err(refused(arch, format!("the activation {:?}", d.act)));
    }
    if d.norm != NormKind::Rms && arch != "phimoe" {
        return Err(refused(arch, "layer norms"));
    }
    if !d.gated || d.router_hidden.is_some() || d.shared_experts > 1 {
        return Err(refused(arch, "experts without gate, routers of several layers or several shared experts"));
    }
    if arch == "llama" && rope.dims != d.head_dim {
        return Err(refused(arch, format!("rotation of {} of {} columns of a head", rope.dims, d.head_dim)));
    }
    let mut counts = vec![
        ("block_count", d.layers),
        ("context_length", d.context),
        ("embedding_length", d.hidden),
        ("feed_forward_length", d.ffn),
        ("attention.head_count", d.heads),
        ("attention.head_count_kv", d.kv_heads),
        ("attention.key_length", d.head_dim),
        ("attention.value_length", d.head_dim),
        ("rope.dimension_count", rope.dims),
    ];
    match d.windows.as_slice() {
        [] => {}
        // Chunks are llama.cpp's own: see `export_llama4`.
        _ if d.chunked => {}
        // A window that no text fills is none.
        all if all.iter().all(|w| w.is_none_or(|w| w >= d.context)) => {}
        [Some(first), rest @ ..] if rest.iter().all(|w| *w == Some(*first)) => {
            counts.push(("attention.sliding_window", *first));
        }
        // llama.cpp's pattern of this architecture: every other layer slides, the first does.
        [Some(first), ..] if arch == "gpt-oss" && (0..d.layers).all(|i| d.windows[i].is_some() == (i % 2 == 0)) => {
            counts.push(("attention.sliding_window", *first));
        }
        _ => return Err(refused(arch, "sliding windows on some of the layers")),
    }
    for (key, n) in counts {
        meta.set(format!("{arch}.{key}"), u32_of(key, n)?);
    }
    meta.set(format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(d.eps));
    let m = d.multipliers;
    if arch == "granitemoe" {
        let attention = m.attention.unwrap_or(1.0 / (d.head_dim as f32).sqrt());
        meta.set(format!("{arch}.embedding_scale"), Value::F32(m.embedding));
        meta.set(format!("{arch}.residual_scale"), Value::F32(m.residual));
        meta.set(format!("{arch}.attention.scale"), Value::F32(attention));
        meta.set(format!("{arch}.logit_scale"), Value::F32(1.0 / m.logits));
    } else if m != Multipliers::default() {
        return Err(refused(arch, format!("{m:?}")));
    }
    Ok(())
}

/// The keys of the experts, and refusals where llama.cpp's graph routes otherwise: `llama`, `qwen3moe` and their
/// successors renormalise the chosen experts' weights, `qwen2moe` and `olmoe` do not, and no key changes that. Layers
/// without experts are let through: llama.cpp misses their router and says so.
fn experts(meta: &mut Metadata, arch: &str, d: &Decoder) -> Result<()> {
    let Some(m) = &d.moe else { return Ok(()) };
    if arch == "lfm2moe" {
        return super::export_recurrent::lfm2_experts(meta, m);
    }
    if arch == "llama4" {
        return super::export_llama4::keys(meta, arch, d, m);
    }
    if super::export_deepseek::experts(meta, arch, d, m)? {
        return Ok(());
    }
    if !m.dense_layers.is_empty() {
        tracing::warn!(
            "layers {:?} have no experts: the file says so by their tensors, and llama.cpp does not load it",
            m.dense_layers
        );
    }
    let renormalised = match m.router.score {
        Score::Softmax if m.router.renormalise == Renormalise::Softmax => {
            return Err(refused(arch, "a second softmax over the chosen scores"));
        }
        Score::Softmax => m.router.renormalise != Renormalise::No,
        Score::SoftmaxOfSelected => true,
        other => return Err(refused(arch, format!("a router that scores by {other:?}"))),
    };
    if renormalised
        != matches!(arch, "llama" | "qwen3moe" | "qwen3next" | "qwen35moe" | "gpt-oss" | "granitemoe" | "hunyuan-moe")
    {
        let what =
            if renormalised { "weights of the chosen experts that sum to 1" } else { "router weights as they are" };
        return Err(refused(arch, format!("{what} (norm_topk_prob)")));
    }
    if m.router.scale != 1.0 {
        return Err(refused(arch, format!("router weights times {}", m.router.scale)));
    }
    let own_width = matches!(arch, "qwen2moe" | "qwen3moe" | "qwen3next" | "qwen35moe" | "gpt-oss" | "hunyuan-moe");
    let shares = matches!(arch, "qwen2moe" | "qwen3next" | "qwen35moe");
    if !own_width && m.width != d.ffn {
        return Err(refused(arch, format!("experts of width {} beside feed_forward_length {}", m.width, d.ffn)));
    }
    let mut counts = vec![("expert_count", m.router.experts), ("expert_used_count", m.router.used)];
    if own_width {
        counts.push(("expert_feed_forward_length", m.width));
    }
    match m.shared {
        Some(s) if shares && s.gated => counts.push(("expert_shared_feed_forward_length", s.width)),
        Some(s) if matches!(arch, "granitemoe" | "hunyuan-moe") && !s.gated => {
            counts.push(("expert_shared_feed_forward_length", s.width))
        }
        None if !shares => {}
        Some(_) => return Err(refused(arch, "a shared expert of this kind")),
        None => return Err(refused(arch, "layers without a shared expert")),
    }
    for (key, n) in counts {
        meta.set(format!("{arch}.{key}"), u32_of(key, n)?);
    }
    Ok(())
}

/// Divisors of frequencies, by the name of their tensor.
type Factors = Vec<(&'static str, Vec<f32>)>;

/// The rotation's keys. A linear scaling has its own; other scaled frequencies become divisors, as llama.cpp stores
/// Llama 3's (`rope_freqs.weight`), which it reads for `llama` only, and LongRoPE's two sets.
fn rotation(meta: &mut Metadata, arch: &str, p: &Params<'_>, d: &Decoder, rope: &Rope) -> Result<Factors> {
    let base = super::rope::base(p, rope.dims)?;
    meta.set(format!("{arch}.rope.freq_base"), Value::F32(base));
    let number = |key: &str| format!("{arch}.rope.scaling.{key}");
    if let Some(y) = super::rope::yarn(p)? {
        if y.truncate != (arch != "gpt-oss") {
            return Err(refused(arch, format!("YaRN whose blend is {}rounded", if y.truncate { "" } else { "not " })));
        }
        meta.set(number("type"), Value::string("yarn"));
        meta.set(number("factor"), Value::F32(y.factor));
        meta.set(number("original_context_length"), u32_of("original_max_position_embeddings", y.original as usize)?);
        meta.set(number("yarn_beta_fast"), Value::F32(y.beta_fast));
        meta.set(number("yarn_beta_slow"), Value::F32(y.beta_slow));
        let own = if y.factor > 1.0 { 0.1 * y.factor.ln() + 1.0 } else { 1.0 };
        // Latent attention has factors of its own.
        if d.latent.is_none() && y.attention_factor != own {
            return Err(refused(arch, format!("YaRN with an attention factor of {}", y.attention_factor)));
        }
        return Ok(vec![]);
    }
    let plain = |i: usize| (1.0 / f64::from(base).powf(2.0 * i as f64 / rope.dims as f64)) as f32;
    let divisors = |of: &[f32]| of.iter().enumerate().map(|(i, f)| plain(i) / f).collect::<Vec<f32>>();
    let factors = divisors(&rope.inv_freq);
    if let Some(long) = &rope.long {
        if long.scale != rope.scale {
            return Err(refused(arch, "LongRoPE with two factors on the rotated vectors"));
        }
        meta.set(number("attn_factor"), Value::F32(long.scale));
        meta.set(number("original_context_length"), u32_of("original_max_position_embeddings", long.beyond)?);
        let both = [("rope_factors_long.weight", divisors(&long.inv_freq)), ("rope_factors_short.weight", factors)];
        return Ok(both.into());
    }
    let Some(first) = factors.first().copied() else { return Ok(vec![]) };
    if factors.iter().all(|f| *f == 1.0) {
        return Ok(vec![]);
    }
    // One factor for all, up to the rounding of the quotients.
    if factors.iter().all(|f| (f / first - 1.0).abs() < 4.0 * f32::EPSILON) {
        meta.set(format!("{arch}.rope.scaling.type"), Value::string("linear"));
        meta.set(format!("{arch}.rope.scaling.factor"), Value::F32(first));
        return Ok(vec![]);
    }
    if !matches!(arch, "llama" | "llama4") {
        return Err(refused(arch, "rotary frequencies scaled by other than one factor"));
    }
    Ok(vec![("rope_freqs.weight", factors)])
}

/// Rows of each head of `d` columns from halves (i, i + d/2) to pairs (2i, 2i + 1): what llama.cpp's converter does for
/// `llama`. A vector (a bias) likewise.
fn interleaved(t: &Tensor, d: usize) -> Result<Tensor> {
    let vector = t.shape().len() == 1;
    let rows = if vector { t.cols() } else { t.rows() };
    let bytes = if vector { t.dtype().layout().bytes } else { t.row_bytes() };
    let from = |r: usize| (r / d) * d + (r % 2) * (d / 2) + (r % d) / 2;
    let piece = |r: usize| {
        let (part, within) = if vector { (0, r) } else { (r / t.rows_per_part(), r % t.rows_per_part()) };
        t.parts().get(part)?.slice(within * bytes..(within + 1) * bytes)
    };
    let pieces: Option<Vec<Bytes>> = (0..rows).map(|r| piece(from(r))).collect();
    let mut pieces = pieces.ok_or_else(|| Error::Model("rows of queries or keys are out of range".into()))?;
    if vector {
        pieces = vec![Bytes::from_vec(pieces.iter().flat_map(|p| p.iter().copied()).collect())];
    }
    Tensor::new(t.dtype(), t.shape().to_vec(), pieces)
}
