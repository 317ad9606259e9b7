//! Memory of values that nobody reads any more, for those that come: its pages are there already, and nothing has to be made zero first.
//!
//! A micro-batch makes values of the same sizes as the one before it. Where nothing fits, what earlier ones have left is let go as others
//! are made, and at last what a whole micro-batch did not take: all of it together is hardly more than what is in use at once at most.
//! Small packed operands of products are apart: their sizes depend on how many tokens an expert has, so that none would ever fit, and
//! each would push a value out.

use super::super::pool::lock_unpoisoned;
use crate::ops::Array;
use std::sync::Mutex;

/// Numbers below which memory is asked for anew.
const LEAST: usize = 1 << 12;

/// Numbers of a cache line.
const LINE: usize = 16;

/// Numbers of a packed operand up to which it is kept apart: a few of these are hardly anything beside values.
const SMALL: usize = 1 << 20;

/// Vectors that are nobody's.
#[derive(Default)]
pub struct Spare {
    values: Mutex<Values>,
    /// For small packed operands: as many as were in use at once.
    packed: Mutex<Vec<Vec<f32>>>,
}

/// For values and large packed operands.
#[derive(Default)]
struct Values {
    /// With the number of the micro-batch that gave each back, the oldest first.
    idle: Vec<(u64, Vec<f32>)>,
    micro_batch: u64,
}

impl Values {
    /// The smallest of `len` numbers or a few more.
    fn fitting(&mut self, len: usize) -> Option<Vec<f32>> {
        let sizes = len..=len + len / LINE;
        let fitting = self.idle.iter().enumerate().filter(|(_, (_, v))| sizes.contains(&v.capacity()));
        let best = fitting.min_by_key(|(_, (_, v))| v.capacity()).map(|(i, _)| i);
        best.map(|i| self.idle.remove(i).1)
    }

    /// Lets go of as much as comes, of what earlier micro-batches have left.
    fn make_room(&mut self, len: usize) {
        let mut freed = 0;
        while freed < len && self.idle.first().is_some_and(|(at, _)| *at < self.micro_batch) {
            freed += self.idle.remove(0).1.capacity();
        }
    }
}

impl Spare {
    /// A micro-batch begins: what the last one did not take goes.
    pub fn begin(&self) {
        let mut values = lock_unpoisoned(&self.values);
        let last = values.micro_batch;
        values.idle.retain(|(at, _)| *at >= last);
        values.micro_batch += 1;
    }

    /// `len` numbers, whatever they are.
    pub fn take(&self, len: usize) -> Vec<f32> {
        if len < LEAST {
            return vec![0.0; len];
        }
        let mut values = lock_unpoisoned(&self.values);
        if let Some(mut v) = values.fitting(len) {
            v.resize(len, 0.0);
            return v;
        }
        values.make_room(len);
        drop(values);
        // Room for a line more: packed operands and values of one size take each other's place.
        let mut v = vec![0.0; len + LINE];
        v.truncate(len);
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
        let v = spare.take(1 << 14);
        let at = v.as_ptr();
        spare.give(v);
        let same = spare.take(1 << 14);
        assert!(same.as_ptr() == at && same.len() == 1 << 14);
        spare.give(same);
        // Another size, in the same micro-batch and in the next one: what was left goes.
        spare.give(spare.take(1 << 15));
        assert_eq!(idle(), 2);
        spare.begin();
        assert_eq!(idle(), 2);
        spare.give(spare.take(3 << 14));
        assert_eq!(idle(), 1);
        // What was not taken for a micro-batch goes, and what was stays.
        spare.give(spare.take(1 << 14));
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
