//! Configurations: keys, overrides, and what is said to wrong ones.

use moeray::train::config::{LogName, OptimizerName, SchedulerName, TrainConfig};
use moeray::train::{Moments, Parameter};

const DATA: &str = "datasets = [{ path = \"texts\" }]\n";

fn parse(text: &str, overrides: &[&str]) -> Result<TrainConfig, String> {
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    TrainConfig::parse("run.toml", text, &overrides).map_err(|e| e.to_string())
}

fn good(text: &str, overrides: &[&str]) -> TrainConfig {
    parse(&format!("{DATA}{text}"), overrides).unwrap()
}

#[test]
fn keys_of_axolotl_and_of_hugging_face() {
    let c = good(
        "base_model = \"m.gguf\"\nsequence_len = 256\nlr_scheduler = \"wsd\"\noptimizer = \"adamw\"\nlog = [\"csv\"]\n\
         expert_moments = \"factored_only\"\nfreeze = [\"router\"]\ntop_k_schedule = [[0, 8], [20, 7], [60, 2]]\n",
        &[],
    );
    assert_eq!((c.sequence_len, c.lr_scheduler, c.optimizer), (256, SchedulerName::Wsd, OptimizerName::AdamW));
    assert_eq!((c.log.as_slice(), c.optimizer_options().expert_moments), (&[LogName::Csv][..], Moments::FactoredOnly));
    assert_eq!([0, 19, 20, 59, 60, 99].map(|e| c.top_k(e)), [8, 8, 7, 7, 2, 2].map(Some));
    let hf = good(
        "model_name_or_path = \"m.gguf\"\nmax_seq_length = 256\nlr_scheduler_type = \"warmup_stable_decay\"\n\
         optim = \"adamw_torch\"\nper_device_train_batch_size = 3\nnum_train_epochs = 2.5\nresume_from_checkpoint = \"never\"\n",
        &[],
    );
    assert_eq!((hf.sequence_len, hf.lr_scheduler, hf.micro_batch_size), (256, SchedulerName::Wsd, 3));
    assert_eq!((hf.base_model, hf.num_epochs, hf.resume.as_str()), (c.base_model, 2.5, "never"));
}

#[test]
fn words_override_the_file() {
    let c = good(
        "learning_rate = 1e-3\nseed = 1\n",
        &["learning_rate=2e-4", "output_dir=runs/a", "datasets.0.path=b.jsonl", "freeze=[\"experts\"]"],
    );
    assert_eq!((c.learning_rate, c.seed), (2e-4, 1));
    assert_eq!(c.output_dir.to_str(), Some("runs/a"));
    assert_eq!(c.datasets[0].path.to_str(), Some("b.jsonl"));
    assert_eq!(c.freeze, ["experts"]);
    for (word, says) in [
        ("learning_rate", "key=value"),
        ("learning_rat=1", "`learning_rate` is one"),
        ("datasets.7.path=x", "datasets.7.path"),
        ("seed.x=1", "seed.x"),
        ("learning_rate=fast", "learning_rate=fast: invalid type"),
        ("gradient_accumulation_steps=16777216", "gradient_accumulation_steps is 16777216: a step of"),
        ("datasets=[]", "datasets is empty"),
    ] {
        let e = parse(&format!("{DATA}seed = 1\n"), &[word]).unwrap_err();
        assert!(e.contains(says), "{word}: {e}");
    }
}

