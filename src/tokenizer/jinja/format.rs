//! `'%s' % value` and `'{}'.format(value)`.

use super::{
    Outcome, fault,
    number::{exponent, float, general, grouped},
    operator,
    run::{Given, Run},
    text::{Builder, Text},
    value::{SeqKind, Value},
};

/// How a number or text is set: the part of a format behind the colon, or between `%` and its letter.
#[derive(Clone, Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// Widths and precisions beyond this are nobody's wish.
const MOST_WIDTH: usize = 10_000;

/// `template % value`.
pub(super) fn percent(run: &Run, template: &Text, value: &Value) -> Outcome<Text> {
    let source = template.as_str();
    let mut out = Builder::default();
    let mut next = 0;
    let single = [value.clone()];
    let positional: &[Value] = match value {
        Value::Seq(SeqKind::Tuple, items) => items,
        _ => &single,
    };
    let mut by_name = false;
    let mut at = 0;
    while let Some(i) = source[at..].find('%') {
        out.push(&template.slice(at..at + i));
        at += i + 1;
        if source[at..].starts_with('%') {
            out.own("%");
            at += 1;
            continue;
        }
        let mut named = None;
        if let Some(rest) = source[at..].strip_prefix('(') {
            let Some(end) = rest.find(')') else { return fault("incomplete format key") };
            let Value::Dict(d) = value else { return fault("format requires a mapping") };
            let key = &rest[..end];
            let Some(found) = d.get(&Value::own(key)) else { return fault(format!("KeyError: '{key}'")) };
            named = Some(found.clone());
            by_name = true;
            at += end + 2;
        }
        let mut take = || {
            let v = named.take().or_else(|| positional.get(next).cloned());
            next += 1;
            v.map_or_else(|| fault("not enough arguments for format string"), Ok)
        };
        let mut spec = Spec::default();
        let mut chars = source[at..].chars().peekable();
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
        if chars.next_if_eq(&'*').is_some() {
            at += 1;
            let w = take()?.int().unwrap_or(0);
            spec.align = if w < 0 { Some('<') } else { spec.align };
            spec.width = w.unsigned_abs() as usize;
        } else {
            at += read_number(&mut chars, &mut spec.width);
        }
        if chars.next_if_eq(&'.').is_some() {
            at += 1;
            let mut precision = 0;
            if chars.next_if_eq(&'*').is_some() {
                at += 1;
                precision = take()?.int().unwrap_or(0).max(0) as usize;
            } else {
                at += read_number(&mut chars, &mut precision);
            }
            spec.precision = Some(precision);
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {
            at += 1;
        }
        let Some(kind) = chars.next() else { return fault("incomplete format") };
        at += kind.len_utf8();
        let argument = take()?;
        argument.defined()?;
        let set = percent_one(&argument, spec, kind)?;
        run.pay(set.len() / 16)?;
        out.push(&set);
    }
    out.push(&template.slice(at..source.len()));
    let all = by_name || next >= positional.len() || matches!(value, Value::Dict(_)) && next == 0;
    if !all {
        return fault("not all arguments converted during string formatting");
    }
    Ok(out.finish())
}

fn read_number(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, to: &mut usize) -> usize {
    let mut n = 0;
    while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
        *to = to.saturating_mul(10).saturating_add(d as usize);
        chars.next();
        n += 1;
    }
    n
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

fn pad(text: &str, made: impl Fn(String) -> Text, spec: &Spec, default: char) -> Outcome<Text> {
    if spec.width > MOST_WIDTH {
        return fault("a width is too large");
    }
    let missing = spec.width.saturating_sub(text.chars().count());
    let fill = spec.fill.unwrap_or(' ').to_string();
    let (left, right) = match spec.align.unwrap_or(default) {
        '>' | '=' => (missing, 0),
        '^' => (missing / 2, missing - missing / 2),
        _ => (0, missing),
    };
    Ok(made(fill.repeat(left) + text + &fill.repeat(right)))
}

fn pad_text(text: &Text, spec: &Spec) -> Outcome<Text> {
    let cut = match spec.precision {
        Some(p) => match text.as_str().char_indices().nth(p) {
            Some((end, _)) => text.slice(0..end),
            None => text.clone(),
        },
        None => text.clone(),
    };
    if spec.width == 0 {
        return Ok(cut);
    }
    pad(cut.as_str(), |s| cut.made(s), spec, '<')
}

fn set_number(negative: bool, prefix: &str, digits: &str, spec: &Spec) -> Outcome<Text> {
    if spec.width > MOST_WIDTH {
        return fault("a width is too large");
    }
    let sign = if negative { "-".into() } else { spec.sign.filter(|c| *c != '-').map_or(String::new(), String::from) };
    let digits = match spec.grouping {
        Some(mark) => {
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            grouped(&digits[..end], mark) + &digits[end..]
        }
        None => digits.to_owned(),
    };
    let body = sign.len() + prefix.len() + digits.len();
    let by_zeros = spec.zero && spec.align.is_none_or(|a| a == '>' && spec.fill.is_none());
    if by_zeros || spec.align == Some('=') {
        let fill = if by_zeros { '0' } else { spec.fill.unwrap_or(' ') };
        let zeros: String = std::iter::repeat_n(fill, spec.width.saturating_sub(body)).collect();
        return Ok(Text::own(sign + prefix + &zeros + &digits));
    }
    pad(&(sign + prefix + &digits), Text::own, spec, '>')
}

fn format_int(x: i128, spec: &Spec) -> Outcome<Text> {
    let n = x.unsigned_abs();
    let (prefix, digits) = match spec.kind {
        None | Some('d' | 'n') => ("", n.to_string()),
        Some('x') => ("0x", format!("{n:x}")),
        Some('X') => ("0X", format!("{n:X}")),
        Some('o') => ("0o", format!("{n:o}")),
        Some('b') => ("0b", format!("{n:b}")),
        Some('c') => {
            let c = u32::try_from(x).ok().and_then(char::from_u32);
            return match c {
                Some(c) => pad(&c.to_string(), Text::own, spec, '<'),
                None => fault("%c arg not in range(0x110000)"),
            };
        }
        Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => return format_float(x as f64, spec),
        Some(other) => return fault(format!("Unknown format code '{other}' for object of type 'int'")),
    };
    if spec.precision.is_some() {
        return fault("Precision not allowed in integer format specifier");
    }
    set_number(x < 0, if spec.alternate { prefix } else { "" }, &digits, spec)
}

fn format_float(x: f64, spec: &Spec) -> Outcome<Text> {
    let precision = spec.precision.unwrap_or(6).min(MOST_WIDTH);
    let n = x.abs();
    let digits = match spec.kind {
        _ if !n.is_finite() => float(n),
        None => match spec.precision {
            None => float(n),
            Some(p) => {
                let g = general(n, p, spec.alternate);
                if g.contains(['.', 'e']) { g } else { g + ".0" }
            }
        },
        Some('f' | 'F') => format!("{n:.precision$}"),
        Some('e') => exponent(n, precision),
        Some('E') => exponent(n, precision).to_uppercase(),
        Some('g' | 'n') => general(n, precision, spec.alternate),
        Some('G') => general(n, precision, spec.alternate).to_uppercase(),
        Some('%') => format!("{:.precision$}%", n * 100.0),
        Some(other) => return fault(format!("Unknown format code '{other}' for object of type 'float'")),
    };
    set_number(x.is_sign_negative() && !x.is_nan(), "", &digits, spec)
}

/// `format(value, spec)`.
fn format_value(value: &Value, spec: &str) -> Outcome<Text> {
    if spec.is_empty() {
        return Ok(value.to_text());
    }
    let spec = parse_spec(spec)?;
    match value {
        Value::Int(i) => format_int(*i, &spec),
        Value::Bool(b) if spec.kind.is_some() => format_int(i128::from(*b), &spec),
        Value::Float(x) => format_float(*x, &spec),
        Value::Str(s) => match spec.kind {
            None | Some('s') => pad_text(s, &spec),
            Some(k) => fault(format!("Unknown format code '{k}' for object of type 'str'")),
        },
        Value::Bool(b) => format_int(i128::from(*b), &spec),
        other => fault(format!("unsupported format string passed to {}.__format__", other.type_name())),
    }
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
fn parse_spec(text: &str) -> Outcome<Spec> {
    let mut spec = Spec::default();
    let mut chars: Vec<char> = text.chars().collect();
    let is_align = |c: Option<&char>| c.is_some_and(|c| "<>^=".contains(*c));
    if is_align(chars.get(1)) {
        (spec.fill, spec.align) = (Some(chars[0]), Some(chars[1]));
        chars.drain(..2);
    } else if is_align(chars.first()) {
        spec.align = Some(chars.remove(0));
    }
    let rest: String = chars.into_iter().collect();
    let mut it = rest.chars().peekable();
    spec.sign = it.next_if(|c| "+- ".contains(*c));
    spec.alternate = it.next_if_eq(&'#').is_some();
    spec.zero = it.next_if_eq(&'0').is_some();
    read_number(&mut it, &mut spec.width);
    spec.grouping = it.next_if(|c| *c == ',' || *c == '_');
    if it.next_if_eq(&'.').is_some() {
        let mut precision = 0;
        if read_number(&mut it, &mut precision) == 0 {
            return fault("Format specifier missing precision");
        }
        spec.precision = Some(precision);
    }
    spec.kind = it.next();
    if it.next().is_some() { fault("Invalid format specifier") } else { Ok(spec) }
}

/// `template.format(...)`.
pub(super) fn braces(run: &Run, template: &Text, given: &Given) -> Outcome<Text> {
    let mut out = Builder::default();
    fields(run, template, given, &mut 0, &mut out, 0)?;
    Ok(out.finish())
}

fn fields(run: &Run, template: &Text, given: &Given, next: &mut usize, out: &mut Builder, depth: usize) -> Outcome<()> {
    if depth > 1 {
        return fault("Max string recursion exceeded");
    }
    let source = template.as_str();
    let mut at = 0;
    while let Some(i) = source[at..].find(['{', '}']) {
        let start = at + i;
        out.push(&template.slice(at..start));
        let doubled = source[start..].starts_with("{{") || source[start..].starts_with("}}");
        if doubled {
            out.push(&template.slice(start..start + 1));
            at = start + 2;
            continue;
        }
        if source[start..].starts_with('}') {
            return fault("Single '}' encountered in format string");
        }
        let mut open = 0usize;
        let end = source[start..].char_indices().find(|(_, c)| {
            open = match c {
                '{' => open + 1,
                '}' => open - 1,
                _ => open,
            };
            open == 0
        });
        let Some((length, _)) = end else { return fault("Single '{' encountered in format string") };
        let set = field(run, template, start + 1..start + length, given, next, depth)?;
        run.pay(set.len() / 16)?;
        out.push(&set);
        at = start + length + 1;
    }
    out.push(&template.slice(at..source.len()));
    Ok(())
}

/// `name.attribute[index]!conversion:spec`.
fn field(
    run: &Run,
    template: &Text,
    range: std::ops::Range<usize>,
    given: &Given,
    next: &mut usize,
    depth: usize,
) -> Outcome<Text> {
    let inner = &template.as_str()[range.clone()];
    let head_end = inner.find(['!', ':']).unwrap_or(inner.len());
    let (head, tail) = inner.split_at(head_end);
    let (conversion, spec_at) = match tail.strip_prefix('!') {
        Some(rest) => {
            let c = rest.chars().next();
            let behind = head_end + 1 + c.map_or(0, char::len_utf8);
            (c, inner[behind..].starts_with(':').then_some(behind + 1))
        }
        None => (None, tail.starts_with(':').then_some(head_end + 1)),
    };
    let value = lookup(run, head, given, next)?;
    value.defined()?;
    let spec = match spec_at {
        None => String::new(),
        Some(from) => {
            let mut b = Builder::default();
            fields(run, &template.slice(range.start + from..range.end), given, next, &mut b, depth + 1)?;
            b.finish().as_str().to_owned()
        }
    };
    match conversion {
        None => format_value(&value, &spec),
        Some('s') => format_value(&Value::Str(value.to_text()), &spec),
        Some('r' | 'a') => format_value(&Value::Str(value.repr()), &spec),
        Some(c) => fault(format!("Unknown conversion specifier {c:?}")),
    }
}

fn lookup(run: &Run, head: &str, given: &Given, next: &mut usize) -> Outcome<Value> {
    let end = head.find(['.', '[']).unwrap_or(head.len());
    let (name, mut path) = head.split_at(end);
    let mut value = if name.is_empty() || name.bytes().all(|b| b.is_ascii_digit()) {
        let i = name.parse().unwrap_or_else(|_| {
            *next += 1;
            *next - 1
        });
        match given.positional.get(i) {
            Some(v) => v.clone(),
            None => return fault(format!("Replacement index {i} out of range for positional args tuple")),
        }
    } else {
        match given.named.iter().find(|n| n.0 == name) {
            Some(n) => n.1.clone(),
            None => return fault(format!("KeyError: '{name}'")),
        }
    };
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix('.') {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            value = operator::attribute(&value, &rest[..end])?;
            path = &rest[end..];
        } else if let Some(rest) = path.strip_prefix('[') {
            let Some(end) = rest.find(']') else { return fault("Missing ']' in format string") };
            let key = &rest[..end];
            let index = key.parse().map_or_else(|_| Value::own(key), Value::Int);
            value = operator::item(run, &value, &index)?;
            path = &rest[end + 1..];
        } else {
            return fault("Only '.' or '[' may follow ']' in format field specifier");
        }
    }
    Ok(value)
}
