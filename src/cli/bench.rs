//! `moeray bench`: speed of prompts and of generation, in the manner of llama-bench.

use super::{
    args::{BackendName, BenchArgs, Format},
    bench_batch::SideBySide,
    bench_tokens::Source,
    facts,
    failure::{Failure, Outcome, say},
    load::{self, Bar},
    output,
    report::{self, Kernel, Row},
    units,
};
use crate::{
    backend::{Progress, cpu},
    file::{
        Checkpoint,
        synth::{Shape, Synthetic},
    },
    model,
    quant::{
        DType,
        mix::{self, Mix},
    },
    sampler::{SamplerOptions, Sampling},
    session::{Budget, ExpertSlotUse, Model, Session, Status},
};
use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

/// Runs the verb.
pub fn bench(args: &BenchArgs, quiet: bool) -> Outcome {
    let tests = tests(args)?;
    let text = args.text.as_ref().map(|path| output::read_text("--text", path)).transpose()?;
    let (checkpoint, name) = match &args.synthetic {
        Some(shape) => match synthetic(args, shape, quiet)? {
            Some(made) => made,
            None => return Ok(()),
        },
        None => (load::open(args.model.path())?, load::name(args.model.path())),
    };
    let places: Vec<Option<BackendName>> =
        if args.backend.is_empty() { vec![None] } else { args.backend.iter().copied().map(Some).collect() };
    let mut rows = Vec::new();
    let mut bandwidth = None;
    for place in places {
        // Of several backends each takes the options that are about it.
        let device = match place {
            Some(name) if args.backend.len() > 1 => args.device.only_of(name),
            _ => args.device.clone(),
        };
        let room = load::Room::new(None, &args.context);
        let build = model::Options::default();
        let model = load::load_checkpoint(&checkpoint, &args.lora, (place, &device), room, build, quiet)?;
        let mut row = describe(&model, &checkpoint, &name, args);
        if row.backends != "wgpu" {
            // Memory is the same for every backend that this processor runs.
            let measured = match bandwidth {
                Some(f) => f,
                None => *bandwidth.insert(cpu::measure_bandwidth(row.n_threads)?),
            };
            row.read_bandwidth = Some(measured);
        } else if let Some(f) = model.roofline()? {
            (row.read_bandwidth, row.dispatch_seconds) = (Some(f.bandwidth), Some(f.dispatch));
        }
        measure((args, text.as_deref()), &model, &tests, &row, &mut rows, quiet)?;
    }
    let mut out = io::stdout().lock();
    report::write(&mut out, args.output, &rows)?;
    if matches!(args.output, Format::Table | Format::Md) {
        explain(&mut out, &rows)?;
        report::kernels(&mut out, &rows)?;
    }
    Ok(out.flush()?)
}

/// A prompt of so many tokens, a generation of so many, or one behind the other, after so many, of each of so many sequences.
#[derive(Clone, Copy)]
struct Test {
    prompt: usize,
    generate: usize,
    depth: usize,
    sequences: usize,
}

fn tests(args: &BenchArgs) -> Outcome<Vec<Test>> {
    let mut tests = Vec::new();
    for depth in args.n_depth.iter().map(|d| *d as usize) {
        let prompts = args.n_prompt.iter().map(|p| Test { prompt: *p as usize, generate: 0, depth, sequences: 1 });
        tests.extend(prompts.filter(|t| t.prompt > 0));
        let alone = args.n_gen.iter().filter(|n| **n > 0).map(|n| (0, *n));
        for (prompt, generate) in alone.chain(args.prompt_gen.iter().copied()) {
            let (prompt, generate) = (prompt as usize, generate as usize);
            let several = args.sequences.iter().map(|s| *s as usize);
            tests.extend(several.map(|sequences| Test { prompt, generate, depth, sequences }));
        }
    }
    if tests.is_empty() {
        return Err(Failure::new("nothing to measure: -p and -n are both 0"));
    }
    Ok(tests)
}

