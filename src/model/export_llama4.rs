//! Llama 4 as a GGUF: llama.cpp has constants where Hugging Face has keys, so a model with other numbers is refused.

use super::{
    Decoder, QkNorm,
    decoder::Moe,
    export::{refused, u32_of},
    llama4::{CHUNK, EXPERTS_WITHOUT_NORMS, TEMPERATURE, UNROTATED_EVERY},
};
use crate::{
    error::Result,
    file::{Metadata, Value},
    ir::{Renormalise, Score},
};

/// The keys of the experts.
///
/// # Errors
/// [`crate::Error::Unsupported`] for what llama.cpp would compute otherwise.
pub(super) fn keys(meta: &mut Metadata, arch: &str, d: &Decoder, m: &Moe) -> Result<()> {
    let unrotated: Vec<usize> = (0..d.layers).filter(|i| (i + 1) % UNROTATED_EVERY == 0).collect();
    if d.unrotated != unrotated {
        return Err(refused(arch, format!("layers {:?} without rotation", d.unrotated)));
    }
    // Chunks and steps that no text fills are none.
    let chunk = |i: usize| d.window(i).filter(|w| *w < d.context);
    let usual = |i: usize| Some(CHUNK).filter(|w| !unrotated.contains(&i) && *w < d.context);
    if !(0..d.layers).all(|i| chunk(i) == usual(i)) {
        return Err(refused(arch, format!("attention in chunks of {:?}", d.windows)));
    }
    if !unrotated.is_empty() && d.temperature != Some(TEMPERATURE) {
        return Err(refused(arch, format!("a temperature of {:?}", d.temperature)));
    }
    if (d.qk_norm == QkNorm::Unweighted) != (m.router.experts != EXPERTS_WITHOUT_NORMS) {
        return Err(refused(
            arch,
            format!("{:?} norms of queries and keys with {} experts", d.qk_norm, m.router.experts),
        ));
    }
    if m.router.score != Score::Sigmoid || m.router.renormalise != Renormalise::No || m.router.scale != 1.0 {
        return Err(refused(arch, m.router.variant()));
    }
    let moe = |i: usize| !m.dense_layers.contains(&i);
    let step = (1..=d.layers).find(|s| (0..d.layers).all(|i| moe(i) == (i + 1).is_multiple_of(*s)));
    let step = step.ok_or_else(|| refused(arch, format!("dense layers {:?}", m.dense_layers)))?;
    let counts = [
        ("expert_count", m.router.experts),
        ("expert_used_count", m.router.used),
        ("expert_feed_forward_length", m.width),
        ("interleave_moe_layer_step", step),
    ];
    for (key, n) in counts {
        meta.set(format!("{arch}.{key}"), u32_of(key, n)?);
    }
    meta.set(format!("{arch}.expert_gating_func"), Value::U32(2));
    Ok(())
}
