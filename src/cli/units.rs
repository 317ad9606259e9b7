//! Sizes in a person's words.

/// Bytes for a person: `3.1 MiB`.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut x, mut unit) = (n as f64, 0);
    while x >= 1024.0 && unit + 1 < units.len() {
        x /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{x:.1} {}", units[unit]) }
}

/// Bytes that a person names: `500MB`, `6GB`, `5.5GiB`, or a bare number.
pub fn parsed(text: &str) -> Result<u64, String> {
    let units: [(&str, u64); 9] = [
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("m", 1 << 20),
        ("g", 1 << 30),
        ("b", 1),
    ];
    let lower = text.trim().to_ascii_lowercase();
    let found = units.iter().find_map(|(name, bytes)| Some((lower.strip_suffix(name)?, *bytes)));
    let (number, unit) = found.unwrap_or((&lower, 1));
    let bytes = number.trim().parse::<f64>().ok().map(|n| n * unit as f64).filter(|n| *n >= 1.0 && *n < 1e18);
    bytes.map(|n| n as u64).ok_or_else(|| format!("{text:?} is no size: 500MB, 6GB and 5.5GiB are"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_person() {
        let read = |text: &str| parsed(text).ok();
        assert_eq!((read("6GB"), read("5.5 GiB"), read("1000")), (Some(6_000_000_000), Some(11 << 29), Some(1000)));
        assert_eq!((read("2g"), read("-1GB"), read("x"), read(""), read("0")), (Some(2 << 30), None, None, None, None));
        assert_eq!((bytes(1023), bytes(1536), bytes(6 << 30)), ("1023 B".into(), "1.5 KiB".into(), "6.0 GiB".into()));
    }
}
