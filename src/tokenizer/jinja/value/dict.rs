//! Python's dict.

use super::{Extent, SeqKind, Value};
use crate::tokenizer::jinja::{Outcome, fault};
use std::collections::HashMap;

/// Keys and values in order of insertion. Dicts of conversations are small; larger ones are found by hash.
#[derive(Clone, Debug, Default)]
pub(in crate::tokenizer) struct Dict {
    pub entries: Vec<(Value, Value)>,
    index: HashMap<String, usize>,
    pub(super) extent: Extent,
}

impl Dict {
    /// Sets a key.
    ///
    /// # Errors
    /// For keys that Python cannot hash.
    pub fn set(&mut self, key: Value, value: Value) -> Outcome<()> {
        let hashed = hash(&key)?;
        match self.index.get(&hashed) {
            Some(i) => self.entries[*i].1 = value,
            None => {
                self.index.insert(hashed, self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    /// The value of a key; `None` also for what cannot be one.
    pub fn get(&self, key: &Value) -> Option<&Value> {
        self.index.get(&hash(key).ok()?).map(|i| &self.entries[*i].1)
    }

    pub fn of(entries: impl IntoIterator<Item = (Value, Value)>) -> Outcome<Dict> {
        let mut dict = Dict::default();
        entries.into_iter().try_for_each(|(k, v)| dict.set(k, v))?;
        dict.extent = Extent::of(dict.entries.iter().flat_map(|(k, v)| [k, v]));
        Ok(dict)
    }
}

/// Equal for keys that Python takes for the same.
fn hash(key: &Value) -> Outcome<String> {
    Ok(match key {
        Value::Str(s) => format!("s{}", s.as_str()),
        Value::Bool(b) => format!("n{}", i128::from(*b)),
        Value::Int(i) => format!("n{i}"),
        Value::Float(x) if x.fract() == 0.0 && x.abs() < 1e30 => format!("n{}", *x as i128),
        Value::Float(x) => format!("f{}", x.to_bits()),
        Value::None => "none".into(),
        Value::Seq(SeqKind::Tuple, items) => {
            let parts = items.iter().map(hash).collect::<Outcome<Vec<_>>>()?;
            parts.iter().fold("t".into(), |t: String, p| format!("{t}{}:{p}", p.len()))
        }
        other => return fault(format!("unhashable type: '{}'", other.type_name())),
    })
}
