//! Filters over single values; those over sequences are in [`super::sequence`].

use super::{
    Outcome, fault, format, json, method,
    names::{FILTERS, SEQUENCE_FILTERS},
    number::{parse_float, parse_int, round},
    operator,
    run::{Given, Run},
    sequence,
    text::{Builder, Text, joined},
    value::{SeqKind, Value},
};

/// `value | name(...)`.
pub(super) fn apply(run: &Run, name: &str, value: Value, given: Given) -> Outcome<Value> {
    if name == "map" {
        return map(run, &value, given);
    }
    if SEQUENCE_FILTERS.contains(&name) {
        return sequence::apply(run, name, value, given);
    }
    if !FILTERS.contains(&name) {
        return fault(format!("No filter named '{name}'."));
    }
    if matches!(name, "default" | "d") {
        given.only(name, &["default_value", "boolean"])?;
        let gone = matches!(value, Value::Undefined(_)) || given.truth(1, "boolean", false) && !value.is_true();
        return Ok(if gone { given.get(0, "default_value").cloned().unwrap_or_else(|| Value::own("")) } else { value });
    }
    number(name, &value, &given)
        .or_else(|| text(run, name, &value, &given))
        .unwrap_or_else(|| object(&value, name, &given))
}

/// Filters that make numbers.
fn number(name: &str, value: &Value, given: &Given) -> Option<Outcome<Value>> {
    let result = match name {
        "int" => int(value, given),
        "float" => {
            let found = match value {
                Value::Str(s) => parse_float(s.as_str()),
                Value::Undefined(what) => return Some(fault(what.to_string())),
                other => other.float(),
            };
            Ok(match found {
                Some(x) => Value::Float(x),
                None => given.get(0, "default").cloned().unwrap_or(Value::Float(0.0)),
            })
        }
        "abs" => match (value.int(), value) {
            (Some(i), _) => Ok(Value::Int(i.saturating_abs())),
            (None, Value::Float(x)) => Ok(Value::Float(x.abs())),
            _ => value.defined().and_then(|v| fault(format!("bad operand type for abs(): '{}'", v.type_name()))),
        },
        "round" => rounded(value, given),
        _ => return None,
    };
    Some(result)
}

fn int(value: &Value, given: &Given) -> Outcome<Value> {
    let default = || given.get(0, "default").cloned().unwrap_or(Value::Int(0));
    Ok(match value {
        Value::Undefined(what) => return fault(what.to_string()),
        Value::Str(s) => {
            let base = given.int(1, "base")?.unwrap_or(10).clamp(0, 36) as u32;
            let whole = parse_int(s.as_str(), base);
            let cut = || parse_float(s.as_str()).filter(|x| x.is_finite()).map(|x| x.trunc() as i128);
            whole.or_else(cut).map_or_else(default, Value::Int)
        }
        Value::Float(x) if x.is_finite() => Value::Int(x.trunc() as i128),
        other => other.int().map_or_else(default, Value::Int),
    })
}

fn rounded(value: &Value, given: &Given) -> Outcome<Value> {
    given.only("round", &["precision", "method"])?;
    let places = given.int(0, "precision")?.unwrap_or(0).clamp(-400, 400) as i64;
    let method = given.text(1, "method")?.unwrap_or_else(|| Text::own("common"));
    let Some(x) = value.defined()?.float() else {
        return fault(format!("type {} doesn't define __round__ method", value.type_name()));
    };
    let scale = 10f64.powi(places as i32);
    match (method.as_str(), value.int()) {
        ("common", Some(i)) if places >= 0 => Ok(Value::Int(i)),
        ("common", Some(_)) => Ok(Value::Int(round(x, places) as i128)),
        ("common", None) => Ok(Value::Float(round(x, places))),
        ("ceil", _) => Ok(Value::Float((x * scale).ceil() / scale)),
        ("floor", _) => Ok(Value::Float((x * scale).floor() / scale)),
        _ => fault("method must be common, ceil or floor"),
    }
}

