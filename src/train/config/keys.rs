//! TOML into the struct: overrides, and unknown keys with the known ones that are nearest.

use super::TrainConfig;
use crate::error::{Error, Result};
use serde::Deserialize;
use toml::{Table, Value};

/// Reads the text with the overrides over it.
pub(super) fn read(name: &str, text: &str, overrides: &[String]) -> Result<TrainConfig> {
    let parsed = text.parse::<Table>();
    let mut table =
        parsed.map_err(|e| Error::format(name, format!("is no valid TOML: {}", e.to_string().trim_end())))?;
    for word in overrides {
        apply(&mut table, word)?;
    }
    // The text itself knows its lines; a table that was changed does not.
    let read = match overrides.is_empty() {
        true => toml::from_str::<TrainConfig>(text),
        false => TrainConfig::deserialize(table),
    };
    read.map_err(|e| match blamed(text, overrides) {
        Some((word, e)) => Error::Invalid(format!("{word}: {}", explained(e.trim_end()))),
        None => Error::format(name, explained(e.to_string().trim_end())),
    })
}

/// The first of the overrides that makes a configuration no configuration, with what is said then; `None` where the text is none
/// without them.
fn blamed<'w>(text: &str, overrides: &'w [String]) -> Option<(&'w str, String)> {
    let mut table = text.parse::<Table>().ok()?;
    TrainConfig::deserialize(table.clone()).ok()?;
    overrides.iter().find_map(|word| {
        apply(&mut table, word).ok()?;
        let error = TrainConfig::deserialize(table.clone()).err()?;
        Some((word.as_str(), error.to_string()))
    })
}

/// Tables within tables that a key reaches into at most: configurations have two.
const DEEPEST: usize = 8;

/// Sets `a.b=value`, which is TOML, or a text where it is none.
fn apply(table: &mut Table, word: &str) -> Result<()> {
    let shown: String = word.chars().take(80).collect();
    let Some((key, value)) = word.split_once('=') else {
        return Err(Error::Invalid(format!("{shown:?} is no key=value")));
    };
    // One value: a text with a line break in it could be several keys.
    let one = |t: Table| if t.len() == 1 { t.into_iter().next().map(|(_, v)| v) } else { None };
    let parsed = format!("v = {value}").parse::<Table>().ok().and_then(one);
    let value = parsed.unwrap_or_else(|| Value::String(value.into()));
    let mut path = key.trim().split('.').take(DEEPEST + 1).collect::<Vec<_>>();
    if path.len() > DEEPEST || path.iter().any(|part| part.trim().is_empty()) {
        return Err(Error::Invalid(format!(
            "{shown:?} has no key before the =, as learning_rate or datasets.0.path are"
        )));
    }
    let last = path.pop().unwrap_or_default();
    let wrong = |part: &str| Error::Invalid(format!("{key}: there is nothing in {part} that could be set"));
    // A list is reached by number; where nothing is, a table comes to be.
    let mut at: Option<&mut Value> = None;
    for part in path {
        let next = match at {
            None => Some(table.entry(part).or_insert_with(|| Value::Table(Table::new()))),
            Some(Value::Table(t)) => Some(t.entry(part).or_insert_with(|| Value::Table(Table::new()))),
            Some(Value::Array(a)) => part.parse::<usize>().ok().and_then(|i| a.get_mut(i)),
            Some(_) => None,
        };
        at = Some(next.ok_or_else(|| wrong(part))?);
    }
    match at {
        None => drop(table.insert(last.into(), value)),
        Some(Value::Table(t)) => drop(t.insert(last.into(), value)),
        Some(Value::Array(a)) => {
            let slot = last.parse::<usize>().ok().and_then(|i| a.get_mut(i));
            *slot.ok_or_else(|| wrong(last))? = value;
        }
        Some(_) => return Err(wrong(last)),
    }
    Ok(())
}

/// The error of the reader; of an unknown key, with the known key that is nearest in the place of all of them.
fn explained(text: &str) -> String {
    const UNKNOWN: &str = "unknown field `";
    let found = text.find(UNKNOWN).and_then(|at| {
        let rest = &text[at + UNKNOWN.len()..];
        let (key, list) = rest.split_once('`')?;
        let known: Vec<&str> = list.split('`').skip(1).step_by(2).collect();
        Some((&text[..at], key, known))
    });
    let Some((before, key, known)) = found else { return text.to_owned() };
    let nearest = known.iter().map(|k| (distance(key, k), *k)).min();
    let hint = match nearest {
        Some((d, k)) if d <= 2.max(key.len() / 3) => format!("; `{k}` is one"),
        _ => format!("; known are {}", known.join(", ")),
    };
    format!("{before}`{key}` is no key of a training run{hint}")
}

/// Letters to insert, remove or replace to make `b` of `a` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
