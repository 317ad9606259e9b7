//! Buffers: memory aligned to cache lines, and slices of which several threads write disjoint parts.

use std::{marker::PhantomData, ops::Range};

/// One cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A vector of plain values that starts on a cache line. It grows and never shrinks.
#[derive(Default)]
pub struct Aligned<T> {
    lines: Vec<Line>,
    kind: PhantomData<T>,
}

impl<T: bytemuck::Pod> Aligned<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut a = Aligned { lines: Vec::new(), kind: PhantomData };
        a.grow(len);
        a
    }

    /// Grows to at least `len` elements; new ones are zero.
    pub fn grow(&mut self, len: usize) {
        let lines = len.saturating_mul(size_of::<T>()).div_ceil(64);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; 64]));
        }
    }

    /// The memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        self.lines.len() as u64 * 64
    }
}

impl<T: bytemuck::Pod> std::ops::Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }
}

impl<T: bytemuck::Pod> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}

/// Zeroed memory that the system provides page by page as it is touched. For large buffers that fill over time, as a KV cache does:
/// on huge pages the first token would touch, and clear, most of it.
pub struct Pages<T> {
    map: memmap2::MmapMut,
    kind: PhantomData<T>,
}

impl<T: bytemuck::Pod> Pages<T> {
    /// `len` zeros; `None` where the system cannot map that much memory.
    pub fn zeroed(len: usize) -> Option<Self> {
        let map = memmap2::MmapMut::map_anon(len.checked_mul(size_of::<T>())?.max(64)).ok()?;
        Some(Pages { map, kind: PhantomData })
    }

    /// The memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }
}

impl<T: bytemuck::Pod> std::ops::Deref for Pages<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.map)
    }
}

impl<T: bytemuck::Pod> std::ops::DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map)
    }
}

/// Calls `f` with the bytes of some positions of each of `rows` rows of whole contexts, `cols` elements a
/// position.
pub fn parts<T: bytemuck::Pod>(
    elements: &mut [T],
    rows: usize,
    cols: usize,
    positions: Range<usize>,
    f: &mut dyn FnMut(&mut [u8]),
) {
    let Some(row) = elements.len().checked_div(rows).filter(|n| *n > 0 && cols > 0) else { return };
    for row in elements.chunks_exact_mut(row).take(rows) {
        f(bytemuck::cast_slice_mut(&mut row[positions.start * cols..positions.end * cols]));
    }
}

/// A mutable slice shared by the items of one job, each of which writes its own elements.
#[derive(Clone, Copy)]
pub struct Out<'a, T> {
    ptr: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: an `Out` gives access only to elements that its users promise to keep disjoint.
unsafe impl<T: Send> Sync for Out<'_, T> {}
// SAFETY: as for `Sync`.
unsafe impl<T: Send> Send for Out<'_, T> {}

impl<'a, T> Out<'a, T> {
    /// Shares `slice` for writing.
    pub fn new(slice: &'a mut [T]) -> Self {
        Out { ptr: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// Elements `start .. start + len`.
    ///
    /// # Safety
    /// No two live slices of one `Out` may overlap: the items of a job ask for disjoint ranges and drop them within the item.
    ///
    /// # Panics
    /// Where the range is out of bounds.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "out of range: {start} + {len} of {}", self.len);
        // SAFETY: in bounds of the slice that `new` took, and disjoint from other slices by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}
