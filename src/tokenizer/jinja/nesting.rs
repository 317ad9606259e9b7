//! How deep a recursion may go.

use std::{cell::Cell, hint::black_box};

/// Bytes of the thread's stack that parsing or running a template may take: half of what threads of Rust have. A build without
/// optimisation needs about ten times as many for each level as a release does, so a count of levels alone says too little.
const STACK: usize = 1 << 20;

/// Levels of a recursion: as many as are allowed, and as many as the stack has room for.
pub(super) struct Nesting {
    depth: Cell<usize>,
    most: usize,
    /// The address in the stack where the recursion began.
    base: usize,
}

impl Nesting {
    /// A recursion that begins here and has at most `most` levels.
    pub fn new(most: usize) -> Nesting {
        Nesting { depth: Cell::new(0), most, base: stack_address() }
    }

    /// One level deeper; false where there is no room for it, and then nothing changes.
    pub fn enter(&self) -> bool {
        let fits = self.depth.get() < self.most && self.base.abs_diff(stack_address()) < STACK;
        self.depth.set(self.depth.get() + usize::from(fits));
        fits
    }

    /// Back from a level that [`Nesting::enter`] allowed.
    pub fn leave(&self) {
        self.depth.set(self.depth.get() - 1);
    }
}

/// Roughly where the stack ends now.
#[inline(never)]
fn stack_address() -> usize {
    let mark = 0u8;
    std::ptr::from_ref(black_box(&mark)).addr()
}
