//! The quantised formats, unpacked 32 codes at a time. Bit layouts: the pages of [`crate::quant`].

use super::Wide;
use crate::backend::cpu::kernel::formats::{FP4, IQ4, e8m0_half, iq4_xs_scales, k_scales, q3_scales};

/// A format's codes and scales. All functions need what [`Wide`] says, and a pointer to a readable block.
#[allow(clippy::missing_safety_doc)]
pub trait Format {
    /// Weights of a block.
    const BLOCK: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Scales (and minima) are per 16 weights, not 32.
    const FINE: bool;
    /// Subtracted from every code.
    const OFFSET: f32;
    /// The largest code.
    const LARGEST: usize;
    /// Codes use all 8 bits; their offset is 128.
    const EIGHT: bool = Self::LARGEST == 255;
    /// Blocks have minima.
    const MINIMA: bool;
    /// Codes of the 32 weights of group `g` of the block, in order.
    unsafe fn group<W: Wide>(p: *const u8, g: usize) -> W::Bytes;
    /// Scales and minima of a block: of its one group, or 8, or 16.
    unsafe fn scales<W: Wide>(p: *const u8) -> ([f32; 16], [f32; 16]);
}

/// A format: weights and bytes of a block, what its codes are, how they and their scales are read.
macro_rules! format {
    ($name:ident, $block:literal, $bytes:literal, fine $fine:literal, offset $offset:literal, largest $largest:literal,
     minima $minima:literal, |$p:ident, $g:ident| $group:expr, |$q:ident| $scales:expr) => {
        #[doc = concat!("`", stringify!($name), "`.")]
        pub struct $name;
        impl Format for $name {
            const BLOCK: usize = $block;
            const BYTES: usize = $bytes;
            const FINE: bool = $fine;
            const OFFSET: f32 = $offset;
            const LARGEST: usize = $largest;
            const MINIMA: bool = $minima;
            #[inline(always)]
            unsafe fn group<W: Wide>($p: *const u8, $g: usize) -> W::Bytes {
                // SAFETY: the block is readable; features by the contract of `Wide`.
                unsafe { $group }
            }
            #[inline(always)]
            unsafe fn scales<W: Wide>($q: *const u8) -> ([f32; 16], [f32; 16]) {
                // SAFETY: as above.
                unsafe { $scales }
            }
        }
    };
}

#[inline(always)]
unsafe fn bytes<'a>(p: *const u8, at: usize, len: usize) -> &'a [u8] {
    // SAFETY: the caller's block is readable.
    unsafe { std::slice::from_raw_parts(p.add(at), len) }
}

/// 32 bytes at `p` shifted right and masked.
#[inline(always)]
unsafe fn fields<W: Wide>(p: *const u8, shift: usize, mask: u8) -> W::Bytes {
    // SAFETY: the caller's block is readable; features by the contract of `Wide`.
    unsafe { W::field(W::load(p), shift, mask) }
}

#[inline(always)]
fn single(scale: f32, minimum: f32) -> ([f32; 16], [f32; 16]) {
    let (mut s, mut m) = ([0.0; 16], [0.0; 16]);
    (s[0], m[0]) = (scale, minimum);
    (s, m)
}

/// Scales of Q4_K and Q5_K.
#[inline(always)]
unsafe fn k<W: Wide>(p: *const u8) -> ([f32; 16], [f32; 16]) {
    let (mut s, mut m) = ([0.0; 16], [0.0; 16]);
    // SAFETY: the caller's block is readable; features by the contract of `Wide`.
    unsafe {
        let (a, b) = k_scales(bytes(p, 4, 12));
        let (d, dmin) = (W::half(p), W::half(p.add(2)));
        for j in 0..8 {
            s[j] = d * f32::from(a[j]);
            m[j] = dmin * f32::from(b[j]);
        }
    }
    (s, m)
}

