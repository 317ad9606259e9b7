//! Sequences on models with recurrent states: going back, conversations, copies, and what is refused.

use crate::{
    goldens::{definition, folder, golden, tolerance},
    support::{
        Target, compare, load,
        one::{OneSequence, Step, one},
    },
};
use moeray::{
    backend::runner::Runner,
    model,
    quant::KvType,
    session::{BackendChoice, Budget, LoadOptions, Model, Session, SessionOptions, Status},
};

const NAME: &str = "qwen3_next";

/// A step may begin where the states stand, where they were kept, and at the beginning; anywhere else is an error that
/// says where, and nothing is computed on wrong states.
#[test]
fn steps_begin_only_where_the_states_are_known() {
    let (d, g) = (definition(NAME), golden(NAME));
    let vocab = g.logits.len() / g.ids.len();
    for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
        let Some(loaded) = load(target, &d.program) else { continue };
        let mut r = loaded.runner(one(32, 16, KvType::F32)).unwrap();
        let mut out = vec![];
        let mut step = |r: &mut Runner, from: usize, to: usize| {
            r.run(Step { tokens: &g.ids[from..to], past: from, outputs: 1, inputs: &[] }, &mut out)?;
            let want = &g.logits[(to - 1) * vocab..to * vocab];
            compare::check(&out[0].f32, want, tolerance(target)).unwrap_or_else(|e| panic!("{target:?}: {e}"));
            Ok::<(), moeray::Error>(())
        };
        assert_eq!(r.resume_at(0, 5), 0, "nothing was fed");
        assert!(step(&mut r, 3, 5).is_err(), "the first tokens are missing");
        step(&mut r, 0, 9).unwrap();
        r.snapshot(0).unwrap();
        step(&mut r, 9, 10).unwrap();
        step(&mut r, 10, 14).unwrap();
        assert_eq!((r.resume_at(0, 14), r.resume_at(0, 13), r.resume_at(0, 9), r.resume_at(0, 8)), (14, 9, 9, 0));
        let e = step(&mut r, 12, 14).unwrap_err().to_string();
        assert!(e.contains("recurrent") && e.contains("after 9"), "{target:?}: {e}");
        step(&mut r, 9, 12).unwrap();
        step(&mut r, 0, 2).unwrap();
        step(&mut r, 2, 3).unwrap();
        // The text that the snapshot belongs to was left: nothing is after its 9 tokens any more.
        assert!(step(&mut r, 9, 13).is_err());
        step(&mut r, 3, 9).unwrap();
        step(&mut r, 9, 13).unwrap();
        step(&mut r, 13, 20).unwrap();
    }
}

fn session(backend: BackendChoice, chunk: usize) -> Session {
    let options = LoadOptions { backend, ..Default::default() };
    let model = Model::load(&folder(NAME), &options, &mut |_| {}).unwrap();
    Session::new(&model, SessionOptions { ctx: 64, ubatch: chunk, kv: KvType::F32 }).unwrap()
}

/// Going back in a session gives what a fresh session gives, from wherever and in whatever pieces.
#[test]
fn truncated_sessions_compute_the_same() {
    let g = golden(NAME);
    let vocab = g.logits.len() / g.ids.len();
    for backend in [BackendChoice::Reference, BackendChoice::Cpu(Default::default())] {
        let tolerance = if matches!(backend, BackendChoice::Reference) { 1e-9 } else { 1e-6 };
        let mut s = session(backend, 5);
        let mut other = g.ids.clone();
        other.reverse();
        // Back to after the prompt, to within it, to the beginning, to where it stands.
        for (prompt, more, back) in [(12, 4, 12), (9, 1, 7), (13, 6, 0), (11, 0, 11), (4, 3, 1)] {
            s.truncate(0);
            s.prefill(&g.ids[..prompt]).unwrap();
            other[..more].iter().for_each(|id| _ = s.decode(*id).unwrap());
            s.truncate(back);
            assert_eq!(s.position(), back);
            // The same tokens go on as in the golden, although others were fed in between.
            let logits = s.prefill(&g.ids[back..20]).unwrap();
            compare::check(logits, &g.logits[19 * vocab..20 * vocab], tolerance).unwrap();
        }
    }
}

