//! Calls in Python's manner, `[f(x=1, y="a"), g()]`, and Llama's bare forms: such a list, or a JSON object, and nothing else.

use super::{
    grammar::{Grammar, Literal as Match, Verdict, literal},
    json::{Took, blank},
    object::{CallList, CallObject},
    python::Literal,
    sink::Sink,
};

#[derive(Debug)]
enum At {
    /// Before a call.
    Call,
    Name(String),
    /// Before an argument; whether the call may end here.
    Argument(bool),
    Key(String),
    Equals,
    BeforeValue,
    Value(Literal),
    AfterValue,
    AfterCall,
}

/// Reads calls behind `[`, up to `]`.
#[derive(Debug)]
pub(super) struct Calls {
    at: At,
    /// Whether only names of tools count.
    bare: bool,
    keys: Vec<String>,
}

const LONGEST_NAME: usize = 256;

fn in_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '.' | '-')
}

impl Calls {
    pub fn new(bare: bool) -> Self {
        Calls { at: At::Call, bare, keys: vec![] }
    }

    fn to(&mut self, at: At) -> Verdict {
        self.at = at;
        Verdict::More
    }

    fn start(&mut self, name: &str, sink: &mut Sink) -> Verdict {
        // Llama's own tools are called as `name.call(…)`.
        let short = name.strip_suffix(".call").filter(|n| sink.tool(name).is_none() && sink.tool(n).is_some());
        let name = short.unwrap_or(name);
        if self.bare && sink.tool(name).is_none() || !sink.start(name, None) {
            return Verdict::No;
        }
        sink.arguments("{");
        self.keys.clear();
        self.to(At::Argument(true))
    }

    fn key(&mut self, key: String, sink: &mut Sink) -> bool {
        if self.keys.contains(&key) {
            return false;
        }
        let comma = if self.keys.is_empty() { "" } else { ", " };
        sink.arguments(&format!("{comma}{}: ", serde_json::Value::from(key.as_str())));
        self.keys.push(key);
        true
    }

    fn value(&mut self, c: char, sink: &mut Sink) -> Verdict {
        let At::Value(value) = &mut self.at else { return Verdict::No };
        let mut text = String::new();
        let took = value.push(c, &mut text);
        sink.arguments(&text);
        match took {
            Took::More => Verdict::More,
            Took::Done => self.to(At::AfterValue),
            Took::Before => {
                self.at = At::AfterValue;
                self.push(c, sink)
            }
            Took::Bad => Verdict::No,
        }
    }
}

impl Grammar for Calls {
    fn push(&mut self, c: char, sink: &mut Sink) -> Verdict {
        match &mut self.at {
            At::Value(_) => self.value(c, sink),
            At::Name(name) if in_name(c) && name.len() < LONGEST_NAME => {
                name.push(c);
                Verdict::More
            }
            At::Name(name) if c == '(' => {
                let name = std::mem::take(name);
                self.start(&name, sink)
            }
            At::Key(key) if in_name(c) && key.len() < LONGEST_NAME => {
                key.push(c);
                Verdict::More
            }
            At::Key(key) if c == '=' || blank(c) => {
                let key = std::mem::take(key);
                if !self.key(key, sink) {
                    return Verdict::No;
                }
                self.to(if c == '=' { At::BeforeValue } else { At::Equals })
            }
            _ if blank(c) => Verdict::More,
            At::Call if c.is_alphabetic() || c == '_' => self.to(At::Name(c.to_string())),
            At::Argument(_) if c.is_alphabetic() || c == '_' => self.to(At::Key(c.to_string())),
            At::Equals if c == '=' => self.to(At::BeforeValue),
            At::BeforeValue => {
                self.at = At::Value(Literal::new());
                self.value(c, sink)
            }
            At::AfterValue if c == ',' => self.to(At::Argument(true)),
            At::Argument(true) | At::AfterValue if c == ')' => {
                sink.arguments("}");
                sink.close();
                self.to(At::AfterCall)
            }
            At::AfterCall if c == ',' => self.to(At::Call),
            At::AfterCall if c == ']' => Verdict::Done,
            _ => Verdict::No,
        }
    }
}

