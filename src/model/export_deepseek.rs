//! The keys and tensors of families whose router has keys of its own in GGUF: DeepSeek's shape of experts, with latent
//! attention and without, and Phi-3.5-MoE.
//!
//! Sources: llama.cpp's `conversion/deepseek.py`, `glm.py`, `ernie.py`, `dots1.py`, `minimax.py` and `phi.py`, and what its
//! `src/models` read of them.

use super::{
    Decoder, Latent, Params,
    decoder::Moe,
    export::{refused, u32_of},
    export_recurrent::joined,
    rope,
};
use crate::{
    error::{Error, Result},
    file::{Metadata, Tensor, Value},
    ir::{GroupScore, Renormalise, Rope, RopePairs, Score},
};

/// What llama.cpp's graph of an architecture does by itself, and what a key says.
struct Graph {
    /// The score that its graph takes for granted; `None`: a key says it.
    score: Option<Score>,
    /// Whether weights are renormalised without a key that says so.
    renormalises: bool,
    /// Whether a factor on the weights and groups have keys.
    keys: bool,
    /// Whether there must be a selection bias; `None`: there may be.
    biased: Option<bool>,
    /// Whether layers without shared experts are possible, and with.
    shared: [bool; 2],
}

fn graph(arch: &str) -> Option<Graph> {
    let by_keys = Graph { score: None, renormalises: false, keys: true, biased: Some(true), shared: [false, true] };
    match arch {
        "deepseek2" => Some(Graph { biased: None, ..by_keys }),
        "glm4moe" | "dots1" => Some(by_keys),
        "ernie4_5-moe" => {
            let score = Some(Score::Softmax);
            Some(Graph { score, renormalises: true, keys: false, biased: None, shared: [true, true] })
        }
        "minimax-m2" => Some(Graph { renormalises: true, keys: false, shared: [true, false], ..by_keys }),
        _ => None,
    }
}

/// Sets the keys of the experts; `false` where the architecture is none of these families.
///
/// # Errors
/// [`Error::Unsupported`] for what GGUF cannot say of the architecture.
pub(super) fn experts(meta: &mut Metadata, arch: &str, d: &Decoder, m: &Moe) -> Result<bool> {
    if arch == "phimoe" {
        return phi_experts(meta, d, m).map(|()| true);
    }
    let Some(g) = graph(arch) else { return Ok(false) };
    let r = &m.router;
    let function = match r.score {
        Score::Softmax => 1,
        Score::Sigmoid => 2,
        other => return Err(refused(arch, format!("a router that scores by {other:?}"))),
    };
    if g.score.is_some_and(|s| s != r.score) || g.biased.is_some_and(|b| b != m.selection_bias) {
        return Err(refused(arch, format!("a router of the kind `{}`", r.variant())));
    }
    // A bound below every possible sum is none: k of E softmax scores, the largest, sum to k / E or more.
    let divides = match r.renormalise {
        Renormalise::No => false,
        Renormalise::Sum => true,
        Renormalise::SumPlus(e) if e <= 1e-20 => true,
        Renormalise::SumAtLeast(e) if r.score == Score::Softmax && e * r.experts as f32 <= r.used as f32 => true,
        other => return Err(refused(arch, format!("weights of experts divided by {other:?}"))),
    };
    if g.renormalises && !divides {
        return Err(refused(arch, "router weights as they are (norm_topk_prob)"));
    }
    if !g.keys && (r.scale != 1.0 || r.groups.is_some()) {
        return Err(refused(arch, format!("router weights times {}, or groups of experts", r.scale)));
    }
    let mut counts = vec![
        ("expert_count", r.experts),
        ("expert_used_count", r.used),
        ("expert_feed_forward_length", m.width),
        ("expert_gating_func", function),
    ];
    counts.extend(shared(arch, m, g.shared)?);
    counts.extend(dense(arch, d.layers, &m.dense_layers)?);
    if let Some(groups) = r.groups {
        if groups.score == GroupScore::Max {
            tracing::warn!(
                "llama.cpp scores the groups of every model by their two best experts, this one's are by their best: its \
                 choice of experts will differ, this engine's will not"
            );
        }
        counts.extend([("expert_group_count", groups.count), ("expert_group_used_count", groups.used)]);
    }
    for (key, n) in counts {
        meta.set(format!("{arch}.{key}"), u32_of(key, n)?);
    }
    if g.keys {
        meta.set(format!("{arch}.expert_weights_norm"), Value::Bool(divides));
        meta.set(format!("{arch}.expert_weights_scale"), Value::F32(r.scale));
    }
    Ok(true)
}

/// The keys of shared experts, which one dense unit holds together.
fn shared(arch: &str, m: &Moe, possible: [bool; 2]) -> Result<Vec<(&'static str, usize)>> {
    let Some(s) = m.shared else {
        return if possible[0] { Ok(vec![]) } else { Err(refused(arch, "layers without a shared expert")) };
    };
    if !possible[1] || s.gated || s.width % m.width != 0 {
        return Err(refused(arch, format!("a shared expert of width {} beside experts of {}", s.width, m.width)));
    }
    let mut keys = vec![("expert_shared_count", s.width / m.width)];
    if arch == "ernie4_5-moe" {
        keys.push(("expert_shared_feed_forward_length", s.width));
    }
    Ok(keys)
}

