//! Slots of experts on a GPU: bit for bit what all experts in its memory give, with the hits and uploads that `moeray routing --simulate`
//! counts on the same text.

use super::watched;
use crate::{
    goldens::{defined, definition, families, folder, forward, golden},
    support::{gpu, skip, thorough},
};
use moeray::{
    Error,
    backend::{
        Loaded, Program,
        runner::{self, Budget, Row, RunnerOptions},
        wgpu::{ForcedLimits, Gpu, Options, RunOptions},
    },
    generate::{Sampler, SamplerOptions, Sampling},
    graph::{Eviction, ExpertSlots},
    model,
    quant::KvType,
    routing::{self, Policy, Slots},
    session::{
        BackendChoice, ExpertPlacement, ExpertSlotUse, Experts, LoadOptions, MemoryBudget, MemoryPlan, Model, Session,
        SessionOptions, SlotOptions,
    },
};
use std::collections::BTreeSet;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");

fn lru(slots: usize) -> Option<ExpertSlots> {
    Some(ExpertSlots { slots, eviction: Eviction::Lru })
}

pub(super) fn load(gpu: &Gpu, program: &Program, run: RunOptions) -> Box<dyn Loaded> {
    gpu.load_with(program.clone(), run, &mut |_| Ok(())).unwrap()
}

/// The device under test once more, taken for one with memory of its own.
fn with_own_memory() -> Option<Gpu> {
    opened_again(ForcedLimits { own_memory: true, ..ForcedLimits::default() })
}

fn opened_again(limits: ForcedLimits) -> Option<Gpu> {
    let name = gpu()?.name().split(" (").next().unwrap().to_string();
    Some(Gpu::open(&Options { device: Some(name), checked: true, limits, ..Options::default() }).unwrap())
}

/// Numbers of slots for k of E experts: k, half as many again, 25 %, 50 % and 100 % of them; with less than k nothing is cached.
pub(super) fn numbers(experts: usize, used: usize) -> BTreeSet<usize> {
    [used, (3 * used).div_ceil(2), experts.div_ceil(4), experts.div_ceil(2), experts]
        .into_iter()
        .map(|n| n.min(experts))
        .collect()
}

pub(super) fn bits(loaded: &dyn Loaded, ids: &[u32], chunks: &[usize]) -> Vec<u32> {
    let out = forward(loaded, ids, chunks);
    out.iter().flat_map(|o| o.f32.iter().map(|x| x.to_bits()).chain(o.u32.iter().copied())).collect()
}

/// A family with all numbers of slots against all experts in the device's memory: at most so many tokens one by one and then the others,
/// a prompt and then tokens, a mixture.
fn check_family(
    name: &str,
    run: RunOptions,
    traced: bool,
    single: usize,
    numbers: fn(usize, usize) -> BTreeSet<usize>,
) -> usize {
    let (g, Some(gpu)) = (golden(name), gpu()) else { return 0 };
    let t = g.ids.len();
    let mut checked = 0;
    let d = if traced { definition(name) } else { defined(name, false) };
    let Some(moe) = d.decoder.moe() else { return 0 };
    let (experts, used) = (moe.router.experts, moe.router.used);
    let single = single.min(t - 1);
    let chunks = [[&vec![1; single][..], &[t - single]].concat(), vec![t - 4, 1, 1, 2], vec![7, 1, 3, t - 11]];
    let whole = load(&gpu, &d.program, run);
    let want: Vec<_> = chunks.iter().map(|c| bits(&*whole, &g.ids, c)).collect();
    for slots in numbers(experts, used) {
        let cached = load(&gpu, &d.program, RunOptions { expert_slots: lru(slots), ..run });
        for (chunks, want) in chunks.iter().zip(&want) {
            assert!(bits(&*cached, &g.ids, chunks) == *want, "{name}, {slots} slots of {experts}, {chunks:?}, {run:?}");
            checked += 1;
        }
    }
    checked
}

/// Every family with experts, with every number of slots.
#[test]
fn goldens_bit_for_bit() {
    // As the product runs it, where experts' kernels choose; and with what the router chose as results.
    let checked = |traced, numbers| -> usize {
        families().map(|name| check_family(name, RunOptions::default(), traced, usize::MAX, numbers)).sum()
    };
    let (all, traced) = (checked(false, numbers), checked(true, |_, used| BTreeSet::from([used])));
    assert!(all == 0 || (all > 100 && traced > 40), "{all}, {traced}");
}

