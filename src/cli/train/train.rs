//! `moeray train`: a configuration into new weights.

use super::{
    live::Live,
    result::{self, Made},
};
use crate::{
    backend,
    cli::{
        args::{TrainArgs, TrainBackendName, TrainPlaceArgs},
        failure::{self, Failure, Outcome, say},
        interrupt, known, shaders, units,
    },
    file::{self, Checkpoint},
    generate::CancelToken,
    model,
    tokenizer::Tokenizer,
    train::{
        Event, Forecast, ModelLearner, Role, Trainer,
        config::{BackendConfig, LogName, TrainConfig},
        data::{self, Corpus},
        from_scratch,
        metrics::{CsvLog, EvalRecord, EventLog, JsonLog, StepRecord, load_svg, loss_svg},
    },
};
use std::{path::Path, time::Instant};

/// Runs the verb.
pub fn train(args: &TrainArgs, quiet: bool) -> Outcome {
    let mut config = TrainConfig::read(&args.config, &args.overrides)?;
    place(&mut config, &args.place);
    run(config, args.dry_run, quiet).map(|_| ())
}

/// Sets where a run computes, as the options say. A device chooses the GPU.
pub fn place(config: &mut TrainConfig, args: &TrainPlaceArgs) {
    let named = args.backend.map(|b| match b {
        TrainBackendName::Cpu => BackendConfig::Cpu,
        TrainBackendName::Wgpu => BackendConfig::Wgpu,
        TrainBackendName::Reference => BackendConfig::Reference,
    });
    if let Some(backend) = named.or(args.device.as_ref().map(|_| BackendConfig::Wgpu)) {
        config.backend = backend;
        // The file's device is not that of another backend.
        config.device = config.device.take().filter(|_| backend == BackendConfig::Wgpu);
    }
    if args.device.is_some() {
        config.device.clone_from(&args.device);
    }
}

/// Opens the GPU that a run is to use, with the shaders of earlier runs.
fn open_gpu(config: &TrainConfig) -> Outcome<Option<backend::wgpu::Gpu>> {
    if config.backend != BackendConfig::Wgpu {
        return Ok(None);
    }
    failure::on_gpu(true);
    let options = backend::wgpu::Options {
        device: config.device.clone(),
        shaders: shaders::cache(),
        ..backend::wgpu::Options::default()
    };
    Ok(Some(backend::wgpu::Gpu::open(&options)?))
}

/// Trains as the configuration says; `None` after a dry run.
pub fn run(config: TrainConfig, dry: bool, quiet: bool) -> Outcome<Option<Made>> {
    let base = base(&config)?;
    let definition = model::build(&base, &model::Options::default())?;
    config.check()?;
    let mut learner = ModelLearner::new(&definition, &config)?;
    if let Some(gpu) = open_gpu(&config)? {
        learner.use_gpu(gpu);
    }
    let (train, eval) = corpora(&config, &base, learner.vocabulary())?;
    if train.dropped() > 0 && !quiet {
        say(format_args!("{} samples are longer than sequence_len, and left out", train.dropped()));
    }
    let kept = config.clone();
    let mut trainer = Trainer::new(learner, config, train, eval)?;
    own_tensors(&mut trainer, &base)?;
    if !quiet || dry {
        summary(&mut trainer, dry)?;
    }
    if dry {
        return Ok(None);
    }
    let config = kept;
    let pictures = logs(&mut trainer, &config)?;
    let cancel = CancelToken::new();
    let guard = interrupt::Guard::new(&cancel);
    let mut live = Live::new(trainer.steps(), trainer.state().step, quiet);
    let (mut steps, mut evals) =
        if pictures { history(&config.output_dir, trainer.state().step) } else { Default::default() };
    let mut drawn = Ok(());
    let ended = trainer.run(&cancel, &mut |event| {
        live.show(&event);
        match event {
            Event::Step(r) if pictures => steps.push(r.clone()),
            Event::Evaluated(r) if pictures => evals.push(r.clone()),
            Event::Saved(_) if pictures => drawn = draw(&config.output_dir, &steps, &evals),
            Event::Step(_) | Event::Evaluated(_) | Event::Saved(_) => {}
        }
    });
    drop((live, guard));
    if matches!(ended, Err(crate::Error::Cancelled)) {
        if let Some(path) = trainer.checkpoint().filter(|_| !quiet) {
            say(format_args!("stopped; the same command goes on from {}", path.display()));
        }
        return Err(Failure::Interrupted);
    }
    let finished = ended?;
    if !quiet {
        let best =
            finished.best.map_or(String::new(), |(loss, step)| format!(", best evaluation {loss:.4} at step {step}"));
        let skipped =
            if finished.skipped > 0 { format!(", {} steps skipped", finished.skipped) } else { String::new() };
        let early = if finished.stopped_early { ", stopped early" } else { "" };
        say(format_args!("{} steps{best}{skipped}{early}", finished.steps));
    }
    let experts_used = trainer.top_k();
    let mut made = Made { base, learner: trainer.into_learner(), config, experts_used };
    result::write(&mut made, quiet)?;
    // A picture that could not be drawn costs no model.
    drawn?;
    Ok(Some(made))
}

