//! Routers, routed experts and shared experts.

use super::{Site, ffn::ffn, linear::plain};
use crate::{
    error::Result,
    ir::{Linear, Norm, Op, Router, ValueId},
    model::{
        decoder::{Moe, Shared},
        loader::Loader,
    },
};

/// What routed experts make of a layer's input.
pub(in crate::model) struct Routed {
    /// The weighted sum of the chosen experts' results, `[T, H]`.
    pub y: ValueId,
    /// The chosen experts, `[T, k]`.
    pub ids: ValueId,
    /// Their weights, `[T, k]`.
    pub weights: ValueId,
}

/// Router logits `[T, E]`, of `normed` or, where the router has a norm of its own, of the residual `x`.
pub(in crate::model) fn router_logits(
    l: &mut Loader<'_>,
    site: &Site,
    m: &Moe,
    x: ValueId,
    normed: ValueId,
) -> Result<ValueId> {
    let (stem, rows) = (site.at("ffn_gate_inp"), m.router.logits());
    let mut input = (normed, site.hidden); // [T, H]
    if let Some(factor) = m.router_norm {
        let weight = l.vector_of(&site.at("ffn_gate_inp.scale"), site.hidden, |w| w * factor)?;
        input.0 = l.b.one(Op::RmsNorm(Norm::rms(weight, site.norm.eps)), &[x])?; // [T, H]
    }
    if let Some((n, act)) = m.router_hidden {
        let h = router_linear(l, &site.at("ffn_gate_inp_hidden"), [n, site.hidden], input.0)?; // [T, n]
        input = (l.b.one(Op::Act(act), &[h])?, n); // [T, n]
    }
    router_linear(l, &stem, [rows, input.1], input.0) // [T, E], of a router over groups [T, E + groups]
}

/// A matrix `[out, inp]` of a router, in f32 whatever the file's type, with its bias where there is one.
fn router_linear(l: &mut Loader<'_>, stem: &str, [out, inp]: [usize; 2], x: ValueId) -> Result<ValueId> {
    let weight = l.matrix_f32(&format!("{stem}.weight"), out, inp)?;
    let bias = format!("{stem}.bias");
    let bias = if l.has(&bias) { Some(l.vector(&bias, out)?) } else { None };
    l.b.one(Op::Linear(Linear { weight, bias }), &[x])
}

/// What the experts that the router chooses by `logits` `[T, E]` make of `normed` `[T, H]`.
pub(in crate::model) fn routed(
    l: &mut Loader<'_>,
    site: &Site,
    m: &Moe,
    logits: ValueId,
    normed: ValueId,
) -> Result<Routed> {
    let router = router(l, site, m)?;
    let routed = l.b.add(Op::Router(router), &[logits])?;
    let (ids, weights) = (routed[0], routed[1]); // [T, k]
    let (input, of_results) = if m.scale_expert_inputs {
        let scaled = l.b.add(Op::ScaleExpertInputs, &[normed, weights])?;
        (scaled[0], scaled[1]) // [T, k·H], [T, k]
    } else {
        (normed, weights)
    };
    let (prefix, e, width) = (site.at(""), m.router.experts, m.experts.width);
    let gate = l.experts(&prefix, "ffn_gate", [e, width, site.hidden])?;
    let down = l.experts(&prefix, "ffn_down", [e, site.hidden, width])?;
    let g = l.b.one(Op::ExpertLinear(gate), &[input, ids])?; // [T, k·I]
    let h = if m.experts.gated {
        let up = l.experts(&prefix, "ffn_up", [e, width, site.hidden])?;
        let u = l.b.one(Op::ExpertLinear(up), &[input, ids])?; // [T, k·I]
        l.b.one(Op::Glu(m.experts.act), &[g, u])? // [T, k·I]
    } else {
        l.b.one(Op::Act(m.experts.act), &[g])? // [T, k·I]
    };
    let y = l.b.one(Op::ExpertLinear(down), &[h, ids])?; // [T, k·H]
    let y = l.b.one(Op::ExpertCombine, &[y, of_results])?; // [T, H]
    Ok(Routed { y, ids, weights })
}

/// The router with the weights that belong to the choice.
fn router(l: &mut Loader<'_>, site: &Site, m: &Moe) -> Result<Router> {
    let (mut router, e) = (m.router, m.router.experts);
    if m.selection_bias {
        router.selection_bias = Some(l.vector(&site.at("exp_probs_b.bias"), e)?); // [E]
    }
    let factors = site.at("ffn_down_exps.scale");
    // Beside NVFP4 blocks it is a factor on the weights, which is refused by name where nobody reads it.
    if l.has(&factors) && !l.scales_nvfp4(&factors) {
        router.expert_scale = Some(l.vector(&factors, e)?); // [E]
    }
    l.ignore(&site.at("ffn_noise_inp.weight"), "a noisy router has noise in training only");
    l.ignore(&site.at("ffn_noise_inp.bias"), "a noisy router has noise in training only");
    Ok(router)
}

/// What the n-th shared expert makes of `normed` `[T, H]`: `[T, H]`.
pub(in crate::model) fn shared(
    l: &mut Loader<'_>,
    site: &Site,
    s: &Shared,
    n: usize,
    normed: ValueId,
) -> Result<ValueId> {
    let numbered = l.file_name(&site.weight("ffn_gate_shexp")).contains("{}");
    let suffix = if numbered { format!("_shexp.{n}.weight") } else { "_shexp.weight".into() };
    let y = ffn(l, &s.unit, [&site.at("ffn_"), &suffix], site.hidden, normed)?; // [T, H]
    if !s.gated {
        return Ok(y);
    }
    let weight = l.matrix_f32(&site.weight("ffn_gate_inp_shexp"), 1, site.hidden)?;
    let gate = plain(l, weight, normed)?; // [T, 1]
    l.b.one(Op::SigmoidGate, &[y, gate]) // [T, H]
}
