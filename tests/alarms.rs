//! Comparators against data that they must reject, and the table of parity against backends that compute something else.

use crate::{
    parity::{TABLE, case::Case, table},
    support::{StepInput, Target, compare::*, gpu, load, rng::Rng, run},
};
use moeray::{
    backend::{
        Output, Program,
        wgpu::{self, Gpu},
    },
    file::{Bytes, Tensor},
    graph::{self, Eviction, ExpertSlots},
    ir::Op,
    kernels::{Reduction, Tiles, catalogue},
    plan,
    quant::KvType,
};
use std::collections::BTreeSet;

#[test]
fn numbers() {
    let want = Rng(1).normals(1000, 1.0);
    assert!(check(&want, &want, 1e-12).is_ok());
    let spoil = |f: &dyn Fn(&mut Vec<f32>)| {
        let mut got = want.clone();
        f(&mut got);
        check(&got, &want, 1e-6)
    };
    assert!(spoil(&|g| g[500] = f32::NAN).is_err(), "one NaN");
    assert!(spoil(&|g| g[500] = f32::INFINITY).is_err(), "one infinity");
    assert!(spoil(&|g| g[7] = -g[7]).is_err(), "one flipped sign");
    assert!(spoil(&|g| g.rotate_left(1)).is_err(), "a shift by one");
    assert!(spoil(&|g| g.iter_mut().for_each(|x| *x *= 1.01)).is_err(), "1 % too large");
    assert!(spoil(&|g| g[990..].fill(0.0)).is_err(), "a tail not written");
    assert!(check(&vec![0.0; 1000], &want, 1e-6).is_err(), "all zeros");
    // One error that the mean does not show: caught by the largest error.
    let wide = vec![1.0f32; 1_000_000];
    let mut got = wide.clone();
    got[3] = 1.5;
    assert!(diff(&got, &wide).nmse < 1e-6 && check(&got, &wide, 1e-6).is_err());
}

#[test]
fn routing_is_compared_as_pairs() {
    let want: (&[u32], &[f32]) = (&[3, 1, 0, 2], &[0.6, 0.4, 0.7, 0.3]);
    let same_pairs: (&[u32], &[f32]) = (&[1, 3, 0, 2], &[0.4, 0.6, 0.7, 0.3]);
    assert!(check_routing(same_pairs, want, 2, 1e-5).is_ok());
    assert!(check_routing((&[1, 3, 0, 2], want.1), want, 2, 1e-5).is_err(), "ids swapped, weights not");
    assert!(check_routing((&[3, 1, 0, 1], want.1), want, 2, 1e-5).is_err(), "another expert");
    assert!(check_routing((&[0, 2, 3, 1], &[0.7, 0.3, 0.6, 0.4]), want, 2, 1e-5).is_err(), "tokens swapped");
    assert!(check_routing((want.0, &[0.6, 0.4, f32::NAN, 0.3]), want, 2, 1e-5).is_err(), "a NaN weight");
    assert!(check_routing((&[3, 1], &[0.6, 0.4]), want, 2, 1e-5).is_err(), "a token missing");
    assert!(
        check_routing((&want.0[..3], &want.1[..3]), (&want.0[..3], &want.1[..3]), 2, 1e-5).is_err(),
        "half a token"
    );
}

/// Outputs of a step, `rows` of 4 numbers each.
fn step(rng: &mut Rng, rows: usize) -> Vec<Output> {
    vec![Output { rows, cols: 4, f32: rng.normals(4 * rows, 1.0), u32: vec![] }]
}

#[test]
fn one_wrong_step_does_not_drown() {
    let mut rng = Rng(5);
    let names = ["y0".to_string()];
    let want: Vec<_> = [500, 1, 1].map(|rows| step(&mut rng, rows)).into();
    assert!(check_steps(&names, &want, &want, 1e-12).is_ok());
    let mut got = want.clone();
    got[2][0].f32.iter_mut().for_each(|x| *x *= 1.0 + 8e-6);
    let all = [&want, &got].map(|s| s.iter().flat_map(|o| o[0].f32.clone()).collect::<Vec<f32>>());
    assert!(check(&all[1], &all[0], 1e-12).is_ok(), "joined it is not seen");
    assert!(check_steps(&names, &got, &want, 1e-12).is_err(), "the last step");
    assert!(check_steps(&names, &want[..2], &want, 1e-12).is_err(), "a step missing");
    let swapped = [want[0].clone(), want[2].clone(), want[1].clone()];
    assert!(check_steps(&names, &swapped, &want, 1e-12).is_err(), "two steps swapped");
    got = want.clone();
    got[1][0].f32[2] = f32::NAN;
    assert!(check_steps(&names, &got, &want, 1e-12).is_err(), "one NaN");
    // Outputs that are called weights are compared too where no ids stand beside them.
    let names = ["router_weights_0".to_string()];
    assert!(check_steps(&names, &swapped, &want, 1e-12).is_err());
}

