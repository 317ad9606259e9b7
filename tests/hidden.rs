//! Hidden states of every family on every backend: what the output matrix makes of them is what transformers gives.

use crate::{
    goldens::{Golden, defined, families, folder, golden, tolerance},
    support::{Target, compare, load, one::one},
};
use moeray::{
    Error,
    backend::{
        Loaded, Output,
        runner::{Results, Row, RunnerOptions, Step},
    },
    file::{
        self, Checkpoint, Value,
        synth::{Shape, Synthetic},
    },
    ir::{Op, RESIDUAL},
    model::Definition,
    ops::{
        Array, Weights, elementwise,
        linear::{self, Activations},
    },
    quant::{DType, KvType},
    session::{BackendChoice, Batch, BatchTurn, LoadOptions, Model, Pooled, Pooling, Session, SessionOptions},
};

/// Feeds a golden's ids in steps of these lengths, with the hidden states of the rows that `wants` names.
fn hidden(loaded: &dyn Loaded, g: &Golden, chunks: &[usize], wants: impl Fn(usize) -> bool) -> (Vec<f32>, Vec<usize>) {
    let mut runner = loaded.runner(one(g.ids.len(), *chunks.iter().max().unwrap(), KvType::F32)).unwrap();
    let (mut all, mut positions, mut at) = (vec![], vec![], 0);
    for n in chunks {
        let row = |i: usize| Row { hidden: wants(i), logits: i + 1 == at + n, ..Row::fed(g.ids[i], 0, i) };
        let rows: Vec<Row> = (at..at + n).map(row).collect();
        let Results { outputs, hidden, hidden_of, .. } = runner.step(&Step { rows: &rows, ..Step::default() }).unwrap();
        assert_eq!(outputs[0].rows, 1, "logits of the last row");
        assert_eq!(outputs.last().unwrap(), &Output { cols: outputs.last().unwrap().cols, ..Output::default() });
        all.extend_from_slice(hidden);
        positions.extend(hidden_of.iter().map(|(sequence, position)| {
            assert_eq!(*sequence, 0);
            *position
        }));
        at += n;
    }
    (all, positions)
}

/// The graph's nodes behind the final norm, by their reference code.
fn head(d: &Definition, hidden: &[f32]) -> Vec<f32> {
    let (g, tensors) = (&d.program.graph, &d.program.weights[..]);
    let w = Weights { tensors, activations: Activations::F32, owned: &[] };
    let user = |v| g.nodes.iter().find(|n| n.inputs.contains(&v));
    let residual = g.outputs.iter().find(|o| o.0 == RESIDUAL).unwrap().1;
    let taken = g.nodes.iter().find(|n| n.op == Op::TakeOutputs && n.inputs == [residual]).unwrap();
    let mut value = user(taken.outputs[0]).unwrap().outputs[0];
    let cols = g.cols(value);
    let mut x = Array { rows: hidden.len() / cols, cols, data: hidden.to_vec() };
    while let Some(n) = user(value) {
        x = match &n.op {
            Op::Linear(l) => linear::eval(&x, l, w),
            Op::Scale(f) => elementwise::scale(&x, *f),
            Op::Act(a) => elementwise::act(&x, *a),
            other => panic!("{other:?} behind the final norm"),
        };
        value = n.outputs[0];
    }
    x.data
}

