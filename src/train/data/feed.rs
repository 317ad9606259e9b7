//! Batches in order.

use super::{
    corpus::Corpus,
    hash,
    packing::{Packing, PackingOptions},
};
use crate::{
    error::{Error, Result},
    train::learner::MicroBatch,
};
use serde::{Deserialize, Serialize};

/// A place in the data: what a checkpoint keeps of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// How often all of the data was seen.
    pub epoch: u64,
    /// Sequences of the epoch that were seen.
    pub sequence: u64,
}

/// How batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedOptions {
    /// How sequences are made.
    pub packing: PackingOptions,
    /// Sequences of a micro-batch.
    pub micro_batch_size: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Instead of packed texts: sequences that begin anywhere in the tokens of all texts together, as nanoGPT has them. Each
    /// counts as one text.
    pub windows: bool,
}

/// The micro-batches of one step.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The micro-batches; [`MicroBatch::scale`] and [`MicroBatch::share`] are set, the step and the seed are not.
    pub micro: Vec<MicroBatch>,
    /// Tokens that are to be learnt.
    pub learnt: u64,
    /// Rows that are no padding.
    pub rows: u64,
}

/// A corpus as a stream of batches.
#[derive(Debug)]
pub struct Feed {
    corpus: Corpus,
    options: FeedOptions,
    cursor: Cursor,
    /// The epoch that is packed, and its sequences.
    packed: (u64, Packing),
    /// Of windows the tokens before each text.
    starts: Vec<usize>,
}

impl Feed {
    /// A feed from its beginning.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there are no texts, or fewer tokens than windows need.
    pub fn new(corpus: Corpus, options: FeedOptions) -> Result<Feed> {
        if corpus.is_empty() {
            return Err(Error::Invalid("the data sets hold no text".into()));
        }
        let (len, rows) = (corpus.text_tokens(), options.packing.sequence_len);
        if rows == 0 || options.micro_batch_size == 0 || options.accumulation == 0 {
            let what = "sequence_len, micro_batch_size and gradient_accumulation_steps are at least 1";
            return Err(Error::Invalid(what.into()));
        }
        if options.windows && (len < rows + 3 || u32::try_from(len).is_err()) {
            return Err(Error::Invalid(format!(
                "random_windows need more than sequence_len = {rows} tokens, and at most {}; there are {len}",
                u32::MAX
            )));
        }
        let packed = (0, Packing::new(&corpus, &options.packing, 0));
        let before = |sum: &mut usize, t: &super::Text| {
            let start = *sum;
            *sum += t.len;
            Some(start)
        };
        let starts = corpus.texts().iter().scan(0, before).collect();
        Ok(Feed { corpus, options, cursor: Cursor::default(), packed, starts })
    }

    /// The texts.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// Sequences of an epoch; windows have as many as cover all tokens once.
    pub fn sequences(&self) -> u64 {
        match self.options.windows {
            true => (self.corpus.text_tokens() / self.options.packing.sequence_len).max(1) as u64,
            false => self.packed.1.len() as u64,
        }
    }

    /// Steps in which all of the data is seen once.
    pub fn steps_per_epoch(&self) -> u64 {
        let each = (self.options.micro_batch_size * self.options.accumulation) as u64;
        self.sequences().div_ceil(each)
    }

    /// The place of the next batch.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Goes to a place.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a sequence that an epoch does not have.
    pub fn seek(&mut self, cursor: Cursor) -> Result<()> {
        self.pack(cursor.epoch);
        if cursor.sequence >= self.sequences() {
            return Err(Error::Invalid(format!(
                "sequence {} of the data, which has {} an epoch",
                cursor.sequence,
                self.sequences()
            )));
        }
        self.cursor = cursor;
        Ok(())
    }

    /// Makes the sequences of an epoch, which are cut at other places than those of others.
    fn pack(&mut self, epoch: u64) {
        if !self.options.windows && self.packed.0 != epoch {
            self.packed = (epoch, Packing::new(&self.corpus, &self.options.packing, epoch));
        }
    }

