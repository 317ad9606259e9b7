//! The fused ops: shape rules and, for reading, what each stands for. The reference backend runs them by evaluating
//! exactly these primitives in this order, so their formulas are the primitives' formulas.
//!
//! | fused | stands for |
//! |---|---|
//! | `norm_linears` | `rms_norm`, then a `linear` for each part |
//! | `rope_store` | optional `rms_norm` of q and k, before or after `rope` of both, `kv_store` |
//! | `linear_add` | `linear`, optionally `sigmoid_gate`, optionally `scale`, `add` |
//! | `linear_glu` | two `linear`s and `glu` |
//! | `norm_router` | `rms_norm`, `linear`, `router` |
//! | `linear_act` | `linear` and `act` |
//! | `expert_glu` | two `expert_linear`s and `glu` |
//! | `expert_act` | `expert_linear` and `act` |
//! | `expert_down_add` | `expert_linear`, `expert_combine`, optionally `scale`, `add` |
//!
//! Tolerances are those of the primitives.

use super::{arity, attend, elementwise, experts, f32_of, linear, rms_norm, rope, router};
use crate::ir::{CacheId, Graph, Linear, Norm, NormKind, Rope, Router, Type, WeightId};

/// Shape rule of `norm_linears`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_norm_linears(
    norm: Option<&Norm>,
    parts: &[Linear],
    inputs: &[Type],
    g: &Graph,
) -> Result<Vec<Type>, String> {
    let [x] = arity(inputs)?;
    if let Some(n) = norm {
        rms_norm::infer(n, &[x], g)?;
    }
    if parts.is_empty() {
        return Err("no matrices".into());
    }
    parts.iter().map(|l| Ok(linear::infer(l, &[x], g)?[0])).collect()
}

/// Shape rule of `rope_store`; `norms` are of q and of k.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_rope_store(
    norms: [Option<&Norm>; 2],
    r: &Rope,
    cache: CacheId,
    inputs: &[Type],
    g: &Graph,
) -> Result<Vec<Type>, String> {
    let [q, k, v] = arity(inputs)?;
    for (norm, x) in norms.into_iter().zip([q, k]) {
        if let Some(n) = norm {
            if n.kind != NormKind::Rms || n.bias.is_some() {
                return Err("a layer norm of queries or keys".into());
            }
            rms_norm::infer(n, &[x], g)?;
        }
        rope::infer(r, &[x])?;
    }
    Ok(vec![q, attend::infer_store(cache, &[k, v], g)?[0]])
}

/// Shape rule of `linear_add`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_linear_add(l: &Linear, gated: bool, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let (x, residual) = match (inputs, gated) {
        ([x, r, gate], true) => {
            elementwise::infer_sigmoid_gate(&[*r, *gate])?;
            (*x, *r)
        }
        ([x, r], false) => (*x, *r),
        _ => return Err(format!("{} operands", inputs.len())),
    };
    let y = linear::infer(l, &[x], g)?[0];
    elementwise::infer_pair(&[residual, y])
}

/// Shape rule of `linear_glu`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_linear_glu(gate: WeightId, up: WeightId, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let half = |weight: WeightId| linear::infer(&Linear { weight, bias: None }, inputs, g);
    elementwise::infer_pair(&[half(gate)?[0], half(up)?[0]])
}

/// Shape rule of `norm_router`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_norm_router(norm: &Norm, l: &Linear, r: &Router, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let normed = rms_norm::infer(norm, inputs, g)?;
    let logits = linear::infer(l, &normed, g)?;
    let made = router::infer(r, &logits, g)?;
    Ok(vec![normed[0], made[0], made[1]])
}

/// Shape rule of `expert_glu`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_expert_glu(gate: &Linear, up: &Linear, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    if gate.bias.is_some() != up.bias.is_some() {
        return Err("biases of one half only".into());
    }
    let gate = experts::infer_linear(gate, inputs, g)?[0];
    let up = experts::infer_linear(up, inputs, g)?[0];
    elementwise::infer_pair(&[gate, up])
}

/// Shape rule of `expert_down_add`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_expert_down_add(linear: &Linear, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let [h, ids, weights, residual] = arity(inputs)?;
    let y = experts::infer_linear(linear, &[h, ids], g)?[0];
    let y = experts::infer_combine(&[y, weights])?[0];
    f32_of(&residual)?;
    elementwise::infer_pair(&[residual, y])
}
