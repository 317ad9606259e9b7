//! A JSON value that comes character by character: where it ends, and whether it is one.

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Took {
    /// It belongs to the value, which goes on.
    More,
    /// It was the value's last.
    Done,
    /// The value, a number, had ended before it.
    Before,
    /// There is no such JSON.
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Value,
    /// Behind `[`: a value, or the end.
    FirstValue,
    /// Behind `{`: a key, or the end.
    FirstKey,
    Key,
    Colon,
    /// Behind a value inside a list or an object.
    After,
    Text,
    Escape,
    /// Digits of `\u` that are still to come, and what they said so far.
    Hex(u8, u32),
    /// Behind the first half of a surrogate pair, and behind the backslash of the second.
    Low,
    LowEscape,
    Literal(&'static str),
    Number(Number),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

impl Number {
    fn next(self, c: char) -> Option<Number> {
        use Number::*;
        Some(match (self, c) {
            (Minus, '0') => Zero,
            (Minus, '1'..='9') | (Whole, '0'..='9') => Whole,
            (Zero | Whole, '.') => Point,
            (Zero | Whole | Fraction, 'e' | 'E') => E,
            (Point | Fraction, '0'..='9') => Fraction,
            (E, '+' | '-') => Sign,
            (E | Sign | Exponent, '0'..='9') => Exponent,
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Number::Zero | Number::Whole | Number::Fraction | Number::Exponent)
    }
}

/// Lists and objects inside each other: a little less than serde_json reads.
const DEEPEST: usize = 100;

/// Reads one value; blanks before it are for the caller to skip. What it writes is JSON: control characters that models put
/// into texts as they are come out escaped.
#[derive(Clone, Debug)]
pub(super) struct Json {
    /// Open lists and objects, `true` for an object.
    open: Vec<bool>,
    at: At,
    /// Whether the text that is being read is a key.
    key: bool,
}

/// Writes a character of a text as JSON has it.
pub(super) fn escape(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        c => control(c, out),
    }
}

fn control(c: char, out: &mut String) {
    match c {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
        c => out.push(c),
    }
}

/// JSON's blanks.
pub(super) fn blank(c: char) -> bool {
    matches!(c, ' ' | '\n' | '\r' | '\t')
}

impl Json {
    /// Before a value.
    pub fn new() -> Self {
        Json { open: vec![], at: At::Value, key: false }
    }

    /// Takes a character, and writes it to `out` where it belongs to the value.
    pub fn push(&mut self, c: char, out: &mut String) -> Took {
        match self.at {
            At::Text | At::Escape | At::Hex(..) | At::Low | At::LowEscape => self.text(c, out),
            At::Number(n) => match n.next(c) {
                Some(next) => self.to(At::Number(next), c, out),
                None if !n.may_end() => Took::Bad,
                None if self.open.is_empty() => Took::Before,
                None => {
                    self.at = At::After;
                    self.push(c, out)
                }
            },
            At::Literal(rest) => match rest.strip_prefix(c) {
                Some("") => self.ended(c, out),
                Some(rest) => self.to(At::Literal(rest), c, out),
                None => Took::Bad,
            },
            _ if blank(c) => self.to(self.at, c, out),
            At::Value => self.value(c, out),
            At::FirstValue if c == ']' => self.close(c, out),
            At::FirstValue => self.value(c, out),
            At::FirstKey if c == '}' => self.close(c, out),
            At::FirstKey | At::Key => {
                self.key = true;
                if c == '"' { self.to(At::Text, c, out) } else { Took::Bad }
            }
            At::Colon if c == ':' => self.to(At::Value, c, out),
            At::Colon => Took::Bad,
            At::After => match (c, self.open.last()) {
                (',', Some(true)) => self.to(At::Key, c, out),
                (',', Some(false)) => self.to(At::Value, c, out),
                ('}', Some(true)) | (']', Some(false)) => self.close(c, out),
                _ => Took::Bad,
            },
        }
    }

    fn to(&mut self, at: At, c: char, out: &mut String) -> Took {
        out.push(c);
        self.at = at;
        Took::More
    }

    fn value(&mut self, c: char, out: &mut String) -> Took {
        let at = match c {
            '{' | '[' => {
                self.open.push(c == '{');
                if self.open.len() > DEEPEST {
                    return Took::Bad;
                }
                if c == '{' { At::FirstKey } else { At::FirstValue }
            }
            '"' => {
                self.key = false;
                At::Text
            }
            't' => At::Literal("rue"),
            'f' => At::Literal("alse"),
            'n' => At::Literal("ull"),
            '-' => At::Number(Number::Minus),
            '0' => At::Number(Number::Zero),
            '1'..='9' => At::Number(Number::Whole),
            _ => return Took::Bad,
        };
        self.to(at, c, out)
    }

    fn close(&mut self, c: char, out: &mut String) -> Took {
        self.open.pop();
        self.ended(c, out)
    }

    /// The value that was being read last ends with this character.
    fn ended(&mut self, c: char, out: &mut String) -> Took {
        self.to(At::After, c, out);
        if self.open.is_empty() { Took::Done } else { Took::More }
    }

    fn text(&mut self, c: char, out: &mut String) -> Took {
        match (self.at, c) {
            (At::Text, '"') if self.key => {
                self.key = false;
                self.to(At::Colon, c, out)
            }
            (At::Text, '"') => self.ended(c, out),
            (At::Text, '\\') => self.to(At::Escape, c, out),
            (At::Text, c) => {
                control(c, out);
                Took::More
            }
            (At::Escape, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => self.to(At::Text, c, out),
            (At::Escape, 'u') => self.to(At::Hex(4, 0), c, out),
            (At::Low, '\\') => self.to(At::LowEscape, c, out),
            // The second half of a pair, which the digits must say.
            (At::LowEscape, 'u') => self.to(At::Hex(4, 1), c, out),
            (At::Hex(left, said), c) => {
                let Some(digit) = c.to_digit(16) else { return Took::Bad };
                let said = said << 4 | digit;
                let at = match (left, said) {
                    (2.., _) => At::Hex(left - 1, said),
                    (_, 0xd800..=0xdbff) => At::Low,
                    (_, 0x1_dc00..=0x1_dfff) => At::Text,
                    (_, 0xdc00..=0xdfff | 0x1_0000..) => return Took::Bad,
                    _ => At::Text,
                };
                self.to(at, c, out)
            }
            _ => Took::Bad,
        }
    }
}
