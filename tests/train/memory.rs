//! The memory that `--dry-run` says is the memory that a run takes.

use super::model::{DEMO, config};
use crate::alloc;
use moeray::train::{Trainer, config::TrainConfig};

/// What a run says that it takes, and the most that it had at once in two steps. On one thread, whose memory is counted.
fn taken(words: &[&str]) -> (u64, usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let common =
        ["threads=1", "val_set_size=0", "architecture.hidden_size=128", "architecture.moe_intermediate_size=128"];
    let words: Vec<String> = common.iter().chain(words).map(|w| (*w).to_string()).collect();
    let config = TrainConfig::read(path.as_ref(), &words).unwrap();
    alloc::peak(|| {
        let mut trainer = Trainer::open(config).unwrap();
        let forecast = trainer.forecast().unwrap();
        trainer.step().unwrap();
        trainer.step().unwrap();
        forecast.bytes()
    })
}

#[test]
fn a_dry_run_says_what_a_run_takes() {
    let tokenizer = format!("tokenizer={DEMO}");
    for words in [
        &["micro_batch_size=8"][..],
        &["micro_batch_size=8", "recompute=layer"],
        &["micro_batch_size=2", "optimizer=sgd", "momentum=0"],
    ] {
        let (said, most) = taken(&[words, &[tokenizer.as_str()]].concat());
        let off = said as f64 / most as f64;
        assert!((0.9..=1.1).contains(&off), "{words:?}: {said} bytes were said, {most} were taken");
    }
}