    /// The next step's batch.
    pub fn next_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        for _ in 0..self.options.accumulation {
            let mut micro = MicroBatch::default();
            for _ in 0..self.options.micro_batch_size {
                self.next_sequence(&mut micro);
            }
            batch.micro.push(micro);
        }
        finish(&mut batch);
        batch
    }

    /// All of the epoch, in micro-batches: for evaluation. At most `limit` of them (0 for all).
    pub fn all(&mut self, limit: usize) -> Vec<Batch> {
        let mut batches = vec![];
        // Nothing fails here.
        let _ = self.each(limit, &mut |batch| {
            batches.push(batch);
            Ok(())
        });
        batches
    }

    /// The same, one after the other, so that one of them is in memory.
    ///
    /// # Errors
    /// What `visit` returns.
    pub fn each(&mut self, limit: usize, visit: &mut dyn FnMut(Batch) -> Result<()>) -> Result<()> {
        self.cursor = Cursor::default();
        let (rows, mut count) = (self.options.micro_batch_size * self.options.packing.sequence_len, 0);
        while self.cursor.epoch == 0 && (limit == 0 || count < limit) {
            let mut micro = MicroBatch::default();
            while micro.rows() < rows && self.cursor.epoch == 0 {
                self.next_sequence(&mut micro);
            }
            let mut batch = Batch { micro: vec![micro], ..Batch::default() };
            finish(&mut batch);
            count += 1;
            visit(batch)?;
        }
        Ok(())
    }

    /// Adds the next sequence below the rows of `micro`.
    fn next_sequence(&mut self, micro: &mut MicroBatch) {
        let rows = self.options.packing.sequence_len;
        let end = micro.rows() + rows;
        if self.options.windows {
            let number = self.cursor.epoch.wrapping_mul(self.sequences()).wrapping_add(self.cursor.sequence);
            let bound = (self.corpus.text_tokens() - rows - 2) as u32;
            let at = hash::below(hash::short(self.options.packing.seed), 1, number as u32, bound);
            let (start, mut position) = (micro.rows() as u32, 0);
            self.corpus.window(&self.starts, at as usize, rows, |id, target, learnt| {
                push(micro, [id, target, position, start], learnt);
                position += 1;
            });
        } else {
            self.pack(self.cursor.epoch);
            let pieces: Vec<_> = self.packed.1.sequence(self.cursor.sequence as usize).collect();
            for (at, n) in pieces {
                self.rows(at, n, micro);
            }
        }
        // What is left over is padding: rows that see themselves alone and count for nothing.
        for row in micro.rows()..end {
            push(micro, [0, 0, 0, row as u32], false);
            micro.padding[row] = true;
        }
        self.cursor.sequence += 1;
        if self.cursor.sequence >= self.sequences() {
            self.cursor = Cursor { epoch: self.cursor.epoch.saturating_add(1), sequence: 0 };
        }
    }

    fn rows(&self, at: usize, rows: usize, micro: &mut MicroBatch) {
        let start = micro.rows() as u32;
        let mut position = 0;
        self.corpus.rows(at, rows, |id, target, learnt| {
            push(micro, [id, target, position, start], learnt);
            position += 1;
        });
    }
}

fn push(micro: &mut MicroBatch, [id, target, position, start]: [u32; 4], learnt: bool) {
    micro.ids.push(id);
    micro.targets.push(target);
    micro.positions.push(position);
    micro.starts.push(start);
    micro.weights.push(f32::from(u8::from(learnt)));
    micro.padding.push(false);
}

/// Sets scales and shares: those of all micro-batches together make the mean over the whole batch.
fn finish(batch: &mut Batch) {
    let sum = |m: &MicroBatch| m.weights.iter().map(|w| f64::from(*w)).sum::<f64>();
    let (all, rows) = batch.micro.iter().fold((0.0, 0), |(w, r), m| (w + sum(m), r + m.counted()));
    batch.learnt = all as u64;
    batch.rows = rows as u64;
    for (i, m) in batch.micro.iter_mut().enumerate() {
        m.number = i as u32;
        m.scale = if all > 0.0 { 1.0 / all } else { 0.0 };
        m.share = m.counted() as f64 / rows.max(1) as f64;
    }
}