/// The model to begin with, under GGUF names.
fn base(config: &TrainConfig) -> Outcome<Checkpoint> {
    let open = |path: &Path| -> Outcome<Checkpoint> {
        known::path(path)?;
        let checkpoint = file::open(path)?;
        known::model(path, &checkpoint)?;
        Ok(checkpoint)
    };
    match (&config.base_model, &config.architecture, &config.tokenizer) {
        (Some(path), None, _) => Ok(model::to_gguf(&open(path)?)?),
        (None, Some(architecture), Some(tokenizer)) => Ok(from_scratch(architecture, &open(tokenizer)?, config.seed)?),
        (None, Some(_), None) => Err(Failure::new("a model from nothing needs a tokenizer")
            .hint("tokenizer = \"MODEL\" takes that of another model")),
        (None, None, _) => Err(Failure::new("there is nothing to train")
            .hint("base_model = \"MODEL\" goes on from a model, [architecture] makes one from nothing")),
        (Some(_), Some(_), _) => Err(Failure::new("base_model and architecture: one of them")),
    }
}

/// Refuses to train weights that the file has only as parts of other tensors: what is learnt could not be written back.
fn own_tensors(trainer: &mut Trainer<ModelLearner>, base: &Checkpoint) -> Outcome {
    let trained = trainer.optimizer().trained();
    let parameters = crate::train::Learner::parameters(trainer.learner());
    let parts = |(p, t): (&crate::train::Parameter, &bool)| {
        // Noise before routers has matrices of its own, which only checkpoints keep.
        let own = p.name.contains(".lora_") || p.name.ends_with("ffn_noise_inp.weight");
        (*t && !own && base.info(&p.name).is_none()).then(|| p.name.clone())
    };
    match parameters.iter().zip(&trained).find_map(parts) {
        None => Ok(()),
        Some(name) => Err(Failure::new(format!(
            "{name} is a part of another tensor of the file, and cannot be trained by itself"
        ))
        .hint("freeze = [...] leaves it, and [lora] trains an adapter of it")),
    }
}

/// What is trained on, and what is evaluated on.
fn corpora(config: &TrainConfig, base: &Checkpoint, vocab: usize) -> Outcome<(Corpus, Option<Corpus>)> {
    let tokenizer = match &config.tokenizer {
        Some(path) => Tokenizer::from_checkpoint(&file::open(path)?).map(Some)?,
        None => Tokenizer::from_checkpoint(base).ok(),
    };
    let read = |sets| data::read(&config.sources(sets), tokenizer.as_ref(), vocab, config.sequence_len);
    let train = read(&config.datasets)?;
    if !config.test_datasets.is_empty() {
        return Ok((train, Some(read(&config.test_datasets)?)));
    }
    if config.val_set_size > 0.0 {
        let (train, held) = train.split(config.val_set_size, config.seed as u32)?;
        return Ok((train, Some(held)));
    }
    Ok((train, None))
}