/// The snapshot of an earlier text does not come back for another that is as long.
#[test]
fn states_of_an_earlier_text_stay_away() {
    let g = golden(NAME);
    for backend in [BackendChoice::Reference, BackendChoice::Cpu(Default::default())] {
        let (mut used, mut fresh) = (session(backend.clone(), 5), session(backend, 5));
        let text: Vec<u32> = g.ids[..14].iter().rev().copied().collect();
        // One text leaves a snapshot after 12 tokens; the other comes token by token, which leaves none.
        used.prefill(&g.ids[..12]).unwrap();
        used.truncate(0);
        text.iter().for_each(|id| _ = used.decode(*id).unwrap());
        used.truncate(12);
        fresh.prefill(&text[..12]).unwrap();
        let (got, want) = (used.decode(7).unwrap(), fresh.decode(7).unwrap());
        compare::check(got, want, 1e-6).unwrap();
    }
}

/// A saved session goes on in another one, and can still go back.
#[test]
fn saved_sessions_go_on() {
    let g = golden(NAME);
    let vocab = g.logits.len() / g.ids.len();
    for backend in [BackendChoice::Reference, BackendChoice::Cpu(Default::default())] {
        let tolerance = if matches!(backend, BackendChoice::Reference) { 1e-9 } else { 1e-6 };
        let mut s = session(backend.clone(), 5);
        s.prefill(&g.ids[..9]).unwrap();
        let bytes = s.save().unwrap();
        let want = s.decode(g.ids[9]).unwrap().to_vec();
        drop(s);
        let mut s = session(backend, 6);
        s.prefill(&g.ids[4..7]).unwrap();
        s.restore(&bytes).unwrap();
        assert_eq!((s.position(), s.decode(g.ids[9]).unwrap()), (9, &want[..]));
        s.truncate(4);
        let logits = s.prefill(&g.ids[4..20]).unwrap();
        compare::check(logits, &g.logits[19 * vocab..20 * vocab], tolerance).unwrap();
        // Saved right after going back, where the states stand elsewhere.
        s.truncate(10);
        let bytes = s.save().unwrap();
        s.truncate(0);
        s.restore(&bytes).unwrap();
        let logits = s.prefill(&g.ids[10..20]).unwrap();
        compare::check(logits, &g.logits[19 * vocab..20 * vocab], tolerance).unwrap();
        assert!(s.restore(&bytes[..bytes.len() - 4]).is_err() && s.restore(&[]).is_err());
    }
}

/// A prompt as a future, after going back: the states are brought there first, slice by slice.
#[test]
fn a_prompt_is_a_future() {
    let g = golden(NAME);
    let vocab = g.logits.len() / g.ids.len();
    let mut s = session(BackendChoice::Cpu(Default::default()), 5);
    s.prefill(&g.ids[..12]).unwrap();
    s.truncate(8);
    s.begin_prefill(&g.ids[8..20]).unwrap();
    let (done, polls) = crate::runner::block_on(s.result(Budget::dispatches(4)));
    done.unwrap();
    assert!(polls > 20, "{polls}");
    compare::check(s.last_logits(), &g.logits[19 * vocab..20 * vocab], 1e-6).unwrap();
    assert_eq!(s.position(), 20);
    assert!(crate::runner::block_on(s.result(Budget::UNLIMITED)).0.is_err(), "nothing is queued");
}

/// A prompt that is cancelled at any slice leaves a session that goes on from what it took in.
#[test]
fn a_cancelled_prompt_leaves_a_usable_session() {
    let g = golden(NAME);
    let vocab = g.logits.len() / g.ids.len();
    for backend in [BackendChoice::Reference, BackendChoice::Cpu(Default::default())] {
        let tolerance = if matches!(backend, BackendChoice::Reference) { 1e-9 } else { 1e-6 };
        let mut s = session(backend, 5);
        for slices in [0, 1, 9, 30, 60, 90] {
            s.truncate(0);
            s.begin_prefill(&g.ids[..16]).unwrap();
            assert!(s.begin_prefill(&[1]).is_err(), "one thing at a time");
            let busy = (0..slices).take_while(|_| s.poll(Budget::dispatches(1)).unwrap() != Status::Done).count();
            s.cancel();
            let at = s.position();
            assert!(at % 5 == 0 || busy < slices, "whole micro-batches: {at}");
            let logits = s.prefill(&g.ids[at..20]).unwrap();
            compare::check(logits, &g.logits[19 * vocab..20 * vocab], tolerance).unwrap();
        }
    }
}