/// A model of a known shape with random weights, made in memory; `None` where it was written to a file instead.
fn synthetic(args: &BenchArgs, name: &str, quiet: bool) -> Outcome<Option<(Checkpoint, String)>> {
    let mut shape = Shape::preset(name)?;
    if let Some(layers) = args.layers {
        shape = shape.with_layers(layers as usize);
    }
    let mix = named_mix(args.weight_type.as_deref().unwrap_or(shape.weights))?;
    let about = mix::Model {
        layers: shape.layers,
        experts: shape.experts,
        heads_per_kv: shape.heads / shape.kv_heads.max(1),
        tied: shape.tied,
    };
    let model = Synthetic::new(&shape, 1, |name, dims| mix.choose(&about, name, dims).unwrap_or(mix.main()))?;
    let mut bar = Bar::new(quiet);
    let mut report = |done, total| {
        bar.show(Progress { phase: "making", done, total });
        Ok(())
    };
    if let Some(path) = &args.write {
        model.write(path, &mut report)?;
        return Ok(None);
    }
    // Where memory is promised freely, asking for too much would end the program without a word.
    if let Some(free) = crate::memory::available()
        && model.bytes() > free
    {
        let gib = |n: u64| n as f64 / (1u64 << 30) as f64;
        let what =
            format!("{name} takes {:.1} GiB as {}, and {:.1} GiB are free", gib(model.bytes()), mix.name(), gib(free));
        return Err(Failure::new(what).hint("fewer --layers, or a smaller --type"));
    }
    let checkpoint = model.checkpoint(&mut report)?;
    Ok(Some((checkpoint, format!("{name} (random weights, {}, {} layers)", mix.name(), shape.layers))))
}

/// The mix that a person named.
pub fn named_mix(name: &str) -> Outcome<Mix> {
    Mix::from_name(name).ok_or_else(|| {
        if let Some((dtype, why)) = DType::from_name(name).and_then(|d| Some((d, d.no_quantiser()?))) {
            return Failure::new(format!("weights cannot be made {dtype}")).hint(why);
        }
        let known: Vec<&str> = Mix::ALL.iter().map(|m| m.name()).collect();
        Failure::new(format!("unknown weight type {name:?}")).hint(format!("known are {}", known.join(", ")))
    })
}

/// The fields that all tests on one backend share.
fn describe(model: &Model, checkpoint: &Checkpoint, name: &str, args: &BenchArgs) -> Row {
    let d = model.definition();
    let place = model.describe();
    let backends = ["cpu", "reference"].into_iter().find(|b| place.starts_with(b)).unwrap_or("wgpu").to_string();
    let threads = args.device.threads.map_or_else(cpu::pool::default_threads, |t| t as usize);
    let kv = format!("{:?}", load::kv(&args.context)).to_lowercase();
    Row {
        build_commit: env!("CARGO_PKG_VERSION").into(),
        cpu_info: facts::processor(),
        gpu_info: if backends == "wgpu" { place } else { String::new() },
        n_threads: if backends == "reference" { 1 } else { threads },
        backends,
        model_filename: name.into(),
        // Random weights in a model's shape are not that model: the name says so.
        model_type: match &args.synthetic {
            Some(_) => name.into(),
            None => format!("{} {}", facts::shape(d), facts::weight_type(checkpoint)),
        },
        text: args.text.as_ref().map(|t| t.display().to_string()),
        preset: args.synthetic.clone(),
        n_layers: d.decoder.layers.len(),
        model_size: facts::weight_bytes(&d.program),
        model_n_params: facts::parameters(&d.program),
        n_batch: args.context.ubatch_size as usize,
        n_ubatch: args.context.ubatch_size as usize,
        type_k: kv.clone(),
        type_v: kv,
        bytes_per_token: facts::bytes_per_token(&d.program),
        ..Row::default()
    }
}

fn measure(
    (args, text): (&BenchArgs, Option<&str>),
    model: &Model,
    tests: &[Test],
    row: &Row,
    rows: &mut Vec<Row>,
    quiet: bool,
) -> Outcome {
    let ctx = tests.iter().map(|t| t.depth + t.prompt + t.generate).max().unwrap_or(1);
    let mut session = load::session(model, ctx, &args.context)?;
    let mut bar = Bar::new(quiet);
    for test in tests {
        let mut row = Row {
            n_prompt: test.prompt,
            n_gen: test.generate,
            n_depth: test.depth,
            n_seq: test.sequences,
            test_time: report::utc(report::seconds_now()),
            ..row.clone()
        };
        let mut source = Source::new(text, model)?;
        let before = session.expert_slots()?;
        let times = times(args, model, &mut session, test, &mut source, &mut bar)?;
        row.set_samples(&times);
        if test.sequences == 1 && test.prompt == 0 {
            count_slots(&mut row, &before, &session.expert_slots()?);
        }
        if test.sequences == 1 {
            // On average half of what is generated stands before a token.
            let seen = test.depth + test.generate.div_ceil(2);
            row.kv_bytes_per_token = facts::attended_bytes(&model.definition().program, load::kv(&args.context), seen);
            let bytes = row.bytes_per_token + row.kv_bytes_per_token;
            let reachable = row.read_bandwidth.map(|b| b / bytes.max(1) as f64);
            row.roofline_percent = reachable.filter(|_| test.prompt == 0).map(|r| 100.0 * row.avg_ts / r);
        }
        if args.profile && test.sequences == 1 {
            row.kernels = profile(&mut session, test, args.repetitions, &mut source)?;
        }
        rows.push(row);
    }
    Ok(())
}

