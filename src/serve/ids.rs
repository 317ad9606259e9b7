//! Ids of requests and answers.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

/// Gives ids, each of them once.
#[derive(Debug, Default)]
pub struct Ids {
    random: RandomState,
    next: AtomicU64,
}

impl Ids {
    /// An id that nothing else has, with this beginning.
    pub fn id(&self, beginning: &str) -> String {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        format!("{beginning}{:016x}{:08x}", self.hashed(n), n & 0xffff_ffff)
    }

    /// A word that cannot be foreseen.
    pub fn word(&self) -> u64 {
        self.hashed(self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn hashed(&self, n: u64) -> u64 {
        let mut hasher = self.random.build_hasher();
        hasher.write_u64(n);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::Ids;
    use std::collections::BTreeSet;

    #[test]
    fn ids_differ() {
        let (a, b) = (Ids::default(), Ids::default());
        let all: BTreeSet<String> = (0..100).flat_map(|_| [a.id("x_"), b.id("x_")]).collect();
        assert!(all.len() == 200 && all.iter().all(|id| id.starts_with("x_") && id.len() == 26));
        assert_ne!((a.word(), a.word()), (b.word(), b.word()));
    }
}
