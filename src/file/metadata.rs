//! Metadata of a GGUF file: an ordered list of typed values by key.

use super::value::{Array, Strings, Value};

/// Ordered metadata with lookup by key. Keys are GGUF's (`general.architecture`, `llama.block_count`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    /// Indices of `entries`, sorted by key.
    by_key: Vec<u32>,
}

impl Metadata {
    /// No values.
    pub fn new() -> Self {
        Self::default()
    }

    /// Values in this order.
    ///
    /// # Errors
    /// The key that comes twice.
    pub fn from_entries(entries: Vec<(String, Value)>) -> std::result::Result<Self, String> {
        match sorted_index(entries.len(), |i| entries[i].0.as_str()) {
            Ok(by_key) => Ok(Metadata { entries, by_key }),
            Err(twice) => Err(entries[twice].0.clone()),
        }
    }

    fn find(&self, key: &str) -> std::result::Result<usize, usize> {
        self.by_key.binary_search_by(|i| self.entries[*i as usize].0.as_str().cmp(key))
    }

    /// Sets a value: in its old place where the key exists, at the end otherwise.
    pub fn set(&mut self, key: impl Into<String>, value: Value) {
        let key = key.into();
        match self.find(&key) {
            Ok(at) => self.entries[self.by_key[at] as usize].1 = value,
            Err(at) => {
                self.by_key.insert(at, self.entries.len() as u32);
                self.entries.push((key, value));
            }
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.find(key).ok().map(|at| &self.entries[self.by_key[at] as usize].1)
    }

    /// An integer of any width that is not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        self.get(key)?.as_u64()
    }

    /// An integer of any width that fits i64.
    pub fn i64(&self, key: &str) -> Option<i64> {
        self.get(key)?.as_i64()
    }

    /// A number, rounded to f32.
    pub fn f32(&self, key: &str) -> Option<f32> {
        self.get(key)?.as_f64().map(|v| v as f32)
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Option<bool> {
        self.get(key)?.as_bool()
    }

    /// A string.
    pub fn str(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_str()
    }

    /// An array.
    pub fn array(&self, key: &str) -> Option<&Array> {
        self.get(key)?.as_array()
    }

    /// The strings of an array of strings, in order.
    pub fn strings(&self, key: &str) -> Option<Strings<'_>> {
        self.array(key)?.strings()
    }

    /// An array of integers, none negative; `None` where one of them is not.
    pub fn u64s(&self, key: &str) -> Option<Vec<u64>> {
        self.array(key)?.iter().map(|v| v.as_u64()).collect()
    }

    /// An array of integers.
    pub fn i64s(&self, key: &str) -> Option<Vec<i64>> {
        self.array(key)?.iter().map(|v| v.as_i64()).collect()
    }

    /// An array of numbers, rounded to f32.
    pub fn f32s(&self, key: &str) -> Option<Vec<f32>> {
        self.array(key)?.iter().map(|v| v.as_f64().map(|x| x as f32)).collect()
    }

    /// An array of truth values.
    pub fn bools(&self, key: &str) -> Option<Vec<bool>> {
        self.array(key)?.iter().map(|v| v.as_bool()).collect()
    }

    /// Keys and values in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Indices `0..n` sorted by name; the index of a name that comes twice as the error.
pub(super) fn sorted_index<'a>(n: usize, name: impl Fn(usize) -> &'a str) -> std::result::Result<Vec<u32>, usize> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_unstable_by(|a, b| name(*a as usize).cmp(name(*b as usize)));
    match order.windows(2).find(|w| name(w[0] as usize) == name(w[1] as usize)) {
        Some(w) => Err(w[0].max(w[1]) as usize),
        None => Ok(order),
    }
}
