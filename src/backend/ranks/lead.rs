//! Rank 0: a model whose executors say each step to the other ranks and run it together with them.
//!
//! One step at a time is between the ranks, of whichever executor: a second one that is begun meanwhile waits for the first.

use super::{
    World, as_step,
    message::{Command, WrittenSequence},
};
use crate::{
    backend::{
        KernelTime, Loaded, Program,
        runner::{Budget, Executor, ExecutorStep, ExpertSlotUse, OwnedStep, Results, RunnerOptions, StateCopy, Status},
    },
    error::{Error, Result},
};
use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// This rank's part of a model as the whole model. The others follow until all that was made of it is gone.
pub fn lead(local: Box<dyn Loaded>, world: Arc<World>) -> Box<dyn Loaded> {
    let line = Line { world, turn: AtomicU32::new(0), next: AtomicU32::new(1), state: Mutex::default() };
    Box::new(Led { local, line: Arc::new(line) })
}

struct Led {
    local: Box<dyn Loaded>,
    line: Arc<Line>,
}

/// The way to the other ranks.
struct Line {
    world: Arc<World>,
    /// The executor whose step is between the ranks; 0: none.
    turn: AtomicU32,
    next: AtomicU32,
    state: Mutex<LineState>,
}

#[derive(Default)]
struct LineState {
    words: Vec<u32>,
    /// Executors that went while it was another's turn.
    dropped: Vec<u32>,
}

impl Line {
    /// Whether it is this executor's turn now.
    fn take(&self, id: u32) -> bool {
        self.turn.compare_exchange(0, id, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn give(&self, id: u32) {
        _ = self.turn.compare_exchange(id, 0, Ordering::Release, Ordering::Relaxed);
    }

    /// Says something; it must be the caller's turn.
    fn say(&self, command: &Command) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let LineState { words, dropped } = &mut *state;
        for id in dropped.drain(..) {
            Command::Drop(id).encode(words);
            self.world.broadcast(words)?;
        }
        command.encode(words);
        self.world.broadcast(words)
    }

    /// Says something and does the same here, between two steps.
    fn together<T>(&self, id: u32, command: &Command, own: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.take(id) {
            return Err(Error::Invalid("the ranks run a step of another session: finish or cancel it first".into()));
        }
        let done = self.say(command).and_then(|()| own());
        self.give(id);
        done
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.world.is_apart() {
            return;
        }
        if let Err(e) = self.say(&Command::End) {
            tracing::warn!("the other ranks were not told that this is the end: {e}");
        }
    }
}

impl Loaded for Led {
    fn describe(&self) -> String {
        self.local.describe()
    }

    fn program(&self) -> &Program {
        self.local.program()
    }

    fn executor(&self, options: RunnerOptions) -> Result<Box<dyn Executor>> {
        let id = self.line.next.fetch_add(1, Ordering::Relaxed);
        let agreed = || self.line.world.agree(self.local.executor(options));
        let local = self.line.together(id, &Command::Executor(id, options), agreed)?;
        let (step, phase) = (OwnedStep::default(), Phase::Idle);
        Ok(Box::new(LedExecutor { local, line: self.line.clone(), id, step, phase }))
    }

    fn weight_bytes(&self) -> u64 {
        self.local.weight_bytes()
    }
}

/// How far the step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is none.
    Idle,
    /// It waits for its turn.
    Begun,
    /// All ranks run it.
    Running,
}

struct LedExecutor {
    local: Box<dyn Executor>,
    line: Arc<Line>,
    id: u32,
    step: OwnedStep,
    phase: Phase,
}

impl LedExecutor {
    /// Says the step to the others, where it is its turn; whether it was.
    fn start(&mut self) -> Result<bool> {
        if !self.line.take(self.id) {
            return Ok(false);
        }
        // Before it is said: what is refused here is refused alone.
        if let Err(e) = self.local.begin(&as_step(&self.step)) {
            self.line.give(self.id);
            self.phase = Phase::Idle;
            return Err(e);
        }
        self.phase = Phase::Running;
        let step = std::mem::take(&mut self.step);
        let command = Command::Step(self.id, step);
        let said = self.line.say(&command);
        if let Command::Step(_, step) = command {
            self.step = step;
        }
        said.map(|()| true)
    }

