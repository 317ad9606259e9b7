//! The runner on every backend: slices, futures, cancelling, saving, forking, masks.

use crate::{
    goldens::{definition, golden},
    support::{Target, compare, load},
};
use moeray::{
    Error,
    backend::{
        Loaded,
        runner::{Budget, Chosen, Mask, PAGE, Row, Runner, RunnerOptions, Status, Step, Token},
    },
    generate::{Sampler, SamplerOptions, Sampling},
    quant::KvType,
};
use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Attention alone; recurrent states of two kinds; a latent cache.
const MODELS: [&str; 4] = ["qwen3_moe", "qwen3_next", "lfm2_moe", "deepseek_v2"];

const TARGETS: [Target; 3] = [Target::Reference, Target::Cpu, Target::Wgpu];

fn runner(loaded: &dyn Loaded, sequences: usize, kv: KvType) -> Runner {
    loaded.runner(RunnerOptions { ctx: 40, sequences, ubatch: 24, kv }).unwrap()
}

/// Tokens of a sequence from a position on, the last with logits.
fn rows(ids: &[u32], sequence: usize, first: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = ids.iter().zip(first..).map(|(id, p)| Row::fed(*id, sequence, p)).collect();
    if let Some(last) = rows.last_mut() {
        last.logits = true;
    }
    rows
}

/// Feeds tokens; gives the logits of the last.
fn feed(r: &mut Runner, ids: &[u32], sequence: usize, first: usize) -> moeray::Result<Vec<f32>> {
    let rows = rows(ids, sequence, first);
    let results = r.step(&Step { rows: &rows, ..Step::default() })?;
    Ok(results.outputs[0].f32.clone())
}

/// Calls `test` with every backend and some models.
fn each(test: impl Fn(&str, &dyn Loaded, &[u32])) {
    for target in TARGETS {
        for name in MODELS {
            if let Some(loaded) = load(target, &definition(name).program) {
                test(&format!("{target:?}, {name}"), &*loaded, &golden(name).ids);
            }
        }
    }
}

fn greedy(r: &mut Runner, sequence: usize) {
    let sampling = Sampling { options: SamplerOptions::greedy(), masked: true, ..Sampling::default() };
    r.set_sampler(sequence, &sampling).unwrap();
}

/// Feeds a prompt and generates greedily: tokens, each in slices of a budget.
fn continuation(r: &mut Runner, prompt: &[u32], n: usize, budget: Budget) -> Vec<u32> {
    greedy(r, 0);
    let mut all = vec![];
    let mut step = rows(prompt, 0, 0);
    while all.len() < n {
        let last = step.last_mut().unwrap();
        (last.logits, last.choose) = (false, Some(0));
        let position = last.position + 1;
        r.begin(&Step { rows: &step, ..Step::default() }).unwrap();
        let mut polls = 0;
        loop {
            polls += 1;
            match r.poll(budget).unwrap() {
                Status::Done => break,
                Status::Waiting => r.wait().unwrap(),
                Status::Pending => {}
                Status::Idle => panic!("a step was lost"),
            }
        }
        assert!(budget.is_unlimited() || polls > 10, "{polls} slices");
        all.push(r.results().tokens[0].token().unwrap());
        step = vec![Row { token: Token::Last, ..Row::fed(0, 0, position) }];
    }
    all
}

#[test]
fn slices_give_the_same_tokens() {
    each(|what, loaded, ids| {
        let whole = continuation(&mut runner(loaded, 1, KvType::F32), &ids[..9], 5, Budget::UNLIMITED);
        let sliced = continuation(&mut runner(loaded, 1, KvType::F32), &ids[..9], 5, Budget::dispatches(1));
        assert_eq!(sliced, whole, "{what}");
        let timed = continuation(&mut runner(loaded, 1, KvType::F32), &ids[..9], 5, Budget::micros(0));
        assert_eq!(timed, whole, "{what}");
    });
}