fn check(target: Target) {
    for name in families() {
        let (d, g) = (defined(name, name == "qwen3_moe"), golden(name));
        let Some(loaded) = load(target, &d.program) else { return };
        let t = g.ids.len();
        for chunks in [vec![t], vec![7, 1, 3, t - 11]] {
            let (rows, positions) = hidden(&*loaded, &g, &chunks, |_| true);
            assert_eq!(positions, (0..t).collect::<Vec<_>>());
            compare::check(&head(&d, &rows), &g.logits, tolerance(target))
                .unwrap_or_else(|e| panic!("{name} on {target:?}, chunks {chunks:?}: {e}"));
            // The next row's state is another one.
            let cols = rows.len() / t;
            assert!(compare::check(&rows[cols..], &rows[..rows.len() - cols], 1e-3).is_err(), "{name}");
            let (some, positions) = hidden(&*loaded, &g, &chunks, |i| i % 3 == 1);
            let want: Vec<usize> = (0..t).filter(|i| i % 3 == 1).collect();
            assert_eq!(positions, want);
            let rows: Vec<f32> = want.iter().flat_map(|i| &rows[i * cols..(i + 1) * cols]).copied().collect();
            assert_eq!(some, rows, "{name} on {target:?}");
        }
    }
}

#[test]
fn of_the_reference() {
    check(Target::Reference);
}

#[test]
fn of_the_cpu() {
    check(Target::Cpu);
}

#[test]
fn of_the_gpu() {
    check(Target::Wgpu);
}

fn model(name: &str) -> Model {
    let options = LoadOptions { backend: BackendChoice::Cpu(Default::default()), ..Default::default() };
    Model::load(&folder(name), &options, &mut |_| {}).unwrap()
}

#[test]
fn a_session_gives_them_and_a_batch_the_same() {
    for name in ["mixtral", "qwen3_next"] {
        let model = model(name);
        let texts: [Vec<u32>; 2] = [(1..10).collect(), (20..25).collect()];
        let small = SessionOptions { ctx: 32, ubatch: 4, kv: KvType::F32 };
        let alone = texts.each_ref().map(|t| Session::new(&model, small).unwrap().hidden_states(t).unwrap());
        let options = RunnerOptions { ctx: 32, sequences: 2, ubatch: 32, kv: KvType::F32 };
        let mut batch = Batch::new(&model, options).unwrap();
        let turn = |sequence: usize| BatchTurn {
            sequence,
            tokens: &texts[sequence],
            random: None,
            allowed: None,
            hidden: true,
        };
        batch.choose(&[turn(1), turn(0)]).unwrap();
        for (sequence, want) in alone.iter().enumerate() {
            let got: Vec<f32> = batch.hidden(sequence).flatten().copied().collect();
            compare::check(&got, want, 1e-8).unwrap_or_else(|e| panic!("{name}, sequence {sequence}: {e}"));
        }
        // A session goes on behind them.
        let mut session = Session::new(&model, small).unwrap();
        session.hidden_states(&texts[0]).unwrap();
        let logits = session.decode(3).unwrap().to_vec();
        let whole: Vec<u32> = texts[0].iter().copied().chain([3]).collect();
        let mut other = Session::new(&model, small).unwrap();
        compare::check(&logits, other.prefill(&whole).unwrap(), 1e-8).unwrap();
    }
}

#[test]
fn vectors_are_pooled() {
    let rows = [[3.0f32, 0.0], [0.0, 1.0], [0.0, 7.0]];
    let of = |pooling| {
        let mut p = Pooled::new(pooling).unwrap();
        rows.iter().for_each(|r| p.push(r));
        p.finish().unwrap()
    };
    assert_eq!(of(Pooling::First), [1.0, 0.0]);
    assert_eq!(of(Pooling::Last), [0.0, 1.0]);
    let length = (3f64 * 3.0 + 8.0 * 8.0).sqrt();
    assert_eq!(of(Pooling::Mean), [(3.0 / length) as f32, (8.0 / length) as f32]);
    assert!(matches!(Pooled::new(Pooling::None), Err(Error::Unsupported(_))));
    let mut p = Pooled::new(Pooling::Mean).unwrap();
    p.push(&[f32::NAN, 1.0]);
    assert!(matches!(p.finish(), Err(Error::Model(_))));
    let mut p = Pooled::new(Pooling::Last).unwrap();
    p.push(&[0.0, 0.0]);
    assert_eq!(p.finish().unwrap(), [0.0, 0.0]);
}

