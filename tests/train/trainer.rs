//! The loop on a model with exact gradients.

use super::bigram::Bigram;
use moeray::{
    CancelToken,
    train::{
        Event, Trainer,
        config::TrainConfig,
        data::{Corpus, Excess},
    },
};
use std::path::Path;

pub const VOCAB: usize = 24;

/// Texts in which a token mostly tells the next.
pub fn corpus(texts: u32) -> Corpus {
    let mut c = Corpus::new(VOCAB, 33);
    for i in 0..texts {
        let len = 4 + moeray::train::data::below(1, 1, i, 29);
        let mut ids = vec![moeray::train::data::below(1, 2, i, VOCAB as u32)];
        for j in 1..len {
            let noise = moeray::train::data::below(1, 3, i * 100 + j, 3);
            ids.push((ids[j as usize - 1] * 5 + 7 + noise) % VOCAB as u32);
        }
        let learnt = (0..len).map(|j| i % 3 > 0 || j * 2 > len).collect();
        c.add_sample("sample", ids, learnt, Excess::Raise).unwrap();
    }
    c
}

pub fn config(dir: &Path, more: &str) -> TrainConfig {
    let text = format!(
        "datasets = [{{ path = \"unused\" }}]\noutput_dir = {dir:?}\nsequence_len = 32\nmicro_batch_size = 2\n\
         learning_rate = 0.2\nwarmup_steps = 5\nmax_steps = 60\nweight_decay = 0.01\nmax_grad_norm = 0.5\nlog = []\n{more}"
    );
    TrainConfig::parse("test", &text, &[]).unwrap()
}

pub fn trainer(config: TrainConfig) -> Trainer<Bigram> {
    Trainer::new(Bigram::new(VOCAB, 64), config, corpus(40), None).unwrap()
}

pub fn finish(mut t: Trainer<Bigram>) -> (Vec<f64>, Vec<Vec<f32>>) {
    let mut losses = vec![];
    t.run(&CancelToken::new(), &mut |e| {
        if let Event::Step(r) = e {
            losses.push(r.loss);
        }
    })
    .unwrap();
    (losses, t.into_learner().weights)
}

#[test]
fn it_learns() {
    let dir = tempfile::tempdir().unwrap();
    let mut t =
        Trainer::new(Bigram::new(VOCAB, 64), config(dir.path(), "eval_steps = 20\n"), corpus(40), Some(corpus(60)))
            .unwrap();
    let (mut losses, mut evals) = (vec![], vec![]);
    let end = t
        .run(&CancelToken::new(), &mut |e| match e {
            Event::Step(r) => {
                assert!((r.terms[1].value - 1.0).abs() < 1e-12, "shares of a step are one");
                losses.push(r.loss);
            }
            Event::Evaluated(r) => evals.push((r.step, r.loss)),
            Event::Saved(_) => {}
        })
        .unwrap();
    assert_eq!((losses.len(), end.steps, end.skipped), (60, 60, 0));
    // A uniform guess has ln 24 = 3.18; three tokens are possible behind each.
    assert!(losses[0] > 3.0 && losses[59] < 1.8, "{losses:?}");
    assert_eq!(evals.iter().map(|e| e.0).collect::<Vec<_>>(), [20, 40, 60]);
    assert!(evals[2].1 < 2.0 && end.best == Some((evals[2].1, 60)), "{evals:?}");
    assert!(end.checkpoint.unwrap().ends_with("checkpoint-000060"));
}

#[test]
fn micro_batches_make_no_difference() {
    let run = |micro: usize, steps: usize| {
        let dir = tempfile::tempdir().unwrap();
        let more = format!("gradient_accumulation_steps = {steps}\n");
        let mut c = config(dir.path(), &more);
        c.micro_batch_size = micro;
        finish(trainer(c))
    };
    let (losses, weights) = run(8, 1);
    for (micro, steps) in [(4, 2), (2, 4), (1, 8)] {
        let (l, w) = run(micro, steps);
        assert!(losses.iter().zip(&l).all(|(a, b)| (a - b).abs() < 1e-5), "{micro}x{steps}: {losses:?} {l:?}");
        let far = weights.iter().flatten().zip(w.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-4, "{micro}x{steps}: {far}");
    }
}

