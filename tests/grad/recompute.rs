//! Activations that are computed again: the same bits with less memory.

use super::model;
use crate::goldens;
use moeray::{
    backend::cpu::{self, Options},
    graph::{Recompute, TrainProgram},
    ir::Rows,
};

/// The most numbers of activations that are alive at once, with 64 rows.
fn most_alive(p: &TrainProgram) -> usize {
    let g = &p.graph;
    let mut last = vec![0; g.values.len()];
    for (i, n) in g.nodes.iter().enumerate() {
        n.inputs.iter().chain(&n.outputs).for_each(|v| last[v.0 as usize] = i);
    }
    let size = |v: moeray::ir::ValueId| match g.ty(v).dims() {
        Some((Rows::Fixed(n), cols)) => n * cols,
        Some((_, cols)) => 64 * cols,
        None => 0,
    };
    let (mut alive, mut most) = (0, 0);
    for (i, n) in g.nodes.iter().enumerate() {
        alive += n.outputs.iter().map(|v| size(*v)).sum::<usize>();
        most = most.max(alive);
        let mut done: Vec<_> = n.inputs.iter().chain(&n.outputs).copied().collect();
        done.sort();
        done.dedup();
        alive -= done.into_iter().filter(|v| last[v.0 as usize] == i).map(size).sum::<usize>();
    }
    most
}

#[test]
fn recomputed_activations_give_the_same_bits_with_less_memory() {
    for name in ["mixtral", "qwen3_moe"] {
        let feed = model::feed(&goldens::golden(name).ids);
        let plain = model::program(name, &|_| true).unwrap();
        let bits = |p: &TrainProgram| {
            let mut training = cpu::train(p.clone(), &Options::default()).unwrap();
            let made = training.micro(&feed).unwrap();
            let gradients = (0..training.parameters().len()).flat_map(|i| training.gradient(i).unwrap());
            made.into_iter().flat_map(|n| n.values).chain(gradients).map(f64::to_bits).collect::<Vec<u64>>()
        };
        let (want, all) = (bits(&plain), most_alive(&plain));
        assert_eq!(bits(&plain.recomputing(Recompute::None).unwrap()), want);
        let mut before = all;
        for what in [Recompute::Experts, Recompute::Layer] {
            let program = plain.recomputing(what).unwrap();
            assert!(bits(&program) == want, "{name}: {what:?} changes bits");
            let alive = most_alive(&program);
            assert!(alive <= before, "{name}: {what:?} keeps {alive} numbers, {before} before");
            before = alive;
        }
        assert!(before < all, "{name}: nothing is saved of {all} numbers");
        assert!(program_nodes(&plain) < program_nodes(&plain.recomputing(Recompute::Layer).unwrap()));
    }
}

fn program_nodes(p: &TrainProgram) -> usize {
    p.graph.nodes.len()
}
