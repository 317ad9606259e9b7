//! Rows of padding count for nothing: losses of routers, loads of experts, room under a capacity and gradients are those of the
//! tokens alone.

use super::routers::config;
use crate::goldens;
use moeray::train::{
    Learner, MicroBatch, ModelLearner, Outcome,
    data::{Corpus, Excess, Feed, FeedOptions, PackingOptions, below},
};

/// Rows of a sequence.
const LENGTH: usize = 24;

/// Two texts of 24 and 15 rows, one below the other, with padding behind the second up to the length of a sequence or without.
fn batch(vocab: usize, padded: bool) -> MicroBatch {
    let mut b = MicroBatch { scale: 1.0 / 39.0, share: 1.0, seed: 7, ..MicroBatch::default() };
    for (text, rows) in [(0u32, LENGTH), (1, 15)] {
        let start = b.rows() as u32;
        for r in 0..rows as u32 {
            b.ids.push(below(3, text, r, vocab as u32));
            b.targets.push(below(3, text, r + 1, vocab as u32));
            b.positions.push(r);
            b.starts.push(start);
            b.weights.push(1.0);
            b.padding.push(false);
        }
    }
    while padded && b.rows() < 2 * LENGTH {
        b.starts.push(b.rows() as u32);
        b.ids.push(0);
        b.targets.push(0);
        b.positions.push(0);
        b.weights.push(0.0);
        b.padding.push(true);
    }
    b
}

fn run(keys: &str, padded: bool) -> (Outcome, Vec<(String, Vec<f32>)>) {
    let mut learner = ModelLearner::new(&goldens::definition("mixtral"), &config(keys)).unwrap();
    let trained = vec![true; learner.parameters().len()];
    learner.choose(&trained).unwrap();
    let outcome = learner.accumulate(&batch(learner.vocab(), padded)).unwrap();
    let names: Vec<String> = learner.parameters().iter().map(|p| p.name.clone()).collect();
    let mut gradients = vec![];
    learner
        .each(&mut |i, slot| {
            gradients.push((names[i].clone(), slot.gradients.to_vec()));
            Ok(())
        })
        .unwrap();
    (outcome, gradients)
}

#[test]
fn padding_counts_for_nothing() {
    for keys in [
        "",
        "router.aux = \"switch\"",
        "router.aux = \"hf\"",
        "router.aux = \"mean_of_layers\"",
        "router.aux = \"usage\"",
        "router.aux = \"gshard\"",
        "router.aux = \"gshard_paper\"",
        "router.aux = \"importance\"",
        "router.aux = \"importance_load\"\nrouter.noise = \"normal\"",
        "router.z = \"logsumexp\"",
        "router.z = \"mean_square\"",
        // Room for six slots, however many rows there are.
        "router.aux = \"hf\"\nrouter.capacity_factor = 0.001\nrouter.min_capacity = 6",
        "router.capacity_factor = 0.001\nrouter.min_capacity = 6\nrouter.drop = \"probability\"",
        "router.capacity_factor = 0.001\nrouter.min_capacity = 6\nrouter.second = \"random\"",
    ] {
        let keys = format!("router.aux_weight = 1.0\nrouter.z_weight = 1.0\n{keys}");
        let ((want, exact), (got, gradients)) = (run(&keys, false), run(&keys, true));
        assert_eq!(want.loads, got.loads, "{keys}");
        assert!(want.loads.iter().all(|l| l.tokens.iter().sum::<u64>() + l.dropped == 2 * 39), "{keys}");
        for (a, b) in want.terms.iter().zip(&got.terms) {
            assert!((a.value - b.value).abs() <= 1e-5 * a.value.abs(), "{keys}: {a:?} with padding {b:?}");
        }
        for ((name, a), (_, b)) in exact.iter().zip(&gradients) {
            let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
            let off = a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off <= 1e-4 * largest, "{keys}: the gradient of {name} is off by {off:e} of {largest:e}");
        }
    }
}

#[test]
fn batches_say_which_rows_are_padding() {
    let mut corpus = Corpus::new(16, LENGTH + 1);
    for len in [25usize, 9, 6] {
        corpus.add_sample("sample", vec![0; len], vec![true; len], Excess::Raise).unwrap();
    }
    let packing = PackingOptions { sequence_len: LENGTH, packed: false, shuffle: false, seed: 1 };
    let options = FeedOptions { packing, micro_batch_size: 1, accumulation: 3, windows: false };
    let batch = Feed::new(corpus, options).unwrap().next_batch();
    // Tokens of the texts look like padding, and are none.
    let counted: Vec<usize> = batch.micro.iter().map(MicroBatch::counted).collect();
    assert_eq!((counted.as_slice(), batch.rows), (&[24, 8, 5][..], 37));
    for (m, rows) in batch.micro.iter().zip(counted) {
        assert!(m.padding.iter().enumerate().all(|(r, p)| *p == (r >= rows)));
        assert!((m.share - rows as f64 / 37.0).abs() < 1e-12);
    }
}
