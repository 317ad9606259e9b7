//! Large memory on huge pages: pieces of large maps, one behind the other. Packed weights and what is kept of texts lie here.
//!
//! A map of its own for each piece would lie on small pages wherever the piece is smaller than a huge page, or does not begin with
//! one. Decoding reads all weights for every token, and each page costs an entry of the processor's address cache; what is written
//! once costs a fault for each page.

use std::{
    io,
    ops::{Deref, DerefMut, Range},
    sync::Arc,
};

/// Many huge pages. What is not given out is never touched, and takes no memory.
const CHUNK: usize = 64 << 20;

/// Where a piece may begin: a cache line.
const ALIGN: usize = 64;

/// Gives out zeroed memory in pieces. A map goes when all of its pieces have gone.
pub struct Arena {
    /// Bytes of a map at least.
    least: usize,
    chunk: Option<Arc<memmap2::MmapRaw>>,
    used: usize,
}

/// Memory from an [`Arena`], which belongs to its holder alone.
pub struct Piece {
    chunk: Arc<memmap2::MmapRaw>,
    range: Range<usize>,
}

/// So many zeroed bytes, on huge pages where there are any.
///
/// # Errors
/// Where the system cannot map that much memory.
pub fn large_map(bytes: usize) -> std::io::Result<memmap2::MmapMut> {
    let map = memmap2::MmapMut::map_anon(bytes)?;
    #[cfg(target_os = "linux")]
    if let Err(e) = map.advise(memmap2::Advice::HugePage) {
        tracing::debug!("no huge pages: {e}");
    }
    Ok(map)
}

impl Default for Arena {
    fn default() -> Self {
        Arena { least: CHUNK, chunk: None, used: 0 }
    }
}

impl Arena {
    /// `len` zeros.
    ///
    /// # Errors
    /// Where the system has no memory for a map.
    pub fn zeroed(&mut self, len: usize) -> io::Result<Piece> {
        if let Some(chunk) = &self.chunk
            && chunk.len() - self.used >= len
        {
            let range = self.used..self.used + len;
            self.used = range.end.next_multiple_of(ALIGN).min(chunk.len());
            return Ok(Piece { chunk: chunk.clone(), range });
        }
        let chunk = Arc::new(memmap2::MmapRaw::from(large_map(len.max(self.least))?));
        // What is left of the map before is given up only where the new one has more.
        let left = self.chunk.as_ref().map_or(0, |c| c.len() - self.used);
        if chunk.len() - len >= left {
            (self.chunk, self.used) = (Some(chunk.clone()), len.next_multiple_of(ALIGN).min(chunk.len()));
        }
        Ok(Piece { chunk, range: 0..len })
    }
}

impl Deref for Piece {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies within the map, which lives as long as `chunk`; no other piece has any of it, so that it changes only
        // through this piece's `deref_mut`, which borrows it mutably.
        unsafe { std::slice::from_raw_parts(self.chunk.as_ptr().add(self.range.start), self.range.len()) }
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the borrow of this piece is the only one of its range.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.as_mut_ptr().add(self.range.start), self.range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zero_apart_and_outlive_their_arena() {
        let mut arena = Arena { least: 1 << 16, ..Arena::default() };
        let sizes = [1, 64, 100, 0, 3000, 60_000, 5000, 70_000, 7];
        let mut pieces: Vec<Piece> = sizes.iter().map(|n| arena.zeroed(*n).unwrap()).collect();
        drop(arena);
        for (i, (piece, n)) in pieces.iter_mut().zip(sizes).enumerate() {
            assert_eq!((piece.len(), piece.as_ptr() as usize % ALIGN), (n, 0));
            assert!(piece.iter().all(|b| *b == 0), "piece {i} shares bytes with one before");
            piece.fill(1 + i as u8);
        }
        pieces.remove(0);
        for (i, piece) in (1u8..).zip(&pieces) {
            assert!(piece.iter().all(|b| *b == 1 + i), "piece {i}");
        }
    }
}
