//! A graph in two: what is the device's, what the host's.

use crate::goldens::{definition, families};
use moeray::{
    graph::{self, expert_weights, split_experts},
    ir::{Op, WeightId},
    plan::{self, Caps, Options},
    quant::KvType,
};
use std::collections::BTreeSet;

/// Of every family: all weights of routed experts are the host's and no others, the device's graph is whole without them, and its plan
/// has a call of the host for each layer with experts, and no more dispatches.
#[test]
fn every_family_is_split() {
    for name in families() {
        let g = definition(name).program.graph;
        let experts = expert_weights(&g);
        let layers: BTreeSet<u32> = experts.keys().copied().collect();
        let s = split_experts(&g, &layers).unwrap();
        assert_eq!(s.regions.iter().map(|r| r.layer).collect::<BTreeSet<u32>>(), layers, "{name}");
        graph::check(&s.device).unwrap_or_else(|e| panic!("{name}: {e}"));
        graph::check(&s.host).unwrap_or_else(|e| panic!("{name}: {e}"));
        let read = |g: &moeray::ir::Graph| g.nodes.iter().flat_map(|n| n.op.weights()).collect::<BTreeSet<WeightId>>();
        let wanted: BTreeSet<WeightId> = experts.into_values().flatten().collect();
        let names = |set: &BTreeSet<WeightId>| set.iter().map(|w| g.weight(*w).name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&read(&s.host)), names(&wanted), "{name}");
        assert!(read(&s.device).is_disjoint(&wanted), "{name}");
        assert_eq!(&read(&s.device) | &wanted, read(&g), "{name}");
        // One vector goes in for each token, and the router's choice.
        for r in &s.regions {
            assert!(r.inputs.len() <= 3 && g.cols(r.output) > 0, "{name}: {r:?}");
        }

        let dtypes: Vec<_> = definition(name).program.weights.iter().map(|t| t.dtype()).collect();
        let planned = |g: &moeray::ir::Graph| {
            let g = graph::fuse(g);
            let caps = Caps::webgpu_defaults();
            let w = plan::weights(&g, &dtypes, &caps).unwrap();
            let plan = plan::plan(&g, &w, &caps, &Options::new(64, 16, KvType::F16));
            (plan.unwrap_or_else(|e| panic!("{name}: {e}")), w.bytes())
        };
        let ((whole, all_bytes), (split, bytes)) = (planned(&g), planned(&s.device));
        plan::check_shaders(&split).unwrap();
        for (label, schedule) in split.schedules() {
            let schedule = schedule.unwrap();
            assert_eq!(schedule.host_calls.len(), layers.len(), "{name}, {label}");
            assert!(schedule.host_calls.is_sorted_by_key(|c| c.before), "{name}");
            // A shared expert is computed while the host is at work.
            let shared = g.weights.iter().any(|w| w.name.contains("_shexp"));
            let beside = |c: &plan::HostCall| c.needed > c.before;
            assert!(!shared || schedule.host_calls.iter().any(beside), "{name}, {label}");
            assert!(schedule.host_calls.iter().all(|c| c.needed >= c.before && c.needed < schedule.steps.len()));
        }
        assert!(whole.decode.host_calls.is_empty());
        // The choice of experts and a shared expert are no longer parts of the routed experts' dispatches.
        assert!(split.decode.steps.len() <= whole.decode.steps.len() + 2 * layers.len(), "{name}");
        assert_eq!(split.host_waits_per_token(), layers.len() + whole.host_waits_per_token());
        assert_eq!(bytes < all_bytes, !layers.is_empty(), "{name}");
        assert_eq!(split.to_string().contains("host_experts"), !layers.is_empty(), "{name}");
    }
}

/// Heads with matrices of their own are no experts, though the same op multiplies with them.
#[test]
fn latent_heads_stay() {
    let g = definition("deepseek_v2").program.graph;
    assert!(g.nodes.iter().any(|n| matches!(n.op, Op::HeadIds { .. })));
    let named = |w: &WeightId| g.weight(*w).name.contains("_exps");
    assert!(expert_weights(&g).values().flatten().all(named));
}

#[test]
fn layers_without_experts_cannot_be_split() {
    let g = definition("qwen2_moe").program.graph;
    assert_eq!(expert_weights(&g).into_keys().collect::<Vec<_>>(), [0, 2], "layer 1 is dense");
    for layer in [1, 7] {
        let e = split_experts(&g, &BTreeSet::from([layer])).unwrap_err().to_string();
        assert!(e.contains(&format!("layer {layer}")), "{e}");
    }
    let whole = split_experts(&g, &BTreeSet::new()).unwrap();
    assert!(whole.device == *g && whole.regions.is_empty());
}

/// A plan whose host reads what is not there, or whose device reads what the host has not computed, is refused.
#[test]
fn wrong_calls_of_the_host_are_noticed() {
    let d = definition("mixtral");
    let layers = expert_weights(&d.program.graph).into_keys().collect();
    let g = graph::fuse(&split_experts(&d.program.graph, &layers).unwrap().device);
    let dtypes: Vec<_> = d.program.weights.iter().map(|t| t.dtype()).collect();
    let caps = Caps::webgpu_defaults();
    let w = plan::weights(&g, &dtypes, &caps).unwrap();
    let good = plan::plan(&g, &w, &caps, &Options::new(64, 16, KvType::F16)).unwrap();
    let refused = |spoil: &dyn Fn(&mut plan::Schedule)| {
        let mut plan = good.clone();
        spoil(&mut plan.decode);
        plan::check(&plan, &w, &caps).unwrap_err().to_string()
    };
    assert!(plan::check(&good, &w, &caps).is_ok());
    assert!(refused(&|s| s.host_calls[0].needed += 1).contains("host has computed"));
    assert!(refused(&|s| s.host_calls[0].before = 0).contains("host expects"));
    assert!(refused(&|s| s.host_calls[1].region = 0).contains("host has computed"));
    assert!(refused(&|s| _ = s.host_calls.pop()).contains("host has computed"));
    assert!(refused(&|s| s.host_calls[0].inputs[0].cols += 1000).contains("beyond"));
    let late = |s: &mut plan::Schedule| s.host_calls.push(plan::HostCall { before: 10_000, ..s.host_calls[1].clone() });
    assert!(refused(&late).contains("not there"));
}
