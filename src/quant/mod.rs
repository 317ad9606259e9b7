//! Block formats: how weights are stored, and f32 from and to blocks. One file per format.
//!
//! A row of a weight is a whole number of blocks; a block is a fixed number of weights in a fixed number of bytes. The
//! formats and their numbers are ggml's (`ggml-common.h`, and the numpy twins in the PyPI package `gguf`), and
//! dequantisation equals ggml's bit for bit.
//!
//! [`dequantize`] and [`quantize`] turn blocks into f32 and back; [`gpu`] rearranges blocks for the GPU, where
//! `shaders/quant/<format>.wgsl` reads them; [`mix`] chooses a format for every tensor of a model. [`KvType`] says how a
//! cache stores keys and values.
//!
//! Deliberately absent: matrix products (see `backend/`), file layout (see `file/`).

mod affine;
pub(crate) mod bits;
mod encode;
mod fit;
mod float;
pub mod gpu;
pub(crate) mod iq4_nl;
pub(crate) mod iq4_xs;
pub(crate) mod kv;
pub mod mix;
pub(crate) mod mxfp4;
pub(crate) mod q2_k;
pub(crate) mod q3_k;
pub(crate) mod q4_0;
pub(crate) mod q4_1;
pub(crate) mod q4_k;
pub(crate) mod q5_0;
pub(crate) mod q5_1;
pub(crate) mod q5_k;
pub(crate) mod q6_k;
pub(crate) mod q8_0;

use crate::error::{Error, Result};
pub use encode::{quantize, quantize_rows, quantize_weighted};
pub use float::f8_e4m3;
pub use kv::KvType;

/// The type of a weight's elements, as GGUF names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4NL,
    IQ4XS,
    MXFP4,
}

/// What [`DType::layout`] tells: name, ggml's type number, weights a block, bytes a block.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// ggml's name, upper case, as `moeray inspect` prints it and `--type` takes it.
    pub name: &'static str,
    /// The number in a GGUF tensor header (`enum ggml_type`).
    pub ggml_id: u32,
    /// Weights in a block; a row is a whole number of blocks.
    pub block: usize,
    /// Bytes in a block.
    pub bytes: usize,
}

impl DType {
    /// Every format, in the order of the enum.
    pub const ALL: [DType; 16] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q2K,
        DType::Q3K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
        DType::IQ4NL,
        DType::IQ4XS,
        DType::MXFP4,
    ];

    /// Name, number and block size.
    pub const fn layout(self) -> Layout {
        const fn l(name: &'static str, ggml_id: u32, block: usize, bytes: usize) -> Layout {
            Layout { name, ggml_id, block, bytes }
        }
        match self {
            DType::F32 => l("F32", 0, 1, 4),
            DType::F16 => l("F16", 1, 1, 2),
            DType::BF16 => l("BF16", 30, 1, 2),
            DType::Q4_0 => l("Q4_0", 2, 32, 18),
            DType::Q4_1 => l("Q4_1", 3, 32, 20),
            DType::Q5_0 => l("Q5_0", 6, 32, 22),
            DType::Q5_1 => l("Q5_1", 7, 32, 24),
            DType::Q8_0 => l("Q8_0", 8, 32, 34),
            DType::Q2K => l("Q2_K", 10, 256, 84),
            DType::Q3K => l("Q3_K", 11, 256, 110),
            DType::Q4K => l("Q4_K", 12, 256, 144),
            DType::Q5K => l("Q5_K", 13, 256, 176),
            DType::Q6K => l("Q6_K", 14, 256, 210),
            DType::IQ4NL => l("IQ4_NL", 20, 32, 18),
            DType::IQ4XS => l("IQ4_XS", 23, 256, 136),
            DType::MXFP4 => l("MXFP4", 39, 32, 17),
        }
    }

    /// The format with ggml's number `id`.
    pub fn from_ggml_id(id: u32) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.layout().ggml_id == id)
    }

    /// The format called `name`, upper or lower case.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.layout().name.eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `cols` weights; `None` where `cols` is no whole number of blocks.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let l = self.layout();
        cols.is_multiple_of(l.block).then(|| (cols / l.block).checked_mul(l.bytes)).flatten()
    }

    /// F32, F16 and BF16: stored as numbers, not blocks.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.layout().name)
    }
}

/// The f32 values of `bytes`, whole blocks of `dtype`, equal to ggml's bit for bit (the payload of a NaN excepted).
///
/// # Errors
/// [`Error::Invalid`] where `bytes` are no whole number of blocks, or `out` has another length than their weights.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let l = dtype.layout();
    if !bytes.len().is_multiple_of(l.bytes)
        || !out.len().is_multiple_of(l.block)
        || bytes.len() / l.bytes != out.len() / l.block
    {
        return Err(Error::Invalid(format!(
            "{} bytes of {dtype} are not {} weights: a block of {} has {} bytes",
            bytes.len(),
            out.len(),
            l.block,
            l.bytes
        )));
    }
    match dtype {
        DType::F32 => each(bytes, out, float::dequantize_f32),
        DType::F16 => each(bytes, out, float::dequantize_f16),
        DType::BF16 => each(bytes, out, float::dequantize_bf16),
        DType::Q4_0 => each(bytes, out, q4_0::dequantize),
        DType::Q4_1 => each(bytes, out, q4_1::dequantize),
        DType::Q5_0 => each(bytes, out, q5_0::dequantize),
        DType::Q5_1 => each(bytes, out, q5_1::dequantize),
        DType::Q8_0 => each(bytes, out, q8_0::dequantize),
        DType::Q2K => each(bytes, out, q2_k::dequantize),
        DType::Q3K => each(bytes, out, q3_k::dequantize),
        DType::Q4K => each(bytes, out, q4_k::dequantize),
        DType::Q5K => each(bytes, out, q5_k::dequantize),
        DType::Q6K => each(bytes, out, q6_k::dequantize),
        DType::IQ4NL => each(bytes, out, iq4_nl::dequantize),
        DType::IQ4XS => each(bytes, out, iq4_xs::dequantize),
        DType::MXFP4 => each(bytes, out, mxfp4::dequantize),
    }
    Ok(())
}

/// `f` for every block of `N` bytes and its `B` weights.
fn each<const N: usize, const B: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn(&[u8; N], &mut [f32; B])) {
    for (block, y) in bytes.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<B>().0) {
        f(block, y);
    }
}