/// The keys of layers without experts: the first ones, and in ERNIE-4.5 also all but every n-th.
fn dense(arch: &str, layers: usize, dense: &[usize]) -> Result<Vec<(&'static str, usize)>> {
    if arch == "minimax-m2" {
        return if dense.is_empty() { Ok(vec![]) } else { Err(refused(arch, "layers without experts")) };
    }
    let first = (0..layers).find(|i| !dense.contains(i)).unwrap_or(layers);
    let steps = if arch == "ernie4_5-moe" { layers.max(1) } else { 1 };
    let is_dense = |i: usize, step: usize| i < first || (i + 1) % step != 0;
    let step = (1..=steps).find(|step| (0..layers).all(|i| dense.contains(&i) == is_dense(i, *step)));
    if step.is_none() {
        tracing::warn!(
            "layers {dense:?} have no experts: the file says so by their tensors, and llama.cpp does not load it"
        );
    }
    let mut keys = vec![("leading_dense_block_count", first)];
    if arch == "ernie4_5-moe" {
        keys.push(("interleave_moe_layer_step", step.unwrap_or(1)));
    }
    Ok(keys)
}

/// Phi-3.5-MoE: no key says how it routes, the architecture does.
fn phi_experts(meta: &mut Metadata, d: &Decoder, m: &Moe) -> Result<()> {
    let arch = "phimoe";
    // Twice the jitter that the released models were trained with.
    if m.router.score != (Score::SparseMixer { threshold: 0.02 }) || m.router.renormalise != Renormalise::No {
        return Err(refused(arch, format!("a router of the kind `{}`", m.router.variant())));
    }
    if m.width != d.ffn || m.shared.is_some() || !m.dense_layers.is_empty() || m.router.scale != 1.0 {
        return Err(refused(arch, "experts of this kind"));
    }
    tracing::warn!(
        "llama.cpp's graph of `phimoe` routes by a softmax over the chosen logits and divides by the root mean square where \
         the model has sparsemixer routing and layer norms: its results will differ, this engine's will not"
    );
    meta.set(format!("{arch}.expert_count"), u32_of("expert_count", m.router.experts)?);
    meta.set(format!("{arch}.expert_used_count"), u32_of("expert_used_count", m.router.used)?);
    Ok(())
}

/// Sets the keys of latent attention, whose cache is that of one key head.
///
/// # Errors
/// [`Error::Unsupported`] for rotations that llama.cpp's graph does otherwise.
pub(super) fn latent_keys(meta: &mut Metadata, arch: &str, p: &Params<'_>, m: &Latent, rope: &Rope) -> Result<()> {
    if rope.pairs != RopePairs::Interleaved {
        return Err(refused(arch, "rotation of halves (rope_interleave)"));
    }
    let counts = [
        ("kv_lora_rank", Some(m.kv_rank)),
        ("q_lora_rank", m.q_rank),
        ("key_length", Some(m.kv_rank + m.rope)),
        ("value_length", Some(m.kv_rank)),
        ("key_length_mla", Some(m.nope + m.rope)),
        ("value_length_mla", Some(m.value)),
    ];
    for (key, n) in counts {
        if let Some(n) = n {
            meta.set(format!("{arch}.attention.{key}"), u32_of(key, n)?);
        }
    }
    if let Some(y) = rope::yarn(p)? {
        // Of DeepSeek's two factors one is that of the dot products, and the other must cancel against it.
        if y.attention_factor != 1.0 {
            let what =
                format!("YaRN with an attention factor of {} (mscale beside mscale_all_dim)", y.attention_factor);
            return Err(refused(arch, what));
        }
        let all = super::mla::mscale_all(p)?;
        meta.set(format!("{arch}.rope.scaling.yarn_log_multiplier"), Value::F32(0.1 * all));
    }
    Ok(())
}

/// Joins the two parts that latent attention makes of two of its matrices: rows of each head that do not rotate and rows
/// that do, and the latent vector's rows and those of the shared rotated key.
///
/// # Errors
/// [`Error::Model`] where parts do not fit each other.
pub(super) fn latent_tensors(m: &Latent, list: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
    let mut out: Vec<(String, Tensor)> = vec![];
    for (name, t) in list {
        let Some(whole) = name.strip_suffix(":1") else {
            out.push((name, t));
            continue;
        };
        let groups = if whole.contains(".attn_kv_a_mqa.") { [m.kv_rank, m.rope] } else { [m.nope, m.rope] };
        match out.last_mut() {
            Some((last, first)) if last.strip_suffix(":0") == Some(whole) => {
                *first = joined(first, &t, groups)?;
                *last = whole.to_string();
            }
            _ => return Err(Error::Model(format!("{name} does not follow its first part"))),
        }
    }
    Ok(out)
}
