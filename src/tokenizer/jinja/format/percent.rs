//! `template % value`: a letter behind `%` says how an argument is set.

use super::{MOST_WIDTH, Spec, format_float, format_int, pad_text, read_number, set_number};
use crate::tokenizer::jinja::{
    Outcome, fault,
    run::Run,
    text::{Builder, Text},
    value::{SeqKind, Value},
};
use std::{iter::Peekable, str::Chars};

/// `template % value`.
pub(in crate::tokenizer::jinja) fn percent(run: &Run, template: &Text, value: &Value) -> Outcome<Text> {
    let source = template.as_str();
    let mut out = Builder::default();
    let mut arguments = Arguments::of(value);
    let mut at = 0;
    while let Some(i) = source[at..].find('%') {
        out.push(&template.slice(at..at + i));
        at += i + 1;
        if source[at..].starts_with('%') {
            out.own("%");
            at += 1;
            continue;
        }
        at += arguments.key(&source[at..])?;
        let (spec, kind, read) = spec_of(&source[at..], &mut arguments)?;
        at += read;
        let argument = arguments.take()?;
        argument.defined()?;
        let set = percent_one(&argument, spec, kind)?;
        run.pay(set.len() / 16)?;
        out.push(&set);
    }
    out.push(&template.slice(at..source.len()));
    if !arguments.all_taken() {
        return fault("not all arguments converted during string formatting");
    }
    Ok(out.finish())
}

/// What stands behind `%`: a tuple's items one after the other, a dict's values by name, or one value.
struct Arguments<'v> {
    value: &'v Value,
    positional: &'v [Value],
    next: usize,
    named: Option<Value>,
    by_name: bool,
}

impl<'v> Arguments<'v> {
    fn of(value: &'v Value) -> Arguments<'v> {
        let positional = match value {
            Value::Seq(SeqKind::Tuple, items) => items.as_slice(),
            single => std::slice::from_ref(single),
        };
        Arguments { value, positional, next: 0, named: None, by_name: false }
    }

    /// Reads `(key)`, whose value is the next one; how many bytes it took.
    fn key(&mut self, source: &str) -> Outcome<usize> {
        let Some(rest) = source.strip_prefix('(') else { return Ok(0) };
        let Some(end) = rest.find(')') else { return fault("incomplete format key") };
        let Value::Dict(d) = self.value else { return fault("format requires a mapping") };
        let key = &rest[..end];
        let Some(found) = d.get(&Value::own(key)) else { return fault(format!("KeyError: '{key}'")) };
        self.named = Some(found.clone());
        self.by_name = true;
        Ok(end + 2)
    }

    fn take(&mut self) -> Outcome<Value> {
        let v = self.named.take().or_else(|| self.positional.get(self.next).cloned());
        self.next += 1;
        v.map_or_else(|| fault("not enough arguments for format string"), Ok)
    }

    fn all_taken(&self) -> bool {
        let untouched_dict = matches!(self.value, Value::Dict(_)) && self.next == 0;
        self.by_name || self.next >= self.positional.len() || untouched_dict
    }
}

/// `flags width .precision length letter`: how the argument is set, its letter, and how many bytes that took.
fn spec_of(source: &str, arguments: &mut Arguments) -> Outcome<(Spec, char, usize)> {
    let mut spec = Spec::default();
    let mut chars = source.chars().peekable();
    let mut at = 0;
    while let Some(c) = chars.next_if(|c| "-+ #0".contains(*c)) {
        match c {
            '-' => spec.align = Some('<'),
            '+' => spec.sign = Some('+'),
            ' ' => spec.sign = spec.sign.or(Some(' ')),
            '#' => spec.alternate = true,
            _ => spec.zero = true,
        }
        at += 1;
    }
    let width = number_or_argument(&mut chars, &mut at, arguments)?;
    spec.align = if width < 0 { Some('<') } else { spec.align };
    spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
    if chars.next_if_eq(&'.').is_some() {
        at += 1;
        let precision = number_or_argument(&mut chars, &mut at, arguments)?;
        spec.precision = Some(usize::try_from(precision.max(0)).unwrap_or(usize::MAX));
    }
    while chars.next_if(|c| "hlL".contains(*c)).is_some() {
        at += 1;
    }
    let Some(kind) = chars.next() else { return fault("incomplete format") };
    Ok((spec, kind, at + kind.len_utf8()))
}

/// A number that is written out, or `*` and the next argument.
fn number_or_argument(chars: &mut Peekable<Chars<'_>>, at: &mut usize, arguments: &mut Arguments) -> Outcome<i128> {
    if chars.next_if_eq(&'*').is_some() {
        *at += 1;
        return Ok(arguments.take()?.int().unwrap_or(0));
    }
    let mut number = 0;
    *at += read_number(chars, &mut number);
    Ok(number as i128)
}

fn percent_one(value: &Value, mut spec: Spec, kind: char) -> Outcome<Text> {
    let number = |what: &str| format!("%{kind} format: {what} is required, not {}", value.type_name());
    spec.align = spec.align.or(Some('>'));
    match kind {
        's' | 'r' | 'a' => {
            spec.zero = false;
            let text = if kind == 's' { value.to_text() } else { value.repr() };
            pad_text(&text, &spec)
        }
        'c' => {
            let text = match (value, value.int()) {
                (Value::Str(s), _) if s.as_str().chars().count() == 1 => s.clone(),
                (_, Some(i)) => match u32::try_from(i).ok().and_then(char::from_u32) {
                    Some(c) => Text::own(c.to_string()),
                    None => return fault("%c arg not in range(0x110000)"),
                },
                _ => return fault("%c requires int or char"),
            };
            pad_text(&text, &spec)
        }
        'd' | 'i' | 'u' => {
            let Some(x) = value.int().or_else(|| value.float().map(|x| x.trunc() as i128)) else {
                return fault(number("a real number"));
            };
            let least = spec.precision.take().unwrap_or(0).min(MOST_WIDTH);
            let digits = format!("{:0>least$}", x.unsigned_abs().to_string());
            set_number(x < 0, "", &digits, &spec)
        }
        'x' | 'X' | 'o' => {
            let Some(x) = value.int() else { return fault(number("an integer")) };
            spec.kind = Some(kind);
            spec.precision = None;
            format_int(x, &spec)
        }
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
            let Some(x) = value.float() else {
                return fault(format!("must be real number, not {}", value.type_name()));
            };
            spec.kind = Some(kind);
            format_float(x, &spec)
        }
        other => fault(format!("unsupported format character '{other}' (0x{:x})", other as u32)),
    }
}
