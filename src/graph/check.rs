//! The checker: a graph that passes can be run by any backend without looking at shapes again.

use crate::{
    error::{Error, Result},
    ir::{Graph, ValueId},
    ops,
};

/// Checks that every value is made once and before it is used, that every node fits its op's shape rule, that no
/// recurrent state belongs to two nodes, and that every name in `outputs` is unique and stands for data.
///
/// # Errors
/// [`Error::Graph`] that names the node.
pub fn check(graph: &Graph) -> Result<()> {
    let mut made = vec![false; graph.values.len()];
    let mut owned = vec![false; graph.states.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        let bad = |what: String| Error::Graph(format!("node {i}, {}: {what}", node.op.name()));
        if let Some(v) = node.inputs.iter().find(|v| !made.get(v.0 as usize).copied().unwrap_or(false)) {
            return Err(bad(format!("%{} is used before it is made", v.0)));
        }
        if let Some(s) = node.op.state()
            && owned.get_mut(s.0 as usize).is_none_or(|o| std::mem::replace(o, true))
        {
            return Err(bad(format!("state {} is not declared, or belongs to another node", s.0)));
        }
        let types: Vec<_> = node.inputs.iter().map(|v| graph.ty(*v)).collect();
        let outputs = ops::infer(&node.op, &types, graph).map_err(bad)?;
        if outputs.len() != node.outputs.len() {
            return Err(bad(format!("{} outputs instead of {}", node.outputs.len(), outputs.len())));
        }
        for (ValueId(v), ty) in node.outputs.iter().zip(outputs) {
            match graph.values.get(*v as usize) {
                Some(t) if *t == ty && !made[*v as usize] => made[*v as usize] = true,
                Some(t) => return Err(bad(format!("%{v} is declared {t} and made {ty} (or made twice)"))),
                None => return Err(bad(format!("%{v} is not declared"))),
            }
        }
    }
    for (i, (name, v)) in graph.outputs.iter().enumerate() {
        let data = made.get(v.0 as usize).copied().unwrap_or(false) && graph.ty(*v).dims().is_some();
        if !data || graph.outputs[..i].iter().any(|(other, _)| other == name) {
            return Err(Error::Graph(format!("output {name} is no data, never made, or named twice")));
        }
    }
    Ok(())
}