/// What slots of experts did between two looks.
fn count_slots(row: &mut Row, before: &[ExpertSlotUse], after: &[ExpertSlotUse]) {
    let grown = |of: fn(&ExpertSlotUse) -> u64| -> u64 { after.iter().zip(before).map(|(a, b)| of(a) - of(b)).sum() };
    let tokens = after.iter().zip(before).map(|(a, b)| a.steps - b.steps).max().unwrap_or(0);
    if tokens > 0 {
        let (hits, lookups) = (grown(|s| s.hits), grown(|s| s.lookups));
        row.expert_slots = after.iter().map(|s| s.slots).max();
        row.expert_hits_percent = Some(100.0 * hits as f64 / lookups.max(1) as f64);
        row.expert_bytes_per_token = Some(grown(ExpertSlotUse::uploaded_bytes) as f64 / tokens as f64);
    }
}

/// The time of every repetition of a test.
fn times(
    args: &BenchArgs,
    model: &Model,
    session: &mut Session,
    test: &Test,
    source: &mut Source,
    bar: &mut Bar,
) -> Outcome<Vec<Duration>> {
    let mut subject = match test.sequences {
        1 => Subject::One(Depth::fill(session, test.depth, source)?),
        n => {
            let lengths = [test.depth, test.prompt, test.generate];
            Subject::Several(Box::new(SideBySide::new(model, n, lengths, &args.context, source)?))
        }
    };
    let mut one = |test: &Test, source: &mut Source| match &mut subject {
        Subject::One(depth) => repetition(session, test, depth, source),
        Subject::Several(s) => s.steps([test.prompt, test.generate], source),
    };
    if !args.no_warmup {
        one(&Test { generate: test.generate.min(1), ..*test }, source)?;
    }
    let mut times = Vec::new();
    for i in 0..args.repetitions {
        times.push(one(test, source)?);
        bar.show(Progress { phase: "measuring", done: u64::from(i) + 1, total: u64::from(args.repetitions) });
    }
    Ok(times)
}

/// The kernels of one step of a test: their mean times over some steps, after one that compiles and warms them.
fn profile(session: &mut Session, test: &Test, repetitions: u32, source: &mut Source) -> Outcome<Vec<Kernel>> {
    Depth::fill(session, test.depth, source)?;
    let mut kernels: Vec<Kernel> = vec![];
    for i in 0..=repetitions {
        let tokens = source.tokens(test.depth, test.prompt.clamp(1, session.ubatch()), session.model().vocab());
        let Some(times) = session.profile(&tokens)? else {
            say(format_args!("--profile: {} has no clock for its kernels", session.model().describe()));
            return Ok(vec![]);
        };
        if i == 0 {
            continue;
        }
        for k in times {
            let (ns, bytes) = ((1e9 * k.seconds) as u64, k.bytes);
            match kernels.iter_mut().find(|seen| seen.kernel == k.kernel && seen.op == k.op) {
                Some(seen) => (seen.ns, seen.bytes) = (seen.ns + ns, seen.bytes + bytes),
                None => kernels.push(Kernel { kernel: k.kernel, op: k.op, dispatches: k.dispatches, ns, bytes }),
            }
        }
    }
    for k in &mut kernels {
        (k.ns, k.bytes) = (k.ns / u64::from(repetitions), k.bytes / u64::from(repetitions));
    }
    Ok(kernels)
}

/// What a test is measured on.
enum Subject {
    /// The session, which goes back to this.
    One(Depth),
    Several(Box<SideBySide>),
}

/// What stands in the context before each repetition of a test.
struct Depth {
    tokens: usize,
    /// Of a model with recurrent states, which cannot go back by forgetting: the session as it stood. What would have to be fed
    /// again is no part of what is measured.
    saved: Option<Vec<u8>>,
}

