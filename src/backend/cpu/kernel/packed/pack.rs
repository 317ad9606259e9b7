//! From the file's blocks to panels. Plain Rust; run with the instructions of the SIMD level, which the loops over bytes are
//! vectorised for.

use super::{
    super::{super::simd::F32x16, super::simd_level::SimdKernel, formats},
    Form, GROUP, ROWS, SUPER,
};
use crate::quant::DType;

/// Packs some rows to one panel.
pub struct Pack<'a> {
    /// The rows' format.
    pub dtype: DType,
    /// How it is packed.
    pub form: Form,
    /// The rows, 1 to 16; a panel's other rows become zeros.
    pub rows: &'a [&'a [u8]],
    /// Weights of a row.
    pub cols: usize,
    /// A panel of zeros.
    pub panel: &'a mut [u8],
}

impl SimdKernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let Pack { dtype, form, rows, cols, panel } = self;
        let l = dtype.layout();
        let mut codes = [[0u8; GROUP * SUPER]; ROWS];
        let (mut done, mut rest) = (0, panel);
        while done < cols {
            let n = (cols - done).min(GROUP * SUPER);
            let groups = n / GROUP;
            let (here, after) = std::mem::take(&mut rest).split_at_mut(form.super_bytes(groups));
            rest = after;
            let (to_codes, to_scales) = here.split_at_mut(groups * form.code_bytes());
            for (r, row) in rows.iter().enumerate() {
                let from = &row[done / l.block * l.bytes..][..n / l.block * l.bytes];
                for (block, codes) in from.chunks_exact(l.bytes).zip(codes[r].chunks_exact_mut(l.block)) {
                    raw_codes(dtype, block, codes);
                }
                for (b, block) in from.chunks_exact(l.bytes).enumerate() {
                    scales(dtype, block, r, b, groups, to_scales);
                }
            }
            for (g, to) in to_codes.chunks_exact_mut(form.code_bytes()).enumerate() {
                match form.bits {
                    (2, 0) => planes::<2, 0>(&codes, g, to),
                    (2, 1) => planes::<2, 1>(&codes, g, to),
                    (4, 0) => planes::<4, 0>(&codes, g, to),
                    (4, 1) => planes::<4, 1>(&codes, g, to),
                    (4, 2) => planes::<4, 2>(&codes, g, to),
                    _ => planes::<8, 0>(&codes, g, to),
                }
            }
            done += n;
        }
    }
}

/// The codes of a block as they are stored: without a table's values.
#[inline(always)]
fn raw_codes(dtype: DType, b: &[u8], codes: &mut [u8]) {
    let mut unused = ([0f32; 16], [0f32; 16]);
    macro_rules! of {
        ($name:ident) => {
            <formats::$name as formats::Format>::unpack(b, codes, &mut unused.0, &mut unused.1)
        };
    }
    match dtype {
        DType::Q4_0 | DType::IQ4NL => formats::nibbles(&b[2..18], codes),
        DType::MXFP4 => formats::nibbles(&b[1..17], codes),
        DType::IQ4XS => {
            for (q, codes) in b[8..].chunks_exact(16).zip(codes.chunks_exact_mut(32)) {
                formats::nibbles(q, codes);
            }
        }
        DType::Q4_1 => of!(Q4_1),
        DType::Q5_0 => of!(Q5_0),
        DType::Q5_1 => of!(Q5_1),
        DType::Q2K => of!(Q2K),
        DType::Q3K => of!(Q3K),
        DType::Q4K => of!(Q4K),
        DType::Q5K => of!(Q5K),
        DType::Q6K => of!(Q6K),
        DType::Q8_0 | DType::F32 | DType::F16 | DType::BF16 => of!(Q8_0),
    }
}

/// The scales of block `b` (of a super of `groups` groups) of row `r`.
#[inline(always)]
fn scales(dtype: DType, block: &[u8], r: usize, b: usize, groups: usize, to: &mut [u8]) {
    let mut half = |at: usize, from: usize| to[at..at + 2].copy_from_slice(&block[from..from + 2]);
    // Where what a super has once begins, for the formats that have it: these have whole supers.
    let once = |group_bytes: usize| groups * group_bytes + 2 * r;
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4NL => half(2 * ROWS * b + 2 * r, 0),
        DType::Q4_1 | DType::Q5_1 => {
            half(4 * ROWS * b + 2 * r, 0);
            half(4 * ROWS * b + 2 * ROWS + 2 * r, 2);
        }
        DType::MXFP4 => to[ROWS * b + r] = block[0],
        DType::Q4K | DType::Q5K => {
            half(once(2 * ROWS), 0);
            half(once(2 * ROWS) + 2 * ROWS, 2);
            let (s, m) = formats::k_scales(&block[4..16]);
            for j in 0..8 {
                to[2 * ROWS * j + r] = s[j];
                to[2 * ROWS * j + ROWS + r] = m[j];
            }
        }
        DType::Q6K => {
            half(once(2 * ROWS), 208);
            (0..16).for_each(|j| to[ROWS * j + r] = block[192 + j]);
        }
        DType::Q3K => {
            half(once(2 * ROWS), 108);
            let s = formats::q3_scales(&block[96..108]);
            (0..16).for_each(|j| to[ROWS * j + r] = s[j] as u8);
        }
        DType::Q2K => {
            half(once(2 * ROWS), 80);
            half(once(2 * ROWS) + 2 * ROWS, 82);
            (0..16).for_each(|j| to[ROWS * j + r] = block[j]);
        }
        DType::IQ4XS => {
            half(once(ROWS), 0);
            let s = formats::iq4_xs_scales(block);
            (0..8).for_each(|j| to[ROWS * j + r] = s[j] as u8);
        }
        DType::F32 | DType::F16 | DType::BF16 => {}
    }
}

/// Group `g` of all rows to planes of `LOW` and `MORE` bits: numbers known where this is compiled, because loading waits for
/// it.
#[inline(always)]
fn planes<const LOW: usize, const MORE: usize>(codes: &[[u8; GROUP * SUPER]; ROWS], g: usize, to: &mut [u8]) {
    let (low, high) = to.split_at_mut(64 * LOW);
    for (r, row) in codes.iter().enumerate() {
        // Words of four columns: what becomes four bytes of a chunk.
        let row = &row[GROUP * g..][..GROUP];
        let words: [u32; 8] =
            std::array::from_fn(|k| u32::from_le_bytes([row[4 * k], row[4 * k + 1], row[4 * k + 2], row[4 * k + 3]]));
        plane::<LOW>(low, r, words.map(|w| w & mask(LOW)));
        if MORE > 0 {
            plane::<MORE>(high, r, words.map(|w| (w >> LOW) & mask(MORE)));
        }
    }
}

/// The lowest bits of each of four bytes.
const fn mask(bits: usize) -> u32 {
    0x0101_0101 * ((1u32 << bits) - 1)
}

/// The words of row `r` to a plane of `BITS` bits.
#[inline(always)]
fn plane<const BITS: usize>(to: &mut [u8], r: usize, words: [u32; 8]) {
    for (chunk, words) in to.chunks_exact_mut(64).zip(words.chunks_exact(8 / BITS)) {
        let v = words.iter().enumerate().fold(0, |v, (q, w)| v | w << (BITS * q));
        chunk[4 * r..4 * r + 4].copy_from_slice(&v.to_le_bytes());
    }
}
