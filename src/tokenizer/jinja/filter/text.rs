//! Filters over texts.

use crate::tokenizer::jinja::{
    Outcome, fault, format, method,
    run::{Given, Run},
    text::{Builder, Text, joined},
    value::{Dict, Value},
};
use std::rc::Rc;

/// Filters over texts: what they are given is turned into a text first.
pub(super) fn apply(run: &Run, name: &str, value: &Value, given: &Given) -> Option<Outcome<Value>> {
    let s = value.to_text();
    if run.pay(s.len() / 16).is_err() {
        return Some(fault("it takes too many steps"));
    }
    let t = s.as_str();
    let done = match name {
        "string" | "safe" => Ok(s),
        "lower" => Ok(s.made(t.to_lowercase())),
        "upper" => Ok(s.made(t.to_uppercase())),
        "capitalize" => Ok(s.made(method::capitalized(t))),
        "title" => Ok(s.made(title(t))),
        "trim" => given.text(0, "chars").map(|chars| method::stripped(&s, "strip", chars.as_ref())),
        "escape" | "e" | "forceescape" => Ok(escaped(&s)),
        "replace" => replace(run, &s, given),
        "indent" => indent(&s, given),
        "truncate" => truncate(&s, given),
        "center" => {
            given.int(0, "width").and_then(|w| method::aligned(run, &s, "center", w.unwrap_or(80), &Text::own(" ")))
        }
        "format" => match (&given.positional[..], &given.named[..]) {
            (args, []) => format::percent(run, &s, &Value::tuple(args.to_vec())),
            ([], named) => {
                let entries = named.iter().map(|(k, v)| (Value::own(k.as_str()), v.clone()));
                Dict::of(entries).and_then(|d| format::percent(run, &s, &Value::Dict(Rc::new(d))))
            }
            _ => fault("can't handle positional and keyword arguments at the same time"),
        },
        "striptags" => Ok(s.made(without_tags(t))),
        "wordwrap" => wordwrap(&s, given),
        "wordcount" => {
            let n = t.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).count();
            return Some(Ok(Value::Int(n as i128)));
        }
        _ => return None,
    };
    Some(done.map(Value::Str))
}

/// Jinja's own: words begin behind white space, hyphens and opening brackets.
fn title(t: &str) -> String {
    let mut out = String::with_capacity(t.len());
    let mut begins = true;
    for c in t.chars() {
        if c == '-' || c.is_whitespace() || "({[<".contains(c) {
            begins = true;
            out.push(c);
        } else if begins {
            out.extend(c.to_uppercase());
            begins = false;
        } else {
            out.extend(c.to_lowercase());
        }
    }
    out
}

pub(super) fn escaped(s: &Text) -> Text {
    let mut out = Builder::default();
    let mut from = 0;
    for (i, c) in s.as_str().char_indices() {
        let entity = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '"' => "&#34;",
            '\'' => "&#39;",
            _ => continue,
        };
        out.push(&s.slice(from..i));
        out.own(entity);
        from = i + 1;
    }
    out.push(&s.slice(from..s.len()));
    out.finish()
}

fn replace(run: &Run, s: &Text, given: &Given) -> Outcome<Text> {
    given.only("replace", &["old", "new", "count"])?;
    let (old, new) = (given.need(0, "old")?.to_text(), given.need(1, "new")?.to_text());
    method::replaced(run, s, &old, &new, given.int(2, "count")?)
}

fn indent(s: &Text, given: &Given) -> Outcome<Text> {
    given.only("indent", &["width", "first", "blank"])?;
    let by = match given.get(0, "width") {
        Some(Value::Str(s)) => s.clone(),
        _ => Text::own(" ".repeat(given.int(0, "width")?.unwrap_or(4).clamp(0, 1000) as usize)),
    };
    let (first, blank) = (given.truth(1, "first", false), given.truth(2, "blank", false));
    let mut out = Builder::default();
    if first {
        out.push(&by);
    }
    let mut from = 0;
    let t = s.as_str();
    for (i, line) in t.split('\n').enumerate() {
        if i > 0 {
            out.own("\n");
            if blank || !line.is_empty() {
                out.push(&by);
            }
        }
        out.push(&s.slice(from..from + line.len()));
        from += line.len() + 1;
    }
    Ok(out.finish())
}

