//! The plan, without a GPU: equal input gives an equal plan, memory is shared without harm, the counts stay what they
//! are, and the checker rejects plans that were spoiled on purpose.

use crate::{goldens, support::rng::Rng};
use moeray::{
    Error,
    graph::{self, Builder},
    ir::{Activation, Graph, Linear, Norm, Op, ValueId},
    kernels::Reduction,
    plan::{self, Access, Buffer, Caps, Grid, KernelOp, Options, Plan, Weights},
    quant::{DType, KvType},
};

/// A fused model of the goldens, as the product runs it, with all matrices in one format, planned for a device of WebGPU's default limits.
fn planned(name: &str, dtype: DType, caps: &Caps, options: &Options) -> (Graph, Weights, Plan) {
    planned_with(name, |_| dtype, caps, options)
}

/// As [`planned`], with a format for each weight's name.
fn planned_with(name: &str, dtype: impl Fn(&str) -> DType, caps: &Caps, options: &Options) -> (Graph, Weights, Plan) {
    let g = graph::fuse(&goldens::defined(name, false).program.graph);
    let dtypes: Vec<DType> = g.weights.iter().map(|w| dtype(&w.name)).collect();
    let weights = plan::weights(&g, &dtypes, caps).unwrap();
    let plan = plan::plan(&g, &weights, caps, options).unwrap();
    (g, weights, plan)
}

fn options() -> Options {
    Options::new(4096, 64, KvType::F16)
}