    fn end(&mut self) {
        self.phase = Phase::Idle;
        self.line.give(self.id);
    }

    /// Runs the step to its end, for the other ranks do so.
    fn finish(&mut self) -> Result<()> {
        let mut unwanted = Results::default();
        while self.local.poll(Budget::UNLIMITED, &mut unwanted)? != Status::Done {
            self.local.wait()?;
        }
        Ok(())
    }
}

impl Executor for LedExecutor {
    fn begin(&mut self, step: &ExecutorStep<'_>) -> Result<()> {
        if self.phase != Phase::Idle {
            return Err(Error::Invalid("a step is begun before the last is done".into()));
        }
        if !step.inputs.is_empty() {
            return Err(Error::Unsupported("steps with named inputs on several ranks".into()));
        }
        self.step.fill(step)?;
        self.phase = Phase::Begun;
        Ok(())
    }

    fn poll(&mut self, budget: Budget, out: &mut Results) -> Result<Status> {
        match self.phase {
            Phase::Idle => return Ok(Status::Idle),
            Phase::Begun => {
                if !self.start()? {
                    return Ok(Status::Pending);
                }
            }
            Phase::Running => {}
        }
        match self.local.poll(budget, out) {
            Ok(Status::Done) => {
                self.end();
                Ok(Status::Done)
            }
            // The others are in the middle of it.
            Err(e) => {
                self.line.world.part();
                Err(e)
            }
            waiting => waiting,
        }
    }

    fn wait(&mut self) -> Result<()> {
        if self.phase == Phase::Running { self.local.wait() } else { Ok(()) }
    }

    fn cancel(&mut self) -> usize {
        let before = std::mem::replace(&mut self.phase, Phase::Idle);
        if before != Phase::Running {
            return 0;
        }
        // The other ranks cannot be called back: the step is done, and nobody looks at what it comes to.
        if self.line.world.is_apart() || self.finish().is_err() {
            self.line.world.part();
            self.local.cancel();
        }
        self.line.give(self.id);
        1
    }

    fn copy_prefix(&mut self, from: usize, to: usize, positions: usize) -> Result<()> {
        let command = Command::CopyPrefix(self.id, [from, to, positions]);
        self.line.together(self.id, &command, || self.local.copy_prefix(from, to, positions))
    }

    fn copy_states(&mut self, from: StateCopy, to: StateCopy) -> Result<()> {
        let command = Command::CopyStates(self.id, [from, to]);
        self.line.together(self.id, &command, || self.local.copy_states(from, to))
    }

    fn layout(&self) -> &'static str {
        self.local.layout()
    }

    fn sequence_bytes(&self, positions: usize, states: bool) -> usize {
        self.local.sequence_bytes(positions, states)
    }

    fn page_parts(&mut self) -> Vec<usize> {
        self.local.page_parts()
    }

    fn read_sequence(
        &mut self,
        sequence: usize,
        positions: Range<usize>,
        states: Option<StateCopy>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        // All ranks have the same.
        self.local.read_sequence(sequence, positions, states, out)
    }

    fn write_sequence(&mut self, sequence: usize, positions: Range<usize>, states: bool, bytes: &[u8]) -> Result<()> {
        let written = WrittenSequence { sequence, positions: positions.clone(), states, bytes: bytes.to_vec() };
        let command = Command::Write(self.id, written);
        self.line.together(self.id, &command, || self.local.write_sequence(sequence, positions, states, bytes))
    }

    fn memory_bytes(&self) -> u64 {
        self.local.memory_bytes()
    }

    fn expert_slots(&mut self) -> Result<Vec<ExpertSlotUse>> {
        self.local.expert_slots()
    }

    fn profile(&mut self, _step: &ExecutorStep<'_>) -> Result<Option<Vec<KernelTime>>> {
        // A clock around every kernel of one rank would have the others wait.
        Ok(None)
    }
}

impl Drop for LedExecutor {
    fn drop(&mut self) {
        self.cancel();
        if self.line.world.is_apart() {
            return;
        }
        if self.line.take(self.id) {
            if let Err(e) = self.line.say(&Command::Drop(self.id)) {
                tracing::warn!("the other ranks were not told of a session's end: {e}");
            }
            self.line.give(self.id);
        } else {
            let mut state = self.line.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.dropped.push(self.id);
        }
    }
}
