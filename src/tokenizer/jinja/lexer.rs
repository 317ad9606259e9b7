//! From a template's text to tokens, by the rules of Jinja's `lexer.py` with `trim_blocks` and `lstrip_blocks`.

use super::{Outcome, fault};

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Text outside of tags.
    Text(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

/// What a tag is.
#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Variable,
    Block,
    Comment,
}

/// Longest first, as the first that fits is taken.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

/// Tokens with their lines.
pub(super) fn tokens(source: &str) -> Outcome<Vec<(Token, u32)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, out: vec![], line_starting: true };
    lexer.run().map_err(|e| e.at(lexer.line))?;
    let line = lexer.line;
    lexer.out.push((Token::End, line));
    Ok(lexer.out)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: u32,
    out: Vec<(Token, u32)>,
    /// Whether what was read last ended a line.
    line_starting: bool,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    /// Goes on by `n` bytes.
    fn skip(&mut self, n: usize) {
        let passed = &self.source[self.at..self.at + n];
        self.line += passed.matches('\n').count() as u32;
        if n > 0 {
            self.line_starting = passed.ends_with('\n');
        }
        self.at += n;
    }

    fn push(&mut self, token: Token) {
        self.out.push((token, self.line));
    }

    fn run(&mut self) -> Outcome<()> {
        while self.at < self.source.len() {
            let rest = self.rest();
            let Some((start, tag)) = next_tag(rest) else {
                self.push(Token::Text(rest.into()));
                self.skip(rest.len());
                return Ok(());
            };
            let sign = rest[start + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let text = self.before(&rest[..start], sign, tag);
            if !text.is_empty() {
                self.push(Token::Text(text.into()));
            }
            if tag == Tag::Block
                && let Some(begin) = raw_begin(&rest[start..])
            {
                self.skip(start + begin);
                self.raw()?;
                continue;
            }
            self.skip(start + 2 + usize::from(sign.is_some()));
            match tag {
                Tag::Comment => self.comment()?,
                Tag::Variable | Tag::Block => self.inside(tag)?,
            }
        }
        Ok(())
    }

    /// What stays of the text before a tag.
    fn before(&self, text: &'a str, sign: Option<char>, tag: Tag) -> &'a str {
        match sign {
            Some('-') => text.trim_end(),
            None if tag != Tag::Variable => {
                let line = text.rfind('\n').map_or(0, |i| i + 1);
                let blank = text[line..].chars().all(char::is_whitespace) && !text[line..].is_empty();
                if (line > 0 || self.line_starting) && blank { &text[..line] } else { text }
            }
            _ => text,
        }
    }

    /// `... {% endraw %}`.
    fn raw(&mut self) -> Outcome<()> {
        let rest = self.rest();
        let mut from = 0;
        while let Some(i) = rest[from..].find("{%") {
            let start = from + i;
            let sign = rest[start + 2..].chars().next().filter(|c| matches!(c, '-' | '+'));
            let word = rest[start + 2 + usize::from(sign.is_some())..].trim_start();
            if let Some(end) = word.strip_prefix("endraw") {
                let tail = end.trim_start();
                if let Some(n) = block_end(tail) {
                    let text = self.before(&rest[..start], sign, Tag::Block);
                    if !text.is_empty() {
                        self.push(Token::Text(text.into()));
                    }
                    self.skip(rest.len() - tail.len() + n);
                    return Ok(());
                }
            }
            from = start + 2;
        }
        fault("Missing end of raw directive")
    }

    fn comment(&mut self) -> Outcome<()> {
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(());
        }
        let Some(end) = rest.find("#}") else { return fault("Missing end of comment tag") };
        let behind = &rest[end + 2..];
        let sign = rest[..end].chars().next_back().filter(|c| matches!(c, '-' | '+'));
        let more = match sign {
            Some('-') => behind.len() - behind.trim_start().len(),
            Some(_) => 0,
            None => usize::from(behind.starts_with('\n')),
        };
        self.skip(end + 2 + more);
        Ok(())
    }

    /// The tokens of a tag up to its end.
    fn inside(&mut self, tag: Tag) -> Outcome<()> {
        self.push(if tag == Tag::Variable { Token::VariableBegin } else { Token::BlockBegin });
        let mut open: Vec<char> = vec![];
        loop {
            let blank = self.rest().len() - self.rest().trim_start().len();
            self.skip(blank);
            let rest = self.rest();
            let Some(first) = rest.chars().next() else {
                return fault(match tag {
                    Tag::Variable => "unexpected end of template, expected 'end of print statement'.",
                    _ => "unexpected end of template, expected 'end of statement block'.",
                });
            };
            let end = if tag == Tag::Variable { variable_end(rest) } else { block_end(rest) };
            if open.is_empty()
                && let Some(n) = end
            {
                self.push(if tag == Tag::Variable { Token::VariableEnd } else { Token::BlockEnd });
                self.skip(n);
                return Ok(());
            }
            if first.is_ascii_digit() {
                self.number()?;
            } else if first == '"' || first == '\'' {
                self.string(first)?;
            } else if first.is_alphabetic() || first == '_' {
                let n = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
                self.push(Token::Name(rest[..n].into()));
                self.skip(n);
            } else if let Some(op) = OPERATORS.iter().find(|o| rest.starts_with(**o)) {
                balance(op, &mut open)?;
                self.push(Token::Operator(op));
                self.skip(op.len());
            } else {
                return fault(format!("unexpected char {first:?}"));
            }
        }
    }

    fn number(&mut self) -> Outcome<()> {
        let rest = self.rest();
        let radix = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0x") => 16,
            Some("0o") => 8,
            Some("0b") => 2,
            _ => 10,
        };
        if radix != 10 {
            let n = 2 + digits(&rest[2..], radix);
            let value = i128::from_str_radix(&rest[2..n].replace('_', ""), radix);
            let Ok(value) = value else { return fault("a number without digits") };
            self.push(Token::Int(value));
            self.skip(n);
            return Ok(());
        }
        let mut n = digits(rest, 10);
        let mut float = false;
        if rest[n..].starts_with('.') && digits(&rest[n + 1..], 10) > 0 {
            n += 1 + digits(&rest[n + 1..], 10);
            float = true;
        }
        if rest[n..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[n + 1..].starts_with(['+', '-']));
            let exponent = digits(&rest[n + 1 + sign..], 10);
            if exponent > 0 {
                n += 1 + sign + exponent;
                float = true;
            }
        }
        let clean = rest[..n].replace('_', "");
        self.push(match (float, clean.parse(), clean.parse()) {
            (false, Ok(i), _) => Token::Int(i),
            (true, _, Ok(f)) => Token::Float(f),
            _ => return fault(format!("the number {clean} is too large")),
        });
        self.skip(n);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Outcome<()> {
        let rest = self.rest();
        let mut escaped = false;
        for (i, c) in rest.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == quote => {
                    let value = unescape(&rest[1..i])?;
                    self.push(Token::Str(value));
                    self.skip(i + 1);
                    return Ok(());
                }
                _ => {}
            }
        }
        fault(format!("unexpected char {quote:?}"))
    }
}

