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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_person() {
        assert_eq!((bytes(1023), bytes(1536), bytes(6 << 30)), ("1023 B".into(), "1.5 KiB".into(), "6.0 GiB".into()));
    }
}
