//! Calls with a tag for each parameter: Qwen3-Coder, GLM, MiniMax.

use super::{
    grammar::{Grammar, Literal, Verdict, literal},
    json::blank,
    sink::Sink,
    value::Value,
};

/// How a family writes its tags.
#[derive(Debug)]
pub(super) struct Tags {
    /// Before the function's name and behind it; a GLM name ends where no name goes on.
    pub open: &'static str,
    pub open_end: &'static str,
    /// Before a parameter's name and behind it.
    pub key: &'static str,
    pub key_end: &'static str,
    /// Before a value, where a tag stands there, and behind it.
    pub value: &'static str,
    pub value_end: &'static str,
    /// Behind the last parameter.
    pub close: &'static str,
    /// Behind the last call, where `close` does not end it.
    pub end: &'static str,
    /// Whether lines of their own hold the values.
    pub lines: bool,
}

/// `<tool_call><function=f><parameter=p>\nvalue\n</parameter></function></tool_call>`
pub(super) const QWEN: Tags = Tags {
    open: "<function=",
    open_end: ">",
    key: "<parameter=",
    key_end: ">",
    value: "",
    value_end: "</parameter>",
    close: "</function>",
    end: "</tool_call>",
    lines: true,
};

/// `<tool_call>f\n<arg_key>k</arg_key>\n<arg_value>v</arg_value>\n</tool_call>`
pub(super) const GLM: Tags = Tags {
    open: "",
    open_end: "",
    key: "<arg_key>",
    key_end: "</arg_key>",
    value: "<arg_value>",
    value_end: "</arg_value>",
    close: "</tool_call>",
    end: "",
    lines: false,
};

/// `<minimax:tool_call><invoke name="f"><parameter name="p">v</parameter></invoke></minimax:tool_call>`
pub(super) const MINIMAX: Tags = Tags {
    open: "<invoke name=\"",
    open_end: "\">",
    key: "<parameter name=\"",
    key_end: "\">",
    value: "",
    value_end: "</parameter>",
    close: "</invoke>",
    end: "</minimax:tool_call>",
    lines: false,
};

#[derive(Debug)]
enum At {
    Open,
    Name,
    /// Before a parameter or the end of the call.
    Inside,
    Key,
    BeforeValue,
    Value(Value),
    /// Behind a call.
    After,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Xml {
    tags: &'static Tags,
    at: At,
    /// What may become a tag, or a name that is being read.
    read: String,
    function: String,
    keys: Vec<String>,
}

/// Longer names of functions and parameters are none.
const LONGEST_NAME: usize = 256;

fn in_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/')
}

impl Xml {
    /// Before the tag that opens a function.
    pub fn new(tags: &'static Tags) -> Self {
        let at = if tags.open.is_empty() { At::Name } else { At::Open };
        Xml { tags, at, read: String::new(), function: String::new(), keys: vec![] }
    }

    /// Behind the tag that opens a function.
    pub fn opened(tags: &'static Tags) -> Self {
        Xml { at: At::Name, ..Xml::new(tags) }
    }

    /// The name is whole. What follows it tells whether it is one.
    fn end_name(&mut self) {
        self.function = std::mem::take(&mut self.read).trim().to_owned();
        self.keys.clear();
        self.at = At::Inside;
    }

    /// Begins the call unless it has begun.
    fn start(&mut self, sink: &mut Sink) -> bool {
        if sink.open {
            return true;
        }
        let started = sink.start(&self.function, None);
        sink.arguments("{");
        started
    }

    fn name(&mut self, c: char, sink: &mut Sink) -> Verdict {
        if self.tags.open_end.is_empty() {
            if in_name(c) {
                self.read.push(c);
                return if self.read.len() > LONGEST_NAME { Verdict::No } else { Verdict::More };
            }
            self.end_name();
            return self.push(c, sink);
        }
        match self.named(c, self.tags.open_end) {
            Literal::More => {}
            Literal::Found(_) => self.end_name(),
            Literal::No => return Verdict::No,
        }
        Verdict::More
    }

    /// Reads a name up to `end`.
    fn named(&mut self, c: char, end: &str) -> Literal {
        self.read.push(c);
        if self.read.ends_with(end) {
            self.read.truncate(self.read.len() - end.len());
            return Literal::Found(0);
        }
        if self.read.len() > LONGEST_NAME || c == '\n' || c == '<' && !end.starts_with('<') {
            return Literal::No;
        }
        Literal::More
    }

    fn key(&mut self, c: char, sink: &mut Sink) -> Verdict {
        match self.named(c, self.tags.key_end) {
            Literal::More => return Verdict::More,
            Literal::No => return Verdict::No,
            Literal::Found(_) => {}
        }
        let key = std::mem::take(&mut self.read);
        // An object has a key once.
        if key.is_empty() || self.keys.contains(&key) {
            return Verdict::No;
        }
        let comma = if self.keys.is_empty() { "" } else { ", " };
        sink.arguments(&format!("{comma}{}: ", serde_json::Value::from(key.as_str())));
        self.keys.push(key);
        self.at = At::BeforeValue;
        if self.tags.value.is_empty() {
            self.value(sink);
        }
        Verdict::More
    }

    fn value(&mut self, sink: &mut Sink) {
        let key = self.keys.last().cloned().unwrap_or_default();
        let parameters = sink.tool(&self.function).map(|t| t.parameters.clone());
        self.at = At::Value(Value::new(parameters.as_ref(), &key, self.tags.value_end, self.tags.lines, sink));
    }
}

impl Grammar for Xml {
    fn push(&mut self, c: char, sink: &mut Sink) -> Verdict {
        match &mut self.at {
            At::Name => return self.name(c, sink),
            At::Key => return self.key(c, sink),
            At::Value(value) => {
                if value.push(c, sink) {
                    self.at = At::Inside;
                }
                return Verdict::More;
            }
            At::Open | At::Inside | At::BeforeValue | At::After => {}
        }
        if self.read.is_empty() && blank(c) {
            return Verdict::More;
        }
        let tags = self.tags;
        match &self.at {
            At::Open => match literal(&mut self.read, c, &[tags.open]) {
                Literal::More => {}
                Literal::Found(_) => self.at = At::Name,
                Literal::No => return Verdict::No,
            },
            At::Inside => match literal(&mut self.read, c, &[tags.key, tags.close]) {
                Literal::More => {}
                Literal::Found(_) if !self.start(sink) => return Verdict::No,
                Literal::Found(0) => self.at = At::Key,
                Literal::Found(_) => {
                    sink.arguments("}");
                    sink.close();
                    self.at = At::After;
                    if tags.end.is_empty() {
                        return Verdict::Done;
                    }
                }
                Literal::No => return Verdict::No,
            },
            At::BeforeValue => match literal(&mut self.read, c, &[tags.value]) {
                Literal::More => {}
                Literal::Found(_) => self.value(sink),
                Literal::No => return Verdict::No,
            },
            At::After => match literal(&mut self.read, c, &[tags.open, tags.end]) {
                Literal::More => {}
                Literal::Found(0) => self.at = At::Name,
                Literal::Found(_) => return Verdict::Done,
                Literal::No => return Verdict::No,
            },
            At::Name | At::Key | At::Value(_) => {}
        }
        Verdict::More
    }
}
