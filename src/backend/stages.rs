//! A model whose layers lie on several devices, one after the other: what goes over a border goes through the host.
//!
//! One step at a time goes through all of them, so that the devices take turns: this is for models that do not fit one device, not for
//! speed. Tokens are chosen by the host.

use super::{
    Loaded, Program,
    runner::{
        Budget, Executor, ExecutorStep, ExpertSlotUse, Output, OwnedStep, Results, Row, RunnerOptions, StateCopy,
        Status,
    },
};
use crate::{
    error::{Error, Result},
    graph::Stage,
};
use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    task::Waker,
};

/// A stage that is on its device.
pub struct Placed {
    /// What it is.
    pub stage: Stage,
    /// Where it is.
    pub loaded: Box<dyn Loaded>,
}

/// The whole program from its stages, in order.
pub fn staged(program: Program, stages: Vec<Placed>) -> Box<dyn Loaded> {
    let (places, loaded) = stages.into_iter().map(|p| (p.stage, p.loaded)).unzip();
    Box::new(Staged { program, stages: places, loaded })
}

struct Staged {
    program: Program,
    stages: Vec<Stage>,
    loaded: Vec<Box<dyn Loaded>>,
}

impl Loaded for Staged {
    fn describe(&self) -> String {
        let all = self.stages.iter().zip(&self.loaded);
        let parts = all.map(|(s, l)| format!("layers {}-{} on {}", s.layers.start, s.layers.end - 1, l.describe()));
        parts.collect::<Vec<_>>().join("; ")
    }

    fn program(&self) -> &Program {
        &self.program
    }

    fn executor(&self, options: RunnerOptions) -> Result<Box<dyn Executor>> {
        let executors: Vec<_> = self.loaded.iter().map(|l| l.executor(options)).collect::<Result<_>>()?;
        let kinds: Vec<&str> = executors.iter().map(|e| e.layout()).collect();
        let ends: Vec<usize> = self.stages.iter().map(|s| s.layers.end).collect();
        Ok(Box::new(StagedExecutor {
            layout: layout(&kinds, &ends),
            outputs: self.program.graph.outputs.len(),
            results: self.stages.iter().map(|_| Results::default()).collect(),
            stages: self.stages.iter().map(|s| Arc::new(s.clone())).collect(),
            executors,
            step: OwnedStep::default(),
            fed: vec![],
            at: None,
        }))
    }

    fn weight_bytes(&self) -> u64 {
        self.loaded.iter().map(|l| l.weight_bytes()).sum()
    }
}

/// A name for the bytes of sequences on these devices: made once for each kind.
fn layout(kinds: &[&str], ends: &[usize]) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let sum = super::runner::checksum(format!("{kinds:?} {ends:?}").as_bytes());
    let name = format!("layers {:08x}", (sum ^ sum >> 32) as u32);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    match names.get(name.as_str()) {
        Some(known) => known,
        None => {
            let kept: &'static str = Box::leak(name.into_boxed_str());
            names.insert(kept);
            kept
        }
    }
}

struct StagedExecutor {
    stages: Vec<Arc<Stage>>,
    executors: Vec<Box<dyn Executor>>,
    /// What each stage came to.
    results: Vec<Results>,
    /// Outputs of the whole graph.
    outputs: usize,
    layout: &'static str,
    step: OwnedStep,
    /// Its rows without what is wanted at the end.
    fed: Vec<Row>,
    /// The stage that runs, and whether it was begun; `None`: no step.
    at: Option<(usize, bool)>,
}

/// What one of these stages has made for a later one.
fn handed<'a>(stages: &[Arc<Stage>], results: &'a [Results], name: &str) -> Result<&'a [f32]> {
    let found = stages.iter().zip(results).find_map(|(s, r)| {
        let at = s.program.graph.outputs.iter().position(|(n, _)| n == name)?;
        r.outputs.get(at)
    });
    let missing = || Error::Graph(format!("{name} is read and no stage has made it"));
    found.map(|o| &o.f32[..]).ok_or_else(missing)
}

impl StagedExecutor {
    /// Begins the step on a stage, with what earlier stages have made.
    fn begin_stage(&mut self, stage: usize) -> Result<()> {
        let s = self.stages[stage].clone();
        let mut inputs: Vec<(&str, &[f32])> = self.step.inputs.iter().map(|(n, d)| (n.as_str(), &d[..])).collect();
        for name in &s.reads {
            inputs.push((name, handed(&self.stages[..stage], &self.results, name)?));
        }
        let last = stage + 1 == self.stages.len();
        let step = ExecutorStep {
            rows: if last { &self.step.rows } else { &self.fed },
            outputs: self.step.outputs,
            moves: &self.step.moves,
            masks: &[],
            inputs: &inputs,
            // What is handed over has a row for every token.
            trace: !last || self.step.trace,
        };
        self.executors[stage].begin(&step)
    }

