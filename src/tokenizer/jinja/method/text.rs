//! Methods of Python's strings.

use crate::tokenizer::jinja::{
    Outcome, fault, format,
    run::{Given, Run},
    text::{Builder, Text, joined},
    value::{SeqKind, Value, is_printable},
};
use std::ops::Range;

/// Calls `text.name(...)`.
pub(in crate::tokenizer::jinja) fn call(run: &Run, s: &Text, name: &str, given: Given) -> Outcome<Value> {
    run.pay(s.len() / 16)?;
    let t = s.as_str();
    let text = |made: Text| Ok(Value::Str(made));
    let truth = |b: bool| Ok(Value::Bool(b));
    match name {
        "lower" => text(s.made(t.to_lowercase())),
        "casefold" => text(s.made(t.to_lowercase().replace('ß', "ss").replace('ς', "σ"))),
        "upper" => text(s.made(t.to_uppercase())),
        "capitalize" => text(s.made(capitalized(t))),
        "title" => text(s.made(titled(t))),
        "swapcase" => text(s.made(swapped(t))),
        "strip" | "lstrip" | "rstrip" => text(stripped(s, name, given.text(0, "chars")?.as_ref())),
        "removeprefix" => {
            let prefix = needed(&given, 0, "prefix")?;
            let from = if t.starts_with(prefix.as_str()) { prefix.len() } else { 0 };
            text(s.slice(from..t.len()))
        }
        "removesuffix" => {
            let suffix = needed(&given, 0, "suffix")?;
            let to = if t.ends_with(suffix.as_str()) { t.len() - suffix.len() } else { t.len() };
            text(s.slice(0..to))
        }
        "startswith" | "endswith" => truth(affixed(s, name == "startswith", &given)?),
        "find" | "rfind" | "index" | "rindex" | "count" => searched(s, name, &given),
        "split" | "rsplit" => split(s, name == "rsplit", &given),
        "splitlines" => Ok(Value::list(
            lines(s, given.truth(0, "keepends", false)).into_iter().map(|r| Value::Str(s.slice(r))).collect(),
        )),
        "partition" | "rpartition" => partitioned(s, name == "rpartition", &needed(&given, 0, "sep")?),
        "replace" => replaced(run, s, &needed(&given, 0, "old")?, &needed(&given, 1, "new")?, given.int(2, "count")?)
            .map(Value::Str),
        "join" => {
            let items = given.need(0, "iterable")?.defined()?.items()?;
            let mut out = Builder::default();
            for (i, item) in items.iter().enumerate() {
                let Value::Str(part) = item else {
                    return fault(format!("sequence item {i}: expected str instance, {} found", item.type_name()));
                };
                if i > 0 {
                    out.push(s);
                }
                out.push(part);
            }
            text(out.finish())
        }
        "format" => format::braces(run, s, &given).map(Value::Str),
        "format_map" => {
            let Value::Dict(d) = given.need(0, "mapping")? else { return fault("format_map() takes a mapping") };
            let named = d.entries.iter().map(|(k, v)| (k.to_text().as_str().to_owned(), v.clone())).collect();
            format::braces(run, s, &Given { positional: vec![], named }).map(Value::Str)
        }
        "center" | "ljust" | "rjust" => {
            let Some(width) = given.int(0, "width")? else { return fault("a width is missing") };
            let fill = given.text(1, "fillchar")?.unwrap_or_else(|| Text::own(" "));
            aligned(run, s, name, width, &fill).map(Value::Str)
        }
        "zfill" => {
            let Some(width) = given.int(0, "width")? else { return fault("a width is missing") };
            let missing = usize::try_from(width).unwrap_or(0).saturating_sub(t.chars().count());
            run.pay(missing)?;
            let sign = usize::from(t.starts_with(['+', '-']));
            text(joined([&s.slice(0..sign), &Text::own("0".repeat(missing)), &s.slice(sign..t.len())]))
        }
        "expandtabs" => text(s.made(expanded(t, given.int(0, "tabsize")?.unwrap_or(8).clamp(0, 1000) as usize))),
        _ => match predicate(t, name) {
            Some(holds) => Ok(Value::Bool(holds)),
            None => fault(format!("'str object' has no attribute '{name}'")),
        },
    }
}

