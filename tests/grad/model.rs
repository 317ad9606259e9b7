//! Whole models: the graph of every family is rewritten for training or refused by name; rewritten, it gives the logits that it gives
//! as inference, sequence by sequence, and its gradients are those of differences.

use crate::goldens;
use moeray::{
    backend::{
        Program,
        reference::{self, Precision},
        training::Training,
    },
    graph::{
        COUNTED, TrainProgram, for_training,
        formula::{Objective, RouterLoss, Term, language_model},
    },
    ops::train::Feed,
};

/// Families that cannot be trained, with a word of the reason.
const REFUSED: &[(&str, &str)] = &[
    ("qwen3_next", "recurrent layers"),
    ("qwen3_5_moe", "recurrent layers"),
    ("lfm2_moe", "recurrent layers"),
    ("phimoe", "sparsemixer"),
];

/// The training program of a family's golden, with a loss of its routers where it has some.
pub fn program(name: &str, trained: &dyn Fn(&str) -> bool) -> moeray::Result<TrainProgram> {
    let definition = goldens::defined(name, false);
    let graph = for_training(&definition.program.graph, 64)?;
    let routed = definition.decoder.moe().is_some_and(|m| m.router.experts > 1);
    let objective = match routed {
        true => Objective {
            balance: RouterLoss::named(Term::Balance, "hf"),
            balance_weight: 0.05,
            z: RouterLoss::named(Term::Z, "logsumexp"),
            z_weight: 0.01,
            ..Objective::default()
        },
        false => Objective::default(),
    };
    let graph = language_model(graph, &objective)?;
    let program = Program::new(graph, definition.program.weights.to_vec())?;
    TrainProgram::new(&program, trained, &[])
}

/// Two sequences: the golden's own ids, and the first of them once more.
pub fn feed(ids: &[u32]) -> Feed {
    let tokens: Vec<u32> = ids.iter().chain(&ids[..ids.len().min(5)]).copied().collect();
    let (rows, first) = (tokens.len(), ids.len() as u32);
    let mut feed = Feed { rows, ..Feed::default() };
    feed.set_ids("targets", (0..rows).map(|r| tokens[(r + 1) % rows]).collect());
    feed.set_ids("starts", (0..rows as u32).map(|r| if r < first { 0 } else { first }).collect());
    feed.set("weights", (0..rows).map(|r| if r % 3 == 2 { 0.0 } else { 1.0 }).collect());
    feed.set("normaliser", vec![1.0 / 7.0]);
    feed.set("share", vec![0.5]);
    feed.set(COUNTED, vec![1.0; rows]);
    feed.tokens = tokens;
    feed
}

fn loss(training: &mut dyn Training, feed: &Feed) -> f64 {
    training.evaluate(feed).unwrap().iter().find(|n| n.name == "loss").unwrap().values[0]
}

/// Differences along a direction over all parameters at once.
fn slope_error(training: &mut dyn Training, feed: &Feed) -> f64 {
    training.micro(feed).unwrap();
    let n = training.parameters().len();
    let start: Vec<Vec<f64>> = (0..n).map(|i| training.read(i).unwrap()).collect();
    let gradients: Vec<Vec<f64>> = (0..n).map(|i| training.gradient(i).unwrap()).collect();
    let mut rng = crate::support::rng::Rng(5);
    let mut worst = 0f64;
    for _ in 0..2 {
        let along: Vec<Vec<f64>> = start.iter().map(|w| w.iter().map(|_| f64::from(rng.normal())).collect()).collect();
        let flat = |x: &[Vec<f64>]| x.iter().flatten().copied().collect::<Vec<f64>>();
        let length = flat(&along).iter().map(|v| v * v).sum::<f64>().sqrt();
        let slope: f64 = flat(&gradients).iter().zip(flat(&along)).map(|(g, d)| g * d / length).sum();
        let mut at = |h: f64| {
            for (i, (w, d)) in start.iter().zip(&along).enumerate() {
                let moved: Vec<f64> = w.iter().zip(d).map(|(w, d)| w + h * d / length).collect();
                training.write(i, &moved).unwrap();
            }
            loss(training, feed)
        };
        let h = 1e-3;
        let found = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        let norm = flat(&gradients).iter().map(|g| g * g).sum::<f64>().sqrt();
        let scale = slope.abs().max(norm / (flat(&start).len() as f64).sqrt());
        worst = worst.max((found - slope).abs() / scale);
    }
    worst
}

