//! Calls with a head and JSON between control tokens: DeepSeek and Kimi, and Mistral's newer form.

use super::{
    grammar::{Grammar, Literal, Verdict, literal},
    json::{Json, Took, blank},
    sink::Sink,
};

/// How a family writes its marks.
#[derive(Debug)]
pub(super) struct Marks {
    pub begin: &'static str,
    /// Between the head and the arguments.
    pub separator: &'static str,
    pub end: &'static str,
    /// Behind the last call.
    pub section_end: &'static str,
    /// Whether the head is Kimi's id of the call, `functions.NAME:INDEX`.
    pub kimi: bool,
}

/// V3 and R1: `BEGIN function SEPARATOR name\n```json\n{…}\n``` END`; V3.1: `BEGIN name SEPARATOR {…} END`.
pub(super) const DEEPSEEK: Marks = Marks {
    begin: "<｜tool▁call▁begin｜>",
    separator: "<｜tool▁sep｜>",
    end: "<｜tool▁call▁end｜>",
    section_end: "<｜tool▁calls▁end｜>",
    kimi: false,
};

pub(super) const KIMI: Marks = Marks {
    begin: "<|tool_call_begin|>",
    separator: "<|tool_call_argument_begin|>",
    end: "<|tool_call_end|>",
    section_end: "<|tool_calls_section_end|>",
    kimi: true,
};

#[derive(Debug)]
enum At {
    /// Before a call or the section's end.
    Between,
    Head,
    /// Behind the separator: arguments, or the name that DeepSeek's older form has there.
    Separated,
    Name,
    /// The beginning of a fenced block.
    Fence,
    Json(Json),
    /// Behind the arguments; whether a fence may end here.
    Closing(bool),
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Section {
    marks: &'static Marks,
    at: At,
    read: String,
    head: String,
}

/// Longer heads are none.
const LONGEST_HEAD: usize = 300;
const FENCE: &str = "```json";

/// The name in Kimi's id of a call.
fn kimi_name(id: &str) -> Option<&str> {
    let id = id.trim();
    let (name, index) = id.strip_prefix("functions.").unwrap_or(id).rsplit_once(':')?;
    (!index.is_empty() && index.bytes().all(|b| b.is_ascii_digit())).then_some(name)
}

impl Section {
    /// Behind the section's opening mark.
    pub fn new(marks: &'static Marks) -> Self {
        Section { marks, at: At::Between, read: String::new(), head: String::new() }
    }

    /// Behind the opening mark of a call that came without a section.
    pub fn call(marks: &'static Marks) -> Self {
        Section { at: At::Head, ..Section::new(marks) }
    }

    fn arguments(&mut self, c: char, sink: &mut Sink) -> Verdict {
        let (mut json, mut text) = (Json::new(), String::new());
        if c != '{' || json.push(c, &mut text) != Took::More {
            return Verdict::No;
        }
        let head = std::mem::take(&mut self.head);
        let started = if self.marks.kimi {
            kimi_name(&head).is_some_and(|name| sink.start(name, Some(head.trim().to_owned())))
        } else {
            sink.start(&head, None)
        };
        if !started {
            return Verdict::No;
        }
        sink.arguments(&text);
        self.at = At::Json(json);
        Verdict::More
    }

