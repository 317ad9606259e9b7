//! How a weight's blocks lie on the GPU, and the repacking.
//!
//! The unit is a *group* of 32 consecutive weights of a row. A segment is some whole rows of one weight in one storage
//! buffer; group `g = row * groups_per_row + j`, `n` groups in all. A segment is a few *planes*, each with the same
//! kind of data for all groups (quants, then high bits, then scales), so that neighbouring lanes that take neighbouring
//! groups load neighbouring 16 bytes. Every plane starts at a multiple of 16 bytes that follows from `n`. The planes of
//! each format are on the format's own page (`q4_k.rs`, ...), and in the header of `shaders/quant/<format>.wgsl`, which
//! reads them. Apart from the padding at the ends of planes, the bytes are the file's, except Q3_K's (4 % more), and
//! float rows that are no multiple of 32 (zeros up to one).
//!
//! Bytes within words are little-endian, as on every GPU and on every host that this crate supports.

use super::{DType, Float, format::BlockFormat};
use crate::error::{Error, Result};

/// Weights in a group.
pub const GROUP: usize = 32;

/// The WGSL that reads a segment of `dtype`: `fn W_dequant(g: u32, n: u32) -> array<vec4<f32>, 8>` gives the 32 weights
/// of group `g` of a segment of `n` groups from `W_data: array<vec4<u32>>`, which the kernel declares. All global names
/// begin with `W_`, for a linker to replace.
pub fn fragment(dtype: DType) -> &'static str {
    match dtype.codec() {
        Ok(codec) => codec.wgsl,
        Err(Float::F32) => include_str!("../../shaders/quant/f32.wgsl"),
        Err(Float::F16) => include_str!("../../shaders/quant/f16.wgsl"),
        Err(Float::BF16) => include_str!("../../shaders/quant/bf16.wgsl"),
    }
}

/// The WGSL that goes with [`fragment`] and gives the weights as integers: `fn W_ints(g: u32, n: u32) -> Ints`, a struct that
/// `shaders/tiles/int8.wgsl` declares. `None` for floats.
pub fn ints_fragment(dtype: DType) -> Option<&'static str> {
    dtype.codec().ok().map(|codec| codec.wgsl_ints)
}

/// Bytes that a block (for floats: a group) has in each plane.
fn planes(dtype: DType) -> [usize; 4] {
    match dtype.codec() {
        Ok(codec) => codec.planes,
        Err(Float::F32) => [128, 0, 0, 0],
        Err(Float::F16 | Float::BF16) => [64, 0, 0, 0],
    }
}

/// The words that begin every segment of `dtype`, before its planes: a table that its fragment reads. Empty for most formats.
pub fn table(dtype: DType) -> &'static [u32] {
    dtype.codec().map_or(&[], |codec| codec.gpu_table)
}

/// Groups of a row of `cols` weights.
pub const fn groups_per_row(cols: usize) -> usize {
    cols.div_ceil(GROUP)
}

/// Bytes of each plane of a segment, padded to 16; `None` where that overflows or `cols` does not fit the format.
fn plane_bytes(dtype: DType, rows: usize, cols: usize) -> Option<[usize; 4]> {
    dtype.row_bytes(cols)?;
    let groups_per_block = dtype.layout().block.div_ceil(GROUP);
    let blocks = rows.checked_mul(groups_per_row(cols))?.checked_div(groups_per_block)?;
    let mut out = [0; 4];
    for (out, bytes) in out.iter_mut().zip(planes(dtype)) {
        *out = blocks.checked_mul(bytes)?.checked_next_multiple_of(16)?;
    }
    // The sum must fit as well.
    out.iter().try_fold(4 * table(dtype).len(), |a, &b| a.checked_add(b))?;
    Some(out)
}

/// Where the planes of a segment lie, in bytes, padding included, behind its [`table`]; a plane that the format does not have is empty. `None`
/// where the size overflows or a row is no whole number of blocks.
pub fn plane_ranges(dtype: DType, rows: usize, cols: usize) -> Option<[std::ops::Range<usize>; 4]> {
    let mut at = 4 * table(dtype).len();
    Some(plane_bytes(dtype, rows, cols)?.map(|bytes| {
        at += bytes;
        at - bytes..at
    }))
}

/// Bytes of a row in each plane.
pub fn row_planes(dtype: DType, cols: usize) -> [usize; 4] {
    let blocks = groups_per_row(cols) / dtype.layout().block.div_ceil(GROUP);
    planes(dtype).map(|bytes| bytes * blocks)
}