/// A waker that counts.
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The smallest executor: polls again whenever it was woken.
pub fn block_on<F: Future>(future: F) -> (F::Output, usize) {
    let mut future = pin!(future);
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(count.clone());
    let (mut cx, mut polls) = (Context::from_waker(&waker), 0);
    loop {
        let woken = count.0.load(Ordering::Relaxed);
        polls += 1;
        if let Poll::Ready(out) = future.as_mut().poll(&mut cx) {
            return (out, polls);
        }
        while count.0.load(Ordering::Relaxed) == woken {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_step_is_a_future() {
    each(|what, loaded, ids| {
        let want = feed(&mut runner(loaded, 1, KvType::F32), &ids[..9], 0, 0).unwrap();
        let mut r = runner(loaded, 1, KvType::F32);
        let rows = rows(&ids[..9], 0, 0);
        r.begin(&Step { rows: &rows, ..Step::default() }).unwrap();
        let (done, polls) = block_on(r.finish(Budget::dispatches(3)));
        done.unwrap();
        assert!(polls > 3, "{what}: {polls} polls");
        assert_eq!(r.results().outputs[0].f32, want, "{what}");
        assert!(block_on(r.finish(Budget::UNLIMITED)).0.is_err(), "nothing is queued");
    });
}

#[test]
fn two_runners_take_turns() {
    each(|what, loaded, ids| {
        let want = feed(&mut runner(loaded, 1, KvType::F32), &ids[..9], 0, 0).unwrap();
        let mut both = [runner(loaded, 1, KvType::F32), runner(loaded, 1, KvType::F32)];
        let rows = rows(&ids[..9], 0, 0);
        both.iter_mut().for_each(|r| r.begin(&Step { rows: &rows, ..Step::default() }).unwrap());
        let mut done = [false; 2];
        while done != [true; 2] {
            for (r, done) in both.iter_mut().zip(&mut done).filter(|(_, done)| !**done) {
                *done = r.poll(Budget::dispatches(2)).unwrap() == Status::Done;
            }
        }
        both.iter().for_each(|r| assert_eq!(r.results().outputs[0].f32, want, "{what}"));
    });
}

/// Whatever slice a prompt is cancelled at, the text before it goes on as if it had not been there.
#[test]
fn cancelling_leaves_what_was_there() {
    each(|what, loaded, ids| {
        let mut r = runner(loaded, 1, KvType::F32);
        feed(&mut r, &ids[..6], 0, 0).unwrap();
        r.snapshot(0).unwrap();
        let want = feed(&mut r, &ids[6..9], 0, 6).unwrap();
        let other: Vec<u32> = ids[..9].iter().rev().copied().collect();
        for slices in [0, 1, 2, 7, 12] {
            r.begin(&Step { rows: &rows(&other, 0, 6), ..Step::default() }).unwrap();
            for _ in 0..slices {
                let status = r.poll(Budget::dispatches(2)).unwrap();
                assert!(matches!(status, Status::Pending | Status::Waiting), "{what}: {status:?}");
            }
            r.cancel();
            assert_eq!((r.queued(), r.poll(Budget::UNLIMITED).unwrap()), (0, Status::Idle));
            assert_eq!(r.resume_at(0, 6), 6, "{what}");
            assert_eq!(feed(&mut r, &ids[6..9], 0, 6).unwrap(), want, "{what}, after {slices} slices");
        }
    });
}

#[test]
fn saved_sequences_go_on() {
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
        each(|what, loaded, ids| {
            let mut r = runner(loaded, 2, kv);
            feed(&mut r, &ids[..11], 1, 0).unwrap();
            let bytes = r.save(1, 11).unwrap();
            let want = feed(&mut r, &ids[11..14], 1, 11).unwrap();
            drop(r);
            // Into another sequence of a runner of another size, over another text.
            let mut r = loaded.runner(RunnerOptions { ctx: 23, sequences: 3, ubatch: 16, kv }).unwrap();
            feed(&mut r, &ids[3..9], 2, 0).unwrap();
            assert_eq!(r.restore(2, &bytes).unwrap(), 11);
            assert_eq!(feed(&mut r, &ids[11..14], 2, 11).unwrap(), want, "{what}, {kv:?}");
            assert_eq!(r.len(2), 14);
            // Every way in which bytes can be wrong is refused, and the sequence stays.
            for at in [0, 9, 25, 28, 32, 33, 41, 50, 60, bytes.len() - 1] {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                assert!(r.restore(2, &bad).is_err(), "{what}: byte {at}");
            }
            assert!(r.restore(2, &bytes[..bytes.len() - 4]).is_err() && r.restore(3, &bytes).is_err());
            let mut small = loaded.runner(RunnerOptions { ctx: 8, sequences: 1, ubatch: 8, kv }).unwrap();
            assert!(matches!(small.restore(0, &bytes), Err(Error::ContextFull { .. })), "{what}");
            assert_eq!(r.len(2), 14);
        });
    }
}

/// Pages go from one sequence to the host and into others, whole or behind what is there, and the text goes on from any token of
/// the last one.
#[test]
fn pages_come_back() {
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
        each(|what, loaded, ids| {
            let many = |n: usize| -> Vec<u32> { ids.iter().cycle().copied().take(n).collect() };
            let (text, n) = (many(3 * PAGE), 2 * PAGE + 5);
            let options = RunnerOptions { ctx: 3 * PAGE + 7, sequences: 3, ubatch: 24, kv };
            let mut r = loaded.runner(options).unwrap();
            let fill = |r: &mut Runner, text: &[u32], sequence: usize| {
                text.chunks(24).enumerate().for_each(|(i, some)| _ = feed(r, some, sequence, 24 * i).unwrap());
            };
            fill(&mut r, &text[..n], 1);
            let states = r.copy_of_states(1).unwrap();
            let pages = r.read_pages(1, 0..3).unwrap();
            assert!(pages.iter().all(|p| p.len() == r.page_bytes()), "{what}");
            assert_eq!(r.read_pages(1, 2..3).unwrap()[0][..], pages[2][..]);
            let want = feed(&mut r, &text[n..n + 3], 1, n).unwrap();
            // Over another text, into a sequence of its own.
            fill(&mut r, &many(50).into_iter().rev().collect::<Vec<u32>>(), 2);
            r.write_pages(2, 0, &pages, n, states.as_deref()).unwrap();
            assert_eq!((r.len(2), r.resume_at(2, n)), (n, n), "{what}");
            assert_eq!(feed(&mut r, &text[n..n + 3], 2, n).unwrap(), want, "{what}, {kv:?}");
            // Behind a page that is there already; the other sequences are as they were.
            fill(&mut r, &text[..2 * 24], 0);
            r.write_pages(0, 1, &pages[1..], n, states.as_deref()).unwrap();
            let own = feed(&mut r, &text[n..n + 3], 0, n).unwrap();
            compare::check(&own, &want, 1e-6).unwrap_or_else(|e| panic!("{what}, {kv:?}: {e}"));
            assert_eq!(r.len(1), n + 3);
            if states.is_none() {
                r.write_pages(2, 0, &pages[..1], 9, None).unwrap();
                assert_eq!(r.len(2), 9);
            }
            // What cannot be is refused, and changes nothing.
            let before = r.len(0);
            let short: Vec<Arc<[u8]>> = vec![pages[0][1..].into()];
            assert!(r.page_bytes() == 0 || r.write_pages(0, 0, &short, 4, states.as_deref()).is_err());
            assert!(r.write_pages(0, 0, &pages, 3 * PAGE + 1, states.as_deref()).is_err(), "more tokens than pages");
            assert!(r.write_pages(0, 2, &pages, n, states.as_deref()).is_err(), "more pages than the context");
            assert!(r.write_pages(2, 2, &pages[2..], n, states.as_deref()).is_err() || r.len(2) >= 2 * PAGE, "a hole");
            assert!(r.write_pages(0, 0, &pages, n, if states.is_some() { None } else { Some(&[]) }).is_err());
            assert!(r.write_pages(3, 0, &pages, n, states.as_deref()).is_err() && r.read_pages(3, 0..1).is_err());
            assert!(r.read_pages(0, 0..4).is_err() && r.read_pages(0, 2..4).is_err());
            assert_eq!(r.len(0), before);
        });
    }
}

/// Bytes of another model of the same shape, or of another backend, are refused.
#[test]
fn saved_sequences_belong_to_a_model() {
    let ids = golden("qwen3_moe").ids;
    let programs = ["qwen3_moe", "qwen2_moe"].map(|n| definition(n).program);
    let mut saved = vec![];
    for target in TARGETS {
        for program in &programs {
            let Some(loaded) = load(target, program) else { continue };
            let mut r = runner(&*loaded, 1, KvType::F32);
            feed(&mut r, &ids[..4], 0, 0).unwrap();
            saved.push((r.save(0, 4).unwrap(), r));
        }
    }
    let all: Vec<Vec<u8>> = saved.iter().map(|s| s.0.clone()).collect();
    for (i, (_, r)) in saved.iter_mut().enumerate() {
        for (j, bytes) in all.iter().enumerate() {
            assert_eq!(r.restore(0, bytes).is_ok(), i == j, "{j} into {i}");
        }
    }
}

#[test]
fn forks_go_their_own_ways() {
    each(|what, loaded, ids| {
        let mut alone = runner(loaded, 1, KvType::F32);
        feed(&mut alone, &ids[..9], 0, 0).unwrap();
        let want = feed(&mut alone, &ids[9..12], 0, 9).unwrap();
        let mut r = runner(loaded, 3, KvType::F32);
        feed(&mut r, &ids[..9], 0, 0).unwrap();
        r.snapshot(0).unwrap();
        r.fork(0, 1, 9).unwrap();
        // The first goes on; the fork is from where its snapshot was kept.
        feed(&mut r, &[1, 2, 3], 0, 9).unwrap();
        r.fork(0, 2, 9).unwrap();
        let mut both = rows(&ids[9..12], 1, 9);
        both.extend(rows(&ids[9..12], 2, 9));
        both.sort_by_key(|r| r.logits);
        let out = r.step(&Step { rows: &both, ..Step::default() }).unwrap().outputs[0].clone();
        assert_eq!(out.rows, 2);
        for row in out.f32.chunks(out.cols) {
            compare::check(row, &want, 1e-8).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        assert_eq!([0, 1, 2].map(|s| r.len(s)), [12; 3]);
        assert!(r.fork(0, 0, 3).is_err() && r.fork(0, 1, 13).is_err() && r.fork(3, 0, 1).is_err());
        if !definition_has_states(what) {
            r.fork(0, 1, 4).unwrap();
            assert_eq!(r.len(1), 4);
        }
    });
}

fn definition_has_states(what: &str) -> bool {
    what.ends_with("qwen3_next") || what.ends_with("lfm2_moe")
}

/// Rows of one step choose by rules of their own: options, masks, biases, forbidden tokens.
#[test]
fn each_row_chooses_by_its_own_rules() {
    each(|what, loaded, ids| {
        let mut r = runner(loaded, 5, KvType::F32);
        let logits = feed(&mut r, &ids[..5], 0, 0).unwrap();
        let vocab = logits.len();
        let best = |l: &[f32]| (0..l.len()).max_by(|a, b| l[*a].total_cmp(&l[*b])).unwrap() as u32;
        let top = best(&logits);
        let drawn = SamplerOptions { temperature: 2.0, top_k: 0, seed: 3, ..SamplerOptions::default() };
        greedy(&mut r, 0);
        greedy(&mut r, 1);
        greedy(&mut r, 2);
        let forbidden = [top];
        let options = SamplerOptions::greedy();
        r.set_sampler(3, &Sampling { options, forbidden: &forbidden, ..Sampling::default() }).unwrap();
        let mut host = Sampler::new(drawn).unwrap();
        let random = host.clone().next_random();
        let bias = [(top, -3.0), (7, 2.0)];
        r.set_sampler(4, &Sampling { options: drawn, bias: &bias, ..Sampling::default() }).unwrap();
        let allowed = |keep: &dyn Fn(u32) -> bool| {
            let mut words = vec![0u32; Mask::words(vocab)];
            (0..vocab as u32).filter(|t| keep(*t)).for_each(|t| words[t as usize / 32] |= 1 << (t % 32));
            words
        };
        let (some, none) = (allowed(&|t| t % 5 == 2 && t != top), allowed(&|_| false));
        let last = |sequence| {
            let mut rows: Vec<Row> = ids[..5].iter().zip(0..).map(|(id, p)| Row::fed(*id, sequence, p)).collect();
            rows[4].choose = Some(random);
            rows
        };
        let rows = (0..5).flat_map(last);
        // Together they are too many for one step: what chooses nothing comes before.
        let (before, mut now): (Vec<Row>, Vec<Row>) = rows.partition(|r| r.choose.is_none());
        r.step(&Step { rows: &before, ..Step::default() }).unwrap();
        now[2].logits = true;
        let masks = [Mask { row: 0, allowed: &some }, Mask { row: 2, allowed: &none }];
        let results = r.step(&Step { rows: &now, masks: &masks, ..Step::default() }).unwrap();
        assert_eq!(results.outputs[0].rows, 1, "{what}: one row wants logits");
        let row = results.outputs[0].f32.clone();
        compare::check(&row, &logits, 1e-8).unwrap();
        let of = |keep: &dyn Fn(u32) -> bool| {
            let masked: Vec<f32> =
                logits.iter().zip(0..).map(|(l, t)| if keep(t) { *l } else { f32::NEG_INFINITY }).collect();
            Chosen::Token(best(&masked))
        };
        let mut biased = logits.clone();
        bias.iter().for_each(|(t, b)| biased[*t as usize] += b);
        let want = [
            of(&|t| t % 5 == 2 && t != top),
            Chosen::Token(top),
            Chosen::NothingAllowed,
            of(&|t| t != top),
            Chosen::Token(host.sample(&biased, &[]).unwrap()),
        ];
        assert_eq!(results.tokens, want, "{what}");
        assert!(matches!(results.tokens[2].token(), Err(Error::Invalid(_))));
    });
}

#[test]
fn bad_choices_are_errors() {
    each(|what, loaded, ids| {
        let mut r = runner(loaded, 2, KvType::F32);
        let choosing = Row { choose: Some(0), ..Row::fed(ids[0], 0, 0) };
        let step = |r: &mut Runner, row: Row, masks: &[Mask<'_>]| {
            r.step(&Step { rows: &[row], masks, ..Step::default() }).map(|r| r.tokens.clone())
        };
        assert!(step(&mut r, choosing, &[]).is_err(), "{what}: no rules");
        greedy(&mut r, 0);
        let last = Row { token: Token::Last, ..choosing };
        assert!(step(&mut r, last, &[]).is_err(), "{what}: no token yet");
        assert!(step(&mut r, choosing, &[Mask { row: 0, allowed: &[u32::MAX] }]).is_err(), "{what}: a short mask");
        assert!(step(&mut r, choosing, &[Mask { row: 1, allowed: &[] }]).is_err(), "{what}: no such row");
        assert_eq!(step(&mut r, choosing, &[]).unwrap().len(), 1);
        assert_eq!(step(&mut r, Row { position: 1, ..last }, &[]).unwrap().len(), 1);
        for bad in [
            Sampling { options: SamplerOptions { top_p: 0.0, ..SamplerOptions::default() }, ..Sampling::default() },
            Sampling { bias: &[(u32::MAX, 1.0)], ..Sampling::default() },
            Sampling { bias: &[(1, f32::NAN)], ..Sampling::default() },
            Sampling { bias: &[(1, 1.0), (1, 2.0)], ..Sampling::default() },
        ] {
            assert!(matches!(r.set_sampler(0, &bad), Err(Error::Invalid(_))), "{what}: {bad:?}");
        }
        assert!(r.set_sampler(2, &Sampling::default()).is_err());
        // What changes sequences waits until nothing is queued.
        r.begin(&Step { rows: &[Row::fed(1, 1, 0)], ..Step::default() }).unwrap();
        assert!(r.save(0, 1).is_err() && r.fork(0, 1, 1).is_err() && r.snapshot(0).is_err());
        assert!(r.set_sampler(1, &Sampling::default()).is_err() && r.set_sampler(0, &Sampling::default()).is_ok());
        r.take().unwrap();
    });
}
