//! Texts and marks of a vocabulary in Lark's language.

use crate::tokenizer::Tokenizer;
use serde_json::Value;

/// Texts and marks of a vocabulary in Lark's language.
pub(super) struct Marks<'t>(pub &'t Tokenizer);

impl Marks<'_> {
    /// A text, or the control token with this text.
    pub fn mark(&self, text: &str) -> String {
        match self.control(text) {
            Some(id) => format!("<[{id}]>"),
            None => literal(text),
        }
    }

    pub fn control(&self, text: &str) -> Option<u32> {
        self.0.token_id(text).filter(|id| self.0.is_special(*id))
    }

    /// Any text up to a mark, the mark included, as the body of a rule and the rule's attributes.
    pub fn until(&self, mark: &str) -> (&'static str, String) {
        match self.control(mark) {
            Some(id) => ("", format!("/(.|\\n)*/ <[{id}]>")),
            None => ("[lazy]", format!("/(.|\\n)*{}/", escaped(mark))),
        }
    }
}

/// A text in Lark's language.
pub(super) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A text as a regular expression in Lark's language.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if "\\.+*?()|[]{}^$/".contains(c) => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}
