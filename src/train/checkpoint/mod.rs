//! Checkpoints: what a run needs to go on as if it had not been interrupted.
//!
//! A checkpoint is a folder `checkpoint-000500` with `model.safetensors` (every parameter that is trained, f32, by its
//! canonical name),
//! `optimizer.safetensors` and `trainer.json`. It is written under another name, made durable, and renamed: a folder of that
//! name is whole, whenever the process or the machine ends. `trainer.json` holds the sizes and checksums of the other files, so
//! that one that was damaged later is not taken for good.

mod tensors;

use super::{data::Cursor, learner::Learner, optimizer::Optimizer};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};
pub(super) use tensors::checksum;
use tensors::{Reader, Writer};

/// The version of `trainer.json`.
const VERSION: u32 = 1;
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const TRAINER: &str = "trainer.json";

/// What a trainer remembers beside tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Steps that were taken, those without an update counted.
    pub step: u64,
    /// The place in the data.
    pub cursor: Cursor,
    /// Tokens that were learnt from.
    pub tokens: u64,
    /// Steps that were skipped, because a loss or a gradient was no number.
    pub skipped: u64,
    /// How many of them were the last, one behind the other.
    pub skipped_in_row: u32,
    /// The best loss of an evaluation, and its step.
    pub best: Option<(f64, u64)>,
    /// Evaluations since then.
    pub since_best: u32,
    /// Steps of each slice of the parameters, as the optimizer counts them.
    pub optimizer_steps: Vec<(String, Vec<u64>)>,
}

impl TrainState {
    /// Whether the counts can be of one run.
    fn is_possible(&self) -> bool {
        let counted = self.optimizer_steps.iter().flat_map(|(_, steps)| steps).all(|t| *t <= self.step);
        let best = self.best.is_none_or(|(_, step)| step <= self.step);
        counted
            && best
            && self.step < u64::MAX
            && self.skipped <= self.step
            && u64::from(self.skipped_in_row) <= self.skipped
    }
}

/// Weights after a step that no run can go on from.
fn poisoned(name: &str, step: u64) -> Error {
    Error::Model(format!(
        "{name} holds numbers that are none (NaN or infinite) after step {step}, so nothing is written; checkpoints of earlier \
         steps stay; a lower learning_rate or more warmup_steps help"
    ))
}

/// `trainer.json`.
#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    moeray: String,
    state: TrainState,
    /// The keys of the configuration that the weights depend on.
    config: serde_json::Map<String, serde_json::Value>,
    /// Sizes and checksums of the other files.
    files: BTreeMap<String, (u64, u32)>,
}

/// The checkpoints of a run: the folders in its output folder.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    /// How many are kept; 0 for all.
    keep: usize,
    config: serde_json::Map<String, serde_json::Value>,
    /// The folder, held for this run alone.
    held: Arc<OnceLock<File>>,
}

/// A checkpoint that a run goes on from.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// Its folder.
    pub path: PathBuf,
    /// What the trainer remembers.
    pub state: TrainState,
}

impl Checkpoints {
    /// The checkpoints in `folder`. `config` holds what must be equal to go on. Nothing is written yet.
    pub fn new(folder: &Path, keep: usize, config: serde_json::Map<String, serde_json::Value>) -> Self {
        Checkpoints { folder: folder.to_owned(), keep, config, held: Arc::default() }
    }

    /// Makes the folder where it is not there, and takes away what was left half-written. The folder is this run's until it ends.
    ///
    /// # Errors
    /// [`Error::Write`] where the folder cannot be made; [`Error::Invalid`] where another run holds it.
    pub fn prepare(&self) -> Result<()> {
        self.make_folder()?;
        self.hold()?;
        self.sweep();
        Ok(())
    }

    /// Refuses a folder in which another run is under way: both would write the same files. Where a system cannot lock folders,
    /// nothing is said.
    fn hold(&self) -> Result<()> {
        if self.held.get().is_some() {
            return Ok(());
        }
        let Ok(folder) = File::open(&self.folder) else { return Ok(()) };
        if let Err(TryLockError::WouldBlock) = folder.try_lock() {
            return Err(Error::Invalid(format!(
                "another run writes in {} now; another output_dir keeps them apart",
                self.folder.display()
            )));
        }
        let _ = self.held.set(folder);
        Ok(())
    }

    fn make_folder(&self) -> Result<()> {
        fs::create_dir_all(&self.folder).map_err(|source| Error::Write { path: self.folder.clone(), source })
    }