/// Words (u32) of a segment of `rows` rows of `cols` weights; a multiple of 4. Zero where the size overflows or a row
/// is no whole number of blocks, which [`pack`] reports.
pub fn words(dtype: DType, rows: usize, cols: usize) -> usize {
    plane_bytes(dtype, rows, cols).map_or(0, |p| table(dtype).len() + p.iter().sum::<usize>() / 4)
}

/// Repacks a whole segment: `bytes` are `rows` rows as they lie in the file, `out` has [`words`] words.
///
/// # Errors
/// As [`pack_rows`].
pub fn pack(dtype: DType, rows: usize, cols: usize, bytes: &[u8], out: &mut [u32]) -> Result<()> {
    let whole = dtype.row_bytes(cols).and_then(|r| r.checked_mul(rows));
    if whole != Some(bytes.len()) {
        return Err(Error::Invalid(format!("{} bytes are not {rows} rows of {cols} weights of {dtype}", bytes.len())));
    }
    pack_rows(dtype, rows, cols, 0, bytes, out)
}

/// Repacks some rows of a segment of `total_rows` rows: `bytes` are whole rows as they lie in the file, the first of
/// them row `first_row` of the segment, and `out` is the whole segment, of which only these rows' parts are written
/// (and, by the rows that end a plane, nothing of its padding). This is how a model streams to the GPU.
///
/// # Errors
/// [`Error::Invalid`] where `cols` is no whole number of blocks (for floats: no multiple of 4), `bytes` are no whole
/// rows, they reach beyond the segment, or `out` has another size than [`words`].
pub fn pack_rows(
    dtype: DType,
    total_rows: usize,
    cols: usize,
    first_row: usize,
    bytes: &[u8],
    out: &mut [u32],
) -> Result<()> {
    let bad = |what: String| Error::Invalid(format!("packing {dtype} rows of {cols} weights: {what}"));
    let row_bytes = dtype.row_bytes(cols).filter(|&b| b > 0 && cols.is_multiple_of(4)).ok_or_else(|| {
        bad(format!("a row must be a whole number of blocks of {} and of 4 weights", dtype.layout().block))
    })?;
    let sizes = plane_bytes(dtype, total_rows, cols).ok_or_else(|| bad("the size overflows".into()))?;
    let rows = bytes.len() / row_bytes;
    if !bytes.len().is_multiple_of(row_bytes) || first_row.checked_add(rows).is_none_or(|end| end > total_rows) {
        return Err(bad(format!("{} bytes at row {first_row} of {total_rows} rows", bytes.len())));
    }
    let out: &mut [u8] = bytemuck::cast_slice_mut(out);
    let table: &[u8] = bytemuck::cast_slice(table(dtype));
    let wanted = table.len() + sizes.iter().sum::<usize>();
    if out.len() != wanted {
        return Err(bad(format!("the buffer has {} bytes instead of {wanted}", out.len())));
    }
    let (begin, out) = out.split_at_mut(table.len());
    begin.copy_from_slice(table);
    // Each plane, from the first of our blocks on.
    let first = first_row * (groups_per_row(cols) / dtype.layout().block.div_ceil(GROUP));
    let mut at: [&mut [u8]; 4] = std::array::from_fn(|_| Default::default());
    let mut rest = out;
    for ((at, size), per_block) in at.iter_mut().zip(sizes).zip(planes(dtype)) {
        let (plane, tail) = rest.split_at_mut(size);
        *at = &mut plane[first * per_block..];
        rest = tail;
    }
    match dtype.codec() {
        Ok(codec) => (codec.pack)(bytes, at),
        Err(Float::F32 | Float::F16 | Float::BF16) => pack_float(bytes, row_bytes, planes(dtype)[0], at),
    }
    Ok(())
}

/// Copies float rows, each padded with zeros to whole groups.
fn pack_float(bytes: &[u8], row_bytes: usize, group_bytes: usize, [out, ..]: [&mut [u8]; 4]) {
    let padded = row_bytes.next_multiple_of(group_bytes);
    for (row, out) in bytes.chunks_exact(row_bytes).zip(out.chunks_exact_mut(padded)) {
        out[..row_bytes].copy_from_slice(row);
        out[row_bytes..].fill(0);
    }
}

/// Splits blocks of `F` into planes, each of which begins with the first block's part.
pub(super) fn pack_blocks<F: BlockFormat>(bytes: &[u8], mut planes: [&mut [u8]; 4]) {
    for block in bytes.chunks_exact(F::BYTES) {
        let mut parts: [&mut [u8]; 4] = std::array::from_fn(|_| Default::default());
        for ((part, plane), bytes) in parts.iter_mut().zip(&mut planes).zip(F::PLANES) {
            let (this, others) = std::mem::take(plane).split_at_mut(bytes);
            (*part, *plane) = (this, others);
        }
        F::pack(block, parts);
    }
}