#[test]
fn a_text_has_a_vector() {
    let model = model("qwen3_moe");
    let options = SessionOptions { ctx: 32, ubatch: 3, kv: KvType::F32 };
    let text: Vec<u32> = (1..9).collect();
    let mut session = Session::new(&model, options).unwrap();
    let states = session.hidden_states(&text).unwrap();
    let cols = states.len() / text.len();
    for (pooling, want) in [
        (Pooling::First, states[..cols].to_vec()),
        (Pooling::Last, states[7 * cols..].to_vec()),
        (Pooling::Mean, (0..cols).map(|c| states.iter().skip(c).step_by(cols).sum::<f32>() / 8.0).collect()),
    ] {
        session.truncate(0);
        let got = session.embedding(&text, pooling).unwrap();
        let length = want.iter().map(|x| x * x).sum::<f32>().sqrt();
        let want: Vec<f32> = want.iter().map(|x| x / length).collect();
        compare::check(&got, &want, 1e-9).unwrap_or_else(|e| panic!("{pooling:?}: {e}"));
    }
    assert!(matches!(session.embedding(&text, Pooling::None), Err(Error::Unsupported(_))));
    assert!(matches!(session.hidden_states(&[]), Err(Error::Invalid(_))));
}

/// A small model whose GGUF says this of pooling.
fn saying(key: Option<Value>) -> Checkpoint {
    let shape = Shape::preset("tiny").unwrap();
    let made = Synthetic::new(&shape, 1, |_, _| DType::F16).unwrap().checkpoint(&mut |_, _| Ok(())).unwrap();
    let mut meta = made.meta().clone();
    if let Some(value) = key {
        meta.set("qwen3moe.pooling_type", value);
    }
    Checkpoint::from_parts(meta, made.into_tensors()).unwrap()
}

#[test]
fn the_file_says_how_to_pool() {
    let said = |ckpt: &Checkpoint| {
        let options = LoadOptions { backend: BackendChoice::Reference, ..Default::default() };
        Model::from_checkpoint(ckpt, &options, &mut |_| {}).unwrap().pooling()
    };
    assert_eq!(said(&saying(None)).unwrap(), None);
    for (value, want) in [(0, Pooling::None), (1, Pooling::Mean), (2, Pooling::First), (3, Pooling::Last)] {
        assert_eq!(said(&saying(Some(Value::U32(value)))).unwrap(), Some(want));
    }
    for value in [4, 9] {
        let e = said(&saying(Some(Value::U32(value)))).unwrap_err().to_string();
        assert!(e.contains("qwen3moe.pooling_type") && e.contains("mean, first, last"), "{e}");
    }
}

#[test]
fn a_folder_says_how_to_pool() {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder("mixtral")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::remove_file(dir.path().join("expected.safetensors")).unwrap();
    std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    for (text, want) in [
        (r#"{"pooling_mode_cls_token": false, "pooling_mode_lasttoken": true, "include_prompt": true}"#, Pooling::Last),
        (r#"{"word_embedding_dimension": 8, "pooling_mode_mean_tokens": true}"#, Pooling::Mean),
        (r#"{"pooling_mode": "cls"}"#, Pooling::First),
    ] {
        std::fs::write(dir.path().join("1_Pooling/config.json"), text).unwrap();
        let options = LoadOptions { backend: BackendChoice::Reference, ..Default::default() };
        let ckpt = file::open(dir.path()).unwrap();
        let model = Model::from_checkpoint(&ckpt, &options, &mut |_| {}).unwrap();
        assert_eq!(model.pooling().unwrap(), Some(want), "{text}");
    }
    std::fs::write(dir.path().join("1_Pooling/config.json"), r#"{"pooling_mode_max_tokens": true}"#).unwrap();
    let e = moeray::model::pooling(&file::open(dir.path()).unwrap(), "llama").unwrap_err().to_string();
    assert!(e.contains("1_Pooling/config.json") && e.contains("max_tokens"), "{e}");
}