#[test]
fn threads_make_no_difference() {
    let run = |threads: usize| {
        let dir = tempfile::tempdir().unwrap();
        finish(trainer(config(dir.path(), &format!("threads = {threads}\n"))))
    };
    assert!(run(1) == run(2));
}

#[test]
fn frozen_parameters_stay() {
    let dir = tempfile::tempdir().unwrap();
    let before = Bigram::new(VOCAB, 64).weights;
    let (_, after) = finish(trainer(config(dir.path(), "freeze = [\"experts\", \"token_embd*\"]\n")));
    let same: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a == b).collect();
    assert_eq!(same, [true, false, true, false]);
}

#[test]
fn steps_without_numbers_are_skipped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut t = trainer(config(dir.path(), "save_steps = 10\nmax_skipped_steps = 2\n"));
    t.learner().poison = vec![3, 7, 8];
    let mut skipped = vec![];
    let end = t
        .run(&CancelToken::new(), &mut |e| {
            if let Event::Step(r) = e {
                skipped.extend(r.skipped.then_some(r.step));
            }
        })
        .unwrap();
    assert_eq!((skipped.as_slice(), end.skipped, end.steps), (&[4, 8, 9][..], 3, 60));
    assert!(t.into_learner().weights.iter().flatten().all(|w| w.is_finite()));
}

#[test]
fn too_many_of_them_end_the_run_and_leave_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let more = "save_steps = 10\nmax_skipped_steps = 2\n";
    let mut t = trainer(config(dir.path(), more));
    t.learner().poison = (24..100).collect();
    let e = t.run(&CancelToken::new(), &mut |_| {}).unwrap_err().to_string();
    assert!(e.contains("3 steps in a row") && e.contains("checkpoint-000020") && e.contains("learning_rate"), "{e}");
    let mut t = trainer(config(dir.path(), more));
    assert_eq!((t.state().step, t.state().skipped), (20, 0));
    assert!(t.learner().weights.iter().flatten().all(|w| w.is_finite()));
}

#[test]
fn a_run_that_does_not_fit_is_refused_before_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let new = |c: TrainConfig, data: Corpus| {
        Trainer::new(Bigram::new(VOCAB, 64), c, data, None).map(|_| ()).unwrap_err().to_string()
    };
    let mut long = config(dir.path(), "");
    long.sequence_len = 65;
    assert!(new(long, corpus(4)).contains("sequence_len is 65"));
    assert!(new(config(dir.path(), "freeze = [\"*\"]\n"), corpus(4)).contains("no parameter"));
    assert!(new(config(dir.path(), "freeze = [\"shared\"]\n"), corpus(4)).contains("matches no parameter"));
    assert!(new(config(dir.path(), ""), Corpus::new(VOCAB, 33)).contains("no text"));
    assert!(new(config(dir.path(), "resume = \"/no/such/checkpoint\"\n"), corpus(4)).contains("/no/such/checkpoint"));
}

#[test]
fn evaluations_that_get_no_better_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut c = config(dir.path(), "eval_steps = 2\nearly_stopping_patience = 3\nval_set_size = 0.1\n");
    c.max_steps = 2000;
    c.learning_rate = 0.3;
    let mut t = Trainer::new(Bigram::new(VOCAB, 64), c, corpus(6), Some(corpus(60))).unwrap();
    let end = t.run(&CancelToken::new(), &mut |_| {}).unwrap();
    assert!(end.stopped_early && end.steps < 2000, "{end:?}");
    let (_, best) = end.best.unwrap();
    assert!(dir.path().join(format!("checkpoint-{best:06}")).is_dir(), "the best is kept");
}
