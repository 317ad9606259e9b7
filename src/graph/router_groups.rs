//! A router over groups of experts and one in each group, in the place of a model's routers (Shazeer et al. 2017, appendix B).
//!
//! The model's own router matrix becomes that of the routers in the groups, which are neighbouring experts; the router over groups is a
//! further matrix on the same input. Both choose by their logits, with a softmax over what they choose, and the weights multiply. Graphs
//! of inference have the same as one op, on the logits of both ([`crate::ir::GroupScore::Own`]).

use super::{
    formula::{Choice, Hierarchy, hierarchical},
    rewrite::Rewrite,
};
use crate::{
    error::{Error, Result},
    ir::{Graph, Linear, Node, Op, Router, ValueId},
};

/// What the matrix of a router over groups is called, behind its layer.
pub const GROUP_ROUTER: &str = "ffn_gate_inp_group.weight";

/// Groups of neighbouring experts with a router over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouterGroups {
    /// How many groups the experts are in.
    pub groups: usize,
    /// How many groups a token uses; its experts are so many in each of these, and as many in all as the model says.
    pub used: usize,
}

/// Puts a router over groups before every router. It adds a matrix `[groups, in]` a layer, `blk.N.` and [`GROUP_ROUTER`].
///
/// # Errors
/// [`Error::Invalid`] for a model without routers and for numbers that do not fit its experts; [`Error::Unsupported`] for routers
/// whose weights are no softmax over the chosen logits.
pub fn with_router_groups(graph: &Graph, g: RouterGroups) -> Result<Graph> {
    let mut rewrite = Rewrite::new(graph);
    let mut found = false;
    for node in &graph.nodes {
        let (Op::Router(router), [logits]) = (&node.op, &node.inputs[..]) else {
            rewrite.copy(node)?;
            continue;
        };
        found = true;
        fits(router, g)?;
        let choice = rewrite.grouped(node, router, *logits, g)?;
        rewrite.values.extend(node.outputs.iter().copied().zip([choice.ids, choice.weights]));
    }
    if found {
        rewrite.finish()
    } else {
        Err(Error::Invalid("groups of experts in a model that has no routers".into()))
    }
}

fn fits(r: &Router, g: RouterGroups) -> Result<()> {
    let RouterGroups { groups, used } = g;
    let bad = |what: String| Err(Error::Invalid(what));
    let plain = r.selection_bias.is_none() && r.groups.is_none();
    if !(plain && r.sums_to_one()) {
        return Err(Error::Unsupported(format!(
            "a router over groups before a router of the kind `{}`: those whose weights are a softmax over the chosen logits, as \
             mixtral's, have it",
            r.variant()
        )));
    }
    if groups < 2 || r.experts % groups != 0 {
        return bad(format!("{groups} groups of {} experts; a divisor of their number from 2 is expected", r.experts));
    }
    if used == 0 || used > groups || r.used % used != 0 {
        return bad(format!(
            "{used} of {groups} groups used by tokens with {} experts; 1 to {groups} groups with as many experts in each are \
             expected",
            r.used
        ));
    }
    if r.used / used > r.experts / groups {
        return bad(format!("{} experts from each of {used} groups of {}", r.used / used, r.experts / groups));
    }
    Ok(())
}

impl Rewrite<'_> {
    /// The choice of a router over groups and those in the groups.
    fn grouped(&mut self, node: &Node, r: &Router, logits: ValueId, g: RouterGroups) -> Result<Choice> {
        let made = self.graph.nodes.iter().find(|n| n.outputs.contains(&logits));
        let Some(Node { op: Op::Linear(_), inputs, .. }) = made else {
            return Err(Error::Unsupported("groups before a router whose logits are not made by a matrix".into()));
        };
        let (x, secondary) = (self.value(inputs[0])?, self.value(logits)?);
        self.builder.set_layer(node.layer);
        let b = &mut self.builder;
        let name = node.layer.map_or_else(|| GROUP_ROUTER.into(), |layer| format!("blk.{layer}.{GROUP_ROUTER}"));
        let inp = b.graph().cols(x);
        let weight = b.weight(name, &[g.groups, inp]);
        let primary = b.one(Op::Linear(Linear { weight, bias: None }), &[x])?;
        let sizes = Hierarchy {
            groups: g.groups,
            per_group: r.experts / g.groups,
            groups_used: g.used,
            experts_used: r.used / g.used,
        };
        Ok(hierarchical(b, primary, secondary, sizes)?.1)
    }
}