impl Depth {
    /// Fills an empty session.
    fn fill(session: &mut Session, tokens: usize, source: &mut Source) -> Outcome<Self> {
        session.truncate(0);
        if tokens > 0 {
            let ids = source.tokens(0, tokens, session.model().vocab());
            session.prefill(&ids)?;
        }
        let recurrent = !session.model().definition().program.graph.states.is_empty();
        let saved = if recurrent && tokens > 0 { Some(session.save()?) } else { None };
        Ok(Depth { tokens, saved })
    }

    fn go_back(&self, session: &mut Session) -> Outcome {
        match &self.saved {
            Some(bytes) => Ok(session.restore(bytes)?),
            None => {
                session.truncate(self.tokens);
                Ok(())
            }
        }
    }
}

fn repetition(session: &mut Session, test: &Test, depth: &Depth, source: &mut Source) -> Outcome<Duration> {
    depth.go_back(session)?;
    let tokens = source.tokens(depth.tokens, test.prompt + test.generate, session.model().vocab());
    let in_slots = !session.expert_slots()?.is_empty();
    let (prompt, generated) = tokens.split_at(test.prompt);
    let start = Instant::now();
    if test.prompt > 0 {
        session.prefill(prompt)?;
    }
    if !generated.is_empty() && !generate(session, generated, source, in_slots)? {
        for t in generated {
            session.decode(*t)?;
        }
    }
    Ok(start.elapsed())
}

/// Generates where the device chooses the tokens, as `run` does: at such a temperature that they are random too. Where experts have
/// slots, it is the model's own text: random tokens use all experts alike, which no text does. `false` where the device does not choose,
/// and for a text, whose tokens are given.
fn generate(session: &mut Session, tokens: &[u32], source: &mut Source, in_slots: bool) -> Outcome<bool> {
    let Source::Random(random) = source else { return Ok(false) };
    let options = match in_slots {
        true => SamplerOptions::default(),
        false => SamplerOptions { temperature: 1e6, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerOptions::default() },
    };
    if !session.set_sampler(&Sampling { options, ..Sampling::default() })? {
        return Ok(false);
    }
    session.begin_choice(&tokens[..1], random.next_u64())?;
    let mut taken = 0;
    while taken < tokens.len() {
        while session.choices_queued() < session.depth() && taken + session.choices_queued() < tokens.len() {
            session.begin_next(random.next_u64())?;
        }
        match session.poll(Budget::UNLIMITED)? {
            Status::Done => taken += 1,
            Status::Waiting => session.wait()?,
            Status::Pending | Status::Idle => {}
        }
    }
    Ok(true)
}

/// The roofline, in words.
fn explain(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    let Some(row) = rows.first() else { return Ok(()) };
    if let Some(text) = &row.text {
        writeln!(out, "\nthe tokens are those of {text}")?;
    }
    let (weights, deepest) = (row.bytes_per_token, rows.iter().map(|r| r.kv_bytes_per_token).max().unwrap_or(0));
    let (weights_text, kv_text) = (units::bytes(weights), units::bytes(deepest));
    writeln!(out, "\na generated token reads {weights_text} of weights,\nand up to {kv_text} of keys and values here")?;
    if let Some(bandwidth) = rows.iter().find_map(|r| r.read_bandwidth) {
        writeln!(
            out,
            "this memory moves {:.1} GB/s: for the weights alone a roofline of\n{:.3} ms a token, {:.0} tokens/s (models below \
             the size of the cache can beat it)",
            bandwidth / 1e9,
            1e3 * weights as f64 / bandwidth,
            bandwidth / weights.max(1) as f64
        )?;
    }
    for r in rows {
        if let (Some(slots), Some(hits), Some(bytes)) =
            (r.expert_slots, r.expert_hits_percent, r.expert_bytes_per_token)
        {
            let copied = units::bytes(bytes as u64);
            writeln!(
                out,
                "{}: {hits:.1} % of the experts of a token were in {slots} slots a layer, {copied} a token were copied",
                r.test()
            )?;
        }
    }
    if let Some(seconds) = rows.iter().find_map(|r| r.dispatch_seconds) {
        writeln!(out, "an empty dispatch that waits for the one before it takes {:.1} µs", 1e6 * seconds)?;
    }
    Ok(())
}
