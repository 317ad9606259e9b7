//! The alternatives of the pre-tokenizers' patterns, each as one function.
//!
//! A pattern such as `\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+` is a list of alternatives that are tried in
//! order at every position. Here an alternative is a [`Rule`]: how many characters it takes at a position, 0 where it
//! does not match. They are written by hand because every one of them can be decided without backtracking, so that a
//! megabyte of blanks costs linear time and no stack, which no backtracking engine promises. The pattern that a rule
//! stands for is in its comment.

use super::unicode::{self, Class};

/// A piece of text as characters and their classes; both slices have equally many elements.
#[derive(Clone, Copy)]
pub(super) struct Seg<'a> {
    pub(super) chars: &'a [char],
    pub(super) class: &'a [Class],
}

/// How many characters an alternative takes at a position of a segment (0: it does not match).
pub(super) type Rule = fn(&Seg, usize) -> usize;

use Class::{Letter, Mark, Number, Punctuation, Space, Symbol};

impl Seg<'_> {
    fn is(&self, i: usize, class: Class) -> bool {
        self.class.get(i) == Some(&class)
    }

    fn char(&self, i: usize) -> Option<char> {
        self.chars.get(i).copied()
    }

    /// End of the run from `i` whose characters satisfy `test`.
    fn run(&self, i: usize, test: impl Fn(char, Class) -> bool) -> usize {
        let rest = self.chars.iter().zip(self.class).skip(i);
        i + rest.take_while(|(c, k)| test(**c, **k)).count()
    }

    fn run_of(&self, i: usize, class: Class) -> usize {
        self.run(i, |_, k| k == class)
    }

    fn newline(&self, i: usize) -> bool {
        matches!(self.char(i), Some('\r' | '\n'))
    }

    /// Whether `i` may be the one character before a word: `[^\r\n\p{L}\p{N}]`.
    pub(super) fn word_prefix(&self, i: usize) -> bool {
        i < self.chars.len() && !self.newline(i) && !self.is(i, Letter) && !self.is(i, Number)
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d`, letters of either case with `any_case` (the long s is one of s).
    fn contraction(&self, i: usize, any_case: bool) -> usize {
        if self.char(i) != Some('\'') {
            return 0;
        }
        let fold = |c: char| match c {
            'ſ' if any_case => 's',
            c if any_case => c.to_ascii_lowercase(),
            c => c,
        };
        match (self.char(i + 1).map(fold), self.char(i + 2).map(fold)) {
            (Some('s' | 't' | 'm' | 'd'), _) => 2,
            (Some('r' | 'v'), Some('e')) | (Some('l'), Some('l')) => 3,
            _ => 0,
        }
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d`
pub(super) fn contraction(s: &Seg, i: usize) -> usize {
    s.contraction(i, false)
}

/// `'(?i:[sdmt]|ll|ve|re)`
pub(super) fn contraction_any_case(s: &Seg, i: usize) -> usize {
    s.contraction(i, true)
}

/// ` ?X+` where X is the characters of one class.
fn spaced(s: &Seg, i: usize, test: impl Fn(Class) -> bool) -> usize {
    let start = i + usize::from(s.char(i) == Some(' '));
    let end = s.run(start, |_, k| test(k));
    if end > start { end - i } else { 0 }
}

/// ` ?\p{L}+`
pub(super) fn spaced_letters(s: &Seg, i: usize) -> usize {
    spaced(s, i, |k| k == Letter)
}

/// ` ?\p{N}+`
pub(super) fn spaced_numbers(s: &Seg, i: usize) -> usize {
    spaced(s, i, |k| k == Number)
}

fn is_symbol_like(k: Class) -> bool {
    !matches!(k, Space | Letter | Number)
}

/// ` ?[^\s\p{L}\p{N}]+`
pub(super) fn spaced_symbols(s: &Seg, i: usize) -> usize {
    spaced(s, i, is_symbol_like)
}

/// Extends a match that is not empty by the run of characters of `set`.
fn then(s: &Seg, i: usize, len: usize, set: &[char]) -> usize {
    if len == 0 { 0 } else { s.run(i + len, |c, _| set.contains(&c)) - i }
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n]*`
pub(super) fn spaced_symbols_newlines(s: &Seg, i: usize) -> usize {
    then(s, i, spaced_symbols(s, i), &['\r', '\n'])
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n/]*`
pub(super) fn spaced_symbols_newlines_slashes(s: &Seg, i: usize) -> usize {
    then(s, i, spaced_symbols(s, i), &['\r', '\n', '/'])
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n/]?`
pub(super) fn spaced_symbols_one_newline(s: &Seg, i: usize) -> usize {
    let len = spaced_symbols(s, i);
    len + usize::from(len > 0 && (s.newline(i + len) || s.char(i + len) == Some('/')))
}

/// ` ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*`
pub(super) fn spaced_unmarked_symbols_newlines(s: &Seg, i: usize) -> usize {
    then(s, i, spaced(s, i, |k| is_symbol_like(k) && k != Mark), &['\r', '\n'])
}

/// ` ?[\p{P}\p{S}]+[\r\n]*`
pub(super) fn spaced_punctuation_newlines(s: &Seg, i: usize) -> usize {
    then(s, i, spaced_punctuation(s, i), &['\r', '\n'])
}

/// ` ?[\p{P}\p{S}]+`
pub(super) fn spaced_punctuation(s: &Seg, i: usize) -> usize {
    spaced(s, i, |k| matches!(k, Punctuation | Symbol))
}

/// `\s+(?!\S)|\s+`: a run of blanks, less its last where something else follows.
pub(super) fn blanks(s: &Seg, i: usize) -> usize {
    let n = s.run_of(i, Space) - i;
    if n > 1 && i + n < s.chars.len() { n - 1 } else { n }
}

/// `\s*[\r\n]+`, and equally `\s*[\r\n]`: blanks up to the last line end among them.
pub(super) fn line_ends(s: &Seg, i: usize) -> usize {
    let end = s.run_of(i, Space);
    s.chars[i..end].iter().rposition(|c| matches!(c, '\r' | '\n')).map_or(0, |p| p + 1)
}

/// `[\r\n]`
pub(super) fn one_newline(s: &Seg, i: usize) -> usize {
    usize::from(s.newline(i))
}

/// `[^\n]+|[\n]+`
pub(super) fn lines(s: &Seg, i: usize) -> usize {
    let newline = s.char(i) == Some('\n');
    s.run(i, |c, _| (c == '\n') == newline) - i
}

/// `\s+$`: blanks that reach the end of the segment.
///
/// Where they do not, no later position of the same run can match either; the splitter asks at each of them, so only
/// the first position of a run is answered by walking it.
pub(super) fn trailing_blanks(s: &Seg, i: usize) -> usize {
    if i > 0 && s.is(i - 1, Space) {
        return 0;
    }
    let end = s.run_of(i, Space);
    if end == s.chars.len() { end - i } else { 0 }
}

/// `[^\r\n\p{L}\p{N}]?\p{L}+`
pub(super) fn word(s: &Seg, i: usize) -> usize {
    let start = i + usize::from(s.word_prefix(i));
    let end = s.run_of(start, Letter);
    if end > start { end - i } else { 0 }
}

/// `[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+`
pub(super) fn marked_word(s: &Seg, i: usize) -> usize {
    let start = i + usize::from(s.word_prefix(i) && !s.is(i, Mark));
    let end = s.run(start, |_, k| matches!(k, Letter | Mark));
    if end > start { end - i } else { 0 }
}

/// `[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+`
pub(super) fn marked_word_after_blank(s: &Seg, i: usize) -> usize {
    let prefix = i < s.chars.len() && !s.newline(i) && !matches!(s.class[i], Letter | Mark | Punctuation | Symbol);
    let start = i + usize::from(prefix);
    let end = s.run(start, |_, k| matches!(k, Letter | Mark));
    if end > start { end - i } else { 0 }
}

/// `X(?i:'s|'t|'re|'ve|'m|'ll|'d)?` for the word X of `len` characters.
pub(super) fn with_contraction(s: &Seg, i: usize, len: usize) -> usize {
    if len == 0 { 0 } else { len + s.contraction(i + len, true) }
}

/// `[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+`: words joined by single spaces.
pub(super) fn joined_words(s: &Seg, i: usize) -> usize {
    let start = i + usize::from(s.word_prefix(i));
    if !s.is(start, Letter) {
        return 0;
    }
    let mut end = start;
    loop {
        let letter = end + usize::from(end > start && s.char(end) == Some(' '));
        if !s.is(letter, Letter) {
            return end - i;
        }
        end = s.run_of(letter + 1, Mark);
    }
}

/// ``[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+``
pub(super) fn ascii_symbol_word(s: &Seg, i: usize) -> usize {
    if !s.char(i).is_some_and(|c| c.is_ascii_punctuation()) {
        return 0;
    }
    let end = s.run(i + 1, |c, _| c.is_ascii_alphabetic());
    if end > i + 1 { end - i } else { 0 }
}

/// `\s?X+`
fn blank_then(s: &Seg, i: usize, test: impl Fn(char, Class) -> bool) -> usize {
    let start = i + usize::from(s.is(i, Space));
    let end = s.run(start, test);
    if end > start { end - i } else { 0 }
}

/// `\s?\p{L}+`
pub(super) fn blank_letters(s: &Seg, i: usize) -> usize {
    blank_then(s, i, |_, k| k == Letter)
}

/// `\s?\p{P}+`
pub(super) fn blank_punctuation(s: &Seg, i: usize) -> usize {
    blank_then(s, i, |_, k| k == Punctuation)
}

/// `\s?[A-Za-zµÀ-Ö…]+`: cased letters of the bicameral scripts.
pub(super) fn blank_cased_letters(s: &Seg, i: usize) -> usize {
    blank_then(s, i, |c, _| in_ranges(c, super::ranges::CASED_LETTERS))
}

/// `\s?[!-/:-~！-／：-～‘-‟　-。]+`
pub(super) fn blank_signs(s: &Seg, i: usize) -> usize {
    blank_then(s, i, |c, k| k != Space && in_ranges(c, super::ranges::SIGNS))
}

/// `\p{N}`
pub(super) fn digit(s: &Seg, i: usize) -> usize {
    usize::from(s.is(i, Number))
}

/// `\p{N}{1,3}`
pub(super) fn three_digits(s: &Seg, i: usize) -> usize {
    (i..i + 3).take_while(|j| s.is(*j, Number)).count()
}

/// `\p{N}+`
pub(super) fn digits(s: &Seg, i: usize) -> usize {
    s.run_of(i, Number) - i
}

/// `[0-9][0-9][0-9]`
pub(super) fn exactly_three_ascii_digits(s: &Seg, i: usize) -> usize {
    if (i..i + 3).all(|j| s.char(j).is_some_and(|c| c.is_ascii_digit())) { 3 } else { 0 }
}

/// `\d{1,3}(?=(?:\d{3})*\b)`: numbers before the end of a word in thousands counted from the right; the text between them
/// stays as it is.
///
/// A whole segment at once, as lengths of pieces: every group depends on the length of its number.
pub(super) fn thousands(s: &Seg, out: &mut Vec<usize>) {
    let mut rest = 0;
    let mut i = 0;
    while i < s.chars.len() {
        let n = s.run(i, |c, _| unicode::is_decimal(c)) - i;
        if n == 0 || s.char(i + n).is_some_and(unicode::is_word) {
            i += n.max(1);
            continue;
        }
        out.extend((i > rest).then_some(i - rest));
        out.push((n - 1) % 3 + 1);
        out.extend(std::iter::repeat_n(3, (n - 1) / 3));
        i += n;
        rest = i;
    }
    out.extend((s.chars.len() > rest).then_some(s.chars.len() - rest));
}

/// Numbers as llama.cpp groups them for AFMoE: numbers in thousands counted from the right,
/// where the text before a number stays with its first group (a later stage separates them).
///
/// A whole segment at once, as lengths of pieces: every group depends on the length of its number.
pub(super) fn text_and_thousands(s: &Seg, out: &mut Vec<usize>) {
    let mut i = 0;
    while i < s.chars.len() {
        let number = s.run(i, |_, k| k != Number);
        let n = s.run_of(number, Number) - number;
        if n == 0 {
            out.push(s.chars.len() - i);
            return;
        }
        let first = (n - 1) % 3 + 1;
        out.push(number - i + first);
        out.extend(std::iter::repeat_n(3, (n - 1) / 3));
        i = number + n;
    }
}

/// ``[\p{P}$+<=>^~|]+``
pub(super) fn signs(s: &Seg, i: usize) -> usize {
    s.run(i, |c, k| k == Punctuation || "$+<=>^~|".contains(c)) - i
}

/// ``[\p{P}$+<=>^~|`]+``
pub(super) fn signs_and_backtick(s: &Seg, i: usize) -> usize {
    s.run(i, |c, k| k == Punctuation || "$+<=>^~|`".contains(c)) - i
}

fn in_ranges(c: char, ranges: &[(u32, u32)]) -> bool {
    let c = c as u32;
    ranges.iter().any(|r| r.0 <= c && c <= r.1)
}

macro_rules! range_runs {
    ($($(#[$doc:meta])* $name:ident = $ranges:ident;)*) => {$(
        $(#[$doc])*
        pub(super) fn $name(s: &Seg, i: usize) -> usize {
            s.run(i, |c, k| k != Space && in_ranges(c, super::ranges::$ranges)) - i
        }
    )*};
}

range_runs! {
    /// `[一-龥ࠀ-一가-퟿]+`
    cjk_wide = CJK_WIDE;
    /// `[一-龥぀-ゟ゠-ヿ]+`
    cjk_kana = CJK_KANA;
    /// CJK and the scripts of South-East Asia, as AFMoE lists them.
    asian = ASIAN;
    /// `[가-힣ㄱ-ㆎ]+`
    hangul = HANGUL;
    /// `[！…“”‘’—：；，、-〿︰-﹏]+`
    cjk_signs = CJK_SIGNS;
    /// `[ㄅ-ㄯ]+`
    bopomofo = BOPOMOFO;
}

/// `[\p{Han}]+`
pub(super) fn han(s: &Seg, i: usize) -> usize {
    s.run(i, |c, _| unicode::is_han(c)) - i
}
