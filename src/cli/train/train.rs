//! `moeray train`: a configuration into new weights.

use super::live::Live;
use crate::{
    CancelToken, backend,
    cli::{
        args::{TrainArgs, TrainBackendName, TrainPlaceArgs},
        failure::{self, Failure, Outcome, say},
        interrupt, known, shaders, units,
    },
    file,
    train::{Finished, Learner, Role, TrainConfig, Trainer, config::BackendConfig},
};
use std::time::Instant;

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
pub fn run(config: TrainConfig, dry: bool, quiet: bool) -> Outcome<Option<Trainer>> {
    for path in config.base_model.iter().chain(&config.tokenizer) {
        known::path(path)?;
        known::model(path, &file::open(path)?)?;
    }
    let mut trainer = match open_gpu(&config)? {
        Some(gpu) => Trainer::open_on(config, gpu)?,
        None => Trainer::open(config)?,
    };
    let dropped = trainer.feed().corpus().dropped();
    if dropped > 0 && !quiet {
        say(format_args!("{dropped} samples are longer than sequence_len, and left out"));
    }
    if !quiet || dry {
        summary(&mut trainer, dry)?;
    }
    if dry {
        return Ok(None);
    }
    trainer.open_logs()?;
    let cancel = CancelToken::new();
    let guard = interrupt::Guard::new(&cancel);
    let mut live = Live::new(trainer.steps(), trainer.state().step, quiet);
    let ended = trainer.run(&cancel, &mut |event| live.show(&event));
    drop((live, guard));
    if matches!(ended, Err(crate::Error::Cancelled)) {
        if let Some(path) = trainer.checkpoint().filter(|_| !quiet) {
            say(format_args!("stopped; the same command goes on from {}", path.display()));
        }
        return Err(Failure::Interrupted);
    }
    let finished = ended?;
    if !quiet {
        say(format_args!("{}", closing(&finished)));
    }
    for path in trainer.export()?.iter().filter(|_| !quiet) {
        say(format_args!("wrote {}", path.display()));
    }
    Ok(Some(trainer))
}

/// How a run ended, in a line.
fn closing(finished: &Finished) -> String {
    let mut words = format!("{} steps", finished.steps);
    if let Some((loss, step)) = finished.best {
        words += &format!(", best evaluation {loss:.4} at step {step}");
    }
    if finished.skipped > 0 {
        words += &format!(", {} steps skipped", finished.skipped);
    }
    if finished.stopped_early {
        words += ", stopped early";
    }
    words
}

/// What will be trained, and what it takes.
fn summary(trainer: &mut Trainer, dry: bool) -> Outcome {
    let feed = trainer.feed();
    let (tokens, epoch, steps) = (feed.corpus().len(), feed.steps_per_epoch(), trainer.steps());
    say(format_args!(
        "data: {tokens} tokens in {} texts; {epoch} steps an epoch, {steps} steps",
        feed.corpus().texts().len()
    ));
    let rules: Vec<bool> = trainer.optimizer().trained();
    let rows = trainer.rows();
    let all = trainer.learner().parameters();
    let sum = |role: Option<Role>| -> usize {
        let of = all.iter().zip(&rules).filter(|(p, t)| **t && role.is_none_or(|r| Role::of(&p.name) == r));
        of.map(|(p, _)| p.len()).sum()
    };
    let parts = Role::ALL.iter().map(|(name, role)| (name, sum(Some(*role)))).filter(|(_, n)| *n > 0);
    let parts: Vec<String> = parts.map(|(name, n)| format!("{name} {n}")).collect();
    say(format_args!("trained: {} weights ({})", sum(None), parts.join(", ")));
    let forecast = trainer.forecast()?;
    say(format_args!(
        "memory: {} (weights {}, gradients {}, optimizer {}, values {}, frozen weights {}, first weights {})",
        units::bytes(forecast.bytes()),
        units::bytes(forecast.weights),
        units::bytes(forecast.gradients),
        units::bytes(forecast.optimizer),
        units::bytes(forecast.values),
        units::bytes(forecast.frozen),
        units::bytes(forecast.first)
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
