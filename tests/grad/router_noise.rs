//! Noise before the routers of a model's graph.

use super::model;
use crate::goldens;
use moeray::{
    backend::{
        Program,
        reference::{self, Precision},
        training::Training,
    },
    file::Tensor,
    graph::{
        RouterNoise, TrainProgram, for_training,
        formula::{Objective, language_model},
        with_experts_used, with_router_noise,
    },
    ir::Graph,
};

fn base(name: &str) -> (Graph, Vec<Tensor>) {
    let definition = goldens::defined(name, false);
    (for_training(&definition.program.graph, 64).unwrap(), definition.program.weights.to_vec())
}

/// Small numbers for the weights that were added.
fn grown(graph: &Graph, mut weights: Vec<Tensor>) -> Program {
    let mut rng = crate::support::rng::Rng(3);
    for decl in &graph.weights[weights.len()..] {
        let n = decl.shape.iter().product();
        let values = rng.normals(n, 0.1);
        weights.push(Tensor::from_f32(decl.shape.clone(), values).unwrap());
    }
    Program::new(graph.clone(), weights).unwrap()
}

fn value(training: &mut dyn Training, feed: &moeray::ops::train::Feed, name: &str) -> Vec<f64> {
    training.evaluate(feed).unwrap().into_iter().find(|n| n.name == name).unwrap().values
}

#[test]
fn noise_before_routers_is_drawn_again_in_every_step_and_learns() {
    let mut feed = model::feed(&goldens::golden("mixtral").ids);
    let (graph, weights) = base("mixtral");
    let noise = RouterNoise { std: 0.5, learned: true, jitter: 0.1 };
    let graph = language_model(with_router_noise(&graph, noise).unwrap(), &Objective::default()).unwrap();
    let program = grown(&graph, weights);
    let program =
        TrainProgram::new(&program, &|n| n.contains("ffn_noise_inp") || n.contains("ffn_gate_inp"), &[]).unwrap();
    let mut training = reference::train(program, Precision::F64).unwrap();
    let mut at = |seed, step| {
        (feed.seed, feed.step) = (seed, step);
        value(&mut *training, &feed, "loss")
    };
    let first = at(1, 0);
    assert_eq!(first, at(1, 0));
    assert_ne!(first, at(1, 1));
    assert_ne!(first, at(2, 0));
    let error = super::net::differences_of_some(&mut *training, &feed, 5);
    assert!(error <= 1e-6, "gradients through noise are off by {error:.1e}");
    let (llama, _) = base("llama");
    assert!(with_router_noise(&llama, noise).is_err());
}

#[test]
fn routers_of_any_number_of_experts_train_on_the_same_weights() {
    let feed = model::feed(&goldens::golden("mixtral").ids);
    let (graph, weights) = base("mixtral");
    let experts = moeray::graph::routers(&graph)[0].router.experts;
    let mut losses = vec![];
    for used in (1..=experts).rev() {
        let graph = language_model(with_experts_used(&graph, used).unwrap(), &Objective::default()).unwrap();
        let program = Program::new(graph, weights.clone()).unwrap();
        let program = TrainProgram::new(&program, &|n| n.contains("ffn_gate_inp"), &[]).unwrap();
        let mut training = reference::train(program, Precision::F64).unwrap();
        let made = training.micro(&feed).unwrap();
        let counts = &made.iter().find(|n| n.name.starts_with("tokens_per_expert")).unwrap().values;
        assert_eq!(counts.iter().sum::<f64>(), (used * feed.rows) as f64);
        // A softmax over one expert is 1: the router learns nothing.
        let moves = training.gradient(0).unwrap().iter().any(|g| *g != 0.0);
        assert_eq!(moves, used > 1);
        losses.push(value(&mut *training, &feed, "loss"));
    }
    losses.dedup();
    assert_eq!(losses.len(), experts);
    assert!(with_experts_used(&graph, experts + 1).is_err() && with_experts_used(&graph, 0).is_err());
}
