//! Experts that several processes share, with threads of one process in their place: everything but the network between them.

use super::watched;
use crate::{
    goldens::{defined, families, folder, forward, golden, tolerance},
    support::{Target, compare, gpu, thorough},
};
use moeray::{
    Error,
    backend::{
        self, Loaded, Program,
        host::HostExperts,
        ranks::{Counts, Joining, MOST_GATHERED, World, exchange, follow, lead, threads},
        runner::{self, Budget, Row, RunnerOptions},
        wgpu::RunOptions,
    },
    graph::{self, expert_weights, experts_of_rank, split_for_rank},
    ops::linear::Activations,
    quant::KvType,
    session::{BackendChoice, ExpertPlacement, Experts, LoadOptions, Model, Session, SessionOptions},
};
use std::sync::Arc;

/// Loads a rank's part.
type Load<'a> = &'a (dyn Fn(Program, Arc<dyn HostExperts>) -> Box<dyn Loaded> + Sync);

fn part(program: &Program, world: &Arc<World>, most_gathered: usize, load: Load<'_>) -> Box<dyn Loaded> {
    let split = split_for_rank(program, world.rank(), world.size()).unwrap();
    load(split.program, exchange(world, &split.regions, most_gathered))
}

/// Runs `work` on rank 0 of so many, the others of which follow.
fn on_ranks<R>(
    program: &Program,
    (size, most_gathered): (usize, usize),
    load: Load<'_>,
    work: impl FnOnce(&dyn Loaded, &World) -> R,
) -> R {
    let mut worlds = threads(size).into_iter().map(|r| Arc::new(World::new(r)));
    let first = worlds.next().unwrap();
    std::thread::scope(|s| {
        for world in worlds {
            s.spawn(move || {
                let loaded = part(program, &world, most_gathered, load);
                follow(&*loaded, &world).unwrap();
                world.leave().unwrap();
            });
        }
        let loaded = lead(part(program, &first, most_gathered, load), first.clone());
        work(&*loaded, &first)
    })
}

fn cpu(activations: Activations) -> backend::cpu::Options {
    backend::cpu::Options { activations, threads: Some(1), ..Default::default() }
}

fn on_cpu(activations: Activations) -> impl Fn(Program, Arc<dyn HostExperts>) -> Box<dyn Loaded> {
    move |program, host| backend::cpu::load_with_host(program, host, &cpu(activations), &mut |_| Ok(())).unwrap()
}

/// Families with routed experts: their programs, and how many experts a layer has at least.
fn with_experts() -> impl Iterator<Item = (&'static str, Program, usize)> {
    families().filter_map(|name| {
        let program = defined(name, false).program;
        let experts = expert_weights(&program.graph);
        let of = |w: &moeray::ir::WeightId| program.graph.weight(*w).shape[0];
        let least = experts.values().flatten().map(of).min()?;
        Some((name, program, least))
    })
}