#[derive(Debug)]
enum Form {
    /// Before something.
    Unknown,
    /// Behind `[`.
    Bracket,
    Object(CallObject),
    Objects(CallList),
    Calls(Calls),
    /// One of Llama's own tools, without brackets.
    Single(Calls),
    After,
}

/// Llama's forms.
#[derive(Debug)]
pub(super) struct Llama {
    form: Form,
    /// What ends the calls.
    end: &'static str,
    read: String,
}

impl Llama {
    /// At the beginning of an answer, or behind a mark.
    pub fn new(end: &'static str) -> Self {
        Llama { form: Form::Unknown, end, read: String::new() }
    }

    fn with(&mut self, c: char, sink: &mut Sink, form: Form) -> Verdict {
        self.form = form;
        self.push(c, sink)
    }

    /// A verdict of a form's reader.
    fn inner(&mut self, verdict: Verdict) -> Verdict {
        if verdict == Verdict::Done {
            self.form = Form::After;
            return Verdict::More;
        }
        verdict
    }
}

impl Grammar for Llama {
    fn push(&mut self, c: char, sink: &mut Sink) -> Verdict {
        let verdict = match &mut self.form {
            Form::Unknown | Form::Bracket if blank(c) => Verdict::More,
            Form::Unknown if c == '{' => return self.with(c, sink, Form::Object(CallObject::new(true))),
            Form::Unknown if c == '[' => {
                self.form = Form::Bracket;
                Verdict::More
            }
            Form::Unknown => return self.with(c, sink, Form::Single(Calls::new(true))),
            Form::Bracket if c == '{' => return self.with(c, sink, Form::Objects(CallList::new(true))),
            Form::Bracket => return self.with(c, sink, Form::Calls(Calls::new(true))),
            Form::Object(object) => object.push(c, sink),
            Form::Objects(list) => list.push(c, sink),
            Form::Calls(calls) => calls.push(c, sink),
            Form::Single(calls) => {
                let verdict = calls.push(c, sink);
                if matches!(calls.at, At::AfterCall) { Verdict::Done } else { verdict }
            }
            Form::After if self.read.is_empty() && (blank(c) || c == ';') => Verdict::More,
            Form::After if self.read.is_empty() && c == '{' => {
                return self.with(c, sink, Form::Object(CallObject::new(true)));
            }
            Form::After => {
                return match literal(&mut self.read, c, &[self.end]) {
                    Match::More => Verdict::More,
                    Match::Found(_) => Verdict::Done,
                    Match::No if self.read.chars().count() == 1 => Verdict::Before,
                    Match::No => Verdict::No,
                };
            }
        };
        self.inner(verdict)
    }
}

/// `[f(x=1)]` between marks.
#[derive(Debug)]
pub(super) struct Marked {
    calls: Option<Calls>,
    closing: bool,
    end: &'static str,
    read: String,
}

impl Marked {
    /// Behind the opening mark.
    pub fn new(end: &'static str) -> Self {
        Marked { calls: None, closing: false, end, read: String::new() }
    }
}

impl Grammar for Marked {
    fn push(&mut self, c: char, sink: &mut Sink) -> Verdict {
        match &mut self.calls {
            None if !self.closing && blank(c) => Verdict::More,
            None if !self.closing && c == '[' => {
                self.calls = Some(Calls::new(false));
                Verdict::More
            }
            None if !self.closing => Verdict::No,
            Some(calls) => match calls.push(c, sink) {
                Verdict::Done => {
                    (self.calls, self.closing) = (None, true);
                    Verdict::More
                }
                other => other,
            },
            None if self.read.is_empty() && blank(c) => Verdict::More,
            None => match literal(&mut self.read, c, &[self.end]) {
                Match::More => Verdict::More,
                Match::Found(_) => Verdict::Done,
                Match::No => Verdict::No,
            },
        }
    }
}