/// The same with the kernels of real GPUs, scratch and slots poisoned and fenced.
#[test]
fn goldens_with_the_kernels_of_real_gpus() {
    let half = |experts: usize, used: usize| BTreeSet::from([experts.div_ceil(2).max(used)]);
    let checked: usize = families().map(|name| check_family(name, watched(), false, 5, half)).sum();
    assert!(checked == 0 || checked > 40, "{checked}");
}

/// Where a device binds a part of a layer's experts only, and where it reads them in memory of the host.
#[test]
fn other_devices() {
    let Some(under_test) = gpu() else { return };
    let name = under_test.name().split(" (").next().unwrap().to_string();
    let open = |limits: ForcedLimits| {
        Gpu::open(&Options { device: Some(name.clone()), checked: true, limits, ..Options::default() }).unwrap()
    };
    let small = ForcedLimits { webgpu_defaults: true, max_binding: Some(40 << 10), ..ForcedLimits::default() };
    for (what, gpu) in [("small bindings", open(small)), ("its own memory", with_own_memory().unwrap())] {
        for name in ["qwen3_moe", "gpt_oss", "qwen2_moe"] {
            let (d, g) = (defined(name, false), golden(name));
            let used = d.decoder.moe().unwrap().router.used;
            // Where all experts are cut into several bindings their sum is, too: slots are as on a device that binds all of them.
            let run = |expert_slots| RunOptions { expert_slots, ..watched() };
            let (whole, cached) =
                (load(&under_test, &d.program, run(None)), load(&gpu, &d.program, run(lru(used + 1))));
            for chunks in [vec![1; g.ids.len()], vec![5, 1, 1, g.ids.len() - 7]] {
                assert!(
                    bits(&*whole, &g.ids, &chunks) == bits(&*cached, &g.ids, &chunks),
                    "{name}, {what}, {chunks:?}"
                );
            }
        }
    }
}

/// Eight sequences side by side, and one alone in between. Where not all experts that eight tokens can choose have slots none are used, and
/// none are spoiled; where each has one, steps of eight count too (on devices that have a schedule for few tokens).
#[test]
fn batches_of_eight() {
    let Some(gpu) = gpu() else { return };
    let d = defined("granitemoe", false);
    let options = RunnerOptions { ctx: 24, sequences: 8, ubatch: 24, kv: KvType::F32 };
    let run = |base: RunOptions, expert_slots| {
        let loaded = load(&gpu, &d.program, RunOptions { expert_slots, ..base });
        let mut runner = loaded.runner(options).unwrap();
        let mut all = vec![];
        for position in 0..10 {
            let who = if position % 3 == 2 { 3..4 } else { 0..8 };
            let row =
                |s: usize| Row { logits: true, ..Row::fed(((11 * s + 7 * position) % 90) as u32, s, runner.len(s)) };
            let rows: Vec<Row> = who.map(row).collect();
            let out = runner.step(&runner::Step { rows: &rows, ..Default::default() }).unwrap();
            all.extend(out.outputs[0].f32.iter().map(|x| x.to_bits()));
        }
        let used = runner.expert_slots().unwrap();
        let steps = used.iter().map(|u| u.steps).max().unwrap_or(0);
        assert!(used.iter().all(|u| u.hits + u.uploads <= u.lookups && u.uploads > 0 && u.hits > 0), "{used:?}");
        (all, steps)
    };
    for (base, of_all) in [(RunOptions::default(), 3), (watched(), 10)] {
        let (want, none) = run(base, None);
        for (slots, steps) in [(5, 3), (7, 3), (8, of_all)] {
            let (got, counted) = run(base, lru(slots));
            assert!(got == want, "{slots} slots, {base:?}");
            assert_eq!((none, counted), (0, steps), "{slots} slots");
        }
    }
}

fn demo(gpu: &Gpu, slots: Slots, policy: Policy, trace: bool) -> Model {
    let placement = ExpertPlacement::Slots(SlotOptions { slots: Some(slots), policy, budget: None });
    let options = LoadOptions {
        backend: BackendChoice::Gpu(gpu.clone()),
        model: model::Options { trace_router: trace },
        experts: Experts { placement, ..Experts::default() },
        ..LoadOptions::default()
    };
    Model::load(DEMO.as_ref(), &options, &mut |_| {}).unwrap()
}

