//! An executor over runners of the old form: whole steps at a time, one row of choices a step, nothing saved.

use super::{
    BatchRow, BatchRunner, Runner, Step,
    runner::{Budget, Chosen, Executor, ExecutorStep, Results, Row, RunnerOptions, StateCopy, Status, Token},
};
use crate::{
    backend::{KernelTime, Output},
    error::{Error, Result},
    sampler::Sampling,
};
use std::{collections::VecDeque, task::Waker};

/// Refuses sizes of 0.
///
/// # Errors
/// [`Error::Invalid`].
pub(super) fn check_size(o: &RunnerOptions) -> Result<()> {
    if o.ctx == 0 || o.ubatch == 0 || o.sequences == 0 {
        return Err(Error::Invalid(
            "a context and a step have at least one token, and a runner has at least one sequence".into(),
        ));
    }
    Ok(())
}

enum Old {
    One(Box<dyn Runner>),
    Several(Box<dyn BatchRunner>),
}

#[derive(Default)]
struct Begun {
    rows: Vec<Row>,
    outputs: usize,
    inputs: Vec<(String, Vec<f32>)>,
    submitted: bool,
}

/// See the [module](self).
pub(super) struct Bridge {
    old: Old,
    steps: VecDeque<Begun>,
    tokens: Vec<u32>,
    depth: usize,
}

impl Bridge {
    pub fn one(mut old: Box<dyn Runner>) -> Self {
        let depth = if old.picker().is_some() { 2 } else { 1 };
        Bridge { old: Old::One(old), steps: VecDeque::new(), tokens: vec![], depth }
    }

    pub fn several(old: Box<dyn BatchRunner>) -> Self {
        Bridge { old: Old::Several(old), steps: VecDeque::new(), tokens: vec![], depth: 1 }
    }

    /// Queues a step that chooses a token.
    fn submit(&mut self, at: usize) -> Result<()> {
        let begun = &mut self.steps[at];
        let (Old::One(old), Some(last)) = (&mut self.old, begun.rows.last()) else { return Ok(()) };
        let (Some(picker), Some(random)) = (old.picker(), last.choose) else { return Ok(()) };
        let (past, draw) = (begun.rows[0].position, (random >> 32) as u32);
        begun.submitted = true;
        if begun.rows[0].token == Token::Last {
            return picker.advance(past, draw);
        }
        ids(&begun.rows, &mut self.tokens);
        let inputs: Vec<(&str, &[f32])> = begun.inputs.iter().map(|(n, d)| (n.as_str(), &d[..])).collect();
        picker.feed(Step { tokens: &self.tokens, past, outputs: 1, inputs: &inputs }, draw)
    }

    /// Runs the oldest step, which chooses nothing.
    fn run(&mut self, out: &mut Vec<Output>) -> Result<()> {
        let begun = &self.steps[0];
        match &mut self.old {
            Old::One(old) => {
                ids(&begun.rows, &mut self.tokens);
                let inputs: Vec<(&str, &[f32])> = begun.inputs.iter().map(|(n, d)| (n.as_str(), &d[..])).collect();
                let past = begun.rows[0].position;
                old.step(Step { tokens: &self.tokens, past, outputs: begun.outputs, inputs: &inputs }, out)
            }
            Old::Several(old) => {
                ids(&begun.rows, &mut self.tokens);
                let row =
                    |(r, token): (&Row, &u32)| BatchRow { token: *token, sequence: r.sequence, position: r.position };
                let rows: Vec<BatchRow> = begun.rows.iter().zip(&self.tokens).map(row).collect();
                old.step(&rows, begun.outputs, out)
            }
        }
    }
}

fn ids(rows: &[Row], to: &mut Vec<u32>) {
    to.clear();
    to.extend(rows.iter().map(|r| if let Token::Id(id) = r.token { id } else { 0 }));
}

fn unsupported() -> Error {
    Error::Unsupported("sequences of this backend are not copied or saved".into())
}

