//! Logs: what people and programs read of a run.

use super::bigram::Bigram;
use super::trainer::{VOCAB, config, corpus};
use moeray::{
    CancelToken,
    train::{
        Event, Trainer,
        metrics::{CsvLog, EvalRecord, EventLog, JsonLog, StepRecord, load_svg, loss_svg},
    },
};
use serde_json::Value as Json;
use std::{fs, path::Path};

/// A run of so many steps with all logs in `dir`, of which it goes on.
fn run(dir: &Path, steps: u64) -> (Vec<StepRecord>, Vec<EvalRecord>) {
    let mut c = config(dir, "eval_steps = 5\nlr_scheduler = \"constant\"\nsave_steps = 10\n");
    c.max_steps = steps;
    let mut t = Trainer::new(Bigram::new(VOCAB, 64), c, corpus(40), Some(corpus(10))).unwrap();
    let step = t.state().step;
    t.log(Box::new(CsvLog::open(&dir.join("log.csv"), step).unwrap()));
    t.log(Box::new(JsonLog::open(&dir.join("log.jsonl"), step).unwrap()));
    t.log(Box::new(EventLog::create(&dir.join("tensorboard"), step).unwrap()));
    let (mut records, mut evals) = (vec![], vec![]);
    t.run(&CancelToken::new(), &mut |e| match e {
        Event::Step(r) => records.push(r.clone()),
        Event::Evaluated(r) => evals.push(r.clone()),
        Event::Saved(_) => {}
    })
    .unwrap();
    (records, evals)
}

/// CRC-32C, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |c, b| {
        (0..8).fold(c ^ u32::from(*b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 })
    })
}

/// The fields of a protobuf message: number, and the value of a varint or the bytes.
fn fields(mut b: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(b: &mut &[u8]) -> u64 {
        let (mut n, mut shift) = (0, 0);
        loop {
            let byte = b[0];
            *b = &b[1..];
            n |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return n;
            }
        }
    }
    let mut all = vec![];
    while !b.is_empty() {
        let key = varint(&mut b);
        let size = match key & 7 {
            0 => {
                all.push((key >> 3, varint(&mut b), &b[..0]));
                continue;
            }
            1 => 8,
            2 => varint(&mut b) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        all.push((key >> 3, 0, &b[..size]));
        b = &b[size..];
    }
    all
}

/// Step, tag and value of every scalar of an event file, by the formats' own descriptions.
fn scalars(file: &Path) -> Vec<(u64, String, f32)> {
    let bytes = fs::read(file).unwrap();
    let (mut b, mut all, mut first) = (&bytes[..], vec![], true);
    let word = |b: &[u8]| u32::from_le_bytes(b[..4].try_into().unwrap());
    let masked = |b: &[u8]| crc(b).rotate_right(15).wrapping_add(0xa282_ead8);
    while !b.is_empty() {
        let n = u64::from_le_bytes(b[..8].try_into().unwrap()) as usize;
        assert_eq!(word(&b[8..]), masked(&b[..8]));
        let event = &b[12..12 + n];
        assert_eq!(word(&b[12 + n..]), masked(event));
        b = &b[16 + n..];
        let event = fields(event);
        let step = event.iter().find(|f| f.0 == 2).unwrap().1;
        if first {
            assert!(event.iter().any(|f| f.0 == 3 && f.2 == b"brain.Event:2"));
            first = false;
        }
        for (_, _, value) in event.iter().filter(|f| f.0 == 5).flat_map(|f| fields(f.2)) {
            let value = fields(value);
            let tag = String::from_utf8(value.iter().find(|f| f.0 == 1).unwrap().2.to_vec()).unwrap();
            let number = f32::from_le_bytes(value.iter().find(|f| f.0 == 2).unwrap().2.try_into().unwrap());
            all.push((step, tag, number));
        }
    }
    all
}

