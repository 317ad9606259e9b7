//! Tokens chosen on the device, held to the sampler of the host: the same logits, options and seed give the same token.

mod ahead;

use crate::{
    goldens::definition,
    support::{gpu, one::one, rng::Rng},
};
use moeray::{
    Error, Result,
    backend::{
        Loaded, Program,
        runner::{Chosen, Mask, Row, Runner, RunnerOptions, Step, Token},
    },
    generate::{Sampler, SamplerOptions, Sampling},
    graph::Builder,
    ir::Op,
    quant::KvType,
};

/// A graph whose logits are what the test gives; `None` where there is no GPU.
fn logits_graph(vocab: usize) -> Option<Box<dyn Loaded>> {
    let mut b = Builder::new();
    let x = b.one(Op::Input { name: "x".into(), cols: vocab }, &[]).unwrap();
    let y = b.one(Op::TakeOutputs, &[x]).unwrap();
    b.output("logits", y);
    Some(gpu()?.load(Program::new(b.finish(), vec![]).unwrap(), &mut |_| Ok(())).unwrap())
}

fn runner(loaded: &dyn Loaded) -> Runner {
    loaded.runner(one(8, 1, KvType::F32)).unwrap()
}

fn sampling<'a>(o: &SamplerOptions, forbidden: &'a [u32]) -> Sampling<'a> {
    Sampling { options: *o, forbidden, ..Sampling::default() }
}

/// A row after which a token is chosen.
fn choosing(random: u64) -> [Row; 1] {
    [Row { choose: Some(random), ..Row::fed(0, 0, 0) }]
}

/// The token chosen after these logits.
fn chosen(r: &mut Runner, logits: &[f32], random: u64) -> Result<u32> {
    r.step(&Step { rows: &choosing(random), inputs: &[("x", logits)], ..Step::default() })?.tokens[0].token()
}

/// Everything off but the temperature.
fn plain() -> SamplerOptions {
    SamplerOptions { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repeat_penalty: 1.0, ..Default::default() }
}

/// Choices of the device and of the host, one for each of `draws` random words from the same logits.
fn both(
    r: &mut Runner,
    o: &SamplerOptions,
    logits: &[f32],
    recent: &[u32],
    forbidden: &[u32],
    draws: usize,
) -> (Vec<u32>, Vec<u32>) {
    let mut host = Sampler::new(*o).unwrap();
    host.forbid(forbidden);
    let mut source = host.clone();
    // Recent tokens grow by every choice, on both sides.
    let (mut tokens, mut want) = (recent.to_vec(), vec![]);
    for _ in 0..draws {
        want.push(host.sample(logits, &tokens).unwrap());
        tokens.push(want[want.len() - 1]);
    }
    let words: Vec<u64> = (0..draws).map(|_| source.next_random()).collect();
    let sampling = Sampling { recent, ..sampling(o, forbidden) };
    // The runner's own host path is the sampler's.
    assert!(!r.set_sampler(0, &Sampling { on_host: true, ..sampling }).unwrap());
    let by_host: Vec<u32> = words.iter().map(|w| chosen(r, logits, *w).unwrap()).collect();
    assert_eq!(by_host, want);
    assert!(r.set_sampler(0, &sampling).unwrap());
    (words.iter().map(|w| chosen(r, logits, *w).unwrap()).collect(), want)
}

/// Logits as models have them: a few tokens lead.
fn peaked(rng: &mut Rng, vocab: usize) -> Vec<f32> {
    (0..vocab).map(|i| 2.5 * rng.normal() + if i % 97 == 3 { 4.0 } else { 0.0 }).collect()
}

/// All ways through the kernels: top-k in the list and beyond it, top-p with and without, by rank and by id, greedy.
fn ways() -> Vec<(&'static str, SamplerOptions)> {
    vec![
        ("greedy", SamplerOptions::greedy()),
        ("defaults", SamplerOptions::default()),
        ("by id", plain()),
        ("by id, min-p", SamplerOptions { min_p: 0.05, temperature: 1.7, ..plain() }),
        ("top-k 1", SamplerOptions { top_k: 1, ..plain() }),
        ("top-k 5", SamplerOptions { top_k: 5, temperature: 3.0, ..plain() }),
        ("top-k 256, top-p", SamplerOptions { top_k: 256, top_p: 0.8, temperature: 2.0, ..plain() }),
        ("top-k 257", SamplerOptions { top_k: 257, temperature: 2.0, ..plain() }),
        ("top-k 290, all filters", SamplerOptions { top_k: 290, top_p: 0.9, min_p: 0.01, temperature: 1.5, ..plain() }),
        ("top-k beyond the vocabulary", SamplerOptions { top_k: 1 << 20, ..plain() }),
        ("top-p", SamplerOptions { top_p: 0.9, temperature: 1.3, ..plain() }),
        ("top-p of almost nothing", SamplerOptions { top_p: 1e-9, ..plain() }),
        ("top-p of almost all", SamplerOptions { top_p: 0.999_999, temperature: 4.0, ..plain() }),
        ("min-p 1", SamplerOptions { min_p: 1.0, ..plain() }),
        ("tiny temperature", SamplerOptions { temperature: 1e-30, ..plain() }),
        ("penalty", SamplerOptions { repeat_penalty: 1.4, repeat_last_n: 7, ..SamplerOptions::default() }),
        (
            "penalty below one",
            SamplerOptions { repeat_penalty: 0.7, repeat_last_n: 3, top_k: 0, ..SamplerOptions::default() },
        ),
        (
            "greedy with penalty",
            SamplerOptions { repeat_penalty: 1.3, repeat_last_n: 1000, ..SamplerOptions::greedy() },
        ),
    ]
}