    /// The outputs of the whole graph, from those of all stages.
    fn gather(&mut self, out: &mut Results) {
        out.outputs.resize_with(self.outputs, Output::default);
        for (stage, results) in self.stages.iter().zip(&mut self.results) {
            for (which, from) in stage.outputs.iter().zip(&mut results.outputs) {
                let Some(to) = which.and_then(|i| out.outputs.get_mut(i)) else { continue };
                std::mem::swap(to, from);
            }
        }
        if !self.step.trace {
            // Earlier stages were traced for what they hand over.
            for i in self.stages[..self.stages.len() - 1].iter().flat_map(|s| s.outputs.iter().flatten()) {
                let o = &mut out.outputs[*i];
                o.rows = 0;
                o.f32.clear();
                o.u32.clear();
            }
        }
        out.tokens.clear();
    }
}

impl Executor for StagedExecutor {
    fn begin(&mut self, step: &ExecutorStep<'_>) -> Result<()> {
        if self.at.is_some() {
            return Err(Error::Invalid("a step is begun before the last is done".into()));
        }
        self.step.fill(step)?;
        self.fed.clear();
        self.fed.extend(step.rows.iter().map(|r| Row { logits: false, hidden: false, ..*r }));
        self.at = Some((0, false));
        Ok(())
    }

    fn poll(&mut self, budget: Budget, out: &mut Results) -> Result<Status> {
        loop {
            let Some((stage, begun)) = self.at else { return Ok(Status::Idle) };
            if !begun {
                self.begin_stage(stage)?;
                self.at = Some((stage, true));
            }
            match self.executors[stage].poll(budget, &mut self.results[stage])? {
                Status::Done if stage + 1 == self.stages.len() => {
                    self.at = None;
                    self.gather(out);
                    return Ok(Status::Done);
                }
                Status::Done => {
                    self.at = Some((stage + 1, false));
                    if !budget.is_unlimited() {
                        return Ok(Status::Pending);
                    }
                }
                waiting => return Ok(waiting),
            }
        }
    }

    fn wait(&mut self) -> Result<()> {
        match self.at {
            Some((stage, true)) => self.executors[stage].wait(),
            Some((_, false)) | None => Ok(()),
        }
    }

    fn wake(&mut self, waker: &Waker) -> bool {
        match self.at {
            Some((stage, true)) => self.executors[stage].wake(waker),
            Some((_, false)) | None => false,
        }
    }

    fn cancel(&mut self) -> usize {
        let Some((stage, begun)) = self.at.take() else { return 0 };
        let touched = if begun { self.executors[stage].cancel() } else { 0 };
        // Stages before this one have moved their states on.
        usize::from(touched > 0 || stage > 0)
    }

    fn copy_prefix(&mut self, from: usize, to: usize, positions: usize) -> Result<()> {
        self.executors.iter_mut().try_for_each(|e| e.copy_prefix(from, to, positions))
    }

    fn copy_states(&mut self, from: StateCopy, to: StateCopy) -> Result<()> {
        self.executors.iter_mut().try_for_each(|e| e.copy_states(from, to))
    }

    fn layout(&self) -> &'static str {
        self.layout
    }

    fn sequence_bytes(&self, positions: usize, states: bool) -> usize {
        self.executors.iter().map(|e| e.sequence_bytes(positions, states)).sum()
    }

    fn page_parts(&mut self) -> Vec<usize> {
        self.executors.iter_mut().flat_map(|e| e.page_parts()).collect()
    }

    fn read_sequence(
        &mut self,
        sequence: usize,
        positions: Range<usize>,
        states: Option<StateCopy>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        // Keys and values of all stages, then states of all.
        self.executors.iter_mut().try_for_each(|e| e.read_sequence(sequence, positions.clone(), None, out))?;
        if states.is_some() {
            self.executors.iter_mut().try_for_each(|e| e.read_sequence(sequence, 0..0, states, out))?;
        }
        Ok(())
    }

    fn write_sequence(&mut self, sequence: usize, positions: Range<usize>, states: bool, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        let mut take = |n: usize| {
            let (front, behind) = rest.split_at_checked(n)?;
            rest = behind;
            Some(front)
        };
        let short = || Error::Invalid("the bytes of a sequence are cut short".into());
        for e in &mut self.executors {
            let own = take(e.sequence_bytes(positions.len(), false)).ok_or_else(short)?;
            e.write_sequence(sequence, positions.clone(), false, own)?;
        }
        for e in self.executors.iter_mut().filter(|_| states) {
            let own = take(e.sequence_bytes(0, true)).ok_or_else(short)?;
            e.write_sequence(sequence, 0..0, true, own)?;
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.executors.iter().map(|e| e.memory_bytes()).sum()
    }

    fn expert_slots(&mut self) -> Result<Vec<ExpertSlotUse>> {
        let all: Vec<_> = self.executors.iter_mut().map(|e| e.expert_slots()).collect::<Result<_>>()?;
        Ok(all.into_iter().flatten().collect())
    }
}