    /// Writes a checkpoint; then lets go of the oldest beyond those that are kept. `best` says that it is the best by evaluation so
    /// far: the best is kept beside the others.
    ///
    /// # Errors
    /// [`Error::Write`] that names the file: a full disk leaves earlier checkpoints as they are, and nothing half-written.
    pub fn save(&self, state: &TrainState, learner: &mut dyn Learner, optimizer: &Optimizer) -> Result<PathBuf> {
        self.make_folder()?;
        let target = self.folder.join(name(state.step));
        let unfinished = self.folder.join(format!(".{}.{}.part", name(state.step), std::process::id()));
        let made = self.write(&unfinished, state, learner, optimizer).and_then(|()| {
            let io = |source| Error::Write { path: target.clone(), source };
            if target.exists() {
                // The same step once more, after a return to an earlier one: a folder cannot be renamed over another.
                self.discard(&target);
            }
            fs::rename(&unfinished, &target).map_err(io)?;
            sync_folder(&self.folder).map_err(io)
        });
        if let Err(e) = made {
            let _ = fs::remove_dir_all(&unfinished);
            return Err(e);
        }
        self.let_go(state);
        Ok(target)
    }

    fn write(&self, folder: &Path, state: &TrainState, learner: &mut dyn Learner, optimizer: &Optimizer) -> Result<()> {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir(folder).map_err(|source| Error::Write { path: folder.to_owned(), source })?;
        let saved = optimizer.save();
        let trained = learner.parameters().iter().zip(optimizer.trained()).filter(|(_, t)| *t);
        let weights = trained.map(|(p, _)| (p.name.clone(), p.shape.clone())).collect();
        let mut model = Writer::create(&folder.join(MODEL), weights)?;
        let names: Vec<String> = learner.parameters().iter().map(|p| p.name.clone()).collect();
        learner.each(&mut |i, slot| {
            if slot.weights.iter().any(|w| !w.is_finite()) {
                return Err(poisoned(&names[i], state.step));
            }
            model.add(slot.weights)
        })?;
        let model = model.finish()?;
        let moments = saved.tensors.iter().map(|(name, x)| (name.clone(), vec![x.len()])).collect();
        let mut moments = Writer::create(&folder.join(OPTIMIZER), moments)?;
        saved.tensors.iter().try_for_each(|(_, x)| moments.add(x))?;
        let moments = moments.finish()?;
        let written = Written {
            version: VERSION,
            moeray: env!("CARGO_PKG_VERSION").into(),
            state: TrainState { optimizer_steps: saved.steps, ..state.clone() },
            config: self.config.clone(),
            files: BTreeMap::from([(MODEL.into(), model), (OPTIMIZER.into(), moments)]),
        };
        let path = folder.join(TRAINER);
        let io = |source| Error::Write { path: path.clone(), source };
        let text = serde_json::to_string_pretty(&written).map_err(|e| io(e.into()))?;
        fs::write(&path, text).map_err(io)?;
        File::open(&path).and_then(|f| f.sync_all()).map_err(io)?;
        sync_folder(folder).map_err(io)
    }

    /// Steps and folders of the checkpoints that there are, oldest first.
    pub fn list(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
        let step = |p: &PathBuf| p.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse::<u64>().ok();
        let mut all: Vec<_> = entries.filter_map(|p| Some((step(&p)?, p))).collect();
        all.sort();
        all
    }

    /// Removes the oldest beyond those that are kept, but for the best. Checkpoints of later steps are of a run that was given up
    /// when this one began anew, or from an earlier step: the next run would go on from them in place of this one.
    fn let_go(&self, state: &TrainState) {
        let (later, all): (Vec<_>, Vec<_>) = self.list().into_iter().partition(|(step, _)| *step > state.step);
        for (_, path) in later {
            tracing::warn!("{} is of another run, which this one replaces: it is removed", path.display());
            self.discard(&path);
        }
        if self.keep == 0 || all.len() <= self.keep {
            return;
        }
        let best = state.best.map(|(_, step)| step);
        let surplus = all.len() - self.keep;
        for (_, path) in all.into_iter().take(surplus).filter(|(step, _)| Some(*step) != best) {
            self.discard(&path);
        }
    }

    /// Removes a checkpoint: renamed first, so that half of one is never seen.
    fn discard(&self, path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let gone = self.folder.join(format!(".{name}.{}.gone", std::process::id()));
        let done = fs::rename(path, &gone).and_then(|()| fs::remove_dir_all(&gone));
        if let Err(e) = done {
            tracing::warn!("cannot remove {}: {e}", path.display());
        }
    }

