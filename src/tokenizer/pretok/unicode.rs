//! What a pre-tokenizer needs to know of a character: its general category, coarsely.
//!
//! The categories are those of the Unicode character database (UAX #44), read once from the tables of `regex-syntax`
//! and kept as a sorted list of ranges.

use regex_syntax::hir::{Class as HirClass, HirKind};
use std::sync::OnceLock;

/// The part of a character's general category that the pre-tokenizers' patterns ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// `\p{L}`.
    Letter,
    /// `\p{N}`.
    Number,
    /// `\p{P}`.
    Punctuation,
    /// `\p{S}`.
    Symbol,
    /// `\p{M}`: combining marks.
    Mark,
    /// `\s`: the property White_Space, whatever the category.
    Space,
    /// Control, format, private use, unassigned.
    Other,
}

struct Ranges(Vec<(char, char, Class)>);

fn table() -> &'static Ranges {
    static TABLE: OnceLock<Ranges> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut all = Vec::new();
        // White space is listed first and wins: the blanks are also \p{Z} or control characters, which no class below
        // contains, so the lists are disjoint.
        for (pattern, class) in [
            (r"\s", Class::Space),
            (r"\p{L}", Class::Letter),
            (r"\p{N}", Class::Number),
            (r"\p{P}", Class::Punctuation),
            (r"\p{S}", Class::Symbol),
            (r"\p{M}", Class::Mark),
        ] {
            if let Ok(hir) = regex_syntax::parse(pattern)
                && let HirKind::Class(HirClass::Unicode(set)) = hir.kind()
            {
                all.extend(set.ranges().iter().map(|r| (r.start(), r.end(), class)));
            }
        }
        all.sort_unstable_by_key(|r| r.0);
        Ranges(all)
    })
}

fn lookup(c: char) -> Class {
    let ranges = &table().0;
    let i = ranges.partition_point(|r| r.0 <= c);
    match i.checked_sub(1).map(|i| ranges[i]) {
        Some((_, end, class)) if c <= end => class,
        _ => Class::Other,
    }
}

/// The class of `c`.
pub(crate) fn class(c: char) -> Class {
    static ASCII: OnceLock<[Class; 128]> = OnceLock::new();
    match ASCII.get_or_init(|| std::array::from_fn(|i| lookup(i as u8 as char))).get(c as usize) {
        Some(class) => *class,
        None => lookup(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_typical_characters() {
        for (c, want) in [
            ('a', Class::Letter),
            ('É', Class::Letter),
            ('漢', Class::Letter),
            ('7', Class::Number),
            ('½', Class::Number),
            ('٣', Class::Number),
            ('!', Class::Punctuation),
            ('。', Class::Punctuation),
            ('+', Class::Symbol),
            ('~', Class::Symbol),
            ('😀', Class::Symbol),
            ('\u{301}', Class::Mark),
            (' ', Class::Space),
            ('\n', Class::Space),
            ('\u{85}', Class::Space),
            ('\u{a0}', Class::Space),
            ('\u{3000}', Class::Space),
            ('\0', Class::Other),
            ('\u{200d}', Class::Other),
            ('\u{10ffff}', Class::Other),
        ] {
            assert_eq!(class(c), want, "{c:?}");
        }
    }
}
