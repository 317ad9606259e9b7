//! What a block format is, said once: [`BlockFormat`]. Dequantisation, the CPU backend's kernels at every SIMD level, its packed
//! copies, the GPU's planes, the quantiser and random weights are all derived from it.

use super::{Layout, unpack::Unpack};

/// The scales of a block. Sub-block `j` of `x = scale * (quant - OFFSET) - minimum` has the scale `d * s[j]` and the minimum
/// `dmin * m[j]`. The entries of `s` and `m` are small whole numbers (NVFP4's `s` excepted); a block has as many as sub-blocks.
#[derive(Clone, Copy)]
pub struct Scales {
    /// The scale of scales.
    pub d: f32,
    /// The scale of minima.
    pub dmin: f32,
    /// The scale of each sub-block.
    pub s: [f32; 16],
    /// The minimum of each sub-block.
    pub m: [f32; 16],
}

impl Scales {
    /// One scale, no minimum.
    #[inline(always)]
    pub fn one(d: f32) -> Scales {
        Scales { d, dmin: 0.0, s: [1.0; 16], m: [0.0; 16] }
    }

    /// One scale, and one number that is added to each weight.
    #[inline(always)]
    pub fn one_and_addend(d: f32, addend: f32) -> Scales {
        Scales { dmin: -addend, m: [1.0; 16], ..Scales::one(d) }
    }

    /// A whole number for each sub-block, no minima.
    #[inline(always)]
    pub fn signed<const N: usize>(u: impl Unpack, d: f32, s: [i8; N]) -> Scales {
        Scales { s: u.signed_numbers(sixteen(s)), ..Scales::one(d) }
    }

    /// Two whole numbers for each sub-block.
    #[inline(always)]
    pub fn with_minima<const N: usize>(u: impl Unpack, d: f32, dmin: f32, s: [u8; N], m: [u8; N]) -> Scales {
        Scales { d, dmin, s: u.numbers(sixteen(s)), m: u.numbers(sixteen(m)) }
    }
}

/// `N` numbers, at most 16, and zeros.
#[inline(always)]
fn sixteen<T: Copy + Default, const N: usize>(v: [T; N]) -> [T; 16] {
    let mut all = [T::default(); 16];
    all[..N].copy_from_slice(&v);
    all
}

/// How a copy that is packed for integer dot products stores scales; see the CPU backend's packed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedScales {
    /// A half a group.
    Half,
    /// A half a group, and a half that is added to each weight.
    HalfMin,
    /// A byte a group, and a byte of its minimum; halves a superblock for both.
    ByteMin,
    /// A byte with sign a sub-block; a half a superblock.
    Byte,
    /// A nibble for 16 weights and, above, one of their minimum; halves a superblock for both.
    Nibble,
    /// A power of two a group: MXFP4's.
    Power,
}

/// Random weights of a format: the blocks are random bytes but for their scales.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// Where a block's scale `d` lies, a half, in bytes.
    pub scale_at: usize,
    /// The root mean square of a weight where `d` is 1 and all other bits are random (centred by the minimum).
    pub rms: f32,
    /// The minimum that centres the weights, in units of `d`; 0 for formats without one.
    pub centre: f32,
}

/// Sixteen scales near the wanted one, as halves; and, for formats that have it, the minimum that centres the weights.
pub type ScaleChoices = [([u8; 2], [u8; 2]); 16];

/// A block format: some weights `x = scale * (quant - OFFSET) [- minimum]` in some bytes.
///
/// Slices named `b` are one block, `x` and `w` the weights of one block and their importances.
pub trait BlockFormat: 'static {
    /// Name, ggml's number, weights and bytes of a block.
    const LAYOUT: Layout;
    /// Weights of a block: 32, 64 or 256.
    const BLOCK: usize = Self::LAYOUT.block;
    /// Bytes of a block.
    const BYTES: usize = Self::LAYOUT.bytes;
    /// Weights that share a scale: 16 or 32.
    const SUB_BLOCK: usize;
    /// What quants stand for, where they are indices: values plus [`Self::OFFSET`].
    const TABLE: Option<&'static [u8; 16]> = None;
    /// Subtracted from every quant (after the table).
    const OFFSET: u8;
    /// The largest quant (after the table). 255: all 8 bits are used, and the offset is 128.
    const LARGEST: u8;
    /// Sub-blocks have minima.
    const MINIMA: bool;
    /// Bits of a quant (before the table) in the two planes of a packed copy, less significant ones first, and how its scales
    /// are stored there. `None`: the format's own bytes are read in place.
    const PACKED: Option<((usize, usize), PackedScales)>;

    /// The quants of some groups, 32 each, in order, before the table.
    fn quants<U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes;
    /// The block's scales.
    fn scales<U: Unpack>(u: U, b: &[u8]) -> Scales;

    /// Bytes of a block in each of the GPU's planes.
    const PLANES: [usize; 4];
    /// Words that follow the planes' start in every segment: a table that the shader reads; a multiple of 4.
    const GPU_TABLE: &'static [u32] = &[];
    /// The WGSL that reads a group's weights: see [`super::gpu::fragment`].
    const WGSL: &'static str;
    /// The WGSL that reads them as integers: see [`super::gpu::ints_fragment`].
    const WGSL_INTS: &'static str;
    /// Splits a block into the GPU's planes.
    fn pack(b: &[u8], planes: [&mut [u8]; 4]);

    /// How random weights are made.
    const RANDOM: Random;
    /// Sets the scales of a block of random bytes, of which some bits choose among 16 halves for `d` and, where it has a minimum,
    /// the halves that centre its weights.
    #[inline(always)]
    fn set_scales(b: &mut [u8], halves: &ScaleChoices) {
        let at = Self::RANDOM.scale_at;
        let (d, min) = halves[usize::from(b[at] & 15)];
        b[at..at + 2].copy_from_slice(&d);
        Self::centre(b, min);
    }
    /// Makes the small scales and minima of a random block such that `min`, a half, centres the weights.
    #[inline(always)]
    fn centre(_b: &mut [u8], _min: [u8; 2]) {}

    /// Why there is no quantiser, if there is none.
    const NO_QUANTISER: Option<&'static str> = None;
    /// A block from f32 values, with importances `w`. Not called where there is no quantiser.
    fn quantize(x: &[f32], w: &[f32], b: &mut [u8]);
}

/// The values of some groups plus [`BlockFormat::OFFSET`].
#[inline(always)]
pub fn values<F: BlockFormat, U: Unpack>(u: U, of: U::Groups<'_>) -> U::Bytes {
    let quants = F::quants(u, of);
    match F::TABLE {
        Some(table) => u.lookup(table, quants),
        None => quants,
    }
}

/// [`BlockFormat::NO_QUANTISER`] of formats whose choice of points is no better than noise where nobody says which weights matter.
pub const NEEDS_IMPORTANCE: &str =
    "it needs an importance matrix; make a Q2_K or larger file here, or this one with llama.cpp";

/// Code that is generic over block formats, for [`super::DType::with_format`].
pub trait WithFormat {
    /// What it gives.
    type Output;
    /// Runs it for `F`.
    fn run<F: BlockFormat>(self) -> Self::Output;
}

/// A slice's first `N` elements: the whole slice, where its length is a format's.
#[inline(always)]
pub fn whole<T, const N: usize>(x: &[T]) -> &[T; N] {
    x.first_chunk().expect("a block is whole")
}
