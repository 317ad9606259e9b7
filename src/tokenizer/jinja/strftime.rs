//! `strftime`: dates and times by C's conversions, in English as in the C locale.

/// A local time. The library reads no clock: the caller says what time it is.
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
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Days before a month of a year that is no leap year.
const BEFORE: [u32; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

impl DateTime {
    fn is_leap(year: i64) -> bool {
        year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
    }

    /// Days of the year before this one, 0 on the first of January.
    fn day_of_year(&self) -> u32 {
        let leap = self.month > 2 && Self::is_leap(self.year.into());
        BEFORE[self.month.clamp(1, 12) as usize - 1] + self.day.saturating_sub(1) + u32::from(leap)
    }

    /// 0 is Sunday.
    fn weekday(&self) -> u32 {
        let y = i64::from(self.year) - 1;
        let days = y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400);
        (days + i64::from(self.day_of_year()) + 1).rem_euclid(7) as u32
    }

    /// Year and week of ISO 8601.
    fn iso_week(&self) -> (i64, u32) {
        let weekday = i64::from((self.weekday() + 6) % 7);
        let week = (i64::from(self.day_of_year()) - weekday + 10).div_euclid(7);
        let year = i64::from(self.year);
        let weeks = |y: i64| {
            let p = |y: i64| (y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400)).rem_euclid(7);
            52 + u32::from(p(y) == 4 || p(y - 1) == 3)
        };
        match week {
            w if w < 1 => (year - 1, weeks(year - 1)),
            w if w as u32 > weeks(year) => (year + 1, 1),
            w => (year, w as u32),
        }
    }
}

/// The time by a format. Unknown conversions stay as they are.
pub(super) fn strftime(t: DateTime, format: &str) -> String {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut conversion = chars.next();
        let flag = conversion.filter(|c| "-_0^#".contains(*c));
        if flag.is_some() {
            conversion = chars.next();
        }
        match conversion {
            Some(c) => one(t, c, flag, &mut out),
            None => out.push('%'),
        }
    }
    out
}

fn one(t: DateTime, conversion: char, flag: Option<char>, out: &mut String) {
    let month = MONTHS[(t.month.clamp(1, 12) - 1) as usize];
    let day = DAYS[t.weekday() as usize];
    let twelve = (t.hour + 11) % 12 + 1;
    let mut padded = |n: i64, width: usize, fill: char| {
        out.push_str(&match (flag, fill) {
            (Some('-'), _) => n.to_string(),
            (Some('_'), _) | (None, ' ') => format!("{n:>width$}"),
            _ => format!("{n:0>width$}"),
        });
    };
    match conversion {
        'd' => padded(t.day.into(), 2, '0'),
        'e' => padded(t.day.into(), 2, ' '),
        'm' => padded(t.month.into(), 2, '0'),
        'H' => padded(t.hour.into(), 2, '0'),
        'k' => padded(t.hour.into(), 2, ' '),
        'I' => padded(twelve.into(), 2, '0'),
        'l' => padded(twelve.into(), 2, ' '),
        'M' => padded(t.minute.into(), 2, '0'),
        'S' => padded(t.second.into(), 2, '0'),
        'y' => padded(i64::from(t.year).rem_euclid(100), 2, '0'),
        'C' => padded(i64::from(t.year).div_euclid(100), 2, '0'),
        'Y' => padded(t.year.into(), 1, '0'),
        'j' => padded(i64::from(t.day_of_year()) + 1, 3, '0'),
        'w' => padded(t.weekday().into(), 1, '0'),
        'u' => padded(i64::from((t.weekday() + 6) % 7) + 1, 1, '0'),
        'U' => padded(i64::from((t.day_of_year() + 7 - t.weekday()) / 7), 2, '0'),
        'W' => padded(i64::from((t.day_of_year() + 7 - (t.weekday() + 6) % 7) / 7), 2, '0'),
        'V' => padded(t.iso_week().1.into(), 2, '0'),
        'G' => padded(t.iso_week().0, 1, '0'),
        'g' => padded(t.iso_week().0.rem_euclid(100), 2, '0'),
        'f' => padded(0, 6, '0'),
        'B' | 'b' | 'h' | 'A' | 'a' => {
            let word = if matches!(conversion, 'A' | 'a') { day } else { month };
            let word = if matches!(conversion, 'B' | 'A') { word } else { &word[..3] };
            out.push_str(&if flag == Some('^') { word.to_uppercase() } else { word.to_owned() });
        }
        'p' => out.push_str(match (t.hour < 12, flag) {
            (true, Some('#')) => "am",
            (false, Some('#')) => "pm",
            (true, _) => "AM",
            (false, _) => "PM",
        }),
        'P' => out.push_str(if t.hour < 12 { "am" } else { "pm" }),
        'F' => out.push_str(&strftime(t, "%Y-%m-%d")),
        'D' | 'x' => out.push_str(&strftime(t, "%m/%d/%y")),
        'T' | 'X' => out.push_str(&strftime(t, "%H:%M:%S")),
        'R' => out.push_str(&strftime(t, "%H:%M")),
        'r' => out.push_str(&strftime(t, "%I:%M:%S %p")),
        'c' => out.push_str(&strftime(t, "%a %b %e %H:%M:%S %Y")),
        'n' => out.push('\n'),
        't' => out.push('\t'),
        // A local time without a zone, as Python's `datetime.now()` gives it.
        'z' | 'Z' => {}
        '%' => out.push('%'),
        other => out.extend(['%', other]),
    }
}