/// The first tag of `text`.
fn next_tag(text: &str) -> Option<(usize, Tag)> {
    let mut from = 0;
    while let Some(i) = text[from..].find('{') {
        let at = from + i;
        let tag = match text.as_bytes().get(at + 1) {
            Some(b'{') => Tag::Variable,
            Some(b'%') => Tag::Block,
            Some(b'#') => Tag::Comment,
            _ => {
                from = at + 1;
                continue;
            }
        };
        return Some((at, tag));
    }
    None
}

/// The length of a `{% raw %}` that `text` begins with.
fn raw_begin(text: &str) -> Option<usize> {
    let inner = text[2..].strip_prefix(['-', '+']).unwrap_or(&text[2..]);
    let behind = inner.trim_start().strip_prefix("raw")?.trim_start();
    let end = match behind.strip_prefix("-%}") {
        Some(more) => behind.len() - more.trim_start().len(),
        None => behind.starts_with("%}").then_some(2)?,
    };
    Some(text.len() - behind.len() + end)
}

/// The length of a block's end with what it takes of the text behind.
fn block_end(text: &str) -> Option<usize> {
    if let Some(more) = text.strip_prefix("-%}") {
        return Some(text.len() - more.trim_start().len());
    }
    if text.starts_with("+%}") {
        return Some(3);
    }
    let more = text.strip_prefix("%}")?;
    Some(2 + usize::from(more.starts_with('\n')))
}

fn variable_end(text: &str) -> Option<usize> {
    match text.strip_prefix("-}}") {
        Some(more) => Some(text.len() - more.trim_start().len()),
        None => text.starts_with("}}").then_some(2),
    }
}

/// Bytes of digits with single underscores between them.
fn digits(text: &str, radix: u32) -> usize {
    let mut n = 0;
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(|b| (*b as char).is_digit(radix));
    while digit(n) || (bytes.get(n) == Some(&b'_') && digit(n + 1) && (n > 0 || radix != 10)) {
        n += 1;
    }
    n
}

fn balance(op: &str, open: &mut Vec<char>) -> Outcome<()> {
    match op {
        "(" => open.push(')'),
        "[" => open.push(']'),
        "{" => open.push('}'),
        ")" | "]" | "}" => match open.pop() {
            None => return fault(format!("unexpected '{op}'")),
            Some(want) if !op.starts_with(want) => return fault(format!("unexpected '{op}', expected '{want}'")),
            Some(_) => {}
        },
        _ => {}
    }
    Ok(())
}

/// Python's escapes of string literals.
fn unescape(text: &str) -> Outcome<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(e) = chars.next() else { break };
        let code = match e {
            '\n' => continue,
            'n' => '\n' as u32,
            't' => '\t' as u32,
            'r' => '\r' as u32,
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'v' => 11,
            '\\' | '\'' | '"' => e as u32,
            'x' | 'u' | 'U' => {
                let n = match e {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let digits: String = chars.by_ref().take(n).collect();
                match u32::from_str_radix(&digits, 16) {
                    Ok(code) if digits.len() == n => code,
                    _ => return fault(format!("a truncated \\{e} escape")),
                }
            }
            '0'..='7' => {
                let mut code = e as u32 - '0' as u32;
                for _ in 0..2 {
                    let Some(d) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + d;
                    chars.next();
                }
                code
            }
            other => {
                out.push('\\');
                out.push(other);
                continue;
            }
        };
        match char::from_u32(code) {
            Some(c) => out.push(c),
            None => return fault(format!("\\{e} {code:x} is no character")),
        }
    }
    Ok(out)
}
