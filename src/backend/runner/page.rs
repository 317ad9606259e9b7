//! The memory of pages.

use crate::{
    backend::arena::{Arena, Piece},
    error::{Error, Result},
};
use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

/// Keys and values of [`PAGE`](super::PAGE) positions of a sequence, in the host's memory: bytes that do not change. Clones share
/// them; with the last one their memory goes back to its runner for other pages.
#[derive(Clone)]
pub struct Page(Arc<Held>);

/// Memory, and whom it goes back to.
struct Held {
    /// Taken out only when it goes.
    bytes: Option<Piece>,
    home: Weak<Mutex<PagePool>>,
}

/// Memory for pages of one size. That of pages that have gone is used again: what the system gives anew costs more than the copy
/// into it.
#[derive(Default)]
pub(super) struct PagePool {
    arena: Arena,
    free: Vec<Piece>,
}

impl PagePool {
    /// A page of `len` bytes, which `fill` writes.
    pub(super) fn page(pool: &Arc<Mutex<PagePool>>, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<Page> {
        let mut bytes = {
            let mut pool = lock(pool);
            match pool.free.pop().filter(|piece| piece.len() == len) {
                Some(piece) => piece,
                None => pool
                    .arena
                    .zeroed(len)
                    .map_err(|e| Error::Device(format!("no memory to keep {len} bytes of a text: {e}")))?,
            }
        };
        fill(&mut bytes);
        Ok(Page(Arc::new(Held { bytes: Some(bytes), home: Arc::downgrade(pool) })))
    }
}

fn lock(pool: &Mutex<PagePool>) -> MutexGuard<'_, PagePool> {
    // Nothing in the lock can be half done.
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Page {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.bytes.as_deref().unwrap_or_default()
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({} bytes)", self.len())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let (Some(bytes), Some(home)) = (self.bytes.take(), self.home.upgrade()) {
            lock(&home).free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_pages_is_used_again() {
        let pool = Arc::default();
        let page = |len: usize, byte: u8| PagePool::page(&pool, len, |bytes| bytes.fill(byte)).unwrap();
        let (a, b) = (page(100, 1), page(100, 2));
        assert_ne!(a.as_ptr(), b.as_ptr());
        let at = a.as_ptr();
        let clone = a.clone();
        drop(a);
        assert_ne!(page(100, 3).as_ptr(), at, "a clone is left");
        assert!(clone.iter().all(|byte| *byte == 1) && b.iter().all(|byte| *byte == 2));
        drop(clone);
        let again = page(100, 4);
        assert_eq!(again.as_ptr(), at);
        assert!(again.iter().all(|byte| *byte == 4));
        assert_eq!(page(50, 5).len(), 50, "of another size");
        drop(pool);
        assert!(again.iter().all(|byte| *byte == 4), "a page outlives its runner");
    }
}
