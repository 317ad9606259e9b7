//! Several sequences in one step, on every backend: each equals its own single run, whatever runs beside it.

use crate::{
    goldens::definition,
    support::{
        Target, compare, load,
        one::{OneSequence, Step, one},
    },
};
use moeray::{
    Error,
    backend::{
        Loaded,
        runner::{self, Row, RunnerOptions},
    },
    generate::{SamplerOptions, Sampling},
    quant::KvType,
    session::{BackendChoice, Batch, BatchTurn, Budget, Chosen, LoadOptions, Model, Session, SessionOptions, Status},
};

/// Logits of every position of a sequence that runs alone.
fn alone(loaded: &dyn Loaded, ids: &[u32], logits: usize, kv: KvType) -> Vec<f32> {
    let mut runner = loaded.runner(one(40, 40, kv)).unwrap();
    let mut out = vec![];
    runner.run(Step { tokens: ids, past: 0, outputs: ids.len(), inputs: &[] }, &mut out).unwrap();
    out.swap_remove(logits).f32
}

/// Rows of steps: (sequence, how many of its tokens come), in this order. Prompts of different lengths, sequences that join
/// and pause, one that is fed two at a time, rows of one sequence apart from each other.
const STEPS: [&[(usize, usize)]; 7] = [
    &[(0, 5), (2, 3)],
    &[(0, 1), (1, 7), (2, 1)],
    &[(2, 1), (1, 1), (0, 1)],
    &[(1, 1)],
    &[(0, 1), (1, 2), (0, 1), (2, 1), (1, 1)],
    &[(2, 6), (0, 1), (1, 1), (2, 1)],
    &[(0, 1), (1, 1), (2, 1)],
];

fn ids(sequence: usize) -> Vec<u32> {
    (0..16).map(|i| ((7 + 31 * sequence + 13 * i * (sequence + 1)) % 96) as u32).collect()
}

fn check(target: Target, name: &str, most_rows: usize) {
    check_with(target, name, most_rows, KvType::F32, 1e-8);
}

fn check_with(target: Target, name: &str, most_rows: usize, kv: KvType, tolerance: f64) {
    let d = definition(name);
    let Some(loaded) = load(target, &d.program) else { return };
    let logits = d.program.graph.outputs.iter().position(|o| o.0 == "logits").unwrap();
    let want: Vec<Vec<f32>> = (0..3).map(|s| alone(&*loaded, &ids(s), logits, kv)).collect();
    let options = RunnerOptions { ctx: 40, sequences: 3, ubatch: most_rows, kv };
    let mut batch = loaded.runner(options).unwrap();
    assert!(batch.memory_bytes() > 0);
    let mut at = [0; 3];
    for step in STEPS {
        let mut rows = vec![];
        for &(sequence, n) in step {
            for _ in 0..n {
                let position = at[sequence];
                // All rows but the first give logits.
                let logits = !rows.is_empty();
                rows.push(Row { logits, ..Row::fed(ids(sequence)[position], sequence, position) });
                at[sequence] += 1;
            }
        }
        let out = &batch.step(&runner::Step { rows: &rows, ..Default::default() }).unwrap().outputs;
        let cols = out[logits].cols;
        assert_eq!(out[logits].rows, rows.len() - 1);
        for (got, r) in out[logits].f32.chunks(cols).zip(&rows[1..]) {
            let want = &want[r.sequence][r.position * cols..(r.position + 1) * cols];
            compare::check(got, want, tolerance).unwrap_or_else(|e| panic!("{target:?}, {name}, {step:?}, {r:?}: {e}"));
        }
    }
}

/// Sums in another order may move a code by one.
#[test]
fn with_keys_and_values_in_8_bits() {
    for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
        check_with(target, "qwen3_moe", 40, KvType::Q8_0, 1e-5);
    }
}

#[test]
fn each_sequence_as_if_alone_on_the_reference() {
    check(Target::Reference, "qwen3_moe", 40);
    check(Target::Reference, "qwen3_next", 40);
}

#[test]
fn each_sequence_as_if_alone_on_the_cpu() {
    // Norms of heads; rows that fill a step; windows and sinks; a latent cache; recurrent states of two kinds.
    check(Target::Cpu, "qwen3_moe", 40);
    check(Target::Cpu, "mixtral", 12);
    for name in ["gpt_oss", "deepseek_v2", "qwen3_next", "lfm2_moe"] {
        check(Target::Cpu, name, 40);
    }
}

