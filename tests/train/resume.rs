//! Runs that go on as if they had not been interrupted, and checkpoints that are whole or not there.

use super::{
    bigram::Bigram,
    trainer::{VOCAB, config, corpus, finish, trainer},
};
use moeray::{
    CancelToken, Error,
    train::{Event, Trainer},
};
use std::{fs, path::Path};

fn folders(dir: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn a_cancelled_run_goes_on_bit_for_bit() {
    let more = "optimizer = \"adafactor\"\nunused_experts = \"decay\"\n";
    for more in ["", "optimizer = \"sgd\"\n", more, "expert_moments = \"factored_only\"\n"] {
        let dir = tempfile::tempdir().unwrap();
        let (losses, weights) = finish(trainer(config(&dir.path().join("a"), more)));
        let cancel = CancelToken::new();
        let mut got = vec![];
        for stop in [7, 31, 1000] {
            let mut t = trainer(config(&dir.path().join("b"), more));
            cancel.reset();
            let end = t.run(&cancel, &mut |e| {
                if let Event::Step(r) = e {
                    got.push(r.loss);
                    if r.step == stop {
                        cancel.cancel();
                    }
                }
            });
            assert!(if stop == 1000 { end.is_ok() } else { matches!(end, Err(Error::Cancelled)) });
            if stop == 1000 {
                assert!(weights == t.into_learner().weights, "{more:?}");
            }
        }
        assert!(losses == got, "{more:?}");
    }
}

#[test]
fn the_newest_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    finish(trainer(config(dir.path(), "save_steps = 10\nsave_total_limit = 2\n")));
    assert_eq!(folders(dir.path()), ["checkpoint-000050", "checkpoint-000060"]);
    let mut files = folders(&dir.path().join("checkpoint-000060"));
    files.sort();
    assert_eq!(files, ["model.safetensors", "optimizer.safetensors", "trainer.json"]);
    let all = tempfile::tempdir().unwrap();
    finish(trainer(config(all.path(), "save_steps = 10\nsave_total_limit = 0\n")));
    assert_eq!(folders(all.path()).len(), 6);
}

#[test]
fn damaged_checkpoints_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let more = "save_steps = 10\nsave_total_limit = 0\n";
    finish(trainer(config(dir.path(), more)));
    let at = |step: u64, file: &str| dir.path().join(format!("checkpoint-{step:06}")).join(file);
    // A bit of a weight, a missing end, a missing file, a state that is none.
    let mut bytes = fs::read(at(60, "model.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(at(60, "model.safetensors"), bytes).unwrap();
    let bytes = fs::read(at(50, "optimizer.safetensors")).unwrap();
    fs::write(at(50, "optimizer.safetensors"), &bytes[..bytes.len() - 4]).unwrap();
    fs::remove_file(at(40, "model.safetensors")).unwrap();
    fs::write(at(30, "trainer.json"), "{").unwrap();
    assert_eq!(trainer(config(dir.path(), more)).state().step, 20);
    let by_name = format!("{more}resume = {:?}\n", at(60, "").to_str().unwrap());
    let e =
        Trainer::new(Bigram::new(VOCAB, 64), config(dir.path(), &by_name), corpus(40), None).map(|_| ()).unwrap_err();
    assert!(e.to_string().contains("checksum"), "{e}");
    assert_eq!(trainer(config(dir.path(), &format!("{more}resume = \"never\"\n"))).state().step, 0);
}

#[test]
fn another_configuration_is_refused_by_key() {
    let dir = tempfile::tempdir().unwrap();
    finish(trainer(config(dir.path(), "")));
    for (more, key) in [
        ("weight_decay = 0.5\n", "weight_decay"),
        ("seed = 7\n", "seed"),
        ("adam_beta2 = 0.95\n", "adam_beta2"),
        ("freeze = [\"experts\"]\n", "freeze"),
    ] {
        let text = more.replace("weight_decay = 0.5\n", "");
        let mut c = config(dir.path(), &text);
        if key == "weight_decay" {
            c.weight_decay = 0.5;
        }
        let e = Trainer::new(Bigram::new(VOCAB, 64), c, corpus(40), None).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains(key) && e.contains("never"), "{e}");
    }
    // What weights do not depend on may change.
    trainer(config(dir.path(), "save_steps = 3\nthreads = 1\n"));
}

#[test]
fn what_interrupted_runs_left_goes() {
    let dir = tempfile::tempdir().unwrap();
    for left in [".checkpoint-000010.1.part", ".checkpoint-000010.1.gone"] {
        fs::create_dir(dir.path().join(left)).unwrap();
        fs::write(dir.path().join(left).join("model.safetensors"), "half").unwrap();
    }
    fs::create_dir(dir.path().join("checkpoint-x")).unwrap();
    fs::create_dir(dir.path().join("model.1.part")).unwrap();
    for left in [".model.gguf.1-0.part", "log.1.part"] {
        fs::write(dir.path().join(left), "half").unwrap();
    }
    let mut t = trainer(config(dir.path(), ""));
    assert_eq!(t.state().step, 0);
    t.open_logs().unwrap();
    assert_eq!(folders(dir.path()), ["checkpoint-x"]);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let c = config(&file.join("out"), "");
    let mut t = trainer(c);
    let e = t.open_logs().unwrap_err();
    assert!(matches!(e, Error::Write { .. }) && e.to_string().contains("file/out"), "{e}");
}
