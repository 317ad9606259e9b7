//! Unpacking, written once for every instruction set: 32 quants of a group from the bytes of a block.
//!
//! A format says with these few functions where its quants lie ([`super::format::BlockFormat::quants`]). [`Portable`] is plain
//! Rust, for dequantisation and for processors without SIMD kernels; the CPU backend has implementations for the others.

use super::bits::{self, Group, f16_to_f32, from_bits, from_nibbles, group_at, u16_at};

/// An instruction set for unpacking. A value of it is the proof that the processor has the instructions, so all functions are
/// safe. All are `#[inline(always)]`, to be inlined into functions that enable the features.
pub trait Unpack: Copy {
    /// 32 bytes, one for each weight of a group.
    type Bytes: Copy;

    /// The 32 bytes from `at` on.
    fn load(self, b: &[u8], at: usize) -> Self::Bytes;
    /// The nibbles of the 16 bytes from `at` on: the low ones, then the high ones.
    fn nibbles(self, b: &[u8], at: usize) -> Self::Bytes;
    /// Every byte shifted right by `shift`, 0 to 7, and masked; `mask` has no bit that a byte does not keep.
    fn field(self, v: Self::Bytes, shift: usize, mask: u8) -> Self::Bytes;
    /// `low | high << S` of every byte; `high` is below `256 >> S`.
    fn join<const S: i32>(self, low: Self::Bytes, high: Self::Bytes) -> Self::Bytes;
    /// The table's entries at indices below 16.
    fn lookup(self, table: &[u8; 16], indices: Self::Bytes) -> Self::Bytes;
    /// Sets bit 4 of byte i where bit i of `bits` is set.
    fn fifth_bits(self, v: Self::Bytes, bits: u32) -> Self::Bytes;
    /// Inverts the highest bit of every byte: signed numbers to numbers 128 larger without sign, and back.
    fn flip(self, v: Self::Bytes) -> Self::Bytes;
    /// Bytes from words of eight, the first in the lowest byte.
    fn words(self, w: [u64; 4]) -> Self::Bytes;
    /// 128 plus magnitudes below 128; minus them where bit i of `signs` is set for byte i.
    fn signed(self, magnitudes: [u64; 4], signs: u32) -> Self::Bytes;
    /// The half at byte `at`.
    fn half(self, b: &[u8], at: usize) -> f32;
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub struct Portable;

impl Unpack for Portable {
    type Bytes = Group;

    #[inline(always)]
    fn load(self, b: &[u8], at: usize) -> Group {
        group_at(b, at)
    }

    #[inline(always)]
    fn nibbles(self, b: &[u8], at: usize) -> Group {
        from_nibbles(b, at)
    }

    #[inline(always)]
    fn field(self, v: Group, shift: usize, mask: u8) -> Group {
        let mask = u32::from(mask) * 0x0101_0101;
        v.map(|v| (v >> shift) & mask)
    }

    #[inline(always)]
    fn join<const S: i32>(self, low: Group, high: Group) -> Group {
        std::array::from_fn(|a| low[a] | (high[a] << S))
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], indices: Group) -> Group {
        bits::group(&bits::bytes(indices).map(|i| table[usize::from(i & 15)]))
    }

    #[inline(always)]
    fn fifth_bits(self, v: Group, bits: u32) -> Group {
        self.join::<4>(v, from_bits(bits))
    }

    #[inline(always)]
    fn flip(self, v: Group) -> Group {
        v.map(|v| v ^ 0x8080_8080)
    }

    #[inline(always)]
    fn words(self, w: [u64; 4]) -> Group {
        std::array::from_fn(|a| (w[a / 2] >> (32 * (a % 2))) as u32)
    }

    #[inline(always)]
    fn signed(self, magnitudes: [u64; 4], signs: u32) -> Group {
        let (v, signs) = (self.words(magnitudes), from_bits(signs));
        // Of a negative weight 127 less the magnitude, which is the inverted bits, and 1: no byte overflows.
        std::array::from_fn(|a| (v[a] ^ 0x8080_8080 ^ (signs[a] * 255)) + signs[a])
    }

    #[inline(always)]
    fn half(self, b: &[u8], at: usize) -> f32 {
        f16_to_f32(u16_at(b, at))
    }
}
