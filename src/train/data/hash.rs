//! Random numbers that need no state: an integer hash of seed, stream and number.
//!
//! They are simple enough to be written in a line of any language, so that a run and its twin elsewhere see the same data from the
//! same first weights. What is drawn on devices has more rounds: `crate::ops::random`.
//!
//! All on unsigned 32-bit integers, wrapping; the mixer is Chris Wellons' `lowbias32`.

/// One integer, mixed.
pub fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// The seed of these numbers that stands for one of 64 bits: its halves, combined, so that both count. Below 2³² it is the seed itself.
pub fn short(seed: u64) -> u32 {
    (seed ^ (seed >> 32)) as u32
}

/// Word `n` of a stream.
pub fn word(seed: u32, stream: u32, n: u32) -> u32 {
    mix(n.wrapping_mul(0x9e37_79b1) ^ mix(stream ^ mix(seed.wrapping_add(0x9e37_79b9))))
}

/// A number below `m`.
pub fn below(seed: u32, stream: u32, n: u32, m: u32) -> u32 {
    ((u64::from(word(seed, stream, n)) * u64::from(m)) >> 32) as u32
}

/// A nearly normal number of mean 0 and standard deviation 1: twelve 16-bit numbers, summed. Exact in f32.
pub fn normal(seed: u32, stream: u32, i: u32) -> f32 {
    let words = (0..6).map(|k| word(seed, stream, i.wrapping_mul(6).wrapping_add(k)));
    let sum: i64 = words.map(|w| i64::from(w & 0xffff) + i64::from(w >> 16)).sum();
    (sum - 393_210) as f32 / 65_536.0
}

/// A sum over words that another order or another word changes: whether data is what it was, and not a seal against somebody who
/// wants it to look so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Takes a word.
    pub fn word(&mut self, w: u64) {
        self.0 = (self.0.rotate_left(5) ^ w).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// Takes bytes, and how many they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for part in bytes.chunks(8) {
            let mut word = [0u8; 8];
            word[..part.len()].copy_from_slice(part);
            self.word(u64::from_le_bytes(word));
        }
    }

    /// It in hexadecimal digits.
    pub fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!([short(7), short(7 | 1 << 32), short(u64::MAX)], [7, 6, 0]);
        assert_eq!([mix(0), mix(1), mix(0xdead_beef)], [0, 1_753_845_952, 3_861_431_939]);
        assert_eq!([word(0, 1, 0), word(0, 1, 1), word(0, 2, 0)], [3_330_041_933, 462_832_341, 2_479_321_025]);
        assert_eq!([word(101, 1, 0), word(101, 16, 1_000_000)], [3_476_431_988, 2_623_053_125]);
        assert_eq!(word(u32::MAX, 7, u32::MAX), 1_016_714_772);
        assert_eq!([below(0, 1, 0, 97), below(0, 1, 1, 4), below(0, 1, 2, 4)], [75, 0, 3]);
        let n = [(0, 1, 0), (0, 1, 1), (0, 2, 0), (101, 1, 0), (101, 17, 12345)].map(|(s, t, i)| normal(s, t, i));
        assert_eq!(n.map(|x| x * 65536.0), [61622.0, -69855.0, 16843.0, -60754.0, -19341.0]);
    }
}
