//! How Python writes a value.

use super::{SeqKind, Value};
use crate::tokenizer::jinja::{
    number,
    text::{Builder, Text},
};

impl Value {
    /// `repr()`.
    pub fn repr(&self) -> Text {
        let mut out = Builder::default();
        self.write_repr(&mut out);
        out.finish()
    }

    fn write_repr(&self, out: &mut Builder) {
        match self {
            Value::None => out.own("None"),
            Value::Undefined(_) => out.own("Undefined"),
            Value::Bool(b) => out.own(if *b { "True" } else { "False" }),
            Value::Int(i) => out.own(&i.to_string()),
            Value::Float(x) => out.own(&number::float(*x)),
            Value::Str(s) => out.push(&s.made(quoted(s.as_str()))),
            Value::Seq(SeqKind::Range { start, stop, step }, _) => {
                let step = if *step == 1 { String::new() } else { format!(", {step}") };
                out.own(&format!("range({start}, {stop}{step})"));
            }
            Value::Seq(kind, items) => {
                let (open, close) = match kind {
                    SeqKind::Tuple => ("(", if items.len() == 1 { ",)" } else { ")" }),
                    SeqKind::Keys => ("dict_keys([", "])"),
                    SeqKind::Values => ("dict_values([", "])"),
                    SeqKind::Items => ("dict_items([", "])"),
                    SeqKind::List | SeqKind::Range { .. } => ("[", "]"),
                };
                out.own(open);
                for (i, item) in items.iter().enumerate() {
                    out.own(if i > 0 { ", " } else { "" });
                    item.write_repr(out);
                }
                out.own(close);
            }
            Value::Dict(d) => {
                out.own("{");
                for (i, (k, v)) in d.entries.iter().enumerate() {
                    out.own(if i > 0 { ", " } else { "" });
                    k.write_repr(out);
                    out.own(": ");
                    v.write_repr(out);
                }
                out.own("}");
            }
            Value::Generator(_) => out.own("<generator object>"),
            Value::Namespace(_) => out.own("<Namespace>"),
            Value::Function(_) => out.own("<function>"),
            Value::Method(_, name) => out.own(&format!("<built-in method {name}>")),
            Value::Macro(m) => out.own(&format!("<Macro '{}'>", m.definition.name)),
            Value::Loop(l) => out.own(&format!("<LoopContext {}/{}>", l.index0.get() + 1, l.items.len())),
            Value::Cycler(_) => out.own("<Cycler>"),
            Value::Joiner(_) => out.own("<Joiner>"),
        }
    }
}

/// Python's quotes and escapes.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            ' ' => out.push(' '),
            c if is_printable(c) => out.push(c),
            c if (c as u32) < 0x100 => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if (c as u32) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    out.push(quote);
    out
}

/// Python's `str.isprintable` of a character: no control, format, private or unassigned one, and no blank but the space.
pub(in crate::tokenizer::jinja) fn is_printable(c: char) -> bool {
    use crate::tokenizer::pretok::unicode::{Class, class};
    c == ' ' || !matches!(class(c), Class::Other | Class::Space)
}