/// Draws fall next to a boundary of two tokens with a probability of some 1e-6 (exponentials in f32): none of these seeds does.
#[test]
fn the_device_picks_the_hosts_tokens() {
    for vocab in [300, 5000] {
        let Some(loaded) = logits_graph(vocab) else { return };
        let mut r = runner(&*loaded);
        let mut rng = Rng(11);
        for (name, o) in ways() {
            for seed in 0..3 {
                let o = SamplerOptions { seed, ..o };
                let logits = peaked(&mut rng, vocab);
                let recent: Vec<u32> = (0..rng.below(30)).map(|_| rng.below(vocab) as u32).collect();
                let forbidden: Vec<u32> = (0..rng.below(3)).map(|_| rng.below(vocab) as u32).collect();
                let (got, want) = both(&mut r, &o, &logits, &recent, &forbidden, 12);
                assert_eq!(got, want, "{name}, {vocab} tokens, seed {seed}");
            }
        }
    }
}

/// A vocabulary as large as any: more groups than invocations, three steps of 8 bits for an id.
#[test]
fn a_vocabulary_of_262144() {
    let vocab = 262_144;
    let Some(loaded) = logits_graph(vocab) else { return };
    let mut r = runner(&*loaded);
    let mut rng = Rng(5);
    let logits = peaked(&mut rng, vocab);
    for (name, o) in ways().into_iter().filter(|w| ["greedy", "defaults", "by id", "top-p", "top-k 257"].contains(&w.0))
    {
        let (got, want) = both(&mut r, &o, &logits, &[1, 2], &[3], 3);
        assert_eq!(got, want, "{name}");
    }
}

/// Ties go to the lower id in every way, whole groups and vocabularies of equals included.
#[test]
pub fn ties() {
    let vocab = 300;
    let Some(loaded) = logits_graph(vocab) else { return };
    let mut r = runner(&*loaded);
    let mut rng = Rng(3);
    let flat = vec![1.5; vocab];
    let two: Vec<f32> = (0..vocab).map(|_| if rng.below(2) == 0 { -0.0 } else { 0.0 }).collect();
    let few: Vec<f32> = (0..vocab).map(|_| rng.below(4) as f32 - 2.0).collect();
    let extremes: Vec<f32> = (0..vocab).map(|i| if i % 50 == 7 { 3e38 } else { -3e38 }).collect();
    for (what, logits) in [("flat", &flat), ("zeros", &two), ("four values", &few), ("extremes", &extremes)] {
        for (name, o) in ways() {
            // Which tokens stay is exact; of equal ones the draw is far from any boundary.
            let (got, want) = both(&mut r, &SamplerOptions { seed: 9, ..o }, logits, &[4, 4, 5], &[0], 6);
            assert_eq!(got, want, "{what}, {name}");
        }
    }
}

/// The device's own distribution against the softmax, without the host's sampler: Pearson's chi-square.
#[test]
fn the_distribution_is_the_softmax() {
    let vocab = 8;
    let Some(loaded) = logits_graph(vocab) else { return };
    let mut r = runner(&*loaded);
    let logits = [1.0f32, 0.5, 2.0, -1.0, 0.0, 1.5, -0.5, 0.8];
    let mut draws = Sampler::new(SamplerOptions { seed: 4, ..plain() }).unwrap();
    for (t, top_k) in [(1.0, 0), (0.5, 7)] {
        let o = SamplerOptions { temperature: t, top_k, ..plain() };
        assert!(r.set_sampler(0, &sampling(&o, &[])).unwrap());
        let mut counts = [0usize; 8];
        let n = 2000;
        for _ in 0..n {
            counts[chosen(&mut r, &logits, draws.next_random()).unwrap() as usize] += 1;
        }
        // The least likely is cut by a top-k of 7.
        let e = logits.map(|l| if top_k == 7 && l == -1.0 { 0.0 } else { (f64::from(l) / f64::from(t)).exp() });
        let total: f64 = e.iter().sum();
        let square = |(c, e): (&usize, &f64)| {
            let want = e / total * f64::from(n);
            if want == 0.0 { if *c == 0 { 0.0 } else { f64::INFINITY } } else { (*c as f64 - want).powi(2) / want }
        };
        let chi: f64 = counts.iter().zip(&e).map(square).sum();
        // 99.9 % quantile with 7 degrees of freedom.
        assert!(chi < 24.32, "temperature {t}: {chi}, {counts:?}");
    }
}