#[inline(always)]
fn plain(d: f32, whole: [i8; 16]) -> ([f32; 16], [f32; 16]) {
    (whole.map(|v| d * f32::from(v)), [0.0; 16])
}

format!(Q4_0, 32, 18, fine false, offset 8.0, largest 15, minima false,
    |p, _g| W::nibbles(p.add(2)), |p| single(W::half(p), 0.0));
format!(Q4_1, 32, 20, fine false, offset 0.0, largest 15, minima true,
    |p, _g| W::nibbles(p.add(4)), |p| single(W::half(p), -W::half(p.add(2))));
format!(Q5_0, 32, 22, fine false, offset 16.0, largest 31, minima false,
    |p, _g| W::fifth(p.add(2), W::nibbles(p.add(6))), |p| single(W::half(p), 0.0));
format!(Q5_1, 32, 24, fine false, offset 0.0, largest 31, minima true,
    |p, _g| W::fifth(p.add(4), W::nibbles(p.add(8))), |p| single(W::half(p), -W::half(p.add(2))));
format!(Q8_0, 32, 34, fine false, offset 128.0, largest 255, minima false,
    |p, _g| W::flip(W::load(p.add(2))), |p| single(W::half(p), 0.0));
format!(Iq4Nl, 32, 18, fine false, offset 128.0, largest 255, minima false,
    |p, _g| W::lookup(&IQ4, W::nibbles(p.add(2))), |p| single(W::half(p), 0.0));
format!(Mxfp4, 32, 17, fine false, offset 12.0, largest 24, minima false,
    |p, _g| W::lookup(&FP4, W::nibbles(p.add(1))), |p| single(e8m0_half(*p), 0.0));
format!(Q4K, 256, 144, fine false, offset 0.0, largest 15, minima true,
    |p, g| fields::<W>(p.add(16 + g / 2 * 32), g % 2 * 4, 15), |p| k::<W>(p));
format!(Q5K, 256, 176, fine false, offset 0.0, largest 31, minima true,
    |p, g| W::join::<4>(fields::<W>(p.add(48 + g / 2 * 32), g % 2 * 4, 15), fields::<W>(p.add(16), g, 1)),
    |p| k::<W>(p));
format!(Q6K, 256, 210, fine true, offset 32.0, largest 63, minima false,
    |p, g| {
        let (h, q) = (g / 4, g % 4);
        let low = fields::<W>(p.add(64 * h + q % 2 * 32), q / 2 * 4, 15);
        W::join::<4>(low, fields::<W>(p.add(128 + 32 * h), 2 * q, 3))
    },
    |p| plain(W::half(p.add(208)), p.add(192).cast::<[i8; 16]>().read_unaligned()));
format!(Q2K, 256, 84, fine true, offset 0.0, largest 3, minima true,
|p, g| fields::<W>(p.add(16 + g / 4 * 32), g % 4 * 2, 3),
|p| {
    let (d, dmin, s) = (W::half(p.add(80)), W::half(p.add(82)), bytes(p, 0, 16));
    (std::array::from_fn(|j| d * f32::from(s[j] & 15)), std::array::from_fn(|j| dmin * f32::from(s[j] >> 4)))
});
format!(Q3K, 256, 110, fine true, offset 4.0, largest 7, minima false,
    |p, g| W::join::<2>(fields::<W>(p.add(32 + g / 4 * 32), g % 4 * 2, 3), fields::<W>(p, g, 1)),
    |p| plain(W::half(p.add(108)), q3_scales(bytes(p, 96, 12))));
format!(Iq4Xs, 256, 136, fine false, offset 128.0, largest 255, minima false,
|p, g| W::lookup(&IQ4, W::nibbles(p.add(8 + 16 * g))),
|p| {
    let (d, whole) = (W::half(p), iq4_xs_scales(bytes(p, 0, 8)));
    let mut s = [0.0; 16];
    for j in 0..8 {
        s[j] = d * f32::from(whole[j]);
    }
    (s, [0.0; 16])
});