    fn closing(&mut self, c: char, fence: bool) -> Verdict {
        if self.read.is_empty() && blank(c) {
            return Verdict::More;
        }
        let options: &[&str] = if fence { &["```", self.marks.end] } else { &[self.marks.end] };
        match literal(&mut self.read, c, options) {
            Literal::More => {}
            Literal::Found(0) if fence => self.at = At::Closing(false),
            Literal::Found(_) => self.at = At::Between,
            Literal::No => return Verdict::No,
        }
        Verdict::More
    }
}

impl Grammar for Section {
    fn push(&mut self, c: char, sink: &mut Sink) -> Verdict {
        match &mut self.at {
            At::Between if self.read.is_empty() && blank(c) => {}
            At::Between => match literal(&mut self.read, c, &[self.marks.begin, self.marks.section_end]) {
                Literal::More => {}
                Literal::Found(0) => self.at = At::Head,
                Literal::Found(_) => return Verdict::Done,
                Literal::No => return Verdict::No,
            },
            At::Head => {
                self.head.push(c);
                if self.head.ends_with(self.marks.separator) {
                    self.head.truncate(self.head.len() - self.marks.separator.len());
                    self.at = At::Separated;
                } else if self.head.len() > LONGEST_HEAD {
                    return Verdict::No;
                }
            }
            At::Separated if blank(c) => {}
            At::Separated if c == '{' => return self.arguments(c, sink),
            At::Separated if self.marks.kimi || self.head.trim() != "function" => return Verdict::No,
            At::Separated => {
                self.head = c.to_string();
                self.at = At::Name;
            }
            At::Name if c == '\n' => self.at = At::Fence,
            At::Name => {
                self.head.push(c);
                if self.head.len() > LONGEST_HEAD {
                    return Verdict::No;
                }
            }
            At::Fence if self.read.is_empty() && (blank(c) || c == '{') => {
                return if blank(c) { Verdict::More } else { self.arguments(c, sink) };
            }
            At::Fence => match literal(&mut self.read, c, &[FENCE]) {
                Literal::More | Literal::Found(_) => {}
                Literal::No => return Verdict::No,
            },
            At::Json(json) => {
                let mut text = String::new();
                let took = json.push(c, &mut text);
                sink.arguments(&text);
                match took {
                    Took::More => {}
                    Took::Done => {
                        sink.close();
                        self.at = At::Closing(!self.marks.kimi);
                    }
                    Took::Before | Took::Bad => return Verdict::No,
                }
            }
            At::Closing(fence) => {
                let fence = *fence;
                return self.closing(c, fence);
            }
        }
        Verdict::More
    }
}

/// Mistral's two forms behind `[TOOL_CALLS]`: a list of objects, or `name[CALL_ID]id[ARGS]{…}`, of which the id may be absent and
/// in the middle form `[ARGS]` too.
#[derive(Debug)]
pub(super) enum Mistral {
    Start,
    List(super::object::CallList),
    Name(String),
    Id { name: String, id: String },
    Before { name: String, id: Option<String> },
    Json(Json),
}

const ARGUMENTS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";

impl Mistral {
    fn json(c: char, name: &str, id: Option<String>, sink: &mut Sink) -> Option<Mistral> {
        let (mut json, mut text) = (Json::new(), String::new());
        if c != '{' || json.push(c, &mut text) != Took::More || !sink.start(name, id.map(|i| i.trim().to_owned())) {
            return None;
        }
        sink.arguments(&text);
        Some(Mistral::Json(json))
    }

    /// The state after a character, or none where this is no call.
    fn next(&mut self, c: char, sink: &mut Sink) -> Option<Mistral> {
        match self {
            Mistral::Start if blank(c) => Some(Mistral::Start),
            Mistral::Start if c == '[' => Some(Mistral::List(super::object::CallList::new(false))),
            Mistral::Start => Some(Mistral::Name(c.to_string())),
            Mistral::Name(name) if c == '{' => Mistral::json(c, name, None, sink),
            Mistral::Name(name) => {
                name.push(c);
                if c.is_whitespace() || c.is_control() {
                    return None;
                }
                if let Some(name) = name.strip_suffix(ARGUMENTS) {
                    return Some(Mistral::Before { name: name.to_owned(), id: None });
                }
                if let Some(name) = name.strip_suffix(CALL_ID) {
                    return Some(Mistral::Id { name: name.to_owned(), id: String::new() });
                }
                (name.len() < LONGEST_HEAD).then(|| Mistral::Name(std::mem::take(name)))
            }
            Mistral::Id { name, id } => {
                id.push(c);
                if let Some(id) = id.strip_suffix(ARGUMENTS) {
                    return Some(Mistral::Before { name: std::mem::take(name), id: Some(id.to_owned()) });
                }
                let (name, id) = (std::mem::take(name), std::mem::take(id));
                (id.len() < LONGEST_HEAD).then_some(Mistral::Id { name, id })
            }
            Mistral::Before { name, id } if blank(c) => {
                Some(Mistral::Before { name: std::mem::take(name), id: id.take() })
            }
            Mistral::Before { name, id } => Mistral::json(c, name, id.take(), sink),
            Mistral::List(_) | Mistral::Json(_) => None,
        }
    }
}

impl Grammar for Mistral {
    fn push(&mut self, c: char, sink: &mut Sink) -> Verdict {
        match self {
            Mistral::List(list) => list.push(c, sink),
            Mistral::Json(json) => {
                let mut text = String::new();
                let took = json.push(c, &mut text);
                sink.arguments(&text);
                match took {
                    Took::More => Verdict::More,
                    Took::Done => {
                        sink.close();
                        Verdict::Done
                    }
                    Took::Before | Took::Bad => Verdict::No,
                }
            }
            Mistral::Start | Mistral::Name(_) | Mistral::Id { .. } | Mistral::Before { .. } => {
                match self.next(c, sink) {
                    Some(next) => {
                        *self = next;
                        Verdict::More
                    }
                    None => Verdict::No,
                }
            }
        }
    }
}
