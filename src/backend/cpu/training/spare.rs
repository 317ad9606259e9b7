//! Memory of values that nobody reads any more, for those that come: its pages are there already, and nothing has to be made zero first.
//!
//! A micro-batch makes values of the same sizes as the one before it. What is kept and what is in use are together no more than what was
//! in use at once at most, of what is taken here: where a value comes that nothing fits, the oldest that is kept goes, and so does what a whole micro-batch did
//! not take. Small packed operands of products are apart: their sizes depend on how many tokens an expert has, so that none would ever
//! fit, and each would push a value out.

use super::super::pool::lock_unpoisoned;
use crate::ops::Array;
use std::sync::Mutex;

/// Numbers below which memory is asked for anew.
const LEAST: usize = 1 << 12;

/// Numbers of a cache line.
const LINE: usize = 16;

/// Numbers of a packed operand up to which it is kept apart: a few of these are hardly anything beside values.
const SMALL: usize = 1 << 17;

/// Vectors that are nobody's.
#[derive(Default)]
pub struct Spare {
    values: Mutex<Values>,
    /// For small packed operands: as many as were in use at once.
    packed: Mutex<Vec<Vec<f32>>>,
}

/// For values and large packed operands; all sizes are capacities.
#[derive(Default)]
struct Values {
    /// With the number of the micro-batch that gave each back, the oldest first.
    idle: Vec<(u64, Vec<f32>)>,
    micro_batch: u64,
    /// Numbers that are in use, and at most in this micro-batch and the last one.
    used: usize,
    most: [usize; 2],
}

impl Values {
    /// The smallest of `len` numbers or a few more.
    fn fitting(&mut self, len: usize) -> Option<Vec<f32>> {
        let sizes = len..=len + len / LINE;
        let fitting = self.idle.iter().enumerate().filter(|(_, (_, v))| sizes.contains(&v.capacity()));
        let best = fitting.min_by_key(|(_, (_, v))| v.capacity()).map(|(i, _)| i);
        best.map(|i| self.idle.remove(i).1)
    }

    /// So many more are in use; what is kept may be as much as that leaves.
    fn count(&mut self, len: usize) {
        self.used += len;
        self.most[0] = self.most[0].max(self.used);
        let room = self.most[0].max(self.most[1]) - self.used;
        let mut idle: usize = self.idle.iter().map(|(_, v)| v.capacity()).sum();
        let over = self.idle.iter().take_while(|(_, v)| {
            let goes = idle > room;
            idle = idle.saturating_sub(v.capacity());
            goes
        });
        let over = over.count();
        self.idle.drain(..over);
    }
}

impl Spare {
    /// A micro-batch begins: what the last one did not take goes.
    pub fn begin(&self) {
        let mut values = lock_unpoisoned(&self.values);
        let last = values.micro_batch;
        values.idle.retain(|(at, _)| *at >= last);
        values.micro_batch += 1;
        values.used = 0;
        values.most = [0, values.most[0]];
    }

    /// `len` numbers, whatever they are.
    pub fn take(&self, len: usize) -> Vec<f32> {
        if len < LEAST {
            return vec![0.0; len];
        }
        let mut values = lock_unpoisoned(&self.values);
        let found = values.fitting(len);
        // Room for a line more: packed operands and values of one size take each other's place.
        values.count(found.as_ref().map_or(len + LINE, Vec::capacity));
        drop(values);
        let mut v = found.unwrap_or_else(|| vec![0.0; len + LINE]);
        v.resize(len, 0.0);
        v
    }

    /// An array, whatever its numbers are: all of them are to be written.
    pub fn array(&self, rows: usize, cols: usize) -> Array<f32> {
        Array { rows, cols, data: self.take(rows * cols) }
    }

    /// Takes back a vector.
    pub fn give(&self, v: Vec<f32>) {
        if v.capacity() >= LEAST {
            let mut values = lock_unpoisoned(&self.values);
            let now = values.micro_batch;
            // Some were made elsewhere.
            values.used = values.used.saturating_sub(v.capacity());
            values.idle.push((now, v));
        }
    }