/// Texts that the demo model writes, token by token, or those that are given, fed in the same way: their ids, which experts they took, and
/// what the slots did.
fn written(model: &Model, given: &[Vec<u32>]) -> (Vec<Vec<u32>>, Vec<routing::Trace>, Vec<ExpertSlotUse>) {
    const TEXTS: [&str; 4] = ["ROMEO:\n", "KING HENRY:\nMy lord, ", "First Witch:\n", "When forty winters "];
    let tokens = if thorough() || given.is_empty() { 500 } else { 150 };
    let options = SessionOptions { ctx: tokens + 1, ubatch: 8, kv: KvType::F16 };
    let mut session = Session::new(model, options).unwrap();
    let mut sampler = Sampler::new(SamplerOptions { seed: 3, ..SamplerOptions::default() }).unwrap();
    let (mut texts, mut traces) = (vec![], vec![]);
    let count = if given.is_empty() { TEXTS.len() } else { given.len() };
    for (i, start) in TEXTS.into_iter().enumerate().take(count) {
        session.truncate(0);
        session.record_routing().unwrap();
        let mut text = match given.get(i) {
            Some(text) => text.clone(),
            None => model.require_tokenizer().unwrap().encode(start, Default::default()).unwrap(),
        };
        for at in 0..tokens {
            let logits = session.decode(text[at]).unwrap();
            if at + 1 == text.len() {
                let next = sampler.sample(logits, &text).unwrap();
                text.push(next);
            }
        }
        traces.push(session.routing().unwrap().clone());
        texts.push(text);
    }
    let used = session.expert_slots().unwrap();
    (texts, traces, used)
}

/// What the device counts on texts is what the simulation counts on their record: hits, uploads and bytes, of every layer. The texts are the
/// demo model's own, 2000 tokens, of which the other policies and numbers of slots follow the first 150, or 500 where all is run: random tokens
/// use all experts alike, which no text does.
#[test]
fn counts_are_those_of_the_simulation() {
    let Some(gpu) = gpu() else { return };
    let mut texts = vec![];
    for (slots, policy) in [
        (Slots::Percent(25.0), Policy::Lru),
        (Slots::Percent(50.0), Policy::LfuAged),
        (Slots::Count(3), Policy::LfuAged),
        (Slots::Percent(50.0), Policy::PinnedLru),
        (Slots::Count(3), Policy::PinnedLru),
        (Slots::Percent(50.0), Policy::Lru),
        (Slots::Percent(100.0), Policy::Lru),
    ] {
        let model = demo(&gpu, slots, policy, true);
        let (fed, traces, used) = written(&model, &texts);
        let wanted = if texts.is_empty() { 2000 } else { if thorough() { 500 } else { 150 } };
        texts = fed.into_iter().take(1).collect();
        let tokens = traces.iter().map(|t| t.tokens() as u64).sum::<u64>();
        let simulated = policy.simulate(&traces, slots).unwrap();
        assert_eq!((used.len(), tokens), (simulated.len(), wanted));
        let program = &model.definition().program;
        for (layer, (got, want)) in used.iter().zip(&simulated).enumerate() {
            let what = format!("{slots:?}, {policy:?}, layer {layer}");
            assert_eq!((got.layer, got.experts, got.steps), (layer, 8, tokens), "{what}");
            assert_eq!((got.lookups, got.hits, got.uploads), (want.lookups, want.hits, want.uploads), "{what}");
            let own = |name: &str| name.starts_with(&format!("blk.{layer}.")) && name.contains("_exps");
            let weights = program.graph.weights.iter().zip(program.weights.iter());
            let bytes: usize = weights.filter(|(w, _)| own(&w.name)).map(|(_, t)| t.byte_len()).sum();
            assert_eq!(got.uploaded_bytes(), want.uploads * bytes as u64 / 8, "{what}: bytes as the file has them");
        }
        let sum = |of: fn(&ExpertSlotUse) -> u64| used.iter().map(of).sum::<u64>() as f64;
        let (hits, bytes) = (sum(|u| u.hits) / sum(|u| u.lookups), sum(ExpertSlotUse::uploaded_bytes) / tokens as f64);
        println!("{slots:?}, {policy:?}: {:.1} % hits, {bytes:.0} bytes a token", 100.0 * hits);
    }
}