/// The same bits as one process makes, in every family, for any number of ranks, in decode and prefill, and both ways of exchange.
#[test]
fn the_same_bits_on_any_number_of_ranks() {
    let mut seen = 0;
    for (i, (name, program, least)) in with_experts().enumerate() {
        let ids = golden(name).ids;
        let t = ids.len();
        let activations = if i % 2 == 0 { Activations::Int8 } else { Activations::Int16 };
        let whole = backend::cpu::load(program.clone(), &cpu(activations), &mut |_| Ok(())).unwrap();
        let chunks = [vec![t], vec![7, 1, 3, t - 11]];
        let want = chunks.clone().map(|c| forward(&*whole, &ids, &c));
        for size in [1, 2, 3, 4].into_iter().filter(|n| *n <= least) {
            for most_gathered in [MOST_GATHERED, 2] {
                let got = on_ranks(&program, (size, most_gathered), &on_cpu(activations), |loaded, _| {
                    chunks.clone().map(|c| forward(loaded, &ids, &c))
                });
                assert!(got == want, "{name} on {size} ranks, {most_gathered} tokens gathered: other bits");
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "{seen}");
}

fn check_on_gpu(name: &str, program: &Program, size: usize, run: Option<RunOptions>) {
    let Some(gpu) = gpu() else { return };
    let run = run.unwrap_or_else(|| gpu.run_options());
    let load =
        |program: Program, host: Arc<dyn HostExperts>| gpu.load_with_host(program, host, run, &mut |_| Ok(())).unwrap();
    let g = golden(name);
    let t = g.ids.len();
    for (chunks, most_gathered) in [(vec![7, 1, 3, t - 11], MOST_GATHERED), (vec![t], 2)] {
        let out = on_ranks(program, (size, most_gathered), &load, |loaded, _| forward(loaded, &g.ids, &chunks));
        compare::check(&out[0].f32, &g.logits, tolerance(Target::Wgpu))
            .unwrap_or_else(|e| panic!("{name} on {size} ranks, chunks {chunks:?}: {e}"));
    }
}

/// On a GPU each rank's experts are on the device; every family against the independent implementation, or every third: all of them run
/// with the kernels of real GPUs below.
#[test]
fn goldens_on_ranks_with_a_gpu() {
    for (i, (name, program, least)) in with_experts().enumerate().filter(|(i, _)| thorough() || i % 3 == 0) {
        check_on_gpu(name, &program, [2, 3, 4][i % 3].min(least), None);
    }
}

/// The same with the kernels of real GPUs, scratch poisoned and fenced: what is not written of other ranks' slots is not read.
#[test]
fn goldens_on_ranks_with_the_kernels_of_real_gpus() {
    for (i, (name, program, least)) in with_experts().enumerate() {
        check_on_gpu(name, &program, [3, 2][i % 2].min(least), Some(watched()));
    }
}

/// Each rank has its part of every layer's experts and no byte of the others', and all of the rest.
#[test]
fn bytes_of_experts() {
    for (name, program, _) in with_experts() {
        let experts = expert_weights(&program.graph);
        let total = experts.values().flatten().map(|w| program.weights[w.0 as usize].byte_len()).sum::<usize>();
        for size in [2, 3] {
            let mut sum = 0;
            for rank in 0..size {
                let split = split_for_rank(&program, rank, size).unwrap();
                graph::check(&split.program.graph).unwrap();
                Program::new(graph::fuse(&split.program.graph), split.program.weights.to_vec()).unwrap();
                for (i, (tensor, whole)) in split.program.weights.iter().zip(program.weights.iter()).enumerate() {
                    let is_expert = experts.values().flatten().any(|w| w.0 as usize == i);
                    if !is_expert {
                        assert_eq!((tensor.shape(), tensor.byte_len()), (whole.shape(), whole.byte_len()), "{name}");
                        continue;
                    }
                    let all = whole.shape()[0];
                    let block = experts_of_rank(all, rank, size);
                    assert!(block.len() == all / size || block.len() == all / size + 1, "{name}: {block:?} of {all}");
                    assert_eq!(tensor.shape()[0], block.len());
                    let rows = if whole.shape().len() == 2 { 1 } else { whole.shape()[1] };
                    for (r, from) in [(0, block.start * rows), (tensor.rows() - 1, block.end * rows - 1)] {
                        assert!(tensor.row(r) == whole.row(from), "{name}: expert weights of rank {rank}");
                    }
                    sum += tensor.byte_len();
                }
            }
            assert_eq!(sum, total, "{name}");
        }
    }
}

fn rows(ids: &[u32], sequence: usize, first: usize) -> Vec<Row> {
    let last = ids.len() - 1;
    let row = |(i, id): (usize, &u32)| Row { logits: i == last, ..Row::fed(*id, sequence, first + i) };
    ids.iter().enumerate().map(row).collect()
}

/// A token takes one message between the ranks a layer; many take two, and fewer bytes than if all slots went to everybody.
#[test]
fn messages_are_counted() {
    let program = defined("qwen3_moe", false).program;
    let layers = expert_weights(&program.graph).len() as u64;
    let ids: Vec<u32> = (0..72).map(|i| (i * 7 + 3) % 90).collect();
    let options = RunnerOptions { ctx: 96, sequences: 1, ubatch: 96, kv: KvType::F32 };
    let per_step = |most_gathered: usize, tokens: usize| {
        on_ranks(&program, (4, most_gathered), &on_cpu(Activations::Int8), |loaded, world| {
            let mut runner = loaded.runner(options).unwrap();
            let before = world.counts();
            runner.step(&runner::Step { rows: &rows(&ids[..tokens], 0, 0), ..Default::default() }).unwrap();
            let after = world.counts();
            assert!(after.seconds > before.seconds);
            Counts {
                gathers: after.gathers - before.gathers,
                exchanges: after.exchanges - before.exchanges,
                broadcasts: after.broadcasts - before.broadcasts,
                received: after.received - before.received,
                seconds: 0.0,
            }
        })
    };
    let decode = per_step(MOST_GATHERED, 1);
    assert_eq!((decode.gathers, decode.exchanges, decode.broadcasts), (layers, 0, 1));
    let few = per_step(MOST_GATHERED, 64);
    assert_eq!((few.gathers, few.exchanges, few.broadcasts), (layers, 0, 1));
    let many = per_step(MOST_GATHERED, 65);
    assert_eq!((many.gathers, many.exchanges, many.broadcasts), (layers, layers, 1));
    let all_to_all_off = per_step(1000, 65);
    assert_eq!((all_to_all_off.gathers, all_to_all_off.exchanges), (layers, 0));
    assert!(many.received < all_to_all_off.received, "{many:?} {all_to_all_off:?}");
}

/// Several sequences, keys and values that are copied, saved and put back, and steps that are cancelled at any slice: all ranks keep up.
#[test]
fn sequences_and_cancelled_steps() {
    for name in ["qwen2_moe", "qwen3_next"] {
        let program = defined(name, false).program;
        let g = golden(name);
        let options = RunnerOptions { ctx: 64, sequences: 2, ubatch: 32, kv: KvType::F16 };
        let work = |loaded: &dyn Loaded| {
            let mut runner = loaded.runner(options).unwrap();
            let mut all = vec![];
            let mut step = |runner: &mut runner::Runner, rows: &[Row]| {
                all.push(runner.step(&runner::Step { rows, ..Default::default() }).unwrap().outputs[0].f32.clone());
            };
            step(&mut runner, &rows(&g.ids[..9], 0, 0));
            runner.snapshot(0).unwrap();
            let saved = runner.save(0, 9).unwrap();
            runner.fork(0, 1, 9).unwrap();
            step(&mut runner, &rows(&g.ids[9..12], 1, 9));
            for polls in 0..6 {
                let rows = rows(&g.ids[9..11], 0, 9);
                runner.begin(&runner::Step { rows: &rows, ..Default::default() }).unwrap();
                (0..polls).for_each(|_| _ = runner.poll(Budget::dispatches(3)).unwrap());
                runner.cancel();
                let end = runner.resume_at(0, 9);
                runner.truncate(0, end);
                runner.restore(0, &saved).unwrap();
            }
            step(&mut runner, &rows(&g.ids[9..12], 0, 9));
            // A second runner beside the first.
            let mut other = loaded.runner(RunnerOptions { sequences: 1, ..options }).unwrap();
            step(&mut other, &rows(&g.ids[..5], 0, 0));
            drop(runner);
            step(&mut other, &rows(&g.ids[5..6], 0, 5));
            all
        };
        let whole = backend::cpu::load(program.clone(), &cpu(Activations::Int8), &mut |_| Ok(())).unwrap();
        let want = work(&*whole);
        assert_eq!(want[1], want[2], "{name}");
        let got = on_ranks(&program, (3, 2), &on_cpu(Activations::Int8), |loaded, _| work(loaded));
        assert!(got == want, "{name}");
    }
}

/// Loads a golden on rank 0 and another, and gives what both come to.
fn join(names: [&str; 2], options: [LoadOptions; 2]) -> [Result<Model, Error>; 2] {
    let worlds: Vec<Arc<World>> = threads(2).into_iter().map(|r| Arc::new(World::new(r))).collect();
    let one = |i: usize| {
        let options = LoadOptions { world: Some(worlds[i].clone()), ..options[i].clone() };
        Model::load(&folder(names[i]), &options, &mut |_| {})
    };
    std::thread::scope(|s| {
        let other = s.spawn(|| one(1));
        let first = one(0);
        [first, other.join().unwrap()]
    })
}

fn on_backend(activations: Activations) -> LoadOptions {
    LoadOptions { backend: BackendChoice::Cpu(cpu(activations)), ..LoadOptions::default() }
}

/// What ranks bring must be the same: else all of them say what is not.
#[test]
fn ranks_that_do_not_fit_are_refused() {
    let said = |names: [&str; 2], options: [LoadOptions; 2]| {
        join(names, options).map(|r| {
            let e = r.err().unwrap_or_else(|| panic!("{names:?} go together"));
            assert!(matches!(e, Error::Invalid(_) | Error::Io { .. } | Error::Unsupported(_)), "{e:?}");
            e.to_string()
        })
    };
    let int8 = || on_backend(Activations::Int8);
    let both = |names: [&str; 2], words: &[&str]| {
        for e in said(names, [int8(), int8()]) {
            assert!(words.iter().all(|w| e.contains(w)), "{e}");
        }
    };
    both(["qwen3_moe", "qwen2_moe"], &["rank 1 has another model than rank 0"]);
    both(["llama", "llama"], &["no routed experts that 2 processes could share"]);
    for e in said(["mixtral", "mixtral"], [int8(), on_backend(Activations::Int16)]) {
        assert!(e.contains("rank 1 runs otherwise than rank 0") && e.contains("Int16") && e.contains("Int8"), "{e}");
    }
    let experts = Experts { placement: ExpertPlacement::Cpu, cpu: cpu(Activations::Int8) };
    let left = || LoadOptions { experts: experts.clone(), ..int8() };
    assert!(said(["mixtral", "mixtral"], [left(), left()])[0].contains("each rank has its experts"));
    let oracle = || LoadOptions { backend: BackendChoice::Reference, ..LoadOptions::default() };
    assert!(said(["mixtral", "mixtral"], [oracle(), oracle()])[1].contains("one process"));
    // An error of one rank is everybody's, by name.
    let worlds: Vec<World> = threads(2).into_iter().map(World::new).collect();
    std::thread::scope(|s| {
        let other = s.spawn(|| worlds[1].join(Err(Error::Device("a card of 2 GB".into()))));
        let first = worlds[0].join(Ok(Joining { model: 7, options: "any".into() })).unwrap_err();
        assert!(matches!(&first, Error::Invalid(what) if what.contains("rank 1: device: a card of 2 GB")), "{first}");
        assert!(matches!(other.join().unwrap(), Err(Error::Device(_))));
    });
    assert!(worlds[0].has_refused() && !worlds[0].is_apart());
    // More ranks than a layer has experts.
    let program = defined("mixtral", false).program;
    let e = split_for_rank(&program, 0, 99).unwrap_err().to_string();
    assert!(e.contains("99 processes for the") && e.contains("each needs one"), "{e}");
    assert!(split_for_rank(&program, 2, 2).is_err());
}

/// A session on rank 0 writes what it writes alone, and the closing line says on how many ranks.
#[test]
fn the_same_text() {
    let text = |model: &Model| {
        let mut s = Session::new(model, SessionOptions { ctx: 64, ubatch: 16, ..Default::default() }).unwrap();
        let greedy = moeray::generate::SamplerOptions::greedy();
        let options = moeray::generate::GenerateOptions { max_tokens: 12, sampler: greedy, ..Default::default() };
        let pieces = moeray::generate::generate(&mut s, None, &golden("mixtral").ids, options, Default::default());
        pieces.unwrap().map(|p| p.unwrap().id).collect::<Vec<u32>>()
    };
    let alone = Model::load(&folder("mixtral"), &on_backend(Activations::Int8), &mut |_| {}).unwrap();
    let want = text(&alone);
    let worlds: Vec<Arc<World>> = threads(3).into_iter().map(|r| Arc::new(World::new(r))).collect();
    let load = |i: usize| {
        let options = LoadOptions { world: Some(worlds[i].clone()), ..on_backend(Activations::Int8) };
        Model::load(&folder("mixtral"), &options, &mut |_| {}).unwrap()
    };
    std::thread::scope(|s| {
        for i in 1..3 {
            let (load, world) = (&load, &worlds[i]);
            s.spawn(move || load(i).follow(world).unwrap());
        }
        let model = load(0);
        assert!(model.describe().contains("experts on 3 ranks (threads)"), "{}", model.describe());
        assert_eq!(text(&model), want);
    });
}

/// Ranks whose routers choose differently notice it; a rank that is gone is an error of the others, and nothing hangs.
#[test]
fn faults_between_ranks() {
    let programs = ["mixtral", "mixtral"].map(|name| defined(name, false).program);
    let mut other = programs[1].weights.to_vec();
    let graph = &programs[1].graph;
    let router = graph.weights.iter().position(|w| w.name.contains("ffn_gate_inp")).unwrap();
    let tensor = &other[router];
    let values: Vec<f32> = (0..tensor.rows() * tensor.cols()).map(|i| ((i * 37) % 101) as f32 - 50.0).collect();
    other[router] = moeray::file::Tensor::from_f32(tensor.shape().to_vec(), values).unwrap();
    let programs = [programs[0].clone(), Program { weights: Arc::new(other), ..programs[1].clone() }];
    let fault = |gone: bool| {
        let worlds: Vec<Arc<World>> = threads(2).into_iter().map(|r| Arc::new(World::new(r))).collect();
        let load = on_cpu(Activations::Int8);
        let [first, second] = &worlds[..] else { panic!() };
        let (first, second) = (first.clone(), second.clone());
        drop(worlds);
        std::thread::scope(|s| {
            let programs = &programs;
            s.spawn(move || {
                let loaded = part(&programs[usize::from(!gone)], &second, MOST_GATHERED, &on_cpu(Activations::Int8));
                if gone {
                    // Hears of the executor and of nothing more.
                    let mut words = vec![];
                    second.broadcast(&mut words).unwrap();
                    second.agree(Ok(())).unwrap();
                    drop(loaded);
                } else {
                    let e = follow(&*loaded, &second).unwrap_err();
                    assert!(matches!(e, Error::Network(_)), "{e}");
                }
            });
            let loaded = lead(part(&programs[0], &first, MOST_GATHERED, &load), first.clone());
            let options = RunnerOptions { ctx: 64, sequences: 1, ubatch: 32, kv: KvType::F32 };
            let mut runner = loaded.runner(options).unwrap();
            let ids = golden("mixtral").ids;
            let e = runner.step(&runner::Step { rows: &rows(&ids, 0, 0), ..Default::default() }).unwrap_err();
            assert!(matches!(e, Error::Network(_)) && first.is_apart(), "{e}");
            assert!(runner.step(&runner::Step { rows: &rows(&ids, 0, 0), ..Default::default() }).is_err());
            e.to_string()
        })
    };
    let said = fault(false);
    assert!(said.contains("has chosen other experts") || said.contains("words in place of"), "{said}");
    assert!(fault(true).contains("rank 1 is gone"));
}
