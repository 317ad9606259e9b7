//! Keys of a configuration that are about routers, on models of the goldens: each does what it says, and what is impossible is
//! refused by name before the first step.

use crate::goldens;
use moeray::{
    file,
    graph::formula::formulas,
    train::{
        Finished, Learner, ModelLearner, Trainer,
        config::TrainConfig,
        data::{Corpus, Excess, below},
        from_scratch,
        metrics::StepRecord,
    },
};

/// Whose tokenizer models from nothing take.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");

/// A small model from nothing, which keys of shapes change.
const SHAPE: &str = "[architecture]\nmodel_type = \"mixtral\"\nhidden_size = 32\nnum_hidden_layers = 2\nnum_attention_heads = 4\n\
    num_key_value_heads = 2\nnum_experts = 8\nnum_experts_per_tok = 2\nmoe_intermediate_size = 16\n\
    max_position_embeddings = 64\n";

/// Texts of random tokens, in which every second token tells the next.
pub fn corpus(vocab: usize) -> Corpus {
    let mut c = Corpus::new(vocab, 25);
    for i in 0..12u32 {
        let ids: Vec<u32> =
            (0..24u32).map(|j| below(11, 1, i * 64 + j / 2, vocab as u32 / 2) + (j % 2) * (vocab as u32 / 2)).collect();
        c.add_sample("sample", ids, vec![true; 24], Excess::Raise).unwrap();
    }
    c
}

/// Rows of a step that are no padding: four sequences of 24 rows have a text of 24 tokens each, of which the last is only predicted.
const TOKENS: u64 = 4 * 23;

/// A configuration with these keys.
fn toml(keys: &str) -> String {
    format!(
        "datasets = [{{ path = \"unused\" }}]\nsequence_len = 24\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\n\
         learning_rate = 0.01\nlr_scheduler = \"constant\"\nmax_steps = 2\nlog = []\nresume = \"never\"\n{keys}\n"
    )
}

pub fn config(keys: &str) -> TrainConfig {
    TrainConfig::parse("run.toml", &toml(keys), &[]).unwrap()
}

/// Parameters by name.
pub type Weights = Vec<(String, Vec<f32>)>;

pub struct Run {
    pub trainer: Trainer<ModelLearner>,
    pub steps: Vec<StepRecord>,
    _dir: tempfile::TempDir,
}

impl Run {
    pub fn new(model: &str, keys: &str) -> moeray::Result<Run> {
        let dir = tempfile::tempdir().unwrap();
        let config = TrainConfig { output_dir: dir.path().into(), ..config(keys) };
        let definition = goldens::definition(model);
        let learner = ModelLearner::new(&definition, &config)?;
        let vocab = learner.vocab();
        let trainer = Trainer::new(learner, config, corpus(vocab), Some(corpus(vocab)))?;
        Ok(Run { trainer, steps: vec![], _dir: dir })
    }

    /// A run of [`SHAPE`] with keys that change it.
    fn of_shape(keys: &[&str]) -> moeray::Result<Run> {
        let dir = tempfile::tempdir().unwrap();
        let overrides: Vec<String> = keys.iter().map(|k| k.replacen(" = ", "=", 1)).collect();
        let text = toml(&format!("export = [\"safetensors\"]\n{SHAPE}"));
        let config = TrainConfig::parse("run.toml", &text, &overrides)?;
        let config = TrainConfig { output_dir: dir.path().into(), ..config };
        let architecture = config.architecture.clone().unwrap();
        let base = from_scratch(&architecture, &file::open(DEMO.as_ref())?, config.seed)?;
        let learner = ModelLearner::of(base, &config)?;
        let vocab = learner.vocab();
        let trainer = Trainer::new(learner, config, corpus(vocab), Some(corpus(vocab)))?;
        Ok(Run { trainer, steps: vec![], _dir: dir })
    }

    /// All steps and the evaluation behind them.
    pub fn finish(mut self) -> (Vec<StepRecord>, f64, Weights) {
        let steps = self.trainer.steps();
        for _ in 0..steps {
            let record = self.trainer.step().unwrap();
            self.steps.push(record);
        }
        let evaluated = self.trainer.evaluate().unwrap().loss;
        (self.steps, evaluated, weights(self.trainer.learner()))
    }
}

pub fn weights(learner: &mut ModelLearner) -> Weights {
    let names: Vec<String> = learner.parameters().iter().map(|p| p.name.clone()).collect();
    let mut all = vec![];
    learner
        .each(&mut |i, slot| {
            all.push((names[i].clone(), slot.weights.to_vec()));
            Ok(())
        })
        .unwrap();
    all
}

