//! `moeray finetune`: a low-rank adapter of a model, quantised or not.

use super::train::{place, run};
use crate::{
    cli::{
        args::{FinetuneArgs, OptimizerArg},
        failure::{Failure, Outcome, say},
        output::check_place,
    },
    file, model,
    train::config::{DatasetConfig, LogName, LoraConfig, OptimizerName, SchedulerName, TrainConfig},
};
use std::path::PathBuf;

/// Runs the verb.
pub fn finetune(args: &FinetuneArgs, quiet: bool) -> Outcome {
    check_place("-o", &args.output)?;
    if args.output.exists() && !args.force {
        return Err(Failure::new(format!("{} exists already", args.output.display())).hint("--force writes over it"));
    }
    let mut config = config(args)?;
    place(&mut config, &args.place);
    config.check()?;
    let Some(mut trainer) = run(config, args.dry_run, quiet)? else { return Ok(()) };
    trainer.write_adapter(&args.output)?;
    if !quiet {
        let base = args.model.display();
        say(format_args!("run it: moeray run {base} --lora {}", args.output.display()));
    }
    Ok(())
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
        min_lr_ratio: if args.learning_rate > 0.0 {
            (args.learning_rate_min / args.learning_rate).min(1.0)
        } else {
            0.0
        },
        lr_scheduler: SchedulerName::Cosine,
        warmup_ratio: 0.03,
        weight_decay: args.weight_decay,
        optimizer: match args.optimizer {
            OptimizerArg::Adamw => OptimizerName::AdamW,
            OptimizerArg::Sgd => OptimizerName::Sgd,
        },
        val_set_size: args.val_split,
        save_steps: 50,
        seed: args.seed,
        log: vec![LogName::Jsonl],
        threads: args.threads.unwrap_or(0) as usize,
        ..TrainConfig::default()
    })
}
