//! What keeps the loads of experts even: from a router whose logit of one expert is 3 higher than it was, 300 steps of a run with
//! each method, by the keys of its configuration.

use crate::goldens;
use moeray::{
    backend::Program,
    file::Tensor,
    graph::Builder,
    ir::{Activation, Linear, Op, Renormalise, Router, Score},
    model::Definition,
    train::{
        ModelLearner, Trainer,
        config::TrainConfig,
        data::{Corpus, Excess, below, normal},
    },
};

const V: usize = 48;
const H: usize = 16;
const E: usize = 8;
const STEPS: u64 = 300;

/// Embedding, experts behind a router with a bias, and output: a layer of a language model without attention.
fn layer(selection_bias: bool) -> Definition {
    let mut b = Builder::new();
    let mut tensors = vec![];
    let mut weight = |b: &mut Builder, name: &str, shape: &[usize], value: &dyn Fn(usize) -> f32| {
        let numbers = (0..shape.iter().product()).map(value).collect();
        tensors.push(Tensor::from_f32(shape.to_vec(), numbers).unwrap());
        b.weight(name, shape)
    };
    let random = |stream: u32, std: f32| move |i: usize| normal(21, stream, i as u32) * std;
    let table = weight(&mut b, "token_embd.weight", &[V, H], &random(1, 1.0));
    let tokens = b.one(Op::Tokens, &[]).unwrap();
    let x = b.one(Op::Embed { table, scale: 1.0 }, &[tokens]).unwrap();
    b.set_layer(Some(0));
    let gate = weight(&mut b, "blk.0.ffn_gate_inp.weight", &[E, H], &random(2, 0.1));
    let skew = weight(&mut b, "blk.0.ffn_gate_inp.bias", &[E], &|e| if e == 0 { 3.0 } else { 0.0 });
    let chosen_by = selection_bias.then(|| weight(&mut b, "blk.0.exp_probs_b.bias", &[E], &|_| 0.0));
    let logits = b.one(Op::Linear(Linear { weight: gate, bias: Some(skew) }), &[x]).unwrap();
    let router =
        Router { renormalise: Renormalise::Sum, selection_bias: chosen_by, ..Router::new(E, 2, Score::Softmax) };
    let made = b.add(Op::Router(router), &[logits]).unwrap();
    let (ids, weights) = (made[0], made[1]);
    let experts = [("gate", 3), ("up", 4), ("down", 5)].map(|(role, stream)| {
        weight(&mut b, &format!("blk.0.ffn_{role}_exps.weight"), &[E, H, H], &random(stream, 0.2))
    });
    let through = |weight| Op::ExpertLinear(Linear { weight, bias: None });
    let g = b.one(through(experts[0]), &[x, ids]).unwrap();
    let u = b.one(through(experts[1]), &[x, ids]).unwrap();
    let h = b.one(Op::Glu(Activation::Silu), &[g, u]).unwrap();
    let y = b.one(through(experts[2]), &[h, ids]).unwrap();
    let y = b.one(Op::ExpertCombine, &[y, weights]).unwrap();
    let y = b.one(Op::Add, &[x, y]).unwrap();
    b.set_layer(None);
    let output = weight(&mut b, "output.weight", &[V, H], &random(9, 0.2));
    let logits = b.one(Op::Linear(Linear { weight: output, bias: None }), &[y]).unwrap();
    b.output("logits", logits);
    let program = Program::new(b.finish(), tensors).unwrap();
    Definition { program, ..goldens::definition("mixtral") }
}

/// Fullest over mean load in the last 30 steps.
fn skew(keys: &str) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "datasets = [{{ path = \"unused\" }}]\noutput_dir = {:?}\nsequence_len = 32\nmicro_batch_size = 2\nmax_steps = {STEPS}\n\
         learning_rate = 0.02\nlr_scheduler = \"constant\"\nlog = []\nrouter.aux_weight = 0.1\n{keys}\n",
        dir.path()
    );
    let config = TrainConfig::parse("run.toml", &text, &[]).unwrap();
    let mut corpus = Corpus::new(V, 33);
    for i in 0..64u32 {
        let word = |j: u32| below(3, 1, i * 64 + j, V as u32);
        // Every other token follows from the one before.
        let ids = (0..33u32).map(|j| if j % 2 == 0 { word(j) } else { (word(j - 1) * 7 + 3) % V as u32 }).collect();
        corpus.add_sample("sample", ids, vec![true; 33], Excess::Raise).unwrap();
    }
    let learner = ModelLearner::new(&layer(keys.contains("bias_update")), &config).unwrap();
    let mut trainer = Trainer::new(learner, config, corpus, None).unwrap();
    let (mut sum, mut losses) = ([0u64; E], vec![]);
    for step in 0..STEPS {
        let record = trainer.step().unwrap();
        losses.push(record.terms[0].value);
        let load = &record.loads[0].tokens;
        if step == 0 {
            assert!(ratio(load) > 3.5, "it begins skewed: {load:?}");
        }
        if step + 30 >= STEPS {
            sum.iter_mut().zip(load).for_each(|(s, n)| *s += n);
        }
    }
    assert!(losses[STEPS as usize - 1] < losses[0] - 0.5, "{keys}: it learns nothing, {losses:?}");
    ratio(&sum)
}

fn ratio(load: &[u64]) -> f64 {
    let most = load.iter().copied().max().unwrap_or(0) as f64;
    most * load.len() as f64 / load.iter().sum::<u64>() as f64
}

#[test]
fn every_method_evens_a_skewed_router_and_none_does_not() {
    let without = skew("");
    assert!(without >= 3.0, "without: {without}");
    let mut all = vec![("", without)];
    for keys in [
        "router.aux = \"switch\"",
        "router.aux = \"hf\"",
        "router.aux = \"mean_of_layers\"",
        "router.aux = \"usage\"",
        "router.aux = \"gshard\"",
        "router.aux = \"importance\"",
        "router.aux = \"importance_load\"\nrouter.noise = \"learned\"",
        "router.bias_update = 0.01",
    ] {
        all.push((keys, skew(keys)));
    }
    assert!(all[1..].iter().all(|(_, r)| *r <= 1.5), "fullest over mean: {all:?}");
}
