//! The floor of generation: no engine makes a token faster than it reads the weights that the token needs.

use crate::{
    backend::Program,
    ir::{Op, Type},
};
use std::{hint::black_box, time::Instant};

/// Bytes of weights that one generated token reads, in the form in which the file stores them: all matrices once, of the
/// embedding table a row, of the experts those used.
pub fn bytes_per_token(program: &Program) -> u64 {
    let graph = &program.graph;
    let mut bytes = 0.0;
    for node in &graph.nodes {
        // An op on experts has their ids among its inputs, one column an expert used.
        let used = node.inputs.iter().find_map(|v| match graph.ty(*v) {
            Type::U32(_, k) => Some(k as f64),
            _ => None,
        });
        for w in node.op.weights() {
            let Some(tensor) = program.weights.get(w.0 as usize) else { continue };
            let part = match (&node.op, tensor.shape(), used) {
                (Op::Embed { .. }, [rows, ..], _) => 1.0 / (*rows as f64).max(1.0),
                (_, [experts, _, _], Some(k)) => k / (*experts as f64).max(1.0),
                _ => 1.0,
            };
            bytes += tensor.byte_len() as f64 * part;
        }
    }
    bytes as u64
}

/// Bytes a second that `threads` threads together read from memory: the best of several passes over more than any cache
/// holds. Sums 64-bit words, which compilers vectorise.
pub fn read_bandwidth(threads: usize) -> f64 {
    const WORDS: usize = 256 * 1024 * 1024 / 8;
    let data: Vec<u64> = (0..WORDS as u64).collect();
    let piece = WORDS.div_ceil(threads.max(1));
    let pass = || {
        let start = Instant::now();
        std::thread::scope(|s| {
            for part in data.chunks(piece) {
                s.spawn(move || black_box(sum(black_box(part))));
            }
        });
        start.elapsed().as_secs_f64()
    };
    let best = (0..6).map(|_| pass()).fold(f64::INFINITY, f64::min);
    (WORDS * 8) as f64 / best
}

fn sum(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 32];
    for chunk in words.chunks_exact(32) {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().fold(0, |a, b| a.wrapping_add(*b))
}