    /// Removes what interrupted runs left: checkpoints, models and logs under their passing names.
    fn sweep(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
        let left = |p: &PathBuf| {
            let name = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ours = [".checkpoint-", ".model.gguf.", ".adapter.gguf.", "model.", "log."];
            (name.ends_with(".part") && ours.iter().any(|o| name.starts_with(o)))
                || (name.ends_with(".gone") && name.starts_with(".checkpoint-"))
        };
        for path in entries.filter(left) {
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }

    /// The newest checkpoint that is whole; damaged ones are passed over with a warning.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it was made with another configuration: the key is named; and where there are some and none is whole:
    /// a run that began anew would replace them.
    pub fn newest(&self) -> Result<Option<Resumed>> {
        let mut last = None;
        for (_, path) in self.list().into_iter().rev() {
            match self.open(&path) {
                Ok(resumed) => return Ok(Some(resumed)),
                Err(e @ Error::Invalid(_)) => return Err(e),
                Err(e) => {
                    tracing::warn!("{} is passed over: {e}", path.display());
                    last = Some(e);
                }
            }
        }
        match last {
            Some(e) => Err(Error::Invalid(format!(
                "no checkpoint in {} is whole ({e}); resume = \"never\" begins anew and replaces them, another output_dir leaves \
                 them",
                self.folder.display()
            ))),
            None => Ok(None),
        }
    }

    /// The checkpoint that a person names.
    ///
    /// # Errors
    /// As [`Checkpoints::open`]; [`Error::Invalid`] where there is none.
    pub fn named(&self, path: &Path) -> Result<Resumed> {
        if path.join(TRAINER).is_file() {
            return self.open(path);
        }
        let there: Vec<String> = self.list().into_iter().map(|(_, p)| p.display().to_string()).collect();
        let there = if there.is_empty() { String::new() } else { format!("; there are {}", there.join(", ")) };
        Err(Error::Invalid(format!(
            "resume: {} is no checkpoint (a folder with {TRAINER}){there}; \"auto\" takes the newest of output_dir, \"never\" \
             begins anew",
            path.display()
        )))
    }

    /// The checkpoint in this folder.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Format`] where a file is missing or damaged; [`Error::Invalid`] where it was made with another
    /// configuration: the key is named.
    pub fn open(&self, path: &Path) -> Result<Resumed> {
        let json = path.join(TRAINER);
        let io = |source| Error::Io { path: json.clone(), source };
        let damaged = |what: String| Error::format(json.display().to_string(), what);
        // A pipe would be waited for, without an end.
        if !fs::metadata(&json).map_err(io)?.is_file() {
            return Err(damaged("is no file".into()));
        }
        let text = fs::read(&json).map_err(io)?;
        let written: Written =
            serde_json::from_slice(&text).map_err(|e| damaged(format!("is no trainer's state: {e}")))?;
        if written.version != VERSION {
            return Err(damaged(format!("has version {}; {VERSION} is read here", written.version)));
        }
        for name in [MODEL, OPTIMIZER] {
            let Some((size, sum)) = written.files.get(name) else {
                return Err(damaged(format!("does not say what {name} holds")));
            };
            tensors::verify(&path.join(name), *size, *sum)?;
        }
        if !written.state.is_possible() {
            return Err(damaged("says of its steps what cannot be".into()));
        }
        same(&path.display().to_string(), &written.config, &self.config)?;
        Ok(Resumed { path: path.to_owned(), state: written.state })
    }
}

/// Refuses another configuration, by key.
fn same(
    path: &str,
    then: &serde_json::Map<String, serde_json::Value>,
    now: &serde_json::Map<String, serde_json::Value>,
) -> Result<()> {
    for (key, value) in now {
        let before = then.get(key).unwrap_or(&serde_json::Value::Null);
        if before != value && key.contains(' ') {
            return Err(Error::Invalid(format!(
                "{path} was made with another run: {key}: {before} then, and {value} now; a run goes on with what it began with; \
                 resume = \"never\" begins anew"
            )));
        }
        if before != value {
            return Err(Error::Invalid(format!(
                "{path} was made with {key} = {before}, and the configuration says {value}: a run goes on with what it began \
                 with; resume = \"never\" begins anew"
            )));
        }
    }
    Ok(())
}

impl Resumed {
    /// Puts the weights and the optimizer's state in place.
    ///
    /// # Errors
    /// [`Error::Format`] where a parameter is missing or has another size.
    pub fn restore(&self, learner: &mut dyn Learner, optimizer: &mut Optimizer) -> Result<()> {
        let model = Reader::open(&self.path.join(MODEL))?;
        let names: Vec<String> = learner.parameters().iter().map(|p| p.name.clone()).collect();
        learner.each(&mut |i, slot| model.read(&names[i], slot.weights))?;
        let moments = Reader::open(&self.path.join(OPTIMIZER))?;
        optimizer.load(&self.state.optimizer_steps, &mut |name, numbers| moments.read(name, numbers))
    }
}

fn name(step: u64) -> String {
    format!("checkpoint-{step:06}")
}

/// Makes the names in a folder durable; where a system cannot open folders, it does so by itself.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}
