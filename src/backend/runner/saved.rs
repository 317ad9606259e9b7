//! The bytes of a saved sequence: a header that says what they belong to, and what the executor gave.
//!
//! All numbers are little-endian: magic (8 bytes), layout (16, padded with zeros), KV type (u32), whether states follow (u32),
//! positions (u64), fingerprint of graph and weights (u64), checksum of what stands before and behind it (u64).

use crate::{
    error::{Error, Result},
    graph::Program,
    ir::Op,
    quant::KvType,
};

const MAGIC: [u8; 8] = *b"MORYSEQ1";
const LAYOUT: std::ops::Range<usize> = 8..24;

/// Bytes before what the executor gave.
pub(super) const HEADER: usize = 56;

/// What the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub layout: [u8; 16],
    pub kv: KvType,
    pub states: bool,
    pub positions: u64,
    pub fingerprint: u64,
}

impl Header {
    /// A layout's name as it is stored.
    pub fn layout(name: &str) -> [u8; 16] {
        let mut layout = [0; 16];
        layout.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        layout
    }

    /// Writes the header into the first [`HEADER`] of `bytes`, the rest of which is what it describes.
    pub fn write(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[LAYOUT].copy_from_slice(&self.layout);
        bytes[24..28].copy_from_slice(&kv_code(self.kv).to_le_bytes());
        bytes[28..32].copy_from_slice(&u32::from(self.states).to_le_bytes());
        bytes[32..40].copy_from_slice(&self.positions.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.fingerprint.to_le_bytes());
        let sum = sum_of(bytes);
        bytes[48..56].copy_from_slice(&sum.to_le_bytes());
    }

    /// Reads the header and checks it against the runner's own: all but `states` and `positions` must be the same.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other bytes, a damaged copy, or a sequence of another model, KV type or backend.
    pub fn read(bytes: &[u8], own: &Header) -> Result<Header> {
        let invalid = |what: &str| Error::Invalid(format!("a saved sequence {what}"));
        if bytes.len() < HEADER || bytes[..8] != MAGIC {
            return Err(invalid("begins otherwise than these bytes do"));
        }
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if bytes[LAYOUT] != own.layout {
            return Err(invalid("was made by another backend, or another version of it"));
        }
        if u32_at(24) != kv_code(own.kv) {
            return Err(invalid("stores keys and values otherwise than this runner"));
        }
        if u64_at(40) != own.fingerprint {
            return Err(invalid("belongs to another model"));
        }
        if u64_at(48) != sum_of(bytes) {
            return Err(invalid("is damaged: its checksum is not that of its bytes"));
        }
        Ok(Header { states: u32_at(28) != 0, positions: u64_at(32), ..*own })
    }
}

fn kv_code(kv: KvType) -> u32 {
    match kv {
        KvType::F16 => 1,
        KvType::F32 => 2,
        KvType::Q8_0 => 3,
    }
}

/// A number that follows from the graph, from the shapes, formats and some bytes of the weights, and from what a context of `ctx`
/// positions makes of rotations: what keys, values and states depend on.
pub fn fingerprint(program: &Program, ctx: usize) -> u64 {
    let mut sum = checksum(program.graph.to_string().as_bytes());
    for node in &program.graph.nodes {
        if let Op::Rope(rope) | Op::RopeStore { rope, .. } = &node.op {
            sum = mixed(sum, checksum(format!("{:?}", rope.for_context(ctx)).as_bytes()));
        }
    }
    for tensor in program.weights.iter() {
        sum = mixed(sum, checksum(format!("{} {:?}", tensor.dtype(), tensor.shape()).as_bytes()));
        for row in [0, tensor.rows() / 2, tensor.rows().saturating_sub(1)] {
            if row < tensor.rows() {
                let bytes = tensor.row(row);
                sum = mixed(sum, checksum(&bytes[..bytes.len().min(64)]));
            }
        }
    }
    sum
}

/// The checksum of a header's fields and of the bytes behind it.
fn sum_of(bytes: &[u8]) -> u64 {
    mixed(checksum(&bytes[..48]), checksum(&bytes[HEADER..]))
}

/// FNV-1a over words of 8 bytes, with the length.
pub fn checksum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|c| {
        let mut word = [0; 8];
        word[..c.len()].copy_from_slice(c);
        u64::from_le_bytes(word)
    });
    mixed(words.fold(0xcbf2_9ce4_8422_2325, mixed), bytes.len() as u64)
}

fn mixed(sum: u64, word: u64) -> u64 {
    let product = (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3);
    product ^ product >> 29
}
