//! What a family's own config class says of `config.json`: which keys it has, what an absent one means, and which names mean
//! the same. Keys that a class does not have change nothing, whatever a file says.
//!
//! Sources: the config classes of Hugging Face transformers 5.24 (`configuration_*.py`), where a family is in it.

/// What it means that a key is absent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Absent {
    /// The model cannot be known: an error that names the key.
    Refused,
    /// What the key asks for is not there.
    Nothing,
    /// This count.
    Count(usize),
    /// This number.
    Number(f64),
    /// This flag.
    Flag(bool),
    /// This text.
    Text(&'static str),
}

/// Facts of one family's `config.json`.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The keys of the class that change what is computed, beside those of `COMMON`. Where both have a key, this one counts.
    pub keys: &'static [(&'static str, Absent)],
    /// Further names of keys (`attribute_map`): the other name, and the key that it stands for.
    pub also: &'static [(&'static str, &'static str)],
}

/// No dimension of any model comes near this; sums and products of a few such numbers cannot overflow.
pub(super) const MOST: usize = 1 << 24;

/// Keys that every class has, as all of them treat an absent one.
pub(super) const COMMON: &[(&str, Absent)] = &[
    ("hidden_size", Absent::Refused),
    ("num_hidden_layers", Absent::Refused),
    ("num_attention_heads", Absent::Refused),
    // As many as query heads.
    ("num_key_value_heads", Absent::Nothing),
    ("intermediate_size", Absent::Refused),
    ("max_position_embeddings", Absent::Refused),
    // The embedding table says it.
    ("vocab_size", Absent::Nothing),
    ("hidden_act", Absent::Text("silu")),
    ("rope_theta", Absent::Number(10_000.0)),
    ("rope_parameters", Absent::Nothing),
    ("rope_scaling", Absent::Nothing),
    ("partial_rotary_factor", Absent::Nothing),
    ("original_max_position_embeddings", Absent::Nothing),
    ("tie_word_embeddings", Absent::Flag(false)),
    ("rms_norm_eps", Absent::Number(1e-6)),
];

impl Config {
    /// A family without a `config.json`, or one that is not known yet.
    pub(super) const NONE: Config = Config { keys: &[], also: &[] };

    /// What an absent key means; `None` for a key that the family does not have.
    pub fn absent(&self, key: &str) -> Option<Absent> {
        self.keys.iter().chain(COMMON).find(|(k, _)| *k == key).map(|(_, a)| *a)
    }

    /// Every key that the family has.
    pub fn known(&self) -> impl Iterator<Item = &'static str> {
        let own = self.keys;
        let common = COMMON.iter().filter(move |(k, _)| own.iter().all(|(o, _)| o != k));
        own.iter().chain(common).map(|(k, _)| *k)
    }

    /// The names of a key, its own first.
    pub(super) fn names<'k>(&self, key: &'k str) -> impl Iterator<Item = &'k str> {
        let also = self.also;
        std::iter::once(key).chain(also.iter().filter(move |(_, k)| *k == key).map(|(other, _)| *other))
    }
}