#[test]
fn wrong_configurations_are_named() {
    for (text, says) in [
        ("learning_rat = 1", "`learning_rate` is one"),
        ("gradient_acumulation_steps = 2", "`gradient_accumulation_steps` is one"),
        ("qwertyuiop = 2", "no key of a training run"),
        ("sequence_len = 0", "sequence_len is 0"),
        ("sequence_len = -4", "sequence_len"),
        ("sequence_len = 99999999", "sequence_len is 99999999"),
        ("micro_batch_size = 0", "micro_batch_size is 0"),
        ("gradient_accumulation_steps = 0", "gradient_accumulation_steps is 0"),
        ("learning_rate = -1.0", "learning_rate is -1"),
        ("learning_rate = nan", "learning_rate is NaN"),
        ("learning_rate = inf", "learning_rate is inf"),
        ("learning_rate = \"1e-3\"", "invalid type"),
        ("max_grad_norm = -1.0", "max_grad_norm"),
        ("min_lr_ratio = 1.5", "min_lr_ratio"),
        ("warmup_ratio = 1.5", "warmup_ratio"),
        ("max_steps = 10\nwarmup_steps = 11", "warmup_steps is 11"),
        ("val_set_size = 1.0", "val_set_size is 1"),
        ("val_set_size = nan", "val_set_size is NaN"),
        ("num_epochs = 0.0", "num_epochs is 0"),
        ("num_epochs = -1", "num_epochs is -1"),
        ("logging_steps = 0", "logging_steps is 0"),
        ("lr_scheduler = \"polynomial\"", "polynomial"),
        ("optimizer = \"lion\"", "lion"),
        ("top_k_schedule = [[0, 0]]", "top_k_schedule"),
        ("top_k_schedule = [[5, 2], [5, 1]]", "top_k_schedule"),
        ("early_stopping_patience = 2", "early_stopping_patience"),
        ("wsd_decay_ratio = 2.0\nlr_scheduler = \"wsd\"", "wsd_decay_ratio"),
        ("log = [\"wandb\"]", "wandb"),
        ("seed = 1\nseed = 2", "TOML"),
        ("= 4", "TOML"),
        ("[datasets]\nx = 1", ""),
    ] {
        let e = parse(&format!("{DATA}{text}\n"), &[]).unwrap_err();
        assert!(e.contains(says) && !e.contains("panicked"), "{text:?}: {e}");
    }
    assert!(parse("seed = 1", &[]).unwrap_err().contains("datasets is empty"));
    assert!(parse("datasets = [{ pth = \"x\" }]", &[]).unwrap_err().contains("`path` is one"));
    assert!(
        TrainConfig::read("/no/such/file.toml".as_ref(), &[]).unwrap_err().to_string().contains("/no/such/file.toml")
    );
}

/// Two hundred configurations with a byte or a line at fault: an error or a configuration, and no panic.
#[test]
fn hostile_configurations() {
    let base =
        format!("{DATA}sequence_len = 64\nlearning_rate = 1e-3\n[[test_datasets]]\npath = \"x\"\nds_type = \"u16\"\n");
    let wrong = b"\"[]{}=\n#'\\,.-9xX \t\0";
    let mut errors = 0;
    for i in 0..200u32 {
        let mut text = base.clone().into_bytes();
        let at = moeray::train::data::below(5, 1, i, text.len() as u32) as usize;
        match i % 4 {
            0 => text[at] = wrong[(i as usize / 4) % wrong.len()],
            1 => drop(text.drain(at..)),
            2 => text.splice(at..at, b"[[[[[[[[".iter().copied()).for_each(drop),
            _ => text.splice(at..at, b"9999999999999999999999".iter().copied()).for_each(drop),
        }
        if let Ok(text) = String::from_utf8(text) {
            errors += usize::from(parse(&text, &[]).is_err());
        }
    }
    assert!(errors > 100, "{errors} errors");
}