/// The same greedy text with the choice on the device a step ahead and in slices of a few dispatches, and as many submissions as without
/// slots; a step that is cut off anywhere leaves nothing wrong behind.
#[test]
fn the_same_text_in_slices_and_after_cancelled_steps() {
    // Submissions are counted: what other tests do on their device does not belong to them.
    let Some(gpu) = opened_again(ForcedLimits::default()) else { return };
    let (d, g) = (definition("qwen3_moe"), golden("qwen3_moe"));
    let whole = load(&gpu, &d.program, RunOptions::default());
    let cached = load(&gpu, &d.program, RunOptions { expert_slots: lru(5), ..RunOptions::default() });
    let options = RunnerOptions { ctx: 64, sequences: 1, ubatch: 32, kv: KvType::F32 };
    let decode = |loaded: &dyn Loaded, cut: Option<usize>| {
        let mut runner = loaded.runner(options).unwrap();
        let (mut all, before) = (vec![], gpu.traffic()[0]);
        for (i, id) in g.ids.iter().enumerate() {
            let rows = [Row { logits: true, ..Row::fed(*id, 0, i) }];
            let step = runner::Step { rows: &rows, ..Default::default() };
            if let Some(polls) = cut {
                // Another token, dropped after some slices of one or two dispatches.
                let other = [Row { logits: true, ..Row::fed(g.ids[(i + 3) % g.ids.len()], 0, i) }];
                runner.begin(&runner::Step { rows: &other, ..Default::default() }).unwrap();
                for _ in 0..(polls + i) % 23 {
                    if runner.poll(Budget::dispatches(1 + i % 2)).unwrap() == runner::Status::Waiting {
                        runner.wait().unwrap();
                    }
                }
                runner.cancel();
                runner.truncate(0, i);
            }
            let out = runner.step(&step).unwrap();
            all.extend(out.outputs.iter().flat_map(|o| o.f32.iter().map(|x| x.to_bits())));
        }
        (all, gpu.traffic()[0] - before)
    };
    let ((want, submissions), (got, own)) = (decode(&*whole, None), decode(&*cached, None));
    assert!(got == want && own == submissions, "{own} submissions, not {submissions}");
    for polls in [0, 3, 8, 13] {
        assert!(decode(&*cached, Some(polls)).0 == want, "after {polls} polls");
    }
}

/// The device chooses tokens one step ahead: the same text.
#[test]
fn generated_ahead() {
    let Some(gpu) = gpu() else { return };
    let text = |model: &Model| {
        let mut s = Session::new(model, SessionOptions { ctx: 64, ubatch: 16, ..Default::default() }).unwrap();
        let sampling = Sampling { options: SamplerOptions::greedy(), ..Sampling::default() };
        assert!(s.set_sampler(&sampling).unwrap(), "the device chooses");
        s.begin_choice(&[5, 9, 200, 31], 0).unwrap();
        let mut ids = vec![];
        while ids.len() < 24 {
            while s.choices_queued() < s.depth() && s.choices_queued() + ids.len() < 24 {
                s.begin_next(0).unwrap();
            }
            while s.poll(Budget::UNLIMITED).unwrap() != moeray::session::Status::Done {
                s.wait().unwrap();
            }
            ids.push(s.chosen().unwrap());
        }
        ids
    };
    let all = LoadOptions { backend: BackendChoice::Gpu(gpu.clone()), ..LoadOptions::default() };
    let want = text(&Model::load(DEMO.as_ref(), &all, &mut |_| {}).unwrap());
    let model = demo(&gpu, Slots::Count(2), Policy::Lru, false);
    assert!(model.describe().contains("2 slots for the experts of a layer"), "{}", model.describe());
    assert_eq!(text(&model), want);
}

