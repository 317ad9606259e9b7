//! Slots of experts as plans have them: what they cost, and what is refused.

use crate::{
    goldens::{defined, families},
    parity::case::Maker,
    plan_sizes::unmade,
};
use moeray::{
    Error,
    file::{Tensor, synth::Shape},
    graph::{self, Eviction, ExpertSlots},
    ir::{Linear, Op, Router, Score},
    kernels::Reduction,
    model::Definition,
    plan::{self, Buffer, Caps, Options, Plan, Weights},
    quant::{DType, KvType},
};

fn slots(slots: usize) -> ExpertSlots {
    ExpertSlots { slots, eviction: Eviction::Lru }
}

/// A device that binds the experts of a layer as a whole.
fn caps() -> Caps {
    Caps { max_binding: 1 << 30, max_buffer: 2 << 30, ..Caps::webgpu_defaults() }
}

/// A model planned with so many slots, or without.
fn planned(d: &Definition, caps: &Caps, reduction: Reduction, expert_slots: Option<ExpertSlots>) -> (Weights, Plan) {
    let g = graph::fuse(&d.program.graph);
    let dtypes: Vec<DType> = d.program.weights.iter().map(Tensor::dtype).collect();
    let layout = if expert_slots.is_some() { plan::weights_by_expert } else { plan::weights };
    let w = layout(&g, &dtypes, caps).unwrap();
    let options = Options { reduction: Some(reduction), expert_slots, ..Options::new(512, 32, KvType::F16) };
    let plan = plan::plan(&g, &w, caps, &options).unwrap();
    (w, plan)
}

/// What slots cost a token: at most two dispatches a layer with experts, and no wait of the host. Steps of many tokens are what they were.
fn costs(name: &str, d: &Definition, caps: &Caps) {
    for reduction in [Reduction::Workgroup, Reduction::Invocation] {
        let (_, whole) = planned(d, caps, reduction, None);
        let (_, cached) = planned(d, caps, reduction, Some(slots(usize::MAX)));
        plan::check_shaders(&cached).unwrap();
        let layers = cached.expert_caches.len();
        let more = cached.decode.steps.len() - whole.decode.steps.len();
        assert!(more <= 2 * layers, "{name}, {reduction:?}: {more} dispatches more in {layers} layers");
        assert!(layers == 0 || more >= layers, "{name}: what is missing is copied by a dispatch");
        assert_eq!(cached.host_waits_per_token(), whole.host_waits_per_token(), "{name}");
        assert!(cached.decode.host_calls.is_empty());
        // Few tokens find their experts in slots too, where every expert has one; many never.
        let labels = |p: &plan::Schedule| p.steps.iter().map(|s| s.variant.label()).collect::<Vec<_>>();
        if let (Some(a), Some(b)) = (&whole.small_batch, &cached.small_batch) {
            assert_eq!(b.steps.len() - a.steps.len(), 2 * layers, "{name}: few tokens");
        }
        assert_eq!(labels(&whole.prefill), labels(&cached.prefill), "{name}");
        let Some(router) = d.decoder.moe().map(|m| m.router) else { continue };
        let (_, few) = planned(d, caps, reduction, Some(slots((8 * router.used).min(router.experts) - 1)));
        assert_eq!(
            whole.small_batch.as_ref().map(labels),
            few.small_batch.as_ref().map(labels),
            "{name}: too few slots"
        );
    }
}

#[test]
fn slots_cost_two_dispatches_a_layer() {
    let mut with_experts = 0;
    for name in families() {
        let d = defined(name, false);
        costs(name, &d, &caps());
        with_experts +=
            usize::from(!planned(&d, &caps(), Reduction::Workgroup, Some(slots(64))).1.expert_caches.is_empty());
    }
    assert!(with_experts >= 10, "{with_experts} families with experts");
    for name in ["qwen3-30b-a3b", "mixtral-8x7b", "olmoe-1b-7b", "qwen1.5-moe-a2.7b", "gpt-oss-20b"] {
        let d = unmade(&Shape::preset(name).unwrap().with_layers(3), |_, dims| {
            if dims[dims.len() - 1].is_multiple_of(256) { DType::Q4K } else { DType::Q8_0 }
        });
        costs(name, &d, &caps());
    }
}