#[test]
fn every_family_trains_or_is_refused_by_name() {
    for name in goldens::families() {
        let golden = goldens::golden(name);
        let made = program(name, &|_| true);
        if let Some((_, word)) = REFUSED.iter().find(|(n, _)| *n == name) {
            let error = made.unwrap_err().to_string();
            assert!(error.contains(word), "{name}: {error}");
            continue;
        }
        // Factors and selection biases of routers have no gradient.
        let frozen = |n: &str| n.contains("exp_probs_b") || n.ends_with("ffn_down_exps.scale");
        let made = program(name, &|n| !frozen(n)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut training = reference::train(made, Precision::F64).unwrap();
        let feed = feed(&golden.ids);
        let outputs = training.evaluate(&feed).unwrap();
        let logits = &outputs.iter().find(|n| n.name == "logits").unwrap().values;
        let want: Vec<f64> = golden.logits.iter().map(|v| f64::from(*v)).collect();
        let vocab = want.len() / golden.ids.len();
        let size: f64 = want.iter().map(|w| w * w).sum();
        let error: f64 = logits.iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!(error <= 1e-10 * size, "{name}: logits are off by an NMSE of {:.1e}", error / size);
        // The second sequence is the beginning of the first.
        let second = &logits[want.len()..];
        let off = second.iter().zip(&logits[..5 * vocab]).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= 1e-9, "{name}: a packed sequence sees another, or its positions go on: {off:.1e}");
        let error = slope_error(&mut *training, &feed);
        assert!(error <= 1e-6, "{name}: gradients are off by {error:.1e}");
    }
}

#[test]
fn twice_the_weight_of_the_balance_doubles_its_gradient_at_the_router() {
    let ids = goldens::golden("mixtral").ids;
    let gradient = |weight: f64| {
        let definition = goldens::defined("mixtral", false);
        let graph = for_training(&definition.program.graph, 64).unwrap();
        let balance = RouterLoss::named(Term::Balance, "hf");
        let objective = Objective { balance, balance_weight: weight, ..Objective::default() };
        let graph = language_model(graph, &objective).unwrap();
        let program = Program::new(graph, definition.program.weights.to_vec()).unwrap();
        let program = TrainProgram::new(&program, &|n| n.contains("ffn_gate_inp"), &[]).unwrap();
        let mut training = reference::train(program, Precision::F64).unwrap();
        training.micro(&feed(&ids)).unwrap();
        training.gradient(0).unwrap()
    };
    let [none, one, two] = [0.0, 1.0, 2.0].map(gradient);
    let of = |g: &[f64]| g.iter().zip(&none).map(|(g, n)| g - n).collect::<Vec<f64>>();
    let (one, two) = (of(&one), of(&two));
    assert!(one.iter().any(|g| g.abs() > 1e-9));
    assert!(one.iter().zip(&two).all(|(a, b)| (2.0 * a - b).abs() <= 1e-12));
}

#[test]
fn micro_batches_of_any_size_give_the_gradient_of_the_whole() {
    let golden = goldens::golden("mixtral");
    let sequences: Vec<Vec<u32>> =
        (0..8).map(|s| golden.ids.iter().map(|i| (i + s) % 32).take(3 + s as usize % 3).collect()).collect();
    let whole: f64 = sequences.iter().map(|s| s.len() as f64 - 1.0).sum();
    let gradient = |size: usize| {
        let mut training = reference::train(program("llama", &|_| true).unwrap(), Precision::F64).unwrap();
        for part in sequences.chunks(size) {
            let tokens: Vec<u32> = part.concat();
            let mut feed = Feed { rows: tokens.len(), ..Feed::default() };
            let (mut starts, mut weights) = (vec![], vec![]);
            for s in part {
                starts.extend(vec![starts.len() as u32; s.len()]);
                // Masks differ from sequence to sequence: the first row of each counts nothing.
                weights.extend((0..s.len()).map(|r| f64::from(u8::from(r > 0))));
            }
            feed.set_ids("targets", tokens.iter().map(|t| (t * 7 + 3) % 32).collect());
            feed.set_ids("starts", starts);
            feed.set("weights", weights);
            feed.set("normaliser", vec![1.0 / whole]);
            feed.set("share", vec![part.len() as f64 / sequences.len() as f64]);
            feed.tokens = tokens;
            training.micro(&feed).unwrap();
        }
        (0..training.parameters().len()).flat_map(|i| training.gradient(i).unwrap()).collect::<Vec<f64>>()
    };
    let all = gradient(8);
    let largest = all.iter().fold(0f64, |m, v| m.max(v.abs()));
    for size in [1, 2, 3] {
        let off = gradient(size).iter().zip(&all).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= 1e-6 * largest, "micro-batches of {size} sequences: {off:.1e}");
    }
}
