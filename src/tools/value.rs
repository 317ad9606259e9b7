//! A value between tags, which a model writes as plain text, made JSON by what the tool's schema says of it.

use super::{grammar::Until, json::escape, sink::Sink};
use serde_json::Value as Schema;

/// What a schema allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kinds {
    text: bool,
    null: bool,
    /// Anything else: numbers, truth values, lists, objects.
    other: bool,
}

impl Kinds {
    const ANY: Kinds = Kinds { text: true, null: true, other: true };

    fn add(&mut self, more: Kinds) {
        self.text |= more.text;
        self.null |= more.null;
        self.other |= more.other;
    }

    fn of_type(name: &str) -> Kinds {
        match name {
            "string" => Kinds { text: true, ..Kinds::default() },
            "null" => Kinds { null: true, ..Kinds::default() },
            _ => Kinds { other: true, ..Kinds::default() },
        }
    }

    fn of_value(value: &Schema) -> Kinds {
        match value {
            Schema::String(_) => Kinds::of_type("string"),
            Schema::Null => Kinds::of_type("null"),
            Schema::Bool(_) | Schema::Number(_) | Schema::Array(_) | Schema::Object(_) => Kinds::of_type("object"),
        }
    }

    /// Of a schema within `root`, whose definitions it may refer to.
    fn of(schema: &Schema, root: &Schema, depth: usize) -> Kinds {
        let mut kinds = Kinds::default();
        if depth > 8 {
            return Kinds::ANY;
        }
        if let Some(target) = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
            return root.pointer(target).map_or(Kinds::ANY, |s| Kinds::of(s, root, depth + 1));
        }
        let all = |key: &str| schema[key].as_array().map(Vec::as_slice).unwrap_or_default();
        match &schema["type"] {
            Schema::String(name) => kinds.add(Kinds::of_type(name)),
            Schema::Array(names) => names.iter().filter_map(Schema::as_str).for_each(|n| kinds.add(Kinds::of_type(n))),
            _ => {
                all("enum").iter().for_each(|v| kinds.add(Kinds::of_value(v)));
                schema.get("const").into_iter().for_each(|v| kinds.add(Kinds::of_value(v)));
                for of in ["anyOf", "oneOf", "allOf"] {
                    all(of).iter().for_each(|s| kinds.add(Kinds::of(s, root, depth + 1)));
                }
            }
        }
        if kinds == Kinds::default() { Kinds::ANY } else { kinds }
    }
}

/// A value that is being read.
#[derive(Debug)]
pub(super) struct Value {
    kinds: Kinds,
    until: Until,
    end: &'static str,
    /// Whether a line end behind the opening and before the closing tag belongs to the tags.
    lines: bool,
    /// Whether no character came yet.
    first: bool,
    /// A line end that belongs to the closing tag if that follows.
    line_end: bool,
    whole: String,
}

impl Value {
    /// The parameter `key` of a tool with these `parameters`, up to the tag `end`.
    pub fn new(parameters: Option<&Schema>, key: &str, end: &'static str, lines: bool, sink: &mut Sink) -> Self {
        let kinds = match parameters {
            Some(root) => root["properties"].get(key).map_or(Kinds::ANY, |s| Kinds::of(s, root, 0)),
            None => Kinds::ANY,
        };
        let whole = String::new();
        let value = Value { kinds, until: Until::default(), end, lines, first: true, line_end: false, whole };
        if value.is_text() {
            sink.arguments("\"");
        }
        value
    }

    /// Whether it can only be a text, which needs no end to be told.
    fn is_text(&self) -> bool {
        self.kinds.text && !self.kinds.null && !self.kinds.other
    }

    /// Takes a character; `true` where the closing tag has ended.
    pub fn push(&mut self, c: char, sink: &mut Sink) -> bool {
        let mut sure = String::new();
        let done = self.until.push(c, self.end, &mut sure);
        let mut text = String::new();
        for c in sure.chars() {
            if std::mem::take(&mut self.line_end) {
                text.push('\n');
            }
            if c == '\n' && self.lines {
                // The one behind the opening tag is no part of the value.
                self.line_end = !self.first;
            } else {
                text.push(c);
            }
            self.first = false;
        }
        if self.is_text() {
            let mut json = String::new();
            text.chars().for_each(|c| escape(c, &mut json));
            sink.arguments(&json);
            if done {
                sink.arguments("\"");
            }
        } else {
            self.whole.push_str(&text);
            if done {
                sink.arguments(&self.json());
            }
        }
        done
    }

    fn json(&self) -> String {
        let text = self.whole.trim();
        // JSON stays as it was written, number by number.
        let own = serde_json::from_str(text).ok().map(|v| (v, text.to_owned()));
        let read: Option<(Schema, String)> = own.or_else(|| {
            let json = match text {
                "TRUE" => "true".to_owned(),
                "FALSE" => "false".to_owned(),
                _ => super::python::to_json(text)?,
            };
            Some((serde_json::from_str(&json).ok()?, json))
        });
        let fits = read.filter(|(v, _)| match v {
            Schema::Null => self.kinds.null || !self.kinds.text,
            // A text in quotation marks is a text with them, unless no text was wanted.
            Schema::String(_) => !self.kinds.text,
            Schema::Bool(_) | Schema::Number(_) | Schema::Array(_) | Schema::Object(_) => self.kinds.other,
        });
        fits.map_or_else(|| Schema::from(self.whole.as_str()).to_string(), |(_, json)| json)
    }
}
