//! Steps of a single sequence, as most tests want them.

use moeray::{
    Result,
    backend::{
        KernelTime, Output,
        runner::{Row, Runner, RunnerOptions, Token},
    },
    quant::KvType,
};

/// Rows of one sequence that follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// Position of the first.
    pub past: usize,
    /// How many of the last have outputs.
    pub outputs: usize,
    /// Named inputs.
    pub inputs: &'a [(&'a str, &'a [f32])],
}

impl Step<'_> {
    /// The rows, the last with logits.
    pub fn rows(&self) -> Vec<Row> {
        let first = self.tokens.len().saturating_sub(self.outputs);
        let row = |(i, id): (usize, &u32)| Row {
            token: Token::Id(*id),
            sequence: 0,
            position: self.past + i,
            logits: i >= first,
            choose: None,
            hidden: false,
        };
        self.tokens.iter().enumerate().map(row).collect()
    }
}

/// A runner of one sequence.
pub trait OneSequence {
    /// Runs a step and leaves all of the graph's outputs in `out`.
    fn run(&mut self, step: Step<'_>, out: &mut Vec<Output>) -> Result<()>;

    /// Times a step's kernels.
    fn time(&mut self, step: Step<'_>) -> Result<Option<Vec<KernelTime>>>;
}

impl OneSequence for Runner {
    fn run(&mut self, step: Step<'_>, out: &mut Vec<Output>) -> Result<()> {
        let rows = step.rows();
        let results =
            self.step(&moeray::backend::runner::Step { rows: &rows, masks: &[], inputs: step.inputs, trace: true })?;
        out.clone_from(&results.outputs);
        Ok(())
    }

    fn time(&mut self, step: Step<'_>) -> Result<Option<Vec<KernelTime>>> {
        let rows = step.rows();
        self.profile(&moeray::backend::runner::Step { rows: &rows, masks: &[], inputs: step.inputs, trace: true })
    }
}

/// The size of a runner of one sequence.
pub fn one(ctx: usize, ubatch: usize, kv: KvType) -> RunnerOptions {
    RunnerOptions { ctx, sequences: 1, ubatch, kv }
}
