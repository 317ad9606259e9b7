//! The blocks that the decoders are made of: their graph, layer by layer, declaring every weight on the way.

use super::{
    Decoder, Options, Params, QkNorm,
    decoder::{Bias, Moe},
    gemma4,
    loader::Loader,
    mla,
    recurrent::{self, Mixer},
    rope,
};
use crate::{
    error::Result,
    file::Tensor,
    ir::{Activation, Attention, CacheDecl, Graph, Linear, Norm, Op, Rope, ValueId},
};

/// A graph, its weights, and the parts of the file that were left out.
pub(super) type Built = (Graph, Vec<Tensor>, Vec<String>);

/// Builds the graph, declaring every weight on the way.
pub(super) fn graph(d: &Decoder, p: &Params<'_>, mut l: Loader<'_>, options: &Options) -> Result<Built> {
    let ropes = rotations(d, p, &mut l, options)?;
    let rope = |i: usize| &ropes[usize::from(d.full(i).is_some())];
    let table = l.table("token_embd.weight", d.vocab, d.hidden)?;
    let vocab = l.b.graph().weight(table).shape[0];
    let ids = l.b.one(Op::Tokens, &[])?;
    let mut x = l.b.one(Op::Embed { table, scale: d.multipliers.embedding }, &[ids])?; // [T, H]
    let mut traces = vec![];
    let heads = d.latent.map(|_| l.b.one(Op::HeadIds { heads: d.heads }, &[])).transpose()?;
    for i in 0..d.layers {
        l.b.set_layer(Some(i as u32));
        let normed = norm(d, &mut l, &format!("blk.{i}.attn_norm.weight"), d.hidden, x)?; // [T, H]
        x = match (d.mixer(i), &d.latent, heads) {
            (Mixer::Attention, Some(m), Some(heads)) => {
                let y = mla::attention(d, m, rope(i), &mut l, i, normed, heads)?;
                add(d, &mut l, x, y)?
            }
            (Mixer::Attention, ..) => attention(d, rope(i), &mut l, i, x, normed)?,
            (other, ..) => recurrent::mixed(d, &mut l, other, i, x, normed)?,
        };
        let normed = norm(d, &mut l, &format!("blk.{i}.{}.weight", d.ffn_norm), d.hidden, x)?;
        if d.norms_behind {
            let (y, routed) = gemma4::feed_forward(d, &mut l, i, x, normed)?;
            traces.extend(routed.map(|[ids, weights]| (i, ids, weights)));
            x = y;
            continue;
        }
        x = match d.is_moe(i) {
            Some(m) => {
                let (x, ids, weights) = experts(d, m, &mut l, i, x, normed)?;
                traces.push((i, ids, weights));
                x
            }
            None => {
                let y = ffn(d, &mut l, &format!("blk.{i}.ffn_"), ".weight", d.ffn, normed)?;
                add(d, &mut l, x, y)?
            }
        };
    }
    l.b.set_layer(None);
    let x = l.b.one(Op::TakeOutputs, &[x])?; // [O, H]
    let x = norm(d, &mut l, &format!("{}.weight", d.output_norm), d.hidden, x)?;
    let head = if d.tied && !l.has("output.weight") { table } else { l.matrix("output.weight", vocab, d.hidden)? };
    let bias = if l.has("output.bias") { Some(l.vector("output.bias", vocab)?) } else { None };
    let mut logits = l.b.one(Op::Linear(Linear { weight: head, bias }), &[x])?; // [O, V]
    if d.multipliers.logits != 1.0 {
        logits = l.b.one(Op::Scale(d.multipliers.logits), &[logits])?;
    }
    if let Some(c) = d.softcap {
        logits = l.b.one(Op::Scale(1.0 / c), &[logits])?;
        logits = l.b.one(Op::Act(Activation::Tanh), &[logits])?;
        logits = l.b.one(Op::Scale(c), &[logits])?;
    }
    l.b.output("logits", logits);
    if options.trace_router {
        for (i, ids, weights) in traces {
            l.b.output(format!("router_ids_{i}"), ids);
            l.b.output(format!("router_weights_{i}"), weights);
        }
    }
    l.finish(d.layers)
}

