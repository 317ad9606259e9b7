//! What has no gradient is refused by name before anything runs, and a training graph does not run as inference.

use super::net::Net;
use moeray::{
    backend::{Program, cpu, reference},
    graph::{Builder, LOSS, TrainProgram, for_training, inference_only},
    ir::{CacheDecl, Linear, Math, Op, Router, Score, ShortConv},
    ops::linear::Activations,
};

#[test]
fn ops_without_a_rule_are_refused_by_name() {
    let mut n = Net::new(2, 1);
    let logits = n.input(4);
    let router = Router::new(4, 2, Score::SparseMixer { threshold: 0.02 });
    let choice = n.b.add(Op::Router(router), &[logits]).unwrap();
    n.enters(choice[1]);
    let (program, _, inputs) = n.program();
    let wanted: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let error = TrainProgram::new(&program, &|_| true, &wanted).unwrap_err().to_string();
    assert!(error.contains("router") && error.contains("sparsemixer"), "{error}");
}

#[test]
fn factors_of_experts_are_refused_when_trained() {
    let mut n = Net::new(2, 1);
    let logits = n.input(4);
    let factors = n.weight("factors", &[4]);
    let router = Router { expert_scale: Some(factors), ..Router::new(4, 2, Score::Softmax) };
    let choice = n.b.add(Op::Router(router), &[logits]).unwrap();
    n.enters(choice[1]);
    let (program, _, _) = n.program();
    let error = TrainProgram::new(&program, &|_| true, &[]).unwrap_err().to_string();
    assert!(error.contains("factors"), "{error}");
}

#[test]
fn recurrent_layers_and_latent_caches_are_refused_by_name() {
    let mut b = Builder::new();
    let x = b.one(Op::Input { name: "x".into(), cols: 3 }, &[]).unwrap();
    let (weight, state) = (b.weight("w", &[6]), b.state(3));
    let y = b.one(Op::ShortConv(ShortConv { weight, bias: None, taps: 2, act: None, state }), &[x]).unwrap();
    b.output("y", y);
    let error = for_training(&b.finish(), 16).unwrap_err().to_string();
    assert!(error.contains("short_conv"), "{error}");

    let mut b = Builder::new();
    let x = b.one(Op::Input { name: "x".into(), cols: 4 }, &[]).unwrap();
    let cache = b.cache(CacheDecl { kv_heads: 2, k_dim: 2, v_dim: 2, v_in_k: true });
    let stored = b.one(Op::KvStore { cache }, &[x]).unwrap();
    let a = moeray::ir::Attention { cache, heads: 2, scale: 1.0, window: None, attention_chunk: None, sinks: None };
    let y = b.one(Op::Attend(a), &[x, stored]).unwrap();
    b.output("y", y);
    let error = for_training(&b.finish(), 16).unwrap_err().to_string();
    assert!(error.contains("latent"), "{error}");
}

#[test]
fn a_frozen_run_and_a_missing_loss_are_refused() {
    let mut n = Net::new(2, 1);
    let l = Linear { weight: n.weight("w", &[2, 3]), bias: None };
    let x = n.input(3);
    let y = n.b.one(Op::Linear(l), &[x]).unwrap();
    n.enters(y);
    let (program, _, _) = n.program();
    let error = TrainProgram::new(&program, &|_| false, &[]).unwrap_err().to_string();
    assert!(error.contains("frozen"), "{error}");
    let mut graph = (*program.graph).clone();
    graph.outputs.retain(|(name, _)| name != LOSS);
    let program = Program::new(graph, program.weights.to_vec()).unwrap();
    let error = TrainProgram::new(&program, &|_| true, &[]).unwrap_err().to_string();
    assert!(error.contains("`loss`"), "{error}");
}

#[test]
fn a_graph_of_training_does_not_run_as_inference() {
    let mut b = Builder::new();
    let x = b.one(Op::Input { name: "x".into(), cols: 3 }, &[]).unwrap();
    let y = b.math(Math::Softmax { groups: 1 }, &[x]).unwrap();
    b.output("y", y);
    let program = Program::new(b.finish(), vec![]).unwrap();
    assert!(inference_only(&program.graph).unwrap_err().to_string().contains("softmax"));
    assert!(reference::load_with(program.clone(), Activations::F32).is_err());
    assert!(cpu::load(program, &cpu::Options::default(), &mut |_| Ok(())).is_err());
}

#[test]
fn bad_feeds_are_named_errors_and_leave_gradients_alone() {
    let build = || {
        let mut n = Net::new(3, 1);
        let table = n.weight("table", &[5, 3]);
        n.feed.tokens = vec![0, 4, 2];
        let ids = n.b.one(Op::Tokens, &[]).unwrap();
        let x = n.b.one(Op::Embed { table, scale: 1.0 }, &[ids]).unwrap();
        let targets = n.ids("targets", 1, vec![2, 0, 1]);
        let y = n.b.add(Op::Math(Math::CrossEntropy), &[x, targets]).unwrap()[0];
        n.enters(y);
        n.trained(&[])
    };
    let (program, feed) = build();
    let mut training = reference::train(program, reference::Precision::F32).unwrap();
    let mut bad = vec![];
    let mut other = feed.clone();
    other.tokens[1] = 5;
    bad.push((other, "token id 5"));
    let mut other = feed.clone();
    other.set_ids("targets", vec![0, 3, 1]);
    bad.push((other, "target 3"));
    let mut other = feed.clone();
    other.tokens.pop();
    bad.push((other, "2 tokens for 3 rows"));
    let mut other = feed.clone();
    other.numbers.clear();
    bad.push((other, "up0 is missing"));
    bad.push((Default::default(), "without rows"));
    for (feed, word) in bad {
        let error = training.micro(&feed).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(training.gradient(0).unwrap().iter().all(|g| *g == 0.0));
    training.micro(&feed).unwrap();
    assert!(training.gradient(0).unwrap().iter().any(|g| *g != 0.0));
}