#[test]
fn each_sequence_as_if_alone_on_the_gpu() {
    // Norms of heads and several query heads a kv head; a shared expert; rotation in another form.
    // Recurrent states of two kinds.
    for name in ["qwen3_moe", "qwen2_moe", "llama", "qwen3_next", "lfm2_moe"] {
        check(Target::Wgpu, name, 40);
    }
    check(Target::WgpuWorkgroup, "mixtral", 12);
}

/// Two sequences that hold each other's tokens in the wrong slots would show: the comparator above must see it.
#[test]
fn alarm_swapped_sequences_are_noticed() {
    let d = definition("qwen3_moe");
    let loaded = load(Target::Reference, &d.program).unwrap();
    let logits = d.program.graph.outputs.iter().position(|o| o.0 == "logits").unwrap();
    let [a, b] = [0, 1].map(|s| alone(&*loaded, &ids(s), logits, KvType::F32));
    assert!(compare::check(&a, &b, 1e-5).is_err());
}

fn bad_steps(loaded: &dyn Loaded) {
    let options = RunnerOptions { ctx: 8, sequences: 2, ubatch: 4, kv: KvType::F16 };
    for size in [
        RunnerOptions { ctx: 0, ..options },
        RunnerOptions { ubatch: 0, ..options },
        RunnerOptions { sequences: 0, ..options },
    ] {
        assert!(loaded.runner(size).is_err(), "{size:?}");
    }
    let mut batch = loaded.runner(options).unwrap();
    let row = |sequence, position| Row::fed(1, sequence, position);
    let mut step = |rows: &[Row], outputs: usize| {
        let mut rows = rows.to_vec();
        rows.iter_mut().rev().take(outputs).for_each(|r| r.logits = true);
        batch.step(&runner::Step { rows: &rows, ..Default::default() }).map(|_| ())
    };
    assert!(matches!(step(&[], 0), Err(Error::Invalid(_))));
    assert!(matches!(step(&[row(0, 0), row(1, 0), row(0, 1), row(1, 1), row(0, 2)], 0), Err(Error::Invalid(_))));
    assert!(matches!(step(&[row(2, 0)], 1), Err(Error::Invalid(_))));
    let wanted = Row { logits: true, ..row(0, 0) };
    assert!(matches!(step(&[wanted, row(0, 1)], 0), Err(Error::Invalid(_))), "what is wanted comes last");
    assert!(matches!(step(&[row(0, 1)], 1), Err(Error::Invalid(_))), "position 0 is empty");
    assert!(matches!(step(&[row(0, 8)], 1), Err(Error::ContextFull { .. })));
    assert!(matches!(step(&[row(0, 0), row(0, 2)], 1), Err(Error::Invalid(_))));
    let wrong = Row::fed(u32::MAX, 0, 0);
    assert!(matches!(step(&[wrong], 1), Err(Error::Invalid(_))));
    assert!(step(&[row(0, 0), row(1, 0), row(0, 1)], 1).is_ok());
}

#[test]
fn bad_steps_are_errors() {
    let d = definition("llama");
    for target in [Target::Reference, Target::Cpu, Target::Wgpu] {
        if let Some(loaded) = load(target, &d.program) {
            bad_steps(&*loaded);
        }
    }
}

