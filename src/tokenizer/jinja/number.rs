//! Numbers as Python writes and reads them.

/// `repr(float)`: the shortest text that reads back as the same number.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        return format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// `%e` and its kin: C's form of an exponent.
pub(super) fn exponent(x: f64, precision: usize) -> String {
    let s = format!("{x:.precision$e}");
    match s.split_once('e') {
        None => s,
        Some((digits, e)) => {
            let e: i32 = e.parse().unwrap_or(0);
            format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
        }
    }
}

/// `%g`: fixed or with an exponent, without zeros at the end unless `alternate`.
pub(super) fn general(x: f64, precision: usize, alternate: bool) -> String {
    let precision = precision.max(1);
    if x == 0.0 || !x.is_finite() {
        return if x == 0.0 { if x.is_sign_negative() { "-0" } else { "0" }.into() } else { float(x) };
    }
    let scientific = exponent(x, precision - 1);
    let e: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let strip = |s: &str| {
        if alternate || !s.contains('.') { s.to_owned() } else { s.trim_end_matches('0').trim_end_matches('.').into() }
    };
    if e < -4 || e >= precision as i32 {
        let (digits, e) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
        return format!("{}e{e}", strip(digits));
    }
    strip(&format!("{x:.*}", (precision as i32 - 1 - e).max(0) as usize))
}

/// `int(text, base)`.
pub(super) fn parse_int(text: &str, base: u32) -> Option<i128> {
    let t = text.trim();
    let (negative, t) = match t.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, t.strip_prefix('+').unwrap_or(t)),
    };
    let lower = t.to_ascii_lowercase();
    let prefix = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(p, _)| lower.starts_with(p));
    let (digits, base) = match prefix {
        Some((p, b)) if base == b || base == 0 => (&lower[p.len()..], b),
        _ if base == 0 => (&lower[..], 10),
        _ => (&lower[..], base),
    };
    let tidy = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    if digits.is_empty() || !tidy || digits.starts_with(['+', '-']) {
        return None;
    }
    let n = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(if negative { -n } else { n })
}

/// `float(text)`.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let t = text.trim();
    let tidy = !t.starts_with('_') && !t.ends_with('_') && !t.contains("__");
    if !tidy {
        return None;
    }
    let lower = t.to_ascii_lowercase();
    match lower.trim_start_matches(['+', '-']) {
        "inf" | "infinity" | "nan" => {}
        s if s.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {}
        _ => return None,
    }
    lower.replace('_', "").parse().ok()
}

/// Thousands marked by `mark`.
pub(super) fn grouped(digits: &str, mark: char) -> String {
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(mark);
        }
        out.push(c);
    }
    out
}

/// `round(x, places)`: to the nearest, halves as the decimal text of the number says.
pub(super) fn round(x: f64, places: i64) -> f64 {
    if !x.is_finite() || places > 300 {
        return x;
    }
    if places >= 0 {
        // The formatter rounds the exact value, ties to even, as Python does.
        return format!("{x:.*}", places as usize).parse().unwrap_or(x);
    }
    let scale = 10f64.powi((-places).min(308) as i32);
    (x / scale).round_ties_even() * scale
}