/// The rotation of most layers, and that of layers that see the whole context where it is another.
fn rotations(d: &Decoder, p: &Params<'_>, l: &mut Loader<'_>, options: &Options) -> Result<Vec<Rope>> {
    let factors = l.numbers("rope_freqs.weight")?;
    if let Some(full) = &d.full {
        return Ok(gemma4::rotations(d, full, p, factors.as_deref(), options.bf16_rope)?.into());
    }
    let mut rope = rope::rope(p, d.head_dim, d.pairs, factors.as_deref(), options.bf16_rope)?;
    let two = [l.numbers("rope_factors_short.weight")?, l.numbers("rope_factors_long.weight")?];
    rope::long(p, &mut rope, two, options.bf16_rope)?;
    Ok(vec![if d.latent.is_some() { mla::rotation(p, rope)? } else { rope }])
}

/// The residual and what is added to it.
pub(super) fn add(d: &Decoder, l: &mut Loader<'_>, x: ValueId, mut y: ValueId) -> Result<ValueId> {
    if d.multipliers.residual != 1.0 {
        y = l.b.one(Op::Scale(d.multipliers.residual), &[y])?;
    }
    l.b.one(Op::Add, &[x, y])
}

pub(super) fn norm(d: &Decoder, l: &mut Loader<'_>, name: &str, n: usize, x: ValueId) -> Result<ValueId> {
    let weight = l.vector_of(name, n, |w| w + d.norm_offset)?;
    let bias = name.replace(".weight", ".bias");
    let bias = if l.has(&bias) { Some(l.vector(&bias, n)?) } else { None };
    l.b.one(Op::RmsNorm(Norm { kind: d.norm, weight, bias, eps: d.eps }), &[x])
}

pub(super) fn linear(l: &mut Loader<'_>, name: &str, out: usize, inp: usize, x: ValueId) -> Result<ValueId> {
    let weight = l.matrix(name, out, inp)?;
    let bias = name.replace(".weight", ".bias");
    let bias = if l.has(&bias) { Some(l.vector(&bias, out)?) } else { None };
    l.b.one(Op::Linear(Linear { weight, bias }), &[x])
}

/// A projection of the attention, with its bias.
fn projection(d: &Decoder, l: &mut Loader<'_>, stem: &str, shape: [usize; 2], x: ValueId) -> Result<ValueId> {
    let weight = l.matrix(&format!("{stem}.weight"), shape[0], shape[1])?;
    let name = format!("{stem}.bias");
    // The output projection has none, unless the file says otherwise.
    let wanted = d.qkv_bias == Bias::Yes && !stem.ends_with("attn_output");
    let bias = if wanted || l.has(&name) { Some(l.vector(&name, shape[0])?) } else { None };
    l.b.one(Op::Linear(Linear { weight, bias }), &[x])
}

/// x + W_o · attention(norm(x)).
fn attention(d: &Decoder, rope: &Rope, l: &mut Loader<'_>, i: usize, x: ValueId, normed: ValueId) -> Result<ValueId> {
    let at = |s: &str| format!("blk.{i}.{s}");
    let [head_dim, kv_heads] = d.head_shape(i);
    let (q_cols, kv_cols) = (d.heads * head_dim, kv_heads * head_dim);
    let (q, gate) = if d.gated_attention {
        let [q, gate] = gated_query(d, l, i, normed)?;
        (q, Some(gate))
    } else {
        (projection(d, l, &at("attn_q"), [q_cols, d.hidden], normed)?, None) // [T, heads·D]
    };
    let k = projection(d, l, &at("attn_k"), [kv_cols, d.hidden], normed)?; // [T, kv_heads·D]
    let mut v = match d.full(i).is_some_and(|f| f.keys_are_values) {
        true => k,
        false => projection(d, l, &at("attn_v"), [kv_cols, d.hidden], normed)?, // [T, kv_heads·D]
    };
    if d.v_norm {
        v = unweighted(d, l, &at("attn_v_norm.weight"), head_dim, v)?;
    }
    let [q, k] = placed(d, rope, l, i, [q, k])?;
    let cache = l.b.cache(CacheDecl::new(kv_heads, head_dim, head_dim));
    let stored = l.b.one(Op::KvStore { cache }, &[k, v])?;
    let scale = d.multipliers.attention.unwrap_or(1.0 / (head_dim as f32).sqrt());
    let sinks = if d.sinks { Some(l.vector(&at("attn_sinks.weight"), d.heads)?) } else { None };
    let (window, chunk) = if d.chunked { (None, d.window(i)) } else { (d.window(i), None) };
    let spec = Attention { cache, heads: d.heads, scale, window, chunk, sinks };
    let mut y = l.b.one(Op::Attend(spec), &[q, stored])?; // [T, heads·D]
    if let Some(gate) = gate {
        y = l.b.one(Op::Glu(Activation::Sigmoid), &[gate, y])?;
    }
    let mut y = projection(d, l, &at("attn_output"), [d.hidden, q_cols], y)?; // [T, H]
    if d.norms_behind {
        y = norm(d, l, &at("post_attention_norm.weight"), d.hidden, y)?;
    }
    add(d, l, x, y)
}

