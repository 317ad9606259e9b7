//! Several sequences in one step: each row of a step is a token of some sequence at some position. Prompts and generated
//! tokens mix freely, as long as a step's rows hold them.

use super::{Output, Runner, Step};
use crate::{
    error::{Error, Result},
    quant::KvType,
};

/// Size of a batch: fixed when it is made.
#[derive(Clone, Copy, Debug)]
pub struct BatchOptions {
    /// Positions in the KV cache of each sequence.
    pub ctx: usize,
    /// Sequences, each with a KV cache of its own.
    pub sequences: usize,
    /// Most rows of one step.
    pub rows: usize,
    /// Storage of keys and values.
    pub kv: KvType,
}

/// One row of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRow {
    /// The token.
    pub token: u32,
    /// Which sequence, below [`BatchOptions::sequences`].
    pub sequence: usize,
    /// Where in it. What lies in the cache from there on is forgotten.
    pub position: usize,
}

/// The state of several sequences.
pub trait BatchRunner: Send {
    /// Runs one step and leaves the graph's outputs in `out`, in the order of `graph.outputs`: for all rows, or for the last
    /// `outputs` of them, as the graph says. The rows of a sequence follow each other by position, with others between them
    /// or not.
    ///
    /// # Errors
    /// As [`Runner::step`], and [`Error::Invalid`] for a sequence that is not there or rows out of order.
    fn step(&mut self, rows: &[BatchRow], outputs: usize, out: &mut Vec<Output>) -> Result<()>;

    /// Bytes of KV caches and scratch.
    fn memory_bytes(&self) -> u64;
}

/// Checks that every backend makes before a step.
///
/// # Errors
/// As [`BatchRunner::step`] says.
pub fn check_batch(rows: &[BatchRow], outputs: usize, options: &BatchOptions) -> Result<()> {
    if rows.is_empty() || rows.len() > options.rows {
        return Err(Error::Invalid(format!("a step takes 1 to {} rows, not {}", options.rows, rows.len())));
    }
    if outputs > rows.len() {
        return Err(Error::Invalid(format!("{outputs} outputs of {} rows", rows.len())));
    }
    for (i, r) in rows.iter().enumerate() {
        if r.sequence >= options.sequences {
            return Err(Error::Invalid(format!("sequence {} of {}", r.sequence, options.sequences)));
        }
        if r.position >= options.ctx {
            return Err(Error::ContextFull { needed: r.position.saturating_add(1), capacity: options.ctx });
        }
        let before = rows[..i].iter().rev().find(|b| b.sequence == r.sequence);
        if before.is_some_and(|b| b.position + 1 != r.position) {
            return Err(Error::Invalid(format!("rows of sequence {} do not follow each other", r.sequence)));
        }
    }
    Ok(())
}

/// Sequences that are run one after the other, each on a runner of its own.
pub struct OneByOne {
    runners: Vec<Box<dyn Runner>>,
    options: BatchOptions,
    out: Vec<Output>,
    tokens: Vec<u32>,
}

impl OneByOne {
    /// One runner a sequence.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are none.
    pub fn new(runners: Vec<Box<dyn Runner>>, options: BatchOptions) -> Result<Self> {
        if runners.is_empty() || options.rows == 0 {
            return Err(Error::Invalid("a batch has at least one sequence and one row".into()));
        }
        Ok(OneByOne { runners, options, out: vec![], tokens: vec![] })
    }
}

impl BatchRunner for OneByOne {
    fn step(&mut self, rows: &[BatchRow], outputs: usize, out: &mut Vec<Output>) -> Result<()> {
        check_batch(rows, outputs, &self.options)?;
        let wanted = rows.len() - outputs;
        // Of each output the rows as they come, and which of the step's rows they are.
        let mut order: Vec<(Vec<usize>, Vec<usize>)> = vec![];
        let mut parts: Vec<Vec<Output>> = vec![];
        for (s, runner) in self.runners.iter_mut().enumerate() {
            let mine: Vec<usize> = (0..rows.len()).filter(|i| rows[*i].sequence == s).collect();
            let Some(first) = mine.first() else { continue };
            self.tokens.clear();
            self.tokens.extend(mine.iter().map(|i| rows[*i].token));
            let results: Vec<usize> = mine.iter().copied().filter(|i| *i >= wanted).collect();
            let past = rows[*first].position;
            let step = Step { tokens: &self.tokens, past, outputs: results.len(), inputs: &[] };
            runner.step(step, &mut self.out)?;
            order.push((mine, results));
            parts.push(self.out.clone());
        }
        let Some(shape) = parts.first() else { return Ok(()) };
        out.clear();
        for o in 0..shape.len() {
            // Whether it has a row for every token or only for those wanted.
            let all = parts.iter().zip(&order).all(|(p, (mine, _))| p[o].rows == mine.len());
            out.push(gather(&parts, &order, o, all));
        }
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.runners.iter().map(|r| r.memory_bytes()).sum()
    }
}

/// Output `o` of all sequences in the order of the step's rows.
fn gather(parts: &[Vec<Output>], order: &[(Vec<usize>, Vec<usize>)], o: usize, all: bool) -> Output {
    let mut rows: Vec<(usize, usize, usize)> = vec![];
    for (s, (mine, results)) in order.iter().enumerate() {
        let list = if all { mine } else { results };
        rows.extend(list.iter().enumerate().map(|(at, row)| (*row, s, at)));
    }
    rows.sort_unstable();
    let cols = parts.first().map_or(0, |p| p[o].cols);
    let mut out = Output { rows: rows.len(), cols, ..Output::default() };
    for (_, s, at) in rows {
        let from = &parts[s][o];
        let range = at * cols..(at + 1) * cols;
        out.f32.extend_from_slice(from.f32.get(range.clone()).unwrap_or_default());
        out.u32.extend_from_slice(from.u32.get(range).unwrap_or_default());
    }
    out
}