/// What the methods named `is...` say of a text.
fn predicate(t: &str, name: &str) -> Option<bool> {
    Some(match name {
        "isspace" => !t.is_empty() && t.chars().all(char::is_whitespace),
        "isalpha" => !t.is_empty() && t.chars().all(is_letter),
        "isalnum" => !t.is_empty() && t.chars().all(|c| is_letter(c) || c.is_numeric()),
        "isascii" => t.is_ascii(),
        "isdecimal" | "isdigit" | "isnumeric" => {
            let digit = |c: char| c.is_ascii_digit() || (!c.is_ascii() && is_number(c, name));
            !t.is_empty() && t.chars().all(digit)
        }
        "isidentifier" => {
            let begins = t.starts_with(|c: char| is_letter(c) || c == '_');
            begins && t.chars().all(|c| is_letter(c) || c.is_numeric() || c == '_')
        }
        "islower" => t.chars().any(char::is_lowercase) && !t.chars().any(char::is_uppercase),
        "isupper" => t.chars().any(char::is_uppercase) && !t.chars().any(char::is_lowercase),
        "istitle" => t.chars().any(|c| c.is_alphabetic()) && titled(t) == t,
        "isprintable" => t.chars().all(is_printable),
        _ => return None,
    })
}

fn needed(given: &Given, at: usize, name: &str) -> Outcome<Text> {
    given.need(at, name)?;
    given.text(at, name)?.map_or_else(|| fault(format!("'{name}' must be str, not None")), Ok)
}

fn is_letter(c: char) -> bool {
    use crate::tokenizer::pretok::unicode::{Class, class};
    class(c) == Class::Letter
}