/// Each head of `n` columns normalised by itself, without weights; `name` is for the ones that stand for them.
fn unweighted(d: &Decoder, l: &mut Loader<'_>, name: &str, n: usize, x: ValueId) -> Result<ValueId> {
    let weight = l.ones(name, n)?;
    l.b.one(Op::RmsNorm(Norm { kind: d.norm, weight, bias: None, eps: d.eps }), &[x])
}

/// Queries and keys normalised and rotated, as the layer has it.
fn placed(d: &Decoder, rope: &Rope, l: &mut Loader<'_>, i: usize, qk: [ValueId; 2]) -> Result<[ValueId; 2]> {
    let [head_dim, kv_heads] = d.head_shape(i);
    let normed = |l: &mut Loader<'_>, [q, k]: [ValueId; 2]| -> Result<[ValueId; 2]> {
        let names = [format!("blk.{i}.attn_q_norm.weight"), format!("blk.{i}.attn_k_norm.weight")];
        let cols = match d.qk_norm {
            QkNorm::None => return Ok([q, k]),
            QkNorm::Unweighted => {
                return Ok([unweighted(d, l, &names[0], head_dim, q)?, unweighted(d, l, &names[1], head_dim, k)?]);
            }
            QkNorm::PerHead => [head_dim; 2],
            QkNorm::WholeRow => [d.heads * head_dim, kv_heads * head_dim],
        };
        Ok([norm(d, l, &names[0], cols[0], q)?, norm(d, l, &names[1], cols[1], k)?])
    };
    if d.unrotated.contains(&i) {
        let [q, k] = if d.qk_norm == QkNorm::Unweighted { qk } else { normed(l, qk)? };
        let Some(temperature) = d.temperature else { return Ok([q, k]) };
        // Angles of 0: only the factor is left of the rotation.
        let still = Rope { dims: d.head_dim, inv_freq: vec![0.0; d.head_dim / 2].into(), ..rope.clone() };
        let grown = Rope { scale: 1.0, long: None, temperature: Some(temperature), ..still };
        return Ok([l.b.one(Op::Rope(grown), &[q])?, k]);
    }
    let [q, k] = if d.qk_norm_last { qk } else { normed(l, qk)? };
    let turned = [l.b.one(Op::Rope(rope.clone()), &[q])?, l.b.one(Op::Rope(rope.clone()), &[k])?];
    if d.qk_norm_last { normed(l, turned) } else { Ok(turned) }
}

/// Queries and the gate of the attention's output, from one matrix that has the rows of each head's query and then those
/// of its gate.
fn gated_query(d: &Decoder, l: &mut Loader<'_>, i: usize, x: ValueId) -> Result<[ValueId; 2]> {
    let (name, n) = (format!("blk.{i}.attn_q.weight"), d.head_dim);
    let mut half = |which: usize, part: &str| {
        let rows = (0..d.heads).map(|h| (2 * h + which) * n..(2 * h + which + 1) * n).collect();
        let weight = l.rows(&name, [2 * d.heads * n, d.hidden], part, rows)?;
        l.b.one(Op::Linear(Linear { weight, bias: None }), &[x]) // [T, heads·D]
    };
    Ok([half(0, &name)?, half(1, &format!("blk.{i}.attn_q_gate.weight"))?])
}

/// down(act(gate(x)) · up(x)), or without up, with the matrices `<prefix>gate<suffix>` and so on.
pub(super) fn ffn(
    d: &Decoder,
    l: &mut Loader<'_>,
    prefix: &str,
    suffix: &str,
    width: usize,
    x: ValueId,
) -> Result<ValueId> {
    let name = |role: &str| format!("{prefix}{role}{suffix}");
    let g = linear(l, &name("gate"), width, d.hidden, x)?; // [T, I]
    let h = if d.gated {
        let u = linear(l, &name("up"), width, d.hidden, x)?; // [T, I]
        l.b.one(Op::Glu(d.act), &[g, u])? // [T, I]
    } else {
        l.b.one(Op::Act(d.act), &[g])? // [T, I]
    };
    linear(l, &name("down"), d.hidden, width, h) // [T, H]
}

