//! Memory of values that nobody reads any more, for those that come: its pages are there already, and nothing has to be made zero first.
//!
//! A micro-batch makes values of the same sizes as the one before it. What fits nothing is let go as others are made, so that all of it
//! together is hardly more than what is in use at once at most.

use super::super::pool::lock_unpoisoned;
use crate::ops::Array;
use std::sync::Mutex;

/// Numbers below which memory is asked for anew.
const LEAST: usize = 1 << 12;

/// Numbers of a cache line.
const LINE: usize = 16;

/// Vectors that are nobody's, the oldest first.
#[derive(Default)]
pub struct Spare(Mutex<Vec<Vec<f32>>>);

impl Spare {
    /// `len` numbers, whatever they are.
    pub fn take(&self, len: usize) -> Vec<f32> {
        if len < LEAST {
            return vec![0.0; len];
        }
        let mut all = lock_unpoisoned(&self.0);
        let most = len + len / LINE;
        let fits = |v: &Vec<f32>| (len..=most).contains(&v.capacity());
        let best = all.iter().enumerate().filter(|(_, v)| fits(v)).min_by_key(|(_, v)| v.capacity()).map(|(i, _)| i);
        if let Some(i) = best {
            let mut v = all.remove(i);
            v.resize(len, 0.0);
            return v;
        }
        // As much goes as comes.
        let mut over = len;
        while over > 0 && !all.is_empty() {
            over = over.saturating_sub(all.remove(0).capacity());
        }
        drop(all);
        vec![0.0; len]
    }

    /// An array, whatever its numbers are: all of them are to be written.
    pub fn array(&self, rows: usize, cols: usize) -> Array<f32> {
        Array { rows, cols, data: self.take(rows * cols) }
    }

    /// Takes back a vector.
    pub fn give(&self, v: Vec<f32>) {
        if v.capacity() >= LEAST {
            lock_unpoisoned(&self.0).push(v);
        }
    }

    /// `len` numbers from the beginning of a cache line on.
    pub fn aligned(&self, len: usize) -> AlignedPart<'_> {
        let data = self.take(len + LINE);
        let at = data.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        AlignedPart { spare: self, data, at, len }
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
        self.spare.give(std::mem::take(&mut self.data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_again_and_does_not_grow() {
        let spare = Spare::default();
        let v = spare.take(1 << 14);
        let at = v.as_ptr();
        spare.give(v);
        let same = spare.take(1 << 14);
        assert!(same.as_ptr() == at && same.len() == 1 << 14);
        spare.give(same);
        // Another size: what is there goes.
        assert_eq!(spare.take(1 << 15).len(), 1 << 15);
        assert!(spare.0.lock().unwrap().is_empty());
        let part = spare.aligned(5000);
        assert!(part.len() == 5000 && part.as_ptr() as usize % 64 == 0);
        drop(part);
        assert_eq!(spare.0.lock().unwrap().len(), 1);
        spare.give(vec![0.0; 7]);
        assert_eq!(spare.0.lock().unwrap().len(), 1);
    }
}
