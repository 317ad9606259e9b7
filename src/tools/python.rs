//! Python's literals, character by character, made JSON.

use super::json::{Took, blank, escape};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    List,
    Tuple,
    Dict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    Value,
    /// Behind an opening bracket: a value or a key, or the end.
    First,
    Key,
    Colon,
    After,
    /// Behind a comma, where a bracket may close, too.
    Comma,
    Text(char),
    Escape(char),
    /// Digits that are still to come, and what they said so far.
    Hex(char, u8, u32),
    /// A number or a name.
    Word(String),
}

/// Reads one literal; the caller skips blanks before it.
#[derive(Clone, Debug)]
pub(super) struct Literal {
    open: Vec<Open>,
    at: At,
    key: bool,
}

const DEEPEST: usize = 100;
const LONGEST_WORD: usize = 400;

/// A number or a name as JSON.
fn word(text: &str) -> Option<String> {
    match text {
        "True" | "true" => return Some("true".into()),
        "False" | "false" => return Some("false".into()),
        "None" | "null" => return Some("null".into()),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') || digits.contains("__") {
        return None;
    }
    let plain = text.strip_prefix('+').unwrap_or(text).replace('_', "");
    // JSON's own numbers stay as they are, digit by digit.
    if serde_json::from_str::<serde_json::Number>(&plain).is_ok() {
        return Some(plain);
    }
    let number: f64 = plain.parse().ok()?;
    serde_json::Number::from_f64(number).map(|n| n.to_string())
}

impl Literal {
    /// Before a value.
    pub fn new() -> Self {
        Literal { open: vec![], at: At::Value, key: false }
    }

    /// Takes a character and writes what it stands for.
    pub fn push(&mut self, c: char, out: &mut String) -> Took {
        match &mut self.at {
            At::Text(_) | At::Escape(_) | At::Hex(..) => return self.text(c, out),
            At::Word(text) => {
                if c.is_alphanumeric() || matches!(c, '_' | '.' | '+' | '-') {
                    text.push(c);
                    return if text.len() > LONGEST_WORD { Took::Bad } else { Took::More };
                }
                let Some(json) = word(text) else { return Took::Bad };
                if !self.key {
                    out.push_str(&json);
                } else if json.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
                    out.push_str(&format!("\"{json}\""));
                } else {
                    return Took::Bad;
                }
                self.ended();
                return if self.open.is_empty() { Took::Before } else { self.push(c, out) };
            }
            _ if blank(c) => return Took::More,
            At::Value | At::First | At::Key | At::Colon | At::After | At::Comma => {}
        }
        let last = self.open.last().copied();
        match (&self.at, c, last) {
            (At::First | At::Comma | At::After, ']', Some(Open::List))
            | (At::First | At::Comma | At::After, ')', Some(Open::Tuple))
            | (At::First | At::Comma | At::After, '}', Some(Open::Dict)) => {
                self.open.pop();
                out.push(if last == Some(Open::Dict) { '}' } else { ']' });
                self.ended();
                if self.open.is_empty() { Took::Done } else { Took::More }
            }
            (At::After, ',', Some(_)) => self.to(At::Comma),
            (At::Colon, ':', _) => {
                out.push_str(": ");
                self.to(At::Value)
            }
            (At::Comma, _, Some(open)) => {
                out.push_str(", ");
                self.at = if open == Open::Dict { At::Key } else { At::Value };
                self.push(c, out)
            }
            (At::First | At::Key, _, Some(Open::Dict)) => {
                self.key = true;
                self.value(c, out)
            }
            (At::First | At::Value, _, _) => {
                self.key = false;
                self.value(c, out)
            }
            _ => Took::Bad,
        }
    }

    fn to(&mut self, at: At) -> Took {
        self.at = at;
        Took::More
    }

    /// A value or a key is whole.
    fn ended(&mut self) {
        self.at = if std::mem::take(&mut self.key) { At::Colon } else { At::After };
    }

    fn value(&mut self, c: char, out: &mut String) -> Took {
        let open = match c {
            '"' | '\'' => {
                out.push('"');
                return self.to(At::Text(c));
            }
            '[' => Open::List,
            '(' => Open::Tuple,
            '{' => Open::Dict,
            c if c.is_alphanumeric() || matches!(c, '-' | '+' | '.') => return self.to(At::Word(c.to_string())),
            _ => return Took::Bad,
        };
        if self.key || self.open.len() >= DEEPEST {
            return Took::Bad;
        }
        self.open.push(open);
        out.push(if open == Open::Dict { '{' } else { '[' });
        self.to(At::First)
    }

    fn text(&mut self, c: char, out: &mut String) -> Took {
        match self.at {
            At::Text(quote) if c == quote => {
                out.push('"');
                self.ended();
                if self.open.is_empty() { Took::Done } else { Took::More }
            }
            At::Text(quote) if c == '\\' => self.to(At::Escape(quote)),
            At::Text(_) => {
                escape(c, out);
                Took::More
            }
            At::Escape(quote) => {
                let digits = match c {
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    _ => 0,
                };
                if digits > 0 {
                    return self.to(At::Hex(quote, digits, 0));
                }
                match c {
                    'n' => escape('\n', out),
                    't' => escape('\t', out),
                    'r' => escape('\r', out),
                    'b' => escape('\u{8}', out),
                    'f' => escape('\u{c}', out),
                    '\\' | '\'' | '"' | '/' => escape(c, out),
                    '\n' => {}
                    // Python leaves what it does not know as it stands.
                    other => {
                        escape('\\', out);
                        escape(other, out);
                    }
                }
                self.to(At::Text(quote))
            }
            At::Hex(quote, left, said) => {
                let Some(digit) = c.to_digit(16) else { return Took::Bad };
                let said = said << 4 | digit;
                if left > 1 {
                    return self.to(At::Hex(quote, left - 1, said));
                }
                let Some(c) = char::from_u32(said) else { return Took::Bad };
                escape(c, out);
                self.to(At::Text(quote))
            }
            _ => Took::Bad,
        }
    }
}

/// A whole literal as JSON.
pub(super) fn to_json(text: &str) -> Option<String> {
    let (mut literal, mut out) = (Literal::new(), String::new());
    let mut done = false;
    for c in text.chars().chain([' ']) {
        match literal.push(c, &mut out) {
            _ if done && !blank(c) => return None,
            Took::Done | Took::Before => done = true,
            Took::Bad if !done => return None,
            Took::More | Took::Bad => {}
        }
    }
    done.then_some(out)
}
