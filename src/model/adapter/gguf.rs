//! Adapters as llama.cpp has them.

use super::scaled;
use crate::{
    error::{Error, Result},
    file::Checkpoint,
    graph::LowRank,
    model::build::Definition,
};

/// The pairs of a file, with `scale` and its own factor alpha / r in B (llama.cpp's `llama_adapter_lora_weight::get_scale`).
pub(super) fn read(ckpt: &Checkpoint, d: &Definition, scale: f32) -> Result<Vec<LowRank>> {
    let meta = ckpt.meta();
    if meta.str("general.type") != Some("adapter") {
        return Err(Error::Model("is a model, and no adapter of one".into()));
    }
    match meta.str("adapter.type") {
        Some("lora") => {}
        other => return Err(Error::Unsupported(format!("an adapter of the type {}", other.unwrap_or("(none)")))),
    }
    if meta.get("adapter.alora.invocation_tokens").is_some() {
        return Err(Error::Unsupported(
            "an adapter that begins at certain tokens (adapter.alora.invocation_tokens)".into(),
        ));
    }
    match meta.str("general.architecture") {
        Some(arch) if arch != d.arch => {
            return Err(Error::Model(format!("the adapter is of a `{arch}` model, and this is a `{}`", d.arch)));
        }
        _ => {}
    }
    let alpha = meta.f32("adapter.lora.alpha").unwrap_or(0.0);
    let mut pairs = vec![];
    for (name, a) in ckpt.tensors() {
        let Some(weight) = name.strip_suffix(".lora_a") else {
            if name.ends_with(".lora_b") && ckpt.tensor(&name.replace(".lora_b", ".lora_a")).is_some() {
                continue;
            }
            return Err(Error::Unsupported(format!("tensor `{name}`, which is no pair of low rank")));
        };
        let b = ckpt.require(&format!("{weight}.lora_b"))?;
        let own = if alpha == 0.0 { 1.0 } else { alpha / b.cols() as f32 };
        pairs.push(LowRank { weight: weight.into(), a: scaled(a, 1.0)?, b: scaled(b, scale * own)?, scale: 1.0 });
    }
    if let Some(bad) = ckpt.infos().iter().find(|i| i.content.is_err()) {
        return Err(Error::Unsupported(format!("tensor `{}` is of a type that is not known here", bad.name)));
    }
    Ok(pairs)
}