impl Executor for Bridge {
    fn set_sampler(&mut self, _sequence: usize, s: &Sampling<'_>) -> Result<bool> {
        let Old::One(old) = &mut self.old else { return Ok(false) };
        if s.masked || !s.bias.is_empty() {
            return Ok(false);
        }
        let o = s.options;
        let sampling = super::Sampling {
            temperature: o.temperature,
            top_k: o.top_k,
            top_p: o.top_p,
            min_p: o.min_p,
            repeat_penalty: o.repeat_penalty,
            repeat_last_n: o.repeat_last_n,
            forbidden: s.forbidden,
        };
        old.picker().map_or(Ok(false), |p| p.begin(&sampling, s.recent))
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn begin(&mut self, step: &ExecutorStep<'_>) -> Result<()> {
        let choosing = step.rows.iter().filter(|r| r.choose.is_some()).count();
        if choosing > 0 && (step.outputs > 1 || step.trace || step.rows.iter().any(|r| r.logits)) {
            return Err(Error::Unsupported("this device chooses one token a step and gives nothing else".into()));
        }
        self.steps.push_back(Begun {
            rows: step.rows.to_vec(),
            outputs: step.outputs,
            inputs: step.inputs.iter().map(|(n, d)| (n.to_string(), d.to_vec())).collect(),
            submitted: false,
        });
        Ok(())
    }

    fn poll(&mut self, _budget: Budget, out: &mut Results) -> Result<Status> {
        for i in 0..self.steps.len() {
            let begun = &self.steps[i];
            if begun.rows.last().is_none_or(|r| r.choose.is_none()) {
                break;
            }
            if !begun.submitted {
                self.submit(i)?;
            }
        }
        let Some(oldest) = self.steps.front() else { return Ok(Status::Idle) };
        out.tokens.clear();
        if !oldest.submitted {
            self.run(&mut out.outputs)?;
        } else if let Old::One(old) = &mut self.old {
            out.outputs.clear();
            let chosen = match old.picker().map_or(Ok(0), |p| p.take()) {
                Ok(id) => Chosen::Token(id),
                Err(Error::Model(_)) => Chosen::NotFinite,
                Err(Error::Invalid(_)) => Chosen::NothingAllowed,
                Err(e) => return Err(e),
            };
            out.tokens.push(chosen);
        }
        self.steps.pop_front();
        Ok(Status::Done)
    }

    fn wake(&mut self, _waker: &Waker) -> bool {
        false
    }

    fn cancel(&mut self) -> usize {
        let submitted = self.steps.iter().filter(|s| s.submitted).count();
        self.steps.clear();
        if let Old::One(old) = &mut self.old
            && let Some(picker) = old.picker()
        {
            picker.discard();
        }
        submitted
    }

    fn copy_prefix(&mut self, _from: usize, _to: usize, _positions: usize) -> Result<()> {
        Err(unsupported())
    }

    fn copy_states(&mut self, from: StateCopy, to: StateCopy) -> Result<()> {
        match &mut self.old {
            Old::One(old) if from.sequence == to.sequence && to.snapshot => old.keep_states(),
            _ => Err(unsupported()),
        }
    }

    fn layout(&self) -> &'static str {
        "none"
    }

    fn sequence_bytes(&self, _positions: usize, _states: bool) -> usize {
        0
    }

    fn read_sequence(&mut self, _: usize, _: usize, _: Option<StateCopy>, _: &mut Vec<u8>) -> Result<()> {
        Err(unsupported())
    }

    fn write_sequence(&mut self, _: usize, _: usize, _: bool, _: &[u8]) -> Result<()> {
        Err(unsupported())
    }

    fn memory_bytes(&self) -> u64 {
        match &self.old {
            Old::One(old) => old.memory_bytes(),
            Old::Several(old) => old.memory_bytes(),
        }
    }

    fn profile(&mut self, step: &ExecutorStep<'_>) -> Result<Option<Vec<KernelTime>>> {
        let Old::One(old) = &mut self.old else { return Ok(None) };
        ids(step.rows, &mut self.tokens);
        let past = step.rows.first().map_or(0, |r| r.position);
        old.profile(Step { tokens: &self.tokens, past, outputs: step.outputs, inputs: step.inputs })
    }
}
