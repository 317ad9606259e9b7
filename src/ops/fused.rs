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
use crate::ir::{Graph, Linear, NormKind, Op, Type, WeightId};

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(op: &Op, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let plain = |weight: WeightId| Linear { weight, bias: None };
    match op {
        Op::NormLinears { norm, parts } => {
            let [x] = arity(inputs)?;
            if let Some(n) = norm {
                rms_norm::infer(n, &[x], g)?;
            }
            if parts.is_empty() {
                return Err("no matrices".into());
            }
            parts.iter().map(|l| Ok(linear::infer(l, &[x], g)?[0])).collect()
        }
        Op::RopeStore { q_norm, k_norm, rope: r, cache, .. } => {
            let [q, k, v] = arity(inputs)?;
            for (norm, x) in [(q_norm, q), (k_norm, k)] {
                if let Some(n) = norm {
                    if n.kind != NormKind::Rms || n.bias.is_some() {
                        return Err("a layer norm of queries or keys".into());
                    }
                    rms_norm::infer(n, &[x], g)?;
                }
                rope::infer(r, &[x])?;
            }
            Ok(vec![q, attend::infer_store(*cache, &[k, v], g)?[0]])
        }
        Op::LinearAdd { linear: l, gated, .. } => {
            let (x, residual) = match (inputs, gated) {
                ([x, r, gate], true) => {
                    elementwise::infer(&Op::SigmoidGate, &[*r, *gate])?;
                    (*x, *r)
                }
                ([x, r], false) => (*x, *r),
                _ => return Err(format!("{} operands", inputs.len())),
            };
            let y = linear::infer(l, &[x], g)?[0];
            elementwise::infer(&Op::Add, &[residual, y])
        }
        Op::LinearGlu { gate, up, .. } => {
            let gate = linear::infer(&plain(*gate), inputs, g)?[0];
            let up = linear::infer(&plain(*up), inputs, g)?[0];
            elementwise::infer(&Op::Add, &[gate, up])
        }
        Op::NormRouter { norm, linear: l, router: r } => {
            let normed = rms_norm::infer(norm, inputs, g)?;
            let logits = linear::infer(l, &normed, g)?;
            let made = router::infer(r, &logits, g)?;
            Ok(vec![normed[0], made[0], made[1]])
        }
        Op::LinearAct { linear: l, act } => elementwise::infer(&Op::Act(*act), &linear::infer(l, inputs, g)?),
        Op::ExpertAct { linear: l, act } => elementwise::infer(&Op::Act(*act), &experts::infer_linear(l, inputs, g)?),
        Op::ExpertGlu { gate, up, .. } => {
            if gate.bias.is_some() != up.bias.is_some() {
                return Err("biases of one half only".into());
            }
            let gate = experts::infer_linear(gate, inputs, g)?[0];
            let up = experts::infer_linear(up, inputs, g)?[0];
            elementwise::infer(&Op::Add, &[gate, up])
        }
        Op::ExpertDownAdd { linear, .. } => {
            let [h, ids, weights, residual] = arity(inputs)?;
            let y = experts::infer_linear(linear, &[h, ids], g)?[0];
            let y = experts::infer_combine(&[y, weights])?[0];
            f32_of(&residual)?;
            elementwise::infer(&Op::Add, &[residual, y])
        }
        other => Err(format!("no shape rule for {}", other.name())),
    }
}
