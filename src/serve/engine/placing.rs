//! Which sequence a job gets, and what of its prompt is in a cache already.
//!
//! Sequences keep their text when a job has ended, until another one needs the place. A new job continues the longest common
//! beginning: in the same sequence where that is free and nothing is lost by it, or in a copy where somebody else may
//! come back for the rest. Two jobs with a common beginning that come together read it once: the second waits for the first.
//!
//! Deliberately absent: the runner.

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
    /// None yet: another job reads what this one needs, or all sequences are busy.
    Wait,
}

/// Beginnings shorter than this are not worth a copy or a wait.
const WORTH: usize = 8;
/// The rest of a text may be so long that nobody will miss it.
const MISSED: usize = 32;

/// How many tokens two texts have in common from the beginning on.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// Places a prompt. `resume(sequence, n)` is the largest position up to `n` from which a sequence's text can go on.
pub fn place(places: &[Place<'_>], prompt: &[u32], resume: impl Fn(usize, usize) -> usize) -> Placing {
    // The last token is always fed: its logits are needed.
    let most = prompt.len().saturating_sub(1);
    let usable = |s: usize| resume(s, common(places[s].text, prompt).min(most));
    let (donor, keep) =
        (0..places.len()).map(|s| (s, usable(s))).max_by_key(|d| (d.1, places[d.0].used)).unwrap_or((0, 0));
    // Of what another reads only that counts which it has not read yet.
    let shared = |p: &Place<'_>| Some(common(p.coming?, prompt).min(most)).filter(|n| *n > p.text.len());
    let coming = places.iter().filter_map(shared).max().unwrap_or(0);
    // The same prompt once more waits for its last token.
    if coming > keep && (coming - keep > WORTH || coming == most) {
        return Placing::Wait;
    }
    let free = || (0..places.len()).filter(|s| !places[*s].busy);
    let Some(oldest) = free().min_by_key(|s| (places[*s].used, *s)) else { return Placing::Wait };
    if !places[donor].busy && places[donor].text.len() - keep <= MISSED {
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
        assert_eq!(place(&places, &prompt, any), Placing::Take { sequence: 1, from: 1, keep: 100 });
        // The same prompt again: all but the last token.
        assert_eq!(place(&places, &text, any), Placing::Take { sequence: 1, from: 1, keep: 99 });
    }

    /// Another question behind the same beginning leaves the first conversation where it is, while there is room.
    #[test]
    fn a_shared_beginning_is_copied() {
        let text: Vec<u32> = (0..100).collect();
        let prompt: Vec<u32> = (0..60).chain(900..950).collect();
        let places = [idle(&text, 3), idle(&[], 0)];
        assert_eq!(place(&places, &prompt, any), Placing::Take { sequence: 1, from: 0, keep: 60 });
        let busy = [Place { busy: true, ..places[0] }, places[1]];
        assert_eq!(place(&busy, &prompt, any), Placing::Take { sequence: 1, from: 0, keep: 60 });
        assert_eq!(place(&places[..1], &prompt, any), Placing::Take { sequence: 0, from: 0, keep: 60 });
        assert_eq!(place(&busy[..1], &prompt, any), Placing::Wait);
    }

    #[test]
    fn the_least_recently_used_goes() {
        let (a, b): (Vec<u32>, Vec<u32>) = ((0..100).collect(), (200..300).collect());
        let places = [idle(&a, 9), idle(&b, 2)];
        let prompt: Vec<u32> = (700..720).collect();
        assert_eq!(place(&places, &prompt, any), Placing::Take { sequence: 1, from: 1, keep: 0 });
    }

    #[test]
    fn what_another_reads_is_waited_for() {
        let prompt: Vec<u32> = (0..500).collect();
        let reading = Place { text: &prompt[..64], coming: Some(&prompt), busy: true, used: 1 };
        let mine: Vec<u32> = (0..400).chain(900..950).collect();
        assert_eq!(place(&[reading, idle(&[], 0)], &mine, any), Placing::Wait);
        let read = Place { text: &prompt, coming: Some(&prompt), ..reading };
        assert_eq!(place(&[read, idle(&[], 0)], &mine, any), Placing::Take { sequence: 1, from: 0, keep: 400 });
        let strange: Vec<u32> = (600..700).collect();
        assert_eq!(place(&[reading, idle(&[], 0)], &strange, any), Placing::Take { sequence: 1, from: 1, keep: 0 });
    }

    /// Recurrent states are known at some positions only.
    #[test]
    fn states_bound_what_can_be_kept() {
        let text: Vec<u32> = (0..100).collect();
        let places = [idle(&text, 3)];
        let resume = |_: usize, n: usize| if n >= 64 { 64 } else { 0 };
        let prompt: Vec<u32> = (0..90).chain(900..950).collect();
        assert_eq!(place(&places, &prompt, resume), Placing::Take { sequence: 0, from: 0, keep: 64 });
    }
}
