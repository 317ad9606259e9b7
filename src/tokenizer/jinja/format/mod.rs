//! `'%s' % value` and `'{}'.format(value)`: here how one number or text is set, in the modules the two languages around it.

use super::{
    Outcome, fault,
    number::{exponent, float, general, grouped},
    text::Text,
    value::Value,
};

mod braces;
mod percent;

pub(super) use {braces::braces, percent::percent};

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

fn read_number(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, to: &mut usize) -> usize {
    let mut n = 0;
    while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
        *to = to.saturating_mul(10).saturating_add(d as usize);
        chars.next();
        n += 1;
    }
    n
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