    /// `len` numbers from the beginning of a cache line on, whatever they are.
    pub fn aligned(&self, len: usize) -> AlignedPart<'_> {
        let data = if len <= SMALL { self.take_packed(len + LINE) } else { self.take(len + LINE) };
        let at = data.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        AlignedPart { spare: self, data, at, len }
    }

    /// The smallest vector of `len` numbers or more; where there is none a longer one comes for the longest.
    fn take_packed(&self, len: usize) -> Vec<f32> {
        let mut all = lock_unpoisoned(&self.packed);
        all.sort_unstable_by_key(Vec::len);
        match all.partition_point(|v| v.len() < len) {
            i if i < all.len() => all.remove(i),
            _ => {
                drop(all.pop());
                drop(all);
                vec![0.0; len + len / 8]
            }
        }
    }
}

/// Numbers from the beginning of a cache line on, which go back when they are dropped.
pub struct AlignedPart<'a> {
    spare: &'a Spare,
    data: Vec<f32>,
    at: usize,
    len: usize,
}

impl std::ops::Deref for AlignedPart<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[self.at..self.at + self.len]
    }
}

impl std::ops::DerefMut for AlignedPart<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.at..self.at + self.len]
    }
}

impl Drop for AlignedPart<'_> {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        if self.len <= SMALL {
            lock_unpoisoned(&self.spare.packed).push(data);
        } else {
            self.spare.give(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_again_and_does_not_grow() {
        let spare = Spare::default();
        let idle = || spare.values.lock().unwrap().idle.len();
        let [v, w] = [1 << 14, 1 << 14].map(|len| spare.take(len));
        let at = [v.as_ptr(), w.as_ptr()];
        spare.give(v);
        spare.give(w);
        let same = spare.take(1 << 14);
        assert!(same.as_ptr() == at[0] && same.len() == 1 << 14);
        spare.give(same);
        // Another size: what is kept and that are not more than were in use.
        let third = spare.take(3 << 13);
        assert_eq!(idle(), 0);
        spare.give(third);
        spare.begin();
        assert_eq!(idle(), 1);
        // A micro-batch that uses more at once keeps more, and the next one has all of it.
        let at_once = [3 << 13, 1 << 14, 1 << 15];
        let one = at_once.map(|len| spare.take(len));
        one.into_iter().for_each(|v| spare.give(v));
        spare.begin();
        assert_eq!(idle(), 3);
        for len in at_once {
            spare.give(spare.take(len));
        }
        assert_eq!(idle(), 3);
        // What was not taken for a micro-batch goes.
        spare.begin();
        spare.give(spare.take(1 << 14));
        spare.begin();
        assert_eq!(idle(), 1);
        // A large packed operand takes the place of a value of its size.
        spare.give(spare.take(2 * SMALL));
        let before = idle();
        let part = spare.aligned(2 * SMALL);
        assert!(part.len() == 2 * SMALL && part.as_ptr() as usize % 64 == 0 && idle() == before - 1);
        drop(part);
        spare.give(vec![0.0; 7]);
        assert_eq!(idle(), before);
    }

    /// Operands of sizes that vary leave values alone, and there are never more of them than in use at once.
    #[test]
    fn packed_operands_are_apart() {
        let spare = Spare::default();
        spare.give(vec![0.0; 1 << 16]);
        for len in [5000, 70_000, 300, 70_100, 1 << 16] {
            let [one, two] = [len, len / 2].map(|len| spare.aligned(len));
            assert!(one.len() == len && one.as_ptr() as usize % 64 == 0 && two.as_ptr() as usize % 64 == 0);
            assert!(one.as_ptr() != two.as_ptr());
        }
        assert_eq!(spare.packed.lock().unwrap().len(), 2);
        assert_eq!(spare.values.lock().unwrap().idle.len(), 1);
    }
}