fn refused(model: &str, keys: &str) -> String {
    match Run::new(model, keys) {
        Ok(_) => panic!("{keys} was accepted for {model}"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn every_key_of_the_table_of_formulas_trains_and_makes_a_difference() {
    let (_, _, plain) = Run::new("mixtral", "").unwrap().finish();
    let (_, _, plain_shape) = Run::of_shape(&[]).unwrap().finish();
    let formulas = formulas();
    let tried: Vec<_> = formulas.iter().filter(|f| !f.keys.is_empty()).collect();
    assert!(tried.len() >= 30, "{} formulas have keys", tried.len());
    for f in tried {
        if f.keys.iter().any(|k| k.starts_with("datasets.")) {
            // What is learnt of a data set is tried with files: here it has to be a key.
            let overrides: Vec<String> = f.keys.iter().map(|k| k.replacen(" = ", "=", 1)).collect();
            let config = TrainConfig::parse("run.toml", &toml(""), &overrides).unwrap();
            assert!(config.datasets[0].train_on_inputs);
            continue;
        }
        let shaped = f.keys.iter().any(|k| k.starts_with("architecture."));
        let biased = f.keys.iter().any(|k| k.contains("bias_update"));
        let run = match (shaped, biased) {
            (true, _) => Run::of_shape(f.keys),
            (false, true) => Run::new("deepseek_v3", &f.keys.join("\n")),
            (false, false) => Run::new("mixtral", &f.keys.join("\n")),
        };
        let (steps, evaluated, after) = run.unwrap_or_else(|e| panic!("{}: {e}", f.what)).finish();
        assert!(steps.iter().all(|s| s.loss.is_finite() && !s.skipped) && evaluated.is_finite(), "{}", f.what);
        let plain = if shaped { &plain_shape } else { &plain };
        let same = |(name, w): &(String, Vec<f32>)| plain.iter().any(|(n, p)| n == name && p == w);
        // Some rows are what the small model is already.
        let already = shaped && f.keys.iter().all(|k| SHAPE.contains(k.trim_start_matches("architecture.")));
        assert!(already || biased || !after.iter().all(same), "{}: {:?} changes nothing", f.what, f.keys);
    }
}

#[test]
fn routers_over_groups_learn_and_are_refused_where_they_are_not() {
    let keys = "router.groups = 4\nrouter.groups_used = 2\nexport = []";
    let routers = |w: &Weights| -> Weights { w.iter().filter(|(n, _)| n.contains("_inp_group")).cloned().collect() };
    let mut run = Run::new("mixtral", keys).unwrap();
    let before = routers(&weights(run.trainer.learner()));
    let (steps, evaluated, after) = run.finish();
    assert!(evaluated.is_finite());
    for load in steps.iter().flat_map(|s| &s.loads) {
        assert_eq!((load.tokens.iter().sum::<u64>(), load.dropped), (2 * TOKENS, 0));
    }
    let learnt = routers(&after);
    assert!(learnt.len() == 3 && learnt.iter().zip(&before).all(|(a, b)| a.0 == b.0 && a.1 != b.1));
    assert!(learnt.iter().all(|(_, w)| w.len() == 4 * 64));
    for aux in ["importance", "usage"] {
        let keys = format!("{keys}\nrouter.aux = \"{aux}\"\nrouter.aux_weight = 0.5");
        assert!(Run::new("mixtral", &keys).unwrap().finish().2 != after, "{aux}");
    }
    for (model, keys, says) in [
        ("llama", "router.groups = 2\nexport = []", "no routers"),
        ("mixtral", "router.groups = 3\nexport = []", "3 groups of 8 experts"),
        ("mixtral", "router.groups = 8\nrouter.groups_used = 1\nexport = []", "2 experts from each of 1 groups of 1"),
        ("olmoe", "router.groups = 2\nexport = []", "mixtral"),
        ("deepseek_v3", "router.groups = 2\nexport = []", "mixtral"),
    ] {
        let e = refused(model, keys);
        assert!(e.contains(says), "{model}, {keys}: {e}");
    }
    for (keys, says) in [
        ("router.groups = 1\nexport = []", "groups is 1"),
        ("router.groups_used = 1", "groups_used needs groups"),
        ("router.groups = 2\nrouter.groups_used = 3\nexport = []", "groups_used is 3"),
        ("router.groups = 2\nexport = []\nrouter.aux = \"hf\"", "importance"),
        ("router.groups = 2\nexport = []\nrouter.z = \"logsumexp\"", "z is for routers of one softmax"),
        ("router.groups = 2\nexport = []\nrouter.jitter = 0.1", "jitter"),
        ("router.groups = 2\nexport = []\nrouter.capacity_factor = 1.0", "capacity_factor"),
        ("router.groups = 2\nexport = []\ntop_k_schedule = [[0, 2]]", "top_k_schedule"),
        ("router.groups = 2\nexport = []\nlora.r = 2", "[lora]"),
    ] {
        let e = TrainConfig::parse("run.toml", &toml(keys), &[]).unwrap_err().to_string();
        assert!(e.contains(says), "{keys}: {e}");
    }
}

#[test]
fn selection_biases_follow_the_loads() {
    let mut run = Run::new("deepseek_v3", "router.bias_update = 0.25").unwrap();
    let biases = |run: &mut Run| -> Weights {
        weights(run.trainer.learner()).into_iter().filter(|(n, _)| n.contains("exp_probs_b")).collect()
    };
    let old = biases(&mut run);
    assert!(!old.is_empty());
    let record = run.trainer.step().unwrap();
    for ((name, old), (_, new)) in old.iter().zip(&biases(&mut run)) {
        let layer: u32 = name.split('.').nth(1).unwrap().parse().unwrap();
        let load = &record.loads.iter().find(|l| l.layer == layer).unwrap().tokens;
        let mean = load.iter().sum::<u64>() as f64 / load.len() as f64;
        for (e, n) in load.iter().enumerate() {
            let want = match *n as f64 {
                n if n < mean => old[e] + 0.25,
                n if n > mean => old[e] - 0.25,
                _ => old[e],
            };
            assert!((new[e] - want).abs() < 1e-6, "{name}, expert {e}: {} after {} with {n} of {mean}", new[e], old[e]);
        }
    }
    // Without the key they stay, though they are among what is trained.
    let mut still = Run::new("deepseek_v3", "weight_decay = 0.5\ndecay_norms = true").unwrap();
    let old = biases(&mut still);
    still.trainer.step().unwrap();
    assert!(old == biases(&mut still));
    assert!(refused("mixtral", "router.bias_update = 0.001").contains("selection bias"));
    assert!(refused("llama", "router.bias_update = 0.001").contains("no routers"));
    let frozen = refused("deepseek_v3", "router.bias_update = 0.001\nfreeze = [\"router\"]");
    assert!(frozen.contains("exp_probs_b") && frozen.contains("frozen"), "{frozen}");
    let lora = refused("deepseek_v3", "router.bias_update = 0.001\nlora.r = 2");
    assert!(lora.contains("bias_update") && lora.contains("[lora]"), "{lora}");
}

#[test]
fn experts_take_what_they_have_room_for() {
    // Two micro-batches of 48 rows, of which two are padding, 2 of 8 experts each: room for ceil(48 / 8 · 2 · 0.5) = 6 in each.
    for drop in ["position", "probability"] {
        let keys = format!("router.capacity_factor = 0.5\nrouter.drop = \"{drop}\"");
        let (steps, evaluated, _) = Run::new("mixtral", &keys).unwrap().finish();
        for load in steps.iter().flat_map(|s| &s.loads) {
            assert!(load.tokens.iter().all(|n| *n <= 12), "{load:?}");
            assert_eq!(load.tokens.iter().sum::<u64>() + load.dropped, 2 * TOKENS);
            assert!(load.dropped >= 2 * TOKENS - 2 * 8 * 6);
        }
        assert!(evaluated.is_finite());
    }
    let mut run = Run::new("mixtral", "router.capacity_factor = 0.5\nrouter.min_capacity = 100").unwrap();
    assert!(run.trainer.step().unwrap().loads.iter().all(|l| l.dropped == 0));
    // Evaluation is without limits.
    let first = |keys: &str| Run::new("mixtral", keys).unwrap().trainer.evaluate().unwrap().loss;
    assert_eq!(first(""), first("router.capacity_factor = 0.1"));
    // Random second choices stay in part: the share of tokens that go falls between none and all.
    let keys = "router.capacity_factor = 8.0\nrouter.second = \"random\"";
    let record = Run::new("mixtral", keys).unwrap().trainer.step().unwrap();
    let (kept, gone) = record.loads.iter().fold((0, 0), |(k, g), l| (k + l.tokens.iter().sum::<u64>(), g + l.dropped));
    assert!(gone > 0 && kept > gone, "{kept} {gone}");
    for (model, keys, says) in [
        ("llama", "router.capacity_factor = 1.0", "without routers"),
        ("qwen3_moe", "router.capacity_factor = 1.0\nrouter.second = \"random\"", "second choice"),
        (
            "mixtral",
            "router.capacity_factor = 1.0\nrouter.second = \"random\"\nrouter.drop = \"probability\"",
            "position",
        ),
        ("olmoe", "router.capacity_factor = 1.0\nrouter.renormalise_kept = true", "sum"),
    ] {
        let e = refused(model, keys);
        assert!(e.contains(says), "{model}, {keys}: {e}");
    }
}

#[test]
fn noise_is_drawn_anew_and_evaluation_is_without() {
    let last = |keys: &str| Run::new("mixtral", keys).unwrap().finish().2;
    for keys in ["router.noise = \"normal\"\nrouter.noise_std = 0.5", "router.jitter = 0.2", "expert_dropout = 0.3"] {
        assert!(last(keys) == last(keys), "{keys}: two runs");
        assert!(last(keys) != last(&format!("{keys}\nseed = 9\nshuffle = false")), "{keys}: another seed");
        let first = |keys: &str| Run::new("mixtral", keys).unwrap().trainer.evaluate().unwrap().loss;
        assert_eq!(first(""), first(keys), "{keys}");
    }
    let first = |keys: &str| Run::new("mixtral", keys).unwrap().trainer.evaluate().unwrap().loss;
    assert_ne!(first(""), first("router.noise = \"normal\"\nrouter.noise_in_eval = true"));
    // The learned deviation's matrix begins as zeros, and learns.
    let learned = last("router.noise = \"learned\"");
    let noise: Vec<_> = learned.iter().filter(|(n, _)| n.contains("ffn_noise_inp")).collect();
    assert!(noise.len() == 3 && noise.iter().all(|(_, w)| w.iter().any(|x| *x != 0.0)));
    assert!(refused("mixtral", "router.noise = \"learned\"\nlora.r = 2").contains("[lora]"));
    assert!(refused("llama", "router.jitter = 0.1").contains("none"));
    assert!(refused("llama", "expert_dropout = 0.1").contains("none"));
    assert!(refused("llama", "router.aux = \"hf\"").contains("none"));
}

#[test]
fn numbers_of_experts_follow_the_epochs() {
    // 12 texts of 23 rows, each a sequence of its own: 3 steps an epoch.
    let keys = "max_steps = 0\nnum_epochs = 3.0\ntop_k_schedule = [[0, 8], [1, 3], [2, 2]]";
    let text = format!(
        "datasets = [{{ path = \"unused\" }}]\nsequence_len = 24\nmicro_batch_size = 2\ngradient_accumulation_steps = 2\n\
         learning_rate = 0.01\nlr_scheduler = \"constant\"\nlog = []\nresume = \"never\"\n{keys}\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let parsed = TrainConfig::parse("run.toml", &text, &[]).unwrap();
    let config = TrainConfig { output_dir: dir.path().into(), ..parsed };
    let learner = ModelLearner::new(&goldens::definition("mixtral"), &config).unwrap();
    let vocab = learner.vocab();
    let mut trainer = Trainer::new(learner, config, corpus(vocab), None).unwrap();
    let mut seen = vec![];
    let done: Finished = trainer
        .run(&moeray::CancelToken::new(), &mut |e| {
            if let moeray::train::Event::Step(r) = e {
                seen.push((r.epoch as u64, r.loads[0].tokens.iter().sum::<u64>() / TOKENS));
            }
        })
        .unwrap();
    assert_eq!(done.steps as usize, seen.len());
    assert!(seen.iter().all(|(epoch, k)| *k == [8, 3, 2][*epoch as usize]), "{seen:?}");
    assert_eq!(trainer.learner().experts_used(), Some(2));
    // The model's own number is no change.
    let last = |keys: &str| Run::new("mixtral", keys).unwrap().finish().2;
    assert!(last("") == last("top_k_schedule = [[0, 2]]"));
    assert!(last("") != last("top_k_schedule = [[0, 3]]"));
    let e = refused("mixtral", "top_k_schedule = [[0, 8], [4, 9]]");
    assert!(e.contains("top_k_schedule") && e.contains("top 9 of 8"), "{e}");
    assert!(refused("llama", "top_k_schedule = [[0, 2]]").contains("top_k_schedule"));
}

#[test]
fn recomputing_is_the_same_bits_in_less_memory() {
    let bytes = |keys: &str| Run::new("mixtral", keys).unwrap().trainer.learner().forecast(2048, 0).unwrap().values;
    let last = |keys: &str| Run::new("mixtral", keys).unwrap().finish().2;
    let noisy = "router.noise = \"normal\"\nexpert_dropout = 0.2\nrouter.capacity_factor = 1.0\n";
    for keys in ["", noisy] {
        let plain = last(keys);
        for what in ["experts", "layer"] {
            assert!(plain == last(&format!("{keys}recompute = \"{what}\"")), "{what}, {keys}");
        }
    }
    let [none, experts, layer] = ["none", "experts", "layer"].map(|w| bytes(&format!("recompute = \"{w}\"")));
    assert!(layer < experts && experts < none, "{none} {experts} {layer}");
}