#[test]
fn what_cannot_be_chosen_is_an_error() {
    let vocab = 300;
    let Some(loaded) = logits_graph(vocab) else { return };
    let mut r = runner(&*loaded);
    let last = [Row { token: Token::Last, ..choosing(0)[0] }];
    assert!(matches!(r.take(), Err(Error::Invalid(_))), "nothing was begun");
    assert!(r.begin(&Step { rows: &last, ..Step::default() }).is_err(), "nothing was chosen");
    let mut pick = |o: SamplerOptions, logits: &[f32], forbidden: &[u32]| {
        assert!(r.set_sampler(0, &sampling(&o, forbidden)).unwrap());
        chosen(&mut r, logits, 7 << 32)
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 77, 299] {
            let mut logits = vec![1.0; vocab];
            logits[at] = bad;
            for o in [SamplerOptions::greedy(), SamplerOptions::default()] {
                assert!(
                    matches!(pick(o, &logits, &[at as u32]), Err(Error::Model(w)) if w.contains("NaN")),
                    "{bad} at {at}"
                );
            }
        }
    }
    let all: Vec<u32> = (0..vocab as u32).collect();
    assert!(matches!(pick(SamplerOptions::default(), &vec![1.0; vocab], &all), Err(Error::Invalid(_))));
    assert_eq!(pick(SamplerOptions::default(), &vec![1.0; vocab], &all[..299]).unwrap(), 299);
    // More than the device has room for: the host chooses.
    let many = vec![0u32; 5000];
    assert!(!r.set_sampler(0, &sampling(&plain(), &many)).unwrap());
    assert!(chosen(&mut r, &vec![1.0; vocab], 0).unwrap() > 0);
    let far = SamplerOptions { repeat_penalty: 1.1, repeat_last_n: usize::MAX, ..plain() };
    assert!(!r.set_sampler(0, &sampling(&far, &[])).unwrap());
    assert!(chosen(&mut r, &vec![1.0; vocab], 0).is_ok());
    assert!(r.set_sampler(0, &sampling(&SamplerOptions { repeat_penalty: 1.0, ..far }, &[])).unwrap());
    // More steps than can be queued are refused, not lost.
    let logits = vec![0.5; vocab];
    let (rows, inputs) = (choosing(0), [("x", &logits[..])]);
    let step = Step { rows: &rows, inputs: &inputs, ..Step::default() };
    let queued = (0..10).take_while(|_| r.begin(&step).is_ok()).count();
    assert!(queued >= 2 && r.queued() == queued && r.take().is_ok());
    r.cancel();
    assert_eq!(r.queued(), 0);
}

