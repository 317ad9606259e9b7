//! Nodes as text, one line each, as `moeray inspect --plan` shows them.

use super::{Elementwise, Epilogue, KernelGraph, KernelNode, KernelOp, Route, SharedDown};
use crate::ir::{CacheId, Linear, Norm, ValueId, WeightId};
use std::fmt;

impl Elementwise {
    /// Operands.
    pub(super) fn operands(self) -> usize {
        match self {
            Elementwise::Add | Elementwise::Glu(_) | Elementwise::SigmoidGate => 2,
            Elementwise::Scale(_) | Elementwise::Act(_) | Elementwise::TakeOutputs => 1,
        }
    }
}

impl KernelOp {
    /// The op's name.
    pub fn name(&self) -> &'static str {
        match self {
            KernelOp::Tokens => "tokens",
            KernelOp::Input(_) => "input",
            KernelOp::Embed { .. } => "embed",
            KernelOp::Norm(_) => "norm",
            KernelOp::Elementwise(Elementwise::Add) => "add",
            KernelOp::Elementwise(Elementwise::Scale(_)) => "scale",
            KernelOp::Elementwise(Elementwise::Glu(_)) => "glu",
            KernelOp::Elementwise(Elementwise::Act(_)) => "act",
            KernelOp::Elementwise(Elementwise::SigmoidGate) => "sigmoid_gate",
            KernelOp::Elementwise(Elementwise::TakeOutputs) => "take_outputs",
            KernelOp::ScaleExpertInputs => "scale_expert_inputs",
            KernelOp::HeadIds { .. } => "head_ids",
            KernelOp::LocalIds { .. } => "local_ids",
            KernelOp::JoinHeads { .. } => "join_heads",
            KernelOp::Rope(_) => "rope",
            KernelOp::KvStore { .. } => "kv_store",
            KernelOp::RopeStore { .. } => "rope_store",
            KernelOp::Attend(_) => "attend",
            KernelOp::ShortConv(_) => "short_conv",
            KernelOp::DeltaNet(_) => "delta_net",
            KernelOp::Linear { .. } => "linear",
            KernelOp::LinearPair { .. } => "linear_pair",
            KernelOp::LinearGlu { .. } => "linear_glu",
            KernelOp::Router(_) => "router",
            KernelOp::RouterCached { .. } => "router_cached",
            KernelOp::ExpertPlaces { .. } => "expert_places",
            KernelOp::ExpertFill { .. } => "expert_fill",
            KernelOp::ExpertSort { .. } => "expert_sort",
            KernelOp::ExpertLinear { .. } => "expert_linear",
            KernelOp::ExpertGlu { .. } => "expert_glu",
            KernelOp::ExpertDown { .. } => "expert_down",
            KernelOp::ExpertCombine { .. } => "expert_combine",
            KernelOp::HostExperts { .. } => "host_experts",
        }
    }
}

/// A node with what its numbers stand for.
struct NodeText<'a>(&'a KernelGraph, &'a KernelNode);

