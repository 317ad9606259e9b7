//! Which rows come next: a pure function from what sequences wait for and a budget to the rows of one step.
//!
//! Sequences that generate come first, one row each, so that nobody's stream stops for somebody else's prompt (Agrawal et al.
//! 2024, Sarathi-Serve). What the budget leaves goes to pieces of prompts, shared by deficits (after Shreedhar
//! and Varghese 1995): between clients evenly, and within a client between its requests. The budget is a time, not a number of
//! rows: what a row costs depends on model and device, and is learnt ([`Pace`]).
//!
//! Deliberately absent: clocks, tokens, HTTP.

mod allowance;
mod pace;

pub use allowance::{Allowance, Prompts};
pub use pace::Pace;

use std::collections::BTreeMap;

/// What a sequence waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The row of the token that was chosen last.
    Next,
    /// Rows of its prompt: so many are left, at least one.
    Prompt(usize),
}

impl Need {
    /// The rows that are left of its prompt.
    pub fn prompt(self) -> Option<usize> {
        match self {
            Need::Prompt(left) => Some(left),
            Need::Next => None,
        }
    }
}

/// A sequence that could take part in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The sequence. Each is named once.
    pub sequence: usize,
    /// Whose it is: clients share evenly, whatever the number of their requests.
    pub client: u64,
    /// What it waits for.
    pub need: Need,
}

/// Rows of a sequence in the next step, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The sequence.
    pub sequence: usize,
    /// How many rows.
    pub rows: usize,
}

/// What a step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most rows of a step.
    pub rows: usize,
    /// Most rows of prompts beside sequences that generate; at least one is given where prompts wait.
    pub prompt_rows: usize,
}

/// What is remembered from step to step: who is owed rows, and whose turn it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fairness {
    /// Rows that a prompt was given less than its share so far.
    owed: BTreeMap<usize, f64>,
    /// Generating sequences from this one on come first, where a step has less rows than there are of them.
    next_from: usize,
}

/// Rows that a prompt is owed at most.
const MOST_OWED: f64 = 1024.0;

impl Fairness {
    /// The rows of the next step: generating sequences in the order in which they come, then pieces of prompts. Empty only
    /// where nobody waits or the limits are 0.
    pub fn schedule(&mut self, waiting: &[Waiting], limits: Limits) -> Vec<Share> {
        let mut shares = self.next(waiting, limits.rows);
        let left = limits.rows - shares.len();
        // With nobody to wait for the end of the step it may be as long as the caller allows.
        let most = left.min(limits.prompt_rows.max(1));
        self.prompts(waiting, most, &mut shares);
        shares
    }

    /// A row for each generating sequence; in turn, where there are more of them than rows.
    fn next(&mut self, waiting: &[Waiting], rows: usize) -> Vec<Share> {
        let mut all: Vec<usize> = waiting.iter().filter(|w| w.need == Need::Next).map(|w| w.sequence).collect();
        all.sort_unstable();
        let from = all.partition_point(|s| *s < self.next_from);
        all.rotate_left(from);
        if rows < all.len() {
            self.next_from = all[rows];
            all.truncate(rows);
        } else {
            self.next_from = 0;
        }
        all.into_iter().map(|sequence| Share { sequence, rows: 1 }).collect()
    }

    /// Shares `rows` between prompts: each is owed its part, and the rows go to those that are owed most, in pieces.
    fn prompts(&mut self, waiting: &[Waiting], rows: usize, shares: &mut Vec<Share>) {
        let mut prompts: Vec<Prompt> = waiting.iter().filter_map(Prompt::of).collect();
        prompts.sort_unstable_by_key(|p| p.sequence);
        let of_client: Vec<usize> =
            prompts.iter().map(|p| prompts.iter().filter(|q| q.client == p.client).count()).collect();
        for (p, n) in prompts.iter_mut().zip(of_client) {
            p.weight = 1.0 / n as f64;
        }
        let rows = rows.min(prompts.iter().map(|p| p.left).sum());
        fill(&mut prompts, rows as f64);
        prompts.iter_mut().for_each(|p| p.owed = p.part + self.owed.get(&p.sequence).copied().unwrap_or_default());
        hand_out(&mut prompts, rows);
        self.owed = prompts.iter().map(|p| (p.sequence, p.balance().clamp(-MOST_OWED, MOST_OWED))).collect();
        shares.extend(prompts.iter().filter(|p| p.given > 0).map(|p| Share { sequence: p.sequence, rows: p.given }));
    }
}

/// Rows of one prompt, at least, before the next one gets some of the same step: a product over a few rows is dear, and of two prompts
/// that are read half nobody has anything.
const PIECE: usize = 64;

/// Gives `rows`, of which there are no more than are left of all, to those that are owed most, a piece or what each is owed in turn; of
/// equal ones the shortest is first.
fn hand_out(prompts: &mut [Prompt], mut rows: usize) {
    let mut order: Vec<&mut Prompt> = prompts.iter_mut().collect();
    order.sort_by(|a, b| b.owed.total_cmp(&a.owed).then(a.left.cmp(&b.left)));
    while rows > 0 {
        for p in &mut order {
            let piece = PIECE.max(p.balance().max(0.0) as usize);
            let more = piece.min(p.left - p.given).min(rows);
            p.given += more;
            rows -= more;
        }
    }
}

/// Parts of `rows` by weight, but none larger than what is left of its prompt.
fn fill(prompts: &mut [Prompt], mut rows: f64) {
    let mut open: Vec<&mut Prompt> = prompts.iter_mut().collect();
    while !open.is_empty() {
        let weights: f64 = open.iter().map(|p| p.weight).sum();
        let part = |p: &Prompt| rows * p.weight / weights;
        let (small, large): (Vec<_>, Vec<_>) = open.into_iter().partition(|p| p.left as f64 <= part(p));
        if small.is_empty() {
            large.into_iter().for_each(|p| p.part = rows * p.weight / weights);
            return;
        }
        for p in small {
            p.part = p.left as f64;
            rows -= p.part;
        }
        open = large;
    }
}

/// A prompt while rows are shared out.
struct Prompt {
    sequence: usize,
    client: u64,
    left: usize,
    weight: f64,
    /// Rows of this step that it should have.
    part: f64,
    /// The same with what it was owed before.
    owed: f64,
    given: usize,
}

impl Prompt {
    fn of(w: &Waiting) -> Option<Prompt> {
        let (sequence, client, left) = (w.sequence, w.client, w.need.prompt()?);
        Some(Prompt { sequence, client, left, weight: 1.0, part: 0.0, owed: 0.0, given: 0 })
    }

    /// What it is owed after this step.
    fn balance(&self) -> f64 {
        self.owed - self.given as f64
    }
}