#[test]
fn frozen_parameters() {
    let parameters = [
        Parameter::new("blk.0.attn_q.weight", &[4, 4]),
        Parameter::new("blk.0.ffn_gate_inp.weight", &[2, 4]),
        Parameter::of_experts("blk.0.ffn_up_exps.weight", &[2, 4, 4]),
    ];
    let trained = |text: &str| -> Result<Vec<bool>, String> {
        let rules = good(text, &[]).rules(&parameters).map_err(|e| e.to_string())?;
        Ok(rules.iter().map(|r| r.trained).collect())
    };
    assert_eq!(trained("").unwrap(), [true, true, true]);
    assert_eq!(trained("freeze = [\"router\"]").unwrap(), [true, false, true]);
    assert_eq!(trained("train_only = [\"experts\"]").unwrap(), [false, false, true]);
    assert_eq!(trained("train_only = [\"blk.0.*\"]\nfreeze = [\"attention\"]").unwrap(), [false, true, true]);
    assert!(trained("freeze = [\"shared\"]").unwrap_err().contains("\"shared\""));
    assert!(trained("freeze = [\"*\"]").unwrap_err().contains("no parameter"));
}

#[test]
fn tables_of_a_configuration() {
    let shape = "[architecture]\nmodel_type = \"qwen2_moe\"\nhidden_size = 64\nnum_hidden_layers = 2\nnum_attention_heads = 4\n\
        num_key_value_heads = 2\nnum_experts = 4\nnum_experts_per_tok = 2\nmoe_intermediate_size = 32\nmax_position_embeddings = 64\n";
    let c = good(&format!("{shape}[router]\naux = \"hf\"\naux_weight = 0.02\nz = \"logsumexp\"\n"), &[]);
    let names = [c.router.aux, c.router.z].map(|l| l.unwrap().name);
    assert_eq!((names, c.router.aux_weight), (["hf", "logsumexp"], 0.02));
    let none = good("[router]\naux = \"none\"\nz = \"none\"\n", &[]).router;
    assert_eq!((none.aux, none.z), (None, None));
    assert_eq!(c.architecture.unwrap().rope_theta, 10_000.0);
    let lora = good("base_model = \"x\"\n[lora]\nr = 8\ntargets = [\"attention\"]\n", &["lora.alpha=4"]).lora.unwrap();
    assert_eq!((lora.r, lora.alpha, lora.targets), (8, 4.0, Some(vec!["attention".to_owned()])));
    for (text, says) in [
        (shape.replace("num_experts_per_tok = 2", "num_experts_per_tok = 5"), "num_experts_per_tok is 5"),
        (shape.replace("num_key_value_heads = 2", "num_key_value_heads = 3"), "heads"),
        (shape.replace("hidden_size = 64", "hidden_size = 66"), "head_dim"),
        (shape.replace("hidden_size = 64", "hidden_size = 0"), "hidden_size is 0"),
        (shape.replace("hidden_size = 64\n", ""), "hidden_size"),
        (format!("base_model = \"x\"\n{shape}"), "architecture"),
        ("[router]\naux = \"magic\"\n".into(), "there are none, switch, hf"),
        ("[router]\naux = \"logsumexp\"\n".into(), "aux = \"logsumexp\""),
        ("[router]\nz = \"hf\"\n".into(), "there are none, logsumexp, mean_square"),
        ("[router]\naux_weight = -1.0\n".into(), "aux_weight"),
        ("[router]\naux_wieght = 1.0\n".into(), "`aux_weight` is one"),
        ("[router]\ncapacity_factor = 0.0\n".into(), "capacity_factor is 0"),
        ("[router]\ncapacity_factor = -1.0\n".into(), "capacity_factor is -1"),
        ("[router]\nmin_capacity = 4\n".into(), "min_capacity needs capacity_factor"),
        ("[router]\nsecond = \"random\"\n".into(), "second needs capacity_factor"),
        ("[router]\njitter = 1.0\n".into(), "jitter is 1"),
        ("[router]\njitter_experts = true\n".into(), "jitter_experts needs jitter"),
        ("[router]\nnoise_std = -1.0\n".into(), "noise_std is -1"),
        ("[router]\nnoise = \"normal\"\nnoise_std = 0.0\n".into(), "noise_std = 0"),
        ("[router]\nnoise_in_eval = true\n".into(), "noise_in_eval"),
        ("[router]\naux = \"importance_load\"\n".into(), "needs noise"),
        ("[router]\nbias_update = nan\n".into(), "bias_update is NaN"),
        ("expert_dropout = 1.0\n".into(), "expert_dropout is 1"),
        ("recompute = \"some\"\n".into(), "some"),
        ("[lora]\nr = 0\n".into(), "r is 0"),
        ("[lora]\nalpha = 0.0\n".into(), "alpha is 0"),
        ("[lora]\ntargets = []\n".into(), "targets is empty"),
    ] {
        let e = parse(&format!("{DATA}{text}"), &[]).unwrap_err();
        assert!(e.contains(says), "{text}: {e}");
    }
}