impl NodeText<'_> {
    fn weights(&self, list: &[WeightId]) -> String {
        let name = |w: &WeightId| self.0.weight_names.get(w.0 as usize).map_or("?", String::as_str);
        list.iter().map(name).collect::<Vec<_>>().join(" + ")
    }

    fn parts(&self, parts: &[Linear]) -> String {
        let list: Vec<WeightId> = parts.iter().flat_map(|l| [l.weight].into_iter().chain(l.bias)).collect();
        self.weights(&list)
    }

    fn norm(&self, n: &Norm) -> String {
        self.weights(&n.weights().collect::<Vec<_>>())
    }

    fn epilogue(e: &Epilogue) -> Vec<String> {
        let act = e.act.map(|a| format!("{a:?}"));
        let gate = e.gated.then(|| "gated".to_string());
        let factor = (e.factor != 1.0).then(|| format!("times {}", e.factor));
        let residual = e.residual.then(|| "residual added".to_string());
        [act, gate, factor, residual].into_iter().flatten().collect()
    }

    fn route(r: Route) -> Option<String> {
        match r {
            Route::Slots => None,
            Route::Sorted { sort, slot } => Some(format!("sort {sort}, arguments {slot}")),
        }
    }

    fn rope_store(&self, norms: &[Option<Norm>; 2], after_rope: bool, cache: CacheId) -> Vec<String> {
        let order = if after_rope { "norms last" } else { "norms first" };
        let norms: Vec<String> = norms.iter().flatten().map(|n| self.norm(n)).collect();
        let order = (!norms.is_empty()).then(|| order.to_string());
        norms.into_iter().chain(order).chain([format!("cache{}", cache.0)]).collect()
    }

    fn expert_down(&self, linear: &Linear, factor: f32, shared: Option<SharedDown>) -> Vec<String> {
        let factor = (factor != 1.0).then(|| format!("times {factor}"));
        let shared = shared.map(|s| {
            let gated = if s.gated { ", gated" } else { "" };
            format!("with the shared expert's {}{gated}", self.weights(&[s.down]))
        });
        let first = [self.parts(&[*linear])].into_iter().chain(factor).chain(shared);
        first.chain(["residual added".to_string()]).collect()
    }

    /// What the node does besides its name, piece by piece.
    fn notes(&self) -> Vec<String> {
        let folded = |n: &Option<Norm>| n.map(|n| format!("norm inside: {}", self.norm(&n)));
        match &self.1.op {
            KernelOp::Embed { table, .. } => vec![self.weights(&[*table])],
            KernelOp::Norm(n) => vec![self.norm(n)],
            KernelOp::RopeStore { norms, qk_norm_after_rope, cache, .. } => {
                self.rope_store(norms, *qk_norm_after_rope, *cache)
            }
            KernelOp::KvStore { cache } => vec![format!("cache{}", cache.0)],
            KernelOp::Attend(a) => vec![format!("{} heads", a.heads), format!("cache{}", a.cache.0)],
            KernelOp::ShortConv(c) => vec![format!("state{}", c.state.0)],
            KernelOp::DeltaNet(d) => vec![format!("state{}", d.state.0)],
            KernelOp::Linear { parts, norm, keep_normed, epilogue } => {
                let kept = keep_normed.then(|| "normalised x kept".to_string());
                let first = [self.parts(parts)].into_iter().chain(folded(norm)).chain(kept);
                first.chain(NodeText::epilogue(epilogue)).collect()
            }
            KernelOp::LinearPair { parts, norm } => parts.iter().map(|p| self.parts(p)).chain(folded(norm)).collect(),
            KernelOp::LinearGlu { gate, up, act, norm } => {
                [self.weights(&[*gate]), self.weights(&[*up]), format!("{act:?}")]
                    .into_iter()
                    .chain(folded(norm))
                    .collect()
            }
            KernelOp::Router(r) => vec![r.to_string()],
            KernelOp::RouterCached { router, cache, .. } => vec![router.to_string(), format!("slots of cache {cache}")],
            KernelOp::ExpertPlaces { cache } | KernelOp::ExpertFill { cache } => {
                vec![format!("slots of cache {cache}")]
            }
            KernelOp::ExpertSort { sort, tile, blocks, .. } => {
                vec![format!("sort {sort}"), format!("tiles of {tile}"), format!("{blocks:?} workgroups")]
            }
            KernelOp::ExpertLinear { linear, act, route } => {
                let act = act.map(|a| format!("{a:?}"));
                [self.parts(&[*linear])].into_iter().chain(act).chain(NodeText::route(*route)).collect()
            }
            KernelOp::ExpertGlu { gate, up, act, route, shared, choose } => {
                let first = [self.parts(&[*gate]), self.parts(&[*up]), format!("{act:?}")];
                let shared = shared.map(|s| format!("with the shared expert's {}", self.weights(&s)));
                let choose = choose.map(|r| format!("chooses {r}"));
                first.into_iter().chain(NodeText::route(*route)).chain(shared).chain(choose).collect()
            }
            KernelOp::ExpertDown { linear, factor, shared } => self.expert_down(linear, *factor, *shared),
            KernelOp::ExpertCombine { residual } => {
                residual.map(|f| format!("residual added, times {f}")).into_iter().collect()
            }
            KernelOp::LocalIds { first, count } => vec![format!("{count} from {first} on")],
            KernelOp::HostExperts { region } => vec![format!("region {region}, computed by the host")],
            KernelOp::Tokens
            | KernelOp::Input(_)
            | KernelOp::Elementwise(_)
            | KernelOp::ScaleExpertInputs
            | KernelOp::HeadIds { .. }
            | KernelOp::JoinHeads { .. }
            | KernelOp::Rope(_) => vec![],
        }
    }
}

impl fmt::Display for NodeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |vs: &[ValueId]| vs.iter().map(|v| format!("%{}", v.0)).collect::<Vec<_>>().join(", ");
        let n = self.1;
        if !n.outputs.is_empty() {
            write!(f, "{} = ", list(&n.outputs))?;
        }
        write!(f, "{}({})", n.op.name(), list(&n.inputs))?;
        let notes = self.notes();
        if notes.is_empty() { Ok(()) } else { write!(f, " [{}]", notes.join("; ")) }
    }
}

impl KernelGraph {
    /// The nodes as text, one line each.
    pub fn lines(&self) -> Vec<String> {
        self.nodes.iter().map(|n| NodeText(self, n).to_string()).collect()
    }
}

impl fmt::Display for KernelGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for n in &self.nodes {
            let layer = n.layer.map_or_else(String::new, |l| l.to_string());
            writeln!(f, "     | {layer:>3} {}", NodeText(self, n))?;
        }
        Ok(())
    }
}