const MODELS: [&str; 5] = ["llama", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe"];

#[test]
fn equal_input_gives_an_equal_plan() {
    let make = || planned("qwen2_moe", DType::F32, &Caps::webgpu_defaults(), &options()).2;
    let (a, b) = (make(), make());
    assert_eq!(format!("{a:?}"), format!("{b:?}"));
    assert_eq!(a.to_string(), b.to_string());
    assert_eq!(a.to_json(), b.to_json());
}

/// What a decoded token costs, held: an improvement changes this table.
#[test]
fn dispatches_of_a_token() {
    let mut got = vec![];
    for name in MODELS {
        let p = planned(name, DType::F32, &Caps::webgpu_defaults(), &options()).2;
        let json = p.to_json();
        let d = &json["decode"];
        assert_eq!(d["host_waits_per_token"], 0);
        assert_eq!(d["sampling_dispatches"], 2);
        assert_eq!(d["dispatches"], p.decode.steps.len());
        assert!(d["barriers"].as_u64().unwrap() <= d["dispatches"].as_u64().unwrap());
        assert!(d["bytes_per_token"].as_u64().unwrap() > 0 && d["bytes_per_position"].as_u64().unwrap() > 0);
        got.push((name, d["dispatches_per_layer"].as_f64().unwrap(), p.decode.steps.len()));
    }
    let want = [("llama", 7.0), ("mixtral", 8.0), ("qwen2_moe", 7.6667), ("qwen3_moe", 8.0), ("olmoe", 8.0)];
    for (g, w) in got.iter().zip(want) {
        assert!((g.1 - w.1).abs() < 0.01, "dispatches a layer: {got:?}");
    }
}

/// What is fused stands in the nodes of a schedule: each has its dispatch, or one for each segment of its matrices, and the
/// matrices that it reads are those that the graph reads.
#[test]
fn nodes_say_what_is_fused() {
    let (g, _, p) = planned("qwen2_moe", DType::F32, &Caps::webgpu_defaults(), &options());
    let ops = |s: &plan::Schedule| s.nodes.nodes.iter().map(|n| n.op.name()).collect::<Vec<_>>();
    let silent = |op: &&str| ["tokens", "input"].contains(op);
    let split = p.decode.steps.iter().filter(|s| s.variant.kernel.name == "attend_reduce").count();
    assert_eq!(p.decode.steps.len() - split, ops(&p.decode).iter().filter(|op| !silent(op)).count());
    let split = p.prefill.steps.iter().filter(|s| s.variant.kernel.name == "attend_reduce").count();
    assert_eq!(p.prefill.steps.len() - split, ops(&p.prefill).iter().filter(|op| !silent(op)).count());
    // One token: the routed experts choose themselves and take the shared one along. Many: they are sorted first.
    let glu = |n: &plan::KernelNode| matches!(n.op, KernelOp::ExpertGlu { shared: Some(_), choose: Some(_), .. });
    let routed = g.nodes.iter().filter(|n| n.op.name() == "norm_router").count();
    assert!(routed > 0);
    assert_eq!(p.decode.nodes.nodes.iter().filter(|n| glu(n)).count(), routed);
    assert!(!ops(&p.decode).contains(&"router") && !ops(&p.decode).contains(&"expert_sort"));
    assert_eq!(ops(&p.prefill).iter().filter(|op| **op == "expert_sort").count(), routed);
    assert!(p.to_string().contains("; chooses top "), "{p}");
    assert_eq!(p.to_json()["decode"]["nodes"].as_array().unwrap().len(), p.decode.nodes.nodes.len());

    // Nodes that cannot stand for the graph.
    let refused = |spoil: &dyn Fn(&mut plan::KernelGraph), word: &str| {
        let mut k = p.decode.nodes.clone();
        spoil(&mut k);
        let e = k.check(&g).unwrap_err().to_string();
        assert!(e.contains(word), "{e}");
    };
    p.decode.nodes.check(&g).unwrap();
    refused(&|k| _ = k.nodes.remove(1), "before it is made");
    refused(&|k| _ = k.nodes.pop(), "output logits");
    refused(&|k| k.nodes.push(k.nodes[1].clone()), "made twice");
    let first_glu = p.decode.nodes.nodes.iter().position(glu).unwrap();
    refused(
        &|k| {
            if let KernelOp::ExpertGlu { shared, .. } = &mut k.nodes[first_glu].op {
                *shared = Some([shared.unwrap()[0]; 2]);
            }
        },
        "ffn_up_shexp",
    );
    refused(&|k| _ = k.nodes[first_glu].outputs.pop(), "results");
}

/// What a long context costs: keys and values once, whatever the number of query heads; a window bounds it.
#[test]
fn bytes_of_a_long_context() {
    let caps = Caps::webgpu_defaults();
    let g = |window| {
        let mut g = graph::fuse(&goldens::definition("qwen3_moe").program.graph);
        for n in &mut g.nodes {
            if let Op::Attend(a) = &mut n.op {
                a.window = window;
            }
        }
        g
    };
    let planned = |window| {
        let g = g(window);
        let w = plan::weights(&g, &vec![DType::F32; g.weights.len()], &caps).unwrap();
        plan::plan(&g, &w, &caps, &Options::new(8192, 64, KvType::F16)).unwrap()
    };
    let read = |window, past| planned(window).decode.totals(plan::Sizes { tokens: 1, outputs: 1, past }).read;
    let caches = &g(None).caches;
    let position: u64 = caches.iter().map(|c| 2 * (c.kv_heads * (c.k_dim + c.v_dim)) as u64).sum();
    assert_eq!(read(None, 8191) - read(None, 127), 8064 * position);
    assert_eq!(read(Some(1024), 8191) - read(Some(1024), 127), 896 * position);
    assert_eq!(read(Some(1024), 8191), read(Some(1024), 2000));
    // What a short window lets a token see needs no split, and so nothing that merges splits.
    let steps = |window| planned(window).decode.steps.len();
    assert_eq!(steps(None) - steps(Some(128)), caches.len());
    assert_eq!(steps(None), steps(Some(1024)));
}

/// Files of mixed formats (Q4_K_M stores values and last products more finely) cost no more dispatches.
#[test]
fn mixed_formats_cost_no_dispatch() {
    for name in MODELS {
        let caps = Caps::webgpu_defaults();
        let mixed = |w: &str| match ["attn_v", "ffn_down", "v_proj", "down_proj"].iter().any(|s| w.contains(s)) {
            true => DType::F16,
            false => DType::BF16,
        };
        let (one, many) =
            (planned(name, DType::F32, &caps, &options()).2, planned_with(name, mixed, &caps, &options()).2);
        assert_eq!(one.decode.steps.len(), many.decode.steps.len(), "{name}");
        assert_eq!(one.prefill.steps.len(), many.prefill.steps.len(), "{name}");
        plan::check_shaders(&many).unwrap();
    }
}

/// Every byte of weights that a token needs is counted, and not more: all of a dense model, k of E of the experts.
#[test]
fn bytes_of_a_token() {
    let caps = Caps::webgpu_defaults();
    let (g, weights, plan) = planned("mixtral", DType::F32, &caps, &options());
    let experts = |m: &plan::Matrix| m.parts.iter().any(|w| g.weight(*w).shape.len() == 3);
    let embed = |m: &plan::Matrix| g.weight(m.parts[0]).name.contains("token_embd");
    let (k, e) = goldens::definition("mixtral").decoder.moe().map(|m| (m.router.used, m.router.experts)).unwrap();
    let bytes = |m: &plan::Matrix| match (experts(m), embed(m)) {
        (true, _) => m.bytes() * k as u64 / e as u64,
        (_, true) => m.bytes() / m.rows as u64,
        _ => m.bytes(),
    };
    let weights: u64 = weights.matrices.iter().map(bytes).sum();
    let total = plan.to_json()["decode"]["bytes_per_token"].as_u64().unwrap();
    assert!(total > weights && total < weights + weights / 4, "{total} bytes for {weights} of weights");
}

#[test]
fn every_plan_agrees_with_its_shaders() {
    let caps = Caps::webgpu_defaults();
    for (i, name) in MODELS.iter().enumerate() {
        let dtype = [DType::F32, DType::F16, DType::BF16][i % 3];
        for reduction in [Reduction::Workgroup, Reduction::Invocation] {
            let options = Options { reduction: Some(reduction), ..options() };
            plan::check_shaders(&planned(name, dtype, &caps, &options).2).unwrap();
        }
    }
}

#[test]
fn text_and_json_say_the_same() {
    let p = planned("qwen3_moe", DType::F32, &Caps::webgpu_defaults(), &options()).2;
    let text = p.to_string();
    for step in &p.decode.steps {
        assert!(text.contains(&step.variant.label()), "{}", step.variant.label());
    }
    let json = p.to_json();
    assert_eq!(json["decode"]["steps"].as_array().unwrap().len(), p.decode.steps.len());
    assert!(text.contains(&format!("{} dispatches, {} barriers", p.decode.steps.len(), json["decode"]["barriers"])));
}

/// A random graph of cheap ops in which values live for very different times.
fn random_graph(seed: u64) -> Graph {
    let mut rng = Rng(seed);
    let mut b = Builder::new();
    let mut values = vec![b.one(Op::Input { name: "x".into(), cols: 32 }, &[]).unwrap()];
    for i in 0..3 + rng.below(40) {
        let pick = |rng: &mut Rng, values: &[ValueId]| values[values.len() - 1 - rng.below(values.len().min(12))];
        let (x, y) = (pick(&mut rng, &values), pick(&mut rng, &values));
        let made = match rng.below(6) {
            0 => b.one(Op::Add, &[x, y]),
            1 => b.one(Op::Scale(0.5), &[x]),
            2 => b.one(Op::Glu(Activation::Silu), &[x, y]),
            3 => {
                let weight = b.weight(format!("n{i}"), &[32]);
                b.one(Op::RmsNorm(Norm::rms(weight, 1e-6)), &[x])
            }
            4 => {
                let part =
                    |b: &mut Builder, j: usize| Linear { weight: b.weight(format!("w{i}.{j}"), &[32, 32]), bias: None };
                let parts = vec![part(&mut b, 0), part(&mut b, 1), part(&mut b, 2)];
                let made = b.add(Op::NormLinears { norm: None, parts }, &[x]).unwrap();
                values.extend(&made[..2]);
                Ok(made[2])
            }
            _ => {
                let weight = b.weight(format!("w{i}"), &[32, 32]);
                b.one(Op::LinearAdd { linear: Linear { weight, bias: None }, gated: false, factor: 1.0 }, &[x, y])
            }
        };
        values.push(made.unwrap());
    }
    b.output("last", *values.last().unwrap());
    b.output("some", values[rng.below(values.len())]);
    b.finish()
}

/// From first to last use, a transient buffer has its scratch buffer for itself. Said here once more, from scratch.
fn no_overlap(s: &plan::Schedule) {
    let mut lives = vec![(usize::MAX, 0); s.transients.len()];
    for (i, step) in s.steps.iter().enumerate() {
        for c in step.bindings.iter().filter_map(|b| b.transient) {
            let l = &mut lives[c as usize];
            *l = (l.0.min(i), i);
        }
    }
    for o in s.outputs.iter().filter_map(|o| o.transient) {
        lives[o as usize].1 = usize::MAX;
    }
    for (a, la) in lives.iter().enumerate() {
        for (b, lb) in lives.iter().enumerate().skip(a + 1) {
            let apart = la.1 < lb.0 || lb.1 < la.0;
            assert!(
                apart || s.transients[a].scratch != s.transients[b].scratch,
                "{a} {la:?} and {b} {lb:?} share a buffer"
            );
        }
    }
}

#[test]
fn memory_is_shared_without_harm() {
    let caps = Caps::webgpu_defaults();
    let (mut transients, mut buffers) = (0, 0);
    for seed in 0..300 {
        let g = random_graph(seed);
        let w = plan::weights(&g, &vec![DType::F32; g.weights.len()], &caps).unwrap();
        let p = plan::plan(&g, &w, &caps, &options()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        for s in p.schedules().into_iter().filter_map(|s| s.1) {
            no_overlap(s);
            transients += s.transients.len();
            buffers += s.scratch.len();
        }
        // With canaries nothing is shared.
        let p = plan::plan(&g, &w, &caps, &Options { canaries: true, ..options() }).unwrap();
        assert_eq!(p.decode.transients.len(), p.decode.scratch.len(), "seed {seed}");
    }
    assert!(buffers * 3 < transients * 2, "{buffers} buffers for {transients} transients: nothing is shared");
}

/// The checker against plans that are wrong in one way each.
#[test]
fn the_checker_rejects_broken_plans() {
    let caps = Caps::webgpu_defaults();
    let (_, weights, good) = planned("qwen3_moe", DType::F32, &caps, &options());
    plan::check(&good, &weights, &caps).unwrap();
    let spoiled = |what: &str, spoil: &dyn Fn(&mut Plan)| {
        let mut p = good.clone();
        spoil(&mut p);
        let e = plan::check(&p, &weights, &caps).expect_err(what);
        assert!(matches!(e, Error::Device(_)), "{what}: {e}");
    };
    spoiled("everything in one buffer", &|p| {
        for step in &mut p.decode.steps {
            for b in &mut step.bindings {
                if let Buffer::Scratch(i) = &mut b.buffer {
                    *i = 0;
                }
            }
        }
    });
    spoiled("a transient in the buffer of another that lives", &|p| {
        // The residual of a layer lives across the steps that follow its making.
        let target = p.decode.steps[1].bindings.iter().find(|b| b.access == Access::Read).unwrap().buffer;
        let write = p.decode.steps[2].bindings.iter_mut().find(|b| b.access == Access::ReadWrite).unwrap();
        write.buffer = target;
    });
    spoiled("a step that is missing", &|p| {
        p.prefill.steps.remove(3);
    });
    spoiled("steps in another order", &|p| p.prefill.steps.swap(3, 4));
    spoiled("a weight that is written", &|p| p.decode.steps[0].bindings[1].access = Access::ReadWrite);
    spoiled("a binding beyond its buffer", &|p| p.decode.steps[2].bindings[0].size *= 1000);
    spoiled("an offset that is not aligned", &|p| {
        let b = &mut p.decode.steps[2].bindings[0];
        (b.offset, b.size) = (4, b.size - 4);
    });
    spoiled("too many workgroups", &|p| {
        if let Grid::Direct { x, .. } = &mut p.decode.steps[0].grid {
            *x = 70_000;
        }
    });
    spoiled("workgroups from a plain buffer", &|p| {
        p.prefill.scratch.iter_mut().for_each(|s| s.indirect = false);
    });
    spoiled("an output that is overwritten", &|p| {
        let o = p.decode.outputs[0].transient.unwrap();
        p.decode.outputs[0].transient = Some(o - 1);
    });
    spoiled("nine storage bindings", &|p| {
        let b = p.decode.steps[0].bindings[0].clone();
        p.decode.steps[0].bindings.extend(vec![b; 8]);
    });
}

#[test]
fn the_shader_check_rejects_wrong_bindings() {
    let good = planned("qwen3_moe", DType::F32, &Caps::webgpu_defaults(), &options()).2;
    let spoiled = |what: &str, spoil: &dyn Fn(&mut plan::Step)| {
        let mut p = good.clone();
        spoil(&mut p.decode.steps[3]);
        assert!(plan::check_shaders(&p).is_err(), "{what}");
    };
    spoiled("a binding is missing", &|s| {
        s.bindings.pop();
    });
    spoiled("another access", &|s| s.bindings[0].access = Access::ReadWrite);
    spoiled("a name that the shader does not know", &|s| s.bindings[0].name = "elsewhere");
    spoiled("uniforms of another size", &|s| s.params.extend([0; 4]));
}

#[test]
fn weights_are_cut_to_fit() {
    let caps = Caps { max_binding: 16 << 10, ..Caps::webgpu_defaults() };
    let (g, weights, plan) = planned("qwen3_moe", DType::F32, &caps, &Options::new(64, 8, KvType::F32));
    assert!(weights.matrices.iter().filter(|m| m.segments.len() > 1).count() > 4);
    for m in &weights.matrices {
        let mut row = 0;
        for s in &m.segments {
            assert!(s.row0 == row && s.rows > 0 && s.bytes <= caps.max_binding, "{}: {s:?}", m.name);
            row += s.rows;
        }
        assert_eq!(row, m.rows, "{}", m.name);
    }
    // Gate and up of an expert unit are cut at the same rows, though their formats differ in size.
    let mut mixed = weights.dtypes.clone();
    for (d, w) in mixed.iter_mut().zip(&g.weights) {
        if w.name.contains("ffn_up") {
            *d = DType::F16;
        }
    }
    let w = plan::weights(&g, &mixed, &caps).unwrap();
    let find = |what: &str| w.matrices.iter().find(|m| m.name.contains(what)).unwrap();
    let cuts = |m: &plan::Matrix| m.segments.iter().map(|s| (s.row0, s.rows)).collect::<Vec<_>>();
    assert_eq!(cuts(find("ffn_gate_exps")), cuts(find("ffn_up_exps")));
    // Fewer tokens at a time rather than buffers that do not fit.
    let small = Caps { max_binding: 16 << 10, ..Caps::webgpu_defaults() };
    assert!(plan.prefill.max_tokens == 8);
    let (_, _, p) = planned("qwen3_moe", DType::F32, &small, &Options::new(32, 512, KvType::F16));
    assert!(p.prefill.max_tokens < 512 && p.prefill.max_tokens > 1, "{}", p.prefill.max_tokens);
}

/// What does not fit is refused when planning, by name and with what would help.
#[test]
fn refusals_say_what_would_help() {
    let caps = Caps::webgpu_defaults();
    let g = graph::fuse(&goldens::definition("qwen3_moe").program.graph);
    let w = plan::weights(&g, &vec![DType::F32; g.weights.len()], &caps).unwrap();
    let e = plan::plan(&g, &w, &caps, &Options::new(1 << 22, 8, KvType::F32)).unwrap_err().to_string();
    assert!(e.contains("shorter context"), "{e}");
    let tiny = Caps { max_binding: 128, ..caps.clone() };
    let e = plan::weights(&g, &vec![DType::F32; g.weights.len()], &tiny).unwrap_err().to_string();
    assert!(e.contains("does not fit a binding"), "{e}");
    let mut b = Builder::new();
    let x = b.one(Op::Input { name: "x".into(), cols: 6 }, &[]).unwrap();
    let weight = b.weight("odd", &[4, 6]);
    let y = b.one(Op::Linear(Linear { weight, bias: None }), &[x]).unwrap();
    b.output("y", y);
    let e = plan::weights(&b.finish(), &[DType::F32], &caps).unwrap_err();
    assert!(matches!(&e, Error::Unsupported(s) if s.contains("odd")), "{e}");
}
