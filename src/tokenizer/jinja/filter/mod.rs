//! Filters over single values; those over sequences are in [`super::sequence`].

use super::{
    Outcome, fault, json,
    names::{FILTERS, SEQUENCE_FILTERS},
    number::{parse_float, parse_int, round},
    operator,
    run::{Given, Run},
    sequence,
    text::{Builder, Text},
    value::{SeqKind, Value},
};

mod text;

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
        .or_else(|| text::apply(run, name, &value, &given))
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
        out.push(&text::escaped(&key));
        out.own("=\"");
        out.push(&text::escaped(&v.to_text()));
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
