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

mod config_json;
mod hugging_face;
mod own;
mod tensors;

pub use hugging_face::{check_hugging_face, write_hugging_face};
pub use own::{has_tensor_of, trainable, with_weights, write_folder};

use crate::{
    error::{Error, Result},
    file::{Checkpoint, Format, Metadata, Value},
    model::{
        build::{build, find, quietly},
        common::{GROUP_ROUTER_COUNT, GROUP_ROUTER_USED_COUNT},
        gguf::{GgufForm, keys},
        options::Options,
        params::Params,
    },
    tokenizer::{GgufVocab, Tokenizer},
};

/// Says in a GGUF's metadata that there is a router over groups: so many of them, of which a token uses so many. The keys are this
/// program's own.
pub fn set_group_router(meta: &mut Metadata, arch: &str, [count, used]: [usize; 2]) {
    for (key, n) in [(GROUP_ROUTER_COUNT, count), (GROUP_ROUTER_USED_COUNT, used)] {
        meta.set(format!("{arch}.{key}"), Value::U32(n as u32));
    }
}

/// The checkpoint under GGUF names, with its tokenizer. One that is GGUF already is returned as it is.
///
/// A folder without `tokenizer.json` gives a file without a vocabulary (`no_vocab`), which can be fed token ids only.
///
/// # Errors
/// As [`build`] and [`GgufVocab::from_checkpoint`]; [`Error::Unsupported`] for what GGUF cannot say of this architecture, and for
/// a file that [`readable`] refuses.
pub fn to_gguf(ckpt: &Checkpoint) -> Result<Checkpoint> {
    if ckpt.format() == Format::Gguf {
        return Ok(ckpt.clone());
    }
    let d = build(ckpt, &Options::default())?;
    let form = find(&Params::new(ckpt)?)?.gguf;
    if d.decoder.rope().is_none() {
        return Err(Error::Unsupported("a model without rotary positions as GGUF".into()));
    }
    form.check(&d.decoder)?;
    let mut meta = Metadata::new();
    general(&mut meta, form, ckpt);
    for key in form.keys.iter().copied().flatten() {
        if let Some(value) = (key.value)(&d.decoder, form)? {
            meta.set(format!("{}.{}", form.arch, key.name), value);
        }
    }
    if let Some(g) = d.decoder.moe().and_then(|m| m.router.over_groups()) {
        set_group_router(&mut meta, form.arch, [g.count, g.used]);
    }
    vocabulary(&mut meta, form, ckpt, d.program.graph.weights.first().and_then(|w| w.shape.first().copied()))?;
    let gguf = Checkpoint::from_parts(meta, tensors::tensors(form, &d)?)?;
    readable(&gguf)?;
    Ok(gguf)
}

/// Refuses a GGUF that this engine would not read back: before it is written, not when somebody wants to run it.
///
/// # Errors
/// [`Error::Unsupported`] with what reading says.
pub fn readable(gguf: &Checkpoint) -> Result<()> {
    let back = |what: &str, e: Error| Error::Unsupported(format!("{what} that is written could not be read back: {e}"));
    quietly(gguf, &Options::default()).map_err(|e| back("the GGUF", e))?;
    if gguf.meta().get("tokenizer.ggml.tokens").is_some() {
        Tokenizer::from_gguf(gguf.meta()).map_err(|e| back("the GGUF's vocabulary", e))?;
    }
    Ok(())
}

/// What the file is, and the folder's name as the model's.
fn general(meta: &mut Metadata, form: &GgufForm, ckpt: &Checkpoint) {
    meta.set("general.architecture", Value::string(form.arch));
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

/// The tokenizer, and the number of tokens: the rows of the embedding table.
fn vocabulary(meta: &mut Metadata, form: &GgufForm, ckpt: &Checkpoint, rows: Option<usize>) -> Result<()> {
    let rows = rows.ok_or_else(|| Error::Model("there is no embedding table".into()))?;
    if let Some(n) = keys::count("vocab_size", rows)? {
        meta.set(format!("{}.vocab_size", form.arch), n);
    }
    match ckpt.tokenizer_json() {
        Some(_) => GgufVocab::from_checkpoint(ckpt, rows)?.write(meta),
        None => {
            tracing::warn!("there is no tokenizer.json: the GGUF has no vocabulary");
            meta.set("tokenizer.ggml.model", Value::string("no_vocab"));
        }
    }
    Ok(())
}
