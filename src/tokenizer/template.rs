//! Chat templates: the Jinja programs that turn a conversation into a prompt, rendered by minijinja as Hugging Face
//! transformers renders them (`trim_blocks`, `lstrip_blocks`, Python's string methods, and the functions below).
//!
//! A template comes with a model's file, so it is not trusted: it sees nothing but the conversation, its steps and its
//! output are limited. (Its memory is not: a program of few steps can double a string often.)

use crate::error::{Error, Result};
use minijinja::{Environment, ErrorKind, State, Value, value::Kwargs};
use serde::Serialize;
use std::{collections::BTreeMap, io};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// The local time that a template may ask for with `strftime_now`. The library reads no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    /// Year of the Gregorian calendar.
    pub year: i32,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// 0 to 23.
    pub hour: u32,
    /// 0 to 59.
    pub minute: u32,
    /// 0 to 60.
    pub second: u32,
}

/// What a template is rendered with, besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// End with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// The time; `None` leaves `strftime_now` undefined, and templates take their own default date.
    pub now: Option<DateTime>,
    /// Further variables, such as `enable_thinking`.
    pub variables: BTreeMap<String, serde_json::Value>,
}

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    compiled: String,
    bos: String,
    eos: String,
}

/// Steps that a template may take: a conversation of a thousand messages takes some ten thousand.
const FUEL: u64 = 20_000_000;
/// Bytes that a template may write beyond four times the conversation.
const MOST_OUTPUT: usize = 16 << 20;
/// The longest template; real ones have up to some 20 kB.
const MOST_SOURCE: usize = 1 << 20;

impl ChatTemplate {
    /// Parses a template. `bos` and `eos` are the texts of the model's special tokens (empty where it has none), which
    /// templates write through `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with the line and the reason where the template does not parse.
    pub fn new(source: impl Into<String>, bos: impl Into<String>, eos: impl Into<String>) -> Result<Self> {
        let source = source.into();
        if source.len() > MOST_SOURCE {
            return Err(Error::Tokenizer(format!("a chat template of {} bytes is too long", source.len())));
        }
        let compiled = without_generation_tags(&source);
        let template = ChatTemplate { source, compiled, bos: bos.into(), eos: eos.into() };
        template.environment(None).template_from_str(&template.compiled).map_err(error)?;
        Ok(template)
    }

    /// The program as the file has it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation, without a date and further variables.
    ///
    /// # Errors
    /// As [`ChatTemplate::render_with`].
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, &RenderOptions { add_generation_prompt, ..RenderOptions::default() })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with the line and the reason: what the template itself refuses (`raise_exception`, roles
    /// that do not alternate), what it asks for and does not exist, too many steps, too much output.
    pub fn render_with(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        let env = self.environment(options.now);
        let template = env.template_from_str(&self.compiled).map_err(error)?;
        let mut context: BTreeMap<&str, Value> =
            options.variables.iter().map(|(k, v)| (k.as_str(), Value::from_serialize(v))).collect();
        context.insert("messages", Value::from_serialize(messages));
        context.insert("add_generation_prompt", options.add_generation_prompt.into());
        context.insert("bos_token", self.bos.as_str().into());
        context.insert("eos_token", self.eos.as_str().into());
        context.entry("tools").or_insert_with(|| ().into());
        context.entry("documents").or_insert_with(|| ().into());
        let conversation: usize = messages.iter().map(|m| m.role.len() + m.content.len()).sum();
        let mut out = Capped { bytes: Vec::new(), left: conversation.saturating_mul(4).saturating_add(MOST_OUTPUT) };
        let rendered = template.render_captured_to(context, &mut out).map(drop);
        if out.left == 0 {
            return Err(Error::Tokenizer("the chat template writes without end".into()));
        }
        rendered.map_err(error)?;
        String::from_utf8(out.bytes).map_err(|_| Error::Tokenizer("the chat template wrote no UTF-8".into()))
    }

    fn environment(&self, now: Option<DateTime>) -> Environment<'_> {
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |message: String| -> std::result::Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        if let Some(now) = now {
            env.add_function("strftime_now", move |format: String| strftime(now, &format));
        }
        env.add_filter("tojson", to_json);
        env
    }
}

