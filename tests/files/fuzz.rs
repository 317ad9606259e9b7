//! Mutations of valid files: whatever comes out, opening it neither panics nor allocates more than the file justifies,
//! and what is accepted can be walked to its end.

use super::{build, data, hostile::open_safetensors};
use crate::alloc;
use moeray::file::{self, Bytes, Checkpoint};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Mutation {
    Flip(usize, u8),
    Truncate(usize),
    Splice {
        from: usize,
        to: usize,
        len: usize,
    },
    Remove {
        at: usize,
        len: usize,
    },
    /// Writes a u64: over the n-th length field where the flag is set, anywhere otherwise.
    Length(usize, u64, bool),
}

fn lengths() -> impl Strategy<Value = u64> {
    let near = |v: u64| (0..3u64).prop_map(move |d| v.wrapping_add(d).wrapping_sub(1));
    prop_oneof![
        near(0),
        near(1 << 8),
        near(1 << 16),
        near(1 << 32),
        near(1 << 40),
        near(1 << 61),
        near(1 << 63),
        0..100_000u64,
        any::<u64>(),
    ]
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let at = any::<usize>;
    let one = prop_oneof![
        4 => (at(), 1..=255u8).prop_map(|(a, m)| Mutation::Flip(a, m)),
        1 => at().prop_map(Mutation::Truncate),
        2 => (at(), at(), 0..64usize).prop_map(|(from, to, len)| Mutation::Splice { from, to, len }),
        1 => (at(), 0..64usize).prop_map(|(at, len)| Mutation::Remove { at, len }),
        4 => (at(), lengths(), any::<bool>()).prop_map(|(a, v, f)| Mutation::Length(a, v, f)),
    ];
    prop::collection::vec(one, 1..5)
}

fn apply(bytes: &mut Vec<u8>, fields: &[usize], list: &[Mutation]) {
    for m in list {
        if bytes.is_empty() {
            return;
        }
        let n = bytes.len();
        match *m {
            Mutation::Flip(at, mask) => bytes[at % n] ^= mask,
            Mutation::Truncate(at) => bytes.truncate(at % n),
            Mutation::Splice { from, to, len } => {
                let from = from % n;
                let piece = bytes[from..n.min(from + len)].to_vec();
                let to = to % n;
                bytes.splice(to..to, piece);
            }
            Mutation::Remove { at, len } => drop(bytes.drain(at % n..n.min(at % n + len))),
            Mutation::Length(at, v, aimed) => {
                let at = if aimed && !fields.is_empty() { fields[at % fields.len()] } else { at % n };
                for (b, v) in bytes.iter_mut().skip(at).zip(v.to_le_bytes()) {
                    *b = v;
                }
            }
        }
    }
}

/// Touches everything that an accepted file offers.
fn walk(c: &Checkpoint) {
    for (key, value) in c.meta().iter() {
        // The very value: not-a-number is not equal to itself.
        assert!(c.meta().get(key).is_some_and(|found| std::ptr::eq(found, value)), "{key}");
        let _ = (value.to_string(), value.as_u64(), value.as_f64());
        if let Some(a) = value.as_array() {
            assert!(a.is_empty() || a.get(a.len() - 1).is_some());
            assert!(a.get(a.len()).is_none());
            assert_eq!(a.iter().count(), a.len());
        }
    }
    for info in c.infos() {
        assert_eq!(c.info(&info.name).map(|i| i.offset), Some(info.offset));
        if let Ok(t) = c.require(&info.name) {
            let last = t.rows() - 1;
            assert_eq!(t.row(0).len(), t.row(last).len());
            assert!(info.offset + info.bytes <= c.file_bytes());
        }
    }
    let _ = c.chat_template();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn gguf(list in mutations()) {
        let sample = build::sample();
        let mut bytes = sample.bytes;
        apply(&mut bytes, &sample.lengths, &list);
        let n = bytes.len();
        let bytes = Bytes::from_vec(bytes);
        let (result, peak) = alloc::peak(|| file::open_bytes(bytes));
        prop_assert!(peak <= 16 * n + 16_384, "{} bytes allocated for a file of {}", peak, n);
        if let Ok(c) = result {
            walk(&c);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn safetensors(list in mutations(), cut in 0..4usize) {
        let mut bytes = std::fs::read(data("goldens/llama/model.safetensors")).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        // Most mutations should meet the header, which is a small part of the file.
        let tail = bytes.split_off(header + 64 * cut);
        apply(&mut bytes, &[0], &list);
        bytes.extend(tail);
        if let Ok(c) = open_safetensors(&bytes) {
            walk(&c);
        }
    }
}