/// Opens the logs; whether there are pictures.
fn logs(trainer: &mut Trainer<ModelLearner>, config: &TrainConfig) -> Outcome<bool> {
    let (dir, step) = (&config.output_dir, trainer.state().step);
    for log in &config.log {
        match log {
            LogName::Csv => trainer.log(Box::new(CsvLog::open(&dir.join("log.csv"), step)?)),
            LogName::Jsonl => trainer.log(Box::new(JsonLog::open(&dir.join("log.jsonl"), step)?)),
            LogName::Tensorboard => trainer.log(Box::new(EventLog::create(&dir.join("tensorboard"), step)?)),
            LogName::Svg => {}
        }
    }
    Ok(config.log.contains(&LogName::Svg))
}

/// The steps and evaluations of a run that goes on, from its log.
fn history(dir: &Path, step: u64) -> (Vec<StepRecord>, Vec<EvalRecord>) {
    let text =
        if step > 0 { std::fs::read_to_string(dir.join("log.jsonl")).unwrap_or_default() } else { String::new() };
    crate::train::metrics::read_log(&text, step)
}

fn draw(dir: &Path, steps: &[StepRecord], evals: &[EvalRecord]) -> Outcome {
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|e| Failure::io("write", &path, &e))
    };
    write("loss.svg", loss_svg("Loss by step", steps, evals))?;
    load_svg("Load of the experts", steps).map_or(Ok(()), |svg| write("load.svg", svg))
}

/// What will be trained, and what it takes.
fn summary(trainer: &mut Trainer<ModelLearner>, dry: bool) -> Outcome {
    let feed = trainer.feed();
    let (tokens, epoch, steps) = (feed.corpus().len(), feed.steps_per_epoch(), trainer.steps());
    say(format_args!(
        "data: {tokens} tokens in {} texts; {epoch} steps an epoch, {steps} steps",
        feed.corpus().texts().len()
    ));
    let rules: Vec<bool> = trainer.optimizer().trained();
    let state = trainer.optimizer().state_bytes();
    let rows = trainer.rows();
    let learner = trainer.learner();
    let all = crate::train::Learner::parameters(learner);
    let sum = |role: Option<Role>| -> usize {
        let of = all.iter().zip(&rules).filter(|(p, t)| **t && role.is_none_or(|r| Role::of(&p.name) == r));
        of.map(|(p, _)| p.len()).sum()
    };
    let parts = Role::ALL.iter().map(|(name, role)| (name, sum(Some(*role)))).filter(|(_, n)| *n > 0);
    let parts: Vec<String> = parts.map(|(name, n)| format!("{name} {n}")).collect();
    say(format_args!("trained: {} weights ({})", sum(None), parts.join(", ")));
    let forecast: Forecast = learner.forecast(rows, state)?;
    say(format_args!(
        "memory: {} (weights {}, gradients {}, optimizer {}, values {}, frozen weights {})",
        units::bytes(forecast.bytes()),
        units::bytes(forecast.weights),
        units::bytes(forecast.gradients),
        units::bytes(forecast.optimizer),
        units::bytes(forecast.values),
        units::bytes(forecast.frozen)
    ));
    if dry {
        let begun = Instant::now();
        let (micros, seconds) = trainer.time_micro_batch()?;
        let (step, flops) = (seconds * micros as f64, forecast.flops * micros as f64);
        say(format_args!(
            "a step: {:.1} GFLOP, {step:.2} s ({:.1} GFLOP/s, {:.0} tokens/s); {steps} steps: {}",
            flops / 1e9,
            flops / 1e9 / step.max(1e-9),
            (rows * micros) as f64 / step.max(1e-9),
            indicatif::HumanDuration(std::time::Duration::from_secs_f64(step * steps as f64))
        ));
        tracing::info!("measured in {:.1} s", begun.elapsed().as_secs_f64());
    }
    Ok(())
}
