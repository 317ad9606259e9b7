//! Pages: keys and values of [`PAGE`] consecutive positions, copied between sequences and the host's memory.
//!
//! A page holds the rows of all caches for its positions, whatever their order in memory is on the backend. Positions of the last
//! page that lie behind the text that it was read for hold anything: whoever writes the page says how many tokens count.

use super::{
    Runner,
    page::{Page, PagePool},
};
use crate::error::{Error, Result};
use std::ops::{Deref, Range};

/// Positions of a page: a multiple of the blocks in which backends store keys.
pub const PAGE: usize = 32;

/// Bytes that are copied at once, at least a page.
const AT_ONCE: usize = 8 << 20;

impl Runner {
    /// Bytes of a page; 0 for graphs without KV caches.
    pub fn page_bytes(&self) -> usize {
        self.page_parts.iter().sum()
    }

    /// Bytes of a sequence's recurrent states; 0 for graphs without.
    pub fn state_bytes(&self) -> usize {
        if self.graph.program.graph.states.is_empty() { 0 } else { self.executor.sequence_bytes(0, true) }
    }

    /// Copies whole pages of a sequence to the host's memory, by their numbers: page p holds positions
    /// p · [`PAGE`] .. (p + 1) · [`PAGE`].
    ///
    /// # Errors
    /// [`Error::Invalid`] while steps are queued, for a sequence that is not there, or pages beyond the context or without any
    /// token of the sequence; [`Error::Device`], also where the host's memory is short.
    pub fn read_pages(&mut self, sequence: usize, pages: Range<usize>) -> Result<Vec<Page>> {
        self.check_idle(sequence)?;
        let (len, ctx) = (self.sequences[sequence].len(), self.options.ctx);
        let whole = ctx / PAGE;
        if pages.end > whole || pages.end > len.div_ceil(PAGE) {
            return Err(Error::Invalid(format!(
                "pages {pages:?} of a sequence of {len} tokens in a context of {whole} whole pages"
            )));
        }
        let mut all = Vec::with_capacity(pages.len());
        // Kept: memory that the system gives anew costs more than the copy into it.
        let mut bytes = std::mem::take(&mut self.page_range);
        for first in pages.clone().step_by(self.pages_at_once()) {
            let end = (first + self.pages_at_once()).min(pages.end);
            bytes.clear();
            self.executor.read_sequence(sequence, first * PAGE..end * PAGE, None, &mut bytes)?;
            for i in 0..end - first {
                all.push(PagePool::page(&self.page_pool, self.page_bytes(), |page| {
                    part_of_range(&self.page_parts, &bytes, end - first, i, page);
                })?);
            }
        }
        self.page_range = bytes;
        Ok(all)
    }

    /// Puts pages into a sequence, of which the first `first` pages stay: it then holds `n` tokens. With recurrent states
    /// `states` are those after these tokens, as [`Runner::copy_of_states`] gave them.
    ///
    /// # Errors
    /// [`Error::Invalid`] while steps are queued, for a sequence that is not there or has less than the pages that stay, pages of
    /// another size, more tokens than pages or context hold, missing, superfluous or wrong states: the sequence is as before then.
    /// [`Error::Device`]: the sequence is empty then.
    pub fn write_pages<P: Deref<Target = [u8]>>(
        &mut self,
        sequence: usize,
        first: usize,
        pages: &[P],
        n: usize,
        states: Option<&[u8]>,
    ) -> Result<()> {
        self.check_idle(sequence)?;
        let (len, size) = (self.sequences[sequence].len(), self.page_bytes());
        let end = first.saturating_add(pages.len());
        let fits = end <= self.options.ctx / PAGE && (first * PAGE..=end * PAGE).contains(&n);
        if !fits || first * PAGE > len || pages.iter().any(|p| p.len() != size) {
            let count = pages.len();
            return Err(Error::Invalid(format!(
                "{count} pages of {size} bytes behind {first} pages of a sequence of {len} tokens, for {n} tokens"
            )));
        }
        if states.is_some() != (self.state_bytes() > 0 && n > 0) {
            return Err(Error::Invalid(
                "recurrent states come with the pages of graphs that have them, not of others".into(),
            ));
        }
        if let Some(states) = states {
            self.check_states(states)?;
        }
        self.sequences[sequence].replace(0);
        let mut bytes = std::mem::take(&mut self.page_range);
        for (i, some) in pages.chunks(self.pages_at_once()).enumerate() {
            self.join_pages(some, &mut bytes);
            let at = first + i * self.pages_at_once();
            self.executor.write_sequence(sequence, at * PAGE..(at + some.len()) * PAGE, false, &bytes)?;
        }
        self.page_range = bytes;
        if let Some(states) = states {
            self.executor.write_sequence(sequence, 0..0, true, states)?;
        }
        self.sequences[sequence].replace(n);
        Ok(())
    }

    fn pages_at_once(&self) -> usize {
        (AT_ONCE / self.page_bytes().max(1)).max(1)
    }

    /// Pages as one range, the reverse of [`part_of_range`].
    fn join_pages<P: Deref<Target = [u8]>>(&self, pages: &[P], bytes: &mut Vec<u8>) {
        bytes.clear();
        let mut at = 0;
        for part in &self.page_parts {
            pages.iter().for_each(|page| bytes.extend_from_slice(&page[at..at + part]));
            at += part;
        }
    }
}

/// Page `i` of `n` that were read together: executors give the parts of a range one after the other, each with all its positions.
fn part_of_range(parts: &[usize], bytes: &[u8], n: usize, i: usize, page: &mut [u8]) {
    let (mut to, mut at) = (page, 0);
    for part in parts {
        let (front, rest) = to.split_at_mut(*part);
        front.copy_from_slice(&bytes[at + i * part..at + (i + 1) * part]);
        (to, at) = (rest, at + n * part);
    }
}