fn truncate(s: &Text, given: &Given) -> Outcome<Text> {
    given.only("truncate", &["length", "killwords", "end", "leeway"])?;
    let length = given.int(0, "length")?.unwrap_or(255).max(0) as usize;
    let end = given.text(2, "end")?.unwrap_or_else(|| Text::own("..."));
    let leeway = given.int(3, "leeway")?.unwrap_or(5).max(0) as usize;
    let end_length = end.as_str().chars().count();
    if length < end_length {
        return fault(format!("expected length >= {end_length}, got {length}"));
    }
    if s.as_str().chars().count() <= length.saturating_add(leeway) {
        return Ok(s.clone());
    }
    let cut = s.as_str().char_indices().nth(length - end_length).map_or(s.len(), |c| c.0);
    let mut kept = s.slice(0..cut);
    if !given.truth(1, "killwords", false)
        && let Some(space) = kept.as_str().rfind(' ')
    {
        kept = kept.slice(0..space);
    }
    Ok(joined([&kept, &end]))
}

fn without_tags(t: &str) -> String {
    let mut out = String::new();
    let mut rest = t;
    while let Some(i) = rest.find('<') {
        let end = if rest[i..].starts_with("<!--") { rest[i..].find("-->").map(|e| e + 3) } else { None };
        let end = end.or_else(|| rest[i..].find('>').map(|e| e + 1));
        let Some(end) = end else { break };
        out.push_str(&rest[..i]);
        rest = &rest[i + end..];
    }
    out.push_str(rest);
    let plain = out.split_whitespace().collect::<Vec<_>>().join(" ");
    [("&lt;", "<"), ("&gt;", ">"), ("&#34;", "\""), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]
        .iter()
        .fold(plain, |t, (entity, c)| t.replace(entity, c))
}

/// Python's `textwrap.wrap` of every line.
fn wordwrap(s: &Text, given: &Given) -> Outcome<Text> {
    given.only("wordwrap", &["width", "break_long_words", "wrapstring", "break_on_hyphens"])?;
    let width = given.int(0, "width")?.unwrap_or(79).clamp(1, 100_000) as usize;
    let breaks = given.truth(1, "break_long_words", true);
    let newline = given.text(2, "wrapstring")?.unwrap_or_else(|| Text::own("\n"));
    let hyphens = given.truth(3, "break_on_hyphens", true);
    let mut lines: Vec<String> = vec![];
    for paragraph in s.as_str().lines() {
        let mut chunks: Vec<String> = chunks(paragraph, hyphens);
        chunks.reverse();
        let mut any = false;
        while !chunks.is_empty() {
            let mut line = String::new();
            let mut used = 0;
            if any && chunks.last().is_some_and(|c| c.trim().is_empty()) {
                chunks.pop();
            }
            while let Some(chunk) = chunks.pop() {
                let n = chunk.chars().count();
                if used + n <= width {
                    line.push_str(&chunk);
                    used += n;
                } else if n > width && (breaks || used == 0) {
                    let room = if breaks { width - used } else { n };
                    let at = chunk.char_indices().nth(room).map_or(chunk.len(), |c| c.0);
                    line.push_str(&chunk[..at]);
                    if at < chunk.len() {
                        chunks.push(chunk[at..].to_owned());
                    }
                    break;
                } else {
                    chunks.push(chunk);
                    break;
                }
            }
            let line = line.trim_end().to_owned();
            if !line.is_empty() {
                lines.push(line);
                any = true;
            }
        }
        if !any {
            lines.push(String::new());
        }
    }
    Ok(s.made(lines.join(newline.as_str())))
}

/// Words, blanks, and words cut behind hyphens between letters.
fn chunks(line: &str, hyphens: bool) -> Vec<String> {
    let mut out: Vec<String> = vec![];
    let chars: Vec<char> = line.chars().collect();
    let mut current = String::new();
    for (i, c) in chars.iter().enumerate() {
        if current.chars().next_back().is_some_and(|last| last.is_whitespace() != c.is_whitespace()) {
            out.push(std::mem::take(&mut current));
        }
        current.push(*c);
        let between = |d: isize| chars.get(i.wrapping_add_signed(d)).is_some_and(|c| c.is_alphabetic());
        if hyphens && *c == '-' && between(-1) && between(1) {
            out.push(std::mem::take(&mut current));
        }
    }
    if !current.is_empty() {
        out.push(current);
    }
    out
}