/// The type that a server uses, against sessions: greedy continuations of three prompts that start at different times.
#[test]
fn a_batch_continues_like_sessions() {
    let path = crate::goldens::folder("qwen3_moe");
    let mut backends = vec![BackendChoice::Reference];
    if let Some(gpu) = crate::support::gpu() {
        let device = gpu.name().split(" (").next().map(String::from);
        backends.push(BackendChoice::Wgpu(moeray::backend::wgpu::Options {
            device,
            checked: true,
            ..Default::default()
        }));
    }
    for backend in backends {
        let model = Model::load(&path, &LoadOptions { backend, ..Default::default() }, &mut |_| {}).unwrap();
        let best = |l: &[f32]| (0..l.len()).max_by(|a, b| l[*a].total_cmp(&l[*b])).unwrap() as u32;
        let continued = |prompt: &[u32]| {
            let mut s = Session::new(&model, SessionOptions { ctx: 40, ubatch: 16, kv: KvType::F32 }).unwrap();
            let mut all = vec![best(s.prefill(prompt).unwrap())];
            while all.len() < 6 {
                all.push(best(s.decode(all[all.len() - 1]).unwrap()));
            }
            all
        };
        let prompts: Vec<Vec<u32>> = (0..3).map(|s| ids(s)[..4 + 3 * s].to_vec()).collect();
        let options = RunnerOptions { ctx: 40, sequences: 2, ubatch: 24, kv: KvType::F32 };
        let mut batch = Batch::new(&model, options).unwrap();
        let (vocab, mut got) = (model.vocab(), vec![vec![]; 3]);
        // Prompt 1 joins a step later; prompt 2 takes over the place of prompt 0.
        let mut place = [Some(0), None];
        for step in 0.. {
            if step == 1 {
                place[1] = Some(1);
            }
            let feed: Vec<(usize, Vec<u32>)> = (0..2)
                .filter_map(|s| {
                    let text = place[s]?;
                    let next = got[text].last().map_or(prompts[text].clone(), |id| vec![*id]);
                    Some((s, next))
                })
                .collect();
            if feed.is_empty() {
                break;
            }
            let borrowed: Vec<(usize, &[u32])> = feed.iter().map(|(s, t)| (*s, &t[..])).collect();
            let logits = batch.step(&borrowed).unwrap().to_vec();
            for ((s, _), l) in feed.iter().zip(logits.chunks(vocab)) {
                let text = place[*s].unwrap();
                got[text].push(best(l));
                if got[text].len() == 6 {
                    batch.truncate(*s, 0);
                    place[*s] = if text == 0 { Some(2) } else { None };
                }
            }
        }
        for (text, prompt) in prompts.iter().enumerate() {
            assert_eq!(got[text], continued(prompt), "prompt {text} on {}", model.describe());
        }
        assert!(matches!(batch.step(&[(0, &[1]), (0, &[2])]), Err(Error::Invalid(_))));
        assert!(matches!(batch.step(&[(5, &[1])]), Err(Error::Invalid(_))));
        assert!(matches!(batch.step(&[(0, &[])]), Err(Error::Invalid(_))));
        assert_eq!(
            (batch.position(0), batch.position(9), batch.sequences(), batch.rows(), batch.ctx()),
            (0, 0, 2, 24, 40)
        );
    }
}

/// Choices of a batch come the same in one go, slice by slice, and as a future; a step that was cancelled leaves none.
#[test]
fn a_batch_chooses_without_blocking() {
    let path = crate::goldens::folder("qwen3_next");
    let load = LoadOptions { backend: BackendChoice::Cpu(Default::default()), ..Default::default() };
    let model = Model::load(&path, &load, &mut |_| {}).unwrap();
    let prompts = [ids(0), ids(1)];
    let allowed: Vec<u32> = vec![0x5555_5555; model.vocab().div_ceil(32)];
    let mut runs = vec![];
    for way in 0..3 {
        let options = RunnerOptions { ctx: 40, sequences: 2, ubatch: 40, kv: KvType::F32 };
        let mut batch = Batch::new(&model, options).unwrap();
        let sampling = Sampling { options: SamplerOptions::default(), masked: true, ..Sampling::default() };
        (0..2).for_each(|s| _ = batch.set_sampler(s, &sampling).unwrap());
        let mut all: Vec<Chosen> = vec![];
        for step in 0..5 {
            let turn = |sequence: usize| BatchTurn {
                sequence,
                tokens: if step == 0 { &prompts[sequence] } else { &[] },
                random: Some((step * 77 + sequence as u64) << 55),
                allowed: (sequence == 1).then_some(&allowed[..]),
                hidden: false,
            };
            let turns = [turn(0), turn(1)];
            if way == 0 {
                all.extend(batch.choose(&turns).unwrap());
                continue;
            }
            batch.begin(&turns).unwrap();
            assert!(batch.choose(&turns).is_err(), "one step at a time");
            if way == 1 {
                while batch.poll(Budget::dispatches(7)).unwrap() != Status::Done {}
            } else {
                crate::runner::block_on(batch.finish(Budget::micros(1))).0.unwrap();
            }
            all.extend(batch.chosen());
        }
        assert!(all.iter().skip(1).step_by(2).all(|c| c.token().unwrap() % 2 == 0), "every other token is allowed");
        let before = [0, 1].map(|s| batch.position(s));
        batch.begin(&[BatchTurn { sequence: 0, tokens: &[1, 2], random: None, allowed: None, hidden: false }]).unwrap();
        batch.cancel();
        assert_eq!([0, 1].map(|s| batch.position(s)), before);
        runs.push(all);
    }
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0], runs[2]);
}