#[test]
fn models_from_nothing_and_adapters_that_begin() {
    use moeray::{file, model, train};
    let c = good(
        "[architecture]\nmodel_type = \"qwen2_moe\"\nhidden_size = 64\nnum_hidden_layers = 2\nnum_attention_heads = 4\n\
         num_key_value_heads = 2\nnum_experts = 4\nnum_experts_per_tok = 2\nmoe_intermediate_size = 32\n\
         shared_expert_intermediate_size = 48\nmax_position_embeddings = 64\n",
        &[],
    );
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bard-q4_k_m.gguf");
    let demo = file::open(&demo).unwrap();
    let architecture = c.architecture.unwrap();
    let made = train::from_scratch(&architecture, &demo, 1).unwrap();
    let d = model::build(&made, &Default::default()).unwrap();
    assert_eq!((d.decoder.hidden, d.decoder.layers.len(), d.program.graph.weights[0].shape[0]), (64, 2, 4096));
    let text = |c: &file::Checkpoint| {
        moeray::tokenizer::Tokenizer::from_checkpoint(c).unwrap().encode("What light", Default::default()).unwrap()
    };
    assert_eq!(text(&made), text(&demo), "the tokenizer is the other model's");
    let weight = |c: &file::Checkpoint| {
        let t = c.tensor("blk.1.ffn_up_exps.weight").unwrap();
        (0..t.rows()).flat_map(|r| t.row(r).to_vec()).collect::<Vec<u8>>()
    };
    let std = {
        let x: Vec<f32> = weight(&made).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt()
    };
    assert!((std - 0.02).abs() < 0.001, "{std}");
    assert!(weight(&made) == weight(&train::from_scratch(&architecture, &demo, 1).unwrap()));
    assert!(weight(&made) != weight(&train::from_scratch(&architecture, &demo, 2).unwrap()));
    let other = |model_type: &str, vocab| {
        let a = moeray::train::config::ArchitectureConfig {
            model_type: model_type.into(),
            vocab_size: vocab,
            ..architecture.clone()
        };
        train::from_scratch(&a, &demo, 1).unwrap_err().to_string()
    };
    assert!(
        other("gpt2", None).contains("qwen3_moe")
            && other("olmoe", None).contains("shared")
            && other("qwen2_moe", Some(9)).contains("4096")
    );

    let lora = |targets: &[&str]| {
        let targets = targets.iter().map(|t| t.to_string()).collect();
        train::new_adapters(
            &d.program,
            &moeray::train::config::LoraConfig { r: 3, alpha: 6.0, targets: Some(targets) },
            1,
        )
    };
    let all = lora(&["attention", "experts", "router", "output"]).unwrap();
    assert_eq!(all.len(), 2 * (4 + 3 + 1) + 1);
    assert!(
        all.iter().all(|p| p.scale == 2.0
            && p.b.parts()[0].iter().all(|b| *b == 0)
            && p.a.parts()[0].iter().any(|b| *b != 0))
    );
    let with = moeray::graph::with_low_rank(&d.program, &all).unwrap();
    assert_eq!(with.weights.len(), d.program.weights.len() + 2 * all.len());
    assert!(lora(&["dense"]).unwrap_err().to_string().contains("lora.targets"));
    assert!(lora(&["blk.7.*"]).unwrap_err().to_string().contains("blk.7.*"));
}