/// Where a device binds only a part of a layer's experts at a time, each part is copied by a dispatch of its own, and none of an expert
/// is left out.
#[test]
fn experts_in_several_bindings() {
    let d = unmade(&Shape::preset("qwen3-30b-a3b").unwrap().with_layers(2), |_, _| DType::Q4K);
    let small = Caps { max_binding: 40 << 20, ..Caps::webgpu_defaults() };
    let (w, p) = planned(&d, &small, Reduction::Workgroup, Some(slots(16)));
    for c in &p.expert_caches {
        for m in &c.matrices {
            let matrix = &w.matrices[m.matrix as usize];
            assert!(matrix.segments.len() >= 3, "{} in {} segments", matrix.name, matrix.segments.len());
            assert!(matrix.segments.iter().all(|s| s.rows.is_multiple_of(m.out)), "{}: an expert is cut", matrix.name);
            assert_eq!(matrix.segments.iter().map(|s| s.rows).sum::<usize>(), matrix.rows);
        }
        assert_eq!((c.experts, c.used, c.slots, c.matrices.len()), (128, 8, 16, 3));
    }
    let of = |i: u32, part: u32| {
        let slots = Buffer::ExpertSlots { cache: i, part };
        let fills = p.decode.steps.iter().filter(|s| s.variant.kernel.name.starts_with("expert_fill"));
        fills.filter(|s| s.bindings.iter().any(|b| b.buffer == slots)).count()
    };
    for (i, c) in (0..).zip(&p.expert_caches) {
        for (part, m) in (0..).zip(&c.matrices) {
            assert_eq!(of(i, part), w.matrices[m.matrix as usize].segments.len(), "each segment is looked through");
        }
    }
    // An expert that does not fit a binding has no slot, and slots that do not fit one are too many.
    let g = graph::fuse(&d.program.graph);
    let dtypes: Vec<DType> = d.program.weights.iter().map(Tensor::dtype).collect();
    let tiny = Caps { max_binding: 700 << 10, ..Caps::webgpu_defaults() };
    let e = plan::weights_by_expert(&g, &dtypes, &tiny).unwrap_err();
    assert!(matches!(&e, Error::Device(what) if what.contains("expert") && what.contains("does not fit")), "{e}");
    let e = plan::plan(&g, &w, &small, &Options { expert_slots: Some(slots(128)), ..Options::new(64, 8, KvType::F16) });
    let e = e.unwrap_err().to_string();
    assert!(e.contains("128 slots") && e.contains("fewer slots"), "{e}");
}

/// Fewer slots than a token uses experts are none, and a plan that reads slots that nothing fills is refused.
#[test]
fn slots_that_are_of_no_use_and_plans_that_are_wrong() {
    let d = defined("qwen3_moe", false);
    let used = d.decoder.moe().unwrap().router.used;
    let (_, none) = planned(&d, &caps(), Reduction::Workgroup, Some(slots(used - 1)));
    let (_, whole) = planned(&d, &caps(), Reduction::Workgroup, None);
    assert!(none.expert_caches.is_empty() && none.expert_cache_bytes() == 0);
    assert_eq!(none.decode.steps.len(), whole.decode.steps.len());

    let (w, good) = planned(&d, &caps(), Reduction::Workgroup, Some(slots(used)));
    assert!(good.expert_cache_bytes() > 0 && good.to_string().contains("router_cached"));
    let refused = |spoil: &dyn Fn(&mut plan::Schedule)| {
        let mut plan = good.clone();
        spoil(&mut plan.decode);
        plan::check(&plan, &w, &caps()).unwrap_err().to_string()
    };
    assert!(plan::check(&good, &w, &caps()).is_ok());
    let no_fill = |s: &mut plan::Schedule| s.steps.retain(|s| !s.variant.kernel.name.starts_with("expert_fill"));
    assert!(refused(&no_fill).contains("nothing has filled"));
    let other = |s: &mut plan::Schedule| {
        for b in s.steps.iter_mut().flat_map(|s| &mut s.bindings) {
            if let Buffer::ExpertSlots { cache, .. } = &mut b.buffer {
                *cache = 99;
            }
        }
    };
    assert!(refused(&other).contains("does not exist"));
}

/// Experts that do not begin at whole pieces of 16 bytes are refused by name: nothing is copied wrongly.
#[test]
fn experts_of_odd_sizes_are_refused() {
    let made = |rows: usize, dtype: DType| {
        let mut m = Maker::new(1);
        let (logits, x) = (m.input(4), m.input(32));
        let ids = m.b.add(Op::Router(Router::new(4, 2, Score::Softmax)), &[logits]).unwrap()[0];
        let weight = m.weight(&[4, rows, 32], dtype);
        let y = m.one(Op::ExpertLinear(Linear { weight, bias: None }), &[x, ids]);
        let program = m.finish("odd", &[("y0", y)], &[(1, 0, 1)]).program;
        let w = plan::weights_by_expert(&program.graph, &[dtype], &caps()).unwrap();
        let options = Options { expert_slots: Some(slots(3)), ..Options::new(64, 8, KvType::F16) };
        plan::plan(&program.graph, &w, &caps(), &options)
    };
    // Q8_0 has 2 bytes of scales for 32 weights: 4 rows have 8.
    match made(4, DType::Q8_0) {
        Err(Error::Unsupported(what)) => assert!(what.contains("pieces of 16 bytes") && what.contains("w0"), "{what}"),
        other => panic!("{:?}", other.map(|p| p.decode.steps.len())),
    }
    for (rows, dtype) in [(8, DType::Q8_0), (1, DType::F32), (3, DType::BF16), (16, DType::MXFP4)] {
        let plan = made(rows, dtype).unwrap_or_else(|e| panic!("{rows} rows of {dtype}: {e}"));
        assert_eq!(plan.expert_caches.len(), 1);
    }
}