#[test]
fn logs_of_a_run_that_was_interrupted_hold_every_step_once() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), 20);
    // As if the run had been killed behind step 17: what was written since the checkpoint of step 10 comes again.
    fs::remove_dir_all(dir.path().join("checkpoint-000020")).unwrap();
    let mut half = fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    half.push_str("{\"step\": 18, \"lo");
    fs::write(dir.path().join("log.jsonl"), half).unwrap();
    let (records, evals) = run(dir.path(), 30);
    assert_eq!((records[0].step, records.len(), evals.len()), (11, 20, 4));

    let text = fs::read_to_string(dir.path().join("log.jsonl")).unwrap();
    let lines: Vec<Json> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let steps: Vec<u64> = lines.iter().filter(|l| l["loss"].is_number()).map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=30).collect::<Vec<_>>());
    assert_eq!(lines.iter().filter(|l| l["eval_loss"].is_number()).count(), 6);
    let last = lines.iter().rfind(|l| l["loss"].is_number()).unwrap();
    assert_eq!(last["loss"].as_f64(), Some(records[19].loss));
    assert_eq!(last["loads"][0]["tokens"].as_array().unwrap().len(), 4);

    let text = fs::read_to_string(dir.path().join("log.csv")).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|l| l.split(',').collect()).collect();
    assert!(rows.iter().all(|r| r.len() == rows[0].len()));
    assert_eq!(
        rows.iter().skip(1).map(|r| r[0].parse::<u64>().unwrap()).collect::<Vec<_>>(),
        (1..=30).collect::<Vec<_>>()
    );
    let column = |name: &str| rows[0].iter().position(|c| *c == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(rows[30][column("loss")].parse::<f64>().unwrap(), records[19].loss);
    assert_eq!(rows[30][column("eval_loss")].parse::<f64>().unwrap(), evals[3].loss);
    assert_eq!(rows[29][column("eval_loss")], "");
    for name in
        ["learning_rate", "grad_norm", "tokens_per_second", "expert_load_max_over_mean", "dropped_share", "load_0_3"]
    {
        assert!(rows[30][column(name)].parse::<f64>().is_ok(), "{name}");
    }
}

#[test]
fn event_files_follow_their_format() {
    let dir = tempfile::tempdir().unwrap();
    let (records, evals) = run(dir.path(), 12);
    let files: Vec<_> = fs::read_dir(dir.path().join("tensorboard")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() == 1 && files[0].file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
    let all = scalars(&files[0]);
    let curve = |tag: &str| all.iter().filter(|s| s.1 == tag).map(|s| (s.0, s.2)).collect::<Vec<_>>();
    assert_eq!(curve("train/loss"), records.iter().map(|r| (r.step, r.loss as f32)).collect::<Vec<_>>());
    assert_eq!(
        curve("train/learning_rate"),
        records.iter().map(|r| (r.step, r.learning_rate as f32)).collect::<Vec<_>>()
    );
    assert_eq!(curve("eval/loss"), evals.iter().map(|r| (r.step, r.loss as f32)).collect::<Vec<_>>());
    let load = |e: usize| curve(&format!("expert_load/0/{e}"));
    let sum: f32 = (0..4).map(|e| load(e)[0].1).sum();
    assert!((sum - 1.0).abs() < 1e-6 && load(3).len() == 12);
    // The packages that people read such files with, where they are there: `MOERAY_TENSORBOARD=PYTHON tests/run train::logs`.
    if let Some(python) = std::env::var_os("MOERAY_TENSORBOARD") {
        let script = "import sys\nfrom tensorboard.backend.event_processing.event_accumulator import EventAccumulator as A\n\
            a = A(sys.argv[1]); a.Reload()\nfor e in a.Scalars('train/loss'): print(e.step, repr(e.value))\n";
        let out = std::process::Command::new(python)
            .args(["-c", script])
            .arg(dir.path().join("tensorboard"))
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let got: Vec<(u64, f32)> = text
            .lines()
            .map(|l| l.split_once(' ').unwrap())
            .map(|(s, v)| (s.parse().unwrap(), v.parse::<f64>().unwrap() as f32))
            .collect();
        assert_eq!(got, curve("train/loss"), "{}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn pictures_show_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (records, evals) = run(dir.path(), 12);
    let loss = loss_svg("a < run", &records, &evals);
    assert!(loss.starts_with("<svg") && loss.ends_with("</svg>\n") && loss.contains("a &lt; run"));
    assert!(loss.matches("<polyline").count() >= 8 && loss.contains(&format!("{:.4}", evals.last().unwrap().loss)));
    let load = load_svg("load", &records).unwrap();
    assert!(load.contains("layer 0") && load.matches('M').count() >= 48);
    assert!(loss_svg("nothing", &[], &[]).contains("no step"));
    assert!(load_svg("nothing", &[]).is_none());
    let mut flat = records;
    flat.iter_mut().for_each(|r| r.terms.clear());
    flat.iter_mut().for_each(|r| r.loss = f64::NAN);
    assert!(loss_svg("no number", &flat, &[]).contains("no step"));
}
