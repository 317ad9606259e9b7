//! Values that no file should have, and changes of bytes and of texts.

use crate::support::rng::Rng;
use moeray::file::{Array, Value};
use serde_json::{Map, Value as Json, json};

/// Numbers at the edges of types and of what models have.
pub fn number(rng: &mut Rng) -> i64 {
    const EDGES: [i64; 22] = [
        0,
        1,
        2,
        3,
        7,
        31,
        33,
        255,
        256,
        4096,
        4097,
        65_536,
        1 << 20,
        1 << 24,
        (1 << 24) + 1,
        i32::MAX as i64,
        u32::MAX as i64,
        1 << 40,
        1 << 53,
        i64::MAX,
        i64::MIN,
        -1,
    ];
    match rng.below(4) {
        0 => rng.below(40) as i64,
        1 => rng.next_u64() as i64,
        _ => EDGES[rng.below(EDGES.len())],
    }
}

/// Numbers with a point.
pub fn float(rng: &mut Rng) -> f64 {
    const EDGES: [f64; 14] =
        [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-6, 1e6, 1e30, 1e38, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    if rng.below(3) == 0 { f64::from(rng.normal()) } else { EDGES[rng.below(EDGES.len())] }
}

/// Words that some key or other knows, and others.
fn word(rng: &mut Rng) -> &'static str {
    const WORDS: [&str; 16] = [
        "",
        "yarn",
        "linear",
        "longrope",
        "llama3",
        "dynamic",
        "silu",
        "gelu",
        "sigmoid",
        "full_attention",
        "sliding_attention",
        "gpt2",
        "llama",
        "mixtral",
        "\u{0}\u{0}",
        "\u{1F98E}",
    ];
    WORDS[rng.below(WORDS.len())]
}

/// A value of GGUF's metadata.
pub fn value(rng: &mut Rng) -> Value {
    let n = number(rng);
    match rng.below(12) {
        0 => Value::U8(n as u8),
        1 => Value::I8(n as i8),
        2 => Value::U16(n as u16),
        3 | 4 => Value::U32(n as u32),
        5 => Value::I32(n as i32),
        6 => Value::F32(float(rng) as f32),
        7 => Value::Bool(n % 2 == 0),
        8 => Value::string(word(rng)),
        9 => Value::U64(n as u64),
        10 => Value::F64(float(rng)),
        _ => array(rng),
    }
}

fn array(rng: &mut Rng) -> Value {
    let n = [0, 1, 2, 3, 5, 400][rng.below(6)];
    let same = number(rng);
    let count = |rng: &mut Rng| if rng.below(2) == 0 { same } else { number(rng) };
    Value::Array(match rng.below(4) {
        0 => Array::from_u32(&(0..n).map(|_| count(rng) as u32).collect::<Vec<_>>()),
        1 => Array::from_i32(&(0..n).map(|_| count(rng) as i32).collect::<Vec<_>>()),
        2 => Array::from_f32(&(0..n).map(|_| float(rng) as f32).collect::<Vec<_>>()),
        _ => Array::from_strings((0..n).map(|_| word(rng))),
    })
}

/// A value of JSON.
pub fn json(rng: &mut Rng) -> Json {
    match rng.below(12) {
        0 => Json::Null,
        1 => Json::Bool(rng.below(2) == 0),
        2 => json!(word(rng)),
        3 => json!((0..rng.below(4)).map(|_| number(rng)).collect::<Vec<_>>()),
        4 => json!((0..rng.below(4)).map(|_| word(rng)).collect::<Vec<_>>()),
        5 => json!({word(rng): number(rng)}),
        6 => json!(float(rng)),
        7 => json!(number(rng) as u64),
        8 => json!(number(rng).to_string()),
        _ => json!(number(rng)),
    }
}

/// Changes a value somewhere in a text of JSON: puts in another, takes a key away, doubles an entry, moves one elsewhere.
pub fn change(rng: &mut Rng, at: &mut Json) {
    match at {
        Json::Object(map) if !map.is_empty() && rng.below(12) > 0 => {
            let key = map.keys().nth(rng.below(map.len())).unwrap().clone();
            match rng.below(10) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert(word(rng).into(), json(rng))),
                2 => {
                    let other = map.keys().nth(rng.below(map.len())).unwrap().clone();
                    let value = map[&key].clone();
                    map.insert(other, value);
                }
                _ => change(rng, &mut map[&key]),
            }
        }
        Json::Array(list) if !list.is_empty() && rng.below(6) > 0 => {
            let i = rng.below(list.len());
            match rng.below(6) {
                0 => drop(list.remove(i)),
                1 => list.push(list[i].clone()),
                _ => change(rng, &mut list[i]),
            }
        }
        Json::String(text) if rng.below(3) == 0 => *text = spliced(rng, text),
        other => *other = json(rng),
    }
}

/// An object with other values under a few of its keys.
pub fn changed(rng: &mut Rng, object: &Map<String, Json>) -> Json {
    let mut whole = Json::Object(object.clone());
    (0..1 + rng.below(3)).for_each(|_| change(rng, &mut whole));
    whole
}

/// A text with a piece of it elsewhere, twice, or gone.
pub fn spliced(rng: &mut Rng, text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    if chars.is_empty() {
        return word(rng).into();
    }
    let (from, to) = (rng.below(chars.len()), rng.below(chars.len()));
    let piece: Vec<char> = chars[from..chars.len().min(from + 1 + rng.below(12))].to_vec();
    match rng.below(3) {
        0 => drop(chars.drain(from..from + piece.len())),
        1 => drop(chars.splice(to..to, piece)),
        _ => chars[to] = char::from_u32(rng.below(0x3000) as u32).unwrap_or('\u{fffd}'),
    }
    chars.into_iter().collect()
}

/// Bytes changed within the first `head`: flipped, cut, moved, or eight of them another length.
pub fn damaged(rng: &mut Rng, bytes: &mut Vec<u8>, head: usize) {
    for _ in 0..1 + rng.below(4) {
        let n = bytes.len().min(head);
        if n == 0 {
            return;
        }
        let at = rng.below(n);
        match rng.below(12) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..(at + rng.below(64)).min(n))),
            2 => {
                let piece = bytes[at..(at + rng.below(64)).min(n)].to_vec();
                let to = rng.below(n);
                bytes.splice(to..to, piece);
            }
            3..=7 => bytes[at] ^= 1 << rng.below(8),
            _ => {
                let length = number(rng).to_le_bytes();
                bytes[at..].iter_mut().zip(length).for_each(|(b, v)| *b = v);
            }
        }
    }
}