/// Numbers outside of ASCII: decimal digits, digits with a form of their own, and all numbers.
fn is_number(c: char, method: &str) -> bool {
    let decimal = c.is_numeric() && regex_decimal(c);
    match method {
        "isdecimal" => decimal,
        "isdigit" => decimal || matches!(c, '²' | '³' | '¹' | '⁰'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⑴'..='⑼'),
        _ => c.is_numeric(),
    }
}

/// `\p{Nd}`: ten digits in a row, whose first stands for zero in its script.
fn regex_decimal(c: char) -> bool {
    use regex_syntax::hir::{Class, HirKind};
    use std::sync::OnceLock;
    static RANGES: OnceLock<Vec<(char, char)>> = OnceLock::new();
    let ranges = RANGES.get_or_init(|| match regex_syntax::parse(r"\p{Nd}").map(|h| h.into_kind()) {
        Ok(HirKind::Class(Class::Unicode(set))) => set.ranges().iter().map(|r| (r.start(), r.end())).collect(),
        _ => vec![],
    });
    ranges.iter().any(|r| (r.0..=r.1).contains(&c))
}

pub(in crate::tokenizer::jinja) fn capitalized(t: &str) -> String {
    let mut chars = t.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

/// Letters of two, in upper, title and lower case.
const DIGRAPHS: [[char; 3]; 4] = [['Ǆ', 'ǅ', 'ǆ'], ['Ǉ', 'ǈ', 'ǉ'], ['Ǌ', 'ǋ', 'ǌ'], ['Ǳ', 'ǲ', 'ǳ']];

fn titled(t: &str) -> String {
    let mut out = String::with_capacity(t.len());
    let mut inside = false;
    for c in t.chars() {
        match (c.is_alphabetic(), inside) {
            (true, true) => out.extend(c.to_lowercase()),
            (true, false) => match DIGRAPHS.iter().find(|d| d.contains(&c)) {
                Some(d) => out.push(d[1]),
                None => out.extend(c.to_uppercase()),
            },
            (false, _) => out.push(c),
        }
        inside = c.is_alphabetic();
    }
    out
}

fn swapped(t: &str) -> String {
    let swap = |c: char| -> Vec<char> {
        if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
    };
    t.chars().flat_map(swap).collect()
}

/// `strip` and its kin; without `chars` white space goes.
pub(in crate::tokenizer::jinja) fn stripped(s: &Text, name: &str, chars: Option<&Text>) -> Text {
    let goes = |c: char| match chars {
        Some(set) => set.as_str().contains(c),
        None => c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c),
    };
    let t = s.as_str();
    let from = if name == "rstrip" { 0 } else { t.len() - t.trim_start_matches(goes).len() };
    let to = if name == "lstrip" { t.len() } else { t.trim_end_matches(goes).len() };
    if from >= to { Text::default() } else { s.slice(from..to) }
}

/// The bytes between two of Python's positions.
fn window(t: &str, start: Option<i128>, end: Option<i128>) -> Option<Range<usize>> {
    if start.is_none() && end.is_none() {
        return Some(0..t.len());
    }
    let n = t.chars().count() as i128;
    let at = |i: i128| if i < 0 { (i + n).max(0) } else { i };
    let (from, to) = (at(start.unwrap_or(0)), at(end.unwrap_or(n)).min(n));
    if from > to {
        return None;
    }
    let byte = |i: i128| t.char_indices().nth(i as usize).map_or(t.len(), |c| c.0);
    Some(byte(from)..byte(to))
}

fn affixed(s: &Text, start: bool, given: &Given) -> Outcome<bool> {
    let Some(range) = window(s.as_str(), given.int(1, "start")?, given.int(2, "end")?) else { return Ok(false) };
    let t = &s.as_str()[range];
    let one = |v: &Value| match v {
        Value::Str(a) if start => Ok(t.starts_with(a.as_str())),
        Value::Str(a) => Ok(t.ends_with(a.as_str())),
        other => {
            other.defined()?;
            let name = if start { "startswith" } else { "endswith" };
            let of = other.type_name();
            fault(format!("{name} first arg must be str or a tuple of str, not {of}"))
        }
    };
    match given.need(0, "prefix")? {
        Value::Seq(SeqKind::Tuple, items) => {
            for item in items.iter() {
                if one(item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => one(other),
    }
}

fn searched(s: &Text, name: &str, given: &Given) -> Outcome<Value> {
    let wanted = needed(given, 0, "sub")?;
    let (t, w) = (s.as_str(), wanted.as_str());
    let range = window(t, given.int(1, "start")?, given.int(2, "end")?);
    if name == "count" {
        let n = range.map_or(0, |r| if w.is_empty() { t[r].chars().count() + 1 } else { t[r].matches(w).count() });
        return Ok(Value::Int(n as i128));
    }
    let found = range.and_then(|r| {
        let part = &t[r.clone()];
        let at = if name.starts_with('r') { part.rfind(w) } else { part.find(w) };
        at.map(|at| t[..r.start + at].chars().count() as i128)
    });
    match found {
        Some(at) => Ok(Value::Int(at)),
        None if name.ends_with("index") => fault("substring not found"),
        None => Ok(Value::Int(-1)),
    }
}

fn split(s: &Text, from_right: bool, given: &Given) -> Outcome<Value> {
    let t = s.as_str();
    let most = given.int(1, "maxsplit")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let mut ranges: Vec<Range<usize>> = match given.text(0, "sep")? {
        Some(sep) if sep.len() == 0 => return fault("empty separator"),
        Some(sep) => {
            let sep = sep.as_str();
            let cuts: Vec<usize> = if from_right {
                let mut c: Vec<usize> = t.rmatch_indices(sep).map(|m| m.0).take(most).collect();
                c.reverse();
                c
            } else {
                t.match_indices(sep).map(|m| m.0).take(most).collect()
            };
            let starts = std::iter::once(0).chain(cuts.iter().map(|c| c + sep.len()));
            starts.zip(cuts.iter().copied().chain([t.len()])).map(|(a, b)| a..b).collect()
        }
        None => words(t),
    };
    let by_words = given.text(0, "sep")?.is_none();
    if by_words && ranges.len() > most {
        // What is beyond the limit stays together, with the blanks at its far end.
        if from_right {
            let keep = ranges.split_off(ranges.len() - most);
            let end = ranges.last().map_or(0, |r| r.end);
            ranges = std::iter::once(0..end).chain(keep).collect();
        } else {
            let rest = ranges[most].start;
            ranges.truncate(most);
            ranges.push(rest..t.len());
        }
    }
    Ok(Value::list(ranges.into_iter().map(|r| Value::Str(s.slice(r))).collect()))
}

/// The ranges of words between white space.
fn words(t: &str) -> Vec<Range<usize>> {
    let base = t.as_ptr() as usize;
    let range = |w: &str| (w.as_ptr() as usize - base)..(w.as_ptr() as usize - base + w.len());
    t.split_whitespace().map(range).collect()
}

/// The ranges of lines, by all of Python's line ends.
fn lines(s: &Text, keep_ends: bool) -> Vec<Range<usize>> {
    let t = s.as_str();
    let is_end = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut out = vec![];
    let mut from = 0;
    while from < t.len() {
        let Some(at) = t[from..].find(is_end) else {
            out.push(from..t.len());
            break;
        };
        let end = from + at;
        let width = if t[end..].starts_with("\r\n") { 2 } else { t[end..].chars().next().map_or(1, char::len_utf8) };
        out.push(from..if keep_ends { end + width } else { end });
        from = end + width;
    }
    out
}

fn partitioned(s: &Text, from_right: bool, sep: &Text) -> Outcome<Value> {
    if sep.len() == 0 {
        return fault("empty separator");
    }
    let t = s.as_str();
    let at = if from_right { t.rfind(sep.as_str()) } else { t.find(sep.as_str()) };
    let parts = match at {
        Some(at) => [s.slice(0..at), s.slice(at..at + sep.len()), s.slice(at + sep.len()..t.len())],
        None if from_right => [Text::default(), Text::default(), s.clone()],
        None => [s.clone(), Text::default(), Text::default()],
    };
    Ok(Value::tuple(parts.into_iter().map(Value::Str).collect()))
}

/// `replace`: what stays keeps its origin, what comes in brings its own.
pub(in crate::tokenizer::jinja) fn replaced(
    run: &Run,
    s: &Text,
    old: &Text,
    new: &Text,
    count: Option<i128>,
) -> Outcome<Text> {
    let most = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let t = s.as_str();
    let places: Vec<usize> = if old.len() == 0 {
        t.char_indices().map(|c| c.0).chain([t.len()]).take(most).collect()
    } else {
        t.match_indices(old.as_str()).map(|m| m.0).take(most).collect()
    };
    run.pay(places.len().saturating_mul(1 + new.len() / 16))?;
    let mut out = Builder::default();
    let mut from = 0;
    for at in places {
        out.push(&s.slice(from..at));
        out.push(new);
        from = at + old.len();
    }
    out.push(&s.slice(from..t.len()));
    Ok(out.finish())
}

/// `center`, `ljust`, `rjust`.
pub(in crate::tokenizer::jinja) fn aligned(run: &Run, s: &Text, name: &str, width: i128, fill: &Text) -> Outcome<Text> {
    if fill.as_str().chars().count() != 1 {
        return fault("The fill character must be exactly one character long");
    }
    let length = s.as_str().chars().count();
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(length);
    run.pay(missing)?;
    let left = match name {
        "rjust" => missing,
        "ljust" => 0,
        // Python puts the odd one left where the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let blank = |n: usize| fill.made(fill.as_str().repeat(n));
    Ok(joined([&blank(left), s, &blank(missing - left)]))
}

fn expanded(t: &str, size: usize) -> String {
    let mut out = String::with_capacity(t.len());
    let mut column = 0;
    for c in t.chars() {
        match c {
            '\t' if size > 0 => {
                let n = size - column % size;
                out.extend(std::iter::repeat_n(' ', n));
                column += n;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}
