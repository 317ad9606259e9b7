//! Unpacking, written once for every instruction set: the quants of one or two groups of 32 from the bytes of blocks.
//!
//! A format says with these few functions where its quants lie ([`super::format::BlockFormat::quants`]). What differs from group to
//! group it gives as functions of the group, which an instruction set asks for each of its groups. [`Portable`] is plain Rust, for
//! dequantisation and for processors without SIMD kernels; the CPU backend has implementations for the others.

use super::bits::{self, Group, f16_to_f32, from_bits, from_nibbles, group_at, u16_at};

/// A group of 32 weights: its block, and its number there.
pub type InBlock<'a> = (&'a [u8], usize);

/// A format that computes its groups in words of eight quants. (Not a closure: one of this size would not be inlined everywhere.)
pub trait Words {
    /// The quants of group `g`, the first in the lowest byte.
    fn words(b: &[u8], g: usize) -> [u64; 4];
}

/// The same for a format with signs.
pub trait SignedWords {
    /// The magnitudes of the quants of group `g`, below 128, and bit i set where quant i is negative.
    fn signed(b: &[u8], g: usize) -> ([u64; 4], u32);
}

/// An instruction set for unpacking. A value of it is the proof that the processor has the instructions, so all functions are
/// safe. All are `#[inline(always)]`, to be inlined into functions that enable the features; functions of a group compute with
/// integers only, because closures do not enable them.
pub trait Unpack: Copy {
    /// A byte for each weight of one group, or of two.
    type Bytes: Copy;
    /// One group, or two.
    type Groups<'a>: Copy;

    /// The groups of a vector: `second` only where a vector has two.
    fn groups<'a>(self, first: InBlock<'a>, second: InBlock<'a>) -> Self::Groups<'a>;
    /// The 32 bytes of a group's block from `at` on.
    fn load(self, of: Self::Groups<'_>, at: impl Fn(usize) -> usize) -> Self::Bytes;
    /// The nibbles of the 16 bytes of a group's block from `at` on: the low ones, then the high ones.
    fn nibbles(self, of: Self::Groups<'_>, at: impl Fn(usize) -> usize) -> Self::Bytes;
    /// Every byte shifted right by its group's `shift`, 0 to 7, and masked; `mask` has no bit that a byte does not keep.
    fn field(self, of: Self::Groups<'_>, v: Self::Bytes, shift: impl Fn(usize) -> usize, mask: u8) -> Self::Bytes;
    /// `low | high << S` of every byte; `high` is below `256 >> S`.
    fn join<const S: i32>(self, low: Self::Bytes, high: Self::Bytes) -> Self::Bytes;
    /// The table's entries at indices below 16.
    fn lookup(self, table: &[u8; 16], indices: Self::Bytes) -> Self::Bytes;
    /// Sets bit 4 of a group's byte i where bit i of its `bits` is set.
    fn fifth_bits(self, of: Self::Groups<'_>, v: Self::Bytes, bits: impl Fn(&[u8], usize) -> u32) -> Self::Bytes;
    /// Inverts the highest bit of every byte: signed numbers to numbers 128 larger without sign, and back.
    fn flip(self, v: Self::Bytes) -> Self::Bytes;
    /// What [`Words`] gives for each group.
    fn words<W: Words>(self, of: Self::Groups<'_>) -> Self::Bytes;
    /// 128 plus the signed numbers that [`SignedWords`] gives for each group.
    fn signed<W: SignedWords>(self, of: Self::Groups<'_>) -> Self::Bytes;

    /// The half at byte `at`.
    fn half(self, b: &[u8], at: usize) -> f32;
    /// Whole numbers as f32.
    fn numbers(self, v: [u8; 16]) -> [f32; 16];
    /// Whole numbers as f32.
    fn signed_numbers(self, v: [i8; 16]) -> [f32; 16];
}

/// Plain Rust, a group at a time.
#[derive(Clone, Copy)]
pub struct Portable;

impl Unpack for Portable {
    type Bytes = Group;
    type Groups<'a> = InBlock<'a>;

    #[inline(always)]
    fn groups<'a>(self, first: InBlock<'a>, _: InBlock<'a>) -> InBlock<'a> {
        first
    }

    #[inline(always)]
    fn load(self, (b, g): InBlock<'_>, at: impl Fn(usize) -> usize) -> Group {
        group_at(b, at(g))
    }

    #[inline(always)]
    fn nibbles(self, (b, g): InBlock<'_>, at: impl Fn(usize) -> usize) -> Group {
        from_nibbles(b, at(g))
    }

    #[inline(always)]
    fn field(self, (_, g): InBlock<'_>, v: Group, shift: impl Fn(usize) -> usize, mask: u8) -> Group {
        let (shift, mask) = (shift(g), u32::from(mask) * 0x0101_0101);
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
    fn fifth_bits(self, (b, g): InBlock<'_>, v: Group, bits: impl Fn(&[u8], usize) -> u32) -> Group {
        self.join::<4>(v, from_bits(bits(b, g)))
    }

    #[inline(always)]
    fn flip(self, v: Group) -> Group {
        v.map(|v| v ^ 0x8080_8080)
    }

    #[inline(always)]
    fn words<W: Words>(self, (b, g): InBlock<'_>) -> Group {
        two_a_word(W::words(b, g))
    }

    #[inline(always)]
    fn signed<W: SignedWords>(self, (b, g): InBlock<'_>) -> Group {
        let (v, signs) = W::signed(b, g);
        let (v, signs) = (two_a_word(v), from_bits(signs));
        // Of a negative weight 127 less the magnitude, which is the inverted bits, and 1: no byte overflows.
        std::array::from_fn(|a| (v[a] ^ 0x8080_8080 ^ (signs[a] * 255)) + signs[a])
    }

    #[inline(always)]
    fn half(self, b: &[u8], at: usize) -> f32 {
        f16_to_f32(u16_at(b, at))
    }

    #[inline(always)]
    fn numbers(self, v: [u8; 16]) -> [f32; 16] {
        v.map(f32::from)
    }

    #[inline(always)]
    fn signed_numbers(self, v: [i8; 16]) -> [f32; 16] {
        v.map(f32::from)
    }
}

/// Words of eight bytes as words of four.
#[inline(always)]
fn two_a_word(w: [u64; 4]) -> Group {
    std::array::from_fn(|a| (w[a / 2] >> (32 * (a % 2))) as u32)
}
