//! `moeray finetune`: a low-rank adapter of a model, quantised or not.

use super::{
    apart,
    train::{place, run},
};
use crate::{
    cli::{
        args::{FinetuneArgs, OptimizerArg, RecomputeArg},
        failure::{Failure, Outcome, say},
        output::check_place,
    },
    file, model,
    train::config::{DatasetConfig, LogName, LoraConfig, OptimizerName, RecomputeName, SchedulerName, TrainConfig},
};
use std::path::{Path, PathBuf};

/// Runs the verb.
pub fn finetune(args: &FinetuneArgs, quiet: bool) -> Outcome {
    let read: Vec<&Path> = args.data.iter().chain([&args.model]).map(PathBuf::as_path).collect();
    apart(&args.output, &read)?;
    // Of a PEFT folder that is there two files are written anew.
    let gguf = args.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if gguf || !args.output.is_dir() {
        check_place("-o", &args.output)?;
    }
    if args.output.exists() && !args.force {
        return Err(Failure::new(format!("{} exists already", args.output.display())).hint("--force writes over it"));
    }
    let mut config = config(args)?;
    place(&mut config, &args.place);
    config.check().map_err(Failure::from).map_err(hinted)?;
    let Some(mut trainer) = run(config, args.dry_run, quiet).map_err(hinted)? else { return Ok(()) };
    trainer.write_adapter(&args.output)?;
    if !quiet {
        let base = args.model.display();
        say(format_args!("run it: moeray run {base} --lora {}", args.output.display()));
    }
    Ok(())
}

/// Keys of a configuration that errors name, and the options that set them here.
const OPTIONS: &[(&str, &str)] = &[
    ("this machine has", "--recompute layer, a smaller --ctx and a smaller --micro-batch-size take less"),
    ("excess_length_strategy", "--ctx N makes sequences longer; `moeray train` has excess_length_strategy"),
    ("sequence_len", "--ctx (-c) says it"),
    ("lora.targets", "--lora-targets says them"),
    ("lora: targets", "--lora-targets says them"),
    ("lora: r ", "--lora-r says it"),
    ("lora: alpha", "--lora-alpha says it"),
    ("min_lr_ratio", "--learning-rate-min is a part of --learning-rate"),
    ("max_skipped_steps", "--learning-rate says it"),
    ("learning_rate", "--learning-rate says it"),
    ("weight_decay", "--weight-decay says it"),
    ("gradient_accumulation_steps", "--accumulate and --micro-batch-size say it"),
    ("micro_batch_size", "--micro-batch-size says it"),
    ("val_set_size", "--val-split says it"),
    ("num_epochs", "--epochs says it"),
    ("output_dir", "--work says where checkpoints and logs go"),
    ("resume", "--work names another folder of checkpoints"),
];

/// The failure with the option that sets what it is about.
fn hinted(failure: Failure) -> Failure {
    let Failure::Said { message, hint: None } = failure else { return failure };
    let option = OPTIONS.iter().find(|(key, _)| message.contains(key));
    Failure::Said { hint: option.map(|(_, says)| (*says).to_owned()), message }
}

/// The least rate as a part of the largest.
fn least_ratio(args: &FinetuneArgs) -> Outcome<f64> {
    let (least, most) = (args.learning_rate_min, args.learning_rate);
    if !(least >= 0.0 && (least <= most || !most.is_finite())) {
        return Err(Failure::new(format!(
            "--learning-rate-min is {least}; a number from 0 to --learning-rate ({most}) is expected"
        )));
    }
    Ok(if most > 0.0 { least / most } else { 0.0 })
}

/// The run as a configuration.
fn config(args: &FinetuneArgs) -> Outcome<TrainConfig> {
    let set =
        |path: &PathBuf| DatasetConfig { path: path.clone(), ds_type: None, train_on_inputs: false, add_eos: true };
    let work = args.work.clone().unwrap_or_else(|| {
        let mut name = args.output.file_name().unwrap_or_default().to_os_string();
        name.push(".run");
        args.output.with_file_name(name)
    });
    let context =
        model::build(&model::to_gguf(&file::open(&args.model)?)?, &model::Options::default())?.decoder.context;
    Ok(TrainConfig {
        base_model: Some(args.model.clone()),
        datasets: args.data.iter().map(set).collect(),
        output_dir: work,
        lora: Some(LoraConfig { r: args.lora_r, alpha: args.lora_alpha, targets: args.lora_targets.clone() }),
        sequence_len: args.ctx.map_or(context.min(512), |c| c as usize),
        micro_batch_size: args.micro_batch_size,
        gradient_accumulation_steps: args.accumulate,
        num_epochs: args.epochs,
        max_steps: args.steps,
        learning_rate: args.learning_rate,
        min_lr_ratio: least_ratio(args)?,
        lr_scheduler: SchedulerName::Cosine,
        warmup_ratio: 0.03,
        weight_decay: args.weight_decay,
        optimizer: match args.optimizer {
            OptimizerArg::Adamw => OptimizerName::AdamW,
            OptimizerArg::Sgd => OptimizerName::Sgd,
        },
        recompute: match args.recompute {
            RecomputeArg::None => RecomputeName::None,
            RecomputeArg::Experts => RecomputeName::Experts,
            RecomputeArg::Layer => RecomputeName::Layer,
        },
        val_set_size: args.val_split,
        save_steps: 50,
        seed: args.seed,
        log: vec![LogName::Jsonl],
        threads: args.threads.unwrap_or(0) as usize,
        ..TrainConfig::default()
    })
}
