//! Words in which upper and lower case tell where one begins: the alternatives of o200k's pattern and its kin.

use super::{
    rules::{Seg, with_contraction},
    unicode::{self, Case, Class},
};

/// What the character at `i` may be in a word of upper-case letters and then lower-case ones: a mark is either.
fn case_at(s: &Seg, i: usize) -> Option<Case> {
    match s.class.get(i)? {
        Class::Letter => Some(unicode::case(s.chars[i])),
        Class::Mark => Some(Case::Neither),
        _ => None,
    }
}

/// `[^\r\n\p{L}\p{N}]?U*L+|[^\r\n\p{L}\p{N}]?U+L*` where U is `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]` and L is
/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`: a word ends before an upper-case letter that follows another letter than upper-case ones.
/// `case` is what a character of a word is; `None` where it is none.
fn cased(s: &Seg, i: usize, case: impl Fn(&Seg, usize) -> Option<Case>) -> usize {
    let run = |from: usize, not: Case| (from..).take_while(|j| case(s, *j).is_some_and(|c| c != not)).count() + from;
    // The character before a word may be a mark, which may as well begin it.
    let starts = [i + usize::from(s.word_prefix(i)), i];
    for start in starts {
        let upper = run(start, Case::Lower);
        if case(s, upper).is_some() {
            return run(upper, Case::Upper) - i;
        }
        // Nothing lower-case follows: U* gives letters back until the last one that L takes, too.
        if let Some(last) = (start..upper).rev().find(|j| case(s, *j) == Some(Case::Neither)) {
            return last + 1 - i;
        }
    }
    // Upper-case letters alone.
    starts
        .into_iter()
        .map(|start| (start, run(start, Case::Lower)))
        .find(|(start, end)| end > start)
        .map_or(0, |e| e.1 - i)
}

/// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|`
/// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`
pub(super) fn cased_word(s: &Seg, i: usize) -> usize {
    cased(s, i, case_at)
}

/// [`cased_word`] and `(?i:'s|'t|'re|'ve|'m|'ll|'d)?`
pub(super) fn cased_word_contracted(s: &Seg, i: usize) -> usize {
    with_contraction(s, i, cased_word(s, i))
}

/// [`cased_word_contracted`] of letters that are not Han: the sets of [`cased`] with `&&[^\p{Han}]`.
pub(super) fn cased_word_not_han_contracted(s: &Seg, i: usize) -> usize {
    let case = |s: &Seg, i: usize| case_at(s, i).filter(|_| !unicode::is_han(s.chars[i]));
    with_contraction(s, i, cased(s, i, case))
}