/// A buffer with an end.
struct Capped {
    bytes: Vec<u8>,
    left: usize,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() >= self.left {
            self.left = 0;
            return Err(io::Error::other("the output is too long"));
        }
        self.left -= bytes.len();
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn error(e: minijinja::Error) -> Error {
    let line = e.line().map_or(String::new(), |n| format!(", line {n}"));
    let reason = match (e.kind(), e.detail()) {
        (ErrorKind::OutOfFuel, _) => "it takes too many steps".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    Error::Tokenizer(format!("chat template{line}: {reason}"))
}

/// `{% generation %}` marks the assistant's words for training in Hugging Face's dialect and means nothing here:
/// it becomes `{% if true %}`.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(len) = rest[at..].find("%}") else { break };
        let tag = &rest[at..at + len];
        let word = tag[2..].trim_matches(['-', '+', ' ', '\t', '\n', '\r']);
        out.push_str(&rest[..at]);
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[at + len..];
    }
    out.push_str(rest);
    out
}

/// `tojson` as transformers defines it: Python's `json.dumps(value, ensure_ascii=False)`, with `indent` where given, and
/// none of the HTML escapes of Jinja's own filter.
fn to_json(_: &State, value: Value, args: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = args.get("indent")?;
    // Other arguments (`ensure_ascii`, `separators`) change spellings that no model's template relies on.
    let json = serde_json::to_value(&value)
        .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}")))?;
    let mut out = String::new();
    write_json(&json, indent.map(|n| n.min(16)), 0, &mut out);
    Ok(Value::from_safe_string(out))
}

fn write_json(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    use serde_json::Value::{Array, Object};
    let line = |out: &mut String, depth: usize| {
        if let Some(n) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', n * depth));
        }
    };
    let between = if indent.is_some() { "," } else { ", " };
    match value {
        Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { between } else { "" });
                line(out, depth + 1);
                write_json(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        Object(entries) if !entries.is_empty() => {
            out.push('{');
            for (i, (key, item)) in entries.iter().enumerate() {
                out.push_str(if i > 0 { between } else { "" });
                line(out, depth + 1);
                out.push_str(&serde_json::Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write_json(item, indent, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Saturday", "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday"];

/// The conversions of C's `strftime` that templates use; `%-d` is `%d` without padding. Unknown ones stay as they are.
fn strftime(t: DateTime, format: &str) -> String {
    let month = MONTHS[(t.month.clamp(1, 12) - 1) as usize];
    let day = DAYS[weekday(t) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut conversion = chars.next();
        let pad = conversion != Some('-');
        if !pad {
            conversion = chars.next();
        }
        let mut number = |n: u32| out.push_str(&if pad { format!("{n:02}") } else { n.to_string() });
        match conversion {
            Some('d') => number(t.day),
            Some('m') => number(t.month),
            Some('H') => number(t.hour),
            Some('I') => number((t.hour + 11) % 12 + 1),
            Some('M') => number(t.minute),
            Some('S') => number(t.second),
            Some('y') => number(t.year.rem_euclid(100) as u32),
            Some('Y') => out.push_str(&t.year.to_string()),
            Some('B') => out.push_str(month),
            Some('b') => out.push_str(&month[..3]),
            Some('A') => out.push_str(day),
            Some('a') => out.push_str(&day[..3]),
            Some('p') => out.push_str(if t.hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&format!("{}-{:02}-{:02}", t.year, t.month, t.day)),
            Some('T') => out.push_str(&format!("{:02}:{:02}:{:02}", t.hour, t.minute, t.second)),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Zeller's congruence: 0 is Saturday.
fn weekday(t: DateTime) -> u32 {
    let (month, year) =
        if t.month < 3 { (i64::from(t.month) + 12, i64::from(t.year) - 1) } else { (t.month.into(), t.year.into()) };
    let (k, j) = (year.rem_euclid(100), year.div_euclid(100));
    (i64::from(t.day) + 13 * (month + 1) / 5 + k + k / 4 + j.div_euclid(4) - 2 * j).rem_euclid(7) as u32
}