/// Sequences with rules of their own, in one step, in any order and number: each token is the host's.
#[test]
fn every_row_of_a_batch_chooses_as_the_host_does() {
    let (vocab, sequences) = (300, 5);
    let Some(loaded) = logits_graph(vocab) else { return };
    let options = RunnerOptions { ctx: 64, sequences, ubatch: sequences, kv: KvType::F32 };
    let mut r = loaded.runner(options).unwrap();
    let mut rng = Rng(17);
    let ways: Vec<SamplerOptions> = ways().into_iter().map(|w| w.1).collect();
    for (round, some) in ways.chunks(sequences).enumerate() {
        let mut hosts = vec![];
        for (s, o) in some.iter().enumerate() {
            let o = SamplerOptions { seed: (round * sequences + s) as u64, ..*o };
            let recent: Vec<u32> = (0..rng.below(20)).map(|_| rng.below(vocab) as u32).collect();
            let forbidden = [rng.below(vocab) as u32];
            let rules = Sampling { recent: &recent, masked: true, ..sampling(&o, &forbidden) };
            assert!(r.set_sampler(s, &rules).unwrap());
            let mut host = Sampler::new(o).unwrap();
            host.forbid(&forbidden);
            hosts.push((host, recent));
            r.truncate(s, 0);
        }
        for step in 0..8 {
            // Another order every time, and not always all of them.
            let mut order: Vec<usize> = (0..some.len()).filter(|s| (s + step) % 4 != 3).collect();
            let turn = step % order.len();
            order.rotate_left(turn);
            let logits: Vec<f32> = order.iter().flat_map(|_| peaked(&mut rng, vocab)).collect();
            let (mut rows, mut want) = (vec![], vec![]);
            let allowed: Vec<u32> = (0..Mask::words(vocab)).map(|i| if i % 2 == 0 { 0xffff_0ff0 } else { 7 }).collect();
            for (i, s) in order.iter().enumerate() {
                let (host, recent) = &mut hosts[*s];
                let random = host.clone().next_random();
                rows.push(Row { choose: Some(random), ..Row::fed(0, *s, r.len(*s)) });
                let mut own = logits[i * vocab..(i + 1) * vocab].to_vec();
                if i == 1 {
                    let barred = |t: usize| allowed[t / 32] >> (t % 32) & 1 == 0;
                    own.iter_mut().enumerate().filter(|l| barred(l.0)).for_each(|l| *l.1 = f32::NEG_INFINITY);
                }
                let token = host.sample(&own, recent).unwrap();
                recent.push(token);
                want.push(Chosen::Token(token));
            }
            let masks = [Mask { row: 1, allowed: &allowed }];
            let masks = if order.len() > 1 { &masks[..] } else { &[] };
            let inputs = [("x", &logits[..])];
            let got = &r.step(&Step { rows: &rows, masks, inputs: &inputs, trace: false }).unwrap().tokens;
            assert_eq!(*got, want, "{order:?}, step {step}, round {round}");
        }
    }
}

/// Two sequences whose tokens never come to the host, in changing order: each goes on as if alone.
#[test]
fn tokens_chosen_last_are_fed_without_the_host() {
    let Some(loaded) = gpu().map(|g| g.load(definition("qwen3_moe").program, &mut |_| Ok(())).unwrap()) else { return };
    let greedy = Sampling { options: SamplerOptions::greedy(), ..Sampling::default() };
    let prompts: [&[u32]; 2] = [&[5, 6, 7], &[40, 41]];
    let options = |sequences| RunnerOptions { ctx: 40, sequences, ubatch: 8, kv: KvType::F32 };
    let row = |sequence, position, token| Row { token, choose: Some(0), ..Row::fed(0, sequence, position) };
    let alone = |prompt: &[u32]| {
        let mut r = loaded.runner(options(1)).unwrap();
        r.set_sampler(0, &greedy).unwrap();
        let (mut all, mut next) = (vec![], prompt.to_vec());
        while all.len() < 9 {
            let at = r.len(0);
            let mut rows: Vec<Row> = next.iter().zip(at..).map(|(id, p)| Row::fed(*id, 0, p)).collect();
            rows.last_mut().unwrap().choose = Some(0);
            let token = r.step(&Step { rows: &rows, ..Step::default() }).unwrap().tokens[0].token().unwrap();
            all.push(token);
            next = vec![token];
        }
        all
    };
    let want = prompts.map(alone);
    let mut r = loaded.runner(options(2)).unwrap();
    let mut got = [vec![], vec![]];
    for (s, prompt) in prompts.iter().enumerate() {
        r.set_sampler(s, &greedy).unwrap();
        let fed = prompt[..prompt.len() - 1].iter().zip(0..).map(|(id, p)| Row::fed(*id, s, p));
        let last = row(s, prompt.len() - 1, Token::Id(prompt[prompt.len() - 1]));
        let rows: Vec<Row> = fed.chain([last]).collect();
        got[s].push(r.step(&Step { rows: &rows, ..Step::default() }).unwrap().tokens[0].token().unwrap());
    }
    let orders: [&[usize]; 8] = [&[0, 1], &[1, 0], &[1], &[0, 1], &[0], &[0, 1], &[1, 0], &[1, 0]];
    let mut queue = orders.iter();
    let mut taken = orders.iter();
    let mut begin = |r: &mut Runner| {
        let Some(order) = queue.next() else { return };
        let rows: Vec<Row> = order.iter().map(|s| row(*s, r.len(*s), Token::Last)).collect();
        r.begin(&Step { rows: &rows, ..Step::default() }).unwrap();
    };
    begin(&mut r);
    while r.queued() > 0 {
        begin(&mut r);
        let tokens = r.take().unwrap().tokens.clone();
        for (s, token) in taken.next().unwrap().iter().zip(tokens) {
            got[*s].push(token.token().unwrap());
        }
    }
    for (got, want) in got.iter().zip(&want) {
        assert_eq!(got[..], want[..got.len()]);
        assert!(got.len() > 7);
    }
}