/// Filters over texts: what they are given is turned into a text first.
fn text(run: &Run, name: &str, value: &Value, given: &Given) -> Option<Outcome<Value>> {
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
                super::value::Dict::of(entries)
                    .and_then(|d| format::percent(run, &s, &Value::Dict(std::rc::Rc::new(d))))
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

/// What is left: filters that look at the value itself.
fn object(value: &Value, name: &str, given: &Given) -> Outcome<Value> {
    match name {
        "tojson" => tojson(value, given),
        "attr" => match given.text(0, "name")? {
            Some(name) => operator::attribute_only(value, name.as_str()),
            None => fault("attr() takes a name"),
        },
        "pprint" => Ok(Value::Str(value.repr())),
        "filesizeformat" => filesize(value, given),
        "urlencode" => urlencode(value),
        "xmlattr" => xmlattr(value, given),
        other => fault(format!("No filter named '{other}'.")),
    }
}

fn tojson(value: &Value, given: &Given) -> Outcome<Value> {
    given.only("tojson", &["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match given.get(1, "indent") {
        None | Some(Value::None) => None,
        Some(Value::Str(s)) => Some(s.clone()),
        Some(v) => match v.defined()?.int() {
            Some(n) => Some(Text::own(" ".repeat(n.clamp(0, 64) as usize))),
            None => return fault("indent must be a number or a text"),
        },
    };
    let (between, colon) = match given.get(2, "separators") {
        None | Some(Value::None) => (Text::own(if indent.is_some() { "," } else { ", " }), Text::own(": ")),
        Some(v) => {
            let items = v.defined()?.items()?;
            let [Value::Str(a), Value::Str(b)] = &items[..] else { return fault("separators are two texts") };
            (a.clone(), b.clone())
        }
    };
    let style = json::Style {
        ascii: given.truth(0, "ensure_ascii", false),
        indent,
        between,
        colon,
        sorted: given.truth(3, "sort_keys", false),
    };
    json::dumps(value, &style).map(Value::Str)
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

fn escaped(s: &Text) -> Text {
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

fn filesize(value: &Value, given: &Given) -> Outcome<Value> {
    let binary = given.truth(0, "binary", false);
    let bytes = match value {
        Value::Str(s) => parse_float(s.as_str()),
        other => other.float(),
    };
    let Some(bytes) = bytes else { return fault("filesizeformat takes a number") };
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::own("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::own(format!("{} Bytes", bytes.trunc() as i128)));
    }
    let letters = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let i = (0..7).find(|i| bytes < base.powi(i + 2)).unwrap_or(7);
    let letter = if binary { letters[i as usize].to_uppercase() } else { letters[i as usize].into() };
    let unit = if binary { "iB" } else { "B" };
    Ok(Value::own(format!("{:.1} {letter}{unit}", base * bytes / base.powi(i + 2))))
}

fn urlencode(value: &Value) -> Outcome<Value> {
    let quote = |v: &Value, query: bool| -> String {
        let mut out = String::new();
        for b in v.to_text().as_str().bytes() {
            match b {
                b'/' if !query => out.push('/'),
                b' ' if query => out.push('+'),
                b if b.is_ascii_alphanumeric() || b"_.-~".contains(&b) => out.push(b as char),
                b => out.push_str(&format!("%{b:02X}")),
            }
        }
        out
    };
    let pairs: Vec<Value> = match value {
        Value::Dict(d) => d.entries.iter().map(|(k, v)| Value::tuple(vec![k.clone(), v.clone()])).collect(),
        Value::Seq(SeqKind::List | SeqKind::Tuple | SeqKind::Items, items) => items.to_vec(),
        other => return Ok(Value::Str(other.to_text().made(quote(other, false)))),
    };
    let mut parts = vec![];
    for pair in pairs {
        let [k, v] = &pair.items()?[..] else { return fault("urlencode takes pairs") };
        parts.push(format!("{}={}", quote(k, true), quote(v, true)));
    }
    Ok(Value::Str(Text::foreign(parts.join("&"))))
}

fn xmlattr(value: &Value, given: &Given) -> Outcome<Value> {
    let Value::Dict(d) = value else { return fault("xmlattr takes a mapping") };
    let mut out = Builder::default();
    for (k, v) in &d.entries {
        if matches!(v, Value::None | Value::Undefined(_)) {
            continue;
        }
        let key = k.to_text();
        if key.as_str().contains(|c: char| c.is_whitespace() || "/>=".contains(c)) {
            return fault(format!("Invalid character in attribute name: {}", k.repr().as_str()));
        }
        if out.len() > 0 || given.truth(0, "autospace", true) {
            out.own(" ");
        }
        out.push(&escaped(&key));
        out.own("=\"");
        out.push(&escaped(&v.to_text()));
        out.own("\"");
    }
    Ok(Value::Str(out.finish()))
}

/// An attribute of every item, or what a filter makes of it.
fn map(run: &Run, value: &Value, mut given: Given) -> Outcome<Value> {
    let items = value.items()?;
    run.pay(items.len())?;
    let mut out = Vec::with_capacity(items.len());
    if given.positional.is_empty() {
        let Some(attribute) = given.get(usize::MAX, "attribute").cloned() else {
            return fault("map requires a filter argument");
        };
        if let Some((name, _)) = given.named.iter().find(|n| !matches!(n.0.as_str(), "attribute" | "default")) {
            return fault(format!("Unexpected keyword argument '{name}'"));
        }
        let default = given.get(usize::MAX, "default").filter(|v| !matches!(v, Value::None));
        for item in &items {
            out.push(sequence::path(run, item, &attribute, default)?);
        }
    } else {
        let name = given.positional.remove(0).to_text();
        for item in items {
            run.pay(1)?;
            out.push(apply(run, name.as_str(), item, given.clone())?);
        }
    }
    Ok(Value::generator(out))
}
