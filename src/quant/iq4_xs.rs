//! IQ4_XS: 256 weights in 136 bytes, in 8 groups of 32. `x = (d * s) * VALUES[q]`, q in 0..16, s in -32..32; the table
//! is IQ4_NL's.
//!
//! Bytes: `d` f16; the upper two bits of the scales in a u16, group `k` at bit `2k`; their lower four in 4 bytes, group
//! `k` in nibble `k % 2` of byte `k / 2` (stored plus 32); 128 of quants, each group's 16 bytes as in Q4_0.
//! GPU planes: quants (16 bytes a group, as in the file); `d` and scales (8 bytes a block, as in the file).

use super::{
    Layout,
    bits::{group_at, less_32, nibbles, put_f16, put_words, u16_at, u32_at},
    fit::{self, Signed},
    format::{BlockFormat, PackedScales, Random, Scales, whole},
    iq4_nl::{TABLE, Table},
    unpack::Unpack,
};

/// The format that this page describes.
pub struct IQ4XS;

impl BlockFormat for IQ4XS {
    const LAYOUT: Layout = Layout { name: "IQ4_XS", ggml_id: 23, block: 256, bytes: 136 };
    const SUB_BLOCK: usize = 32;
    const TABLE: Option<&'static [u8; 16]> = Some(&TABLE);
    const OFFSET: u8 = 128;
    const LARGEST: u8 = 255;
    const MINIMA: bool = false;
    const PACKED: Option<((usize, usize), PackedScales)> = Some(((4, 0), PackedScales::Byte));

    #[inline(always)]
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
        u.nibbles(of, |g| 8 + 16 * g)
    }

    #[inline(always)]
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales {
        Scales::signed(u, u.half(b, 0), scales(b))
    }

    const PLANES: [usize; 4] = [128, 8, 0, 0];
    const WGSL: &'static str = include_str!("../../shaders/quant/iq4_xs.wgsl");
    const WGSL_INTS: &'static str = include_str!("../../shaders/quant/ints/iq4_xs.wgsl");

    #[inline(always)]
    fn pack(b: &[u8], [q, s, ..]: [&mut [u8]; 4]) {
        q.copy_from_slice(&b[8..]);
        s.copy_from_slice(&b[..8]);
    }

    const RANDOM: Random = Random { scale_at: 0, rms: 18.5 * 69.3, centre: 0.0 };

    #[inline(always)]
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]) {
        let (x, w): (&[f32; 256], &[f32; 256]) = (whole(x), whole(w));
        let f = fit::blocks_of_scales::<Signed<32>, Table, 8, 32>(x, w, 0.15, 8);
        put_f16(b, 0, f.d);
        b[2..8].fill(0);
        for (k, s) in f.s.iter().enumerate() {
            let s = (s + 32) as u8;
            b[4 + k / 2] |= (s & 15) << (4 * (k % 2));
            b[2 + k / 4] |= (s >> 4) << (2 * (k % 4));
        }
        for k in 0..8 {
            put_words(b, 8 + 16 * k, &nibbles(group_at(&f.q, 32 * k)));
        }
    }
}

/// The scales of the groups.
#[inline(always)]
fn scales(b: &[u8]) -> [i8; 8] {
    // Halves of halves of the bits move apart, until each byte has its own.
    let (low, high) = (u64::from(u32_at(b, 4)), u64::from(u16_at(b, 2)));
    let low = (low | low << 16) & 0x0000_ffff_0000_ffff;
    let low = (low | low << 8) & 0x00ff_00ff_00ff_00ff;
    let low = (low | low << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let high = (high | high << 24) & 0x0000_00ff_0000_00ff;
    let high = (high | high << 12) & 0x000f_000f_000f_000f;
    let high = (high | high << 6) & 0x0303_0303_0303_0303;
    less_32(low | high << 4)
}
