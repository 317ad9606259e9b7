//! `template.format(...)`: fields in braces.

use super::format_value;
use crate::tokenizer::jinja::{
    Outcome, fault, operator,
    run::{Given, Run},
    text::{Builder, Text},
    value::Value,
};

/// `template.format(...)`.
pub(in crate::tokenizer::jinja) fn braces(run: &Run, template: &Text, given: &Given) -> Outcome<Text> {
    let mut out = Builder::default();
    fields(run, template, given, &mut 0, &mut out, 0)?;
    Ok(out.finish())
}

fn fields(run: &Run, template: &Text, given: &Given, next: &mut usize, out: &mut Builder, depth: usize) -> Outcome<()> {
    if depth > 1 {
        return fault("Max string recursion exceeded");
    }
    let source = template.as_str();
    let mut at = 0;
    while let Some(i) = source[at..].find(['{', '}']) {
        let start = at + i;
        out.push(&template.slice(at..start));
        let doubled = source[start..].starts_with("{{") || source[start..].starts_with("}}");
        if doubled {
            out.push(&template.slice(start..start + 1));
            at = start + 2;
            continue;
        }
        if source[start..].starts_with('}') {
            return fault("Single '}' encountered in format string");
        }
        let mut open = 0usize;
        let end = source[start..].char_indices().find(|(_, c)| {
            open = match c {
                '{' => open + 1,
                '}' => open - 1,
                _ => open,
            };
            open == 0
        });
        let Some((length, _)) = end else { return fault("Single '{' encountered in format string") };
        let set = field(run, template, start + 1..start + length, given, next, depth)?;
        run.pay(set.len() / 16)?;
        out.push(&set);
        at = start + length + 1;
    }
    out.push(&template.slice(at..source.len()));
    Ok(())
}

/// `name.attribute[index]!conversion:spec`.
fn field(
    run: &Run,
    template: &Text,
    range: std::ops::Range<usize>,
    given: &Given,
    next: &mut usize,
    depth: usize,
) -> Outcome<Text> {
    let inner = &template.as_str()[range.clone()];
    let head_end = inner.find(['!', ':']).unwrap_or(inner.len());
    let (head, tail) = inner.split_at(head_end);
    let (conversion, spec_at) = match tail.strip_prefix('!') {
        Some(rest) => {
            let c = rest.chars().next();
            let behind = head_end + 1 + c.map_or(0, char::len_utf8);
            (c, inner[behind..].starts_with(':').then_some(behind + 1))
        }
        None => (None, tail.starts_with(':').then_some(head_end + 1)),
    };
    let value = lookup(run, head, given, next)?;
    value.defined()?;
    let spec = match spec_at {
        None => String::new(),
        Some(from) => {
            let mut b = Builder::default();
            fields(run, &template.slice(range.start + from..range.end), given, next, &mut b, depth + 1)?;
            b.finish().as_str().to_owned()
        }
    };
    match conversion {
        None => format_value(&value, &spec),
        Some('s') => format_value(&Value::Str(value.to_text()), &spec),
        Some('r' | 'a') => format_value(&Value::Str(value.repr()), &spec),
        Some(c) => fault(format!("Unknown conversion specifier {c:?}")),
    }
}

fn lookup(run: &Run, head: &str, given: &Given, next: &mut usize) -> Outcome<Value> {
    let end = head.find(['.', '[']).unwrap_or(head.len());
    let (name, mut path) = head.split_at(end);
    let mut value = if name.is_empty() || name.bytes().all(|b| b.is_ascii_digit()) {
        let i = name.parse().unwrap_or_else(|_| {
            *next += 1;
            *next - 1
        });
        match given.positional.get(i) {
            Some(v) => v.clone(),
            None => return fault(format!("Replacement index {i} out of range for positional args tuple")),
        }
    } else {
        match given.named.iter().find(|n| n.0 == name) {
            Some(n) => n.1.clone(),
            None => return fault(format!("KeyError: '{name}'")),
        }
    };
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix('.') {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            value = operator::attribute(&value, &rest[..end])?;
            path = &rest[end..];
        } else if let Some(rest) = path.strip_prefix('[') {
            let Some(end) = rest.find(']') else { return fault("Missing ']' in format string") };
            let key = &rest[..end];
            let index = key.parse().map_or_else(|_| Value::own(key), Value::Int);
            value = operator::item(run, &value, &index)?;
            path = &rest[end + 1..];
        } else {
            return fault("Only '.' or '[' may follow ']' in format field specifier");
        }
    }
    Ok(value)
}