/// Memory says what the states take, twice: as they stand and as they were kept.
#[test]
fn states_count_as_memory() {
    let d = definition(NAME);
    let states: usize = d.program.graph.states.iter().map(|s| s.len).sum();
    // Three layers, each a convolution over 64 channels (3 inputs) and 4 heads of 8 x 8.
    assert_eq!(states, 3 * (3 * 64 + 4 * 64));
    let size = |ctx: usize| {
        let loaded = load(Target::Reference, &d.program).unwrap();
        loaded.runner(one(ctx, 1, KvType::F32)).unwrap().memory_bytes()
    };
    let caches = size(2) - size(1);
    assert_eq!(size(1) - caches, 8 * states as u64);
}

/// A state belongs to one node, and has the size that its op needs.
#[test]
fn malformed_states_are_refused() {
    use moeray::ir::{Op, StateId};
    let spoiled = |spoil: &dyn Fn(&mut moeray::ir::Graph)| {
        let mut graph = (*definition(NAME).program.graph).clone();
        spoil(&mut graph);
        moeray::graph::check(&graph).is_err()
    };
    assert!(!spoiled(&|_| {}));
    assert!(spoiled(&|g| g.states[0].len += 1));
    assert!(spoiled(&|g| _ = g.states.pop()));
    assert!(spoiled(&|g| {
        let first = g.nodes.iter_mut().filter_map(|n| if let Op::DeltaNet(d) = &mut n.op { Some(d) } else { None });
        first.take(2).for_each(|d| d.state = StateId(1));
    }));
}

/// A checkpoint of a model that also sees, with names one level down, a vision tower and a multi-token prediction head: the
/// text model runs, and what was left out is named. Anything else that is not used is an error.
#[test]
fn optional_parts_are_left_out_by_name() {
    use moeray::file;
    let source = folder("qwen3_5_moe");
    let (dir, bytes) = (tempfile::tempdir().unwrap(), std::fs::read(source.join("model.safetensors")).unwrap());
    let text: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(source.join("config.json")).unwrap()).unwrap();
    let config = serde_json::json!({"model_type": "qwen3_5_moe", "text_config": text, "vision_config": {"depth": 2}});
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let nested = |n: &str| match n.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => n.to_string(),
    };
    let mut all: Vec<(String, safetensors::tensor::TensorView<'_>)> =
        tensors.iter().map(|(n, t)| (nested(n), t)).collect();
    let one = || tensors.tensor("lm_head.weight").unwrap();
    all.push(("model.visual.blocks.0.attn.qkv.weight".into(), one()));
    all.push(("model.visual.merger.norm.weight".into(), one()));
    all.push(("mtp.fc.weight".into(), one()));
    let write = |all: &[(String, safetensors::tensor::TensorView<'_>)]| {
        let path = dir.path().join("model.safetensors");
        safetensors::serialize_to_file(all.iter().map(|(n, t)| (n, t)), None, &path).unwrap();
        model::build(&file::open(dir.path()).unwrap(), &model::Options::default())
    };
    let d = write(&all).unwrap();
    assert_eq!(d.skipped, ["multi-token prediction (1 tensors)", "vision tower (2 tensors)"]);
    let g = golden("qwen3_5_moe");
    let loaded = load(Target::Reference, &d.program).unwrap();
    let out = crate::goldens::forward(&*loaded, &g.ids, &[g.ids.len()]);
    compare::check(&out[0].f32, &g.logits, 1e-9).unwrap();
    all.push(("model.language_model.strange.weight".into(), one()));
    assert!(write(&all).unwrap_err().to_string().contains("strange"));
}
