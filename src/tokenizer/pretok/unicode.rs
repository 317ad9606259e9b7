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

/// Ranges of characters, ascending and disjoint, with what they are.
struct Ranges<T>(Vec<(char, char, T)>);

impl<T: Copy> Ranges<T> {
    /// The characters of every pattern. Where two have a character in common the table would be wrong, so that none may.
    fn of(patterns: &[(&str, T)]) -> Self {
        let mut all = Vec::new();
        for (pattern, what) in patterns {
            if let Ok(hir) = regex_syntax::parse(pattern)
                && let HirKind::Class(HirClass::Unicode(set)) = hir.kind()
            {
                all.extend(set.ranges().iter().map(|r| (r.start(), r.end(), *what)));
            }
        }
        all.sort_unstable_by_key(|r| r.0);
        Ranges(all)
    }

    fn get(&self, c: char) -> Option<T> {
        let i = self.0.partition_point(|r| r.0 <= c).checked_sub(1)?;
        let (_, end, what) = self.0[i];
        (c <= end).then_some(what)
    }
}

fn lookup(c: char) -> Class {
    static TABLE: OnceLock<Ranges<Class>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        // White space is no letter, number, sign or mark: the blanks are \p{Z} or control characters.
        Ranges::of(&[
            (r"\s", Class::Space),
            (r"\p{L}", Class::Letter),
            (r"\p{N}", Class::Number),
            (r"\p{P}", Class::Punctuation),
            (r"\p{S}", Class::Symbol),
            (r"\p{M}", Class::Mark),
        ])
    });
    table.get(c).unwrap_or(Class::Other)
}

/// The case of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    /// `\p{Lu}` and `\p{Lt}`.
    Upper,
    /// `\p{Ll}`.
    Lower,
    /// `\p{Lm}` and `\p{Lo}`: scripts without cases, and letters that modify others.
    Neither,
}

/// The case of the letter `c`.
pub(crate) fn case(c: char) -> Case {
    static TABLE: OnceLock<Ranges<Case>> = OnceLock::new();
    match c {
        'a'..='z' => Case::Lower,
        'A'..='Z' => Case::Upper,
        _ => TABLE
            .get_or_init(|| Ranges::of(&[(r"[\p{Lu}\p{Lt}]", Case::Upper), (r"\p{Ll}", Case::Lower)]))
            .get(c)
            .unwrap_or(Case::Neither),
    }
}

/// Whether `c` is written in Han: `\p{Han}`, the property Script.
pub(crate) fn is_han(c: char) -> bool {
    static TABLE: OnceLock<Ranges<()>> = OnceLock::new();
    !c.is_ascii() && TABLE.get_or_init(|| Ranges::of(&[(r"\p{Han}", ())])).get(c).is_some()
}

/// Whether `c` is a decimal digit: `\d`, which is `\p{Nd}`.
pub(crate) fn is_decimal(c: char) -> bool {
    static TABLE: OnceLock<Ranges<()>> = OnceLock::new();
    c.is_ascii_digit() || !c.is_ascii() && TABLE.get_or_init(|| Ranges::of(&[(r"\d", ())])).get(c).is_some()
}

/// Whether `c` is part of a word for the word boundary `\b`: `\w`.
pub(crate) fn is_word(c: char) -> bool {
    static TABLE: OnceLock<Ranges<()>> = OnceLock::new();
    TABLE.get_or_init(|| Ranges::of(&[(r"\w", ())])).get(c).is_some()
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

    #[test]
    fn cases_of_typical_letters() {
        for (c, want) in [
            ('a', Case::Lower),
            ('A', Case::Upper),
            ('Т', Case::Upper),
            ('т', Case::Lower),
            ('ǅ', Case::Upper),
            ('ʰ', Case::Neither),
            ('न', Case::Neither),
            ('漢', Case::Neither),
        ] {
            assert_eq!(case(c), want, "{c:?}");
        }
        assert!(is_han('漢') && is_han('々') && is_han('〇') && is_han('⼀') && !is_han('ひ') && !is_han('a'));
        assert!(
            is_decimal('٣') && is_decimal('7') && !is_decimal('½') && is_word('_') && is_word('é') && !is_word('-')
        );
    }
}
