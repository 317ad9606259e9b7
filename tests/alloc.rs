//! A counting allocator for the whole test binary: [`peak`] tells how much memory a piece of code asked for at once.
//!
//! The counters belong to the thread, because tests run side by side.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    // Plain cells: neither lazily made nor dropped, so the allocator may use them at any time.
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let now = NOW.get() + bytes;
    NOW.set(now);
    PEAK.set(PEAK.get().max(now));
}

// SAFETY: every call goes to the system's allocator unchanged; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        // Old and new may exist side by side for a moment: the new one counts first.
        count(new as isize);
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, new) }
    }
}

/// Runs `work` and tells the most bytes that this thread had allocated at one time beyond those it had before.
pub fn peak<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let result = work();
    (result, (PEAK.get() - before) as usize)
}

/// Runs `work` and tells how many bytes more than before this thread has allocated after it.
pub fn left(work: impl FnOnce()) -> isize {
    let before = NOW.get();
    work();
    NOW.get() - before
}

#[test]
fn counts_what_is_allocated() {
    let (v, n) = peak(|| {
        drop(vec![1u8; 300_000]);
        vec![1u8; 1000]
    });
    assert!((300_000..310_000).contains(&n), "{n}");
    drop(v);
    let mut kept = Vec::new();
    assert_eq!(left(|| (0..100).for_each(|_| kept.push(Box::new(0u64)))), (100 + 128) * 8);
    assert_eq!(left(|| drop(vec![0u8; 1000])), 0);
    // Reserving counts, touched or not.
    assert!(peak(|| Vec::<u8>::with_capacity(1 << 28).capacity() > 0).1 >= 1 << 28);
}
