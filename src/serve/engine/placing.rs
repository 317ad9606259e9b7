//! Which sequence a job gets, and what of its prompt is in a cache already.
//!
//! Sequences keep their text when a job has ended, until another one needs the place; then it goes to the prefix cache. A new job
//! continues the longest common beginning: in the same sequence where that is free and little is lost by it, in a copy where
//! somebody else may come back for the rest, or with what the prefix cache has. Two jobs with a common beginning that
//! come together read it once: the second waits for the first.
//!
//! Deliberately absent: the runner.

use crate::serve::prefix::common;

/// A sequence as a job sees it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The tokens in its cache.
    pub text: &'a [u32],
    /// The prompt that is being read into it, `text` included.
    pub coming: Option<&'a [u32]>,
    /// Whether a job has it.
    pub busy: bool,
    /// When a job had it last; 0 for never.
    pub used: u64,
}

/// What a job gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placing {
    /// This sequence, which then holds the first `keep` tokens of sequence `from`.
    Take {
        /// The sequence.
        sequence: usize,
        /// Whose tokens; itself as a rule.
        from: usize,
        /// How many.
        keep: usize,
    },
    /// This sequence, which then holds the first `keep` tokens of the prompt, from the prefix cache.
    Fetch {
        /// The sequence.
        sequence: usize,
        /// How many.
        keep: usize,
    },
    /// None yet: another job reads what this one needs, or all sequences are busy.
    Wait,
}

/// Beginnings shorter than this are not worth a copy or a wait.
pub const WORTH: usize = 8;
/// The rest of a text may be so long where the text is continued in place.
const MISSED: usize = 32;

