//! Fields of JSON bodies: every one is looked at by name, kind and range, and nothing is changed in silence. `null` stands for
//! a field that is not there, as in both APIs.

use super::error::{ApiError, ApiResult};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// An object, and where it stands in the body.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

/// The kind of a value, for messages.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a number with a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl<'a> Fields<'a> {
    /// The fields of a body.
    ///
    /// # Errors
    /// Where it is no object.
    pub fn of(body: &'a Value) -> ApiResult<Self> {
        Fields::at(body, "")
    }

    /// The fields of an object at a path.
    ///
    /// # Errors
    /// Where it is no object.
    pub fn at(value: &'a Value, path: impl Into<String>) -> ApiResult<Self> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Fields { map, path }),
            other if path.is_empty() => {
                Err(ApiError::new(400, format!("the body must be a JSON object, not {}", kind(other))))
            }
            other => Err(ApiError::field(path, format!("must be an object, not {}", kind(other)))),
        }
    }

    /// The path of a field.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// The same, required.
    ///
    /// # Errors
    /// Where it is missing.
    pub fn require(&self, name: &str) -> ApiResult<&'a Value> {
        self.get(name).ok_or_else(|| ApiError::missing(&self.path(name)))
    }

    fn wrong<T>(&self, name: &str, wanted: &str, value: &Value) -> ApiResult<T> {
        let error = ApiError::field(self.path(name), format!("must be {wanted}, not {}", kind(value)));
        Err(ApiError { code: Some("invalid_type"), ..error })
    }

    /// A string.
    ///
    /// # Errors
    /// For another kind.
    pub fn string(&self, name: &str) -> ApiResult<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => self.wrong(name, "a string", other),
        }
    }

    /// A string that must be there.
    ///
    /// # Errors
    /// Where it is missing, or of another kind.
    pub fn require_string(&self, name: &str) -> ApiResult<&'a str> {
        self.require(name)?;
        self.string(name)?.ok_or_else(|| ApiError::missing(&self.path(name)))
    }

    /// One of some words.
    ///
    /// # Errors
    /// For another word or kind.
    pub fn word(&self, name: &str, words: &[&'static str]) -> ApiResult<Option<&'static str>> {
        let Some(s) = self.string(name)? else { return Ok(None) };
        match words.iter().find(|w| **w == s) {
            Some(word) => Ok(Some(*word)),
            None => Err(ApiError::field(self.path(name), format!("must be one of {}, not {s:?}", words.join(", ")))),
        }
    }

    /// A boolean.
    ///
    /// # Errors
    /// For another kind.
    pub fn boolean(&self, name: &str) -> ApiResult<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => self.wrong(name, "a boolean", other),
        }
    }

    /// An integer of a range.
    ///
    /// # Errors
    /// For another kind, a fraction, or a number out of range.
    pub fn integer(&self, name: &str, range: RangeInclusive<i64>) -> ApiResult<Option<i64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let Value::Number(n) = value else { return self.wrong(name, "an integer", value) };
        let whole = n.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 9e15).map(|x| x as i64);
        let Some(n) = n.as_i64().or(whole) else {
            if n.is_u64() {
                return Err(ApiError::field(self.path(name), format!("{n} is too large")));
            }
            return self.wrong(name, "an integer", value);
        };
        match range.contains(&n) {
            true => Ok(Some(n)),
            false => Err(out_of_range(self.path(name), n, range.start(), range.end(), *range.end() == i64::MAX)),
        }
    }

    /// The same as a number of things.
    ///
    /// # Errors
    /// As [`Fields::integer`].
    pub fn count(&self, name: &str, range: RangeInclusive<i64>) -> ApiResult<Option<usize>> {
        Ok(self.integer(name, range)?.map(|n| usize::try_from(n).unwrap_or(0)))
    }

    /// A number of a range.
    ///
    /// # Errors
    /// For another kind, or a number out of range.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> ApiResult<Option<f32>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(n)) => {
                let n = n.as_f64().unwrap_or(f64::NAN);
                match range.contains(&n) {
                    true => Ok(Some(n as f32)),
                    false => Err(out_of_range(self.path(name), n, range.start(), range.end(), *range.end() >= 1e30)),
                }
            }
            Some(other) => self.wrong(name, "a number", other),
        }
    }

    /// An array.
    ///
    /// # Errors
    /// For another kind.
    pub fn array(&self, name: &str) -> ApiResult<Option<&'a [Value]>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(a)) => Ok(Some(a)),
            Some(other) => self.wrong(name, "an array", other),
        }
    }

    /// An object.
    ///
    /// # Errors
    /// For another kind.
    pub fn object(&self, name: &str) -> ApiResult<Option<Fields<'a>>> {
        self.get(name).map(|v| Fields::at(v, self.path(name))).transpose()
    }

    /// The names and values.
    pub fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter()
    }

    /// A string or some strings, none of them empty, at most `most`.
    ///
    /// # Errors
    /// For other kinds, empty strings, or too many.
    pub fn strings(&self, name: &str, most: usize) -> ApiResult<Vec<String>> {
        let all = match self.get(name) {
            None => return Ok(vec![]),
            Some(Value::String(s)) => vec![s.clone()],
            Some(Value::Array(a)) => {
                let mut all = vec![];
                for (i, v) in a.iter().enumerate() {
                    match v {
                        Value::String(s) => all.push(s.clone()),
                        other => return self.wrong(&format!("{name}[{i}]"), "a string", other),
                    }
                }
                all
            }
            Some(other) => return self.wrong(name, "a string or an array of strings", other),
        };
        if all.len() > most {
            return Err(ApiError::field(self.path(name), format!("at most {most} strings, not {}", all.len())));
        }
        match all.iter().any(String::is_empty) {
            true => Err(ApiError::field(self.path(name), "a string is empty")),
            false => Ok(all),
        }
    }

    /// Refuses fields that are asked for and not done here.
    ///
    /// # Errors
    /// Where one of them is there.
    pub fn refuse(&self, names: &[(&str, &str)]) -> ApiResult<()> {
        match names.iter().find(|(name, _)| self.get(name).is_some()) {
            Some((name, why)) => Err(ApiError::unsupported(&self.path(name), *why)),
            None => Ok(()),
        }
    }
}

fn out_of_range<T: std::fmt::Display>(path: String, n: T, from: &T, to: &T, open: bool) -> ApiError {
    let range = if open { format!("{from} or more") } else { format!("from {from} to {to}") };
    ApiError::field(path, format!("must be {range}, not {n}"))
}