/// A matrix of a router, in f32 whatever the file's type, with its bias where there is one.
pub(super) fn router_linear(l: &mut Loader<'_>, stem: &str, [out, inp]: [usize; 2], x: ValueId) -> Result<ValueId> {
    let weight = l.matrix_f32(&format!("{stem}.weight"), out, inp)?;
    let bias = format!("{stem}.bias");
    let bias = if l.has(&bias) { Some(l.vector(&bias, out)?) } else { None };
    l.b.one(Op::Linear(Linear { weight, bias }), &[x])
}

/// x + routed experts (+ shared expert) of `normed`; also the chosen ids and weights.
fn experts(
    d: &Decoder,
    m: &Moe,
    l: &mut Loader<'_>,
    i: usize,
    x: ValueId,
    normed: ValueId,
) -> Result<(ValueId, ValueId, ValueId)> {
    let blk = format!("blk.{i}.");
    let e = m.router.experts;
    let logits = match d.router_hidden {
        Some((n, act)) => {
            let h = router_linear(l, &format!("{blk}ffn_gate_inp_hidden"), [n, d.hidden], normed)?; // [T, n]
            let h = l.b.one(Op::Act(act), &[h])?;
            router_linear(l, &format!("{blk}ffn_gate_inp"), [e, n], h)? // [T, E]
        }
        None => router_linear(l, &format!("{blk}ffn_gate_inp"), [e, d.hidden], normed)?, // [T, E]
    };
    let (y, [ids, weights]) = routed(d, m, l, i, logits, normed)?;
    let mut x = add(d, l, x, y)?;
    for n in 0..m.shared.map_or(0, |_| d.shared_experts) {
        let Some(s) = m.shared else { break };
        let numbered = l.file_name(&format!("{blk}ffn_gate_shexp.weight")).contains("{}");
        let suffix = if numbered { format!("_shexp.{n}.weight") } else { "_shexp.weight".into() };
        let mut y = ffn(d, l, &format!("{blk}ffn_"), &suffix, s.width, normed)?;
        if s.gated {
            let weight = l.matrix_f32(&format!("{blk}ffn_gate_inp_shexp.weight"), 1, d.hidden)?;
            let gate = l.b.one(Op::Linear(Linear { weight, bias: None }), &[normed])?; // [T, 1]
            y = l.b.one(Op::SigmoidGate, &[y, gate])?;
        }
        x = add(d, l, x, y)?;
    }
    Ok((x, ids, weights))
}

/// What the experts that the router chooses by `logits` make of `normed`, weighted and summed; also the chosen ids and weights.
pub(super) fn routed(
    d: &Decoder,
    m: &Moe,
    l: &mut Loader<'_>,
    i: usize,
    logits: ValueId,
    normed: ValueId,
) -> Result<(ValueId, [ValueId; 2])> {
    let blk = format!("blk.{i}.");
    let (e, width) = (m.router.experts, m.width);
    let mut router = m.router;
    if m.selection_bias {
        router.selection_bias = Some(l.vector(&format!("{blk}exp_probs_b.bias"), e)?);
    }
    let factors = format!("{blk}ffn_down_exps.scale");
    if l.has(&factors) {
        router.expert_scale = Some(l.vector(&factors, e)?);
    }
    l.leave(&format!("{blk}ffn_noise_inp.weight"), "a noisy router has noise in training only");
    l.leave(&format!("{blk}ffn_noise_inp.bias"), "a noisy router has noise in training only");
    let routed = l.b.add(Op::Router(router), &[logits])?;
    let (ids, weights) = (routed[0], routed[1]); // [T, k]
    let (input, of_results) = if d.weigh_inputs {
        let weighed = l.b.add(Op::WeighInputs, &[normed, weights])?;
        (weighed[0], weighed[1]) // [T, k·H], [T, k]
    } else {
        (normed, weights)
    };
    let gate = l.experts(&blk, "ffn_gate", [e, width, d.hidden], d.expert_layout)?;
    let down = l.experts(&blk, "ffn_down", [e, d.hidden, width], d.expert_layout)?;
    let g = l.b.one(Op::ExpertLinear(gate), &[input, ids])?; // [T, k·I]
    let h = if d.gated {
        let up = l.experts(&blk, "ffn_up", [e, width, d.hidden], d.expert_layout)?;
        let u = l.b.one(Op::ExpertLinear(up), &[input, ids])?; // [T, k·I]
        l.b.one(Op::Glu(d.act), &[g, u])? // [T, k·I]
    } else {
        l.b.one(Op::Act(d.act), &[g])? // [T, k·I]
    };
    let y = l.b.one(Op::ExpertLinear(down), &[h, ids])?; // [T, k·H]
    let y = l.b.one(Op::ExpertCombine, &[y, of_results])?; // [T, H]
    Ok((y, [ids, weights]))
}
