//! Runs in a process of their own: killed at random moments, and on a full disk.

use super::{bigram::Bigram, trainer};
use moeray::{
    CancelToken,
    train::{Trainer, config::LogName, data::below},
};
use serde_json::Value as Json;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

const FOLDER: &str = "MOERAY_TEST_TRAIN_FOLDER";

/// The run of the child; in the test's own process it does nothing.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let dir = Path::new(&folder);
    let mut model = Bigram::new(trainer::VOCAB, 64);
    model.pause = Duration::from_millis(2);
    let mut config = trainer::config(dir, "save_steps = 3\nsave_total_limit = 2\n");
    config.log = vec![LogName::Jsonl];
    let mut t = Trainer::new(model, config, trainer::corpus(40), None).unwrap();
    t.open_logs().unwrap();
    if let Err(e) = t.run(&CancelToken::new(), &mut |_| {}) {
        println!("the run ended: {e}");
        std::process::exit(3);
    }
}

/// The command that runs [`child`]; `before` is a line of the shell.
fn command(folder: &Path, before: &str) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut c = Command::new("sh");
    let line = format!("{before} exec \"$0\" --exact train::kill::child --nocapture --test-threads 1");
    c.args(["-c", &line])
        .arg(exe)
        .env(FOLDER, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    c
}

/// Loss by step, as the log has it.
fn losses(dir: &Path) -> Vec<(u64, String)> {
    let text = fs::read_to_string(dir.join("log.jsonl")).unwrap();
    let one = |line: &str| {
        let object: Json = serde_json::from_str(line).unwrap();
        (object["step"].as_u64().unwrap(), object["loss"].to_string())
    };
    text.lines().map(one).collect()
}

#[cfg(unix)]
#[test]
fn killed_at_twenty_random_moments_it_ends_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (calm, stormy) = (dir.path().join("calm"), dir.path().join("stormy"));
    assert!(command(&calm, "").status().unwrap().success());
    let mut kills = 0;
    while kills < 20 {
        let mut run = command(&stormy, "").spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20 + u64::from(below(77, 1, kills, 120))));
        // SIGKILL; a run that has ended before begins anew from its last checkpoint, and has nothing left to do.
        run.kill().unwrap();
        run.wait().unwrap();
        kills += 1;
        for entry in fs::read_dir(&stormy).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with("checkpoint-") {
                let files = fs::read_dir(&path).unwrap().count();
                assert_eq!(files, 3, "{} is not whole", path.display());
            }
        }
    }
    assert!(command(&stormy, "").status().unwrap().success());
    let files = ["model.safetensors", "optimizer.safetensors"];
    for file in files {
        let read = |d: &Path| fs::read(d.join("checkpoint-000060").join(file)).unwrap();
        assert!(read(&calm) == read(&stormy), "{file}");
    }
    assert_eq!(losses(&calm), losses(&stormy));
    assert_eq!(losses(&calm).len(), 60);
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = command(dir.path(), "").spawn().unwrap();
    let kept = dir.path().join("checkpoint-000003");
    let begun = std::time::Instant::now();
    while !kept.is_dir() && !dir.path().join("checkpoint-000006").is_dir() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no checkpoint appears");
        std::thread::sleep(Duration::from_millis(2));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let list = || {
        let all = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut all: Vec<_> = all.filter(|n| n.contains("checkpoint")).collect();
        all.sort();
        all
    };
    // Files of at most 8 blocks (of 512 or 1024 bytes): the log fits for a while, a checkpoint does not. The signal that comes with
    // it is left aside, so that writing fails.
    let out = command(dir.path(), "trap '' XFSZ; ulimit -f 8;").output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(3), "{said}");
    assert!(said.contains("cannot write"), "{said}");
    let whole: Vec<_> = list().into_iter().filter(|n| n.starts_with("checkpoint")).collect();
    assert!(!whole.is_empty() && list().len() == whole.len(), "nothing half-written stays: {:?}", list());
    // And the run goes on from it when there is room again.
    assert!(command(dir.path(), "").status().unwrap().success());
    assert!(dir.path().join("checkpoint-000060").is_dir());
}
