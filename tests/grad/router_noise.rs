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
        RouterCapacity, RouterGroups, RouterNoise, TrainProgram, for_training,
        formula::{Objective, RouterLoss, Term, language_model},
        routers, with_capacity, with_experts_used, with_router_groups, with_router_noise,
    },
    ir::{Graph, Keep},
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
    let noise = RouterNoise { std: 0.5, learned: true, jitter: 0.1, jitter_experts: false };
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

#[test]
fn noise_before_a_router_with_a_hidden_layer_is_on_its_input() {
    let feed = model::feed(&goldens::golden("mini_moe_b").ids);
    let (graph, weights) = base("mini_moe_b");
    let hidden = weights[0].cols();
    let noise = RouterNoise { std: 0.5, learned: true, jitter: 0.2, jitter_experts: true };
    let graph = language_model(with_router_noise(&graph, noise).unwrap(), &Objective::default()).unwrap();
    for added in &graph.weights[weights.len()..] {
        assert!(added.name.ends_with("ffn_noise_inp.weight") && added.shape == [5, hidden], "{added:?}");
    }
    let program = grown(&graph, weights);
    let program = TrainProgram::new(&program, &|n| n.contains("_inp"), &[]).unwrap();
    assert!(program.unreached.is_empty() && program.parameters.iter().any(|p| p.name.contains("inp_hidden")));
    let mut training = reference::train(program, Precision::F64).unwrap();
    let error = super::net::differences_of_some(&mut *training, &feed, 5);
    assert!(error <= 1e-6, "gradients through noise are off by {error:.1e}");
}

#[test]
fn routers_over_groups_have_gradients() {
    let feed = model::feed(&goldens::golden("mixtral").ids);
    let (graph, weights) = base("mixtral");
    let four = with_experts_used(&graph, 4).unwrap();
    let grouped = with_router_groups(&four, RouterGroups { groups: 4, used: 2 }).unwrap();
    let found = routers(&grouped);
    assert!(found.len() == 3 && found.iter().all(|r| r.groups_used == Some(2) && r.router.used == 4));
    let balance = RouterLoss::named(Term::Balance, "importance");
    let objective = Objective { balance, balance_weight: 0.1, ..Objective::default() };
    let program = grown(&language_model(grouped.clone(), &objective).unwrap(), weights);
    let program = TrainProgram::new(&program, &|n| n.contains("ffn_gate_inp"), &[]).unwrap();
    assert_eq!((program.parameters.len(), program.unreached.len()), (6, 0));
    let mut training = reference::train(program, Precision::F64).unwrap();
    let made = training.micro(&feed).unwrap();
    for layer in 0..3 {
        // Two experts of each chosen group, which has two.
        let name = format!("tokens_per_expert_{layer}");
        let counts = &made.iter().find(|n| n.name == name).unwrap().values;
        assert_eq!(counts.iter().sum::<f64>(), 4.0 * feed.rows as f64);
        assert!(counts.chunks(2).all(|g| g[0] == g[1]), "{counts:?}");
    }
    training.clear().unwrap();
    let error = super::net::differences_of_some(&mut *training, &feed, 5);
    assert!(error <= 1e-6, "gradients of routers over groups are off by {error:.1e}");
    // Losses of one softmax over all experts, noise and other numbers of experts are for other routers.
    let z = Objective { z: RouterLoss::named(Term::Z, "logsumexp"), ..Objective::default() };
    assert!(language_model(grouped.clone(), &z).unwrap_err().to_string().contains("over groups"));
    assert!(with_router_noise(&grouped, RouterNoise { std: 0.1, ..RouterNoise::default() }).is_err());
    assert!(with_experts_used(&grouped, 2).is_err());
    let capacity =
        RouterCapacity { factor: 1.0, least: 1, keep: Keep::Position, random_second: false, over_kept: false };
    assert!(with_capacity(&grouped, capacity).unwrap_err().to_string().contains("over groups"));
}

#[test]
fn experts_read_what_the_router_reads_where_that_is_asked_for() {
    let feed = model::feed(&goldens::golden("mixtral").ids);
    let (graph, weights) = base("mixtral");
    // Behind the experts of the last layer is no router whose choice a step could cross.
    let last = |n: &str| n.starts_with("blk.2.ffn_") && n.contains("_exps");
    let loss = |jitter_experts: bool| {
        let noise = RouterNoise { std: 0.0, learned: false, jitter: 0.3, jitter_experts };
        let graph = language_model(with_router_noise(&graph, noise).unwrap(), &Objective::default()).unwrap();
        let program = Program::new(graph, weights.clone()).unwrap();
        let program = TrainProgram::new(&program, &last, &[]).unwrap();
        let mut training = reference::train(program, Precision::F64).unwrap();
        let error = super::net::differences_of_some(&mut *training, &feed, 3);
        assert!(error <= 1e-6, "gradients through factors are off by {error:.1e}");
        value(&mut *training, &feed, "loss")
    };
    assert_ne!(loss(false), loss(true));
    // Gemma 4's router has a norm of its own.
    let noise = RouterNoise { jitter: 0.1, jitter_experts: true, ..RouterNoise::default() };
    let error = with_router_noise(&base("gemma4").0, noise).unwrap_err().to_string();
    assert!(error.contains("jitter of what experts read"), "{error}");
}