/// What slots take is known before anything is made, and a budget is kept: on a device with memory of its own the experts themselves do not
/// count.
#[test]
fn memory_of_slots() {
    let Some(gpu) = with_own_memory() else { return };
    let Some([_, _]) = gpu.held_memory() else { return skip("no allocator report") };
    let session = SessionOptions { ctx: 512, ubatch: 32, kv: KvType::F16 };
    let options = |slots: Option<Slots>, vram: Option<u64>| {
        let budget = vram.map(|n| MemoryBudget { vram: Some(n), session, sessions: 1 });
        let placement = ExpertPlacement::Slots(SlotOptions { slots, policy: Policy::Lru, budget });
        let experts = Experts { placement, ..Experts::default() };
        LoadOptions { backend: BackendChoice::Gpu(gpu.clone()), experts, ..LoadOptions::default() }
    };
    let planned = |o: &LoadOptions| MemoryPlan::of(DEMO.as_ref(), o, &session);
    let taken = |o: &LoadOptions| {
        let held = || gpu.held_memory().unwrap()[1];
        let before = held();
        let model = Model::load(DEMO.as_ref(), o, &mut |_| {}).unwrap();
        let mut s = Session::new(&model, session).unwrap();
        s.set_sampler(&Sampling { options: SamplerOptions::greedy(), ..Default::default() }).unwrap();
        held() - before
    };
    let mut totals = vec![];
    for slots in [2, 4, 8] {
        let o = options(Some(Slots::Count(slots)), None);
        let plan = planned(&o).unwrap();
        let (on_gpu, host) = (plan.gpu.as_ref().unwrap().total(), plan.host_experts);
        assert_eq!(plan.expert_slots, (0..4).map(|l| (l, slots)).collect::<Vec<_>>());
        assert_eq!(plan.cpu.weights.experts, host);
        let off = (on_gpu + host) as f64 / taken(&o) as f64 - 1.0;
        assert!(off.abs() < 0.02, "{slots} slots: off by {:.2} %", 100.0 * off);
        totals.push((on_gpu, host));
    }
    let ((two, host), (four, _)) = (totals[0], totals[1]);
    assert!(totals.is_sorted() && totals.iter().all(|t| t.1 == host));
    // As many as fit.
    let o = options(None, Some(four + (four - two) / 4));
    let plan = planned(&o).unwrap();
    assert_eq!(plan.expert_slots, (0..4).map(|l| (l, 4)).collect::<Vec<_>>());
    assert!(taken(&o) <= four + (four - two) / 4 + host);
    // With room for all experts there are no slots.
    let plan = planned(&options(None, Some(1 << 30))).unwrap();
    assert!(plan.expert_slots.is_empty() && plan.host_experts == 0);
    let fails = |o: &LoadOptions, words: &[&str]| {
        let e = planned(o).unwrap_err();
        assert!(matches!(e, Error::Device(_)) && words.iter().all(|w| e.to_string().contains(w)), "{e}");
        assert_eq!(Model::load(DEMO.as_ref(), o, &mut |_| {}).err().unwrap().to_string(), e.to_string());
    };
    fails(&options(None, Some(two - 1)), &["uses 2 experts", "left to the processor", "may be used"]);
    fails(&options(Some(Slots::Count(8)), Some(four)), &["slots for 8 experts", "4 slots fit"]);
}

#[test]
fn wrong_slots_are_refused() {
    let Some(gpu) = gpu() else { return };
    let refused = |name: &str, slots, policy| {
        let placement = ExpertPlacement::Slots(SlotOptions { slots, policy, budget: None });
        let experts = Experts { placement, ..Experts::default() };
        let options = LoadOptions { backend: BackendChoice::Gpu(gpu.clone()), experts, ..LoadOptions::default() };
        let e = Model::load(&folder(name), &options, &mut |_| {}).err().unwrap();
        assert!(matches!(e, Error::Invalid(_)), "{e}");
        e.to_string()
    };
    let n = |n| Some(Slots::Count(n));
    assert!(refused("mixtral", n(9), Policy::Lru).contains("9 slots for 8 experts"));
    assert!(refused("mixtral", n(0), Policy::Lru).contains("0 slots"));
    assert!(refused("mixtral", Some(Slots::Percent(120.0)), Policy::Lru).contains("120"));
    assert!(refused("llama", n(2), Policy::Lru).contains("no routed experts"));
    assert!(refused("mixtral", n(2), Policy::Belady).contains("looks ahead"));
    assert!(refused("mixtral", None, Policy::Lru).contains("how many slots"));
}
