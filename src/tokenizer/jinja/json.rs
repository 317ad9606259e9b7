//! `tojson` as transformers defines it: Python's `json.dumps`, without the HTML escapes of Jinja's own filter.

use super::{
    Outcome, fault, number,
    text::{Builder, Text},
    value::Value,
};

/// The keyword arguments of `json.dumps` that templates may give.
#[derive(Clone, Debug)]
pub(super) struct Style {
    pub ascii: bool,
    /// What a level is indented by.
    pub indent: Option<Text>,
    pub between: Text,
    pub colon: Text,
    pub sorted: bool,
}

/// Writes a value.
pub(super) fn dumps(value: &Value, style: &Style) -> Outcome<Text> {
    let mut out = Builder::default();
    write(value, style, 0, &mut out)?;
    Ok(out.finish())
}

fn line(style: &Style, depth: usize, out: &mut Builder) {
    if let Some(indent) = &style.indent {
        out.own("\n");
        (0..depth).for_each(|_| out.push(indent));
    }
}

fn write(value: &Value, style: &Style, depth: usize, out: &mut Builder) -> Outcome<()> {
    match value {
        Value::None => out.own("null"),
        Value::Bool(b) => out.own(if *b { "true" } else { "false" }),
        Value::Int(i) => out.own(&i.to_string()),
        Value::Float(x) => out.own(&float(*x)),
        Value::Str(s) => out.push(&s.made(quoted(s.as_str(), style.ascii))),
        Value::Seq(super::value::SeqKind::List | super::value::SeqKind::Tuple, items) => {
            if items.is_empty() {
                out.own("[]");
                return Ok(());
            }
            out.own("[");
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(&style.between);
                }
                line(style, depth + 1, out);
                write(item, style, depth + 1, out)?;
            }
            line(style, depth, out);
            out.own("]");
        }
        Value::Dict(d) => {
            if d.entries.is_empty() {
                out.own("{}");
                return Ok(());
            }
            let mut entries: Vec<&(Value, Value)> = d.entries.iter().collect();
            if style.sorted {
                let mut wrong = None;
                entries.sort_by(|a, b| match a.0.order(&b.0, "<") {
                    Ok(o) => o.unwrap_or(std::cmp::Ordering::Equal),
                    Err(e) => {
                        wrong = Some(e);
                        std::cmp::Ordering::Equal
                    }
                });
                wrong.map_or(Ok(()), Err)?;
            }
            out.own("{");
            for (i, (key, item)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(&style.between);
                }
                line(style, depth + 1, out);
                let key = match key {
                    Value::Str(s) => s.clone(),
                    Value::None => Text::own("null"),
                    Value::Bool(b) => Text::own(if *b { "true" } else { "false" }),
                    Value::Int(i) => Text::own(i.to_string()),
                    Value::Float(x) => Text::own(float(*x)),
                    other => {
                        let name = other.type_name();
                        return fault(format!("keys must be str, int, float, bool or None, not {name}"));
                    }
                };
                out.push(&key.made(quoted(key.as_str(), style.ascii)));
                out.push(&style.colon);
                write(item, style, depth + 1, out)?;
            }
            line(style, depth, out);
            out.own("}");
        }
        other => return fault(format!("Object of type {} is not JSON serializable", other.type_name())),
    }
    Ok(())
}

fn float(x: f64) -> String {
    if x.is_nan() {
        "NaN".into()
    } else if x.is_infinite() {
        if x > 0.0 { "Infinity" } else { "-Infinity" }.into()
    } else {
        number::float(x)
    }
}

fn quoted(text: &str, ascii: bool) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ascii && !(' '..='~').contains(&c)) => {
                let mut units = [0; 2];
                c.encode_utf16(&mut units).iter().for_each(|u| out.push_str(&format!("\\u{u:04x}")));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
