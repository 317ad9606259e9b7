//! Calls as JSON: `{"name": "f", "arguments": {"x": 1}}`, one or a list of them.

use super::{
    grammar::{Grammar, Verdict},
    json::{Json, Took, blank},
    sink::Sink,
};

/// What a member of the object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Name,
    Id,
    Arguments,
    Other,
}

#[derive(Debug)]
enum At {
    Open,
    /// Behind `{`; whether the object may end here.
    Key(bool),
    KeyText(Json, String),
    Colon(Member),
    Before(Member),
    /// A value that is needed as a whole.
    Whole(Member, Json, String),
    /// Arguments that go on as they come.
    Stream(Json),
    After,
}

/// Reads one object.
#[derive(Debug)]
pub(super) struct CallObject {
    at: At,
    /// Whether nothing but its form says that it is a call: then it has a known name, arguments, and nothing strange.
    bare: bool,
    name: Option<String>,
    id: Option<String>,
    /// Arguments that came before the name, or as a text.
    early: Option<String>,
    started: bool,
}

/// Arguments as models write them: an object, one as a text, or nothing. `None` where they are something else.
fn arguments(json: &str) -> Option<String> {
    match serde_json::from_str::<serde_json::Value>(json).ok()? {
        serde_json::Value::Object(_) => Some(json.to_owned()),
        serde_json::Value::Null => Some("{}".into()),
        serde_json::Value::String(text) if text.trim().is_empty() => Some("{}".into()),
        serde_json::Value::String(text) => match serde_json::from_str::<serde_json::Value>(&text).ok()? {
            serde_json::Value::Object(_) => Some(text),
            _ => None,
        },
        serde_json::Value::Bool(_) | serde_json::Value::Number(_) | serde_json::Value::Array(_) => None,
    }
}

impl CallObject {
    pub fn new(bare: bool) -> Self {
        CallObject { at: At::Open, bare, name: None, id: None, early: None, started: false }
    }

    fn member(&self, key: &str) -> Option<Member> {
        match key {
            "name" => Some(Member::Name),
            "arguments" | "parameters" => Some(Member::Arguments),
            "id" => Some(Member::Id),
            "type" => Some(Member::Other),
            _ if self.bare => None,
            _ => Some(Member::Other),
        }
    }

    /// Begins the value of a member.
    fn value(&mut self, member: Member, c: char, sink: &mut Sink) -> Verdict {
        let mut json = Json::new();
        let fits = match member {
            Member::Name | Member::Id => c == '"',
            Member::Arguments => matches!(c, '{' | '"' | 'n') && !self.started && self.early.is_none(),
            Member::Other => true,
        };
        let mut text = String::new();
        if !fits || json.push(c, &mut text) == Took::Bad {
            return Verdict::No;
        }
        self.at = match (member, c, &self.name) {
            (Member::Arguments, '{', Some(_)) => {
                if !self.start(sink) {
                    return Verdict::No;
                }
                sink.arguments(&text);
                At::Stream(json)
            }
            _ => At::Whole(member, json, text),
        };
        Verdict::More
    }

    fn start(&mut self, sink: &mut Sink) -> bool {
        let Some(name) = &self.name else { return false };
        if self.bare && sink.tool(name).is_none() {
            return false;
        }
        self.started = sink.start(name, self.id.take());
        self.started
    }

    /// A value is whole.
    fn whole(&mut self, member: Member, json: &str) -> bool {
        self.at = At::After;
        match member {
            Member::Name => self.name = serde_json::from_str(json).ok(),
            Member::Id => self.id = serde_json::from_str(json).ok(),
            Member::Arguments => {
                self.early = arguments(json);
                return self.early.is_some();
            }
            Member::Other => {}
        }
        member != Member::Name || self.name.is_some()
    }

    fn finish(&mut self, sink: &mut Sink) -> Verdict {
        if !self.started {
            if self.bare && self.early.is_none() || !self.start(sink) {
                return Verdict::No;
            }
            sink.arguments(self.early.as_deref().unwrap_or("{}"));
        }
        sink.close();
        Verdict::Done
    }
}

impl Grammar for CallObject {
    fn push(&mut self, c: char, sink: &mut Sink) -> Verdict {
        match &mut self.at {
            At::KeyText(json, text) => match json.push(c, text) {
                Took::More => Verdict::More,
                Took::Done => {
                    let key: Option<String> = serde_json::from_str(text).ok();
                    let Some(member) = key.and_then(|k| self.member(&k)) else { return Verdict::No };
                    self.at = At::Colon(member);
                    Verdict::More
                }
                Took::Before | Took::Bad => Verdict::No,
            },
            At::Whole(member, json, text) => {
                let (took, member) = (json.push(c, text), *member);
                if took == Took::More {
                    return Verdict::More;
                }
                let text = std::mem::take(text);
                if took == Took::Bad || !self.whole(member, &text) {
                    return Verdict::No;
                }
                if took == Took::Before { self.push(c, sink) } else { Verdict::More }
            }
            At::Stream(json) => {
                let mut text = String::new();
                let took = json.push(c, &mut text);
                sink.arguments(&text);
                match took {
                    Took::More => {}
                    Took::Done => self.at = At::After,
                    Took::Before | Took::Bad => return Verdict::No,
                }
                Verdict::More
            }
            _ if blank(c) => Verdict::More,
            At::Open if c == '{' => {
                self.at = At::Key(true);
                Verdict::More
            }
            At::Key(true) if c == '}' => Verdict::No,
            At::Key(_) if c == '"' => {
                let (mut json, mut text) = (Json::new(), String::new());
                json.push(c, &mut text);
                self.at = At::KeyText(json, text);
                Verdict::More
            }
            At::Colon(member) if c == ':' => {
                self.at = At::Before(*member);
                Verdict::More
            }
            At::Before(member) => {
                let member = *member;
                self.value(member, c, sink)
            }
            At::After if c == ',' => {
                self.at = At::Key(false);
                Verdict::More
            }
            At::After if c == '}' => self.finish(sink),
            At::Open | At::Key(_) | At::Colon(_) | At::After => Verdict::No,
        }
    }
}

/// Reads the items of a list, whose `[` was read, up to its end.
#[derive(Debug)]
pub(super) struct CallList {
    bare: bool,
    item: Option<CallObject>,
    /// Whether a comma may come, or the end.
    after: bool,
}

impl CallList {
    pub fn new(bare: bool) -> Self {
        CallList { bare, item: None, after: false }
    }
}

impl Grammar for CallList {
    fn push(&mut self, c: char, sink: &mut Sink) -> Verdict {
        if let Some(item) = &mut self.item {
            let verdict = item.push(c, sink);
            if verdict != Verdict::Done {
                return verdict;
            }
            (self.item, self.after) = (None, true);
            return Verdict::More;
        }
        match c {
            c if blank(c) => Verdict::More,
            ']' if self.after => Verdict::Done,
            ',' if self.after => {
                self.after = false;
                Verdict::More
            }
            '{' if !self.after => {
                let mut item = CallObject::new(self.bare);
                let verdict = item.push(c, sink);
                self.item = Some(item);
                verdict
            }
            _ => Verdict::No,
        }
    }
}