/// The backends that the table's cases are spoilt on: the loosest tolerance among them.
const TARGETS: [Target; 4] = [Target::Cpu, Target::CpuInt8, Target::Wgpu, Target::WgpuWorkgroup];

/// A change to what a backend is given.
type Spoil<'a> = &'a dyn Fn(&mut Program, &mut Vec<StepInput>);

/// On every backend the case passes as it stands, and fails where the backend is given something else than the reference: each of the
/// changes by itself.
fn each_seen(case: &Case, changes: &[(String, Spoil<'_>)]) {
    // Activations of 8 bits are in the table with caches of f32 only.
    let fits = |t: &Target| *t != Target::CpuInt8 || case.kv == KvType::F32;
    for target in TARGETS.into_iter().filter(fits) {
        let want = case.want(target);
        let run_with = |program: &Program, steps: &[StepInput]| Some(run(&*load(target, program)?, case.kv, steps));
        let Some(good) = run_with(&case.program, &case.steps) else { continue };
        case.compare(target, &good, want).unwrap_or_else(|e| panic!("{target:?}: {e}"));
        for (what, spoil) in changes {
            let (mut program, mut steps) = (case.program.clone(), case.steps.clone());
            spoil(&mut program, &mut steps);
            let bad = run_with(&program, &steps).unwrap();
            assert!(case.compare(target, &bad, want).is_err(), "{what} in {} is not seen on {target:?}", case.name);
        }
    }
}

fn seen(what: &str, case: &Case, spoil: Spoil<'_>) {
    each_seen(case, &[(what.into(), spoil)]);
}

fn named(cases: &'static [Case], name: &str) -> &'static Case {
    cases.iter().find(|c| c.name.starts_with(name)).unwrap_or_else(|| panic!("no case {name}"))
}

/// Changes the bytes of a weight.
fn edit_weight(program: &mut Program, index: usize, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut weights = program.weights.to_vec();
    let t = &weights[index];
    let mut bytes: Vec<u8> = (0..t.rows()).flat_map(|r| t.row(r)).copied().collect();
    edit(&mut bytes);
    weights[index] = Tensor::new(t.dtype(), t.shape().to_vec(), vec![Bytes::from_vec(bytes)]).unwrap();
    *program = Program::new((*program.graph).clone(), weights).unwrap();
}

#[test]
fn a_dropped_expert_is_seen() {
    for name in ["moe/plain", "moe/shared expert", "moe/Q4_K Q4_K Q6_K"] {
        let case = named(table::moe_blocks(), name);
        // The last of the experts' matrices.
        let down = case.program.weights.iter().rposition(|t| t.shape().len() == 3).unwrap();
        let experts = case.program.weights[down].shape()[0];
        let chosen: Vec<u32> = case.want(Target::Reference).iter().flat_map(|s| s[0].u32.clone()).collect();
        let without = [0, experts - 1].map(|expert| {
            move |program: &mut Program, _: &mut Vec<StepInput>| {
                edit_weight(program, down, |bytes| {
                    let size = bytes.len() / experts;
                    bytes[expert * size..(expert + 1) * size].fill(0);
                });
            }
        });
        let ends = [(0, &without[0] as Spoil<'_>), (experts - 1, &without[1])];
        let of_chosen = ends.into_iter().filter(|(e, _)| chosen.contains(&(*e as u32)));
        let changes: Vec<_> = of_chosen.map(|(e, spoil)| (format!("a missing expert {e}"), spoil)).collect();
        each_seen(case, &changes);
    }
}

#[test]
fn a_swapped_pair_is_seen() {
    let mut rung = 0;
    for case in table::routers().iter().filter(|c| c.name.contains("plain") || c.name.contains("biased")) {
        for target in TARGETS {
            let want = case.want(target);
            let (last, k) = (want.len() - 1, want[0][0].cols);
            // Two of one token whose weights differ: equal ones may be swapped.
            let weights = &want[last][1].f32;
            let differ = |i: &usize| i % k != k - 1 && weights[i + 1] < 0.9 * weights[*i];
            let Some(at) = (0..weights.len() - 1).find(differ) else { continue };
            let mut got = want.to_vec();
            got[last][0].u32.swap(at, at + 1);
            assert!(case.compare(target, &got, want).is_err(), "{}: ids", case.name);
            got[last][1].f32.swap(at, at + 1);
            assert!(case.compare(target, &got, want).is_ok(), "{}: ids and weights", case.name);
            got[last][0].u32.swap(at, at + 1);
            assert!(case.compare(target, &got, want).is_err(), "{}: weights", case.name);
            rung += 1;
        }
    }
    assert!(rung > 40, "{rung}");
}

/// In the last step, the shortest.
#[test]
fn a_shifted_token_is_seen() {
    let shift = |_: &mut Program, steps: &mut Vec<StepInput>| {
        let (shape, tokens, inputs) = steps.iter_mut().rfind(|s| s.0.tokens > 1).unwrap();
        tokens.rotate_left(1);
        for (_, x) in inputs {
            let row = x.len() / shape.tokens;
            x.rotate_left(row);
        }
    };
    seen("a shifted token", named(table::linear(), "linear/Q4_K [67"), &shift);
    seen("a shifted token", named(table::embed(), "embed/Q8_0"), &shift);
    seen("a shifted token", named(table::moe_blocks(), "moe/plain"), &shift);
    seen("a shifted token", named(table::attend(), "attend/6 on 2"), &shift);
}

/// The scale of 32 weights of one row, of 6 bits, by one; a softmax of scores by one column of the heads more.
#[test]
fn a_scale_off_by_one_is_seen() {
    // A block of Q4_K: two halves, then 12 bytes of scales.
    seen("a scale of weights", named(table::linear(), "linear/Q4_K [67"), &|program, _| {
        edit_weight(program, 0, |bytes| bytes[4] = if bytes[4] & 63 == 63 { bytes[4] - 1 } else { bytes[4] + 1 });
    });
    let heads = |program: &mut Program, _: &mut Vec<StepInput>| {
        let mut graph = (*program.graph).clone();
        for node in &mut graph.nodes {
            if let Op::Attend(a) = &mut node.op {
                a.scale = 1.0 / (1.0 / a.scale.powi(2) + 1.0).sqrt();
            }
        }
        *program = Program::new(graph, program.weights.to_vec()).unwrap();
    };
    let cases = table::attend().iter().filter(|c| c.name.contains("attend/8 on 2") && !c.name.contains("Some"));
    let cases: Vec<&Case> = cases.collect();
    assert!(cases.len() > 2, "caches of every type");
    cases.iter().for_each(|c| seen("a scale of scores", c, &heads));
}

/// A shader's text with the sign of every number that it writes to its outputs flipped.
fn with_flipped_signs(text: &str) -> String {
    // Outputs of whole numbers (ids, sorted pairs) have no sign.
    let numbers = ["y", "weights", "state"].map(|name| (format!("{name}["), format!("read_write> {name}: array<")));
    let is_float = |ty: &str| ty.starts_with("f32") || ty.starts_with("vec4<f32>");
    let of_floats = |declared: &str| text.split(declared).nth(1).is_some_and(is_float);
    let flipped = |line: &str| {
        let (_, declared) = numbers.iter().find(|(store, _)| line.trim_start().starts_with(store))?;
        let (place, value) = line.split_once("] = ")?;
        let (value, rest) = value.rsplit_once(';')?;
        of_floats(declared).then(|| format!("{place}] = -({value});{rest}"))
    };
    let lines: Vec<String> = text.lines().map(|l| flipped(l).unwrap_or_else(|| l.into())).collect();
    lines.join("\n")
}

/// The table, with caches of f32.
fn in_f32() -> Vec<&'static Case> {
    TABLE.iter().flat_map(|(_, cases)| cases()).filter(|c| c.kv == KvType::F32).collect()
}

/// The kernels that a case runs.
fn kernels_of(case: &Case, gpu: &Gpu, (reduction, slots): (Reduction, bool)) -> BTreeSet<&'static str> {
    let graph = graph::fuse(&case.program.graph);
    let dtypes: Vec<_> = case.program.weights.iter().map(|t| t.dtype()).collect();
    let layout = if slots { plan::weights_by_expert } else { plan::weights };
    let weights = match layout(&graph, &dtypes, gpu.caps()) {
        Ok(weights) => weights,
        // Matrices that cannot be cut between experts have no slots.
        Err(moeray::Error::Unsupported(_) | moeray::Error::Device(_)) if slots => return BTreeSet::new(),
        Err(e) => panic!("{}: {e}", case.name),
    };
    let steps = || case.steps.iter().map(|s| s.0);
    let (ctx, ubatch) = (steps().map(|s| s.past + s.tokens).max().unwrap(), steps().map(|s| s.tokens).max().unwrap());
    let expert_slots = slots.then_some(SLOTS);
    let options =
        plan::Options { reduction: Some(reduction), expert_slots, ..plan::Options::new(ctx, ubatch, case.kv) };
    let plan = match plan::plan(&graph, &weights, gpu.caps(), &options) {
        Ok(plan) => plan,
        // Experts of odd sizes have no slots.
        Err(moeray::Error::Unsupported(_)) if slots => return BTreeSet::new(),
        Err(e) => panic!("{}: {e}", case.name),
    };
    let schedules = plan.schedules().into_iter().filter_map(|s| s.1);
    schedules.flat_map(|s| &s.steps).map(|s| s.variant.kernel.name).collect()
}

/// A slot for every expert.
const SLOTS: ExpertSlots = ExpertSlots { slots: 1024, eviction: Eviction::Lru };

/// Every kernel that writes numbers, with their sign flipped in its text and in no other's: cases of the table fail.
#[test]
fn a_flipped_sign_in_a_shader_is_seen() {
    let Some(under_test) = gpu() else { return };
    let name = under_test.name().split(" (").next().unwrap().to_string();
    let mut cases = in_f32();
    cases.sort_by_key(|c| c.program.weights.iter().map(|t| t.byte_len()).sum::<usize>());
    // The reduction, whether experts have slots, and whose tolerance.
    let ways = [
        (Reduction::Invocation, false, Target::Wgpu),
        (Reduction::Workgroup, false, Target::WgpuWorkgroup),
        (Reduction::Workgroup, true, Target::WgpuWorkgroup),
    ];
    let used: Vec<_> = cases.iter().map(|c| ways.map(|(r, slots, _)| kernels_of(c, &under_test, (r, slots)))).collect();
    let mut unseen = vec![];
    for kernel in catalogue::ALL {
        let of_kernel = |i: &usize| (0..ways.len()).find(|s| used[*i][*s].contains(kernel.name)).map(|s| (*i, s));
        // Those of its own name first; several, because a plan may have it for other sizes, or for what goes to a cache.
        let mut candidates: Vec<(usize, usize)> = (0..cases.len()).filter_map(|i| of_kernel(&i)).collect();
        candidates.sort_by_key(|(i, _)| !cases[*i].name.starts_with(kernel.name));
        let seen = candidates.into_iter().take(4).any(|(i, s)| {
            let options = wgpu::Options { device: Some(name.clone()), checked: true, ..Default::default() };
            let gpu = Gpu::open(&options).unwrap();
            gpu.edit_shaders(move |name, text| {
                if name == kernel.name {
                    *text = with_flipped_signs(text);
                }
            });
            let run_options = wgpu::RunOptions {
                reduction: Some(ways[s].0),
                tiles: Some(Tiles::F32),
                expert_slots: ways[s].1.then_some(SLOTS),
                ..Default::default()
            };
            let loaded = gpu.load_with(cases[i].program.clone(), run_options, &mut |_| Ok(())).unwrap();
            let got = run(&*loaded, cases[i].kv, &cases[i].steps);
            cases[i].compare(ways[s].2, &got, cases[i].want(ways[s].2)).is_err()
        });
        if !seen {
            unseen.push(kernel.name);
        }
    }
    // These write whole numbers, or move them.
    let fills = ["expert_fill_1", "expert_fill_2", "expert_fill_3", "expert_places"];
    let others = ["copy", "expert_sort", "head_ids", "kv_store", "local_ids", "probe", "sample_keys", "sample_pick"];
    let whole: BTreeSet<&str> = fills.into_iter().chain(others).collect();
    assert_eq!(unseen.into_iter().collect::<BTreeSet<_>>(), whole);
}
