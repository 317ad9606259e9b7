//! Records as CSV and as JSON lines.

use super::{EvalRecord, Log, StepRecord};
use crate::{
    error::{Error, Result},
    train::learner::{ExpertLoad, LossTerm},
};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// A file that lines are added to.
struct Lines {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Lines {
    /// Opens a file and keeps those of its whole lines that `keep` says: what an interrupted run wrote behind its last checkpoint
    /// comes again.
    fn open(path: &Path, keep: impl Fn(&str) -> bool) -> Result<(Lines, Vec<String>)> {
        let io = |source| Error::Write { path: path.to_owned(), source };
        let before = match fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
            other => other.map_err(|source| Error::Io { path: path.to_owned(), source })?,
        };
        let text = String::from_utf8_lossy(&before);
        let whole = text.split_inclusive('\n').filter(|l| l.ends_with('\n')).map(str::trim_end);
        let kept: Vec<String> = whole.filter(|l| keep(l)).map(str::to_owned).collect();
        let beside = path.with_extension(format!("{}.part", std::process::id()));
        let text = kept.iter().fold(String::new(), |t, l| t + l + "\n");
        let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
        written.inspect_err(|_| drop(fs::remove_file(&beside))).map_err(io)?;
        let file = File::options().append(true).open(path).map_err(io)?;
        Ok((Lines { path: path.to_owned(), out: BufWriter::new(file) }, kept))
    }

    fn add(&mut self, line: &str) -> Result<()> {
        // A line appears at once: people and programs look at these files while a run goes on.
        let done = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
        done.map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    fn flush(&mut self) -> Result<()> {
        let done = self.out.flush().and_then(|()| self.out.get_ref().sync_data());
        done.map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}

/// A JSON object a line: steps, and evaluations (with `eval_loss`).
pub struct JsonLog(Lines);

impl JsonLog {
    /// Opens the file; lines of steps behind `step` go.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let keep = |line: &str| {
            let object: Option<serde_json::Value> = serde_json::from_str(line).ok();
            object.and_then(|o| o.get("step")?.as_u64()).is_some_and(|s| s <= step)
        };
        Ok(JsonLog(Lines::open(path, keep)?.0))
    }
}

impl Log for JsonLog {
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.0.add(&record.to_json().to_string())
    }

    fn evaluation(&mut self, record: &EvalRecord) -> Result<()> {
        self.0.add(&record.to_json().to_string())
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

/// The steps and evaluations of a JSON log up to `step`: what pictures need of them.
pub fn read_log(text: &str, step: u64) -> (Vec<StepRecord>, Vec<EvalRecord>) {
    let (mut steps, mut evals) = (vec![], vec![]);
    for line in text.lines() {
        let Ok(object) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let number = |key: &str| object.get(key).and_then(serde_json::Value::as_f64);
        let Some(at) = object.get("step").and_then(serde_json::Value::as_u64).filter(|s| *s <= step) else { continue };
        if let Some(loss) = number("eval_loss") {
            evals.push(EvalRecord { step: at, loss, ..EvalRecord::default() });
            continue;
        }
        let load = |l: &serde_json::Value| {
            let tokens = l.get("tokens")?.as_array()?.iter().filter_map(serde_json::Value::as_u64).collect();
            Some(ExpertLoad { layer: l.get("layer")?.as_u64()? as u32, tokens, dropped: 0 })
        };
        let loads = object.get("loads").and_then(serde_json::Value::as_array).into_iter().flatten().filter_map(load);
        let first = number("cross_entropy").or(number("loss")).unwrap_or(f64::NAN);
        steps.push(StepRecord {
            step: at,
            loss: number("loss").unwrap_or(f64::NAN),
            terms: vec![LossTerm { name: "cross_entropy", value: first, weight: 1.0 }],
            loads: loads.collect(),
            ..StepRecord::default()
        });
    }
    (steps, evals)
}

/// A row a step; `eval_loss` stands in the row of the step before the evaluation.
pub struct CsvLog {
    lines: Lines,
    /// The columns, where they are known already.
    columns: Option<Vec<String>>,
    /// A row that an evaluation may still belong to.
    waiting: Option<(StepRecord, Option<f64>)>,
}

impl CsvLog {
    /// Opens the file; rows of steps behind `step` go.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let keep = |line: &str| {
            let first = line.split(',').next().unwrap_or_default();
            step > 0 && (first == "step" || first.parse::<u64>().is_ok_and(|s| s <= step))
        };
        let (lines, kept) = Lines::open(path, keep)?;
        let columns = kept.first().map(|l| l.split(',').map(str::to_owned).collect());
        Ok(CsvLog { lines, columns, waiting: None })
    }

    fn write(&mut self) -> Result<()> {
        let Some((record, eval)) = self.waiting.take() else { return Ok(()) };
        let mut scalars = record.scalars();
        scalars.push(("skipped".into(), f64::from(u8::from(record.skipped))));
        for l in &record.loads {
            let cell = |(e, n): (usize, &u64)| (format!("load_{}_{e}", l.layer), *n as f64);
            scalars.extend(l.tokens.iter().enumerate().map(cell));
        }
        if self.columns.is_none() {
            let names = scalars.iter().map(|(n, _)| n.clone());
            let columns: Vec<String> = ["step".to_owned(), "eval_loss".into()].into_iter().chain(names).collect();
            self.lines.add(&columns.join(","))?;
            self.columns = Some(columns);
        }
        let cell = |column: &String| match column.as_str() {
            "step" => record.step.to_string(),
            "eval_loss" => eval.map_or(String::new(), |e| e.to_string()),
            name => scalars.iter().find(|(n, _)| n == name).map_or(String::new(), |(_, v)| v.to_string()),
        };
        let row: Vec<String> = self.columns.iter().flatten().map(cell).collect();
        self.lines.add(&row.join(","))
    }
}

impl Log for CsvLog {
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.write()?;
        self.waiting = Some((record.clone(), None));
        Ok(())
    }

    fn evaluation(&mut self, record: &EvalRecord) -> Result<()> {
        if let Some((_, eval)) = self.waiting.as_mut().filter(|(r, _)| r.step == record.step) {
            *eval = Some(record.loss);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.write()?;
        self.lines.flush()
    }
}