/// Places a prompt of which the prefix cache has the first `stored` tokens. `resume(sequence, n)` is the largest position up to `n`
/// from which a sequence's text can go on.
pub fn place(places: &[Place<'_>], prompt: &[u32], stored: usize, resume: impl Fn(usize, usize) -> usize) -> Placing {
    // The last token is always fed: its logits are needed.
    let most = prompt.len().saturating_sub(1);
    let usable = |s: usize| resume(s, common(places[s].text, prompt).min(most));
    let (donor, keep) =
        (0..places.len()).map(|s| (s, usable(s))).max_by_key(|d| (d.1, places[d.0].used)).unwrap_or((0, 0));
    // Of what another reads only that counts which it has not read yet.
    let shared = |p: &Place<'_>| Some(common(p.coming?, prompt).min(most)).filter(|n| *n > p.text.len());
    let coming = places.iter().filter_map(shared).max().unwrap_or(0);
    // The same prompt once more waits for its last token.
    let there = keep.max(stored);
    if coming > there && (coming - there > WORTH || coming == most) {
        return Placing::Wait;
    }
    let free = || (0..places.len()).filter(|s| !places[*s].busy);
    let Some(oldest) = free().min_by_key(|s| (places[*s].used, *s)) else { return Placing::Wait };
    let in_place = !places[donor].busy && places[donor].text.len() - keep <= MISSED;
    if stored > keep && stored >= WORTH {
        return Placing::Fetch { sequence: if in_place { donor } else { oldest }, keep: stored };
    }
    if in_place {
        return Placing::Take { sequence: donor, from: donor, keep };
    }
    if keep >= WORTH {
        return Placing::Take { sequence: oldest, from: donor, keep };
    }
    Placing::Take { sequence: oldest, from: oldest, keep: usable(oldest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(text: &[u32], used: u64) -> Place<'_> {
        Place { text, coming: None, busy: false, used }
    }

    fn any(_: usize, n: usize) -> usize {
        n
    }

    #[test]
    fn a_second_turn_goes_on_where_the_first_was() {
        let text: Vec<u32> = (0..100).collect();
        let other: Vec<u32> = (500..600).collect();
        let places = [idle(&[], 0), idle(&text, 3), idle(&other, 4)];
        let prompt: Vec<u32> = (0..130).collect();
        assert_eq!(place(&places, &prompt, 0, any), Placing::Take { sequence: 1, from: 1, keep: 100 });
        // The same prompt again: all but the last token.
        assert_eq!(place(&places, &text, 0, any), Placing::Take { sequence: 1, from: 1, keep: 99 });
    }

    /// Another question behind the same beginning leaves the first conversation where it is, while there is room.
    #[test]
    fn a_shared_beginning_is_copied() {
        let text: Vec<u32> = (0..100).collect();
        let prompt: Vec<u32> = (0..60).chain(900..950).collect();
        let places = [idle(&text, 3), idle(&[], 0)];
        assert_eq!(place(&places, &prompt, 0, any), Placing::Take { sequence: 1, from: 0, keep: 60 });
        let busy = [Place { busy: true, ..places[0] }, places[1]];
        assert_eq!(place(&busy, &prompt, 0, any), Placing::Take { sequence: 1, from: 0, keep: 60 });
        assert_eq!(place(&places[..1], &prompt, 0, any), Placing::Take { sequence: 0, from: 0, keep: 60 });
        assert_eq!(place(&busy[..1], &prompt, 0, any), Placing::Wait);
    }

    #[test]
    fn the_least_recently_used_goes() {
        let (a, b): (Vec<u32>, Vec<u32>) = ((0..100).collect(), (200..300).collect());
        let places = [idle(&a, 9), idle(&b, 2)];
        let prompt: Vec<u32> = (700..720).collect();
        assert_eq!(place(&places, &prompt, 0, any), Placing::Take { sequence: 1, from: 1, keep: 0 });
    }

    #[test]
    fn what_another_reads_is_waited_for() {
        let prompt: Vec<u32> = (0..500).collect();
        let reading = Place { text: &prompt[..64], coming: Some(&prompt), busy: true, used: 1 };
        let mine: Vec<u32> = (0..400).chain(900..950).collect();
        assert_eq!(place(&[reading, idle(&[], 0)], &mine, 0, any), Placing::Wait);
        let read = Place { text: &prompt, coming: Some(&prompt), ..reading };
        assert_eq!(place(&[read, idle(&[], 0)], &mine, 0, any), Placing::Take { sequence: 1, from: 0, keep: 400 });
        let strange: Vec<u32> = (600..700).collect();
        assert_eq!(place(&[reading, idle(&[], 0)], &strange, 0, any), Placing::Take { sequence: 1, from: 1, keep: 0 });
    }

    /// The prefix cache is asked where it has more than any sequence.
    #[test]
    fn what_left_its_sequence_is_fetched() {
        let (a, b): (Vec<u32>, Vec<u32>) = ((0..100).collect(), (200..300).collect());
        let places = [idle(&a, 9), idle(&b, 2)];
        let prompt: Vec<u32> = (0..60).chain(700..800).collect();
        assert_eq!(place(&places, &prompt, 150, any), Placing::Fetch { sequence: 1, keep: 150 });
        assert_eq!(place(&places, &prompt, 60, any), Placing::Take { sequence: 1, from: 0, keep: 60 });
        let other: Vec<u32> = (900..950).collect();
        assert_eq!(place(&places, &other, 3, any), Placing::Take { sequence: 1, from: 1, keep: 0 });
        // What nobody misses is written over where it is.
        let next: Vec<u32> = (0..90).chain(700..800).collect();
        assert_eq!(place(&places, &next, 120, any), Placing::Fetch { sequence: 0, keep: 120 });
    }

    /// Recurrent states are known at some positions only.
    #[test]
    fn states_bound_what_can_be_kept() {
        let text: Vec<u32> = (0..100).collect();
        let places = [idle(&text, 3)];
        let resume = |_: usize, n: usize| if n >= 64 { 64 } else { 0 };
        let prompt: Vec<u32> = (0..90).chain(900..950).collect();
        assert_eq!(place(&places, &prompt, 0, resume), Placing::Take { sequence: 0, from: 0, keep: 64 });
    }
}
