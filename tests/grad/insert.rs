//! Adapters beside matrices of every format, and noise before routers.

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
        AdapterOptions, RouterNoise, TrainProgram, for_training,
        formula::{Objective, language_model},
        with_adapters, with_router_noise,
    },
    ir::Graph,
};

fn base(name: &str) -> (Graph, Vec<Tensor>) {
    let definition = goldens::defined(name, false);
    (for_training(&definition.program.graph, 64).unwrap(), definition.program.weights.to_vec())
}

/// Numbers for the weights that were added: small ones, and zeros where a name ends so.
fn grown(graph: &Graph, mut weights: Vec<Tensor>, zeros: &str) -> Program {
    let mut rng = crate::support::rng::Rng(3);
    for decl in &graph.weights[weights.len()..] {
        let n = decl.shape.iter().product();
        let values = if decl.name.ends_with(zeros) { vec![0.0; n] } else { rng.normals(n, 0.1) };
        weights.push(Tensor::from_f32(decl.shape.clone(), values).unwrap());
    }
    Program::new(graph.clone(), weights).unwrap()
}

fn value(training: &mut dyn Training, feed: &moeray::ops::train::Feed, name: &str) -> Vec<f64> {
    training.evaluate(feed).unwrap().into_iter().find(|n| n.name == name).unwrap().values
}

#[test]
fn adapters_begin_as_nothing_and_all_of_them_learn() {
    let feed = model::feed(&goldens::golden("mixtral").ids);
    let (graph, weights) = base("mixtral");
    let plain = language_model(graph.clone(), &Objective::default()).unwrap();
    let plain = TrainProgram::new(&Program::new(plain, weights.clone()).unwrap(), &|_| true, &[]).unwrap();
    let before = value(&mut *reference::train(plain, Precision::F64).unwrap(), &feed, "loss");
    let options = AdapterOptions { rank: 3, scale: 2.0, dropout: 0.0 };
    let wanted = |n: &str| n.contains("attn_") || n.contains("ffn_");
    let (graph, adapters) = with_adapters(&graph, options, &|n| wanted(n) && !n.contains("norm")).unwrap();
    let graph = language_model(graph, &Objective::default()).unwrap();
    let matrices = graph.weights[..weights.len()].iter().filter(|w| wanted(&w.name) && !w.name.contains("norm"));
    assert_eq!(adapters.len(), matrices.count());
    let program = grown(&graph, weights, ".lora_b");
    let program = TrainProgram::new(&program, &|n| n.contains(".lora_"), &[]).unwrap();
    assert_eq!(program.parameters.len(), 2 * adapters.len());
    assert!(program.unreached.is_empty(), "{:?}", program.unreached);
    let mut training = reference::train(program, Precision::F64).unwrap();
    assert_eq!(value(&mut *training, &feed, "loss"), before, "zeros in B leave the model as it is");
    for step in 0..2 {
        training.micro(&feed).unwrap();
        for i in 0..training.parameters().len() {
            let name = training.parameters()[i].name.clone();
            let moves = training.gradient(i).unwrap().iter().any(|g| *g != 0.0);
            // At first B is 0, and with it the gradient of A.
            assert_eq!(moves, step > 0 || name.ends_with(".lora_b"), "{name} in step {step}");
        }
        training
            .each(&mut |s| {
                s.weight.iter_mut().zip(s.gradient.iter()).for_each(|(w, g)| *w -= 0.02 * g);
                Ok(())
            })
            .unwrap();
        training.clear().unwrap();
    }
    assert!(value(&mut *training, &feed, "loss")[0] < before[0]);
    let error = super::net::differences_of_some(&mut *training, &feed, 3);
    assert!(error <= 1e-6, "gradients of adapters are off by {error:.1e}");
}

#[test]
fn adapters_that_match_nothing_are_refused() {
    let (graph, _) = base("mixtral");
    let options = AdapterOptions { rank: 3, scale: 2.0, dropout: 0.0 };
    assert!(with_adapters(&graph, options, &|n| n == "no such").unwrap_err().to_string().contains("targets"));
    assert!(with_adapters(&graph, AdapterOptions { rank: 0, ..options }, &|_| true).is_err());
}

#[test]
fn noise_before_routers_is_drawn_again_in_every_step_and_learns() {
    let mut feed = model::feed(&goldens::golden("mixtral").ids);
    let (graph, weights) = base("mixtral");
    let noise = RouterNoise { std: 0.5, learned: true, jitter: 0.1 };
    let graph = language_model(with_router_noise(&graph, noise).unwrap(), &Objective::default()).unwrap();
    let program = grown(&graph, weights, "nothing");
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
